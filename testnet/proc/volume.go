//go:build linux

package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"ukai"
)

// Reserve is how many bytes of its Volume a node keeps free of blocks.
const Reserve = 16 << 20

// fillLeaves is how many bytes Fill leaves: less than what a node wants for the keys of its database, and enough for what it
// writes before it looks again.
const fillLeaves = 6 << 20

// bootIDFile is where a node with a volume looks for its boot id, in its working directory: its binary is linked so.
const bootIDFile = "boot_id"

// Volume is a file system of a node's own: ext4 on a loop device. It can be filled, and its power can be cut.
type Volume struct {
	dir    string // where it is mounted
	device string
	boot   string // file that the node takes for the kernel's boot id
	filler string
}

func newVolume(base, dir string, mebibytes int) (*Volume, error) {
	v := &Volume{dir: dir, boot: filepath.Join(base, bootIDFile), filler: filepath.Join(dir, "filler")}
	if err := v.reboot(); err != nil {
		return nil, err
	}
	image := filepath.Join(base, "volume.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(image, int64(mebibytes)<<20); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := command("mkfs.ext4", "-q", "-F", "-m", "0", image); err != nil {
		return nil, err
	}
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		return nil, fmt.Errorf("losetup %s: %w", image, err)
	}
	v.device = strings.TrimSpace(string(out))
	if err := v.mount(); err != nil {
		return nil, errors.Join(err, command("losetup", "--detach", v.device))
	}
	return v, nil
}

func (v *Volume) mount() error {
	if err := unix.Mount(v.device, v.dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", v.device, v.dir, err)
	}
	return nil
}

// reboot gives the next process another boot id.
func (v *Volume) reboot() error {
	id := ukai.NewDiskID().String()
	text := strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-")
	return os.WriteFile(v.boot, []byte(text+"\n"), 0o600)
}

// Fill leaves so little room that the node takes no new blocks.
func (v *Volume) Fill() error {
	var s unix.Statfs_t
	if err := unix.Statfs(v.dir, &s); err != nil {
		return err
	}
	n := int64(s.Bavail)*s.Bsize - fillLeaves
	if n <= 0 {
		return nil
	}
	f, err := os.Create(v.filler)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, n), f.Close())
}

// Free undoes Fill.
func (v *Volume) Free() error { return os.Remove(v.filler) }

// ext4Shutdown is EXT4_IOC_SHUTDOWN, and noLogFlush its EXT4_GOING_FLAGS_NOLOGFLUSH: nothing more reaches the device, neither data nor journal.
const (
	ext4Shutdown = 0x8004587d
	noLogFlush   = 2
)

// cutPower makes the volume forget what was not synced, and gives the next process another boot id. Nobody may have it open.
func (v *Volume) cutPower() error {
	d, err := os.Open(v.dir)
	if err != nil {
		return err
	}
	err = unix.IoctlSetPointerInt(int(d.Fd()), ext4Shutdown, noLogFlush)
	if err = errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("shut down %s: %w", v.dir, err)
	}
	if err := syscall.Unmount(v.dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", v.dir, err)
	}
	if err := v.mount(); err != nil { // replays the journal
		return err
	}
	return v.reboot()
}

func (v *Volume) close() error {
	return errors.Join(syscall.Unmount(v.dir, 0), command("losetup", "--detach", v.device))
}

// PowerCut ends the node's machine: the process dies, and what it had not synced is gone. Start boots it again.
func (n *Node) PowerCut() {
	n.mesh.T.Helper()
	if n.Running() {
		n.Kill()
	}
	if err := n.Volume.cutPower(); err != nil {
		n.mesh.T.Fatalf("cut the power of %s: %v", n.Name, err)
	}
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
