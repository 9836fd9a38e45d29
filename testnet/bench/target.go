//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ukai/fusefs/passthrough"
	"ukai/testnet/wan"
)

// target is a file that jobs run on, and what is behind it.
type target struct {
	name  string
	file  string
	mesh  *mesh // nil: not UKAI
	far   bool  // one replica is far away: only jobs with WAN run
	pids  func() []int
	sent  func() uint64 // bytes put on the wire so far
	close func() error
}

func newTarget(name, file string) *target {
	return &target{name: name, file: file, pids: func() []int { return nil }, sent: func() uint64 { return 0 }, close: func() error { return nil }}
}

// makeFile makes a sparse file.
func makeFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// plainFile is a file of the file system under the data directories.
func plainFile(dir string, size int64) (*target, error) {
	t := newTarget(nameFile, filepath.Join(dir, "plain"))
	return t, makeFile(t.file, size)
}

// passThrough is such a file behind the least FUSE daemon there is, a process of its own as ukai-node is.
func passThrough(ctx context.Context, dir string, size int64) (*target, error) {
	mount, backing := filepath.Join(dir, "passthrough"), filepath.Join(dir, "passthrough.img")
	if err := errors.Join(os.MkdirAll(mount, 0o700), makeFile(backing, size)); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, servePassThrough, mount, backing)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t := newTarget(namePass, filepath.Join(mount, passthrough.Name))
	t.pids = func() []int { return []int{cmd.Process.Pid} }
	t.close = func() error { return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()) }
	if err := await(ctx, t.file, func() error { _, err := os.Stat(t.file); return err }); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// local is a mesh of three nodes on loopback, of which the first two hold both replicas. The first target is used on one of them,
// the second one on the node without a replica.
func local(ctx context.Context, o options, label, bin, dir string, port int) (m *mesh, targets []*target, err error) {
	m, err = startMesh(ctx, bin, dir, nil, port, spec{name: "a", dc: "one"}, spec{name: "b", dc: "one"}, spec{name: "c", dc: "two"})
	if err != nil {
		return nil, nil, err
	}
	for _, shape := range []struct {
		name string
		at   *node
	}{{nameUKAI, m.nodes[0]}, {nameDiskless, m.nodes[2]}} {
		if !o.wanted(shape.name) {
			continue
		}
		disk := "d" + strconv.Itoa(len(targets))
		if err := m.create(ctx, shape.at, disk, o.size, "dc=one:2"); err != nil {
			return nil, nil, errors.Join(err, m.close())
		}
		t := newTarget(shape.name+label, shape.at.file(disk))
		t.mesh, t.pids, t.sent = m, m.pids, m.wire
		targets = append(targets, t)
	}
	return m, targets, nil
}

// farAway is a mesh with one replica a round trip of o.rtt away, and with the witness near.
func farAway(ctx context.Context, o options, label, bin, dir string) (*mesh, *target, error) {
	if err := wan.Supported(); err != nil {
		return nil, nil, err
	}
	network := wan.New(fmt.Sprintf("ub%d%s", os.Getpid()%10000, strings.TrimSpace(label)), 1)
	network.SetBoth("near", "far", wan.Link{Delay: o.rtt / 2})
	m, err := startMesh(ctx, bin, dir, network, 0, spec{name: "a", dc: "near"}, spec{name: "b", dc: "far"}, spec{name: "w", dc: "near", witness: true})
	if err != nil {
		return nil, nil, err
	}
	if err := m.create(ctx, m.nodes[0], "d", o.size, "dc=near:1", "dc=far:1"); err != nil {
		return nil, nil, errors.Join(err, m.close())
	}
	t := newTarget(nameFar+label, m.nodes[0].file("d"))
	t.mesh, t.far, t.pids, t.sent = m, true, m.pids, m.wire
	return m, t, nil
}

// settleDisk writes out what earlier runs have left in the page cache, so that it does not weigh on the next one.
func settleDisk(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// atRest measures what an idle mesh takes: CPU as a part of one core, and memory, per node.
func atRest(ctx context.Context, pids []int, d time.Duration) (core, mib float64, err error) {
	before := cpuTime(pids)
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	used := cpuTime(pids) - before
	return used.Seconds() / d.Seconds() / float64(len(pids)), residentMiB(pids) / float64(len(pids)), nil
}
