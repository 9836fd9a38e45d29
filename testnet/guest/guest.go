//go:build linux

// Package guest boots a small virtual machine whose disk is under test: QEMU without hardware help (TCG), Debian's cloud kernel, and an
// initramfs that holds one program of ours, init, which writes the disk and verifies its own writes.
package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Image is what the guest boots from.
type Image struct{ Kernel, Initramfs string }

// modules that the guest's init loads, if the kernel has them as modules.
var modules = []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"}

// Build makes an image in dir from the kernel that `.ci/setup test` unpacked under root/run/guest.
func Build(ctx context.Context, root, dir string) (Image, error) {
	kernels, err := filepath.Glob(filepath.Join(root, "run/guest/boot/vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		return Image{}, errors.New("no kernel for the guest under run/guest: run .ci/setup test")
	}
	kernel := kernels[len(kernels)-1]
	version := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")

	program := filepath.Join(dir, "init")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./testnet/guest/init")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return Image{}, fmt.Errorf("build init: %w: %s", err, out)
	}

	var archive bytes.Buffer
	w := cpio{w: &archive}
	w.dir("dev")
	w.dir("proc")
	w.dir("modules")
	w.node("dev/console", 0o020600, 5, 1)
	if err := w.file("init", program, 0o100755); err != nil {
		return Image{}, err
	}
	tree := filepath.Join(root, "run/guest/lib/modules", version)
	for _, m := range modules {
		found, err := filepath.Glob(filepath.Join(tree, "kernel/drivers/*", m+".ko"))
		if err != nil {
			return Image{}, err
		}
		for _, path := range found {
			if err := w.file("modules/"+m+".ko", path, 0o100644); err != nil {
				return Image{}, err
			}
		}
	}
	w.end()
	image := Image{Kernel: kernel, Initramfs: filepath.Join(dir, "initramfs")}
	return image, os.WriteFile(image.Initramfs, archive.Bytes(), 0o600)
}

// Config says how a guest runs.
type Config struct {
	Image  Image
	Disk   string // the file that is its disk
	Cache  string // QEMU's cache mode: none, writeback, ...
	Rounds int    // at most; the guest also ends after the round in which it is told to stop
	IOSize int    // bytes per write
	MiB    int    // how much of the disk it writes
	Verify bool   // write nothing, only verify what a guest of the same shape left: each sector of round Rounds or, with AtLeast, a later one
	// AtLeast is for the disk of a guest that did not end by itself.
	AtLeast bool
	Args    []string
}

// memory is the guest's. It is no multiple of 256 KiB on purpose: for one that is, QEMU before 9.0 clears the marks of written pages without
// telling TCG, so that later writes to them are not marked, are missing after a live migration, and the guest's kernel crashes.
const memory = "262152K"

// Command returns the QEMU that runs the guest; its output is the guest's console.
func (c Config) Command(ctx context.Context) *exec.Cmd {
	args := []string{
		"-machine", "q35,accel=tcg", "-cpu", "max", "-m", memory, "-nodefaults", "-no-reboot", "-display", "none",
		"-serial", "stdio",
		"-kernel", c.Image.Kernel, "-initrd", c.Image.Initramfs,
		"-append", fmt.Sprintf("console=ttyS0 quiet panic=-1 ukai.rounds=%d ukai.io=%d ukai.mib=%d%s", c.Rounds, c.IOSize, c.MiB, c.verify()),
		"-drive", "if=none,id=disk,format=raw,file=" + c.Disk + ",cache=" + c.Cache,
		"-device", "virtio-blk-pci,drive=disk",
	}
	return exec.CommandContext(ctx, "qemu-system-x86_64", append(args, c.Args...)...)
}

// Run runs the guest to its end and returns its console. The error tells the guest's own words if it found a fault.
func (c Config) Run(ctx context.Context) (console string, err error) {
	g, err := c.Start(ctx)
	if err != nil {
		return "", err
	}
	err = g.Wait()
	console = g.Console()
	return console, errors.Join(err, Verdict(console))
}

func (c Config) verify() string {
	switch {
	case c.Verify && c.AtLeast:
		return " ukai.verify=atleast"
	case c.Verify:
		return " ukai.verify=only"
	}
	return ""
}

// Verdict reads the guest's verdict from its console: nil if it passed.
func Verdict(console string) error {
	for line := range strings.Lines(console) {
		line = strings.TrimSpace(line)
		switch {
		case line == "guest: PASS":
			return nil
		case strings.HasPrefix(line, "guest: FAIL"):
			return errors.New(line)
		}
	}
	return fmt.Errorf("the guest ended without a verdict; its console: %s", strings.TrimSpace(console))
}

// cpio writes the "newc" format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	w   io.Writer
	ino int
	n   int
}

func (c *cpio) dir(name string)                          { c.entry(name, 0o040755, 0, 0, nil) }
func (c *cpio) node(name string, mode, major, minor int) { c.entry(name, mode, major, minor, nil) }
func (c *cpio) end()                                     { c.entry("TRAILER!!!", 0, 0, 0, nil) }
func (c *cpio) file(name, path string, mode int) error {
	data, err := os.ReadFile(path)
	if err == nil {
		c.entry(name, mode, 0, 0, data)
	}
	return err
}

func (c *cpio) entry(name string, mode, rmajor, rminor int, data []byte) {
	c.ino++
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, rmajor, rminor, len(name)+1, 0))
	c.write(append([]byte(name), 0))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpio) write(p []byte) { n, _ := c.w.Write(p); c.n += n } // a bytes.Buffer does not fail
func (c *cpio) pad()           { c.write(make([]byte, -c.n&3)) }
