package fusefs

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tryOFD sets, or with F_UNLCK removes, an open-file-description lock as QEMU does.
func tryOFD(f *os.File, kind int16, start, n int64) error {
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: start, Len: n})
}

func ofd(t testing.TB, f *os.File, kind int16, start, n int64) {
	t.Helper()
	if err := tryOFD(f, kind, start, n); err != nil {
		t.Fatalf("lock %d+%d kind %d: %v", start, n, kind, err)
	}
}

// asked returns the lock that is in the way of one.
func asked(t testing.TB, f *os.File, kind int16, start, n int64) unix.Flock_t {
	t.Helper()
	lk := unix.Flock_t{Type: kind, Start: start, Len: n}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		t.Fatal(err)
	}
	return lk
}

func TestOFDLocksConflictAndEndWithTheirFile(t *testing.T) {
	m := mount(t)
	m.create("vm1", 1<<20)
	a, b := m.open(t, "vm1", os.O_RDWR), m.open(t, "vm1", os.O_RDWR)
	ofd(t, a, unix.F_WRLCK, 0, 100)
	wantErrno(t, "the same range from another file", tryOFD(b, unix.F_RDLCK, 99, 1), unix.EAGAIN)
	ofd(t, b, unix.F_WRLCK, 100, 1)
	if lk := asked(t, b, unix.F_RDLCK, 0, 1000); lk.Type != unix.F_WRLCK || lk.Start != 0 || lk.Len != 100 {
		t.Errorf("in the way is %+v", lk)
	}
	ofd(t, a, unix.F_UNLCK, 50, 25)
	ofd(t, b, unix.F_WRLCK, 50, 25)
	ofd(t, a, unix.F_RDLCK, 75, 25) // downgrade
	ofd(t, b, unix.F_RDLCK, 75, 25)
	// The kernel sends no unlock when an open file ends, and its release some time later: this waits for it.
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	ofd(t, b, unix.F_WRLCK, 0, 0)
	if lk := asked(t, b, unix.F_WRLCK, 0, 0); lk.Type != unix.F_UNLCK {
		t.Errorf("in the way of its own lock is %+v", lk)
	}
}

func TestQueryAndConflictWaitForTheReleaseOfAClosedFile(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	for range 20 {
		a, b := m.open(t, "vm1", os.O_RDWR), m.open(t, "vm1", os.O_RDWR)
		ofd(t, a, unix.F_RDLCK, 101, 1)
		ofd(t, a, unix.F_RDLCK, 201, 1)
		if lk := asked(t, b, unix.F_WRLCK, 101, 1); lk.Type != unix.F_RDLCK {
			t.Fatalf("nothing is in the way: %+v", lk)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if lk := asked(t, b, unix.F_WRLCK, 201, 1); lk.Type != unix.F_UNLCK {
			t.Fatalf("the lock of a closed file is in the way: %+v", lk)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all let go", func() bool { return !d.isAttached() })
}

func TestPOSIXLocksEndWithAnyCloseOfTheProcess(t *testing.T) {
	m := mount(t)
	m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	cmd := child(t, "posix "+m.path("vm1"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 15, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lk); err != nil || lk.Type != unix.F_WRLCK || int(lk.Pid) != cmd.Process.Pid || lk.Start != 10 || lk.Len != 10 {
		t.Errorf("in the way is %+v, %v, want the lock of process %d; the child said %q", lk, err, cmd.Process.Pid, lines.Text())
	}
	lk = unix.Flock_t{Type: unix.F_RDLCK, Start: 19, Len: 1}
	wantErrno(t, "lock what the child has", unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk), unix.EAGAIN)
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk); err != nil {
		t.Errorf("after the child closed another descriptor: %v (%q)", err, lines.Text())
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
}

func TestWaitingForALock(t *testing.T) {
	m := mount(t)
	m.create("vm1", 1<<20)
	a, b := m.open(t, "vm1", os.O_RDWR), m.open(t, "vm1", os.O_RDWR)
	ofd(t, a, unix.F_WRLCK, 0, 10)
	got := make(chan error)
	go func() {
		got <- unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK, Start: 5, Len: 1})
	}()
	select {
	case err := <-got:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	ofd(t, a, unix.F_UNLCK, 5, 5)
	if err := <-got; err != nil {
		t.Errorf("when the range was free: %v", err)
	}
	wantErrno(t, "lock what the other got", tryOFD(a, unix.F_RDLCK, 5, 1), unix.EAGAIN)
}

func TestFlock(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	a, b := m.open(t, "vm1", os.O_RDWR), m.open(t, "vm1", os.O_RDWR)
	flock := func(f *os.File, how int) error { return unix.Flock(int(f.Fd()), how|unix.LOCK_NB) }
	if err := errors.Join(flock(a, unix.LOCK_SH), flock(b, unix.LOCK_SH)); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "upgrade while shared", flock(a, unix.LOCK_EX), unix.EAGAIN)
	// By flock(2) a has lost what it had, so that b can upgrade.
	if err := flock(b, unix.LOCK_EX); err != nil {
		t.Error(err)
	}
	ofd(t, a, unix.F_WRLCK, 0, 0) // another kind of lock: no conflict
	ofd(t, a, unix.F_UNLCK, 0, 0)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := flock(a, unix.LOCK_EX); err != nil {
		t.Errorf("after the close: %v", err)
	}
	if n := d.attaches.Load(); n != 1 { // the lock on the whole range covers 101
		t.Errorf("attached %d times", n)
	}
}

func TestSignalEndsWaitingForALock(t *testing.T) {
	m := mount(t)
	m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "flock", m.path("vm1"), "true")
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	eventually(t, "flock opens the file", func() bool { return len(m.fs.opened(nil)) == 2 })
	time.Sleep(10 * time.Millisecond) // let it come to the lock; if it does not, the test tests less but passes
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	eventually(t, "the file of the killed program is released", func() bool { return len(m.fs.opened(nil)) == 1 })
}

