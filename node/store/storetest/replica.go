package storetest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"ukai"
	"ukai/node/store"
)

func testStamps(t *testing.T, m Machine) {
	b := m.Open(t)
	defer closed(t, b)
	_, r := create(t, b)
	ctx := context.Background()
	if _, has := r.Stamp(3); has {
		t.Error("a block that was never written has a stamp")
	}
	ok(t, r.Raise(ctx, 3, 5, stamp(2, 7)))
	ok(t, r.Raise(ctx, 5, 5, stamp(3, 0)))
	ok(t, r.Raise(ctx, 4, 9, stamp(2, 9)))
	ok(t, r.Raise(ctx, 3, 9, stamp(1, 99))) // lower everywhere
	want := map[ukai.Index]ukai.BlockStamp{3: stamp(2, 7), 4: stamp(2, 9), 5: stamp(3, 0), 6: stamp(2, 9), 9: stamp(2, 9)}
	for i, s := range want {
		if got, has := r.Stamp(i); !has || got != s {
			t.Errorf("Stamp(%d) = %v, %v, want %v", i, got, has, s)
		}
	}
	newer := func(than ukai.BlockStamp, want ...ukai.Index) {
		t.Helper()
		got := r.Newer(than)
		if len(got) != len(want) {
			t.Fatalf("Newer(%v) = %v, want blocks %v", than, got, want)
		}
		for i := range got {
			if s, _ := r.Stamp(got[i].Index); got[i].Index != want[i] || got[i].Stamp != s {
				t.Errorf("Newer(%v)[%d] = %v, want block %d", than, i, got[i], want[i])
			}
		}
	}
	newer(ukai.BlockStamp{}, 3, 4, 5, 6, 7, 8, 9)
	newer(stamp(2, 7), 4, 5, 6, 7, 8, 9)
	newer(stamp(2, 9), 5)
	newer(stamp(3, 0))
}

func testStampsSurvive(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	ok(t, r.Raise(ctx, 0, 63, stamp(1, 1)))
	ok(t, r.Raise(ctx, 10, 20, stamp(1, 2)))
	ok(t, r.Raise(ctx, 15, 15, stamp(ukai.NewEpoch(3, 1), 1<<32-1)))
	m.CutPower(t, b)
	b = m.Open(t)
	defer closed(t, b)
	r = open(t, b, disk, 1)
	for i := range ukai.Index(64) {
		want := stamp(1, 1)
		if i >= 10 && i <= 20 {
			want = stamp(1, 2)
		}
		if i == 15 {
			want = stamp(ukai.NewEpoch(3, 1), 1<<32-1)
		}
		if got, has := r.Stamp(i); !has || got != want {
			t.Errorf("Stamp(%d) = %v, %v, want %v", i, got, has, want)
		}
	}
}

func testRaiseRace(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	var g sync.WaitGroup
	want := make([]ukai.BlockStamp, 64)
	var mu sync.Mutex
	for w := range 8 {
		g.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 0))
			for range 10 {
				from := ukai.Index(rng.IntN(64))
				to := min(63, from+ukai.Index(rng.IntN(4)))
				s := stamp(ukai.Epoch(1+rng.IntN(3)), uint32(rng.IntN(5)))
				if err := r.Raise(context.Background(), from, to, s); err != nil {
					t.Error(err)
				}
				for i := from; i <= to; i++ {
					if got, has := r.Stamp(i); !has || got.Less(s) {
						t.Errorf("block %d: stamp %v, %v after Raise to %v", i, got, has, s)
					}
					mu.Lock()
					if want[i].Less(s) {
						want[i] = s
					}
					mu.Unlock()
				}
			}
		})
	}
	g.Wait()
	m.CutPower(t, b)
	b = m.Open(t)
	defer closed(t, b)
	r = open(t, b, disk, 1)
	for i, s := range want {
		if got, _ := r.Stamp(ukai.Index(i)); got != s {
			t.Errorf("block %d: stamp %v is what is durable, %v the highest that was raised", i, got, s)
		}
	}
}

