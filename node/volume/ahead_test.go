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
	"ukai/node/cell"
	"ukai/node/store"
	"ukai/node/wire"
)

func ackLocal(r *crdt.Record) { r.Ack = crdt.AckLocal }

// setDelay sets how long a request or reply to or from a node travels; others take 100 µs.
func (w *world) setDelay(n int, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delay = func(from, to int) time.Duration {
		if from == n || to == n {
			return d
		}
		return 100 * time.Microsecond
	}
}

// behind returns how many bytes the guest of a holder was told of and not all replicas have.
func (w *world) behind(n int) int64 {
	h := w.d(n).holding.Load()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.window.bytes
}

// quick writes and fails the test unless the guest is answered long before another replica can have the write.
func (w *world) quick(n int, off int64, p []byte) {
	w.t.Helper()
	begin := time.Now()
	w.write(n, off, p)
	if took := time.Since(begin); took > 5*time.Millisecond {
		w.t.Fatalf("the write took %v", took)
	}
}

// told collects events.
type told struct {
	mu     sync.Mutex
	events []Event
}

func (e *told) host(c *Config) {
	c.Notify = func(ev Event) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.events = append(e.events, ev)
	}
}

func (e *told) of(kind EventKind) (list []Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.events {
		if ev.Kind == kind {
			list = append(list, ev)
		}
	}
	return list
}

func TestGuestIsAnsweredBeforeAFarReplicaHasTheWrite(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.setDelay(1, 20*time.Millisecond)
		w.attach(0)
		if rec := w.cells.record(); rec.Ahead != w.nodes[0].rid {
			t.Fatalf("replica %v is named to be ahead", rec.Ahead)
		}
		w.write(0, 0, fill(4096, 1)) // raises a stamp, which takes its time
		for v := byte(2); v < 10; v++ {
			p := fill(4096, v)
			w.quick(0, int64(v)*4096, p)
			copy(p, fill(4096, 0xee)) // the buffer is the guest's again
		}
		begin := time.Now()
		if err := w.d(0).Zero(w.t.Context(), 0, 4096); err != nil || time.Since(begin) < 30*time.Millisecond {
			t.Errorf("zero of a range that n1 has not acknowledged: %v after %v", err, time.Since(begin))
		}
		if got := w.nodes[1].raw(2*4096, 1)[0]; got != 2 {
			t.Errorf("n1 has %x, not what was written", got)
		}
		w.flush(0)
		w.wantEqual()
		if n := w.behind(0); n != 0 {
			t.Errorf("%d bytes are behind after a flush", n)
		}
		w.detach(0)
		if rec := w.cells.record(); rec.Phase != crdt.PhaseReleased || rec.Ahead != 0 {
			t.Errorf("released as %v, replica %v is ahead", rec.Phase, rec.Ahead)
		}
	})
}

func TestWithoutAReplicaHereTheGuestWaitsForAll(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.setDelay(1, 20*time.Millisecond)
		w.attach(2)
		w.write(2, 0, fill(4096, 1))
		begin := time.Now()
		w.write(2, 0, fill(4096, 2))
		if took := time.Since(begin); took < 40*time.Millisecond {
			t.Errorf("the write took %v", took)
		}
		w.wantEqual()
	})
}

func TestFlushAndReleaseWaitForWhatTheGuestWasToldOf(t *testing.T) {
	for name, finish := range map[string]func(w *world) error{
		"flush":      func(w *world) error { return w.d(0).Flush(w.t.Context()) },
		"release":    func(w *world) error { return w.d(0).Detach(w.t.Context()) },
		"checkpoint": func(w *world) error { return w.d(0).holding.Load().checkpointNow(w.t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
				w.attach(0)
				w.write(0, 0, fill(4096, 1))
				// What was sent before may arrive after what is sent later: only a replica that acknowledged has it.
				first := time.Now()
				w.mu.Lock()
				w.delay = func(from, to int) time.Duration {
					if to == 1 && time.Since(first) < time.Millisecond {
						return 300 * time.Millisecond
					}
					return 100 * time.Microsecond
				}
				w.mu.Unlock()
				w.quick(0, 0, fill(4096, 2))
				time.Sleep(2 * time.Millisecond)
				if err := finish(w); err != nil {
					t.Fatal(err)
				}
				w.nodes[1].kill()
				w.nodes[1].restart(true)
				if got := w.nodes[1].raw(0, 1)[0]; got != 2 {
					t.Errorf("n1 has %d after a loss of power", got)
				}
			})
		})
	}
}

