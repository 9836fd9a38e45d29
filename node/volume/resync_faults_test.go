package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/wire"
)

// trip calls f once, in a goroutine, at the k-th step of bringing n1 back: a request of the holder, n2, to n1, or a
// proposal of it. It counts the steps.
type trip struct {
	steps atomic.Int32
	fired chan struct{} // closed when f has returned
}

func (w *world) tripAt(k int32, f func()) *trip {
	tr := &trip{fired: make(chan struct{})}
	step := func() {
		if tr.steps.Add(1) == k {
			w.work.Go(func() {
				defer close(tr.fired)
				f()
			})
		}
	}
	see := func(from, to int, m *wire.Message) {
		// Not heartbeats of the pulse, which come at their own times.
		if from == 2 && to == 1 && (m.Kind != wire.KindHeartbeat || m.Epoch != 0) {
			step()
		}
	}
	w.onSend.Store(&see)
	w.cells.set(func(c *testCells) {
		c.decide = func(n int, _ cell.Change) fate {
			if n == 2 {
				step()
			}
			return commits
		}
	})
	return tr
}

// holderDies kills node 2, which holds the disk in tests of faults at each step.
func holderDies(w *world) {
	w.mu.Lock()
	w.dead[2] = true
	w.mu.Unlock()
	w.nodes[2].kill()
}

func TestNothingIsLostWhateverFailsAtWhateverStepOfAResync(t *testing.T) {
	faults := map[string]func(w *world){
		"holder dies": holderDies,
		"replica crashes": func(w *world) {
			w.nodes[1].kill()
			time.Sleep(3 * time.Second)
			w.nodes[1].restart(false)
		},
		"replica restarts": func(w *world) {
			w.nodes[1].kill()
			w.nodes[1].restart(false)
		},
		"replica loses power": func(w *world) {
			w.nodes[1].kill()
			w.nodes[1].restart(true)
		},
		"replica is cut off": func(w *world) {
			w.isolate([]int{2}, []int{1}, true)
			time.Sleep(15 * time.Second)
			w.isolate([]int{2}, []int{1}, false)
		},
		"answers of the replica are lost": func(w *world) {
			w.setCut(1, 2, true)
			time.Sleep(2 * time.Second)
			w.setCut(1, 2, false)
		},
		"connections break and old requests arrive late": func(w *world) {
			w.mu.Lock()
			w.late = 300 * time.Millisecond
			w.mu.Unlock()
			for range 5 {
				w.flap(1)
				time.Sleep(20 * time.Millisecond)
			}
		},
		"source restarts": func(w *world) {
			w.nodes[0].kill()
			w.nodes[0].restart(false)
		},
		"no quorum for a while": func(w *world) {
			w.cells.set(func(c *testCells) { c.down = map[int]bool{2: true} })
			time.Sleep(20 * time.Second)
			w.cells.set(func(c *testCells) { c.down = nil })
		},
		"disk grows": func(w *world) {
			for size := w.d(2).Size(); size < 6<<20; {
				size += testBlock/2 + 4096
				if err := w.d(2).Resize(context.Background(), size); err != nil {
					w.t.Errorf("resize: %v", err)
				}
				if _, err := w.d(2).WriteAt(context.Background(), fill(4096, 9), size-4096); err != nil {
					w.t.Errorf("write at the new end: %v", err)
				}
			}
		},
		"disk is taken over elsewhere": func(w *world) {
			if err := w.d(0).Takeover(context.Background(), false); err != nil {
				w.t.Errorf("takeover: %v", err)
			}
		},
		"disk is detached": func(w *world) {
			begin := time.Now()
			if err := w.d(2).Detach(context.Background()); err != nil {
				w.t.Errorf("detach: %v", err)
			}
			if took := time.Since(begin); took > 2*time.Second {
				w.t.Errorf("the detach took %v", took)
			}
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			for k, stride := int32(1), int32(1); ; k += stride {
				if k > 8 {
					stride = 17 // the middle is all alike
				}
				if testing.Short() {
					stride = 29
				}
				reached := false
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, setup{nodes: 3, replicas: 2, size: 4 << 20})
					defer w.close()
					reached = faultAt(w, k, func() { fault(w) })
				})
				if t.Failed() {
					t.Fatalf("at step %d", k)
				}
				if !reached {
					t.Logf("%d steps", k-1)
					if k < 10 {
						t.Errorf("only %d steps: this tested next to nothing", k)
					}
					return
				}
			}
		})
	}
}

