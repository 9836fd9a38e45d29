//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	manySize  = 1 << 30 // bytes of each of many disks
	hugeSize  = 16 << 40
	hugeDisk  = "huge"
	hugeSpots = 1000 // written in the huge disk
	creators  = 8    // disks created at once
)

// measured is one line of the table of scale.
type measured struct{ what, value string }

type scaled struct {
	mesh *mesh
	rows []measured
}

func (s *scaled) add(what, format string, args ...any) {
	s.rows = append(s.rows, measured{what, fmt.Sprintf(format, args...)})
	progress("%-60s %s", what, s.rows[len(s.rows)-1].value)
}

// scale measures what many disks, and a huge one, cost a node: memory, processor and network at rest, attach, takeover.
func scale(ctx context.Context, o options) (err error) {
	if err := errors.Join(os.RemoveAll(o.dir), os.MkdirAll(o.dir, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	dir, unmount, err := sparse(ctx, o.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	m, err := startMesh(ctx, o.bin, filepath.Join(dir, "scale"), nil, o.port, spec{name: "a", dc: "one"}, spec{name: "b", dc: "two"}, spec{name: "c", dc: "three", witness: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	s := &scaled{mesh: m}
	if err := s.rest(ctx, o, "without disks"); err != nil {
		return err
	}
	if err := s.many(ctx, o); err != nil {
		return err
	}
	if err := s.huge(ctx, o); err != nil {
		return err
	}
	text := s.markdown(o)
	fmt.Print(text)
	if o.doc != "" {
		return replaceTable(o.doc, "bench-scale", text)
	}
	return nil
}

// sparse makes a file system that seems to have room for huge disks, and takes files of 16 TiB, which ext4 does not.
func sparse(ctx context.Context, dir string) (mounted string, unmount func() error, err error) {
	image, mounted := filepath.Join(dir, "image"), filepath.Join(dir, "fs")
	if err := errors.Join(os.Mkdir(mounted, 0o700), os.WriteFile(image, nil, 0o600), os.Truncate(image, hugeSize/4)); err != nil {
		return "", nil, err
	}
	for _, command := range [][]string{{"mkfs.xfs", "-q", image}, {"mount", "-o", "loop", image, mounted}} {
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return "", nil, fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, out)
		}
	}
	return mounted, func() error { return unix.Unmount(mounted, 0) }, nil
}

func (s *scaled) rest(ctx context.Context, o options, when string) error {
	a := s.mesh.nodes[0]
	sent := s.mesh.wire()
	core, mib, err := atRest(ctx, []int{a.cmd.Process.Pid}, o.rest)
	if err != nil {
		return err
	}
	perNode := float64(s.mesh.wire()-sent) / o.rest.Seconds() / float64(len(s.mesh.nodes))
	s.add("a node at rest, "+when, "%.1f %% of a core, %.0f MiB, %.1f KB/s sent", 100*core, mib, perNode/1e3)
	return nil
}

// many creates, attaches and uses many disks on one node.
func (s *scaled) many(ctx context.Context, o options) (err error) {
	m, a := s.mesh, s.mesh.nodes[0]
	name := func(i int) string { return "vm" + strconv.Itoa(i) }
	began := time.Now()
	var g errgroup.Group
	g.SetLimit(creators)
	for i := range o.disks {
		g.Go(func() error { return m.create(ctx, a, name(i), manySize, "dc=one:1", "dc=two:1") })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.add(fmt.Sprintf("create one of %d disks, %d at a time", o.disks, creators), "%.0f ms", time.Since(began).Seconds()*1e3/float64(o.disks))
	var files []*os.File
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	var attach []float64 // ms
	page := make([]byte, 4096)
	for i := range o.disks {
		began := time.Now()
		f, err := lockAsQEMU(a.file(name(i)))
		if err != nil {
			return err
		}
		files = append(files, f)
		attach = append(attach, time.Since(began).Seconds()*1e3)
		binary.BigEndian.PutUint64(page, uint64(i))
		if _, err := f.WriteAt(page, 0); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	slices.Sort(attach)
	s.add("attach one of them, one after the other", "p50 %.0f ms, p99 %.0f ms", attach[len(attach)/2], attach[len(attach)*99/100])
	if err := s.rest(ctx, o, fmt.Sprintf("with %d disks in use by idle VMs", o.disks)); err != nil {
		return err
	}
	for i, f := range files {
		if _, err := f.ReadAt(page, 0); err != nil || binary.BigEndian.Uint64(page) != uint64(i) {
			return errors.Join(err, fmt.Errorf("disk %d holds what was written to disk %d", i, binary.BigEndian.Uint64(page)))
		}
	}
	return nil
}

// huge uses a disk of 16 TiB here and there, and takes it over.
func (s *scaled) huge(ctx context.Context, o options) error {
	m, a, b := s.mesh, s.mesh.nodes[0], s.mesh.nodes[1]
	if err := m.create(ctx, a, hugeDisk, hugeSize, "dc=one:1", "dc=two:1"); err != nil {
		return err
	}
	began := time.Now()
	f, err := lockAsQEMU(a.file(hugeDisk))
	if err != nil {
		return err
	}
	s.add("attach a disk of 16 TiB", "%.0f ms", time.Since(began).Seconds()*1e3)
	rng := rand.New(rand.NewPCG(1, 2))
	spots := []int64{0, hugeSize - 4096}
	for len(spots) < hugeSpots {
		spots = append(spots, rng.Int64N(hugeSize/4096)*4096)
	}
	content := func(off int64) []byte { return bytes.Repeat(binary.BigEndian.AppendUint64(nil, uint64(off)|1), 512) }
	began = time.Now()
	for _, off := range spots {
		if _, err := f.WriteAt(content(off), off); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	s.add("write 4 KiB to a block of it that was never written", "%.1f ms", time.Since(began).Seconds()*1e3/hugeSpots)
	verify := func(f *os.File) error {
		page := make([]byte, 4096)
		for _, off := range spots {
			if _, err := f.ReadAt(page, off); err != nil || !bytes.Equal(page, content(off)) {
				return errors.Join(err, fmt.Errorf("byte %d of %s is not what was written", off, hugeDisk))
			}
		}
		return nil
	}
	if err := errors.Join(verify(f), s.rest(ctx, o, "with that disk, too")); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := a.kill(); err != nil {
		return err
	}
	_ = f.Close() // its mount is gone
	began = time.Now()
	if out, err := exec.CommandContext(ctx, m.bin, "--socket", b.socket(), "disk", "takeover", hugeDisk, "--fenced").CombinedOutput(); err != nil {
		return fmt.Errorf("disk takeover: %w: %s", err, out)
	}
	s.add("take it over after a kill -9, with --fenced", "%.0f ms", time.Since(began).Seconds()*1e3)
	g, err := os.OpenFile(b.file(hugeDisk), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(verify(g), g.Close(), a.run(), await(ctx, "a is back", func() error { return a.sees(ctx, len(m.nodes)) }))
}

func (s *scaled) markdown(o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s: %s; %s.\n\n| | |\n|---|--:|\n", time.Now().UTC().Format("2006-01-02"), machine(), strings.Join(versions(options{bin: o.bin}), ", "))
	for _, row := range s.rows {
		fmt.Fprintf(&b, "| %s | %s |\n", row.what, row.value)
	}
	return b.String()
}