func TestOverlappingWriteWaitsForAllReplicasAndOthersDoNot(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.setDelay(1, 20*time.Millisecond)
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		w.quick(0, 0, fill(4096, 2))
		begin := time.Now()
		over := w.writing(0, 2048, fill(4096, 3))
		w.quick(0, 64<<10, fill(4096, 4))
		if err := <-over; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 35*time.Millisecond {
			t.Errorf("the overlapping write took %v: n1 had not acknowledged the one before", took)
		}
		w.flush(0)
		w.wantEqual()
	})
}

func TestReadOfWhatTheGuestWasToldOfGoesToTheReplicaThatHasIt(t *testing.T) {
	mem, broken := mediaFault(0, store.OpRead)
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal, mem: mem}, func(w *world) {
		w.setDelay(1, 20*time.Millisecond)
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.write(0, 64<<10, fill(4096, 1))
		w.flush(0)
		w.quick(0, 0, fill(4096, 2))
		w.quick(0, 0, nil)
		begin := time.Now()
		w.wantRead(0, 0, fill(4096, 2))
		if took := time.Since(begin); took > time.Millisecond {
			t.Errorf("the read waited for %v", took)
		}
		broken.Store(true)
		var early atomic.Int32
		see := func(_, _ int, m *wire.Message) {
			if m.Kind == wire.KindRead && m.Offset == 0 && w.behind(0) > 0 {
				early.Add(1)
			}
		}
		w.onSend.Store(&see)
		w.wantRead(0, 0, fill(4096, 2))
		w.onSend.Store(nil)
		if early.Load() > 0 {
			t.Error("n1 was asked for what it does not have yet")
		}
		broken.Store(false)
	})
}

func TestSearchForDataWaitsForWhatTheGuestWasToldOf(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.setDelay(1, 20*time.Millisecond)
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		h := w.d(0).holding.Load()
		w.write(0, 4*testBlock, fill(4096, 1))
		w.write(0, 3*testBlock, fill(4096, 2))
		// The session with the replica here is lost and not renewed as long as its link is kept away.
		m := h.members[w.nodes[0].rid]
		l := m.link.Swap(nil)
		at, err := w.d(0).NextData(w.t.Context(), testBlock)
		m.link.Store(l)
		if err != nil || at != 3*testBlock {
			t.Errorf("the next data is at %d (block %d), %v", at, at/testBlock, err)
		}
	})
}

func TestFullWindowMakesTheGuestWait(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal, size: 32 << 20}, func(w *world) {
		w.attach(0)
		for b := range int64(32) {
			w.write(0, b*testBlock, fill(4096, 1))
		}
		w.flush(0)
		w.setDelay(1, 200*time.Millisecond)
		b := int64(0)
		for ; b*testBlock < maxWindowBytes; b++ {
			w.quick(0, b*testBlock, fill(testBlock, 2))
		}
		if n := w.behind(0); n != maxWindowBytes {
			t.Fatalf("%d bytes are behind", n)
		}
		begin := time.Now()
		w.write(0, b*testBlock, fill(4096, 3))
		if took := time.Since(begin); took < 400*time.Millisecond {
			t.Errorf("a write beyond the window took %v", took)
		}
		w.quick(0, 0, fill(4096, 4))
		w.flush(0)
		w.wantEqual()
	})
}

