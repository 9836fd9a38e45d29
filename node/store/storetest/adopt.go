package storetest

import (
	"context"
	"testing"

	"ukai"
	"ukai/node/store"
)

func testAdopt(t *testing.T, m Machine) {
	b := m.Open(t)
	ctx := context.Background()
	disk, r := create(t, b)
	ok(t, r.SetFence(ctx, 7))
	ok(t, r.Raise(ctx, 3, 9, stamp(7, 2)))
	write(t, r, 3*blockSize, fill(1, 4096))
	ok(t, r.Sync(ctx))
	ok(t, r.SetStable(stamp(7, 2), true))
	_, quiet := r.Quiet(3)
	sums := []store.Sum{{1}, {2}, {3}, {4}}
	kept, err := r.SetChecksums(ctx, 3, stamp(7, 2), sums)
	if !quiet || !kept || err != nil {
		t.Fatalf("quiet %v, kept %v: %v", quiet, kept, err)
	}
	wantErr(t, b.Adopt(ctx, disk, 1, 2), ukai.ErrLocked)
	ok(t, r.Close())
	wantErr(t, b.Adopt(ctx, disk, 1, 2), ukai.ErrRejected)
	r = open(t, b, disk, 1)
	ok(t, r.SetState(ctx, store.StateRetired))
	ok(t, r.Close())
	ok(t, b.Create(ctx, disk, 5, store.ReplicaConfig{Size: size, BlockSize: blockSize}))
	wantErr(t, b.Adopt(ctx, disk, 1, 5), ukai.ErrExists)
	wantErr(t, b.Adopt(ctx, disk, 1, 0), ukai.ErrInvalid)
	wantErr(t, b.Adopt(ctx, disk, 4, 2), ukai.ErrNotFound)
	ok(t, b.Remove(ctx, disk, 5))

	ok(t, b.Adopt(ctx, disk, 1, 2))
	_, err = b.OpenReplica(disk, 1)
	wantErr(t, err, ukai.ErrNotFound)
	for range 2 {
		if all := b.Replicas(); len(all) != 1 || all[0].Replica != 2 || all[0].Size != size || all[0].BlockSize != blockSize {
			t.Fatalf("Replicas = %+v", all)
		}
		r = open(t, b, disk, 2)
		if h := r.Header(); h.State != store.StateNew || h.Fence != 0 || h.Stable != (ukai.BlockStamp{}) || !h.Adopted {
			t.Errorf("header %+v", h)
		}
		wantData(t, r, 3*blockSize, fill(1, 4096))
		if n := r.Newer(ukai.BlockStamp{}); len(n) != 7 || n[0] != (store.BlockInfo{Index: 3, Stamp: stamp(7, 2)}) {
			t.Errorf("stamps %+v", n)
		}
		if got, err := r.Checksums(3); err != nil || len(got) != len(sums) || got[3] != sums[3] {
			t.Errorf("checksums %v: %v", got, err)
		}
		m.CutPower(t, b)
		b = m.Open(t)
		if o := b.Orphans(); len(o) != 0 {
			t.Errorf("orphans %q", o)
		}
	}
	defer closed(t, b)
	// The old one may be made anew, which nobody does, and the new one is used like any.
	ok(t, b.Create(ctx, disk, 1, store.ReplicaConfig{Size: size, BlockSize: blockSize}))
	if n := open(t, b, disk, 1).Newer(ukai.BlockStamp{}); len(n) != 0 {
		t.Errorf("%d stamps are left under the old name", len(n))
	}
	r = open(t, b, disk, 2)
	ok(t, r.SetFence(ctx, 3))
	if h := r.Header(); h.State != store.StateOpen || h.Fence != 3 {
		t.Errorf("header %+v", h)
	}
	ok(t, r.Close())
	ok(t, b.Remove(ctx, disk, 2))
}