// The sequences of kernel calls by QEMU 7.2 that the protocol notes.

func TestQEMUStartMovesLocksFromOneHandleToAnother(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	if err := m.open(t, "vm1", os.O_RDONLY).Close(); err != nil {
		t.Fatal(err)
	}
	a := m.open(t, "vm1", os.O_RDONLY)
	ofd(t, a, unix.F_RDLCK, 100, 1)
	if d.isAttached() {
		t.Error("reading attached the disk")
	}
	b := m.open(t, "vm1", os.O_RDWR)
	ofd(t, a, unix.F_RDLCK, 101, 1)
	if !d.isAttached() {
		t.Error("byte 101 did not attach the disk")
	}
	ofd(t, a, unix.F_RDLCK, 201, 1)
	for _, c := range []int64{100, 101, 201} {
		ofd(t, b, unix.F_RDLCK, c, 1)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first handle is released", func() bool { return len(m.fs.opened(nil)) == 1 })
	if !d.isAttached() {
		t.Error("the release of the first handle detached the disk")
	}
	if _, err := b.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("write: %v", err)
	}
	if n := d.attaches.Load(); n != 2 {
		t.Errorf("attached %d times, want once per handle with a lock", n)
	}
	// Switch-over: a read-only handle appears, the writer's is closed without unlocking, and the locks are let go on
	// the new one, which never had them.
	c := m.open(t, "vm1", os.O_RDONLY)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{100, 101, 201} {
		ofd(t, c, unix.F_UNLCK, n, 1)
	}
	eventually(t, "the disk is let go", func() bool { return !d.isAttached() })
}

func TestUnlockLetsTheDiskGoBeforeItReturns(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	ofd(t, f, unix.F_RDLCK, 100, 2)
	ofd(t, f, unix.F_RDLCK, 103, 1)
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	ofd(t, f, unix.F_UNLCK, 101, 1)
	if !d.isAttached() {
		t.Error("detached although byte 103 is locked")
	}
	ofd(t, f, unix.F_UNLCK, 103, 1)
	if d.isAttached() {
		t.Error("attached although no byte is locked: QEMU inactivates an image this way before it is handed over")
	}
}

func TestLockTakesOverWhatAWriteAttached(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	ofd(t, f, unix.F_RDLCK, 101, 1)
	ofd(t, f, unix.F_UNLCK, 101, 1)
	if d.isAttached() || d.attaches.Load() != 1 {
		t.Errorf("attached %v, %d times", d.isAttached(), d.attaches.Load())
	}
}

func TestLockOfADiskHeldElsewhereIsRefusedAndNotTaken(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	a, b := m.open(t, "vm1", os.O_RDWR), m.open(t, "vm1", os.O_RDWR)
	ofd(t, a, unix.F_RDLCK, 90, 5)
	d.hold(true)
	for _, n := range []int64{101, 103, 201, 203} {
		if lk := asked(t, a, unix.F_WRLCK, n, 1); lk.Type == unix.F_UNLCK {
			t.Errorf("byte %d: nobody is in the way although another node holds the disk", n)
		}
		if lk := asked(t, a, unix.F_RDLCK, n, 1); lk.Type != unix.F_UNLCK {
			t.Errorf("byte %d: shared: %+v is in the way", n, lk)
		}
	}
	if lk := asked(t, a, unix.F_WRLCK, 100, 1); lk.Type != unix.F_UNLCK {
		t.Errorf("byte 100: %+v is in the way", lk)
	}
	wantErrno(t, "lock 101", tryOFD(a, unix.F_RDLCK, 101, 1), unix.EAGAIN)
	wantErrno(t, "lock 80 to 119", tryOFD(a, unix.F_WRLCK, 80, 40), unix.EAGAIN)
	// Through a handle that cannot write, QEMU's way: it is told when it asks, not when it locks.
	c := m.open(t, "vm1", os.O_RDONLY)
	ofd(t, c, unix.F_RDLCK, 101, 1)
	if d.isAttached() {
		t.Error("a disk that another node holds was attached")
	}
	wantErrno(t, "the lock of a handle that can write", tryOFD(a, unix.F_RDLCK, 101, 1), unix.EAGAIN)
	d.hold(false)
	if lk := asked(t, c, unix.F_WRLCK, 201, 1); lk.Type == unix.F_UNLCK {
		t.Error("who was not given the disk is told that nobody is in the way")
	}
	ofd(t, c, unix.F_RDLCK, 101, 1)
	if lk := asked(t, c, unix.F_WRLCK, 201, 1); lk.Type != unix.F_UNLCK || !d.isAttached() {
		t.Errorf("locked again once the disk is free: %+v is in the way, attached %v", lk, d.isAttached())
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the disk is let go", func() bool { return !d.isAttached() })
	if lk := asked(t, b, unix.F_WRLCK, 80, 40); lk.Type != unix.F_RDLCK || lk.Start != 90 || lk.Len != 5 {
		t.Errorf("what the refused locks left is %+v, want what was there before", lk)
	}
	d.on(func(_ context.Context, op string) error {
		if op == "attach" {
			return errInjected
		}
		return nil
	})
	wantErrno(t, "lock when attaching goes wrong", tryOFD(a, unix.F_RDLCK, 101, 1), unix.EAGAIN)
}
