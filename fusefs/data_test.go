package fusefs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestFallocate(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	full := bytes.Repeat([]byte{7}, 1<<20)
	if _, err := f.WriteAt(full, 0); err != nil {
		t.Fatal(err)
	}
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	for _, c := range []struct {
		what   string
		mode   uint32
		off, n int64
		err    unix.Errno
	}{
		{"punch", punch | keep, 4096, 10000, 0},
		{"punch across the end", punch | keep, 1<<20 - 100, 1 << 20, 0},
		{"punch past the end", punch | keep, 1 << 21, 4096, 0},
		{"zero", zero, 100000, 5000, 0},
		{"zero and keep the size", zero | keep, 200000, 1 << 20, 0},
		{"zero past the end", zero, 1<<20 - 10, 20, unix.ENOSPC},
		{"allocate inside", 0, 0, 1 << 20, 0},
		{"allocate past the end", 0, 1 << 20, 1, unix.ENOSPC},
		{"allocate past the end and keep the size", keep, 1 << 20, 1, 0},
		{"collapse", unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, unix.EOPNOTSUPP},
		{"insert", unix.FALLOC_FL_INSERT_RANGE, 0, 4096, unix.EOPNOTSUPP},
		{"unshare", unix.FALLOC_FL_UNSHARE_RANGE, 0, 4096, unix.EOPNOTSUPP},
	} {
		err := unix.Fallocate(int(f.Fd()), c.mode, c.off, c.n)
		if c.err == 0 && err != nil || c.err != 0 && !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.what, err, c.err)
		}
	}
	clear(full[4096:14096])
	clear(full[1<<20-100:])
	clear(full[100000:105000])
	clear(full[200000:])
	if got := d.read(0, 1<<20); !bytes.Equal(got, full) {
		t.Error("the disk holds something else than expected")
	}
	if d.discards.Load() != 2 || d.zeroes.Load() != 2 {
		t.Errorf("%d discards and %d zeroes, want 2 and 2", d.discards.Load(), d.zeroes.Load())
	}
}

func TestSeekDataAndHole(t *testing.T) {
	m := mount(t)
	m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	if _, err := f.WriteAt([]byte("data"), 8192); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		whence    int
		off, want int64
		err       unix.Errno
	}{
		{unix.SEEK_DATA, 0, 8192, 0},
		{unix.SEEK_DATA, 9000, 9000, 0},
		{unix.SEEK_DATA, 12288, 0, unix.ENXIO},
		{unix.SEEK_DATA, 1 << 20, 0, unix.ENXIO},
		{unix.SEEK_HOLE, 0, 0, 0},
		{unix.SEEK_HOLE, 8192, 12288, 0},
		{unix.SEEK_HOLE, 1<<20 - 1, 1<<20 - 1, 0},
		{unix.SEEK_HOLE, 1 << 20, 0, unix.ENXIO},
		{unix.SEEK_END, -1, 1<<20 - 1, 0},
	} {
		got, err := unix.Seek(int(f.Fd()), c.off, c.whence)
		if c.err != 0 {
			wantErrno(t, "seek", err, c.err)
		} else if err != nil || got != c.want {
			t.Errorf("seek %d from %d: %d, %v, want %d", c.whence, c.off, got, err, c.want)
		}
	}
}

