package fusefs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ukai"
)

// mounted is a mount of a node's disks with what it logged.
type mounted struct {
	*Mount
	*node
	log *logBuffer
}

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// needMount skips the test where mounting is not possible.
func needMount(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting without fusermount3 takes root")
	}
	if err := CheckSupport(); err != nil {
		t.Skip(err)
	}
}

// mount mounts the disks of a new node; change may alter the configuration.
func mount(t testing.TB, change ...func(*Config)) *mounted {
	t.Helper()
	needMount(t)
	m := &mounted{node: newNode(), log: &logBuffer{}}
	cfg := Config{
		Dir:   filepath.Join(t.TempDir(), "disks"),
		Disks: m.node,
		Log:   slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	for _, f := range change {
		f(&cfg)
	}
	t.Cleanup(func() { _ = unix.Unmount(cfg.Dir, unix.MNT_FORCE|unix.MNT_DETACH) }) // EINVAL if all went well
	var err error
	if m.Mount, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the mount:\n%s", m.log)
		}
		ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		if err := m.Unmount(ctx); err != nil {
			t.Error(err)
			if err := m.Abort(ctx); err != nil {
				t.Error(err)
			}
		}
		for _, d := range m.disks {
			if d.isAttached() || d.opens.Load() != 0 {
				t.Errorf("disk %s after the unmount: attached %v, %d handles open", d.name, d.isAttached(), d.opens.Load())
			}
		}
	})
	return m
}

func (m *mounted) path(name string) string { return filepath.Join(m.Dir(), name) }

// open opens a file of the mount until the test ends.
func (m *mounted) open(t testing.TB, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(m.path(name), flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // often closed already
	return f
}

// eventually waits until what is said becomes true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
		time.Sleep(time.Millisecond)
	}
}

func wantErrno(t testing.TB, what string, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestAFileThatCanOnlyBeReadIsNotOpenedForWriting(t *testing.T) {
	m := mount(t)
	d := m.create("vm1~conflict-0123", 4096)
	d.fixed = true
	fi, err := os.Stat(m.path(d.name))
	if err != nil || fi.Mode().Perm() != 0o400 {
		t.Fatalf("mode %v, %v", fi.Mode(), err)
	}
	for _, flags := range []int{os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC} {
		_, err := os.OpenFile(m.path(d.name), flags, 0)
		wantErrno(t, "open for writing", err, unix.EROFS)
	}
	wantErrno(t, "truncate", os.Truncate(m.path(d.name), 8192), unix.EROFS)
	f := m.open(t, d.name, os.O_RDONLY)
	if n, err := f.Read(make([]byte, 4096)); n != 4096 {
		t.Errorf("read %d bytes: %v", n, err)
	}
	if d.attaches.Load() != 0 {
		t.Error("it was attached")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestDirectoryShowsDisks(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<30)
	m.create("vm2.data~x", 4096)
	names, err := os.ReadDir(m.Dir())
	if err != nil || len(names) != 2 || names[0].Name() != "vm1" || names[1].Name() != "vm2.data~x" {
		t.Errorf("directory holds %v, %v", names, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(m.path("vm1"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 1<<30 || st.Mode != unix.S_IFREG|0o600 || st.Nlink != 1 || st.Blksize != 1<<20 || st.Ino != inode(d.id) || st.Mtim.Sec != 1234567890 || st.Blocks != 8 {
		t.Errorf("stat: %+v", st)
	}
	if info, err := names[0].Info(); err != nil || info.Size() != 1<<30 {
		t.Errorf("lstat: %v %v", info, err)
	}
	for _, missing := range []string{"vm3", ".hidden", "a b", strings.Repeat("x", 255)} {
		_, err = os.Stat(m.path(missing))
		wantErrno(t, "stat "+missing, err, unix.ENOENT)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.Dir(), &fs); err != nil {
		t.Fatal(err)
	}
	unit := uint64(fs.Frsize)
	if fs.Blocks*unit != 100<<30 || fs.Bfree*unit != 60<<30 || fs.Bavail*unit != 50<<30 || fs.Namelen != 255 {
		t.Errorf("statfs: %+v", fs)
	}
}

func TestDirectoryOfManyDisks(t *testing.T) {
	m := mount(t)
	const n = 3000
	for i := range n {
		m.create("vm"+strings.Repeat("x", i%40)+"-"+time.Duration(i).String(), 4096)
	}
	names, err := os.ReadDir(m.Dir())
	if err != nil || len(names) != n {
		t.Errorf("%d names, %v; want %d", len(names), err, n)
	}
	for _, name := range names {
		if info, err := name.Info(); err != nil || info.Size() != 4096 {
			t.Fatalf("%s: %v %v", name.Name(), info, err)
		}
	}
}

func TestReadWriteAndTheEnd(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	want := bytes.Repeat([]byte("ukai"), 1000)
	if _, err := f.WriteAt(want, 12345); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.read(12345, 4000), want) {
		t.Error("the disk does not hold what was written")
	}
	got := make([]byte, 4000)
	if _, err := f.ReadAt(got, 12345); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read back something else: %v", err)
	}
	if n, err := f.ReadAt(got, 1<<20-100); n != 100 || err != io.EOF {
		t.Errorf("read across the end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(got, 1<<20); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	if n, err := unix.Pwrite(int(f.Fd()), want, 1<<20-100); n != 100 || err != nil {
		t.Errorf("write across the end: %d, %v", n, err)
	}
	_, err := unix.Pwrite(int(f.Fd()), want, 1<<20)
	wantErrno(t, "write at the end", err, unix.ENOSPC)
	_, err = unix.Pwrite(int(f.Fd()), want, 1<<40)
	wantErrno(t, "write far past the end", err, unix.ENOSPC)
	if info, err := f.Stat(); err != nil || info.Size() != 1<<20 {
		t.Errorf("size afterwards: %v %v", info, err)
	}
	if err := f.Sync(); err != nil || d.flushes.Load() != 1 {
		t.Errorf("fsync: %v, %d flushes", err, d.flushes.Load())
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil || d.flushes.Load() != 2 {
		t.Errorf("fdatasync: %v, %d flushes", err, d.flushes.Load())
	}
	a := m.open(t, "vm1", os.O_WRONLY|os.O_APPEND)
	_, err = a.Write(want)
	wantErrno(t, "append", err, unix.ENOSPC)
}

func TestErrorsOfTheDiskReachTheProgram(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	buf := make([]byte, 4096)
	for _, c := range []struct {
		err  error
		want unix.Errno
	}{{ukai.ErrNoSpace, unix.ENOSPC}, {&ukai.FencedError{Epoch: 9}, unix.EIO}, {errInjected, unix.EIO}, {ukai.ErrHeld, unix.EBUSY}} {
		d.on(func(context.Context, string) error { return c.err })
		_, err := f.ReadAt(buf, 0)
		wantErrno(t, "read with "+c.err.Error(), err, c.want)
		_, err = f.WriteAt(buf, 0)
		wantErrno(t, "write with "+c.err.Error(), err, c.want)
		wantErrno(t, "fsync with "+c.err.Error(), f.Sync(), c.want)
	}
	d.on(nil)
	if !strings.Contains(m.log.String(), "injected") {
		t.Error("an unknown error is not in the log")
	}
}
