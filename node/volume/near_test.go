package volume

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

func TestBlocksAreComparedInTheOrderInWhichTheyAreUsed(t *testing.T) {
	var heat [HeatParts]uint32
	heat[0], heat[200], heat[100], heat[101] = 1, 9, 5, 7
	const blocks = 512
	f := follow{mode: informed, blockSize: ukai.ChunkSize, size: blocks * ukai.ChunkSize}
	for i := range ukai.Index(blocks) {
		f.dirty.add(i)
	}
	f.rewind(hottest(&heat, f.size, f.blockSize))
	var got []ukai.Index
	for {
		i, ok := f.take()
		if !ok {
			break
		}
		f.leave(i)
		f.dirty.remove(i)
		if got = append(got, i); len(got) == 2 {
			for range 2 {
				f.has(300, 300*ukai.ChunkSize, 300*ukai.ChunkSize+512) // a guest reads it
			}
		}
	}
	if first := []ukai.Index{400, 401, 300, 202, 203, 200, 201, 0, 1, 2}; len(got) != blocks || !slices.Equal(got[:len(first)], first) {
		t.Errorf("%d blocks, first %v", len(got), got[:12])
	}
	if spans := hottest(&heat, 4<<20, 1<<20); spans[0] != (span{3, 4}) || len(spans) != 4 {
		t.Errorf("with blocks larger than parts: %v", spans)
	}
}

// noCopies has no copy ever begin, as over a link whose budget is zero.
func noCopies(c *Config) {
	c.Budget = func(ctx context.Context, _ ukai.DiskID, _, _ ukai.NodeID, _ int64) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
}

// A successor seals no replica that only follows. If the holder before reads one on its node, nothing but its lease ends that.
func TestADeposedHolderReadsNothingStaleFromAReplicaThatFollows(t *testing.T) {
	const size = 16 << 20
	bubble(t, setup{nodes: 3, replicas: 2, size: size}, func(w *world) {
		w.attach(1)
		w.write(1, 0, fill(512, 1))
		w.flush(1)
		if err := w.d(1).holding.Load().checkpointNow(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		stable := w.d(1).holding.Load().stable
		for w.nodes[0].mem.Replicas()[0].Header.Stable.Less(stable) {
			time.Sleep(100 * time.Millisecond)
		}
		w.nodes[0].kill()
		w.write(1, 8<<20, fill(1<<20, 2)) // which that on node 0 lacks
		w.detach(1)
		w.nodes[0].boot(noCopies)
		w.setClosed(0, false)
		w.attach(0)
		h := w.d(0).holding.Load()
		for begin := time.Now(); h.view.Load().near == nil || !h.view.Load().near.readable(0, 512); time.Sleep(100 * time.Millisecond) {
			if time.Since(begin) > time.Minute {
				t.Fatal("nothing can be read of the replica that follows")
			}
		}
		if rec := w.cells.record(); rec.Groups[0].Count(crdt.InSync) != 1 {
			t.Fatalf("%+v", rec.Groups)
		}
		w.wantRead(0, 0, fill(512, 1))
		w.wantRead(0, 8<<20, fill(512, 2))
		w.isolate([]int{0}, []int{1, 2}, true)
		w.cells.set(func(c *testCells) { c.down = map[int]bool{0: true} })
		p := make([]byte, 512)
		if err := <-w.reading(0, 0, p); err != nil || p[0] != 1 {
			t.Errorf("the lease holds, and a read of what is here gets %d: %v", p[0], err)
		}
		w.mu.Lock()
		w.dead[0] = true // its successor loses no time by asking it
		w.mu.Unlock()
		w.attach(1)
		w.write(1, 0, fill(512, 3))
		read := w.reading(0, 0, p)
		wantWaiting(t, "a read of the deposed holder from the replica that follows", read, 30*time.Second)
		w.cells.set(func(c *testCells) { c.down = nil })
		w.isolate([]int{0}, []int{1, 2}, false)
		if err := <-read; !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("read: %v, got %d", err, p[0])
		}
	})
}

// readable says whether a range is read from the replica.
func (f *following) readable(off, end int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.has(0, off, end)
}