func TestWithoutAQuorumTheGuestIsNotToldOfMoreThanOneSecondOfWrites(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		w.cells.set(func(c *testCells) { c.down = map[int]bool{0: true} })
		w.nodes[1].freeze()
		begin := time.Now()
		var last <-chan error
		n := int64(1)
		for ; ; n++ {
			last = w.writing(0, n*4096, fill(4096, 2))
			time.Sleep(20 * time.Millisecond)
			if len(last) == 0 {
				break
			}
			<-last
		}
		if took := time.Since(begin); took > maxWindowAge+100*time.Millisecond || n < 20 {
			t.Errorf("the guest was told of %d writes, for %v", n, took)
		}
		flush := async(func() error { return w.d(0).Flush(context.WithoutCancel(w.t.Context())) })
		wantWaiting(t, "a write", last, time.Minute)
		wantWaiting(t, "a flush", flush, time.Second)
		if s := w.d(0).Status(); s.Suspended == "" {
			t.Error("status does not say that writes wait")
		}
		w.wantRead(0, 4096, make([]byte, 0))
		w.cells.set(func(c *testCells) { c.down = nil })
		if err := <-last; err != nil {
			t.Error(err)
		}
		if err := <-flush; err != nil {
			t.Error(err)
		}
		if in := w.inSync(); !slices.Equal(in, []int{0}) {
			t.Errorf("in sync: %v", in)
		}
		w.nodes[1].thaw()
		w.wantReturn(1)
	})
}

func TestFlushFailsAtTheLimitForLossesWhileWritesAreNotOnAllReplicas(t *testing.T) {
	change := func(r *crdt.Record) { r.Ack, r.OnLoss, r.MinSync = crdt.AckLocal, crdt.Error, 2 }
	bubble(t, setup{nodes: 3, replicas: 2, change: change}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		w.nodes[1].freeze()
		w.quick(0, 0, fill(4096, 2))
		if err := w.d(0).Flush(w.t.Context()); !errors.Is(err, ukai.ErrSuspended) {
			t.Errorf("flush: %v", err)
		}
		w.nodes[1].thaw()
		for begin := time.Now(); w.d(0).Flush(w.t.Context()) != nil; time.Sleep(time.Second) {
			if time.Since(begin) > time.Minute {
				t.Fatal("no flush succeeds")
			}
		}
		w.wantEqual()
	})
}

func TestReplicaThatDiesIsNotWaitedForByWhatTheGuestWasToldOf(t *testing.T) {
	bubble(t, setup{nodes: 4, replicas: 3, change: ackLocal}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		w.nodes[2].freeze()
		w.quick(0, 0, fill(4096, 2))
		w.flush(0)
		if in := w.inSync(); !slices.Equal(in, []int{0, 1}) {
			t.Errorf("in sync: %v", in)
		}
		if got := w.nodes[1].raw(0, 1)[0]; got != 2 {
			t.Errorf("n1 has %d", got)
		}
		w.nodes[2].thaw()
		w.wantReturn(2)
	})
}

func TestReplicaThatIsAheadIsDroppedOnlyWhenOthersHaveItsWrites(t *testing.T) {
	mem, broken := mediaFault(0, store.OpWrite)
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal, mem: mem}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.write(0, testBlock, fill(4096, 1))
		w.flush(0)
		w.setDelay(1, 2*time.Second)
		w.quick(0, 0, fill(4096, 2))
		shrunk := make(chan byte, 1)
		w.cells.set(func(c *testCells) {
			c.decide = func(_ int, change cell.Change) fate {
				if s, ok := change.(cell.Shrink); ok && s.Replica == w.nodes[0].rid {
					select {
					case shrunk <- w.nodes[1].raw(0, 1)[0]:
					default:
					}
				}
				return commits
			}
		})
		broken.Store(true)
		ended := w.writing(0, testBlock, fill(4096, 3))
		if got := <-shrunk; got != 2 {
			t.Errorf("the replica here is dropped while n1 has %d", got)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		w.setDelay(1, time.Millisecond)
		if rec := w.cells.record(); rec.Ahead != 0 {
			t.Errorf("replica %v is ahead", rec.Ahead)
		}
		w.wantRead(0, 0, fill(4096, 2))
		w.wantRead(0, testBlock, fill(4096, 3))
		broken.Store(false)
	})
}