// faultAt runs one resync under load with a fault at step k, and says whether there was such a step.
func faultAt(w *world, k int32, fault func()) bool {
	w.mu.Lock()
	w.delay = func(int, int) time.Duration { return 2 * time.Millisecond }
	w.mu.Unlock()
	w.attach(2)
	for b := range int64(4) {
		w.write(2, b*testBlock+512<<10, fill(100<<10, byte(b+1)))
	}
	w.nodes[1].kill()
	l := startLoadEvery(w, 2, 40*time.Millisecond)
	l.lenient.Store(true)
	for b := range int64(4) {
		w.write(2, b*testBlock+512<<10, fill(70<<10, byte(b+10)))
	}
	tr := w.tripAt(k, fault)
	w.nodes[1].restart(true)
	begin := time.Now()
	for fired := false; ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-tr.fired:
			fired = true
		default:
		}
		rec := w.cells.record()
		if tr.steps.Load() >= k && !fired {
			continue
		}
		if fired || len(absentees(&rec)) == 0 || time.Since(begin) > time.Minute {
			break
		}
	}
	time.Sleep(500 * time.Millisecond)
	l.end()
	w.onSend.Store(nil)
	w.cells.set(func(c *testCells) { c.decide = nil })
	if tr.steps.Load() >= k {
		<-tr.fired
	}
	w.cells.heal()
	w.mu.Lock()
	w.late = 0
	w.mu.Unlock()
	// Whoever can, holds the disk now.
	at := 2
	if w.nodes[2].host.Load() == nil {
		at = 0
	} else if rec := w.cells.record(); rec.Holder != w.nodes[2].id {
		at = 0
	}
	if at == 0 || w.d(2).users() == 0 {
		w.attach(at)
	}
	l.verify(at)
	w.awaitAllInSync()
	l.verify(at)
	for b := range int64(4) {
		w.wantRead(at, b*testBlock+512<<10, fill(70<<10, byte(b+10)))
	}
	w.flush(at)
	w.wantEqual()
	return tr.steps.Load() >= k
}

func TestChangesOfUnknownOutcomeDuringAResync(t *testing.T) {
	kinds := map[string]func(cell.Change) bool{
		"join":   func(c cell.Change) bool { _, ok := c.(cell.Join); return ok },
		"grow":   func(c cell.Change) bool { _, ok := c.(cell.Grow); return ok },
		"shrink": func(c cell.Change) bool { _, ok := c.(cell.Shrink); return ok },
	}
	fates := map[string]fate{"commits, answer lost": commitsUntold, "vanishes": vanishes, "refused": refused}
	for what, is := range kinds {
		for name, told := range fates {
			for _, times := range []int{1, 4} {
				t.Run(fmt.Sprintf("%s %s %d times", what, name, times), func(t *testing.T) {
					bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
						w.attach(2)
						w.write(2, 0, fill(8192, 1))
						w.nodes[1].kill()
						l := startLoadEvery(w, 2, 100*time.Millisecond)
						time.Sleep(time.Second)
						left := times
						w.cells.set(func(c *testCells) {
							c.decide = func(_ int, change cell.Change) fate {
								if is(change) && left > 0 {
									left--
									return told
								}
								return commits
							}
						})
						w.nodes[1].restart(true)
						if what == "shrink" { // have it fail in the midst
							for w.d(2).holding.Load().record().Groups[0].Count(crdt.Syncing) == 0 {
								time.Sleep(time.Millisecond)
							}
							w.nodes[1].kill()
							time.Sleep(30 * time.Second)
							w.nodes[1].restart(true)
						}
						w.awaitAllInSync()
						time.Sleep(time.Second)
						l.end()
						l.verify(2)
						w.flush(2)
						w.wantEqual()
						w.cells.set(func(*testCells) {
							if left == times {
								t.Error("the change never came")
							}
						})
					})
				})
			}
		}
	}
}