func TestATakeoverWaitsForTheLeaseIfAReplicaFollowsOnAnotherNode(t *testing.T) {
	for _, test := range []struct {
		on     byte
		forced bool
		waits  bool
	}{{2, false, true}, {1, false, false}, {0, true, true}} { // by node 1; a pick drops who follows from the record
		rec := record(1, 3)
		rec.Holder = ukai.NodeID{1}
		if test.on != 0 {
			rec.Groups[0].Members = append(rec.Groups[0].Members, crdt.Member{Replica: 9, Node: ukai.NodeID{test.on}, Role: crdt.Syncing})
		}
		if test.forced {
			rec.Epoch = ukai.NewEpoch(1, 7)
		}
		tk := newTakeover(rec, 0)
		for _, m := range tk.members() {
			tk.onSealed(10*time.Second, 9*time.Second, m, sealReply{Quiet: time.Second})
		}
		want := time.Duration(0)
		if test.waits {
			want = 9*time.Second + leaseWait
		}
		if got := tk.leaseEnds(false); got != want {
			t.Errorf("%+v: the lease ends at %v, want %v", test, got, want)
		}
	}
}

// A copy of zeros waits for room, while the guest writes to a part of them, and reads it, which gives it to the replica.
func TestZerosAreNotCopiedOverWhatAGuestHasReadMeanwhile(t *testing.T) {
	const size = 16 << 20
	bubble(t, setup{nodes: 3, replicas: 2, size: size}, func(w *world) {
		w.attach(1)
		w.write(1, 8<<20, fill(1<<20, 2))
		w.flush(1)
		w.nodes[0].kill()
		if err := w.d(1).Discard(w.t.Context(), 8<<20, 1<<20); err != nil {
			t.Fatal(err)
		}
		w.detach(1)
		w.nodes[0].boot(nil)
		w.setClosed(0, false)
		w.setDelay(1, 200*time.Millisecond)
		w.attach(0)
		c := w.nodes[0].host.Load().copies
		index := ukai.Index(8 << 20 / int64(testBlock))
		for begin := time.Now(); ; time.Sleep(time.Millisecond) {
			c.mu.Lock()
			in := c.bound.Inflight()
			c.mu.Unlock()
			if in > 0 {
				break // comparing
			}
			if time.Since(begin) > time.Minute {
				t.Fatal("nothing is compared")
			}
		}
		c.turn <- struct{}{}
		h := w.d(0).holding.Load()
		for begin := time.Now(); ; time.Sleep(time.Millisecond) {
			h.mu.Lock()
			f := h.following
			h.mu.Unlock()
			f.mu.Lock()
			k := f.state.work[index]
			ok := k != nil && k.zero.has(0) && k.zero.has(1)
			f.mu.Unlock()
			if ok {
				break
			}
			if time.Since(begin) > time.Minute {
				t.Fatal("not compared")
			}
		}
		time.Sleep(10 * time.Millisecond) // the copy of zeros waits for room
		w.write(0, 8<<20, fill(4096, 7))
		w.wantRead(0, 8<<20, fill(4096, 7))
		<-c.turn
		time.Sleep(time.Second)
		w.wantRead(0, 8<<20, fill(4096, 7))
		w.awaitAllInSync()
		w.wantEqual()
	})
}

// A read looks whether the replica follows its block, and waits for the range. Meanwhile the block gets a group of its own, and a write to it.
func TestAReplicaIsNotReadInABlockThatItHasCeasedToFollow(t *testing.T) {
	const size = 16 << 20
	bubble(t, setup{nodes: 3, replicas: 2, size: size}, func(w *world) {
		w.attach(1)
		w.write(1, 0, fill(512, 1))
		time.Sleep(checkpointEvery + 3*time.Second)
		w.nodes[0].kill()
		w.write(1, 8<<20, fill(1<<20, 2)) // which that on node 0 lacks
		w.detach(1)
		w.nodes[0].boot(noCopies)
		w.setClosed(0, false)
		w.attach(0)
		h := w.d(0).holding.Load()
		var f *following
		for begin := time.Now(); f == nil || !f.readable(0, 512); time.Sleep(100 * time.Millisecond) {
			if f = h.view.Load().near; time.Since(begin) > time.Minute {
				t.Fatal("nothing can be read of the replica that follows")
			}
		}
		p := make([]byte, 512)
		serve := func() bool {
			c := &claim{index: 0, end: 512}
			if err := h.locks.lock(w.t.Context(), c); err != nil {
				t.Fatal(err)
			}
			defer h.locks.unlock(c)
			done, err := f.serve(w.t.Context(), c, p, 0)
			if err != nil {
				t.Fatal(err)
			}
			return done
		}
		if !serve() || p[0] != 1 {
			t.Fatalf("not read, or %d: this shows nothing", p[0])
		}
		if err := w.d(0).Split(w.t.Context(), 0, []ukai.Range{{First: 0, Count: 1}}, 1); err != nil {
			t.Fatal(err)
		}
		w.write(0, 0, fill(512, 3))
		if serve() && p[0] != 3 {
			t.Errorf("read %d, which was overwritten", p[0])
		}
	})
}
