package fusefs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// need skips the test where a program is missing.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
}

// run runs a program, which has a minute, and returns what it said.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func try(t testing.TB, name string, args ...string) (string, error) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer stop()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func TestFileSystemOnALoopDevice(t *testing.T) {
	m := mount(t)
	need(t, "losetup", "mkfs.ext4", "fstrim", "e2fsck")
	d := m.create("vm1", 64<<20)
	dev, err := try(t, "losetup", "--find", "--show", "--direct-io=on", m.path("vm1"))
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, dev)
	}
	detached := false
	detach := func() {
		if !detached {
			detached = true
			run(t, "losetup", "-d", dev)
		}
	}
	t.Cleanup(detach)
	if d.isAttached() {
		t.Error("setting up the loop device attached the disk")
	}
	run(t, "mkfs.ext4", "-q", "-b", "4096", dev)
	if !d.isAttached() {
		t.Error("making the file system did not attach the disk")
	}
	at := t.TempDir()
	run(t, "mount", dev, at)
	mounted := true
	t.Cleanup(func() {
		if mounted {
			run(t, "umount", "-l", at)
		}
	})
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	if err := os.WriteFile(filepath.Join(at, "file"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "-f", filepath.Join(at, "file"))
	if d.flushes.Load() == 0 {
		t.Error("sync reached no flush")
	}
	used := d.info().Allocated
	if err := os.Remove(filepath.Join(at, "file")); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "-f", at)
	before := d.discards.Load()
	run(t, "fstrim", at)
	if d.discards.Load() == before || d.info().Allocated > used-int64(len(want))/2 {
		t.Errorf("fstrim: %d discards, %d bytes held before and %d after", d.discards.Load()-before, used, d.info().Allocated)
	}
	run(t, "umount", at)
	mounted = false
	run(t, "e2fsck", "-f", "-n", dev)
	detach()
	eventually(t, "losetup -d lets the disk go", func() bool { return !d.isAttached() && d.opens.Load() == 0 })
}

func TestQEMUTools(t *testing.T) {
	m := mount(t)
	need(t, "qemu-img", "qemu-io")
	d := m.create("vm1", 16<<20)
	image := filepath.Join(t.TempDir(), "image.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
	run(t, "qemu-io", "-c", "write -P 0xa5 1M 3M", "-c", "write -P 0x17 15M 1M", image)
	for _, cache := range []string{"none", "writeback"} {
		run(t, "qemu-img", "convert", "-n", "-t", cache, "-O", "raw", image, m.path("vm1"))
		eventually(t, "qemu-img lets the disk go", func() bool { return !d.isAttached() })
		run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, m.path("vm1"))
	}
	if got := d.read(15<<20, 1); got[0] != 0x17 {
		t.Errorf("the disk holds %#x", got[0])
	}
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", m.path("vm1"), image+".back")
	run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", image+".back", m.path("vm1"))
	info := run(t, "qemu-img", "info", m.path("vm1"))
	if !strings.Contains(info, "file format: raw") || !strings.Contains(info, "virtual size: 16 MiB") {
		t.Errorf("info: %s", info)
	}
	run(t, "qemu-io", "-f", "raw", "-t", "none", "-c", "discard 1M 1M", "-c", "write -z 2M 64k", "-c", "flush", m.path("vm1"))
	if got := d.read(1<<20, 1<<20); !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Error("discarded data is still there")
	}
	// A create would make the file anew; it cannot, and the image stays.
	if out, err := try(t, "qemu-img", "create", "-f", "raw", m.path("vm1"), "8M"); err == nil {
		t.Errorf("qemu-img create made the disk smaller: %s", out)
	}
	if d.info().Size != 16<<20 {
		t.Errorf("size %d", d.info().Size)
	}
	run(t, "qemu-img", "resize", "-q", "-f", "raw", m.path("vm1"), "32M")
	if d.info().Size != 32<<20 {
		t.Errorf("size after resize: %d", d.info().Size)
	}
}

// qemu returns the command for a virtual machine that has the disk and waits, with its monitor on stdin.
func qemu(t *testing.T, path string, more ...string) *exec.Cmd {
	args := append([]string{
		"-machine", "q35,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-monitor", "stdio", "-S",
		"-drive", "if=virtio,format=raw,cache=none,file=" + path,
	}, more...)
	return exec.CommandContext(context.WithoutCancel(t.Context()), "qemu-system-x86_64", args...)
}

