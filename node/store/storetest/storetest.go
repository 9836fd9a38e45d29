// Package storetest holds every Backend to the contract that package store states.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"ukai"
	"ukai/node/store"
)

// Machine is a place where a store lives longer than a process.
type Machine interface {
	// Open brings the store up. Each test opens it once more after each of the calls below.
	Open(t testing.TB) store.Backend
	// Kill ends the process that has b open, without a warning.
	Kill(t testing.TB, b store.Backend)
	// Reboot gives the machine a new life of its memory. The store is not open.
	Reboot(t testing.TB)
	// CutPower kills and reboots, and loses everything volatile; lossless says that this machine cannot lose it.
	CutPower(t testing.TB, b store.Backend) (lossless bool)
}

const (
	size      = 64 << 20
	blockSize = 1 << 20
)

// Run tests the Backend of machines that start out empty.
func Run(t *testing.T, machine func(t testing.TB) Machine) {
	tests := []struct {
		name string
		test func(t *testing.T, m Machine)
	}{
		{"values are kept and deleted", testValues},
		{"batches are bounded", testBatchBounds},
		{"scan is ordered, bounded by its prefix, and of one moment", testScan},
		{"durable values survive a power cut", testDurableValues},
		{"incarnation changes with the boot only", testIncarnation},
		{"replicas are created, listed and removed", testReplicas},
		{"impossible replicas are refused", testCreateRefused},
		{"a replica is open once", testOpenOnce},
		{"data is read back", testData},
		{"ranges outside the disk are refused", testRanges},
		{"discard and zero leave zeros", testDiscard},
		{"holes are found", testSeek},
		{"stamps rise and never fall", testStamps},
		{"raised stamps survive a power cut", testStampsSurvive},
		{"concurrent raises all hold", testRaiseRace},
		{"a dropped block is as new", testDropBlock},
		{"checksums end with any change of their block", testChecksums},
		{"checksums survive a power cut, and their end does", testChecksumsSurvive},
		{"what is restored keeps its checksums", testRestore},
		{"checksums of a block that grows or shrinks end", testChecksumsResize},
		{"fence survives a power cut and never falls", testFence},
		{"header remembers", testHeader},
		{"a reboot with volatile data makes unclean", testUnclean},
		{"what was marked clean stays clean", testMarkClean},
		{"synced data survives a power cut", testSync},
		{"a killed process loses nothing", testKill},
		{"disks grow and shrink", testResize},
		{"a replica begins with what a retired one had", testAdopt},
		{"after Close all is closed", testClosed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, machine(t)) })
	}
}

func testValues(t *testing.T, m Machine) {
	b := m.Open(t)
	_, err := b.Get("a")
	wantErr(t, err, ukai.ErrNotFound)
	put(t, b, store.KV{K: "a", V: []byte("1")}, store.KV{K: "b", V: []byte{}}, store.KV{K: "c", V: []byte("3")})
	wantValue(t, b, "a", "1")
	wantValue(t, b, "b", "")
	put(t, b, store.KV{K: "a", V: []byte("2")}, store.KV{K: "b"}, store.KV{K: "never"})
	wantValue(t, b, "a", "2")
	_, err = b.Get("b")
	wantErr(t, err, ukai.ErrNotFound)

	v := []byte("mine")
	put(t, b, store.KV{K: "d", V: v})
	v[0] = 'X'
	wantValue(t, b, "d", "mine")
	got, err := b.Get("d")
	ok(t, err)
	got[0] = 'X'
	wantValue(t, b, "d", "mine")

	ok(t, b.Close())
	b = m.Open(t)
	defer closed(t, b)
	wantValue(t, b, "a", "2")
	wantValue(t, b, "c", "3")
	_, err = b.Get("b")
	wantErr(t, err, ukai.ErrNotFound)
}