func TestTruncate(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	if err := f.Truncate(1 << 20); err != nil {
		t.Errorf("to the present size: %v", err)
	}
	wantErrno(t, "smaller", f.Truncate(4096), unix.EPERM)
	wantErrno(t, "to nothing", f.Truncate(0), unix.EPERM)
	wantErrno(t, "to an odd size", f.Truncate(1<<20+1), unix.EINVAL)
	wantErrno(t, "smaller by path", os.Truncate(m.path("vm1"), 4096), unix.EPERM)
	if !strings.Contains(m.log.String(), "conv=notrunc") {
		t.Error("the log does not say what can be done instead")
	}
	if err := f.Truncate(2 << 20); err != nil || d.info().Size != 2<<20 {
		t.Errorf("larger: %v, now %d", err, d.info().Size)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(m.path("vm1"), 3<<20); err != nil || d.info().Size != 3<<20 {
		t.Errorf("larger by path: %v, now %d", err, d.info().Size)
	}
	if info, err := os.Stat(m.path("vm1")); err != nil || info.Size() != 3<<20 {
		t.Errorf("stat: %v, %v", info, err)
	}
	if d.isAttached() || d.attaches.Load() != 2 {
		t.Errorf("attached %v, %d times, want once per resize", d.isAttached(), d.attaches.Load())
	}
}

func TestOpenWithTruncationKeepsSizeAndContent(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	m.open(t, "vm1", os.O_RDWR|os.O_TRUNC)
	if strings.Contains(m.log.String(), "truncation") {
		t.Error("warned although the disk is empty")
	}
	f := m.open(t, "vm1", os.O_RDWR)
	if _, err := f.WriteAt([]byte("content"), 5000); err != nil {
		t.Fatal(err)
	}
	g := m.open(t, "vm1", os.O_RDWR|os.O_TRUNC|os.O_CREATE)
	for _, f := range []*os.File{f, g} {
		if end, err := f.Seek(0, 2); err != nil || end != 1<<20 {
			t.Errorf("the end is at %d, %v", end, err)
		}
		buf := make([]byte, 7)
		if _, err := f.ReadAt(buf, 5000); err != nil || string(buf) != "content" {
			t.Errorf("read %q, %v", buf, err)
		}
	}
	if d.info().Size != 1<<20 || !strings.Contains(m.log.String(), "dd conv=notrunc") {
		t.Error("no warning that the content was kept")
	}
}

func TestTruncationOfADiskWithDataCanBeRefused(t *testing.T) {
	m := mount(t, func(c *Config) { c.RefuseTruncate = true })
	m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR|os.O_TRUNC)
	if _, err := f.WriteAt([]byte("content"), 5000); err != nil {
		t.Fatal(err)
	}
	_, err := os.OpenFile(m.path("vm1"), os.O_WRONLY|os.O_TRUNC, 0)
	wantErrno(t, "open with O_TRUNC", err, unix.EPERM)
}

func TestModeAndOwner(t *testing.T) {
	m := mount(t, func(c *Config) { c.Mode, c.UID, c.GID, c.AllowOther = 0o660, 7, 8, true })
	m.create("vm1", 1<<20)
	var st unix.Stat_t
	if err := unix.Stat(m.path("vm1"), &st); err != nil || st.Mode&0o7777 != 0o660 || st.Uid != 7 || st.Gid != 8 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := unix.Stat(m.Dir(), &st); err != nil || st.Mode&0o7777 != 0o770 || st.Uid != 7 {
		t.Errorf("directory: %+v, %v", st, err)
	}
	if err := errors.Join(os.Chmod(m.path("vm1"), 0o660), os.Chown(m.path("vm1"), 7, 8)); err != nil {
		t.Errorf("to what is so already: %v", err)
	}
	if err := os.Chtimes(m.path("vm1"), time.Now(), time.Now()); err != nil {
		t.Errorf("utimes, which cp -p and touch do: %v", err)
	}
	wantErrno(t, "chmod", os.Chmod(m.path("vm1"), 0o666), unix.EPERM)
	wantErrno(t, "chown", os.Chown(m.path("vm1"), 0, -1), unix.EPERM)
	wantErrno(t, "chgrp", os.Chown(m.path("vm1"), -1, 0), unix.EPERM)
}

func TestNamesCannotBeChangedByFileOperation(t *testing.T) {
	m := mount(t)
	m.create("vm1", 1<<20)
	p, q := m.path("vm1"), m.path("vm2")
	_, createErr := os.Create(q)
	for _, c := range []struct {
		what, says string
		err        error
	}{
		{"create", "ukai-node disk create vm2 SIZE", createErr},
		{"mknod", "ukai-node disk create vm2 SIZE", unix.Mknod(q, unix.S_IFREG|0o600, 0)},
		{"mkdir", "all disks are in one directory", os.Mkdir(q, 0o700)},
		{"symlink", "a link in another directory", os.Symlink("x", q)},
		{"link", "a disk has one name", os.Link(p, q)},
		{"rename", "ukai-node disk rename vm1 vm2", os.Rename(p, q)},
		{"unlink", "ukai-node disk rm vm1", unix.Unlink(p)},
	} {
		wantErrno(t, c.what, c.err, unix.EPERM)
		if !strings.Contains(m.log.String(), c.says) {
			t.Errorf("%s: the log does not say %q", c.what, c.says)
		}
	}
	wantErrno(t, "rmdir", unix.Rmdir(p), unix.ENOTDIR)
	_, err := unix.Open(m.Dir(), unix.O_TMPFILE|unix.O_RDWR, 0o600)
	wantErrno(t, "unnamed file", err, unix.EOPNOTSUPP)
	before := strings.Count(m.log.String(), "\n")
	for range 100 {
		_ = unix.Unlink(p) // refused, as above
	}
	if n := strings.Count(m.log.String(), "\n") - before; n > 2 {
		t.Errorf("a program that repeats what is refused fills the log: %d lines", n)
	}
}

