//go:build linux

package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ukai/testnet/proc"
)

// rot flips a bit in the file below a node that holds its replica of the only disk.
func rot(t *testing.T, n *proc.Node, off int64) {
	t.Helper()
	f, err := os.OpenFile(replicaFile(t, n), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func replicaFile(t *testing.T, n *proc.Node) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Data, "replicas/*/*/0.img"))
	if err != nil || len(files) != 1 {
		t.Fatalf("replicas of %s: %v, %v", n.Name, files, err)
	}
	return files[0]
}

func TestBitsThatFlipBelowALiveNodeAreFoundAndMended(t *testing.T) {
	m := proc.Start(t, "t1:tokyo t2:tokyo w1:fukuoka:witness")
	t1, t2 := m.Nodes["t1"], m.Nodes["t2"]
	t1.Must("disk", "create", "vm1", "32M", "dc=tokyo:2")
	m.AwaitDisk("vm1")
	want := make([]byte, 32<<20)
	_, _ = rand.Read(want)
	if err := os.WriteFile(t1.Path("vm1"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Await("the disk is let go of, and thereby quiet", func() error {
		var d struct{ State string }
		if err := t1.JSON(&d, "disk", "show", "vm1"); err != nil || d.State == "idle" {
			return err
		}
		return fmt.Errorf("it is %s", d.State)
	})
	if out := t2.Must("scrub", "vm1"); !strings.Contains(out, "vm1: 128 pieces of 256 KiB verified, all are well") {
		t.Fatal(out)
	}
	rot(t, t2, 9<<20+12345)
	rot(t, t1, 17<<20)

	// A guest writes elsewhere all the while.
	guest, err := os.OpenFile(t1.Path("vm1"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			off := int64(i%1024) * 4096
			if _, err := guest.WriteAt(bytes.Repeat([]byte{byte(i)}, 4096), off); err != nil {
				t.Error(err)
				return
			}
			copy(want[off:], bytes.Repeat([]byte{byte(i)}, 4096))
		}
	})
	out, err := m.Nodes["w1"].Run("scrub", "--verify-only")
	if err == nil || !strings.Contains(out, "2 corrupt") {
		t.Errorf("with --verify-only: %v: %s", err, out)
	}
	if out, err := m.Nodes["w1"].Run("doctor"); err == nil || !strings.Contains(out, "remedy: ukai-node scrub vm1") {
		t.Errorf("doctor: %v: %s", err, out)
	}
	if out := t2.Must("scrub", "vm1"); !strings.Contains(out, "2 corrupt: 2 repaired, 0 not") {
		t.Error(out)
	}
	close(stop)
	writing.Wait()
	if err := errors.Join(guest.Sync(), guest.Close()); err != nil {
		t.Fatal(err)
	}
	if out, _ := m.Nodes["w1"].Run("doctor"); strings.Contains(out, "corrupt") {
		t.Errorf("doctor after the repair: %s", out)
	}
	for _, n := range []*proc.Node{t1, t2} {
		if got, err := os.ReadFile(replicaFile(t, n)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the replica on %s has other bytes than were written: %v", n.Name, err)
		}
		if !strings.Contains(n.Must("disk", "show", "vm1"), "2 repaired") {
			t.Errorf("disk show at %s tells nothing of the scrub", n.Name)
		}
	}
}
