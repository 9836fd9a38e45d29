package storetest

import (
	"context"
	"slices"
	"testing"

	"ukai"
	"ukai/node/store"
)

// sums returns the checksums of the data that a block has now.
func sums(t testing.TB, r store.Replica, index ukai.Index) []store.Sum {
	t.Helper()
	off := int64(index) * int64(r.BlockSize())
	p := make([]byte, min(int64(r.BlockSize()), r.Size()-off))
	ok(t, r.ReadAt(p, off))
	var list []store.Sum
	for part := range slices.Chunk(p, store.SumBytes) {
		list = append(list, store.SumOf(part))
	}
	return list
}

// settle makes a block quiet and notes its checksums.
func settle(t testing.TB, r store.Replica, index ukai.Index, s ukai.BlockStamp) {
	t.Helper()
	ok(t, r.Raise(context.Background(), index, index, s))
	ok(t, r.Sync(context.Background()))
	ok(t, r.SetStable(s, true))
	now, quiet := r.Quiet(index)
	if !quiet || now != s {
		t.Fatalf("block %d: stamp %v, quiet: %v; want %v, quiet", index, now, quiet, s)
	}
	kept, err := r.SetChecksums(context.Background(), index, s, sums(t, r, index))
	ok(t, err)
	if !kept {
		t.Fatalf("checksums of quiet block %d are not kept", index)
	}
}

func wantSums(t testing.TB, r store.Replica, index ukai.Index, want []store.Sum) {
	t.Helper()
	got, err := r.Checksums(index)
	ok(t, err)
	if !slices.Equal(got, want) {
		t.Errorf("block %d has checksums %x, want %x", index, got, want)
	}
}

func testChecksums(t *testing.T, m Machine) {
	b := m.Open(t)
	defer closed(t, b)
	_, r := create(t, b)
	ctx := context.Background()
	wantSums(t, r, 0, nil)
	write(t, r, 0, fill(5, 3*blockSize))
	ok(t, r.Raise(ctx, 0, 2, stamp(1, 5)))
	if s, quiet := r.Quiet(0); quiet || s != stamp(1, 5) {
		t.Errorf("a block stamped %v, nothing being stable, is quiet: %v", s, quiet)
	}
	if kept, err := r.SetChecksums(ctx, 0, stamp(1, 5), sums(t, r, 0)); kept || err != nil {
		t.Errorf("checksums of a block that may be being written: kept %v, %v", kept, err)
	}
	if _, err := r.SetChecksums(ctx, 0, stamp(1, 0), nil); err == nil {
		t.Error("checksums of half a block are taken")
	}
	if _, quiet := r.Quiet(9); quiet {
		t.Error("a block that was never written is quiet")
	}
	for i := range ukai.Index(3) {
		settle(t, r, i, stamp(1, 5))
		wantSums(t, r, i, sums(t, r, i))
	}
	old := sums(t, r, 0)
	// Each change ends those of its block, and of no other.
	changes := map[string]func() error{
		"a raise":   func() error { return r.Raise(ctx, 1, 1, stamp(1, 6)) },
		"a write":   func() error { return r.WriteAt(fill(7, 4096), 2*blockSize-4096) },
		"a zero":    func() error { return r.Zero(blockSize, 4096) },
		"a discard": func() error { return r.Discard(blockSize, blockSize) },
		"a drop":    func() error { return r.DropBlock(ctx, 1) },
	}
	check := uint32(6)
	for what, change := range changes {
		settle(t, r, 1, stamp(2, check))
		check++
		before, stale := sums(t, r, 1), stamp(2, check-1)
		if _, quiet := r.Quiet(1); !quiet {
			t.Fatal("a settled block is not quiet")
		}
		if what == "a raise" {
			change = func() error { return r.Raise(ctx, 1, 1, stamp(2, check)) }
			check++
		}
		ok(t, change())
		got, err := r.Checksums(1)
		ok(t, err)
		if got != nil {
			t.Errorf("%s leaves checksums", what)
		}
		if kept, err := r.SetChecksums(ctx, 1, stale, before); kept || err != nil {
			t.Errorf("after %s the checksums of what was read before it are kept: %v, %v", what, kept, err)
		}
	}
	wantSums(t, r, 0, old)
	wantSums(t, r, 2, old)
}

func testChecksumsSurvive(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	write(t, r, 0, fill(5, 3*blockSize))
	for i := range ukai.Index(3) {
		settle(t, r, i, stamp(1, 5))
	}
	want := sums(t, r, 0)
	ok(t, r.Raise(ctx, 1, 1, stamp(1, 6)))
	ok(t, r.WriteAt(fill(9, 4096), 2*blockSize))
	m.CutPower(t, b)
	b = m.Open(t)
	defer closed(t, b)
	r = open(t, b, disk, 1)
	wantSums(t, r, 0, want)
	wantSums(t, r, 1, nil) // raised
	wantSums(t, r, 2, nil) // written in its stamp: they were gone durably before
	ok(t, r.WriteAt(fill(1, 1), 0))
	wantSums(t, r, 0, nil)
}

func testRestore(t *testing.T, m Machine) {
	b := m.Open(t)
	defer closed(t, b)
	_, r := create(t, b)
	write(t, r, 0, fill(5, blockSize))
	settle(t, r, 0, stamp(1, 5))
	want := sums(t, r, 0)
	ok(t, r.Restore(fill(5, store.SumBytes), store.SumBytes))
	wantSums(t, r, 0, want)
	wantErr(t, r.Restore(fill(5, 4096), 0), ukai.ErrInvalid)
	wantErr(t, r.Restore(fill(5, store.SumBytes), 4096), ukai.ErrInvalid)
	ok(t, r.Restore(fill(6, store.SumBytes), 0))
	wantSums(t, r, 0, nil)
	wantData(t, r, 0, fill(6, store.SumBytes))
	wantData(t, r, store.SumBytes, fill(5, blockSize-store.SumBytes))
	if s, _ := r.Stamp(0); s != stamp(1, 5) {
		t.Errorf("a restore raises the stamp to %v", s)
	}
}

func testChecksumsResize(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	ok(t, r.Shrink(ctx, size-blockSize+4096))
	last := ukai.Index(r.Size() / blockSize)
	settle(t, r, last, stamp(1, 1))
	settle(t, r, last-1, stamp(1, 1))
	ok(t, r.Resize(ctx, size-blockSize+8192))
	wantSums(t, r, last, nil)
	settle(t, r, last, stamp(1, 1))
	ok(t, r.Shrink(ctx, size-blockSize+4096))
	wantSums(t, r, last, nil)
	m.CutPower(t, b)
	b = m.Open(t)
	defer closed(t, b)
	r = open(t, b, disk, 1)
	wantSums(t, r, last, nil)
	wantSums(t, r, last-1, sums(t, r, last-1))
}
