package volume

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/store"
	"ukai/node/wire"
)

// async runs f in a goroutine of the bubble and returns a channel with its error.
func async(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

func (w *world) writing(n int, off int64, p []byte) <-chan error {
	d, ctx := w.d(n), w.t.Context()
	return async(func() error { _, err := d.WriteAt(ctx, p, off); return err })
}

func (w *world) reading(n int, off int64, p []byte) <-chan error {
	d, ctx := w.d(n), w.t.Context()
	return async(func() error { _, err := d.ReadAt(ctx, p, off); return err })
}

// wantWaiting fails if something ends within d that should wait.
func wantWaiting(t *testing.T, what string, c <-chan error, d time.Duration) {
	t.Helper()
	select {
	case err := <-c:
		t.Fatalf("%s ended: %v", what, err)
	case <-time.After(d):
	}
}

func TestNoCheckpointRunsBesideTheFlushOfADetach(t *testing.T) {
	bubble(t, setup{nodes: 2, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		h := w.d(0).holding.Load()
		h.checking <- struct{}{} // one runs
		detached := make(chan error, 1)
		go func() { detached <- w.d(0).Detach(w.t.Context()) }()
		time.Sleep(time.Second)
		if err := h.checkpoint(w.t.Context()); err != nil {
			t.Errorf("the checkpoint: %v", err)
		}
		<-h.checking
		if err := <-detached; err != nil {
			t.Error(err)
		}
	})
}

func TestWhoOnlyMadeADiskLargerHasNothingToVouchFor(t *testing.T) {
	bubble(t, setup{nodes: 2, replicas: 2}, func(w *world) {
		ctx := w.t.Context()
		if err := w.d(0).Resize(ctx, 2*testSize); err != nil {
			t.Fatal(err)
		}
		w.isolate([]int{0}, []int{1}, true) // or it would let go
		w.cells.set(func(c *testCells) { c.down = map[int]bool{0: true} })
		if err := w.d(1).Takeover(ctx, false); err != nil {
			t.Fatal(err)
		}
		w.isolate([]int{0}, []int{1}, false)
		w.cells.heal()
		w.nodes[0].host.Load().Observe(w.cells.record())
		// The disk was lost to another holder, and nothing with it.
		if _, err := w.d(0).ReadAt(ctx, make([]byte, 512), 0); err != nil {
			t.Errorf("read through the new holder: %v", err)
		}
		if err := w.d(0).Flush(ctx); err != nil {
			t.Errorf("flush: %v", err)
		}
		w.detach(1)
	})
}

func TestWriteThatReachedOneReplicaIsSettledByTheNextHolder(t *testing.T) {
	for name, reached := range map[string]int{"on the first replica only": 0, "on the second replica only": 1} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
				w.attach(2)
				w.write(2, 0, fill(8192, 1))
				w.setCut(2, 1-reached, true)
				ended := w.writing(2, 4096, fill(8192, 2))
				time.Sleep(100 * time.Millisecond)
				if w.nodes[reached].raw(4096, 1)[0] != 2 || w.nodes[1-reached].raw(4096, 1)[0] != 1 {
					t.Fatal("the write is not on exactly one replica")
				}
				w.nodes[2].kill()
				if err := <-ended; err == nil {
					t.Fatal("the write was acknowledged")
				}
				w.setCut(2, 1-reached, false)
				w.nodes[2].restart(false)
				w.attach(2)
				w.wantEqual()
				first := make([]byte, 1)
				for range 4 {
					p := make([]byte, 1)
					if _, err := w.d(2).ReadAt(w.t.Context(), p, 4096); err != nil {
						t.Fatal(err)
					}
					if first[0] == 0 {
						first[0] = p[0]
					}
					if p[0] != first[0] {
						t.Fatalf("read %d after %d", p[0], first[0])
					}
				}
				w.wantRead(2, 0, fill(4096, 1))
			})
		})
	}
}

func TestRecoveryLooksOnlyAtBlocksNewerThanStable(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		for b := range int64(8) {
			w.write(2, b*testBlock, fill(512, byte(b+1)))
		}
		time.Sleep(checkpointEvery + 3*time.Second)
		want := ukai.BlockStamp{Epoch: 1, Check: 1}
		for n := range 2 {
			h, err := w.nodes[n].replicas.Load().open(context.Background(), w.disk, w.nodes[n].rid)
			if err != nil {
				t.Fatal(err)
			}
			if got := h.data.Header().Stable; got != want {
				t.Errorf("n%d: stable %v, want %v", n, got, want)
			}
			if s, _ := h.data.Stamp(3); want.Less(s) {
				t.Errorf("n%d: block 3 is suspect: %v", n, s)
			}
		}
		w.write(2, 0, fill(512, 9))
		h, _ := w.nodes[0].replicas.Load().open(context.Background(), w.disk, w.nodes[0].rid)
		if s, _ := h.data.Stamp(0); !want.Less(s) {
			t.Errorf("a write after the checkpoint left stamp %v", s)
		}
	})
}

func TestTakeoverWaitsOnlyForALeaseThatSomebodyMayStillHold(t *testing.T) {
	for name, c := range map[string]struct {
		cut, backCut, fenced, waits bool
	}{
		"it was cut off long ago":                             {cut: true, backCut: true},
		"only the answers to its heartbeats were cut off":     {backCut: true, waits: true},
		"it was cut off only from the arbiters":               {waits: true},
		"it is there, and an administrator says it is not":    {fenced: true},
		"it was cut off, and an administrator says it is off": {cut: true, backCut: true, fenced: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
				w.attach(0)
				w.write(0, 0, fill(512, 1))
				w.cells.set(func(c *testCells) { c.down = map[int]bool{0: true} }) // it cannot drop the other replica
				w.setCut(0, 1, c.cut)
				w.setCut(1, 0, c.backCut)
				time.Sleep(3 * leaseTime)
				w.setCut(0, 2, true)
				w.setCut(2, 0, true) // it can be neither asked nor sealed
				begin := time.Now()
				if err := w.d(2).Takeover(w.t.Context(), c.fenced); err != nil {
					t.Fatal(err)
				}
				waited := time.Since(begin) - yieldFor
				if waited > sealWait+time.Second != c.waits {
					t.Errorf("the takeover took %v after nobody yielded", waited)
				}
				if !c.waits && !c.fenced {
					w.write(2, 0, fill(512, 2))
					p := make([]byte, 512)
					wantWaiting(t, "a read of the deposed holder from its own replica", w.reading(0, 0, p), 10*time.Second)
				}
			})
		})
	}
}

