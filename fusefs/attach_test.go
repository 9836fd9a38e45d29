package fusefs

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ukai"
)

func TestWritingAttachesUntilClose(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	buf := make([]byte, 4096)
	if _, err := f.ReadAt(buf, 0); err != nil || d.isAttached() {
		t.Fatalf("reading: %v, attached %v", err, d.isAttached())
	}
	if err := f.Sync(); err != nil || d.isAttached() {
		t.Fatalf("fsync: %v, attached %v", err, d.isAttached())
	}
	for range 3 {
		if _, err := f.WriteAt(buf, 0); err != nil || !d.isAttached() {
			t.Fatalf("writing: %v, attached %v", err, d.isAttached())
		}
	}
	if d.attaches.Load() != 1 {
		t.Errorf("attached %d times for one handle", d.attaches.Load())
	}
	if err := f.Close(); err != nil || d.isAttached() {
		t.Errorf("when close returned: %v, attached %v", err, d.isAttached())
	}
}

func TestCloseOfADuplicateLetsTheDiskGoAndWritingTakesItAgain(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	buf := make([]byte, 4096)
	dup, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil || d.isAttached() {
		t.Fatalf("close of one of two: %v, attached %v", err, d.isAttached())
	}
	if _, err := unix.Pwrite(dup, buf, 0); err != nil || !d.isAttached() {
		t.Errorf("write through the other: %v, attached %v", err, d.isAttached())
	}
	if err := unix.Close(dup); err != nil || d.isAttached() {
		t.Errorf("close of the other: %v, attached %v", err, d.isAttached())
	}
}

func TestChildThatInheritsADescriptorDoesNotLoseUsTheDisk(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	cmd := child(t, "idle")
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !d.isAttached() || d.detaches.Load() != 0 {
		t.Errorf("a child's end detached the disk: attached %v, detached %d times", d.isAttached(), d.detaches.Load())
	}
}

func TestDiskHeldElsewhereCannotBeWritten(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	d.hold(true)
	f := m.open(t, "vm1", os.O_RDWR)
	buf := make([]byte, 4096)
	if _, err := f.ReadAt(buf, 0); err != nil {
		t.Errorf("reading: %v", err)
	}
	_, err := f.WriteAt(buf, 0)
	wantErrno(t, "write", err, unix.EBUSY)
	wantErrno(t, "punch a hole", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096), unix.EBUSY)
	wantErrno(t, "grow", f.Truncate(2<<20), unix.EBUSY)
	d.hold(false)
	if _, err = f.WriteAt(buf, 0); err != nil {
		t.Errorf("write when the other node let it go: %v", err)
	}
}

func TestCloseFailsWhenLettingGoFails(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	d.on(func(_ context.Context, op string) error {
		if op == "detach" {
			return ukai.ErrNoQuorum
		}
		return nil
	})
	wantErrno(t, "close", f.Close(), unix.EIO)
	if d.isAttached() {
		t.Error("still attached")
	}
}

func TestCloseWaitsForWritesInFlight(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	dup, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	held, free := make(chan struct{}), make(chan struct{})
	d.on(func(_ context.Context, op string) error {
		if op == "write" {
			close(held)
			<-free
		}
		return nil
	})
	written, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := unix.Pwrite(dup, make([]byte, 4096), 0)
		written <- err
	}()
	<-held
	d.on(nil)
	go func() { closed <- f.Close() }()
	select {
	case err := <-closed:
		t.Fatalf("close returned while a write was in flight: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(free)
	if err := errors.Join(<-written, <-closed, unix.Close(dup)); err != nil {
		t.Error(err)
	}
}

func TestLocksCanBeRequired(t *testing.T) {
	m := mount(t, func(c *Config) { c.RequireLocks = true })
	m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	_, err := f.WriteAt(make([]byte, 512), 0)
	wantErrno(t, "write without a lock", err, unix.EPERM)
	ofd(t, f, unix.F_RDLCK, 101, 1)
	if _, err := f.WriteAt(make([]byte, 512), 0); err != nil {
		t.Errorf("write with byte 101 locked: %v", err)
	}
}
