package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
)

// arbiters returns the names of those who keep a disk's record, as a node knows it.
func arbiters(t *testing.T, n *Node, disk string) []string {
	t.Helper()
	d, err := n.Disk(context.Background(), disk)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, a := range d.Arbiters {
		names = append(names, a.Node.Name)
	}
	slices.Sort(names)
	return names
}

func TestAnArbiterThatIsDownForLongIsReplacedUnderIO(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness w2:osaka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		before := arbiters(t, t1, "vm1")
		lost, spare := "w1", "w2"
		if slices.Contains(before, "w2") {
			lost, spare = spare, lost
		}
		m.Nodes[lost].Crash()
		i := 0
		start := time.Now()
		for ; slices.Equal(arbiters(t, t1, "vm1"), before) && time.Since(start) < time.Hour; i++ {
			if _, err := d.WriteAt(ctx, pattern(uint64(i), 4096), int64(i%1024)*4096); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if after := arbiters(t, t1, "vm1"); !slices.Contains(after, spare) || slices.Contains(after, lost) || len(after) != 3 {
			t.Fatalf("arbiters %v became %v, %s was lost", before, after, lost)
		}
		if waited := time.Since(start); waited < 9*time.Minute {
			t.Errorf("replaced after %v already", waited)
		}
		// The new set decides: with it a replica can be lost.
		m.Nodes["t2"].Crash()
		if _, err := d.WriteAt(ctx, pattern(7, 4096), 0); err != nil {
			t.Fatal(err)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		// The one that was replaced comes back: it redirects.
		m.Nodes[lost].Boot()
		m.Await("the former arbiter knows the disk", func() error { _, err := m.Nodes[lost].OpenDisk("vm1"); return err })
		if err := m.Nodes[lost].Volume("vm1").Attach(ctx); err != nil {
			t.Errorf("attach at the former arbiter: %v", err)
		}
		got := make([]byte, 4096)
		if _, err := m.Nodes[lost].Volume("vm1").ReadAt(ctx, got, 0); err != nil || !slices.Equal(got, pattern(7, 4096)) {
			t.Errorf("read there: %v", err)
		}
	})
}

func TestThePreferredNodeGoesOnAloneAndNoOtherDoes(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "any:2")
		ctx := context.Background()
		t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
		if _, err := t1.SetQuorum(ctx, "vm1", admin.SetQuorum{Mode: admin.QuorumPreferred, Node: "t1"}); err != nil {
			t.Fatal(err)
		}
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		o1.Crash()
		if _, err := d.WriteAt(ctx, pattern(1, 4096), 0); err != nil {
			t.Fatalf("the preferred node does not go on alone: %v", err)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		o1.Boot()
		m.AwaitWhole()
		t1.Crash()
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := o1.Volume("vm1").Attach(short); err == nil {
			t.Error("a node attached the disk without the one that decides")
		}
	})
}

func TestModeUnsafeMustBeMeant(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		if _, err := t1.SetQuorum(ctx, "vm1", admin.SetQuorum{Mode: admin.QuorumUnsafe}); !errors.Is(err, ukai.ErrPermission) {
			t.Errorf("without a word of consent: %v", err)
		}
		d, err := t1.SetQuorum(ctx, "vm1", admin.SetQuorum{Mode: admin.QuorumUnsafe, AcceptSplitBrain: "vm1"})
		if err != nil || d.Quorum != admin.QuorumUnsafe {
			t.Fatal(d.Quorum, err)
		}
		if !slices.ContainsFunc(d.Warnings, func(w admin.Warning) bool { return w.Code == "quorum-unsafe" }) {
			t.Error("nothing warns of it")
		}
		const metric = `ukai_disk_unsafe{disk="vm1"}`
		if got := t1.Gauges()[metric]; got != 1 {
			t.Errorf("%s is %v", metric, got)
		}
		if got := t1.Facts(d.ID)["quorum"]; got != admin.QuorumUnsafe {
			t.Errorf("the attribute quorum of its file says %q", got)
		}
		if d, err = t1.SetQuorum(ctx, "vm1", admin.SetQuorum{Mode: admin.QuorumMajority}); err != nil || d.Quorum != admin.QuorumMajority {
			t.Fatal(d.Quorum, err)
		}
		if got, told := t1.Gauges()[metric]; told {
			t.Errorf("%s is %v though its mode is majority", metric, got)
		}
	})
}

func TestWhenWritesAreAcknowledgedIsChangedOnADiskInUse(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 20*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		m.CreateAck("vm1", 4<<20, "dc=tokyo:1 dc=osaka:1", "all")
		ctx := context.Background()
		d := m.Nodes["t1"].Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		write := func(b uint64) time.Duration {
			began := time.Now()
			if _, err := d.WriteAt(ctx, pattern(b, 4096), 0); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		write(1)
		if took := write(2); took < 20*time.Millisecond {
			t.Errorf("ack=all: the far replica has it after %v", took)
		}
		if _, err := m.Nodes["o1"].SetDisk(ctx, "vm1", admin.SetDisk{Ack: "none"}); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("a mode that does not exist: %v", err)
		}
		shown, err := m.Nodes["o1"].SetDisk(ctx, "vm1", admin.SetDisk{Ack: "local"})
		if err != nil || shown.Ack != "local" || shown.OnLoss != "wait" {
			t.Fatal(shown.Ack, shown.OnLoss, err)
		}
		m.Await("writes are acknowledged by the replica here", func() error {
			if took := write(3); took > 10*time.Millisecond {
				return fmt.Errorf("one took %v", took)
			}
			if err := d.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			return nil
		})
		last := pattern(4, 1<<20)
		if _, err := d.WriteAt(ctx, last, 0); err != nil {
			t.Fatal(err)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		same(t, m.Nodes["o1"], "vm1", last)
	})
}

func TestADiskWhoseArbitersAreGoneIsForcedAndKeepsItsData(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		want := pattern(3, 4<<20)
		for off := 0; off < len(want); off += 1 << 20 {
			if _, err := d.WriteAt(ctx, want[off:off+1<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := t1.ForceDisk(ctx, "vm1", admin.ForceDisk{Gone: []string{"t2", "w1"}}); !errors.Is(err, ukai.ErrRejected) {
			t.Errorf("forced while all is well: %v", err)
		}
		m.Nodes["t2"].Crash()
		m.Nodes["w1"].Crash()
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := d.Attach(short); err == nil {
			t.Fatal("attached without a majority")
		}
		if _, err := t1.ForceDisk(ctx, "vm1", admin.ForceDisk{Gone: []string{"t2"}}); !errors.Is(err, ukai.ErrPermission) {
			t.Errorf("forced although not all that are silent were named: %v", err)
		}
		if _, err := t1.ForceDisk(ctx, "vm1", admin.ForceDisk{Gone: []string{"w1", "t2"}}); err != nil {
			t.Fatal(err)
		}
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		same(t, t1, "vm1", want)
		copy(want, pattern(4, 512))
		if _, err := d.WriteAt(ctx, want[:512], 0); err != nil {
			t.Fatal(err)
		}
		// Those that were lost come back after all: they learn of the new lineage, and serve nothing old.
		m.Nodes["t2"].Boot()
		m.Nodes["w1"].Boot()
		m.AwaitWhole()
		m.Await("t2 knows of the takeover", func() error {
			if got := arbiters(t, m.Nodes["t2"], "vm1"); !slices.Contains(got, "t1") || slices.Contains(got, "w1") {
				return fmt.Errorf("arbiters %v", got)
			}
			return nil
		})
		same(t, m.Nodes["t2"], "vm1", want)
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}
