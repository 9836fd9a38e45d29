//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ukai/testnet/wan"
)

const (
	failoverDisk = "disk"
	ioSize       = 4096
	// changed is how much is written while a replica is down.
	changed = 256 << 20
	// quietTime is how long latencies are taken before and after something happens.
	quietTime = 5 * time.Second
	// pauseLimit is how long a pause may last and still be seen whole.
	pauseLimit = 10 * time.Second
)

// failover measures how long users wait when something breaks, and what it takes to be whole again.
func failover(ctx context.Context, o options) (err error) {
	if err := errors.Join(os.RemoveAll(o.dir), os.MkdirAll(o.dir, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	var rows pauses
	if err := rows.onLoopback(ctx, o); err != nil {
		return err
	}
	if err := rows.behindCuts(ctx, o); err != nil {
		return err
	}
	text := rows.markdown(o)
	fmt.Print(text)
	if o.doc != "" {
		return replaceTable(o.doc, "bench-failover", text)
	}
	return nil
}

// pauses are the rows of the table, in the order in which they were first measured.
type pauses []*pause

type pause struct {
	what   string
	unit   string
	values []float64
}

func (p *pauses) add(what, unit string, value float64) {
	progress("%-70s %10.2f %s", what, value, unit)
	for _, row := range *p {
		if row.what == what {
			row.values = append(row.values, value)
			return
		}
	}
	*p = append(*p, &pause{what, unit, []float64{value}})
}

func (p pauses) markdown(o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s: %s; %s. Two replicas and a witness, disk of %d MiB.\n\n| | median | worst | runs |\n|---|--:|--:|--:|\n",
		time.Now().UTC().Format("2006-01-02"), machine(), strings.Join(versions(options{bin: o.bin}), ", "), o.size>>20)
	for _, row := range p {
		worst := slices.Max(row.values)
		fmt.Fprintf(&b, "| %s | %.2f %s | %.2f %s | %d |\n", row.what, median(row.values), row.unit, worst, row.unit, len(row.values))
	}
	return b.String()
}

// onLoopback measures what happens to processes.
func (p *pauses) onLoopback(ctx context.Context, o options) (err error) {
	m, err := startMesh(ctx, o.bin, filepath.Join(o.dir, "failover"), nil, o.port, spec{name: "t1", dc: "tokyo"}, spec{name: "t2", dc: "tokyo"}, spec{name: "w1", dc: "fukuoka", witness: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	t1, t2 := m.nodes[0], m.nodes[1]
	if err := m.create(ctx, t1, failoverDisk, o.size, "dc=tokyo:2"); err != nil {
		return err
	}
	for range o.repeat {
		if err := p.attach(ctx, t1, t2); err != nil {
			return err
		}
	}
	if err := prewrite(ctx, t1.file(failoverDisk), o.size); err != nil {
		return err
	}
	for range o.repeat {
		for _, broken := range []struct {
			what        string
			cause, mend func() error
		}{
			{"longest wait of a write when a replica is killed", t2.kill, t2.run},
			{"longest wait of a write when a replica is frozen", func() error { return t2.cmd.Process.Signal(syscall.SIGSTOP) }, func() error { return t2.cmd.Process.Signal(syscall.SIGCONT) }},
		} {
			if err := p.pause(ctx, broken.what, t1, broken.cause, broken.mend); err != nil {
				return fmt.Errorf("%s: %w", broken.what, err)
			}
		}
		if err := p.resync(ctx, t1, t2); err != nil {
			return fmt.Errorf("resync: %w", err)
		}
		if err := p.takeover(ctx, t1, t2); err != nil {
			return fmt.Errorf("takeover: %w", err)
		}
	}
	return nil
}

// behindCuts measures what a cut link does.
func (p *pauses) behindCuts(ctx context.Context, o options) (err error) {
	if err := wan.Supported(); err != nil {
		return err
	}
	network := wan.New("ukai-failover", 1)
	network.SetDefault(wan.Link{Delay: 100 * time.Microsecond})
	m, err := startMesh(ctx, o.bin, filepath.Join(o.dir, "cuts"), network, 0, spec{name: "t1", dc: "tokyo"}, spec{name: "t2", dc: "tokyo"}, spec{name: "w1", dc: "fukuoka", witness: true})
	if err != nil {
		return errors.Join(err, network.Close())
	}
	defer func() { err = errors.Join(err, m.close()) }()
	t1 := m.nodes[0]
	if err := m.create(ctx, t1, failoverDisk, o.size, "dc=tokyo:2"); err != nil {
		return err
	}
	cut := func(down bool) func() error {
		return func() error {
			for _, other := range []string{"t1", "w1"} {
				network.SetBoth("t2", other, wan.Link{Delay: 100 * time.Microsecond, Down: down})
			}
			return nil
		}
	}
	for range o.repeat {
		if err := p.pause(ctx, "longest wait of a write when a replica's node is cut off", t1, cut(true), cut(false)); err != nil {
			return err
		}
	}
	return nil
}

// attach measures the first write on a disk that another node has let go of, above a later one.
func (p *pauses) attach(ctx context.Context, from, to *node) error {
	if err := released(ctx, to); err != nil {
		return err
	}
	for _, n := range []*node{from, to} {
		w, err := openWriter(n)
		if err != nil {
			return err
		}
		first, err1 := w.write()
		second, err2 := w.write()
		if err := errors.Join(err1, err2, w.file.Close()); err != nil {
			return err
		}
		if n == to {
			p.add("attach of a disk that was released", "ms", ms(first-second))
		}
		if err := released(ctx, to); err != nil {
			return err
		}
	}
	return nil
}

func released(ctx context.Context, at *node) error {
	return await(ctx, "the release of the disk", func() error {
		if s, err := at.disk(ctx); err != nil || s.State != "idle" {
			return fmt.Errorf("it is %q: %w", s.State, err)
		}
		return nil
	})
}

// pause measures the longest write while something is broken.
func (p *pauses) pause(ctx context.Context, what string, at *node, cause, mend func() error) error {
	w, err := openWriter(at)
	if err != nil {
		return err
	}
	defer func() { _ = w.file.Close() }()
	stop := w.keepWriting()
	err = errors.Join(wait(ctx, quietTime/2), cause(), wait(ctx, quietTime+pauseLimit))
	latencies, errWrite := stop()
	if err := errors.Join(err, errWrite); err != nil {
		return err
	}
	p.add(what, "s", slices.Max(latencies).Seconds())
	if err := mend(); err != nil {
		return err
	}
	return inSync(ctx, at, 2)
}

// resync measures what it takes to bring back a replica that missed writes, and what users feel meanwhile.
func (p *pauses) resync(ctx context.Context, t1, t2 *node) error {
	if err := errors.Join(t2.kill(), overwrite(t1, changed)); err != nil {
		return err
	}
	sent := t1.counter(ctx, "ukai_wire_quic_sent_bytes_total")
	returned := func() (time.Time, error) {
		if err := t2.run(); err != nil {
			return time.Time{}, err
		}
		err := await(ctx, "the return of t2", func() error { return t2.sees(ctx, 3) })
		return time.Now(), err
	}
	began, err := returned()
	if err != nil {
		return err
	}
	if err := inSync(ctx, t1, 2); err != nil {
		return err
	}
	p.add("resync of 256 MiB that were written meanwhile, of a disk that nobody uses", "s", time.Since(began).Seconds())
	p.add("bytes on the wire per byte that changed", "x", float64(t1.counter(ctx, "ukai_wire_quic_sent_bytes_total")-sent)/changed)

	if err := errors.Join(t2.kill(), overwrite(t1, changed)); err != nil {
		return err
	}
	w, err := openWriter(t1)
	if err != nil {
		return err
	}
	defer func() { _ = w.file.Close() }()
	w.size = changed // or all the rest would be changed too
	stop := w.keepWriting()
	err = wait(ctx, quietTime)
	quiet, errWrite := stop()
	if err := errors.Join(err, errWrite); err != nil {
		return err
	}
	if began, err = returned(); err != nil {
		return err
	}
	stop = w.keepWriting()
	err = inSync(ctx, t1, 2)
	took := time.Since(began)
	busy, errWrite := stop()
	if err := errors.Join(err, errWrite); err != nil {
		return err
	}
	p.add("the same beside a program that writes to it all the time", "s", took.Seconds())
	stop = w.keepWriting()
	err = wait(ctx, quietTime)
	whole, errWrite := stop()
	p.add("p99 of 4 KiB writes with one replica", "ms", ms(p99(quiet)))
	p.add("p99 of 4 KiB writes with both replicas", "ms", ms(p99(whole)))
	p.add("p99 of 4 KiB writes during the resync", "ms", ms(p99(busy)))
	return errors.Join(err, errWrite)
}

// takeover measures how long after the death of the node that has a disk attached another one writes it. t1 is that node.
func (p *pauses) takeover(ctx context.Context, t1, t2 *node) error {
	w, err := openWriter(t1)
	if err != nil {
		return err
	}
	stop := w.keepWriting()
	if err := wait(ctx, quietTime/2); err != nil {
		return err
	}
	began := time.Now()
	if err := t1.kill(); err != nil {
		return err
	}
	_, _ = stop() // it failed with its node
	_ = w.file.Close()
	err = await(ctx, "a write on t2", func() error {
		w, err := openWriter(t2)
		if err != nil {
			return err
		}
		_, err = w.write()
		if err == nil {
			p.add("first write elsewhere after the node that had the disk attached was killed", "s", time.Since(began).Seconds())
		}
		return errors.Join(err, w.file.Close())
	})
	if err := errors.Join(err, t1.run()); err != nil {
		return err
	}
	if err := await(ctx, "the return of t1", func() error { return t1.sees(ctx, 3) }); err != nil {
		return err
	}
	if err := inSync(ctx, t1, 2); err != nil {
		return err
	}
	return released(ctx, t1)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func p99(latencies []time.Duration) time.Duration {
	slices.Sort(latencies)
	return latencies[len(latencies)*99/100]
}

// wait waits.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shown is what the admin API tells of the disk.
type shown struct {
	State    string
	Replicas []struct{ Role string }
}

func (n *node) disk(ctx context.Context) (s shown, err error) {
	body, err := n.get(ctx, "/v1/disks/"+failoverDisk)
	if err != nil {
		return s, err
	}
	defer func() { _ = body.Close() }()
	return s, json.NewDecoder(body).Decode(&s)
}

// inSync waits until so many replicas are in sync.
func inSync(ctx context.Context, at *node, count int) error {
	return await(ctx, fmt.Sprintf("%d replicas in sync", count), func() error {
		s, err := at.disk(ctx)
		if err != nil {
			return err
		}
		n := 0
		for _, r := range s.Replicas {
			if r.Role == "in sync" {
				n++
			}
		}
		if n != count {
			return fmt.Errorf("%d replicas are in sync", n)
		}
		return nil
	})
}

// writer writes 4 KiB at random places of the disk, one after the other.
type writer struct {
	file *os.File
	page []byte
	size int64
}

func openWriter(at *node) (*writer, error) {
	f, err := os.OpenFile(at.file(failoverDisk), os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	page, err := unix.Mmap(-1, 0, ioSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned; it lives as long as the program
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &writer{f, page, info.Size()}, nil
}

func (w *writer) write() (time.Duration, error) {
	began := time.Now()
	_, err := w.file.WriteAt(w.page, rand.Int64N(w.size/ioSize)*ioSize)
	return time.Since(began), err
}

// keepWriting writes until the returned function is called, which returns how long each write took.
func (w *writer) keepWriting() (stop func() ([]time.Duration, error)) {
	var stopped atomic.Bool
	var latencies []time.Duration
	done := make(chan error, 1)
	go func() {
		for !stopped.Load() {
			d, err := w.write()
			if err != nil {
				done <- err
				return
			}
			latencies = append(latencies, d)
		}
		done <- nil
	}()
	return func() ([]time.Duration, error) {
		stopped.Store(true)
		err := <-done
		if err == nil && len(latencies) == 0 {
			err = errors.New("not one write was done")
		}
		return latencies, err
	}
}

// overwrite writes random bytes to the first count bytes of the disk, and flushes.
func overwrite(at *node, count int64) error {
	f, err := os.OpenFile(at.file(failoverDisk), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{byte(rand.Uint32())})
	piece := make([]byte, 1<<20)
	for off := int64(0); off < count && err == nil; off += int64(len(piece)) {
		_, _ = random.Read(piece) // never fails
		_, err = f.WriteAt(piece, off)
	}
	return errors.Join(err, f.Sync(), f.Close())
}
