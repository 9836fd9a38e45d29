package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node/admin"
	"ukai/testnet/memnet"
)

// bubble runs a test in virtual time with a mesh that is stopped at its end.
func bubble(t *testing.T, specs string, f func(t *testing.T, m *Mesh)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := Start(t, 1, specs)
		defer m.Stop()
		f(t, m)
	})
}

// long is for tests of minutes of virtual time and seconds of real time, which `make check` has no time for.
func long(t *testing.T) {
	if testing.Short() {
		t.Skip("takes several seconds: make test")
	}
}

func wan(m *Mesh, delay time.Duration, loss float64, dcs ...string) {
	for i, a := range dcs {
		for _, b := range dcs[i+1:] {
			l := memnet.Link{Delay: delay, Jitter: delay / 20, Loss: loss}
			m.Net.SetLink(a, b, l)
			m.Net.SetLink(b, a, l)
		}
	}
}

func pattern(seed uint64, n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	_, _ = r.Read(p)
	return p
}

func TestEveryWriteIsReadBackInThreeDatacentersOverLossyLinks(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka f1:fukuoka", func(t *testing.T, m *Mesh) {
		wan(m, 40*time.Millisecond, 0.01, "tokyo", "osaka", "fukuoka")
		m.Create("vm1", 8<<20, "dc=tokyo:1 dc=osaka:1 dc=fukuoka:1")
		ctx := context.Background()
		d := m.Nodes["t1"].Volume("vm1")
		written := make([]byte, 8<<20)
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range 200 {
			off := int64(rng.IntN(8<<20-64<<10)) &^ 511
			p := pattern(uint64(i), 512*(1+rng.IntN(64)))
			if _, err := d.WriteAt(ctx, p, off); err != nil {
				t.Fatalf("write %d: %v", i, err)
			}
			copy(written[off:], p)
			if i%20 == 0 {
				if err := d.Flush(ctx); err != nil {
					t.Fatalf("flush: %v", err)
				}
			}
		}
		for _, n := range m.Order {
			same(t, n, "vm1", written)
		}
	})
}

// same holds what a node reads of a disk against what it should be.
func same(t *testing.T, n *Node, disk string, want []byte) {
	t.Helper()
	d := n.Volume(disk)
	got := make([]byte, 1<<20)
	for off := 0; off < len(want); off += len(got) {
		if _, err := d.ReadAt(context.Background(), got, int64(off)); err != nil {
			t.Fatalf("read at %s: %v", n.Name, err)
		}
		if !bytes.Equal(got, want[off:off+len(got)]) {
			t.Fatalf("%s reads other bytes in the MiB at %d", n.Name, off)
		}
	}
}

func TestOneHundredNodesConvergeOnAChangeInTenSeconds(t *testing.T) {
	if testing.Short() {
		t.Skip("100 nodes take half a minute")
	}
	specs := ""
	for i := range 100 {
		specs += fmt.Sprintf("n%d:dc%d ", i, i%3)
	}
	bubble(t, specs, func(t *testing.T, m *Mesh) {
		wan(m, 40*time.Millisecond, 0, "dc0", "dc1", "dc2")
		if _, err := m.Nodes["n7"].ChangeNode(context.Background(), "n42", admin.NodeChange{Set: ukai.Labels{"rack": "r9"}}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for _, n := range m.Order {
			m.Await("the change at "+n.Name, func() error {
				s, err := n.Status(context.Background())
				if err != nil {
					return err
				}
				for _, other := range s.Nodes {
					if other.Name == "n42" && other.Labels["rack"] == "r9" {
						return nil
					}
				}
				return errors.New("not there")
			})
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("the last of 100 nodes learned of the change after %v", took)
		}
	})
}

func TestALostReplicaIsDroppedAndNothingIsLost(t *testing.T) {
	for name, lose := range map[string]func(m *Mesh, n *Node){
		"crash":      func(_ *Mesh, n *Node) { n.Crash() },
		"power":      func(_ *Mesh, n *Node) { n.PowerCut() },
		"frozen":     func(_ *Mesh, n *Node) { n.Freeze(true) },
		"cut off":    func(m *Mesh, n *Node) { m.Cut("t1", n.Name); m.Cut("w1", n.Name) },
		"deaf":       func(m *Mesh, n *Node) { l := memnet.Link{Down: true}; m.Net.SetLink("t1", n.Name, l) },
		"speechless": func(m *Mesh, n *Node) { l := memnet.Link{Down: true}; m.Net.SetLink(n.Name, "t1", l) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				m.Create("vm1", 4<<20, "dc=tokyo:2")
				ctx := context.Background()
				d := m.Nodes["t1"].Volume("vm1")
				written := make([]byte, 4<<20)
				write := func(i int) {
					off := (i * 8192) % (4 << 20)
					p := pattern(uint64(i), 8192)
					if _, err := d.WriteAt(ctx, p, int64(off)); err != nil {
						t.Fatalf("write %d: %v", i, err)
					}
					copy(written[off:], p)
				}
				for i := range 50 {
					write(i)
				}
				lose(m, m.Nodes["t2"])
				start := time.Now()
				write(50)
				pause := time.Since(start)
				for i := 51; i < 100; i++ {
					write(i)
				}
				if pause > 3*time.Second {
					t.Errorf("I/O paused for %v", pause)
				}
				if err := d.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				same(t, m.Nodes["t1"], "vm1", written)
				shown, err := m.Nodes["t1"].Node.Disk(ctx, "vm1")
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range shown.Replicas {
					if want := map[string]admin.Role{"t1": admin.InSync, "t2": admin.Out}[r.Node.Name]; r.Role != want {
						t.Errorf("the replica on %s is %s, want %s", r.Node.Name, r.Role, want)
					}
				}
			})
		})
	}
}