func TestGrowInDoubtNeedsTheReplicaForWritesAndReadsItNot(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(8192, 1))
		w.nodes[1].kill()
		w.write(2, 0, fill(8192, 2))
		w.cells.set(func(c *testCells) {
			c.decide = func(_ int, change cell.Change) fate {
				if _, ok := change.(cell.Grow); ok {
					c.down = map[int]bool{2: true} // nothing can be learned afterwards
					return commitsUntold
				}
				return commits
			}
		})
		w.nodes[1].restart(false)
		for !w.d(2).Status().InDoubt {
			time.Sleep(10 * time.Millisecond)
		}
		w.write(2, 4096, fill(4096, 3))
		if got := w.nodes[1].raw(4096, 1)[0]; got != 3 {
			t.Fatalf("a write was acknowledged while the grow was in doubt, and n1 has %d", got)
		}
		// The holder dies, and n1 alone is left: it was in sync all the time.
		w.nodes[2].kill()
		w.nodes[0].kill()
		w.mu.Lock()
		w.dead[2] = true
		w.mu.Unlock()
		w.cells.heal()
		w.attach(1)
		w.wantRead(1, 0, fill(4096, 2))
		w.wantRead(1, 4096, fill(4096, 3))
		w.nodes[0].restart(false)
		w.wantReturn(0)
	})
}

func TestWriteWaitsForALostReplicaWhileItsGrowIsInDoubt(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(8192, 1))
		w.nodes[1].kill()
		w.write(2, 0, fill(8192, 2))
		w.cells.set(func(c *testCells) {
			c.decide = func(_ int, change cell.Change) fate {
				if _, ok := change.(cell.Grow); ok {
					c.down = map[int]bool{2: true}
					return commitsUntold
				}
				return commits
			}
		})
		w.nodes[1].restart(false)
		for !w.d(2).Status().InDoubt {
			time.Sleep(10 * time.Millisecond)
		}
		w.nodes[1].kill()
		write := w.writing(2, 0, fill(512, 3))
		wantWaiting(t, "a write that a replica lacks which may be in sync", write, 30*time.Second)
		later := w.writing(2, 3*testBlock, fill(512, 3))
		wantWaiting(t, "a write that began after the replica failed", later, 30*time.Second)
		w.cells.heal()
		for _, c := range []<-chan error{write, later} {
			if err := <-c; err != nil {
				t.Fatal(err)
			}
		}
		if in := w.inSync(); len(in) != 1 || in[0] != 0 {
			t.Errorf("in sync: %v", in)
		}
		w.nodes[1].restart(true)
		w.wantReturn(1)
	})
}

func TestReplicaHearsOfNoStableStampBeforeItIsInSync(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.resyncing(2, 1, 8, 400*time.Millisecond)
		time.Sleep(4 * time.Second) // several heartbeats
		if in := w.inSync(); len(in) != 1 {
			t.Fatal("the resync was too quick to be interrupted")
		}
		w.nodes[1].kill()
		time.Sleep(2 * rejoinFor) // the holder forgets what it knew to be dirty
		w.nodes[1].restart(false)
		w.mu.Lock()
		w.delay = func(int, int) time.Duration { return time.Millisecond }
		w.mu.Unlock()
		w.wantReturn(1)
	})
}

func TestReplicaThatIsNotInSyncDoesNotHoldUpWritesWhenItFails(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		for b := range int64(8) {
			w.write(2, b*testBlock, fill(1<<20, 1))
		}
		w.nodes[1].kill()
		for b := range int64(8) {
			w.write(2, b*testBlock, fill(1<<20, 2))
		}
		w.nodes[1].restart(false)
		h := w.d(2).holding.Load()
		for len(h.view.Load().groups[0].ack) == 1 || len(w.inSync()) == 2 {
			if len(w.inSync()) == 2 {
				t.Skip("too quick to be caught waiting for it")
			}
			time.Sleep(100 * time.Microsecond)
		}
		w.cells.set(func(c *testCells) { c.down = map[int]bool{2: true} }) // and no quorum to drop anything
		w.setCut(2, 1, true)                                               // what is sent to it is lost
		begin := time.Now()
		w.write(2, 0, fill(512, 3))
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("a write waited %v for a replica that is not in sync", took)
		}
		w.setCut(2, 1, false)
		w.cells.heal()
		w.wantReturn(1)
	})
}