func TestZombieHolderGetsNoAckAndReadsNothingStale(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.isolate([]int{0}, []int{1, 2}, true)
		w.cells.set(func(c *testCells) { c.down = map[int]bool{0: true} })
		begin := time.Now()
		if err := w.d(1).Takeover(w.t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(begin); waited < leaseTime {
			t.Errorf("the takeover took %v, less than the lease of a holder that could not be sealed", waited)
		}
		w.write(1, 0, fill(512, 2))
		p := make([]byte, 512)
		read := w.reading(0, 0, p)
		wantWaiting(t, "a read of the deposed holder from its own replica", read, 30*time.Second)
		write := w.writing(0, 512, fill(512, 3))
		wantWaiting(t, "a write of the deposed holder", write, 30*time.Second)
		w.cells.set(func(c *testCells) { c.down = nil })
		w.isolate([]int{0}, []int{1, 2}, false)
		if err := <-read; !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("read: %v, got %d", err, p[0])
		}
		if err := <-write; !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("write: %v", err)
		}
		w.wantRead(1, 512, make([]byte, 512))
		// Let go of, it is a reader like others.
		if err := w.d(0).Detach(w.t.Context()); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("detach with writes that were not flushed: %v", err)
		}
		w.wantRead(0, 0, fill(512, 2))
	})
}

func TestFlushTellsOnceOfWritesThatAreOutOfItsHands(t *testing.T) {
	for name, c := range map[string]struct {
		flushed, anew bool
		want          error
	}{
		"not flushed":                     {want: ukai.ErrFenced},
		"flushed before":                  {flushed: true},
		"attached by somebody else since": {anew: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
				w.write(2, 0, fill(512, 1)) // without Attach
				if c.flushed {
					w.flush(2)
				}
				if err := w.d(0).Takeover(w.t.Context(), false); err != nil {
					t.Fatal(err)
				}
				for w.d(2).holding.Load() != nil { // it finds out, and forgets the disk
					time.Sleep(time.Second)
				}
				if c.anew {
					w.detach(0)
					w.attach(2)
				}
				if err := w.d(2).Flush(w.t.Context()); !errors.Is(err, c.want) {
					t.Errorf("flush: %v", err)
				}
				if err := w.d(2).Flush(w.t.Context()); err != nil {
					t.Errorf("it tells again: %v", err)
				}
			})
		})
	}
}

func TestDeposedUserWithoutAttachFailsNoLongerThanItsWritesAreInDoubt(t *testing.T) {
	// A replica is out and its return is called off by the end: nothing comes to rest there any more.
	deposed := func(w *world, write bool) {
		w.write(2, 0, fill(512, 1)) // without Attach
		if !write {
			w.flush(2)
		}
		w.d(2).holding.Load().resting.Store(false)
		rec := w.cells.record()
		if err := w.d(0).Takeover(w.t.Context(), false); err != nil {
			w.t.Fatal(err)
		}
		w.write(0, 0, fill(512, 2))
		rec.Epoch++
		w.nodes[2].host.Load().Observe(rec)
	}
	t.Run("nothing in doubt", func(t *testing.T) {
		bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
			deposed(w, false)
			w.wantRead(2, 0, fill(512, 2))
		})
	})
	t.Run("a write that was not flushed", func(t *testing.T) {
		bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
			deposed(w, true)
			p := make([]byte, 512)
			for range 4 { // to ask again does not keep it alive
				if _, err := w.d(2).ReadAt(w.t.Context(), p, 0); !errors.Is(err, ukai.ErrFenced) {
					w.t.Fatalf("read: %v, got %d", err, p[0])
				}
				time.Sleep(tickEvery)
			}
			time.Sleep(w.nodes[2].host.Load().cfg.Linger)
			w.wantRead(2, 0, fill(512, 2))
			if err := w.d(2).Flush(w.t.Context()); !errors.Is(err, ukai.ErrFenced) {
				w.t.Errorf("flush: %v", err)
			}
		})
	})
}

func TestSealedHolderStopsAtItsNextRequest(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(512, 1))
		rec := w.cells.record()
		w.cells.set(func(c *testCells) { c.old = &rec }) // gossip is late
		if err := w.d(0).Takeover(w.t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if _, err := w.d(2).WriteAt(w.t.Context(), fill(512, 2), 0); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("write: %v", err)
		}
		if _, err := w.d(2).ReadAt(w.t.Context(), make([]byte, 512), 0); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("read: %v", err)
		}
		w.wantRead(0, 0, fill(512, 1))
		w.wantEqual()
	})
}

func TestHolderLearnsFromGossipThatItIsDeposed(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		rec := w.cells.record()
		rec.Epoch++
		w.nodes[2].host.Load().Observe(rec)
		if s := w.d(2).Status(); s.Ended == "" {
			t.Error("still serving")
		}
	})
}

// elsewhere returns the record of another history, forced away from that of the disk before its last commits.
func (w *world) elsewhere() crdt.Record {
	rec := w.cells.record()
	rec.Lineage = append(slices.Clone(rec.Lineage), crdt.Fork{ID: ukai.NewNonce(), Instance: rec.Instance, Version: 1})
	rec.Version += 100
	rec.Groups = slices.Clone(rec.Groups)
	rec.Groups[0].Members = rec.Groups[0].Members[:1]
	return rec
}

