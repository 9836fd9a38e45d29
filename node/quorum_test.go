package node

import (
	"context"
	"errors"
	"slices"
	"testing"

	"ukai"
	"ukai/node/admin"
	"ukai/node/cell"
)

// A replacement of the arbiters was under way when most of them were lost: one that is left has accepted it, and those that were to be the next ones have not
// heard of it.
func TestADiskIsForcedWhereItsArbitersWereBeingReplacedWhenTheyWereLost(t *testing.T) {
	inMesh(t, 5, func(t *testing.T, nodes []*Node) {
		ctx, left := context.Background(), nodes[0]
		if _, err := left.CreateDisk(ctx, newDisk("vm1", "node=n0:1")); err != nil {
			t.Fatal(err)
		}
		d, err := left.find("vm1", false)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := left.cells.Read(ctx, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		next := []ukai.NodeID{left.id}
		var lost []*Node
		var gone []string
		for _, n := range nodes[1:] {
			if slices.Contains(rec.Arbiters, n.id) {
				lost, gone = append(lost, n), append(gone, n.cfg.Name)
			} else {
				next = append(next, n.id)
			}
		}
		if len(next) != 3 || len(lost) != 2 {
			t.Fatalf("arbiters %v", rec.Arbiters)
		}
		final, err := cell.Rearb{Instance: rec.Instance, Arbiters: next}.Apply(rec.Clone())
		if err != nil {
			t.Fatal(err)
		}
		ballot := cell.Ballot{Counter: 1 << 50, Node: nodes[1].id}
		for _, req := range []cell.Request{{Kind: cell.Prepare}, {Kind: cell.Accept, Record: &final}} {
			req.Disk, req.Instance, req.Ballot = d.ID, rec.Instance, ballot
			if rep, err := left.cells.Step(ctx, req); err != nil || rep.Answer == cell.Nacked {
				t.Fatal(rep, err)
			}
		}
		if _, err := left.ForceDisk(ctx, "vm1", admin.ForceDisk{}); !errors.Is(err, ukai.ErrRejected) {
			t.Errorf("forced while whoever changes the record would end the replacement: %v", err)
		}
		for _, n := range lost {
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range lost {
			await(t, "the death of "+n.cfg.Name, func() bool { return left.holdsDead(ctx, n.id, false) })
		}
		if _, err := left.ForceDisk(ctx, "vm1", admin.ForceDisk{Gone: gone[:1]}); !errors.Is(err, ukai.ErrPermission) {
			t.Errorf("forced though one that does not answer was not named: %v", err)
		}
		shown, err := left.ForceDisk(ctx, "vm1", admin.ForceDisk{Gone: gone})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range shown.Arbiters {
			if slices.Contains(gone, a.Node.Name) {
				t.Errorf("%s is an arbiter of what was forced without it", a.Node.Name)
			}
		}
		v, err := left.OpenDisk("vm1")
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if err := v.Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}