func TestAnotherHostTakesOverAfterTheHolderCrashed(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.CreateAck("vm1", 4<<20, "dc=tokyo:2", "all") // nothing is flushed below
		ctx := context.Background()
		d := m.Nodes["t1"].Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		written := pattern(1, 4<<20)
		for off := 0; off < len(written); off += 1 << 20 {
			if _, err := d.WriteAt(ctx, written[off:off+1<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		second := m.Nodes["t2"].Volume("vm1")
		if err := second.Attach(ctx); !errors.Is(err, ukai.ErrHeld) {
			t.Fatalf("a second host attached the disk: %v", err)
		}
		m.Nodes["t1"].Crash()
		took := m.Await("t2 takes over", func() error { return second.Attach(ctx) })
		if took > 8*time.Second {
			t.Errorf("taken over after %v", took)
		}
		same(t, m.Nodes["t2"], "vm1", written)
		if _, err := second.WriteAt(ctx, pattern(2, 512), 0); err != nil {
			t.Fatal(err)
		}
		if err := second.Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCleanHandoverBetweenHosts(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		written := make([]byte, 4<<20)
		for i, name := range []string{"t1", "o1", "t2", "t1", "o1"} {
			d := m.Nodes[name].Volume("vm1")
			if err := d.Attach(ctx); err != nil {
				t.Fatalf("attach at %s: %v", name, err)
			}
			p := pattern(uint64(i), 64<<10)
			if _, err := d.WriteAt(ctx, p, int64(i)*100<<10); err != nil {
				t.Fatal(err)
			}
			copy(written[i*100<<10:], p)
			same(t, m.Nodes[name], "vm1", written)
			if err := d.Detach(ctx); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestSteadyReadsAndWritesSendNothingToArbiters(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		d := m.Nodes["t1"].Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		counts := func() (sum uint64) {
			for _, n := range m.Order {
				sum += n.Counters()["ukai_cell_requests_sent_total"]
			}
			return sum
		}
		time.Sleep(2 * time.Second)
		before := counts()
		for i := range 500 {
			if _, err := d.WriteAt(ctx, pattern(uint64(i), 4096), int64(i*4096)); err != nil {
				t.Fatal(err)
			}
			if _, err := d.ReadAt(ctx, make([]byte, 4096), int64(i*4096)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		if after := counts(); after != before {
			t.Errorf("%d requests went to arbiters during 100 s of reads and writes", after-before)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestADiskIsRemovedRestoredAndInTheEndDeleted(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1, t2 := m.Nodes["t1"], m.Nodes["t2"]
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(ctx, pattern(1, 4096), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := t2.RemoveDisk(ctx, "vm1", admin.RemoveDisk{}); !errors.Is(err, ukai.ErrHeld) {
			t.Fatalf("an attached disk was removed: %v", err)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := t2.RemoveDisk(ctx, "vm1", admin.RemoveDisk{}); err != nil {
			t.Fatal(err)
		}
		m.Await("the removal at t1", func() error {
			if _, err := t1.StatDisk("vm1"); !errors.Is(err, ukai.ErrNotFound) {
				return fmt.Errorf("still there: %w", err)
			}
			return nil
		})
		if _, err := t1.RestoreDisk(ctx, "vm1", admin.RestoreDisk{}); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 4096)
		if _, err := t1.Volume("vm1").ReadAt(ctx, p, 0); err != nil || !bytes.Equal(p, pattern(1, 4096)) {
			t.Fatalf("after restore: %v", err)
		}
		zero := int64(0)
		m.Await("removal for good", func() error {
			_, err := t1.RemoveDisk(ctx, "vm1", admin.RemoveDisk{GraceSeconds: &zero})
			return err
		})
		for _, n := range []*Node{t1, t2} {
			m.Await("the space on "+n.Name, func() error {
				if left := n.Store.Replicas(); len(left) > 0 {
					return fmt.Errorf("%d replicas left", len(left))
				}
				return nil
			})
		}
		if _, err := t1.RestoreDisk(ctx, "vm1", admin.RestoreDisk{}); !errors.Is(err, ukai.ErrNotFound) {
			t.Fatalf("a deleted disk was restored: %v", err)
		}
	})
}
