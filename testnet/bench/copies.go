//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// beside measures what a guest feels of copies in the background: the same job with and without a relocation of its disk, in turn, in one mesh. The guest
// runs where one replica is, and the other is moved to and fro between two more nodes.
func beside(ctx context.Context, o options) (err error) {
	if err := errors.Join(os.RemoveAll(o.dir), os.MkdirAll(o.dir, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	m, err := startMesh(ctx, o.bin, filepath.Join(o.dir, "copies"), nil, o.port, spec{name: "a", dc: "one"}, spec{name: "b", dc: "two"}, spec{name: "c", dc: "three"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	a := m.nodes[0]
	if err := m.create(ctx, a, failoverDisk, o.size, "dc=one:1", "dc=two:1"); err != nil {
		return err
	}
	held, err := lockAsQEMU(a.file(failoverDisk))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	if err := errors.Join(prewrite(ctx, a.file(failoverDisk), o.size), settleDisk(o.dir)); err != nil {
		return err
	}
	var rows besides
	to := []string{"three", "two"}
	for range o.repeat {
		for _, depth := range []string{"1", "4"} {
			row := rows.of("randrw 4k qd" + depth)
			if err := row.alone.measure(ctx, o, a, depth); err != nil {
				return err
			}
			before, began := a.counter(ctx, "ukai_resync_bytes_total"), time.Now()
			if err := m.place(ctx, "dc=one:1", "dc="+to[0]+":1"); err != nil {
				return err
			}
			err := await(ctx, "the beginning of the copies", func() error {
				if a.counter(ctx, "ukai_resync_bytes_total") == before {
					return errors.New("nothing is copied")
				}
				return nil
			})
			if err != nil {
				return err
			}
			if err := row.copying.measure(ctx, o, a, depth); err != nil {
				return err
			}
			took := time.Since(began).Seconds()
			copied := a.counter(ctx, "ukai_resync_bytes_total") - before
			if s, err := a.disk(ctx); err != nil || len(s.Replicas) < 3 {
				return errors.Join(err, fmt.Errorf("the relocation ended after %d MiB, before the guest did: take a larger -size or fewer -seconds", copied>>20))
			}
			row.copied = append(row.copied, float64(copied)/took/1e6)
			progress("%-20s copies %.1f MB/s; reads p50 %.0f -> %.0f p99 %.0f -> %.0f, writes p50 %.0f -> %.0f p99 %.0f -> %.0f us", row.what, row.copied[len(row.copied)-1],
				last(row.alone.read50), last(row.copying.read50), last(row.alone.read99), last(row.copying.read99),
				last(row.alone.write50), last(row.copying.write50), last(row.alone.write99), last(row.copying.write99))
			// Without a guest it ends soon.
			err = await(ctx, "the end of the relocation", func() error {
				s, err := a.disk(ctx)
				if err != nil || len(s.Replicas) != 2 {
					return fmt.Errorf("the disk has %d replicas: %w", len(s.Replicas), err)
				}
				return nil
			})
			if err := errors.Join(err, settleDisk(o.dir)); err != nil {
				return err
			}
			to[0], to[1] = to[1], to[0]
		}
	}
	text := rows.markdown(o)
	fmt.Print(text)
	if o.doc != "" {
		return replaceTable(o.doc, "bench-copies", text)
	}
	return nil
}

// lockAsQEMU locks the file of a disk as a VM does: its node holds the disk, and nobody else looks after it.
func lockAsQEMU(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// place gives the disk another rule.
func (m *mesh) place(ctx context.Context, rule ...string) error {
	args := append([]string{"--socket", m.nodes[0].socket(), "place", "disk", failoverDisk}, rule...)
	if out, err := exec.CommandContext(ctx, m.bin, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("place disk: %w: %s", err, out)
	}
	return nil
}

// besides are the rows of the table.
type besides []*besideRow

type besideRow struct {
	what           string
	alone, copying latencies
	copied         []float64 // MB/s
}

// latencies of several runs, in microseconds.
type latencies struct{ iops, read50, read99, write50, write99 []float64 }

func last(list []float64) float64 { return list[len(list)-1] }

func (b *besides) of(what string) *besideRow {
	for _, row := range *b {
		if row.what == what {
			return row
		}
	}
	row := &besideRow{what: what}
	*b = append(*b, row)
	return row
}

func (l *latencies) measure(ctx context.Context, o options, at *node, depth string) error {
	read, write, _, err := runFio(ctx, at.file(failoverDisk), o.size, "--rw=randrw", "--bs=4k", "--iodepth="+depth, "--time_based", fmt.Sprintf("--runtime=%d", o.seconds))
	if err != nil {
		return err
	}
	l.iops = append(l.iops, (read.IOs+write.IOs)/max(read.Runtime, write.Runtime)*1000)
	l.read50, l.read99 = append(l.read50, read.micros("50.000000")), append(l.read99, read.micros("99.000000"))
	l.write50, l.write99 = append(l.write50, write.micros("50.000000")), append(l.write99, write.micros("99.000000"))
	return nil
}

func (b besides) markdown(o options) string {
	var t strings.Builder
	fmt.Fprintf(&t, "Measured on %s: %s; %s. Disk of %d MiB, filled with random data; %d s per run, %d runs in turn; medians.\n\n",
		time.Now().UTC().Format("2006-01-02"), machine(), strings.Join(versions(options{bin: o.bin}), ", "), o.size>>20, o.seconds, o.repeat)
	t.WriteString("| | reads p50 | reads p99 | writes p50 | writes p99 | IOPS | copied |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for _, row := range b {
		cell := func(of func(*latencies) []float64, unit string) string {
			alone, copying := median(of(&row.alone)), median(of(&row.copying))
			return fmt.Sprintf("%.0f -> %.0f%s (%.2f x)", alone, copying, unit, copying/alone)
		}
		fmt.Fprintf(&t, "| %s | %s | %s | %s | %s | %s | %.1f MB/s |\n", row.what,
			cell(func(l *latencies) []float64 { return l.read50 }, " us"), cell(func(l *latencies) []float64 { return l.read99 }, " us"),
			cell(func(l *latencies) []float64 { return l.write50 }, " us"), cell(func(l *latencies) []float64 { return l.write99 }, " us"),
			cell(func(l *latencies) []float64 { return l.iops }, ""), median(row.copied))
	}
	return t.String()
}
