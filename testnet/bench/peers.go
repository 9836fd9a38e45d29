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
)

// peer runs other stores on this machine: in a network namespace of its own, so that their ports are theirs alone and their
// processes can be told from others.
type peer struct{ dir, namespace string }

// newPeer makes the namespace, with an address for each of two nodes.
func newPeer(dir, name string) (*peer, error) {
	p := &peer{dir, fmt.Sprintf("ubp%d-%s", os.Getpid()%100000, name)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, args := range []string{"netns add " + p.namespace, "-n " + p.namespace + " link set lo up",
		"-n " + p.namespace + " addr add 10.99.0.1/24 dev lo", "-n " + p.namespace + " addr add 10.99.0.2/24 dev lo"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return p, nil
}

func (p *peer) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + p.namespace, name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Dir = p.dir
	return cmd
}

// run runs a program to its end.
func (p *peer) run(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := p.command(ctx, name, args...)
	cmd.WaitDelay = time.Second // daemons inherit the pipe
	if out, err := cmd.CombinedOutput(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// pids lists the processes of the namespace.
func (p *peer) pids() (pids []int) {
	out, err := exec.Command("ip", "netns", "pids", p.namespace).Output()
	if err != nil {
		return nil
	}
	for _, field := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// close ends the processes of the namespace and removes it.
func (p *peer) close(mount string) error {
	_ = syscall.Unmount(mount, syscall.MNT_DETACH) // it may never have come to be
	for signal := syscall.SIGTERM; ; signal = syscall.SIGKILL {
		for _, pid := range p.pids() {
			_ = syscall.Kill(pid, signal) // it may be gone
		}
		for range 50 {
			if len(p.pids()) == 0 {
				return exec.Command("ip", "netns", "delete", p.namespace).Run()
			}
			time.Sleep(100 * time.Millisecond)
		}
		if signal == syscall.SIGKILL {
			return fmt.Errorf("processes %v of %s do not end", p.pids(), p.namespace)
		}
	}
}

// target makes the target of a peer that is set up already.
func (p *peer) target(name, file, mount string) *target {
	t := newTarget(name, file)
	t.pids = p.pids
	t.close = func() error { return p.close(mount) }
	return t
}

const glusterd = `volume management
    type mgmt/glusterd
    option working-directory %[1]s/wd
    option transport-type socket
    option transport.address-family inet
    option transport.socket.bind-address 10.99.0.1
    option ping-timeout 0
    option event-threads 1
    option glusterd-sockfile %[1]s/glusterd.sock
end-volume
`

// gluster is a volume of GlusterFS with two bricks and the options that its makers have made for virtual machines, mounted by FUSE.
func gluster(ctx context.Context, dir string, size int64) (*target, error) {
	p, err := newPeer(dir, "gluster")
	if err != nil {
		return nil, err
	}
	mount, volfile := filepath.Join(dir, "mnt"), filepath.Join(dir, "glusterd.vol")
	file := filepath.Join(mount, "disk.img")
	fail := func(err error) (*target, error) { return nil, errors.Join(err, p.close(mount)) }
	for _, sub := range []string{"b1", "b2", "wd", "mnt"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return fail(err)
		}
	}
	if err := errors.Join(os.CopyFS(filepath.Join(dir, "wd", "groups"), os.DirFS("/var/lib/glusterd/groups")),
		os.WriteFile(volfile, fmt.Appendf(nil, glusterd, dir), 0o600)); err != nil {
		return fail(err)
	}
	cli := func(args ...string) error {
		return p.run(ctx, "gluster", append([]string{"--glusterd-sock=" + dir + "/glusterd.sock", "--mode=script"}, args...)...)
	}
	if err := p.run(ctx, "glusterd", "-f", volfile, "-p", dir+"/glusterd.pid", "-l", dir+"/glusterd.log"); err != nil {
		return fail(err)
	}
	if err := await(ctx, "glusterd", func() error { return cli("pool", "list") }); err != nil {
		return fail(err)
	}
	for _, args := range []string{"volume create vm replica 2 10.99.0.1:" + dir + "/b1 10.99.0.1:" + dir + "/b2 force", "volume set vm group virt", "volume start vm"} {
		if err := cli(strings.Fields(args)...); err != nil {
			return fail(err)
		}
	}
	// The first tries may find bricks that do not listen yet.
	if err := await(ctx, "the mount of the volume", func() error {
		if err := p.run(ctx, "glusterfs", "--volfile-server=10.99.0.1", "--volfile-id=vm", "-l", dir+"/mnt.log", mount); err != nil {
			return err
		}
		return makeFile(file, size)
	}); err != nil {
		return fail(err)
	}
	return p.target(nameGluster, file, mount), nil
}

// quorum is QEMU's quorum driver over two NBD exports of plain files, exported by FUSE: replication without resync or fencing.
func quorum(ctx context.Context, dir string, size int64) (*target, error) {
	p, err := newPeer(dir, "quorum")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "disk.img")
	fail := func(err error) (*target, error) { return nil, errors.Join(err, p.close(file)) }
	args := []string{}
	for i := 1; i <= 2; i++ {
		raw := filepath.Join(dir, fmt.Sprintf("n%d.raw", i))
		if err := errors.Join(makeFile(raw, size), p.run(ctx, "nbdkit", "-i", fmt.Sprintf("10.99.0.%d", i), "-p", "10809", "-P", filepath.Join(dir, fmt.Sprintf("nbd%d.pid", i)), "file", raw)); err != nil {
			return fail(err)
		}
		args = append(args, "--blockdev", fmt.Sprintf(`{"driver":"nbd","server":{"type":"inet","host":"10.99.0.%d","port":"10809"},"reconnect-delay":0,"node-name":"n%[1]d"}`, i))
	}
	if err := makeFile(file, 0); err != nil {
		return fail(err)
	}
	args = append(args, "--blockdev", `{"driver":"quorum","node-name":"d","children":["n1","n2"],"vote-threshold":1,"read-pattern":"fifo"}`,
		"--export", "fuse,id=e,node-name=d,mountpoint="+file+",writable=on")
	cmd := p.command(context.WithoutCancel(ctx), "qemu-storage-daemon", args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	go func() { _ = cmd.Wait() }() // ended by close
	if err := await(ctx, "the export", func() error {
		info, err := os.Stat(file)
		if err == nil && info.Size() != size {
			err = fmt.Errorf("%s is not exported yet", file)
		}
		return err
	}); err != nil {
		return fail(err)
	}
	return p.target(nameQuorum, file, file), nil
}
