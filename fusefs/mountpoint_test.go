package fusefs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ukai"
)

func TestFindMount(t *testing.T) {
	const table = `22 1 254:0 / / rw - ext4 /dev/root rw
30 22 0:5 / /mnt/a\040b rw,nosuid shared:3 - fuse.ukai ukai rw
31 30 0:6 / /mnt/a\040b rw - tmpfs my\134tmp rw
garbage
32 22 0:7 / /mnt/x rw
`
	for dir, want := range map[string]string{"/mnt/a b": "tmpfs", "/": "ext4", "/mnt": "", "/mnt/x": ""} {
		kind, source, err := findMount(strings.NewReader(table), dir)
		if err != nil || kind != want {
			t.Errorf("%s: %q, %v, want %q", dir, kind, err, want)
		}
		if kind == "tmpfs" && source != `my\tmp` {
			t.Errorf("source %q", source)
		}
	}
}

func FuzzFindMount(f *testing.F) {
	f.Add("30 22 0:5 / /mnt/a\\040b rw,nosuid shared:3 - fuse.ukai ukai rw\n", "/mnt/a b")
	f.Add("1 2 3:4 / /\\ - \\4 \\04", "/")
	f.Fuzz(func(t *testing.T, table, dir string) {
		_, _, _ = findMount(strings.NewReader(table), dir) // must not panic
	})
}