func TestDetachDuringAResyncIsQuickAndTheNextHolderGoesOn(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.resyncing(2, 1, 8, 20*time.Millisecond)
		time.Sleep(200 * time.Millisecond)
		begin := time.Now()
		w.detach(2)
		if took := time.Since(begin); took > 500*time.Millisecond {
			t.Errorf("the detach took %v", took)
		}
		if rec := w.cells.record(); rec.Phase != crdt.PhaseReleased || rec.Groups[0].Count(crdt.InSync) != 1 {
			t.Errorf("after the detach: %v, %+v", rec.Phase, rec.Groups)
		}
		w.attach(0)
		w.wantReturn(1)
		w.wantRead(1, 7*testBlock, fill(4096, 2))
	})
}

func TestGrowThatAnotherChangeOvertakesIsProposedAgain(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.nodes[1].kill()
		w.write(2, 0, fill(8192, 2))
		var joins, overtaken atomic.Int32
		w.cells.set(func(c *testCells) {
			c.decide = func(_ int, change cell.Change) fate {
				switch change.(type) {
				case cell.Join:
					joins.Add(1)
				case cell.Grow:
					if overtaken.Add(1) <= 2 {
						return overtakes
					}
				}
				return commits
			}
		})
		w.nodes[1].restart(false)
		w.wantReturn(1)
		if joins.Load() != 1 || overtaken.Load() != 3 {
			t.Errorf("%d joins and %d grows", joins.Load(), overtaken.Load())
		}
	})
}

func TestReplicaThatIsRetiredBeforeItReturnsIsNotNamedAgain(t *testing.T) {
	bubble(t, setup{nodes: 4, replicas: 3}, func(w *world) {
		w.attach(3)
		w.nodes[2].kill()
		w.write(3, 0, fill(8192, 2))
		w.cells.set(func(c *testCells) { c.latency = 500 * time.Millisecond })
		w.nodes[2].restart(false)
		time.Sleep(time.Second) // it is asked whether it is there
		if err := w.d(3).Drop(w.t.Context(), 0, w.nodes[2].rid, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if rec := w.cells.record(); rec.Groups[0].Member(w.nodes[2].rid) != nil {
			t.Errorf("members after the drop: %+v", rec.Groups[0].Members)
		}
	})
}

func TestMaintenanceBringsAReplicaBackAndLetsGo(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(1<<20, 1))
		w.nodes[1].kill()
		w.write(2, 0, fill(1<<20, 2))
		w.detach(2)
		w.nodes[1].restart(true)
		if err := w.d(0).Maintain(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if rec := w.cells.record(); rec.Phase != crdt.PhaseReleased {
			t.Errorf("phase %v after maintenance", rec.Phase)
		}
		w.wantReturn(1)
		epoch := w.cells.record().Epoch
		w.wantRead(2, 0, fill(4096, 2))
		if epoch != 2 {
			t.Errorf("epoch %v", epoch)
		}
	})
}

func TestMaintenanceOfAReplicaThatIsGoneLetsGo(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.nodes[1].kill()
		w.write(2, 0, fill(1<<20, 2))
		w.detach(2)
		ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
		defer cancel()
		epoch := w.cells.record().Epoch
		if err := w.d(0).Maintain(ctx); err != nil {
			t.Fatal(err)
		}
		if rec := w.cells.record(); rec.Phase != crdt.PhaseReleased || rec.Epoch != epoch {
			t.Errorf("the disk was held for a replica that is gone: %v, epoch %v", rec.Phase, rec.Epoch)
		}
	})
}

