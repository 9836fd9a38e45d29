package node

import (
	"errors"
	"testing"

	"ukai"
	"ukai/node/admin"
	"ukai/node/store"
)

func TestAnOldCopyThatWasTakenForAReplicaWhichDidNotComeToBeIsAnOldCopyAgain(t *testing.T) {
	inMesh(t, 2, func(t *testing.T, nodes []*Node) {
		ctx, n := t.Context(), nodes[0]
		made, err := n.CreateDisk(ctx, newDisk("vm1", "node=n0:1"))
		if err != nil {
			t.Fatal(err)
		}
		disk := made.Disk.ID
		await(t, "n1 knows the disk", func() bool { _, err := nodes[1].known(disk); return err == nil })
		if err := n.host.Disk(disk, "vm1").Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := n.host.Disk(disk, "vm1").WriteAt(ctx, make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
		keep := true
		if _, err := n.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"node=n1:1"}}, KeepStale: &keep}); err != nil {
			t.Fatal(err)
		}
		cfg := store.ReplicaConfig{Size: made.Disk.SizeBytes, BlockSize: made.Disk.BlockSizeBytes}
		if err := n.reuse(ctx, disk, 1, cfg); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("a replica in use was taken: %v", err)
		}
		await(t, "the disk is on n1 alone", func() bool {
			rec, err := n.known(disk)
			return err == nil && len(rec.Groups[0].Members) == 1 && rec.Groups[0].Members[0].Node == nodes[1].id
		})
		want := func(replica ukai.ReplicaID, state store.State) {
			t.Helper()
			if all := n.store.Replicas(); len(all) != 1 || all[0].Header.State != state || replica != 0 && all[0].Replica != replica {
				t.Errorf("%+v, want replica %v, %v", all, replica, state)
			}
		}
		// It has not even been retired yet.
		want(0, store.StateOpen)
		if err := n.reuse(ctx, disk, 1, cfg); err != nil {
			t.Fatal(err)
		}
		want(1, store.StateNew)
		if err := n.dropNewReplica(ctx, disk, 1); err != nil {
			t.Fatal(err)
		}
		want(1, store.StateRetired)
		for _, other := range []store.ReplicaConfig{{Size: cfg.Size / 2, BlockSize: cfg.BlockSize}, {Size: cfg.Size, BlockSize: 2 * cfg.BlockSize}} {
			if err := n.reuse(ctx, disk, 2, other); !errors.Is(err, ukai.ErrNotFound) {
				t.Errorf("%+v was made of it: %v", other, err)
			}
		}
		// Who made the second one died before a record named it.
		for id := range ukai.ReplicaID(2) {
			if err := n.reuse(ctx, disk, 2+id, cfg); err != nil {
				t.Fatal(err)
			}
			want(2+id, store.StateNew)
		}
		if err := n.host.Disk(disk, "vm1").Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOldCopiesAreKeptOnlyWhereATenthIsFree(t *testing.T) {
	for _, test := range []struct {
		free, reserve int64
		want          bool
	}{{1000, 0, true}, {100, 0, true}, {99, 0, false}, {280, 200, true}, {279, 200, false}, {100, 200, false}} {
		if got := roomToKeep(store.Space{Total: 1000, Free: test.free, Reserve: test.reserve}); got != test.want {
			t.Errorf("%d of 1000 free, %d reserved: %v", test.free, test.reserve, got)
		}
	}
}
