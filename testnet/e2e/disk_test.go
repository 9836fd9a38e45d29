//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ukai/testnet/guest"
	"ukai/testnet/proc"
)

// sh runs a program of the host and returns what it printed.
func sh(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: run .ci/setup test", tool)
		}
	}
}

// loop attaches a file to a loop device with direct I/O and returns the device and a function that detaches it.
func loop(t *testing.T, path string) (device string, detach func()) {
	t.Helper()
	device = strings.TrimSpace(sh(t, "losetup", "--find", "--show", "--direct-io=on", path))
	attached := true
	detach = func() {
		if attached {
			attached = false
			sh(t, "losetup", "-d", device)
		}
	}
	t.Cleanup(func() {
		if attached {
			_ = exec.Command("losetup", "-d", device).Run()
		}
	})
	return device, detach
}

// image makes a qcow2 image with a file system full of files.
func image(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	raw, qcow := filepath.Join(dir, "image.raw"), filepath.Join(dir, "image.qcow2")
	sh(t, "truncate", "-s", size, raw)
	root, err := proc.Root()
	if err != nil {
		t.Fatal(err)
	}
	sh(t, "mkfs.ext4", "-q", "-F", "-d", filepath.Join(root, "run/guest/boot"), raw)
	sh(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow)
	return qcow
}

