package fusefs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childMode is the environment variable that makes the test program do, as another process, what it names.
const childMode = "FUSEFS_TEST_CHILD"

func TestMain(m *testing.M) {
	mode, path, _ := strings.Cut(os.Getenv(childMode), " ")
	if mode == "" {
		os.Exit(m.Run())
	}
	if err := children[mode](path); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// child returns a command that runs one of the children.
func child(t testing.TB, mode string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childMode+"="+mode)
	return cmd
}

var children = map[string]func(path string) error{
	"idle":  func(string) error { return nil },
	"write": childWrite,
	"mmap":  childMmap,
	"posix": childPosix,

	"rootless": childRootless,
}

// childWrite writes one page.
func childWrite(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	n, err := unix.Pwrite(int(f.Fd()), make([]byte, 4096), 0)
	if err != nil {
		return err
	}
	fmt.Println("wrote", n)
	return f.Close()
}

// childMmap maps the first two pages shared, checks that the first begins with "before", writes "mapped" into the
// second and syncs.
func childMmap(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if err := f.Close(); err != nil { // the mapping keeps the file open
		return err
	}
	if string(p[:6]) != "before" {
		return fmt.Errorf("mapped page begins with %q", p[:6])
	}
	copy(p[4096:], "mapped")
	if err := unix.Msync(p, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	return unix.Munmap(p)
}

// childPosix takes a POSIX write lock on bytes 10 to 19 through one descriptor, says so, waits for a line, and closes
// another descriptor of the file, which by the rules drops the lock. Then it waits for another line.
func childPosix(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	g, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("locked")
	in.Scan()
	if err := g.Close(); err != nil {
		return err
	}
	fmt.Println("closed another")
	in.Scan()
	return f.Close()
}

// childRootless mounts, looks at a disk, writes to it and unmounts.
func childRootless(string) error {
	base, err := os.MkdirTemp("", "fusefs")
	if err != nil {
		return err
	}
	n := newNode()
	n.create("vm1", 1<<20)
	m, err := Open(Config{Dir: filepath.Join(base, "disks"), Disks: n})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(m.Dir(), "vm1"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		return err
	}
	if err := m.Unmount(shortly()); err == nil || !strings.Contains(err.Error(), "open: vm1") {
		return fmt.Errorf("unmount while a file is open: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := m.Unmount(context.Background()); err != nil {
		return err
	}
	return os.RemoveAll(base)
}

// shortly returns a context that ends soon.
func shortly() context.Context {
	ctx, stop := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, stop)
	return ctx
}