func testBatchBounds(t *testing.T, m Machine) {
	b := m.Open(t)
	defer closed(t, b)
	many := make([]store.KV, store.MaxBatchKeys)
	for i := range many {
		many[i] = store.KV{K: fmt.Sprintf("%05d", i), V: []byte("v")}
	}
	put(t, b, many...)
	var large []store.KV
	for i := range store.MaxBatchBytes / store.MaxValue {
		key := fmt.Sprint(i)
		large = append(large, store.KV{K: key, V: make([]byte, store.MaxValue-len(key))})
	}
	put(t, b, large...)
	for name, kvs := range map[string][]store.KV{
		"keys":        append(many, store.KV{K: "more", V: []byte("v")}),
		"bytes":       append(large, store.KV{K: "more", V: []byte("v")}),
		"empty key":   {{K: "", V: []byte("v")}},
		"long key":    {{K: string(make([]byte, store.MaxKey+1)), V: []byte("v")}},
		"large value": {{K: "k", V: make([]byte, store.MaxValue+1)}},
	} {
		if err := b.Put(context.Background(), true, kvs...); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%s: Put = %v, want ErrInvalid", name, err)
		}
	}
	_, err := b.Get("more")
	wantErr(t, err, ukai.ErrNotFound)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantErr(t, b.Put(ctx, true, store.KV{K: "late", V: []byte("v")}), context.Canceled)
}

func testScan(t *testing.T, m Machine) {
	b := m.Open(t)
	defer closed(t, b)
	for _, k := range []string{"a/2", "b/1", "a/1", "a", "a0", "a/10", "\xff\xff"} {
		put(t, b, store.KV{K: k, V: []byte(k)})
	}
	if got, want := scan(t, b, "a/"), []string{"a/1", "a/10", "a/2"}; !slices.Equal(got, want) {
		t.Errorf("scan a/ = %q, want %q", got, want)
	}
	if got := scan(t, b, ""); len(got) != 7 {
		t.Errorf("scan of everything = %q, want 7 keys", got)
	}
	if got := scan(t, b, "\xff"); len(got) != 1 {
		t.Errorf("scan \\xff = %q, want 1 key", got)
	}
	if got := scan(t, b, "nothing"); len(got) != 0 {
		t.Errorf("scan nothing = %q, want none", got)
	}
	n, stop := 0, errors.New("stop")
	err := b.Scan("a/", func(k string, _ []byte) error {
		n++
		put(t, b, store.KV{K: "a/3", V: []byte("new")}) // f may use the Backend
		return stop
	})
	if !errors.Is(err, stop) || n != 1 {
		t.Errorf("scan went on after f's error: %d calls, %v", n, err)
	}
}