func TestAttributesTellFacts(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	p := m.path("vm1")
	get := func(name string) (string, error) {
		buf := make([]byte, 100)
		n, err := unix.Getxattr(p, name, buf)
		return string(buf[:max(n, 0)]), err
	}
	if v, err := get("user.ukai.id"); err != nil || v != d.id.String() {
		t.Errorf("id: %q, %v", v, err)
	}
	if v, err := get("user.ukai.rule"); err != nil || v != "dc=tokyo:2" {
		t.Errorf("rule: %q, %v", v, err)
	}
	_, err := get("user.ukai.nothing")
	wantErrno(t, "unknown fact", err, unix.ENODATA)
	_, err = get("user.other")
	wantErrno(t, "other attribute", err, unix.ENODATA)
	_, err = get("security.capability")
	wantErrno(t, "security label", err, unix.ENODATA)
	if n, err := unix.Getxattr(p, "user.ukai.rule", nil); n != 10 || err != nil {
		t.Errorf("length of the rule: %d, %v", n, err)
	}
	_, err = unix.Getxattr(p, "user.ukai.rule", make([]byte, 3))
	wantErrno(t, "with too small a buffer", err, unix.ERANGE)
	list := make([]byte, 1000)
	n, err := unix.Listxattr(p, list)
	if want := "user.ukai.epoch\x00user.ukai.id\x00user.ukai.rule\x00"; err != nil || string(list[:n]) != want {
		t.Errorf("list: %q, %v", list[:max(n, 0)], err)
	}
	wantErrno(t, "set", unix.Setxattr(p, "user.ukai.rule", []byte("x"), 0), unix.EPERM)
	wantErrno(t, "remove", unix.Removexattr(p, "user.ukai.rule"), unix.EPERM)
	wantErrno(t, "set another", unix.Setxattr(p, "user.x", []byte("x"), 0), unix.EOPNOTSUPP)
	if n, err := unix.Listxattr(m.Dir(), list); n != 0 || err != nil {
		t.Errorf("list of the directory: %d, %v", n, err)
	}
	f := m.open(t, "vm1", os.O_RDONLY)
	if n, err := unix.Fgetxattr(int(f.Fd()), "user.ukai.epoch", list); err != nil || string(list[:n]) != "7" {
		t.Errorf("of an open file: %q, %v", list[:max(n, 0)], err)
	}
}

// aligned returns a buffer for O_DIRECT.
func aligned(n int) []byte {
	buf := make([]byte, n+4096)
	skip := (4096 - int(uintptr(unsafe.Pointer(&buf[0]))%4096)) % 4096
	return buf[skip : skip+n]
}

func TestDirectIO(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 8<<20)
	f := m.open(t, "vm1", os.O_RDWR|unix.O_DIRECT)
	buf := aligned(1 << 20)
	copy(buf[1<<20-4:], "last")
	if n, err := f.WriteAt(buf, 4<<20); n != 1<<20 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if d.largest.Load() != 1<<20 {
		t.Errorf("1 MiB came in pieces of %d", d.largest.Load())
	}
	clear(buf)
	if n, err := f.ReadAt(buf, 4<<20); n != 1<<20 || err != nil || string(buf[1<<20-4:]) != "last" {
		t.Errorf("read %d, %v", n, err)
	}
	if _, err := f.WriteAt([]byte("unaligned"), 4099); err != nil || string(d.read(4099, 9)) != "unaligned" {
		t.Errorf("unaligned: %v", err)
	}
}