func TestHolderStopsWhenTheDiskGoesOnWithAnotherHistory(t *testing.T) {
	for name, back := range map[string]ukai.Epoch{"in an older epoch": 1, "in the same epoch, and further on": 0} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
				w.attach(2)
				w.write(2, 0, fill(512, 1))
				rec := w.elsewhere()
				rec.Epoch -= back
				w.nodes[2].host.Load().Observe(rec)
				if _, err := w.d(2).WriteAt(w.t.Context(), fill(512, 2), 0); !errors.Is(err, ukai.ErrFenced) {
					w.t.Errorf("write: %v", err)
				}
			})
		})
	}
}

func TestDiskThatGoesOnWithAnotherHistoryIsNotServedInThisOne(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.detach(2)
		rec := w.elsewhere()
		w.cells.set(func(c *testCells) { c.old = &rec }) // this is heard while the claim is under way
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		if err := w.d(2).Attach(ctx); err == nil || w.d(2).holding.Load() != nil {
			w.t.Errorf("attached: %v", err)
		}
		w.cells.set(func(c *testCells) { c.old = nil })
		w.attach(2)
	})
}

func TestRefusalOfAHeartbeatEndsOnlyItsOwnSession(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		h := w.d(2).holding.Load()
		m := h.view.Load().all[0]
		l := m.link.Load()
		refuse := exception{Code: ukai.Code(ukai.ErrFenced), Now: h.epoch}
		m.refused(beat{Epoch: h.epoch, Session: l.session - 1}, refuse)
		if m.link.Load() != l {
			w.t.Error("a late refusal of the session before ended this one")
		}
		m.refused(beat{Epoch: h.epoch, Session: l.session}, refuse)
		if m.link.Load() == l {
			w.t.Error("the session goes on though it was refused")
		}
	})
}

func TestShrinkInDoubtIsSettled(t *testing.T) {
	for name, set := range map[string]func(c *testCells){
		"committed, answer lost": func(c *testCells) { c.doubt = 1 },
		"not committed":          func(c *testCells) { c.lose = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
				w.attach(2)
				w.write(2, 0, fill(512, 1))
				w.cells.set(set)
				w.nodes[0].kill()
				w.write(2, 0, fill(512, 2))
				if in := w.inSync(); len(in) != 1 || in[0] != 1 {
					t.Errorf("in sync when the write was acknowledged: %v", in)
				}
				w.wantRead(2, 0, fill(512, 2))
				w.nodes[0].restart(false)
			})
		})
	}
}

// Nothing else happens to the disk that would have the holder ask what became of the change.
func TestReplicaDroppedByAShrinkInDoubtIsBroughtBackThoughItIsLinkedAgain(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(512, 1))
		w.cells.set(func(c *testCells) { c.doubt = 1 })
		m := w.d(2).holding.Load().members[w.nodes[0].rid]
		m.lost(m.link.Load(), ukai.ErrNoSpace) // is asked to leave before it is greeted
		for len(w.inSync()) == 2 {
			time.Sleep(time.Millisecond)
		}
		w.wantReturn(0)
		for begin := time.Now(); w.d(2).Status().InDoubt; time.Sleep(time.Millisecond) { // the cells have it before the holder hears of it
			if time.Since(begin) > time.Minute {
				t.Fatal("a change of the record still is in doubt")
			}
		}
	})
}

func TestWhileAShrinkIsInDoubtItsReplicaIsNotRead(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		// The record says that n0's replica is out, and the holder does not know.
		w.cells.set(func(c *testCells) { c.latency = time.Hour })
		h := w.d(0).holding.Load()
		m := h.members[w.nodes[0].rid]
		m.lost(m.link.Load(), ukai.ErrMedia)
		time.Sleep(time.Second)
		if s := w.d(0).Status(); !s.InDoubt {
			t.Fatal("no change is in doubt")
		}
		before := w.requests.Load()
		w.wantRead(0, 0, fill(512, 1))
		if w.requests.Load() == before {
			t.Error("read from the replica that may be out")
		}
		w.cells.set(func(c *testCells) { c.latency = time.Millisecond })
	})
}

func TestWritesWaitBelowMinSyncAndGoOnWhenTheReplicaReturns(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: minSync2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.nodes[1].kill()
		write := w.writing(0, 0, fill(512, 2))
		wantWaiting(t, "a write below min-sync", write, time.Minute)
		if s := w.d(0).Status(); s.Suspended == "" {
			t.Error("status does not say that the disk is suspended")
		}
		w.nodes[1].restart(false)
		if err := <-write; err != nil {
			t.Fatal(err)
		}
		if s := w.d(0).Status(); s.Suspended != "" {
			t.Errorf("still suspended: %s", s.Suspended)
		}
		w.wantEqual()
		w.wantRead(0, 0, fill(512, 2))
	})
}

func TestWritesWaitWithoutAQuorumAndGoOnWithOne(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.cells.set(func(c *testCells) { c.down = map[int]bool{0: true} })
		w.nodes[1].kill()
		write := w.writing(0, 0, fill(512, 2))
		wantWaiting(t, "a write with a lost replica and no quorum", write, time.Minute)
		w.cells.set(func(c *testCells) { c.down = nil })
		if err := <-write; err != nil {
			t.Fatal(err)
		}
		if in := w.inSync(); len(in) != 1 || in[0] != 0 {
			t.Errorf("in sync: %v", in)
		}
	})
}

func TestOnLossErrorFailsAfterTheLimitAndKeepsTheRange(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: func(r *crdt.Record) { r.MinSync, r.OnLoss = 2, crdt.Error }}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.nodes[1].kill()
		begin := time.Now()
		p := fill(512, 2)
		if _, err := w.d(0).WriteAt(w.t.Context(), p, 0); !errors.Is(err, ukai.ErrSuspended) {
			t.Fatalf("write: %v", err)
		}
		if took := time.Since(begin); took < 20*time.Second || took > 21*time.Second {
			t.Errorf("failed after %v", took)
		}
		copy(p, fill(512, 0xee))       // the buffer is the caller's again
		w.wantRead(0, 0, fill(512, 2)) // on the only one that is in sync
		w.nodes[1].restart(false)
		w.wantReturn(1)
		w.write(0, 0, fill(512, 3))
	})
}

