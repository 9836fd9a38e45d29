//go:build linux

package guest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestTheGuestVerifiesItsOwnWritesAndFindsDamage(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed: run .ci/setup test")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	image, err := Build(ctx, "../..", dir)
	if err != nil {
		t.Skip(err)
	}
	disk := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(disk, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Config{Image: image, Disk: disk, Cache: "writeback", Rounds: 2, IOSize: 4096, MiB: 4}
	console, err := c.Run(ctx)
	if err != nil {
		t.Fatalf("%v\n%s", err, console)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	c.Verify = true
	if console, err := c.Run(ctx); err == nil {
		t.Fatalf("the guest did not see the damage:\n%s", console)
	}
}
