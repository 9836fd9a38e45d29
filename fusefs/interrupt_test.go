package fusefs

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// hang makes writes to d wait until their context ends, and returns a channel that gets a value for each that waits.
func hang(d *memDisk) <-chan struct{} {
	waits := make(chan struct{}, 100)
	d.on(func(ctx context.Context, op string) error {
		if op == "write" {
			waits <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	return waits
}

func TestKilledWriterOfAHangingDiskEnds(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	waits := hang(d)
	cmd := child(t, "write "+m.path("vm1"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-waits
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if n := len(waits); n != 0 {
		t.Errorf("the write of a dead program was tried %d more times", n)
	}
	eventually(t, "its disk is let go", func() bool { return !d.isAttached() && d.opens.Load() == 0 })
}

func TestTerminatedToolOnAHangingDiskEnds(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	waits := hang(d)
	cmd := exec.CommandContext(t.Context(), "dd", "if=/dev/zero", "of="+m.path("vm1"), "bs=4096", "count=1", "conv=notrunc")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-waits
	if err := cmd.Process.Signal(unix.SIGINT); err != nil { // dd has a handler for it: not deadly at once
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("dd ended well")
	}
	if len(waits) != 1 {
		t.Errorf("the write was tried %d more times, want once", len(waits))
	}
}

func TestSignalDoesNotDisturbAWriteThatEndsSoon(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	var tries atomic.Int64
	again := make(chan struct{})
	d.on(func(ctx context.Context, op string) error {
		switch {
		case op != "write":
		case tries.Add(1) == 1:
			again <- struct{}{}
			<-ctx.Done() // the signal
			return ctx.Err()
		}
		return nil
	})
	// perl's handlers do not restart system calls: it would see EINTR.
	cmd := exec.CommandContext(t.Context(), "perl", "-e", `$SIG{USR1} = sub {}; open(F, "+<", $ARGV[0]) or die; defined(syswrite(F, "x" x 512)) or die "write: $!"; close(F) or die`, m.path("vm1"))
	var out strings.Builder
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	<-again
	if err := cmd.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || tries.Load() != 2 {
		t.Errorf("%v: %s; %d tries, want 2", err, out.String(), tries.Load())
	}
}

func TestInterruptEndsOtherRequestsToo(t *testing.T) {
	for _, op := range []string{"read", "flush", "discard", "attach", "resize"} {
		m := mount(t)
		d := m.create("vm1", 1<<20)
		waits := make(chan struct{}, 10)
		d.on(func(ctx context.Context, what string) error {
			if what == op {
				waits <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		script := map[string]string{
			"read":    "exec cat DISK >/dev/null",
			"flush":   "exec sync DISK",
			"discard": "exec fallocate -p -o 0 -l 4096 DISK",
			"attach":  "exec dd if=/dev/zero of=DISK count=1 conv=notrunc",
			"resize":  "exec truncate -s 8M DISK",
		}[op]
		cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(script, "DISK", m.path("vm1")))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-waits
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		eventually(t, op+": the disk is let go", func() bool { return !d.isAttached() && d.opens.Load() == 0 })
	}
}

func TestDying(t *testing.T) {
	if dying(uint32(os.Getpid())) || dying(0) || dying(1<<31) {
		t.Error("who lives or is not known counts as dying")
	}
}

// A request context costs nothing: it is made for each read and write.
func TestRequestContextDoesNotAllocate(t *testing.T) {
	cancel := make(chan struct{})
	var made [1]context.Context
	if n := testing.AllocsPerRun(100, func() { made[0] = request(cancel) }); n != 0 { //nolint:fatcontext // what it costs is measured
		t.Errorf("%v allocations", n)
	}
	ctx := made[0]
	if ctx.Err() != nil || ctx.Value(1) != nil {
		t.Error("ended before it was cancelled")
	}
	if _, ok := ctx.Deadline(); ok {
		t.Error("has a deadline")
	}
	close(cancel)
	<-ctx.Done()
	if ctx.Err() != context.Canceled {
		t.Error(ctx.Err())
	}
}

func TestHandleReadAndWriteDoNotAllocate(t *testing.T) {
	n := newNode()
	n.create("vm1", 1<<20)
	fs := unmounted(t, n)
	h := openCore(t, fs, "vm1")
	cancel, buf, c := request(make(chan struct{})), make([]byte, 4096), caller{owner: 1, tid: 1}
	if _, err := h.write(cancel, c, buf, 0); err != nil {
		t.Fatal(err)
	}
	allocs := testing.AllocsPerRun(100, func() {
		h, err := fs.handle(h.fh)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.write(cancel, c, buf, 4096); err != nil {
			t.Fatal(err)
		}
		if _, err := h.read(cancel, 1, buf, 4096); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 1 { // a page of the test's disk, the first time
		t.Errorf("%v allocations per write and read", allocs)
	}
	fs.release(h.fh)
}