func testDropBlock(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	ok(t, r.Raise(ctx, 0, 2, stamp(1, 1)))
	write(t, r, 0, fill(5, 3*blockSize))
	ok(t, r.DropBlock(ctx, 1))
	ok(t, r.DropBlock(ctx, 7)) // was never written
	check := func() {
		t.Helper()
		if _, has := r.Stamp(1); has || len(r.Newer(ukai.BlockStamp{})) != 2 {
			t.Errorf("stamps after the drop: %v", r.Newer(ukai.BlockStamp{}))
		}
		wantData(t, r, 0, fill(5, blockSize))
		wantData(t, r, blockSize, make([]byte, blockSize))
		wantData(t, r, 2*blockSize, fill(5, blockSize))
	}
	check()
	ok(t, b.Close())
	b = m.Open(t)
	defer closed(t, b)
	r = open(t, b, disk, 1)
	check()
	ok(t, r.Raise(ctx, 1, 1, stamp(1, 0)))
	if s, has := r.Stamp(1); !has || s != stamp(1, 0) {
		t.Errorf("stamp of the block written anew: %v, %v", s, has)
	}
}

func testFence(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	ok(t, r.SetFence(ctx, 5))
	ok(t, r.SetFence(ctx, 5))
	err := r.SetFence(ctx, 4)
	wantErr(t, err, ukai.ErrFenced)
	if fenced := (*ukai.FencedError)(nil); !errors.As(err, &fenced) || fenced.Epoch != 5 {
		t.Errorf("%v does not name epoch 5", err)
	}
	ok(t, r.SetFence(ctx, ukai.NewEpoch(1, 6)))
	m.CutPower(t, b)
	b = m.Open(t)
	defer closed(t, b)
	r = open(t, b, disk, 1)
	if h := r.Header(); h.Fence != ukai.NewEpoch(1, 6) || h.State != store.StateOpen {
		t.Errorf("header %+v", h)
	}
}

func testHeader(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	if h := r.Header(); h != (store.Header{}) {
		t.Errorf("header of a new replica %+v", h)
	}
	ok(t, r.SetStable(stamp(2, 3), false))
	ok(t, r.SetStable(stamp(2, 2), false))
	ok(t, r.SetVersion(8))
	ok(t, r.SetVersion(7))
	want := store.Header{Stable: stamp(2, 3), Version: 8}
	if h := r.Header(); h != want {
		t.Errorf("header %+v, want %+v", h, want)
	}
	ok(t, b.Close())
	b = m.Open(t)
	r = open(t, b, disk, 1)
	if h := r.Header(); h != want {
		t.Errorf("header %+v, want %+v", h, want)
	}
	ok(t, r.SetState(ctx, store.StateRetired))
	wantErr(t, r.SetFence(ctx, 9), ukai.ErrRejected)
	wantErr(t, r.SetState(ctx, store.StateOpen), ukai.ErrRejected)
	wantErr(t, r.SetState(ctx, 77), ukai.ErrInvalid)
	m.CutPower(t, b)
	b = m.Open(t)
	defer closed(t, b)
	if h := b.Replicas()[0].Header; h.State != store.StateRetired || h.Stable != want.Stable {
		t.Errorf("header %+v", h)
	}
}

func testUnclean(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	write(t, r, 0, fill(1, 4096))
	if r.Header().Incarnation != b.Incarnation() {
		t.Error("the header does not name the incarnation it was written in")
	}
	m.Kill(t, b)
	b = m.Open(t)
	r = open(t, b, disk, 1)
	if r.Header().Unclean {
		t.Error("the death of a process made it unclean")
	}
	m.CutPower(t, b)
	for range 2 { // and it stays so
		b = m.Open(t)
		r = open(t, b, disk, 1)
		if h := r.Header(); !h.Unclean || h.Incarnation != b.Incarnation() {
			t.Errorf("header after a power cut %+v", h)
		}
		m.CutPower(t, b)
	}
	b = m.Open(t)
	r = open(t, b, disk, 1)
	ok(t, r.SetStable(ukai.BlockStamp{}, true))
	if r.Header().Unclean {
		t.Error("SetStable did not clear unclean")
	}
	ok(t, r.SetFence(ctx, 1)) // makes the lazy change durable
	ok(t, b.Close())
	m.Reboot(t)
	b = m.Open(t)
	defer closed(t, b)
	if open(t, b, disk, 1).Header().Unclean {
		t.Error("a clean shutdown made it unclean")
	}
}