func TestOnLossErrorKeepsTheRangeOfAWriteWhoseReplicasAreInDoubt(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: func(r *crdt.Record) { r.OnLoss = crdt.Error }}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.cells.set(func(c *testCells) { c.down = map[int]bool{0: true} })
		w.nodes[1].kill()
		if _, err := w.d(0).WriteAt(w.t.Context(), fill(512, 2), 0); !errors.Is(err, ukai.ErrSuspended) {
			t.Fatalf("write: %v", err)
		}
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		if _, err := w.d(0).ReadAt(ctx, make([]byte, 512), 0); err == nil {
			t.Error("read a range whose content is not settled")
		}
		w.cells.set(func(c *testCells) { c.down = nil })
		w.wantRead(0, 0, fill(512, 2))
	})
}

func minSync2(r *crdt.Record) { r.MinSync = 2 }

func TestMinSyncDoesNotKeepAwayAReplicaThatLostPower(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: minSync2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.nodes[1].kill()
		write := w.writing(0, 0, fill(512, 2))
		time.Sleep(2 * time.Second)
		w.nodes[1].restart(true)
		select {
		case err := <-write:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("a write still waits though both nodes are alive: %+v", w.d(0).Status())
		}
		if in := w.inSync(); len(in) != 2 {
			t.Errorf("acknowledged with min-sync 2, in sync: %v", in)
		}
		w.wantRead(0, 0, fill(512, 2))
		w.wantReturn(1)
	})
}

func TestMinSyncDoesNotKeepANewReplicaFromBeingFilled(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: minSync2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.nodes[1].kill() // for good
		write := w.writing(0, 0, fill(512, 2))
		wantWaiting(t, "a write below min-sync", write, rejoinFor+5*time.Second)
		flush := async(func() error { return w.d(0).Flush(w.t.Context()) })
		wantWaiting(t, "a flush below min-sync", flush, time.Minute)
		w.wantRead(0, 0, fill(512, 2)) // on every replica in sync, and not lost while that one is not
		n := w.nodes[2]
		if err := n.store.Create(w.t.Context(), w.disk, n.rid, store.ReplicaConfig{Size: testSize, BlockSize: testBlock}); err != nil {
			t.Fatal(err)
		}
		if err := w.d(0).AddReplica(w.t.Context(), 0, n.rid, n.id); err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]<-chan error{"write": write, "flush": flush} {
			select {
			case err := <-c:
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
			case <-time.After(20 * time.Second):
				t.Errorf("the %s still waits: %+v", what, w.d(0).Status())
			}
		}
		if in := w.inSync(); !slices.Equal(in, []int{0, 2}) {
			t.Errorf("in sync: %v", in)
		}
		w.wantEqual()
	})
}

func TestMinSyncIsObeyedWhereAReplicaIsDroppedOnPurpose(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: minSync2}, func(w *world) {
		w.attach(0)
		if err := w.d(0).Drop(w.t.Context(), 0, w.nodes[1].rid, 0); !errors.Is(err, ukai.ErrRejected) {
			t.Errorf("drop: %v", err)
		}
		w.write(0, 0, fill(512, 1))
	})
}

func TestReplicaIsNotDroppedOnPurposeIfAnotherFailedSinceThatWasPlanned(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 3}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.nodes[1].kill()
		write := w.writing(0, 0, fill(512, 2)) // it waits for the dead one, until that is out
		err := w.d(0).Drop(w.t.Context(), 0, w.nodes[2].rid, 2)
		if err := <-write; err != nil {
			t.Fatal(err)
		}
		if err == nil {
			t.Errorf("it was dropped, and of three copies one is left: in sync %v", w.inSync())
		} else if !errors.Is(err, ukai.ErrRejected) {
			t.Errorf("drop: %v", err)
		}
		if in := w.inSync(); !slices.Equal(in, []int{0, 2}) {
			t.Errorf("in sync: %v", in)
		}
		if err := w.d(0).Drop(w.t.Context(), 0, w.nodes[2].rid, 1); err != nil {
			t.Errorf("drop where one may be left: %v", err)
		}
	})
}

func TestReplicaThatIsBackSoonIsNotDroppedBelowMinSync(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: minSync2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		version := w.cells.record().Version
		w.nodes[1].kill()
		write := w.writing(0, 0, fill(512, 2))
		time.Sleep(rejoinFor / 2)
		w.nodes[1].restart(false)
		if err := <-write; err != nil {
			t.Fatal(err)
		}
		if now := w.cells.record().Version; now != version {
			t.Errorf("the record went from version %d to %d", version, now)
		}
		w.wantEqual()
	})
}

func TestAttachBelowMinSyncServesReadsOnly(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: minSync2}, func(w *world) {
		w.nodes[1].kill()
		w.attach(0)
		w.wantRead(0, 0, make([]byte, 512))
		write := w.writing(0, 0, fill(512, 2))
		wantWaiting(t, "a write", write, time.Minute)
		w.d(0).holding.Load().end(ukai.ErrClosed)
		<-write
	})
}

func TestFlushIsNotVouchedForByAReplicaThatLostPower(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.nodes[1].kill()
		w.nodes[1].restart(true)
		w.flush(0)
		if in := w.inSync(); len(in) != 1 || in[0] != 0 {
			t.Errorf("in sync after the flush: %v", in)
		}
		w.wantRead(0, 0, fill(512, 1))
	})
}

func TestDaemonRestartOfAReplicaLosesNothing(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.nodes[1].kill()
		time.Sleep(50 * time.Millisecond)
		w.nodes[1].restart(false)
		w.write(0, 512, fill(512, 2))
		w.flush(0)
		if in := w.inSync(); len(in) != 2 {
			t.Errorf("in sync: %v", in)
		}
		w.wantEqual()
	})
}