func TestMaintenanceLetsGoOfWhatAnEarlierProcessHeld(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(4096, 1))
		w.nodes[2].kill()
		w.nodes[2].restart(false)
		if err := w.d(0).Maintain(w.t.Context()); err != nil {
			t.Errorf("another node: %v", err)
		}
		if rec := w.cells.record(); rec.Phase != crdt.PhaseActive || rec.Holder != w.nodes[2].id {
			t.Fatalf("another node took it: %v", rec.Phase)
		}
		if err := w.d(2).Maintain(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		for w.d(2).holding.Load() != nil {
			time.Sleep(time.Second)
		}
		if rec := w.cells.record(); rec.Phase != crdt.PhaseReleased {
			t.Errorf("it is left %v", rec.Phase)
		}
		w.wantRead(0, 0, fill(4096, 1))
	})
}

func TestMaintenanceGivesWayAtOnce(t *testing.T) {
	for name, take := range map[string]func(w *world){
		"to an attach elsewhere": func(w *world) { w.attach(2) },
		"to a removal": func(w *world) {
			if rec, err := w.d(2).Free(w.t.Context()); err != nil || rec.Phase != crdt.PhaseReleased {
				w.t.Fatalf("free: %v, %v", rec.Phase, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
				w.attach(2)
				for b := range int64(8) {
					w.write(2, b*testBlock, fill(1<<20, 1))
				}
				w.nodes[1].kill()
				for b := range int64(8) {
					w.write(2, b*testBlock, fill(1<<20, 2))
				}
				w.detach(2)
				w.nodes[1].restart(false)
				w.mu.Lock()
				w.delay = func(int, int) time.Duration { return 20 * time.Millisecond }
				w.mu.Unlock()
				d := w.d(0)
				ended := async(func() error { return d.Maintain(context.Background()) })
				for rec := w.cells.record(); rec.Groups[0].Count(crdt.Syncing) == 0; rec = w.cells.record() {
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(100 * time.Millisecond)
				begin := time.Now()
				take(w)
				if took := time.Since(begin); took > time.Second {
					t.Errorf("it took %v", took)
				}
				if err := <-ended; err == nil {
					t.Error("maintenance does not say that it was interrupted")
				}
				if w.d(2).users() > 0 {
					w.wantReturn(1)
				}
			})
		})
	}
}

func TestMaintenanceLeavesAHeldDiskAlone(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.isolate([]int{2}, []int{1}, true) // so that the holder does not bring it back itself
		w.write(2, 0, fill(512, 1))
		if err := w.d(0).Maintain(w.t.Context()); !errors.Is(err, ukai.ErrHeld) {
			t.Errorf("maintain: %v", err)
		}
		w.isolate([]int{2}, []int{1}, false)
		w.write(2, 0, fill(512, 1))
		if _, err := w.d(0).Free(w.t.Context()); !errors.Is(err, ukai.ErrHeld) {
			t.Errorf("free: %v", err)
		}
	})
}

// From the moment on at which the record says that it is in sync writes go to a replica as to any other, whatever whoever had it grow knows.
func TestReplicaThatIsInSyncFollowsNoMore(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.resyncing(2, 0, 4, 10*time.Millisecond)
		h, rid := w.d(2).holding.Load(), w.nodes[0].rid
		look := func() (follows, acks bool) {
			g := h.view.Load().group(0)
			return g.follow != nil, slices.ContainsFunc(g.ack, func(m *member) bool { return m.Replica == rid })
		}
		h.mu.Lock()
		known := h.sets.known
		before, _ := look()
		h.sets.known = withRole(known, rid, crdt.InSync)
		h.rebuild()
		follows, acks := look()
		h.sets.known = known
		h.rebuild()
		h.mu.Unlock()
		if !before || follows || !acks {
			t.Errorf("followed before: %v; in sync it follows: %v, writes wait for it: %v", before, follows, acks)
		}
		w.wantReturn(0)
	})
}

func TestGrownCountsAGroupThatWasMerged(t *testing.T) {
	const rid = 2
	rec, out := record(1, 1, rid), record(1, 1)
	for _, test := range []struct {
		rec    crdt.Record
		groups []uint8
		want   bool
	}{{rec, []uint8{0}, true}, {rec, []uint8{0, 5}, true}, {out, []uint8{0}, false}, {out, []uint8{0, 5}, false}} {
		if got := grown(&test.rec, rid, test.groups); got != test.want {
			t.Errorf("%v of %+v: %v", test.groups, test.rec.Groups, got)
		}
	}
}