// die makes a mount whose daemon has died: opened and mounted, with nobody behind it.
func die(t *testing.T, dir, kind string) {
	t.Helper()
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	opts := "fd=" + strconv.Itoa(fd) + ",rootmode=40000,user_id=0,group_id=0"
	if err := unix.Mount("ukai", dir, kind, 0, opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // EINVAL if it was removed as it should
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	wantErrno(t, "statfs of a dead mount", unix.Statfs(dir, &st), unix.ENOTCONN)
}

func TestDeadMountsAreRemoved(t *testing.T) {
	needMount(t)
	dir := filepath.Join(t.TempDir(), "disks")
	die(t, dir, fsType)
	if kind, _, err := mountedAt(dir); kind != fsType || err != nil {
		t.Fatalf("%q is mounted, %v", kind, err)
	}
	m := mount(t, func(c *Config) { c.Dir = dir })
	m.create("vm1", 4096)
	if _, err := os.Stat(m.path("vm1")); err != nil {
		t.Error(err)
	}
	if !strings.Contains(m.log.String(), "removed the mount of a daemon that died") {
		t.Error("not in the log")
	}
}

func TestWhatIsInTheWayIsRefused(t *testing.T) {
	needMount(t)
	open := func(dir string) error {
		m, err := Open(Config{Dir: dir, Disks: newNode(), Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			err = m.Abort(context.Background())
			t.Errorf("%s: mounted; %v", dir, err)
			return nil
		}
		return err
	}
	base := t.TempDir()
	full := filepath.Join(base, "full")
	if err := errors.Join(os.Mkdir(full, 0o700), os.WriteFile(filepath.Join(full, "precious"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(base, "dead")
	die(t, dead, "fuse.sshfs")
	tmp := filepath.Join(base, "tmp")
	if err := errors.Join(os.Mkdir(tmp, 0o700), unix.Mount("mine", tmp, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(tmp, unix.MNT_DETACH) })
	loop := filepath.Join(base, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	live := mount(t)
	for dir, says := range map[string]string{
		full:                                   "not empty (precious)",
		dead:                                   "a dead mount of ukai (fuse.sshfs)",
		tmp:                                    "mine (tmpfs) is mounted there",
		loop:                                   "in a circle",
		live.Dir():                             "another ukai-node",
		filepath.Join(full, "precious", "sub"): "not a directory",
	} {
		if err := open(dir); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), filepath.Base(dir)) {
			t.Errorf("%s: %v; want it to say %q", dir, err, says)
		}
	}
}

func TestMountThroughASymbolicLink(t *testing.T) {
	base := t.TempDir()
	if err := os.Symlink("real", filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	m := mount(t, func(c *Config) { c.Dir = filepath.Join(base, "link") })
	if filepath.Base(m.Dir()) != "real" {
		t.Errorf("mounted on %s", m.Dir())
	}
}

func TestUnmountNamesWhatIsOpen(t *testing.T) {
	m := mount(t)
	m.create("vm1", 4096)
	m.create("vm2", 4096)
	f := m.open(t, "vm1", os.O_RDWR)
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	err := m.Unmount(ctx)
	if !errors.Is(err, ukai.ErrLocked) || !strings.HasSuffix(err.Error(), "open: vm1") {
		t.Errorf("unmount while a file is open: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 512), 0); err != nil {
		t.Errorf("write after a refused unmount: %v", err)
	}
	done := make(chan error)
	go func() { done <- m.Unmount(t.Context()) }()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Errorf("unmount when the file was closed: %v", err)
	}
	m.Wait()
}

func TestAbortEndsEverything(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	waits := hang(d)
	written := make(chan error, 1)
	go func() {
		_, err := f.WriteAt(make([]byte, 512), 0)
		written <- err
	}()
	<-waits
	if err := m.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err == nil {
		t.Error("a hanging write ended well")
	}
	_, err := f.ReadAt(make([]byte, 512), 0)
	wantErrno(t, "read after the abort", err, unix.ENOTCONN)
	if d.isAttached() || d.opens.Load() != 0 {
		t.Errorf("attached %v, %d handles open", d.isAttached(), d.opens.Load())
	}
	if kind, _, err := mountedAt(m.Dir()); kind != "" || err != nil {
		t.Errorf("still mounted: %s, %v", kind, err)
	}
}

func TestUnmountByOthersEndsTheMount(t *testing.T) {
	m := mount(t)
	if err := unix.Unmount(m.Dir(), 0); err != nil {
		t.Fatal(err)
	}
	m.Wait()
	if err := m.Unmount(t.Context()); err != nil {
		t.Errorf("unmount afterwards: %v", err)
	}
}

func TestNewsOfTheCatalogReachTheKernel(t *testing.T) {
	m := mount(t, func(c *Config) { c.AttrTimeout = time.Hour }) // nothing would be seen without being told
	d := m.create("vm1", 1<<20)
	size := func(name string) int64 {
		info, err := os.Stat(m.path(name))
		if err != nil {
			return -1
		}
		return info.Size()
	}
	f := m.open(t, "vm1", os.O_RDWR)
	if size("vm1") != 1<<20 {
		t.Fatal(size("vm1"))
	}
	d.mu.Lock()
	d.size = 2 << 20
	d.mu.Unlock()
	m.Resized("vm1")
	eventually(t, "the new size is seen", func() bool { return size("vm1") == 2<<20 })
	m.rename("vm1", "vm2")
	m.Invalidate("vm1")
	m.Invalidate("vm2")
	eventually(t, "the old name is gone", func() bool { return size("vm1") < 0 })
	if size("vm2") != 2<<20 {
		t.Errorf("size under the new name: %d", size("vm2"))
	}
	if info, err := f.Stat(); err != nil || info.Size() != 2<<20 {
		t.Errorf("the open file: %v %v", info, err)
	}
	m.remove("vm2")
	m.Invalidate("vm2")
	eventually(t, "a removed disk is gone", func() bool { return size("vm2") < 0 })
	if _, err := f.WriteAt([]byte("still"), 0); err != nil {
		t.Errorf("write to the open file of a removed disk: %v", err)
	}
	m.create("vm2", 4096)
	m.Invalidate("vm2")
	eventually(t, "another disk of that name is seen", func() bool { return size("vm2") == 4096 })
	m.Stale("vm2")
}

func TestNameThatBecameAnotherDisksIsLookedUpAnew(t *testing.T) {
	m := mount(t, func(c *Config) { c.AttrTimeout = time.Hour }) // and nobody tells the mount
	m.create("vm1", 4096)
	if _, err := os.Stat(m.path("vm1")); err != nil {
		t.Fatal(err)
	}
	m.rename("vm1", "vm2")
	_, err := os.Open(m.path("vm1"))
	wantErrno(t, "open of a name that is gone", err, unix.ENOENT)
	other := m.create("vm1", 8192)
	f := m.open(t, "vm1", os.O_RDWR)
	if _, err := f.WriteAt([]byte("other"), 0); err != nil || string(other.read(0, 5)) != "other" {
		t.Errorf("write to the disk that has the name now: %v", err)
	}
}

func TestTwoDisksOfOneNameCannotBeOpened(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 4096)
	m.node.mu.Lock()
	d.doubled = true
	m.node.mu.Unlock()
	if _, err := os.Stat(m.path("vm1")); err != nil {
		t.Error(err)
	}
	_, err := os.Open(m.path("vm1"))
	wantErrno(t, "open", err, unix.EBUSY)
}

func TestKernelForgetsWhatIsNotUsed(t *testing.T) {
	m := mount(t)
	for i := range 100 {
		m.create("vm"+string(rune('a'+i%26))+string(rune('a'+i/26)), 4096)
	}
	if names, err := os.ReadDir(m.Dir()); err != nil || len(names) != 100 {
		t.Fatal(len(names), err)
	}
	f := m.open(t, "vmaa", os.O_RDONLY)
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
		t.Skip(err)
	}
	eventually(t, "forgotten", func() bool {
		m.fs.mu.RLock()
		defer m.fs.mu.RUnlock()
		return len(m.fs.byNode) < 100 && len(m.fs.byID) == len(m.fs.byNode)
	})
	if _, err := io.ReadAll(f); err != nil {
		t.Errorf("read of what is open: %v", err)
	}
}

// A daemon that is not root mounts through fusermount3.
func TestMountWithoutRoot(t *testing.T) {
	needMount(t)
	if _, err := exec.LookPath(fusermount); err != nil {
		t.Skip(err)
	}
	info, err := os.Stat(device)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm()&0o006 != 0o006 {
		t.Skipf("%s is open to root only (mode %v)", device, info.Mode())
	}
	cmd := child(t, "rootless")
	cmd.Path = readableCopy(t, cmd.Path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// readableCopy copies the test program to where other users can start it.
func readableCopy(t *testing.T, path string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fusefs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(dir, "test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dst, program, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dst
}