func TestLastReplicaThatLostUnflushedWritesPoisonsTheDisk(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 1}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(512, 1))
		w.flush(2)
		w.write(2, 512, fill(512, 2))
		w.nodes[0].kill()
		w.nodes[0].restart(true)
		if err := w.d(2).Flush(w.t.Context()); !errors.Is(err, ukai.ErrLost) {
			t.Fatalf("flush: %v", err)
		}
		if _, err := w.d(2).ReadAt(w.t.Context(), make([]byte, 512), 0); !errors.Is(err, ukai.ErrLost) {
			t.Errorf("read: %v", err)
		}
		if err := w.d(2).Detach(w.t.Context()); !errors.Is(err, ukai.ErrLost) {
			t.Errorf("detach: %v", err)
		}
		w.attach(2)
		w.wantRead(2, 0, fill(512, 1))
		w.wantRead(2, 512, make([]byte, 512))
	})
}

func TestLastReplicaThatLostNothingIsTakenBack(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 1}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(512, 1))
		w.flush(2)
		w.nodes[0].kill()
		write := w.writing(2, 512, fill(512, 2))
		wantWaiting(t, "a write without any replica", write, 10*time.Second)
		w.nodes[0].restart(true)
		if err := <-write; err != nil {
			t.Fatal(err)
		}
		w.wantRead(2, 0, fill(512, 1))
		w.wantRead(2, 512, fill(512, 2))
	})
}

func TestUncleanReplicaIsNotTheAuthority(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(512, 1)) // acknowledged, not flushed
		w.nodes[2].kill()
		w.nodes[0].kill()
		w.nodes[0].restart(true) // lost it
		w.nodes[2].restart(false)
		w.attach(0) // its own replica is the nearest, and unclean
		w.wantRead(0, 0, fill(512, 1))
		w.wantEqual()
	})
}

func TestLateRequestOfADeadConnectionIsRefused(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.mu.Lock()
		w.delay = func(int, int) time.Duration { return 10 * time.Millisecond }
		w.late = 400 * time.Millisecond
		w.mu.Unlock()
		for round := range 20 {
			first := w.writing(2, 0, fill(512, byte(2*round+1)))
			time.Sleep(5 * time.Millisecond) // on its way
			w.flap(0)
			w.flap(1)
			if err := <-first; err != nil {
				t.Fatal(err)
			}
			w.write(2, 0, fill(512, byte(2*round+2)))
		}
		time.Sleep(time.Second)
		w.wantEqual()
		w.wantRead(2, 0, fill(512, 40))
		if in := w.inSync(); len(in) != 2 {
			t.Errorf("in sync: %v", in)
		}
	})
}

func TestIncompleteWriteIsNotSeen(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.setCut(0, 1, true)
		write := w.writing(0, 0, fill(512, 2))
		time.Sleep(50 * time.Millisecond)
		p := make([]byte, 512)
		read := w.reading(0, 0, p)
		wantWaiting(t, "a read of a write that is not everywhere", read, 200*time.Millisecond)
		w.setCut(0, 1, false)
		if err := <-write; err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil || p[0] != 2 {
			t.Fatalf("read %d, %v", p[0], err)
		}
	})
}

func TestFullReplicaLeavesWhileAnotherHasRoom(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, mem: func(n int) store.MemConfig {
		if n == 1 {
			return store.MemConfig{Capacity: 2 << 20}
		}
		return store.MemConfig{}
	}}, func(w *world) {
		w.attach(0)
		for b := range int64(6) {
			w.write(0, b*testBlock, fill(1<<20, byte(b+1)))
		}
		if in := w.inSync(); len(in) != 1 || in[0] != 0 {
			t.Errorf("in sync: %v", in)
		}
		w.wantRead(0, 5*testBlock, fill(1<<20, 6))
	})
}

func TestFullDiskIsReportedByTheNameOfTheNode(t *testing.T) {
	for name, replicas := range map[string]int{"one replica": 1, "two replicas": 2} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: replicas, mem: func(int) store.MemConfig { return store.MemConfig{Capacity: 2 << 20} }}, func(w *world) {
				w.attach(2)
				var err error
				for b := range int64(6) {
					if _, err = w.d(2).WriteAt(w.t.Context(), fill(1<<20, byte(b+1)), b*testBlock); err != nil {
						break
					}
				}
				named := (*ukai.NodeError)(nil)
				if !errors.Is(err, ukai.ErrNoSpace) || !errors.As(err, &named) {
					t.Fatalf("write: %v", err)
				}
				if in := w.inSync(); len(in) != replicas {
					t.Errorf("in sync: %v", in)
				}
				w.wantRead(2, 0, fill(1<<20, 1))
				w.write(2, 0, fill(4096, 9)) // what is allocated can be written
				w.wantEqual()
			})
		})
	}
}

func TestBrokenReplicaLeaves(t *testing.T) {
	var broken atomic.Bool
	bubble(t, setup{nodes: 3, replicas: 2, mem: func(n int) store.MemConfig {
		return store.MemConfig{Fault: func(op store.Op) error {
			if n == 1 && broken.Load() {
				return errors.New("medium error")
			}
			return nil
		}}
	}}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		broken.Store(true)
		w.flush(0)
		w.write(0, 0, fill(512, 2))
		if in := w.inSync(); len(in) != 1 || in[0] != 0 {
			t.Errorf("in sync: %v", in)
		}
		broken.Store(false)
	})
}

func TestDeadHolderIsDeposedWithoutBeingAsked(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.nodes[0].kill()
		if err := w.d(1).Attach(w.t.Context()); !errors.Is(err, ukai.ErrHeld) {
			t.Fatalf("attach before anybody holds n0 for dead: %v", err)
		}
		w.mu.Lock()
		w.dead[0] = true
		w.mu.Unlock()
		w.attach(1)
		w.wantRead(1, 0, fill(512, 1))
		w.write(1, 0, fill(512, 2))
		if in := w.inSync(); len(in) != 1 || in[0] != 1 {
			t.Errorf("in sync: %v", in)
		}
		w.nodes[0].restart(false)
		w.wantRead(0, 0, fill(512, 2))
	})
}

