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

// shape is a disk of a mesh: where it is used, and how its writes are acknowledged.
type shape struct {
	name, ack string
	at        *node
}

// disks makes the targets that are wanted of some shapes.
func (m *mesh) disks(ctx context.Context, o options, label string, shapes []shape, rule ...string) (targets []*target, err error) {
	for _, s := range shapes {
		if !o.wanted(s.name) {
			continue
		}
		disk := "d" + strconv.Itoa(len(targets))
		if err := m.create(ctx, s.at, disk, o.size, append([]string{"--ack", s.ack}, rule...)...); err != nil {
			return nil, errors.Join(err, m.close())
		}
		t := newTarget(s.name+label, s.at.file(disk))
		t.mesh, t.pids, t.sent = m, m.pids, m.wire
		targets = append(targets, t)
	}
	return targets, nil
}

// local is a mesh of three nodes on loopback, of which the first two hold both replicas; disks are used on one of them, or on the node
// without a replica.
func local(ctx context.Context, o options, label, bin, dir string, port int) (m *mesh, targets []*target, err error) {
	m, err = startMesh(ctx, bin, dir, nil, port, spec{name: "a", dc: "one"}, spec{name: "b", dc: "one"}, spec{name: "c", dc: "two"})
	if err != nil {
		return nil, nil, err
	}
	near, diskless := m.nodes[0], m.nodes[2]
	targets, err = m.disks(ctx, o, label, []shape{{nameUKAI, "local", near}, {nameAll, "all", near}, {nameDiskless, "local", diskless}}, "dc=one:2")
	return m, targets, err
}

// farAway is a mesh with one replica a round trip of o.rtt away, and with the witness near.
func farAway(ctx context.Context, o options, label, bin, dir string) (m *mesh, targets []*target, err error) {
	if err := wan.Supported(); err != nil {
		return nil, nil, err
	}
	network := wan.New(fmt.Sprintf("ub%d%s", os.Getpid()%10000, strings.TrimSpace(label)), 1)
	network.SetBoth("near", "far", wan.Link{Delay: o.rtt / 2})
	m, err = startMesh(ctx, bin, dir, network, 0, spec{name: "a", dc: "near"}, spec{name: "b", dc: "far"}, spec{name: "w", dc: "near", witness: true})
	if err != nil {
		return nil, nil, err
	}
	targets, err = m.disks(ctx, o, label, []shape{{nameFar, "local", m.nodes[0]}, {nameFarAll, "all", m.nodes[0]}}, "dc=near:1", "dc=far:1")
	for _, t := range targets {
		t.far = true
	}
	return m, targets, err
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
