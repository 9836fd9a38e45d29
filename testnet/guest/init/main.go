//go:build linux

// Command init is the only program of the test guest: process 1 of a virtual machine whose disk is under test. It writes
// the disk in rounds, every sector telling where it belongs and in which round it was written, and reads back and verifies what it
// wrote. What it finds it prints on the console, for the test on the host to read.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sector = 512
	disk   = "/dev/vda"
)

// modules in the order they must be loaded; one that is built in or missing is passed over.
var modules = []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"}

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is the first process of the test guest, not a program to run")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("guest: FAIL:", err)
	} else {
		fmt.Println("guest: PASS")
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func run() error {
	_ = os.MkdirAll("/dev", 0o755)
	_ = os.MkdirAll("/proc", 0o755)
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil && err != unix.EBUSY {
		return fmt.Errorf("mount devtmpfs: %w", err)
	}
	for _, m := range modules {
		f, err := os.Open("/modules/" + m + ".ko")
		if err != nil {
			continue
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	rounds, ioSize, mebibytes := 3, 4096, 16
	verifies := "" // only verify: "only" sectors of the last round, "atleast" those of it or a later one
	for _, word := range strings.Fields(string(cmdline)) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "ukai.rounds":
			rounds, _ = strconv.Atoi(value)
		case "ukai.io":
			ioSize, _ = strconv.Atoi(value)
		case "ukai.mib":
			mebibytes, _ = strconv.Atoi(value)
		case "ukai.verify":
			verifies = value
		}
	}
	var f *os.File
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) { // the device appears when its driver has probed it
		if f, err = os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT, 0); err == nil {
			break
		}
		if time.Since(start) > time.Minute {
			return fmt.Errorf("no disk: %w", err)
		}
	}
	defer func() { _ = f.Close() }()
	fmt.Println("guest: disk found")

	region := int64(mebibytes) << 20
	buf, err := unix.Mmap(-1, 0, max(ioSize, 1<<20), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // page aligned
	if err != nil {
		return err
	}
	if verifies != "" {
		return verify(f, buf[:1<<20], region, func(_ int64, round uint64) bool {
			return round == uint64(rounds) || verifies == "atleast" && round > uint64(rounds)
		})
	}
	stop := make(chan struct{})
	go awaitStop(stop)
	for round := 1; round <= rounds; round++ {
		rng := rand.New(rand.NewPCG(uint64(round), 1))
		units := rng.Perm(int(region / int64(ioSize)))
		for n, unit := range units {
			off := int64(unit) * int64(ioSize)
			fill(buf[:ioSize], off, uint64(round))
			if _, err := f.WriteAt(buf[:ioSize], off); err != nil {
				return fmt.Errorf("round %d: write at %d: %w", round, off, err)
			}
			if n%64 == 0 {
				if err := unix.Fdatasync(int(f.Fd())); err != nil {
					return fmt.Errorf("round %d: flush: %w", round, err)
				}
			}
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return fmt.Errorf("round %d: flush: %w", round, err)
		}
		if err := verify(f, buf[:1<<20], region, func(_ int64, r uint64) bool { return r == uint64(round) }); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		fmt.Printf("guest: round %d of %d: wrote and verified %d MiB in pieces of %d bytes\n", round, rounds, mebibytes, ioSize)
		select {
		case <-stop:
			return nil
		default:
		}
	}
	return nil
}

// awaitStop closes stop when the console says so.
func awaitStop(stop chan<- struct{}) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "stop" {
			close(stop)
			return
		}
	}
}

// fill makes each sector tell its offset and round, under a checksum.
func fill(p []byte, off int64, round uint64) {
	for i := 0; i < len(p); i += sector {
		s := p[i : i+sector]
		for j := 16; j < sector-4; j += 8 {
			binary.LittleEndian.PutUint64(s[j:], uint64(off)*0x9e3779b97f4a7c15+round*uint64(j))
		}
		binary.LittleEndian.PutUint64(s, uint64(off)+uint64(i))
		binary.LittleEndian.PutUint64(s[8:], round)
		binary.LittleEndian.PutUint32(s[sector-4:], crc32.ChecksumIEEE(s[:sector-4]))
	}
}

func verify(f *os.File, buf []byte, region int64, ok func(off int64, round uint64) bool) error {
	for off := int64(0); off < region; off += int64(len(buf)) {
		if _, err := f.ReadAt(buf, off); err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		for i := 0; i < len(buf); i += sector {
			s, at := buf[i:i+sector], off+int64(i)
			round := binary.LittleEndian.Uint64(s[8:])
			switch {
			case crc32.ChecksumIEEE(s[:sector-4]) != binary.LittleEndian.Uint32(s[sector-4:]):
				return fmt.Errorf("sector at %d is torn or not ours", at)
			case binary.LittleEndian.Uint64(s) != uint64(at):
				return fmt.Errorf("sector at %d holds that of %d", at, binary.LittleEndian.Uint64(s))
			case !ok(at, round):
				return fmt.Errorf("sector at %d holds round %d", at, round)
			}
		}
	}
	return nil
}