func TestRestartedHolderGivesWay(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		w.nodes[0].kill()
		w.nodes[0].restart(false)
		w.wantRead(2, 0, fill(512, 1)) // a reader, though the record says that n0 holds the disk
		w.attach(1)
		w.wantRead(1, 0, fill(512, 1))
	})
}

func TestSlowReplicaIsHedged(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(4096, 1))
		for range 20 {
			w.wantRead(2, 0, fill(4096, 1))
		}
		w.setCut(0, 2, true) // n0's answers are lost
		begin := time.Now()
		w.wantRead(2, 0, fill(4096, 1))
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("the read took %v", took)
		}
		w.setCut(0, 2, false)
	})
}

func TestReadErrorFailsOver(t *testing.T) {
	mem, broken := mediaFault(0, store.OpRead)
	bubble(t, setup{nodes: 3, replicas: 2, mem: mem}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		broken.Store(true)
		w.wantRead(0, 0, fill(512, 1))
		if in := w.inSync(); len(in) != 2 {
			t.Errorf("in sync: %v", in)
		}
	})
}

func TestRepeatedSealAnswersAgainAndHelloNeedsANewerSession(t *testing.T) {
	bubble(t, setup{nodes: 1, replicas: 1}, func(w *world) {
		n := w.nodes[0]
		ctx := w.t.Context()
		h, err := n.replicas.Load().open(ctx, w.disk, n.rid)
		if err != nil {
			t.Fatal(err)
		}
		stamp := ukai.BlockStamp{Epoch: 3, Check: 1}
		if err := h.write(ctx, 0, 0, 0, fill(512, 1), 0, stamp); !errors.Is(err, ukai.ErrFenced) {
			t.Fatalf("a replica that was never sealed took a write: %v", err)
		}
		for range 2 {
			if r, err := h.seal(ctx, 3, sealRequest{}); err != nil || r.Session != 1 {
				t.Fatalf("seal: %+v, %v", r, err)
			}
		}
		if err := h.write(ctx, 3, 1, 0, fill(512, 1), 0, stamp); err != nil {
			t.Fatal(err)
		}
		if err := h.hello(ctx, 3, 2, n.store.Incarnation()); err != nil {
			t.Fatal(err)
		}
		if err := h.write(ctx, 3, 1, 0, fill(512, 9), 0, stamp); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("a write of an old session: %v", err)
		}
		if err := h.hello(ctx, 3, 2, n.store.Incarnation()); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("the same session twice: %v", err)
		}
		if _, err := h.seal(ctx, 2, sealRequest{}); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("a seal of an old epoch: %v", err)
		}
		n.kill()
		n.restart(false)
		h, err = n.replicas.Load().open(ctx, w.disk, n.rid)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.write(ctx, 3, 2, 0, fill(512, 9), 0, stamp); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("a write after a restart, without hello: %v", err)
		}
		if r, err := h.seal(ctx, 3, sealRequest{}); err != nil || r.Session != 0 {
			t.Errorf("seal after a restart: %+v, %v", r, err)
		}
		if err := h.hello(ctx, 3, 3, ukai.Incarnation{9}); !errors.Is(err, ukai.ErrRestarted) {
			t.Errorf("hello for another incarnation: %v", err)
		}
		p := make([]byte, 512)
		if err := h.data.ReadAt(p, 0); err != nil || !bytes.Equal(p, fill(512, 1)) {
			t.Errorf("a refused write was applied: %d, %v", p[0], err)
		}
		if _, err := n.replicas.Load().open(ctx, w.disk, 4711); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("unknown replica: %v", err)
		}
	})
}

func TestReplicaThatLostPowerIsNoticedWithoutARequestToIt(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		version := w.cells.record().Version
		w.nodes[1].kill()
		time.Sleep(100 * time.Millisecond)
		w.nodes[1].restart(true)
		time.Sleep(heartbeatEvery + 500*time.Millisecond)
		if w.cells.record().Version == version {
			t.Error("a replica counts as in sync that has lost what was in its memory")
		}
		w.wantReturn(1)
	})
}

func TestDaemonRestartOfAReplicaCostsNeitherItsPlaceNorTheLease(t *testing.T) {
	bubble(t, setup{nodes: 4, replicas: 3}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(512, 1))
		version := w.cells.record().Version
		m := w.d(0).holding.Load().members[w.nodes[1].rid]
		before := m.link.Load()
		w.nodes[1].kill()
		time.Sleep(100 * time.Millisecond)
		w.nodes[1].restart(false)
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			if s := w.d(0).Status(); s.Lease <= 0 {
				t.Fatalf("the lease is over since %v", -s.Lease)
			}
		}
		if m.link.Load() == before || m.link.Load() == nil {
			t.Error("the session of before the restart still stands")
		}
		if now := w.cells.record().Version; now != version {
			t.Errorf("the record went from version %d to %d", version, now)
		}
	})
}

// stalling is for setup.mem: operations of a kind on node n wait while a channel is stored, until that is closed.
func stalling(n int, kind store.OpKind) (mem func(int) store.MemConfig, stall *atomic.Pointer[chan struct{}]) {
	stall = new(atomic.Pointer[chan struct{}])
	return func(node int) store.MemConfig {
		return store.MemConfig{Fault: func(op store.Op) error {
			if c := stall.Load(); c != nil && node == n && op.Kind == kind {
				<-*c
			}
			return nil
		}}
	}, stall
}

// begin has what stalling says wait until resume is called.
func begin(stall *atomic.Pointer[chan struct{}]) (resume func()) {
	c := make(chan struct{})
	stall.Store(&c)
	return sync.OnceFunc(func() {
		stall.Store(nil)
		close(c)
	})
}

