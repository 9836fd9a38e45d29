package volume

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/store"
)

func TestWritesAreOnEveryReplicaWhenTheyReturn(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		data := fill(4096, 0xaa)
		w.write(0, 8192, data)
		for n := range 2 {
			if got := w.nodes[n].raw(8192, 4096); !bytes.Equal(got, data) {
				t.Errorf("n%d does not have the write", n)
			}
		}
		w.wantRead(0, 8192, data)
		w.detach(0)
		if rec := w.cells.record(); rec.Phase != crdt.PhaseReleased {
			t.Errorf("phase %v after the last detach", rec.Phase)
		}
	})
}

func TestHolderWithoutAReplicaReadsAndWritesAcrossBlocks(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		data := fill(1<<20, 0x5c)
		w.write(2, testBlock/2, data)
		w.wantRead(2, testBlock/2, data)
		w.flush(2)
		w.detach(2)
		w.attach(0)
		w.wantRead(0, testBlock/2, data)
		w.wantEqual()
	})
}

func TestSizeThatOneReplicaCannotTakeIsRefusedAndNothingIsLost(t *testing.T) {
	mem := func(n int) store.MemConfig {
		return store.MemConfig{Fault: func(op store.Op) error {
			if n == 1 && op.Kind == store.OpTruncate && op.Off > testSize {
				return ukai.ErrNoSpace
			}
			return nil
		}}
	}
	bubble(t, setup{nodes: 3, replicas: 2, mem: mem}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		if err := w.d(0).Resize(w.t.Context(), 2*testSize); !errors.Is(err, ukai.ErrNoSpace) {
			w.t.Errorf("resize: %v", err)
		}
		if rec := w.cells.record(); rec.Size != testSize || len(w.inSync()) != 2 {
			w.t.Errorf("after a refused resize: %d bytes, in sync %v", rec.Size, w.inSync())
		}
		w.write(0, 4096, fill(4096, 2))
		w.detach(0)
		w.attach(2) // every replica can be sealed for another holder
		w.wantRead(2, 0, append(fill(4096, 1), fill(4096, 2)...))
	})
}

func TestKilledReplicaIsDroppedWithinASecond(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.nodes[1].kill()
		begin := time.Now()
		w.write(0, 0, fill(4096, 2))
		if pause := time.Since(begin); pause > time.Second {
			t.Errorf("the write took %v", pause)
		}
		if in := w.inSync(); len(in) != 1 || in[0] != 0 {
			t.Errorf("in sync: %v", in)
		}
		w.nodes[1].restart(false)
		w.write(0, 0, fill(4096, 3))
		w.wantReturn(1)
	})
}

func TestFrozenReplicaIsDroppedWithinThreeSeconds(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.nodes[1].freeze()
		begin := time.Now()
		w.write(0, 0, fill(4096, 2))
		if pause := time.Since(begin); pause > 3*time.Second {
			t.Errorf("the write took %v", pause)
		}
		w.wantRead(0, 0, fill(4096, 2))
		w.nodes[1].thaw()
	})
}

func TestAttachIsRefusedWhileAnotherNodeHasAttached(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		err := w.d(1).Attach(w.t.Context())
		held := (*ukai.HeldError)(nil)
		if !errors.As(err, &held) || held.Node != w.nodes[0].id {
			t.Fatalf("attach: %v", err)
		}
		w.detach(0)
		w.attach(1)
		w.write(1, 0, fill(512, 7))
		w.wantRead(0, 0, fill(512, 7)) // forwarded
	})
}

func TestHolderObeysASafetyThatAnotherNodeCommitted(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		rec := w.cells.record()
		next, err := w.cells.at(w.nodes[2]).Propose(w.t.Context(), w.disk, cell.Safety{Version: rec.Version, MinSync: 2, OnLoss: crdt.Error})
		if err != nil {
			w.t.Fatal(err)
		}
		w.nodes[0].host.Load().Observe(next)
		w.nodes[1].kill()
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Minute)
		defer cancel()
		if _, err := w.d(0).WriteAt(ctx, fill(4096, 2), 0); !errors.Is(err, ukai.ErrSuspended) {
			w.t.Errorf("a write with one of two replicas, min-sync 2 and on-loss error: %v", err)
		}
		w.nodes[0].kill() // its write is still waiting
	})
}

func TestReadsElsewhereWaitForAHolderThatIsAwayAsOnLossSays(t *testing.T) {
	for name, c := range map[string]struct {
		onLoss crdt.OnLoss
		want   error
	}{"wait": {crdt.Wait, nil}, "error": {crdt.Error, ukai.ErrTimeout}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2, change: func(r *crdt.Record) { r.OnLoss = c.onLoss }}, func(w *world) {
				w.attach(0)
				w.write(0, 0, fill(512, 7))
				w.isolate([]int{0}, []int{1, 2}, true)
				p := make([]byte, 512)
				read := w.reading(2, 0, p)
				wantWaiting(t, "a read while nobody answers", read, DefaultLossLimit-time.Second)
				time.Sleep(2 * time.Second)
				if c.want == nil {
					wantWaiting(t, "a read while nobody answers", read, 5*time.Minute)
				}
				w.isolate([]int{0}, []int{1, 2}, false)
				if err := <-read; !errors.Is(err, c.want) || err == nil && p[0] != 7 {
					t.Errorf("read %d: %v", p[0], err)
				}
			})
		})
	}
}

func TestReadersOfAFreeDiskShareOneClaim(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		for i := range 30 {
			w.wantRead(i%3, 0, make([]byte, 512))
			time.Sleep(3 * time.Second)
		}
		if e := w.cells.record().Epoch; e != 1 {
			t.Errorf("epoch %v after reads on three nodes", e)
		}
		w.write(2, 0, fill(512, 1))
		time.Sleep(5 * time.Second)
		if p := w.cells.record().Phase; p != crdt.PhaseReleased {
			t.Errorf("a disk that was written and is not used any more is %v", p)
		}
	})
}

// The kernel sends no larger ones; a replica elsewhere refuses them.
func TestRequestsLargerThanTheLargestAreServedInParts(t *testing.T) {
	bubble(t, setup{nodes: 2, replicas: 1}, func(w *world) {
		w.attach(1) // no replica there
		p := append(fill(2*ukai.MaxIO, 1), fill(ukai.MaxIO/2, 2)...)
		w.write(1, 4096, p)
		w.wantRead(1, 4096, p)
	})
}
