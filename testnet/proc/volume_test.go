//go:build linux

package proc

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAPowerCutForgetsWhatWasNotSyncedAndAFullVolumeRefusesMore(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a file system on a loop device")
	}
	if err := Supported(); err != nil {
		t.Skip(err)
	}
	base := t.TempDir()
	v, err := newVolume(base, filepath.Join(base, "data"), 64)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.close(); err != nil {
			t.Error(err)
		}
	}()
	f, err := os.Create(filepath.Join(v.dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if _, err := f.WriteAt([]byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	write("synced")
	d, err := os.Open(v.dir)
	if err == nil {
		err = errors.Join(f.Sync(), d.Sync(), d.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	write("newer!")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(v.boot)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cutPower(); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(v.dir, "file")); err != nil || string(data) != "synced" {
		t.Errorf("after the power cut the file holds %q, %v", data, err)
	}
	if after, err := os.ReadFile(v.boot); err != nil || string(after) == string(before) {
		t.Errorf("the machine booted with the same boot id %q, %v", after, err)
	}
	if err := v.Fill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.dir, "more"), make([]byte, 2*fillLeaves), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full volume takes more: %v", err)
	}
	if err := v.Free(); err != nil {
		t.Fatal(err)
	}
}