// A checkpoint that was given up has put off what it waited for, not ended it: what is stable, and what a resync may take for being at its source, must not
// pass over writes from before.
func TestACheckpointWaitsForTheWritesThatAnInterruptedOneWaitedFor(t *testing.T) {
	mem, stall := stalling(1, store.OpWrite)
	bubble(t, setup{nodes: 2, replicas: 2, mem: mem}, func(w *world) {
		w.attach(0)
		h := w.d(0).holding.Load()
		resume := begin(stall)
		defer resume()
		written := w.writing(0, 0, fill(4096, 1))
		time.Sleep(10 * time.Millisecond)
		stamp := h.check.Load().stamp
		ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := h.checkpointNow(ctx); err == nil {
			t.Fatal("a checkpoint did not wait for a write")
		}
		again := async(func() error { return h.checkpointNow(w.t.Context()) })
		wantWaiting(t, "a checkpoint while a write from before it is on one replica only", again, time.Second)
		h.mu.Lock()
		if !h.stable.Less(stamp) {
			t.Errorf("stable is %v, and a write with stamp %v is on one replica only", h.stable, stamp)
		}
		h.mu.Unlock()
		resume()
		if err := errors.Join(<-written, <-again); err != nil {
			t.Error(err)
		}
	})
}

// yieldStalled writes on node n without Attach and has it let go of the disk, which waits in a flush until resume is called.
func (w *world) yieldStalled(n int, stall *atomic.Pointer[chan struct{}]) (yielded <-chan error, resume func()) {
	w.write(n, 0, fill(4096, 1))
	resume = begin(stall)
	time.Sleep(writerLinger + 2*tickEvery)
	yielded = async(func() error { return w.d(n).Yield(w.t.Context()) })
	time.Sleep(10 * time.Millisecond)
	return yielded, resume
}

// A program that uses a disk without Attach does not know that it is let go of just now.
func TestAFlushBesideTheReleaseOfADiskIsNotOverBeforeThatHasFlushed(t *testing.T) {
	for name, lost := range map[string]bool{"the release flushes": false, "the disk is lost before": true} {
		t.Run(name, func(t *testing.T) {
			mem, stall := stalling(1, store.OpSync)
			bubble(t, setup{nodes: 3, replicas: 2, mem: mem}, func(w *world) {
				yielded, resume := w.yieldStalled(2, stall)
				defer resume()
				if w.d(2).holding.Load() == nil {
					t.Fatal("it was let go of without a flush")
				}
				flushed := async(func() error { return w.d(2).Flush(w.t.Context()) })
				wantWaiting(t, "a flush of what is on no stable storage yet", flushed, 100*time.Millisecond)
				if lost {
					w.d(2).holding.Load().fenced(1 << 20)
				}
				resume()
				<-yielded
				if err := <-flushed; (err != nil) != lost {
					t.Errorf("flush: %v", err)
				}
			})
		})
	}
}

// Somebody attaches the disk in between, and begins anew. That is of no concern to whoever wrote before.
func TestAFlushBesideTheReleaseOfADiskTellsOfItsFailureThoughOthersAttachTheDisk(t *testing.T) {
	mem, stall := stalling(1, store.OpSync)
	bubble(t, setup{nodes: 3, replicas: 2, mem: mem}, func(w *world) {
		yielded, resume := w.yieldStalled(2, stall)
		defer resume()
		attached := async(func() error { return w.d(2).Attach(w.t.Context()) })
		time.Sleep(10 * time.Millisecond)
		flushed := async(func() error { return w.d(2).Flush(w.t.Context()) })
		time.Sleep(10 * time.Millisecond)
		w.d(2).holding.Load().fenced(1 << 20)
		resume()
		<-yielded
		if err := <-attached; err != nil {
			t.Fatal(err)
		}
		if err := <-flushed; err == nil {
			t.Error("a flush of what nobody vouches for succeeded")
		}
	})
}

// The link of a replica may come back in the moment in which the limit has been reached: then nothing is known to be wrong, and yet the write is not
// everywhere.
func TestAWriteThatIsNotEverywhereAtTheLimitFailsThoughNothingIsKnownToBeWrong(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: func(r *crdt.Record) { r.OnLoss = crdt.Error }}, func(w *world) {
		w.attach(0)
		h := w.d(0).holding.Load()
		h.mu.Lock()
		m := h.members[w.nodes[1].rid]
		l := m.link.Swap(nil)
		h.mu.Unlock()
		if _, err := w.d(0).WriteAt(w.t.Context(), fill(512, 1), 0); err == nil {
			t.Errorf("acknowledged, and n1 has %d", w.nodes[1].raw(0, 1)[0])
		}
		h.mu.Lock()
		m.link.Store(l)
		h.broadcast()
		h.mu.Unlock()
		w.wantRead(0, 0, fill(512, 1))
	})
}

// Both replicas of a hedged read fail, one because its connection breaks and one because it has lost the data. The first one has them.
func TestAHedgedReadIsTriedAgainWhereOnlyTheConnectionBroke(t *testing.T) {
	var stall atomic.Pointer[chan struct{}]
	bad, broken := mediaFault(1, store.OpRead)
	mem := func(node int) store.MemConfig {
		cfg := bad(node)
		fails := cfg.Fault
		cfg.Fault = func(op store.Op) error {
			if c := stall.Load(); c != nil && op.Kind == store.OpRead {
				<-*c
			}
			return fails(op)
		}
		return cfg
	}
	bubble(t, setup{nodes: 3, replicas: 2, mem: mem}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(4096, 1))
		resume := begin(&stall)
		defer resume()
		p := make([]byte, 4096)
		read := w.reading(2, 0, p)
		time.Sleep(100 * time.Millisecond)
		w.flap(0)
		time.Sleep(time.Millisecond)
		broken.Store(true)
		resume()
		if err := <-read; err != nil || p[0] != 1 {
			t.Errorf("read %d: %v", p[0], err)
		}
	})
}