func TestBufferedWritesComeInPiecesOf1MiBToo(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 8<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	if _, err := f.WriteAt(make([]byte, 4<<20), 0); err != nil || d.largest.Load() != 1<<20 {
		t.Errorf("4 MiB came in pieces of %d; %v", d.largest.Load(), err)
	}
}

func TestWritesOfOneFileRunInParallel(t *testing.T) {
	for _, flags := range []int{0, unix.O_DIRECT} {
		m := mount(t)
		d := m.create("vm1", 8<<20)
		f := m.open(t, "vm1", os.O_RDWR|flags)
		if _, err := f.WriteAt(aligned(4096), 0); err != nil {
			t.Fatal(err)
		}
		const writers = 16
		all := make(chan struct{})
		d.on(func(ctx context.Context, op string) error {
			if op == "write" && d.inFlight.Load() == writers {
				close(all)
			}
			select {
			case <-all:
			case <-time.After(5 * time.Second):
			}
			return nil
		})
		var wg sync.WaitGroup
		for i := range int64(writers) {
			wg.Go(func() {
				if _, err := f.WriteAt(aligned(4096), i*4096); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if d.mostInFlight.Load() != writers {
			t.Errorf("open flags %#x: %d of %d writes were in flight together", flags, d.mostInFlight.Load(), writers)
		}
	}
}

func TestMmap(t *testing.T) {
	m := mount(t)
	d := m.create("vm1", 1<<20)
	f := m.open(t, "vm1", os.O_RDWR)
	if _, err := f.WriteAt([]byte("before"), 0); err != nil {
		t.Fatal(err)
	}
	// In another process: a page fault of our own would keep a scheduler thread from serving it.
	if out, err := child(t, "mmap "+m.path("vm1")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := d.read(4096, 6); string(got) != "mapped" {
		t.Errorf("the disk holds %q", got)
	}
	buf := make([]byte, 6)
	if _, err := f.ReadAt(buf, 4096); err != nil || string(buf) != "mapped" {
		t.Errorf("read %q, %v", buf, err)
	}
}

func TestCopyToolsFillADisk(t *testing.T) {
	m := mount(t)
	image := filepath.Join(t.TempDir(), "image")
	want := make([]byte, 3<<20)
	copy(want[1<<20:], "some")
	copy(want[3<<20-4:], "data")
	if err := os.WriteFile(image, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, cmd := range []string{
		"cp IMAGE DISK", "cp -p --sparse=always IMAGE DISK", "cp --sparse=never IMAGE DISK", "dd if=IMAGE of=DISK bs=64k", "dd if=IMAGE of=DISK bs=1M oflag=direct conv=fsync",
		"dd if=IMAGE of=DISK conv=notrunc bs=1M iflag=fullblock", "cat IMAGE > DISK",
	} {
		name := "vm" + string(rune('0'+i))
		d := m.create(name, 3<<20)
		script := strings.NewReplacer("IMAGE", image, "DISK", m.path(name)).Replace(cmd)
		if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", cmd, err, out)
		}
		if !bytes.Equal(d.read(0, 3<<20), want) {
			t.Errorf("%s: the disk holds something else than the image", cmd)
		}
		// To a larger disk and back, in whatever way the tools find.
		back := filepath.Join(t.TempDir(), "back")
		if out, err := exec.Command("cp", m.path(name), back).CombinedOutput(); err != nil {
			t.Errorf("cp DISK: %v: %s", err, out)
		}
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
			t.Errorf("cp DISK: other content, %v", err)
		}
	}
	m.create("large", 8<<20)
	m.create("copy", 8<<20)
	a, b := m.open(t, "large", os.O_RDWR), m.open(t, "copy", os.O_RDWR)
	if _, err := a.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.CopyFileRange(int(a.Fd()), nil, int(b.Fd()), nil, 3<<20, 0); err == nil {
		if got := m.disks["copy"].read(0, int64(n)); !bytes.Equal(got, want[:n]) {
			t.Error("copy_file_range made another copy")
		}
	} else if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EXDEV) {
		t.Errorf("copy_file_range: %v", err)
	}
	if _, err := unix.IoctlGetInt(int(a.Fd()), unix.BLKSSZGET); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("ioctl: %v", err)
	}
}