func testDurableValues(t *testing.T, m Machine) {
	b := m.Open(t)
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			for j := range 4 {
				if err := b.Put(context.Background(), true, store.KV{K: fmt.Sprintf("%d/%d", i, j), V: []byte("v")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	ok(t, b.Put(context.Background(), false, store.KV{K: "lazy", V: []byte("v")}))
	lossless := m.CutPower(t, b)
	b = m.Open(t)
	defer closed(t, b)
	if n := len(scan(t, b, "")); n < 32 {
		t.Errorf("%d of 32 durable values are left", n)
	}
	if _, err := b.Get("lazy"); !lossless && !errors.Is(err, ukai.ErrNotFound) {
		t.Errorf("a value that was never synced survived: Get = %v", err)
	}
}

func testIncarnation(t *testing.T, m Machine) {
	b := m.Open(t)
	first := b.Incarnation()
	m.Kill(t, b)
	b = m.Open(t)
	if b.Incarnation() != first {
		t.Error("the incarnation changed with the process")
	}
	ok(t, b.Close())
	m.Reboot(t)
	b = m.Open(t)
	defer closed(t, b)
	if b.Incarnation() == first {
		t.Error("the incarnation outlived the boot")
	}
}

func testReplicas(t *testing.T, m Machine) {
	b := m.Open(t)
	ctx := context.Background()
	disk, other := ukai.NewDiskID(), ukai.NewDiskID()
	cfg := store.ReplicaConfig{Size: size, BlockSize: blockSize}
	ok(t, b.Create(ctx, disk, 1, cfg))
	ok(t, b.Create(ctx, disk, 2, cfg))
	ok(t, b.Create(ctx, other, 1, cfg))
	wantErr(t, b.Create(ctx, disk, 1, cfg), ukai.ErrExists)
	r := open(t, b, disk, 1)
	write(t, r, 0, fill(1, 4096))
	ok(t, r.Raise(ctx, 0, 63, stamp(1, 1)))
	wantErr(t, b.Remove(ctx, disk, 1), ukai.ErrLocked)
	ok(t, r.Close())
	ok(t, b.Close())

	b = m.Open(t)
	infos := b.Replicas()
	if len(infos) != 3 {
		t.Fatalf("Replicas = %+v, want 3", infos)
	}
	for _, i := range infos {
		if i.Size != size || i.BlockSize != blockSize || i.Header.State != store.StateNew || i.Open || i.Broken != "" || i.Err != nil {
			t.Errorf("info %+v", i)
		}
	}
	ok(t, b.Remove(ctx, disk, 1))
	wantErr(t, b.Remove(ctx, disk, 1), ukai.ErrNotFound)
	_, err := b.OpenReplica(disk, 1)
	wantErr(t, err, ukai.ErrNotFound)
	m.Kill(t, b)
	b = m.Open(t)
	defer closed(t, b)
	if n := len(b.Replicas()); n != 2 {
		t.Errorf("%d replicas after the removal of one of 3", n)
	}
	if o := b.Orphans(); len(o) != 0 {
		t.Errorf("orphans %q", o)
	}
	// The same id again, which nobody does, must at least not show anything of the first.
	ok(t, b.Create(ctx, disk, 1, cfg))
	r = open(t, b, disk, 1)
	if n := r.Newer(ukai.BlockStamp{}); len(n) != 0 {
		t.Errorf("%d stamps in a new replica", len(n))
	}
	wantData(t, r, 0, make([]byte, 4096))
}

func testCreateRefused(t *testing.T, m Machine) {
	b := m.Open(t)
	defer closed(t, b)
	ctx := context.Background()
	good := store.ReplicaConfig{Size: size, BlockSize: blockSize}
	wantErr(t, b.Create(ctx, ukai.DiskID{}, 1, good), ukai.ErrInvalid)
	wantErr(t, b.Create(ctx, ukai.NewDiskID(), 0, good), ukai.ErrInvalid)
	wantErr(t, b.Create(ctx, ukai.NewDiskID(), 1, store.ReplicaConfig{Size: 1000, BlockSize: blockSize}), ukai.ErrInvalid)
	wantErr(t, b.Create(ctx, ukai.NewDiskID(), 1, store.ReplicaConfig{Size: size, BlockSize: 1000}), ukai.ErrInvalid)
	if n := len(b.Replicas()); n != 0 {
		t.Errorf("%d replicas", n)
	}
}

func testOpenOnce(t *testing.T, m Machine) {
	b := m.Open(t)
	defer closed(t, b)
	_, err := b.OpenReplica(ukai.NewDiskID(), 1)
	wantErr(t, err, ukai.ErrNotFound)
	disk, r := create(t, b)
	_, err = b.OpenReplica(disk, 1)
	wantErr(t, err, ukai.ErrLocked)
	if !b.Replicas()[0].Open {
		t.Error("Replicas does not show that it is open")
	}
	ok(t, r.Close())
	ok(t, r.Close())
	ok(t, open(t, b, disk, 1).Close())
}

func testData(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	if r.Size() != size || r.BlockSize() != blockSize {
		t.Errorf("size %d, block size %d", r.Size(), r.BlockSize())
	}
	rng := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, size)
	for range 200 {
		n := 1 + rng.IntN(3*4096)
		off := rng.IntN(1<<20 - n)
		if rng.IntN(4) == 0 {
			off = rng.IntN(size - n)
		}
		copy(want[off:], fill(byte(rng.IntN(255)+1), n))
		write(t, r, int64(off), want[off:off+n])
		at := rng.IntN(size - 8192)
		wantData(t, r, int64(at), want[at:at+8192])
	}
	write(t, r, size-1, []byte{9})
	want[size-1] = 9
	const far = size - 1<<20 // what is in between was sampled
	wantData(t, r, 0, want[:1<<20])
	stored := make([]byte, 1<<20) // most of it is not on the device yet
	ok(t, r.ReadStored(stored, 0))
	if !bytes.Equal(stored, want[:1<<20]) {
		t.Error("what is stored is not what was written")
	}
	wantData(t, r, far, want[far:])
	ok(t, b.Close())
	b = m.Open(t)
	defer closed(t, b)
	r = open(t, b, disk, 1)
	wantData(t, r, 0, want[:1<<20])
	wantData(t, r, far, want[far:])
}

func testRanges(t *testing.T, m Machine) {
	b := m.Open(t)
	defer closed(t, b)
	_, r := create(t, b)
	ctx := context.Background()
	p := make([]byte, 4096)
	ok(t, r.ReadAt(nil, size))
	ok(t, r.Discard(size, 0))
	for _, off := range []int64{-1, size - 4095, size, size + 1, 1<<63 - 1} {
		wantErr(t, r.ReadAt(p, off), ukai.ErrInvalid)
		wantErr(t, r.WriteAt(p, off), ukai.ErrInvalid)
		wantErr(t, r.Discard(off, 4096), ukai.ErrInvalid)
		wantErr(t, r.Zero(off, 4096), ukai.ErrInvalid)
	}
	wantErr(t, r.Discard(0, -1), ukai.ErrInvalid)
	_, err := r.NextData(-1)
	wantErr(t, err, ukai.ErrInvalid)
	wantErr(t, r.Raise(ctx, 0, size/blockSize, stamp(1, 1)), ukai.ErrInvalid)
	wantErr(t, r.Raise(ctx, 2, 1, stamp(1, 1)), ukai.ErrInvalid)
	wantErr(t, r.DropBlock(ctx, size/blockSize), ukai.ErrInvalid)
	if _, has := r.Stamp(1 << 60); has {
		t.Error("a block far outside has a stamp")
	}
}

func testDiscard(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	want := fill(7, 1<<20)
	write(t, r, 0, want)
	ok(t, r.Raise(ctx, 0, 0, stamp(1, 1)))
	before := r.AllocatedBytes()
	for _, cut := range [][2]int64{{4096, 8192}, {20000, 100}, {50000, 50000}, {4096*20 + 512, 4096 * 3}, {1<<20 - 512, 512}} {
		ok(t, r.Discard(cut[0], cut[1]))
		clear(want[cut[0] : cut[0]+cut[1]])
		wantData(t, r, 0, want)
	}
	ok(t, r.Zero(300000, 200000))
	clear(want[300000:500000])
	wantData(t, r, 0, want)
	if after := r.AllocatedBytes(); before != 0 && after > before-200000 {
		t.Errorf("%d bytes allocated before, %d after discarding", before, after)
	}
	ok(t, r.Discard(0, size)) // far more than there is
	clear(want)
	wantData(t, r, 0, want)
	if _, has := r.Stamp(0); !has {
		t.Error("the stamp went with the data")
	}
	ok(t, b.Close())
	b = m.Open(t)
	defer closed(t, b)
	wantData(t, open(t, b, disk, 1), 0, want)
}

func testSeek(t *testing.T, m Machine) {
	b := m.Open(t)
	defer closed(t, b)
	_, r := create(t, b)
	seek := func(what string, f func(int64) (int64, error), off, want int64) {
		t.Helper()
		if got, err := f(off); err != nil || got != want {
			t.Errorf("Next%s(%d) = %d, %v, want %d", what, off, got, err, want)
		}
	}
	seek("Data", r.NextData, 0, size)
	seek("Hole", r.NextHole, 5, 5)
	write(t, r, 8<<20, fill(1, 1<<20))
	write(t, r, 40<<20, fill(1, 1<<20))
	ok(t, r.Sync(context.Background()))
	seek("Data", r.NextData, 0, 8<<20)
	seek("Data", r.NextData, 8<<20+77, 8<<20+77)
	seek("Hole", r.NextHole, 8<<20+77, 9<<20)
	seek("Data", r.NextData, 9<<20, 40<<20)
	seek("Hole", r.NextHole, 9<<20, 9<<20)
	seek("Data", r.NextData, 41<<20, size)
	seek("Data", r.NextData, size, size)
	seek("Hole", r.NextHole, size+5, size)
	write(t, r, size-4096, fill(1, 4096))
	seek("Hole", r.NextHole, size-4096, size)
}