// Two heartbeats run at once, and the one that read the clock first is the last to note it: no holder may take the other one's confirmation for older.
func TestTheLatestConfirmationCountsInWhateverOrderTheyAreNoted(t *testing.T) {
	bubble(t, setup{nodes: 2, replicas: 1}, func(w *world) {
		w.attach(1)
		r, err := w.nodes[0].replicas.Load().open(w.t.Context(), w.disk, w.nodes[0].rid)
		if err != nil {
			t.Fatal(err)
		}
		early := w.clock()
		time.Sleep(3 * time.Second)
		late := w.clock()
		r.confirms(late)
		r.confirms(early)
		if got := time.Duration(r.confirmed.Load()); got < late {
			t.Errorf("confirmed at %v, noted is %v", late, got)
		}
	})
}

// A detach that is given up lets the disk go under a flush that waits. Nothing of it is on stable storage, so nobody may be told that a disk that is not
// attached has nothing to flush.
func TestAFlushUnderWhichTheDiskIsLetGoTellsOfIt(t *testing.T) {
	mem, stall := stalling(1, store.OpSync)
	bubble(t, setup{nodes: 2, replicas: 2, mem: mem}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		resume := begin(stall)
		defer resume()
		flushed := async(func() error { return w.d(0).Flush(w.t.Context()) })
		time.Sleep(10 * time.Millisecond)
		ctx, cancel := context.WithTimeout(w.t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := w.d(0).Detach(ctx); err == nil {
			t.Error("detached without a flush, and nobody is told")
		}
		if err := <-flushed; !errors.Is(err, ukai.ErrLost) || errors.Is(err, ukai.ErrNotAttached) {
			t.Errorf("flush: %v", err)
		}
		if err := w.d(0).Flush(w.t.Context()); err == nil {
			t.Error("who else wrote is not told")
		}
	})
}

// Who looks whether anything is unflushed must see it while flushes fail one after the other.
func TestAFlushThatFailsHidesNothingThatIsUnflushed(t *testing.T) {
	var u unflushed
	u.dirty()
	stop := make(chan struct{})
	var flushes sync.WaitGroup
	flushes.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			u.begin()
			u.end(true)
		}
	})
	defer flushes.Wait()
	defer close(stop)
	for n := range 5_000_000 {
		if !u.any() {
			t.Fatalf("look %d sees nothing", n)
		}
	}
}

// A replica that was sealed and then hangs is watched by nobody yet: the takeover must begin anew without it, not end with its caller's patience.
func TestATakeoverGoesOnWithoutAReplicaThatHangsOnceItIsSealed(t *testing.T) {
	for _, kind := range []wire.Kind{wire.KindStamps, wire.KindFlush} {
		t.Run(kind.String(), func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 3}, func(w *world) {
				w.attach(0)
				w.write(0, 0, fill(512, 1))
				w.nodes[0].kill()
				w.mu.Lock()
				w.dead[0] = true
				w.mu.Unlock()
				var once sync.Once
				see := func(_, to int, m *wire.Message) {
					if to == 2 && m.Kind == kind {
						once.Do(w.nodes[2].freeze)
					}
				}
				w.onSend.Store(&see)
				w.attach(1)
				w.wantRead(1, 0, fill(512, 1))
				w.onSend.Store(nil)
				w.nodes[2].thaw()
			})
		})
	}
}

// Many blocks are to be compared, and each is asked of the replica that hangs: the attempt ends with the first that is not answered.
func TestATakeoverWithMuchToCompareGoesOnWithoutAReplicaThatHangs(t *testing.T) {
	const blocks = 64
	bubble(t, setup{nodes: 3, replicas: 3, size: blocks * testBlock}, func(w *world) {
		w.attach(0)
		for b := range int64(blocks) {
			w.write(0, b*testBlock, fill(512, 1))
		}
		w.nodes[0].kill()
		w.mu.Lock()
		w.dead[0] = true
		w.mu.Unlock()
		var once sync.Once
		see := func(_, to int, m *wire.Message) {
			if to == 2 && m.Kind == wire.KindHash {
				once.Do(w.nodes[2].freeze)
			}
		}
		w.onSend.Store(&see)
		w.attach(1)
		w.wantRead(1, (blocks-1)*testBlock, fill(512, 1))
		w.onSend.Store(nil)
		w.nodes[2].thaw()
	})
}

// A disk that is slow for all that is asked at a takeover is not one that hangs: the next attempt waits longer.
func TestATakeoverFromSlowDisksSucceeds(t *testing.T) {
	var slow atomic.Bool
	mem := func(int) store.MemConfig {
		return store.MemConfig{Fault: func(op store.Op) error {
			if slow.Load() && op.Kind == store.OpRead {
				time.Sleep(500 * time.Millisecond)
			}
			return nil
		}}
	}
	bubble(t, setup{nodes: 4, replicas: 2, mem: mem}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(testBlock, 1)) // 16 reads
		w.nodes[2].kill()
		w.mu.Lock()
		w.dead[2] = true
		w.mu.Unlock()
		slow.Store(true)
		w.attach(3)
		if in := w.inSync(); !slices.Equal(in, []int{0, 1}) {
			t.Errorf("in sync: %v", in)
		}
		w.wantRead(3, 0, fill(512, 1))
	})
}

// A node that was away for long answers a greeting before it answers the next heartbeat. It is silent no more.
func TestASessionWithANodeThatIsBackIsNotGivenUpForWhatItDidNotAnswerBefore(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: minSync2}, func(w *world) {
		w.attach(0)
		m := w.d(0).holding.Load().members[w.nodes[1].rid]
		w.nodes[1].kill()
		time.Sleep(5 * time.Second) // less than it takes until it is dropped
		w.nodes[1].restart(false)
		for m.link.Load() == nil {
			time.Sleep(10 * time.Microsecond)
		}
		l := m.link.Load()
		m.tick(w.clock())
		if m.link.Load() != l {
			t.Error("given up at once")
		}
	})
}