func TestAnImageConvertedIntoADiskIsIdenticalThroughThreeMounts(t *testing.T) {
	need(t, "qemu-img", "mkfs.ext4")
	m := proc.Start(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness")
	source := image(t, "128M")
	m.Nodes["t1"].Must("disk", "create", "vm1", "128M", "dc=tokyo:2")
	m.AwaitDisk("vm1")
	sh(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", source, m.Nodes["t1"].Path("vm1"))
	for _, node := range []string{"t1", "t2", "o1"} {
		out := sh(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", source, m.Nodes[node].Path("vm1"))
		if !strings.Contains(out, "Images are identical") {
			t.Errorf("through %s: %s", node, out)
		}
	}
}

func TestAFileSystemMadeOnOneNodeIsCleanOnAnother(t *testing.T) {
	need(t, "losetup", "mkfs.ext4", "fsck.ext4", "fstrim")
	m := proc.Start(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness")
	t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
	t1.Must("disk", "create", "vm1", "256M", "dc=tokyo:2")
	m.AwaitDisk("vm1")

	device, detach := loop(t, t1.Path("vm1"))
	sh(t, "mkfs.ext4", "-q", "-F", device)
	mnt := t.TempDir()
	sh(t, "mount", device, mnt)
	umount := func() { sh(t, "umount", mnt) }
	defer func() { _ = syscall.Unmount(mnt, syscall.MNT_DETACH) }()
	content := strings.Repeat("the only copy of a company\n", 40000)
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(mnt, fmt.Sprint("file", i)), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10 {
		if err := os.Remove(filepath.Join(mnt, fmt.Sprint("file", i))); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "fstrim", mnt)
	umount()
	detach()

	device, detach = loop(t, o1.Path("vm1"))
	sh(t, "fsck.ext4", "-f", "-n", device)
	sh(t, "mount", device, mnt)
	for i := 10; i < 20; i++ {
		data, err := os.ReadFile(filepath.Join(mnt, fmt.Sprint("file", i)))
		if err != nil || string(data) != content {
			t.Errorf("file%d through another node: %d bytes, %v", i, len(data), err)
		}
	}
	umount()
	detach()
}

func TestFioSeesNoErrorWhileAReplicaIsKilled(t *testing.T) {
	need(t, "fio", "cmp")
	seconds := 60
	m := proc.Start(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness")
	t1, t2 := m.Nodes["t1"], m.Nodes["t2"]
	t1.Must("disk", "create", "vm1", "64M", "dc=tokyo:2")
	m.AwaitDisk("vm1")

	fio := exec.Command("fio", "--name=verify", "--filename="+t1.Path("vm1"), "--rw=randrw", "--bsrange=4k-64k", "--direct=1", "--ioengine=libaio", "--iodepth=8",
		"--size=64M", "--verify=crc32c", "--verify_backlog=64", "--verify_state_save=0", "--time_based", fmt.Sprintf("--runtime=%d", seconds), "--fsync=128", "--group_reporting")
	out, err := os.CreateTemp(t.TempDir(), "fio")
	if err != nil {
		t.Fatal(err)
	}
	fio.Stdout, fio.Stderr = out, out
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- fio.Wait() }()
	read := func() string { data, _ := os.ReadFile(out.Name()); return string(data) }
	select {
	case err := <-done:
		t.Fatalf("fio ended before the failure: %v\n%s", err, read())
	case <-time.After(time.Duration(seconds) * time.Second / 3): // the middle of fio's own running time
	}
	t2.Kill()
	if err := <-done; err != nil {
		t.Fatalf("fio: %v\n%s", err, read())
	}
	var disk struct {
		Replicas []struct {
			Node struct{ Name string }
			Role string
		}
	}
	if err := t1.JSON(&disk, "disk", "show", "vm1"); err != nil {
		t.Fatal(err)
	}
	for _, r := range disk.Replicas {
		if want := map[string]string{"t1": "in sync", "t2": "out"}[r.Node.Name]; r.Role != want {
			t.Errorf("replica on %s is %q, want %q", r.Node.Name, r.Role, want)
		}
	}
	sum := func(path string) string { return strings.Fields(sh(t, "sha256sum", path))[0] }
	want := sum(t1.Path("vm1"))
	if got := sum(m.Nodes["o1"].Path("vm1")); got != want {
		t.Error("o1 reads other bytes than t1")
	}
	// The killed node comes back with an old copy; nobody may read it before it has been brought up to date, which needs nobody.
	t2.Start()
	m.AwaitAlive(4)
	if got := sum(t2.Path("vm1")); got != want {
		t.Error("through the node that was killed and came back, old data are read")
	}
	m.Await("the replica on t2 is in sync again", func() error {
		if err := t1.JSON(&disk, "disk", "show", "vm1"); err != nil {
			return err
		}
		for _, r := range disk.Replicas {
			if r.Role != "in sync" {
				return fmt.Errorf("the replica on %s is %q", r.Node.Name, r.Role)
			}
		}
		return nil
	})
	t1.Kill()
	m.Await("t2 has everything alone", func() error {
		out, err := exec.Command("sha256sum", t2.Path("vm1")).Output()
		if err != nil {
			return err
		}
		if got := strings.Fields(string(out))[0]; got != want {
			return fmt.Errorf("it has other bytes: %s, not %s", got, want)
		}
		return nil
	})
}

func TestAVirtualMachineVerifiesItsOwnWrites(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	img := guestImage(t)
	m := proc.Start(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness")
	m.Nodes["t1"].Must("disk", "create", "vm1", "64M", "dc=tokyo:2")
	m.AwaitDisk("vm1")
	for _, cache := range []string{"none", "writeback"} {
		console, err := guest.Config{Image: img, Disk: m.Nodes["t1"].Path("vm1"), Cache: cache, Rounds: 2, IOSize: 8192, MiB: 8}.Run(ctx)
		if err != nil {
			t.Fatalf("cache=%s: %v\n%s", cache, err, console)
		}
	}
	console, err := guest.Config{Image: img, Disk: m.Nodes["o1"].Path("vm1"), Cache: "none", Rounds: 2, MiB: 8, IOSize: 8192, Verify: true}.Run(ctx)
	if err != nil {
		t.Fatalf("verified in another datacenter: %v\n%s", err, console)
	}
}

func TestASecondWriterElsewhereIsRefused(t *testing.T) {
	m := proc.Start(t, "t1:tokyo t2:tokyo w1:fukuoka:witness")
	m.Nodes["t1"].Must("disk", "create", "vm1", "16M", "dc=tokyo:2")
	m.AwaitDisk("vm1")
	first, err := os.OpenFile(m.Nodes["t1"].Path("vm1"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	second, err := os.OpenFile(m.Nodes["t2"].Path("vm1"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.WriteAt(make([]byte, 4096), 0); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("a write on t2 while t1 has the disk: %v, want EBUSY", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	m.Await("t2 may write after t1 closed the file", func() error {
		_, err := second.WriteAt([]byte("second"), 0)
		return err
	})
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestMappedPagesAreNotStaleAfterAnotherHostWrote(t *testing.T) {
	m := proc.Start(t, "t1:tokyo t2:tokyo w1:fukuoka:witness")
	m.Nodes["t1"].Must("disk", "create", "vm1", "16M", "dc=tokyo:2")
	m.AwaitDisk("vm1")
	write := func(node, text string) *os.File {
		f, err := os.OpenFile(m.Nodes[node].Path("vm1"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		m.Await(node+" may write", func() error { _, err := f.WriteAt([]byte(text), 0); return err })
		return f
	}
	f := write("t1", "first ")
	page, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(page) }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(r.Close(), w.Close()) }()
	// The kernel looks, within a system call: a page fault of this process would stop all of it when it collects garbage, and with it the
	// emulated network by which the page has to come.
	mapped := func() string {
		text := make([]byte, 6)
		if _, err := w.Write(page[:6]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, text); err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if text := mapped(); text != "first " {
		t.Fatalf("mapped on t1 is %q", text)
	}
	if err := errors.Join(f.Close(), write("t2", "second").Close()); err != nil {
		t.Fatal(err)
	}
	m.Await("what t2 wrote in a mapping on t1", func() error {
		if text := mapped(); text != "second" {
			return fmt.Errorf("it shows %q", text)
		}
		return nil
	})
}
