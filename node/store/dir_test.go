package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ukai"
	"ukai/node/store"
)

func TestDirectoryIsLocked(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(store.Config{Dir: dir})
	must(t, err)
	_, err = store.Open(store.Config{Dir: dir})
	want(t, err, ukai.ErrLocked)
	for _, part := range []string{dir, fmt.Sprint(os.Getpid())} {
		if err != nil && !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %s", err, part)
		}
	}
	must(t, s.Close())
	s, err = store.Open(store.Config{Dir: dir})
	must(t, err)
	must(t, s.Close())
}

func TestFormat(t *testing.T) {
	for text, sentinel := range map[string]error{
		"ukai-store 2\n":  ukai.ErrVersion,
		"ukai-store 99":   ukai.ErrVersion,
		"ukai-store -1\n": ukai.ErrCorrupt,
		"ukai-store x\n":  ukai.ErrCorrupt,
		"":                ukai.ErrCorrupt,
		"hello":           ukai.ErrCorrupt,
	} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "format"), []byte(text), 0o600))
		_, err := store.Open(store.Config{Dir: dir})
		if !errors.Is(err, sentinel) || !strings.Contains(err.Error(), dir) {
			t.Errorf("format %q: Open = %v, want %q that names the directory", text, err, sentinel)
		}
		if errors.Is(err, ukai.ErrVersion) && !strings.Contains(err.Error(), "upgrade") {
			t.Errorf("%q does not say what to do", err)
		}
		// A refusal leaves no lock behind.
		must(t, os.WriteFile(filepath.Join(dir, "format"), []byte("ukai-store 1\n"), 0o600))
		s, err := store.Open(store.Config{Dir: dir})
		must(t, err)
		must(t, s.Close())
	}
	_, err := store.Open(store.Config{})
	want(t, err, ukai.ErrInvalid)

	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "db", "something"), 0o700))
	_, err = store.Open(store.Config{Dir: dir})
	want(t, err, ukai.ErrCorrupt) // not a directory of ours, or one that lost its format

	dir = filepath.Join(t.TempDir(), "a", "b")
	s, err := store.Open(store.Config{Dir: dir})
	must(t, err)
	must(t, s.Close())
}

func TestUnknownFilesAreLeftAlone(t *testing.T) {
	m := newDirMachine(t)
	b := m.Open(t)
	ctx, disk := context.Background(), ukai.NewDiskID()
	cfg := store.ReplicaConfig{Size: 1 << 30, BlockSize: 4 << 20}
	must(t, b.Create(ctx, disk, 1, cfg))
	must(t, b.Close())
	root := filepath.Join(m.cfg.Dir, "replicas")
	own := filepath.Join(root, disk.String())
	strays := []string{
		filepath.Join(root, "notes.txt"),
		filepath.Join(own, ukai.ReplicaID(2).String(), "0.img"),
		filepath.Join(own, ukai.ReplicaID(1).String(), "backup"),
		filepath.Join(root, ukai.NewDiskID().String(), ukai.ReplicaID(3).String(), "0.img"),
	}
	for _, name := range strays {
		must(t, os.MkdirAll(filepath.Dir(name), 0o700))
		must(t, os.WriteFile(name, []byte("precious"), 0o600))
	}
	b = m.Open(t)
	orphans := b.Orphans()
	if len(orphans) != len(strays) {
		t.Errorf("orphans %q, want %d", orphans, len(strays))
	}
	want(t, b.Create(ctx, disk, 2, cfg), ukai.ErrExists)
	must(t, b.Close())
	m.Open(t)
	for _, name := range strays {
		if text, err := os.ReadFile(name); err != nil || string(text) != "precious" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
}

func TestDataCutByOthersIsNoticed(t *testing.T) {
	m := newDirMachine(t)
	b := m.Open(t)
	disk := ukai.NewDiskID()
	must(t, b.Create(context.Background(), disk, 1, store.ReplicaConfig{Size: 8 << 20, BlockSize: 1 << 20}))
	name := filepath.Join(m.cfg.Dir, "replicas", disk.String(), ukai.ReplicaID(1).String(), "0.img")
	must(t, os.Truncate(name, 1<<20))
	_, err := b.OpenReplica(disk, 1)
	want(t, err, ukai.ErrCorrupt)
	must(t, os.Truncate(name, 9<<20)) // a Resize that was interrupted
	r, err := b.OpenReplica(disk, 1)
	must(t, err)
	if st, err := os.Stat(name); err != nil || st.Size() != 8<<20 {
		t.Errorf("%v, %v", st.Size(), err)
	}
	must(t, os.Truncate(name, 1<<20))
	want(t, r.ReadAt(make([]byte, 4096), 2<<20), ukai.ErrCorrupt)
	must(t, r.Close())
	must(t, os.Remove(name))
	_, err = b.OpenReplica(disk, 1)
	want(t, err, ukai.ErrMedia)
	must(t, b.Remove(context.Background(), disk, 1))
}

// TestSpaceReserveOfAFileSystem needs a file system of its own to fill.
func TestSpaceReserveOfAFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	s, err := store.Open(store.Config{Dir: dir, ReserveBytes: 24 << 20})
	must(t, err)
	disk := ukai.NewDiskID()
	must(t, s.Create(context.Background(), disk, 1, store.ReplicaConfig{Size: replicaBytes, BlockSize: 1 << 20}))
	r, err := s.OpenReplica(disk, 1)
	must(t, err)
	testSpaceReserve(t, s, r)
	must(t, s.Close())
}

// The database writes through memory maps: where there is no room for a page, the process would end with SIGBUS.
func TestFullFileSystemIsSaidAtStart(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	cfg := store.Config{Dir: dir, ReserveBytes: 24 << 20}
	s, err := store.Open(cfg)
	must(t, err)
	must(t, s.Put(context.Background(), true, store.KV{K: "k", V: []byte("v")}))
	must(t, s.Close())
	fill := filepath.Join(dir, "fill")
	f, err := os.Create(fill)
	must(t, err)
	for zeros := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(zeros)
	}
	want(t, err, unix.ENOSPC)
	must(t, f.Close())
	_, err = store.Open(cfg)
	want(t, err, ukai.ErrNoSpace)
	must(t, os.Remove(fill))
	s, err = store.Open(cfg)
	must(t, err)
	v, err := s.Get("k")
	must(t, err)
	if string(v) != "v" {
		t.Errorf("the key holds %q", v)
	}
	must(t, s.Close())
}