// startQEMU starts a virtual machine and returns its monitor, from which it has read what is said up to the first
// prompt, and a function that ends it.
func startQEMU(t *testing.T, path string, more ...string) (monitor func(command string) string, quit func()) {
	t.Helper()
	cmd := qemu(t, path, more...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	answer := func() string {
		var said []byte
		for buf := make([]byte, 4096); !bytes.HasSuffix(said, []byte("(qemu) ")); {
			n, err := out.Read(buf)
			if said = append(said, buf[:n]...); err != nil {
				break
			}
		}
		return string(said)
	}
	monitor = func(command string) string {
		if _, err := io.WriteString(in, command+"\n"); err != nil {
			t.Error(err)
		}
		return answer()
	}
	ended := false
	quit = func() {
		if !ended {
			ended = true
			_ = in.Close() // the monitor's end does not end it
			_ = cmd.Process.Signal(os.Interrupt)
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(quit)
	if said := answer(); !strings.HasSuffix(said, "(qemu) ") {
		t.Fatalf("QEMU did not start: %s", said)
	}
	return monitor, quit
}

func TestTwoQEMUsCannotHaveOneDisk(t *testing.T) {
	m := mount(t)
	need(t, "qemu-system-x86_64", "qemu-io")
	d := m.create("vm1", 16<<20)
	_, quit := startQEMU(t, m.path("vm1"))
	eventually(t, "the machine has its disk attached", d.isAttached)
	out, err := qemu(t, m.path("vm1")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `Failed to get "write" lock`) {
		t.Errorf("the second: %v: %s", err, out)
	}
	if out, err := try(t, "qemu-io", "-f", "raw", "-r", "-U", "-c", "read 0 512", m.path("vm1")); err != nil {
		t.Errorf("one that only reads and shares: %v: %s", err, out)
	}
	if !d.isAttached() {
		t.Error("the others have taken the disk from the first")
	}
	quit()
	monitor, quit := startQEMU(t, m.path("vm1")) // at once: the releases of the first may still be under way
	if said := monitor("info block"); !strings.Contains(said, m.path("vm1")) {
		t.Errorf("when the first has ended: %s", said)
	}
	quit()
	eventually(t, "all let go", func() bool { return !d.isAttached() })
	d.hold(true)
	out, err = qemu(t, m.path("vm1")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `Failed to get "write" lock`) {
		t.Errorf("while another node has the disk: %v: %s", err, out)
	}
}

// listens says whether somebody listens at a Unix socket: its file is there a moment earlier.
func listens(t *testing.T, path string) bool {
	t.Helper()
	list, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		const acceptsConnections = "00010000" // the fourth field, flags: __SO_ACCEPTCON
		if f := strings.Fields(line); len(f) == 8 && f[7] == path && f[3] == acceptsConnections {
			return true
		}
	}
	return false
}

// Live migration between two machines, here on one node: the source lets the disk go before the target takes it.
func TestLiveMigrationHandsTheDiskOver(t *testing.T) {
	m := mount(t)
	need(t, "qemu-system-x86_64")
	d := m.create("vm1", 16<<20)
	source, quitSource := startQEMU(t, m.path("vm1"))
	defer quitSource()
	socket := filepath.Join(t.TempDir(), "migrate")
	target, quitTarget := startQEMU(t, m.path("vm1"), "-incoming", "unix:"+socket)
	var free atomic.Bool // whether nobody had the disk when it was attached again
	d.on(func(_ context.Context, op string) error {
		if op == "attach" && !d.isAttached() {
			free.Store(true)
		}
		return nil
	})
	eventually(t, "the source has its disk attached", d.isAttached)
	eventually(t, "the target listens", func() bool { return listens(t, socket) })
	source("migrate unix:" + socket)
	if said := source("info migrate"); !strings.Contains(said, "completed") {
		t.Fatalf("migration: %s", said)
	}
	eventually(t, "the target has the disk attached", d.isAttached)
	if said := target("info status"); !free.Load() || strings.Contains(said, "inmigrate") {
		t.Errorf("the source let go before: %v; the target says %s", free.Load(), said)
	}
	quitSource()
	if !d.isAttached() {
		t.Error("the end of the source detached the disk")
	}
	quitTarget()
	eventually(t, "all let go", func() bool { return !d.isAttached() })
}

func TestFioVerifies(t *testing.T) {
	m := mount(t)
	need(t, "fio")
	m.create("vm1", 32<<20)
	for _, engine := range []string{"libaio --direct=1 --iodepth=16", "io_uring --direct=1 --iodepth=16", "mmap"} {
		args := strings.Fields("--name=x --rw=randrw --bs=4k --size=2m --thread --verify=crc32c --verify_state_save=0 --output-format=terse --ioengine=" + engine)
		if out, err := try(t, "fio", append(args, "--filename="+m.path("vm1"))...); err != nil {
			if strings.Contains(out, "not loadable") || strings.Contains(out, "io_queue_init") || strings.Contains(out, "Operation not permitted") {
				t.Logf("%s: %s", engine, out)
				continue
			}
			t.Errorf("%s: %v: %s", engine, err, out)
		}
	}
}

func BenchmarkFile(b *testing.B) {
	m := mount(b)
	m.create("vm1", 64<<20)
	f := m.open(b, "vm1", os.O_RDWR|unix.O_DIRECT)
	for _, size := range []int{4 << 10, 1 << 20} {
		buf := aligned(size)
		for op, do := range map[string]func(p []byte, off int64) (int, error){"write": f.WriteAt, "read": f.ReadAt} {
			b.Run(fmt.Sprintf("%s-%dk", op, size>>10), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for i := range b.N {
					if _, err := do(buf, int64(i*size)%(64<<20)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		b.Run(fmt.Sprintf("write-%dk-16", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				buf := aligned(size)
				for pb.Next() {
					if _, err := f.WriteAt(buf, 0); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