func testMarkClean(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	ok(t, r.MarkClean(ctx))
	write(t, r, 0, fill(1, 4096))
	ok(t, r.MarkClean(ctx))
	m.CutPower(t, b)
	b = m.Open(t)
	r = open(t, b, disk, 1)
	if r.Header().Unclean {
		t.Error("a power cut after MarkClean made it unclean")
	}
	wantData(t, r, 0, fill(1, 4096))
	for name, change := range map[string]func() error{
		"write":   func() error { return r.WriteAt(fill(2, 512), 0) },
		"discard": func() error { return r.Discard(0, 512) },
		"zero":    func() error { return r.Zero(0, 512) },
	} {
		ok(t, r.SetStable(ukai.BlockStamp{}, true))
		ok(t, r.MarkClean(ctx))
		ok(t, change())
		m.CutPower(t, b)
		b = m.Open(t)
		if r = open(t, b, disk, 1); !r.Header().Unclean {
			t.Errorf("a power cut after a %s is not noticed", name)
		}
	}
	// Writers and cleaners at once: whoever comes last decides.
	var g sync.WaitGroup
	for i := range 4 {
		g.Go(func() {
			for j := range 20 {
				if err := r.WriteAt(fill(byte(j+1), 512), int64(i)*512); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		ok(t, r.MarkClean(ctx))
	}
	g.Wait()
	ok(t, r.MarkClean(ctx))
	m.CutPower(t, b)
	b = m.Open(t)
	defer closed(t, b)
	wantData(t, open(t, b, disk, 1), 0, fill(20, 2048))
}

func testSync(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	old := fill(1, 64<<10)
	write(t, r, 0, old)
	ok(t, r.Sync(ctx))
	ok(t, r.Sync(ctx))
	write(t, r, 0, fill(2, 4096))
	ok(t, r.Discard(8192, 8192))
	lossless := m.CutPower(t, b)
	b = m.Open(t)
	r = open(t, b, disk, 1)
	if !lossless {
		wantData(t, r, 0, old)
	} else {
		wantData(t, r, 16384, old[16384:])
	}
	// Writers that each sync what they wrote.
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			for j := range 5 {
				if err := errors.Join(r.WriteAt(fill(byte(j+1), 4096), int64(i)*4096), r.Sync(ctx)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	m.CutPower(t, b)
	b = m.Open(t)
	defer closed(t, b)
	wantData(t, open(t, b, disk, 1), 0, fill(5, 8*4096))
}

func testKill(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	write(t, r, 4096, fill(3, 8192))
	ok(t, r.Discard(4096, 4096))
	ok(t, r.SetStable(stamp(1, 1), false))
	ok(t, b.Put(context.Background(), false, store.KV{K: "lazy", V: []byte("v")}))
	m.Kill(t, b)
	b = m.Open(t)
	defer closed(t, b)
	wantValue(t, b, "lazy", "v")
	r = open(t, b, disk, 1)
	wantData(t, r, 0, append(make([]byte, 8192), fill(3, 4096)...))
	if h := r.Header(); h.Stable != stamp(1, 1) || h.Unclean {
		t.Errorf("header %+v", h)
	}
}

func testResize(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	wantErr(t, r.Resize(ctx, size-4096), ukai.ErrInvalid)
	wantErr(t, r.Resize(ctx, size+1), ukai.ErrInvalid)
	wantErr(t, r.Shrink(ctx, 2*size), ukai.ErrInvalid)
	write(t, r, size-4096, fill(4, 4096))
	ok(t, r.Raise(ctx, 63, 63, stamp(1, 1)))
	ok(t, r.Resize(ctx, 2*size))
	write(t, r, 2*size-4096, fill(5, 4096))
	ok(t, r.Raise(ctx, 127, 127, stamp(1, 1)))
	m.Kill(t, b)
	b = m.Open(t)
	r = open(t, b, disk, 1)
	if r.Size() != 2*size || b.Replicas()[0].Size != 2*size {
		t.Errorf("size %d after the growth", r.Size())
	}
	wantData(t, r, size-4096, append(fill(4, 4096), make([]byte, 4096)...))
	wantData(t, r, 2*size-4096, fill(5, 4096))
	ok(t, r.Shrink(ctx, size))
	ok(t, r.Resize(ctx, 2*size))
	if _, has := r.Stamp(127); has {
		t.Error("a stamp beyond the cut came back")
	}
	m.Kill(t, b)
	b = m.Open(t)
	defer closed(t, b)
	r = open(t, b, disk, 1)
	wantData(t, r, 2*size-4096, make([]byte, 4096))
	wantData(t, r, size-4096, fill(4, 4096))
	if n := r.Newer(ukai.BlockStamp{}); len(n) != 1 || n[0].Index != 63 {
		t.Errorf("stamps %v, want that of block 63", n)
	}
}

func testClosed(t *testing.T, m Machine) {
	b := m.Open(t)
	disk, r := create(t, b)
	ctx := context.Background()
	ok(t, b.Close())
	ok(t, b.Close())
	wantErr(t, r.WriteAt(make([]byte, 512), 0), ukai.ErrClosed)
	wantErr(t, r.ReadAt(make([]byte, 512), 0), ukai.ErrClosed)
	wantErr(t, r.Discard(0, 512), ukai.ErrClosed)
	wantErr(t, r.Sync(ctx), ukai.ErrClosed)
	wantErr(t, r.Raise(ctx, 0, 0, stamp(1, 1)), ukai.ErrClosed)
	wantErr(t, r.SetFence(ctx, 1), ukai.ErrClosed)
	wantErr(t, r.SetStable(stamp(1, 1), false), ukai.ErrClosed)
	wantErr(t, r.MarkClean(ctx), ukai.ErrClosed)
	wantErr(t, r.Resize(ctx, 2*size), ukai.ErrClosed)
	_, err := r.NextData(0)
	wantErr(t, err, ukai.ErrClosed)
	wantErr(t, b.Put(ctx, true, store.KV{K: "k", V: []byte("v")}), ukai.ErrClosed)
	_, err = b.Get("k")
	wantErr(t, err, ukai.ErrClosed)
	wantErr(t, b.Create(ctx, disk, 2, store.ReplicaConfig{Size: size, BlockSize: blockSize}), ukai.ErrClosed)
	_, err = b.OpenReplica(disk, 1)
	wantErr(t, err, ukai.ErrClosed)
	wantErr(t, b.Remove(ctx, disk, 1), ukai.ErrClosed)
}

// What the tests say in a word.

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want one that is %q", err, want)
	}
}

func closed(t testing.TB, b store.Backend) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func put(t testing.TB, b store.Backend, kvs ...store.KV) {
	t.Helper()
	ok(t, b.Put(context.Background(), true, kvs...))
}

func wantValue(t testing.TB, b store.Backend, key, want string) {
	t.Helper()
	if v, err := b.Get(key); err != nil || string(v) != want || v == nil {
		t.Errorf("Get(%q) = %q, %v, want %q", key, v, err, want)
	}
}

func scan(t testing.TB, b store.Backend, prefix string) (keys []string) {
	t.Helper()
	ok(t, b.Scan(prefix, func(k string, _ []byte) error {
		keys = append(keys, k)
		return nil
	}))
	return keys
}

func create(t testing.TB, b store.Backend) (ukai.DiskID, store.Replica) {
	t.Helper()
	disk := ukai.NewDiskID()
	ok(t, b.Create(context.Background(), disk, 1, store.ReplicaConfig{Size: size, BlockSize: blockSize}))
	return disk, open(t, b, disk, 1)
}

func open(t testing.TB, b store.Backend, disk ukai.DiskID, rid ukai.ReplicaID) store.Replica {
	t.Helper()
	r, err := b.OpenReplica(disk, rid)
	ok(t, err)
	return r
}

func write(t testing.TB, r store.Replica, off int64, p []byte) {
	t.Helper()
	ok(t, r.WriteAt(p, off))
}

func wantData(t testing.TB, r store.Replica, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	ok(t, r.ReadAt(got, off))
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d is %d, want %d", off+int64(i), got[i], want[i])
			}
		}
	}
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func stamp(epoch ukai.Epoch, check uint32) ukai.BlockStamp {
	return ukai.BlockStamp{Epoch: epoch, Check: check}
}
