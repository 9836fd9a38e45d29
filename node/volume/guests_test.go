package volume

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/pace"
)

// The node is one whose links carry all of it together: what is copied makes what the guest sends slower.
func TestGuestHardlyFeelsThatAReplicaIsBroughtUpToDate(t *testing.T) {
	const size, hot = 96 << 20, 1 << 20
	bubble(t, setup{nodes: 3, replicas: 3, size: size}, func(w *world) {
		w.attach(0)
		w.nodes[2].kill()
		for off := int64(hot); off < size; off += 1 << 20 {
			w.write(0, off, fill(1<<20, byte(off>>20)))
		}
		c := w.nodes[0].host.Load().copies
		w.mu.Lock()
		w.delay = func(int, int) time.Duration {
			c.mu.Lock()
			defer c.mu.Unlock()
			// Without copies from 1 to 1.25 ms, and with one of every 256 KiB a millisecond more.
			return time.Millisecond + time.Duration(rand.N(250))*time.Microsecond + time.Duration(c.bound.Inflight()*int64(time.Millisecond)/copyBytes)
		}
		w.mu.Unlock()
		guest := func(until func() bool) (took []time.Duration) {
			for n := int64(0); !until(); n++ {
				began := time.Now()
				w.write(0, n*4096%hot, fill(4096, byte(n)))
				took = append(took, time.Since(began))
			}
			return took
		}
		p99 := func(took []time.Duration) time.Duration {
			slices.Sort(took)
			return took[len(took)*99/100]
		}
		began := time.Now()
		alone := p99(guest(func() bool { return time.Since(began) > 10*time.Second }))
		w.nodes[2].restart(false)
		began = time.Now()
		beside := guest(func() bool {
			rec := w.cells.record()
			return rec.Groups[0].Count(crdt.InSync) == 3
		})
		took := time.Since(began)
		if p := p99(beside); p > 2*alone {
			t.Errorf("99 of 100 writes take %v without copies, and %v beside them", alone, p)
		}
		if most := time.Duration(size/int64(pace.FloorRate)) * time.Second; took > most {
			t.Errorf("it took %v, though copies always have %d bytes per second", took, pace.FloorRate)
		}
		t.Logf("p99 %v alone; beside copies %v, for %v", alone, p99(beside), took)
		w.wantReturn(2)
	})
}

func TestAnIdleGuestDoesNotSlowCopies(t *testing.T) {
	const size = 96 << 20
	bubble(t, setup{nodes: 3, replicas: 2, size: size}, func(w *world) {
		w.attach(0)
		w.nodes[1].kill()
		for off := int64(0); off < size; off += 1 << 20 {
			w.write(0, off, fill(1<<20, byte(off>>20)))
		}
		time.Sleep(5 * time.Second)
		w.nodes[1].restart(false)
		began := time.Now()
		w.wantReturn(1)
		// 96 MiB by 2 MiB each two or three round trips of 200 us are 50 ms; the rest is what it takes to find out that the node is back.
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
		c := w.nodes[0].host.Load().copies
		c.mu.Lock()
		defer c.mu.Unlock()
		if got := c.bound.Window(); got != pace.MaxWindow {
			t.Errorf("the window is %d", got)
		}
	})
}

// What a request of a guest costs more for it: a few nanoseconds, and no memory.
func BenchmarkFelt(b *testing.B) {
	for _, quiet := range []bool{true, false} {
		b.Run(fmt.Sprint("quiet=", quiet), func(b *testing.B) {
			d := &Disk{host: &Host{copies: newCopies()}}
			if d.record(); !quiet {
				d.host.copies.quiet.Store(0)
			}
			began := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				d.felt(feltWrite, 4096, began, time.Millisecond)
			}
		})
	}
}

func TestToNoteWhatAGuestFeelsTakesNoMemory(t *testing.T) {
	d := &Disk{host: &Host{copies: newCopies()}}
	for range 2 {
		if n := testing.AllocsPerRun(100, func() { d.felt(feltRead, 4096, time.Now(), time.Millisecond) }); n > 0 {
			t.Errorf("%v allocations per request", n)
		}
		d.host.copies.quiet.Store(0)
	}
}

// A write that hangs keeps a copy from its range; that copy must not keep others from being made.
func TestACopyThatWaitsForItsRangeGivesItsRoomToOthers(t *testing.T) {
	e := new(told)
	bubble(t, setup{nodes: 3, replicas: 2, host: e.host}, func(w *world) {
		w.resyncing(2, 0, 4, time.Millisecond)
		host, h := w.nodes[2].host.Load(), w.d(2).holding.Load()
		underWay := func() bool {
			host.copies.mu.Lock()
			defer host.copies.mu.Unlock()
			return host.copies.bound.Inflight() > 0
		}
		for begin := time.Now(); !underWay(); time.Sleep(100 * time.Microsecond) { // comparing
			if time.Since(begin) > time.Minute {
				t.Fatal("nothing is compared")
			}
		}
		var locked []*claim
		for b := range int64(4) {
			c := &claim{index: ukai.Index(b), off: b * testBlock, end: (b + 1) * testBlock, exclusive: true}
			if err := h.locks.lock(w.t.Context(), c); err != nil {
				t.Fatal(err)
			}
			locked = append(locked, c)
		}
		time.Sleep(roomFor / 2)
		if !underWay() {
			t.Fatal("no copy waits for its range: this shows nothing")
		}
		ctx, cancel := context.WithTimeout(w.t.Context(), 3*roomFor)
		defer cancel()
		release, err := host.room(ctx, pace.MaxWindow) // as much as there is
		if err != nil {
			t.Fatalf("no room while a range is locked: %v", err)
		}
		release()
		for _, c := range locked {
			h.locks.unlock(c)
		}
		w.wantReturn(0)
		if failed := e.of(ResyncFailed); len(failed) > 0 {
			t.Errorf("the resync was given up meanwhile: %+v", failed)
		}
	})
}