func TestReplicaThatReturnsHereIsNamedBeforeTheGuestIsAnsweredEarly(t *testing.T) {
	change := func(r *crdt.Record) { r.Ack, r.Groups[0].Members[0].Role = crdt.AckLocal, crdt.Out }
	bubble(t, setup{nodes: 3, replicas: 2, change: change}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.write(0, testBlock, fill(4096, 1))
		w.cells.set(func(c *testCells) {
			c.decide = func(_ int, change cell.Change) fate {
				if _, ok := change.(cell.Lead); ok {
					return refused
				}
				return commits
			}
		})
		w.wantReturn(0)
		w.setDelay(1, 20*time.Millisecond)
		begin := time.Now()
		w.write(0, 0, fill(4096, 2))
		if took := time.Since(begin); took < 40*time.Millisecond {
			t.Errorf("answered after %v, though a takeover would not know whom to copy from", took)
		}
		w.cells.heal()
		for begin := time.Now(); w.cells.record().Ahead != w.nodes[0].rid; time.Sleep(tickEvery) {
			if time.Since(begin) > 10*time.Second {
				t.Fatal("the replica that returned is not named")
			}
		}
		w.setDelay(1, 20*time.Millisecond)
		w.write(0, 0, fill(4096, 4))
		w.quick(0, testBlock, fill(4096, 4))
	})
}

// aheadThenKilled has n0 tell its guest of writes that n1 never gets, and kills n0.
func aheadThenKilled(w *world) {
	w.attach(0)
	w.write(0, 0, fill(4096, 1))
	w.write(0, testBlock, fill(4096, 1))
	w.flush(0)
	w.setCut(0, 1, true)
	w.quick(0, 0, fill(4096, 2))
	w.quick(0, testBlock, fill(4096, 3))
	if w.behind(0) != 8192 {
		w.t.Fatalf("%d bytes are behind", w.behind(0))
	}
	w.nodes[0].kill()
	if got := w.nodes[1].raw(0, 1)[0]; got != 1 {
		w.t.Fatalf("n1 has %d", got)
	}
	w.setCut(0, 1, false)
	w.mu.Lock()
	w.dead[0] = true
	w.mu.Unlock()
}

func TestRestartOfTheDaemonLosesNothingTheGuestWasToldOf(t *testing.T) {
	for name, next := range map[string]int{"attached again here": 0, "attached on the other replica's node": 1, "attached elsewhere": 2} {
		t.Run(name, func(t *testing.T) {
			e := new(told)
			bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal, host: e.host}, func(w *world) {
				aheadThenKilled(w)
				w.nodes[0].restart(false)
				w.attach(next)
				w.wantRead(next, 0, fill(4096, 2))
				w.wantRead(next, testBlock, fill(4096, 3))
				w.wantEqual()
				if lost := e.of(Lossy); len(lost) > 0 {
					t.Errorf("told that writes may be lost: %+v", lost)
				}
			})
		})
	}
}

func TestLossOfTheHoldersMachineLosesWhatWasNotFlushedAndIsTold(t *testing.T) {
	for name, lose := range map[string]func(w *world){
		"gone":       func(*world) {},
		"power lost": func(w *world) { w.nodes[0].restart(true) },
	} {
		t.Run(name, func(t *testing.T) {
			e := new(told)
			bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal, host: e.host}, func(w *world) {
				aheadThenKilled(w)
				lose(w)
				w.attach(1)
				p := make([]byte, 4096)
				if _, err := w.d(1).ReadAt(w.t.Context(), p, 0); err != nil || p[0] != 1 && p[0] != 2 {
					t.Fatalf("read %d, %v", p[0], err)
				}
				if p[0] == 1 && len(e.of(Lossy)) != 1 {
					t.Errorf("told that writes may be lost: %+v", e.of(Lossy))
				}
				w.write(1, 2*testBlock, fill(4096, 5))
				if w.nodes[0].host.Load() == nil {
					w.nodes[0].restart(false)
				}
				w.awaitAllInSync()
				w.flush(1)
				w.wantEqual()
				w.wantRead(1, 0, p) // what was read stays so
			})
		})
	}
}

