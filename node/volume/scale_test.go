package volume

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// All of them wait for a replica that does not answer. What they write is their own; what the disk keeps for them is bounded.
func TestAHundredThousandWritesInFlightTakeBoundedMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	const (
		writes = 100_000
		// most is what the disk and its peers may keep: what MaxInflight lets in, twice as the network of the test copies it, and what each call takes.
		most = 200 << 20
	)
	bubble(t, setup{nodes: 3, replicas: 2, size: 64 << 20}, func(w *world) {
		w.attach(0)
		for b := range int64(64 << 20 / testBlock) {
			w.write(0, b*testBlock, fill(512, 1)) // raises the stamps
		}
		sector := fill(512, 7)
		live := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		w.nodes[1].freeze()
		before := live()
		var group sync.WaitGroup
		for i := range int64(writes) {
			group.Go(func() {
				if _, err := w.d(0).WriteAt(w.t.Context(), sector, i*512); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(100 * time.Millisecond) // less than makes the frozen one suspected
		synctest.Wait()
		took := live() - before
		t.Logf("%d writes in flight take %d MiB of heap", writes, took>>20)
		if took > most {
			t.Errorf("%d writes in flight take %d MiB of heap, want at most %d", writes, took>>20, most>>20)
		}
		w.nodes[1].thaw()
		group.Wait()
		w.flush(0)
		for i := int64(0); i < writes; i += 997 {
			w.wantRead(0, i*512, sector)
		}
	})
}
