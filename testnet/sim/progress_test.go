package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ukai/node/admin"
	"ukai/testnet/memnet"
)

// replicaOn returns what a node says of the replica of a disk on another.
func replicaOn(at *Node, disk, node string) (admin.Replica, error) {
	d, err := at.Disk(context.Background(), disk)
	for _, r := range d.Replicas {
		if r.Node.Name == node {
			return r, err
		}
	}
	return admin.Replica{}, errors.Join(err, fmt.Errorf("no replica on %s: %+v", node, d.Replicas))
}

func TestEveryNodeTellsSinceWhenAReplicaIsOutWhyAndHowFarItIs(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 64<<20, "dc=tokyo:2")
		g := m.attach("t1", "vm1")
		w1 := m.Nodes["w1"]
		g.write(0, 1)
		g.flush()
		time.Sleep(2 * time.Minute) // a checkpoint
		m.Nodes["t2"].Crash()
		crashed := time.Now()
		for block := range 64 * 256 / 64 {
			g.write(64*block, 2) // once in each 256 KiB
		}
		m.Await("t2 is out", func() error {
			r, err := replicaOn(w1, "vm1", "t2")
			if err == nil && (r.Role != admin.Out || r.NodeState != admin.NodeDead) {
				err = fmt.Errorf("it is %s, its node %s", r.Role, r.NodeState)
			}
			return err
		})
		r, err := replicaOn(w1, "vm1", "t2")
		if err != nil {
			t.Fatal(err)
		}
		if late := r.Since.Sub(crashed); late < 0 || late > 10*time.Second {
			t.Errorf("out since %v after its node crashed", late)
		}
		if r.Why == "" || strings.Contains(r.Why, "has not been brought up to date") {
			t.Errorf("out because %q", r.Why)
		}
		if r.BehindBytes != 64<<20 {
			t.Errorf("%d bytes to copy, all blocks were written", r.BehindBytes)
		}
		status, err := w1.Status(context.Background())
		if err != nil || !slices.ContainsFunc(status.Warnings, func(w admin.Warning) bool {
			return w.Code == "replica-out" && w.Disk == "vm1" && strings.Contains(w.Text, "on t2 is out since 2000-01-01") && strings.Contains(w.Text, "67108864 bytes")
		}) {
			t.Errorf("status: %+v, %v", status.Warnings, err)
		}
		s, err := w1.Placement(context.Background(), "vm1")
		if err != nil || len(s.Replicas) != 2 || s.Replicas[0].BehindBytes+s.Replicas[1].BehindBytes != 64<<20 {
			t.Errorf("place show: %+v, %v", s.Replicas, err)
		}

		m.link("tokyo", "tokyo", func(l *memnet.Link) { l.Delay = 40 * time.Millisecond })
		m.Nodes["t2"].Boot()
		seen := admin.Replica{}
		m.Await("how far the resync is", func() error {
			r, err := replicaOn(w1, "vm1", "t2")
			if err == nil && r.Role == admin.InSync {
				t.Fatal("it was in sync before that was told")
			}
			if err == nil && (r.Role != admin.Syncing || r.Percent == 0 || r.ETASeconds == 0) {
				err = fmt.Errorf("%+v", r)
			}
			seen = r
			return err
		})
		if seen.Percent >= 100 || seen.BehindBytes <= 0 || seen.BehindBytes >= 64<<20 {
			t.Errorf("syncing: %+v", seen)
		}

		// When the holder is not reached, what is known is told, soon.
		m.Cut("fukuoka", "tokyo")
		began := time.Now()
		if r, err := replicaOn(w1, "vm1", "t2"); err != nil || r.Role == admin.InSync {
			t.Errorf("behind a cut: %+v, %v", r, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("behind a cut it takes %v", took)
		}
		m.Heal("fukuoka", "tokyo")
		m.awaitLocations(w1, "vm1", "t1 in sync", "t2 in sync")
		g.detach()
	})
}

func TestEveryNodeTellsWhyIOWaits(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness w2:osaka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		if _, err := m.Nodes["t1"].PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=tokyo:2"}, MinSync: 2}}); err != nil {
			t.Fatal(err)
		}
		m.Await("min-sync 2", func() error {
			d, err := m.Nodes["t1"].Disk(ctx, "vm1")
			if err == nil && d.MinSync != 2 {
				err = fmt.Errorf("it is %d", d.MinSync)
			}
			return err
		})
		g := m.attach("t1", "vm1")
		m.Nodes["t2"].Crash()
		done := make(chan error, 1)
		go func() { done <- g.try(0, 1) }()
		for _, at := range []string{"w1", "w2"} {
			m.Await(at+" tells that I/O waits", func() error {
				d, err := m.Nodes[at].Disk(ctx, "vm1")
				if err == nil && (d.State != admin.DiskSuspended || d.Why == "") {
					err = fmt.Errorf("it is %s, %q", d.State, d.Why)
				}
				return err
			})
			if s, err := m.Nodes[at].Status(ctx); err != nil || s.Disks.Suspended != 1 {
				t.Errorf("status of %s: %+v, %v", at, s.Disks, err)
			}
		}
		m.Nodes["t2"].Boot()
		if err := <-done; err != nil {
			t.Errorf("the write that waited: %v", err)
		}
		g.detach()
	})
}