func TestDeposedHolderTellsWhatItsGuestWasToldOfInVain(t *testing.T) {
	e := new(told)
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal, host: e.host}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		w.isolate([]int{0}, []int{1, 2}, true)
		w.cells.set(func(c *testCells) { c.down = map[int]bool{0: true} })
		w.quick(0, 0, fill(4096, 2))
		if err := w.d(1).Takeover(w.t.Context(), false); err != nil {
			t.Fatal(err)
		}
		w.wantRead(1, 0, fill(4096, 1))
		if n := len(e.of(Lossy)); n != 1 {
			t.Errorf("the takeover was told to be lossy %d times", n)
		}
		late := w.writing(0, 4096, fill(4096, 3))
		wantWaiting(t, "a write after the lease has run out", late, time.Minute)
		w.isolate([]int{0}, []int{1, 2}, false)
		w.cells.heal()
		if err := <-late; !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("write: %v", err)
		}
		lost := e.of(Unfinished)
		if len(lost) != 1 || lost[0].Bytes != 4096 {
			t.Errorf("told: %+v", lost)
		}
		if _, err := w.d(0).WriteAt(w.t.Context(), fill(4096, 4), 0); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("write: %v", err)
		}
		w.wantReturn(0)
		w.wantRead(1, 0, fill(4096, 1))
	})
}

func TestNoWriteIsAnsweredEarlyAfterTheLease(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		// n1's confirmations are lost and its answers to everything else too; it does not count as silent yet.
		w.d(0).holding.Load().leaseUntil.Store(int64(w.clock()))
		w.setDelay(1, 20*time.Millisecond)
		begin := time.Now()
		w.write(0, 0, fill(4096, 2))
		if took := time.Since(begin); took < 40*time.Millisecond {
			t.Errorf("the write took %v", took)
		}
	})
}

func TestChangeOfTheModeTakesEffectUnderAHolder(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.setDelay(1, 20*time.Millisecond)
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		set := func(ack crdt.Ack, want ukai.ReplicaID) {
			t.Helper()
			rec := w.cells.record()
			rec, err := w.nodes[2].host.Load().cfg.Cells.Propose(w.t.Context(), w.disk, cell.Safety{Version: rec.Version, MinSync: 1, Ack: ack})
			if err != nil {
				t.Fatal(err)
			}
			w.nodes[0].host.Load().Observe(rec)
			if ack == crdt.AckAll {
				begin := time.Now()
				if w.write(0, 4096, fill(4096, 2)); time.Since(begin) < 40*time.Millisecond {
					t.Error("answered before all replicas had the write")
				}
			}
			for begin := time.Now(); w.cells.record().Ahead != want || w.d(0).Status().InDoubt; time.Sleep(time.Millisecond) {
				if time.Since(begin) > 5*time.Second {
					t.Fatalf("replica %v is ahead, want %v", w.cells.record().Ahead, want)
				}
			}
		}
		set(crdt.AckLocal, w.nodes[0].rid)
		w.quick(0, 0, fill(4096, 3))
		set(crdt.AckAll, 0)
		w.write(0, 0, fill(4096, 4))
		w.wantEqual()
	})
}

func TestGuestWritesOnWithAckLocalWhileAReplicaReturns(t *testing.T) {
	for name, delay := range map[string]time.Duration{"near": 100 * time.Microsecond, "far": 30 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 4, replicas: 3, change: ackLocal}, func(w *world) {
				w.setDelay(1, delay)
				w.attach(0)
				w.prepareLoad(0)
				w.nodes[1].kill()
				l := startLoad(w, 0)
				time.Sleep(2 * time.Second)
				w.nodes[1].restart(true)
				w.awaitAllInSync()
				time.Sleep(time.Second)
				w.nodes[2].freeze()
				time.Sleep(3 * time.Second)
				w.nodes[2].thaw()
				w.awaitAllInSync()
				l.end()
				w.flush(0)
				w.wantReturn(1)
				l.verify(0)
			})
		})
	}
}

func TestZerosInTheWindowReachAllReplicas(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.setDelay(1, 20*time.Millisecond)
		w.attach(0)
		w.write(0, 0, fill(16384, 1))
		w.flush(0)
		begin := time.Now()
		if err := errors.Join(w.d(0).Zero(w.t.Context(), 0, 4096), w.d(0).Discard(w.t.Context(), 8192, 4096)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 5*time.Millisecond {
			t.Errorf("took %v", took)
		}
		w.nodes[1].kill() // what is under way is sent again
		w.nodes[1].restart(false)
		w.flush(0)
		w.wantEqual()
		if got := w.nodes[1].raw(0, 16384); !bytes.Equal(got[:4096], make([]byte, 4096)) || got[4096] != 1 || got[8192] != 0 {
			t.Error("n1 does not have the zeros")
		}
	})
}
