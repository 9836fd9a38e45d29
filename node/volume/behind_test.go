package volume

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt"
	"ukai/node/store"
	"ukai/node/wire"
)

// beginFar has node 0 use the disk, whose first block is durable everywhere and holds ones, and puts node 1 ten milliseconds away.
func (w *world) beginFar() {
	w.attach(0)
	w.write(0, 0, fill(4096, 1)) // raises a stamp
	w.flush(0)
	w.setDelay(1, 10*time.Millisecond)
}

// wantStable cuts the power of a node and holds what is left of the disk's first byte there against what was flushed.
func (w *world) wantStable(n int, want byte) {
	w.t.Helper()
	w.nodes[n].kill()
	w.nodes[n].restart(true)
	if got := w.nodes[n].raw(0, 1)[0]; got != want {
		w.t.Errorf("after a power loss n%d has %x, %x was flushed", n, got, want)
	}
}

func TestFlushBehindWritesTakesOneRoundTrip(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.beginFar()
		for v := byte(2); v < 10; v++ {
			w.quick(0, 0, fill(4096, v))
			w.quick(0, int64(v)*4096, fill(4096, v))
			begin := time.Now()
			w.flush(0)
			if took := time.Since(begin); took < 20*time.Millisecond || took > 21*time.Millisecond {
				t.Errorf("the flush took %v, want one round trip of 20 ms", took)
			}
			if n := w.behind(0); n != 0 {
				t.Errorf("%d bytes are behind after a flush", n)
			}
		}
		w.wantEqual()
		w.wantStable(1, 9)
	})
}

// The flush is on its way when what it was sent behind turns out not to have been applied.
func TestFlushBehindAWriteThatIsSentAgain(t *testing.T) {
	for _, refused := range []bool{false, true} {
		t.Run(fmt.Sprint("refused=", refused), func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
				w.beginFar()
				pending := &w.nodes[1].replicas.Load().data
				if refused {
					pending.Add(maxPendingData) // no room for a discard
				}
				if err := w.d(0).Discard(w.t.Context(), 0, 4096); err != nil {
					t.Fatal(err)
				}
				flushed := async(func() error { return w.d(0).Flush(w.t.Context()) })
				time.Sleep(time.Millisecond)
				w.quick(0, 8192, fill(4096, 3)) // in its place n1 counts this one
				time.Sleep(15 * time.Millisecond)
				if refused {
					pending.Add(-maxPendingData) // it is sent again in the same session
				} else {
					m := w.d(0).holding.Load().members[w.nodes[1].rid]
					m.lost(m.link.Load(), ukai.ErrUnreachable) // in the next
				}
				if err := <-flushed; err != nil {
					t.Fatal(err)
				}
				if n := w.behind(0); n != 0 {
					t.Errorf("%d bytes are behind after a flush", n)
				}
				w.wantStable(1, 0)
			})
		})
	}
}

func TestFlushBehindAWriteThatALaterOneOvertakes(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.beginFar()
		rs := w.nodes[1].replicas.Load()
		for range cap(rs.workers) { // all workers of n1 are busy
			rs.workers <- struct{}{}
		}
		if err := w.d(0).Discard(w.t.Context(), 0, 4096); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		flushed := async(func() error { return w.d(0).Flush(w.t.Context()) })
		time.Sleep(time.Millisecond)
		w.quick(0, 8192, fill(4096, 3)) // later than the flush, not to be taken for the discard
		time.Sleep(100 * time.Millisecond)
		select {
		case err := <-flushed:
			t.Fatalf("the flush has not waited for what it was sent behind: %v", err)
		default:
		}
		for range cap(rs.workers) {
			<-rs.workers
		}
		if err := <-flushed; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 112*time.Millisecond {
			t.Errorf("the flush took %v, want no second round trip of 20 ms", took)
		}
		w.wantStable(1, 0)
	})
}

// A write is sent again in a new session only after a flush was sent in it.
func TestFlushBehindAWriteThatIsSentAgainLater(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 3, change: ackLocal}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		w.setDelay(1, 100*time.Millisecond)
		w.setDelay(2, time.Millisecond)
		w.quick(0, 0, fill(4096, 2))
		m := w.d(0).holding.Load().members[w.nodes[2].rid]
		old := m.link.Load()
		m.lost(old, ukai.ErrUnreachable) // before n2 has the write, which goes on only when n1 has answered
		for m.link.Load() == nil || m.link.Load() == old {
			time.Sleep(time.Millisecond)
		}
		w.flush(0)
		w.wantStable(2, 2)
	})
}

func TestFlushBehindWritesIsNoneIfAReplicaCannotSync(t *testing.T) {
	mem, broken := mediaFault(1, store.OpSync)
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal, mem: mem}, func(w *world) {
		w.beginFar()
		w.quick(0, 0, fill(4096, 2))
		broken.Store(true)
		w.flush(0)
		if in := w.inSync(); !slices.Equal(in, []int{0}) {
			t.Errorf("in sync after a flush that n1 could not do: %v", in)
		}
	})
}

func TestReplicaThatDoesNotCountIsNotFlushedBehindWrites(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		h := w.d(0).holding.Load()
		m := h.members[w.nodes[1].rid]
		h.mu.Lock()
		m.newLink(m.session, false) // as one of an older release answers
		h.mu.Unlock()
		w.setDelay(1, 10*time.Millisecond)
		w.quick(0, 0, fill(4096, 2))
		begin := time.Now()
		w.flush(0)
		if took := time.Since(begin); took < 40*time.Millisecond {
			t.Errorf("the flush took %v, want two round trips of 20 ms", took)
		}
		w.wantStable(1, 2)
	})
}

func TestReplicaDoesNotSyncBeforeWhatTheFlushWasSentBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newSealed(t)
		defer func() {
			if err := r.rs.Close(); err != nil {
				t.Error(err)
			}
		}()
		write := func(v byte) error {
			return r.write(t.Context(), 1, 1, uint16(v), fill(512, v), 0, ukai.BlockStamp{Epoch: 1})
		}
		if err := write(1); err != nil {
			t.Fatal(err)
		}
		var done sync.WaitGroup
		answer := make([]error, 3)
		for i := range answer {
			done.Go(func() { answer[i] = r.flush(t.Context(), 1, 1, uint16(i)+1, uint64(i)+1) })
		}
		synctest.Wait()
		if err := write(2); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		done.Wait()
		if answer[0] != nil || answer[1] != nil || !errors.Is(answer[2], ukai.ErrOverloaded) || time.Since(begin) != behindFor {
			t.Errorf("flushes behind 1 to 3 of 2 writes: %v, after %v", answer, time.Since(begin))
		}
		// A hello does not wait for a flush that waits, which belongs to nobody then.
		done.Go(func() { answer[0] = r.flush(t.Context(), 1, 1, 3, 3) })
		synctest.Wait()
		begin = time.Now()
		if err := r.hello(t.Context(), 1, 2, r.rs.cfg.Store.Incarnation()); err != nil {
			t.Fatal(err)
		}
		done.Wait()
		if answer[0] == nil || time.Since(begin) != 0 {
			t.Errorf("after the hello: %v, after %v", answer[0], time.Since(begin))
		}
		if err := r.flush(t.Context(), 1, 2, 0, 0); err != nil {
			t.Error(err)
		}
		for _, batch := range []uint16{0, batches} { // as no holder ends them
			if err := r.flush(t.Context(), 1, 2, batch, 1); !errors.Is(err, ukai.ErrInvalid) {
				t.Errorf("flush behind batch %d: %v", batch, err)
			}
		}
		done.Go(func() { answer[0] = r.flush(t.Context(), 1, 2, 1, 1) })
		done.Wait()
		if !errors.Is(answer[0], ukai.ErrOverloaded) {
			t.Errorf("the next session counts what the one before had: %v", answer[0])
		}
	})
}

// newSealed returns an empty replica that has been sealed for epoch 1, in session 1.
func newSealed(t *testing.T) *hosted {
	t.Helper()
	mem := store.NewMem(store.MemConfig{}).Store()
	rs := NewReplicas(ReplicasConfig{Store: mem})
	disk := ukai.DiskID{1}
	if err := mem.Create(t.Context(), disk, 1, store.ReplicaConfig{Size: testSize, BlockSize: testBlock}); err != nil {
		t.Fatal(err)
	}
	h, err := rs.open(t.Context(), disk, 1)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := h.seal(t.Context(), 1, sealRequest{})
	if err != nil || !reply.Counts || reply.Session != 1 {
		t.Fatalf("seal: %+v, %v", reply, err)
	}
	if reply, err = h.seal(t.Context(), 1, sealRequest{}); err != nil || reply.Counts {
		t.Fatalf("a seal whose answer was lost, again: %+v, %v", reply, err) // somebody may have written in the session
	}
	return h
}

func TestFlushesBesideAWriterTakeOneRoundTrip(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.attach(0)
		for off := int64(0); off < 16; off++ {
			w.write(0, off*4096, fill(4096, 1)) // raises stamps
		}
		w.flush(0)
		w.setDelay(1, 10*time.Millisecond)
		stop := make(chan struct{})
		var writer sync.WaitGroup
		writer.Go(func() {
			for i := int64(0); ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					w.quick(0, (1+i%15)*4096, fill(4096, byte(i)))
				}
			}
		})
		for v := byte(2); v < 200; v++ { // more than there are batches counted apart
			w.quick(0, 0, fill(4096, v))
			begin := time.Now()
			w.flush(0)
			if took := time.Since(begin); took > 25*time.Millisecond {
				t.Errorf("flush %d took %v, want one round trip of 20 ms", v, took)
			}
		}
		close(stop)
		writer.Wait()
		w.wantStable(1, 199)
	})
}

// Whatever is applied in whatever order: a replica takes a flush for one behind which all has come if, and only if, all that was sent before it has.
func TestBatchesAreCompleteWhenAllOfThemWasApplied(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type mutation struct {
			number int
			batch  uint16
		}
		type flush struct {
			batch uint16
			count int64
			sent  int // mutations before it
		}
		var l link
		var a applied
		a.init()
		first := rapid.SampledFrom([]uint16{1, 2, batches, 1<<15 - 3, 1<<16 - 3, 1<<16 - batches}).Draw(t, "first batch")
		l.sent.Store(uint64(first) << batchShift)
		a.through = first - 1
		sent := 0
		for range rapid.IntRange(0, 2*batches).Draw(t, "flushes before") {
			m := wire.Message{Kind: wire.KindWrite}
			l.count(&m)
			a.add(m.Layer)
			sent++
			if batch, count := l.endBatch(); !a.has(batch, uint64(count)) {
				t.Fatalf("batch %d of %d mutations in all, which were applied, is not complete", batch, count)
			}
		}
		var onTheirWay []mutation
		var flushes []flush
		missing := func(f flush) bool {
			return slices.ContainsFunc(onTheirWay, func(m mutation) bool { return m.number < f.sent })
		}
		t.Repeat(map[string]func(*rapid.T){
			"send": func(*rapid.T) {
				m := wire.Message{Kind: wire.KindWrite}
				l.count(&m)
				onTheirWay = append(onTheirWay, mutation{sent, m.Layer})
				sent++
			},
			"apply": func(t *rapid.T) {
				if len(onTheirWay) > 0 {
					i := rapid.IntRange(0, len(onTheirWay)-1).Draw(t, "which")
					a.add(onTheirWay[i].batch)
					onTheirWay = slices.Delete(onTheirWay, i, i+1)
				}
			},
			"apply what belongs to no batch": func(*rapid.T) { a.add(0) },
			"flush": func(*rapid.T) {
				if len(flushes) < maxBehind {
					if batch, count := l.endBatch(); count > 0 { // else it is behind nothing, and the replica does not look
						flushes = append(flushes, flush{batch, count, sent})
					}
				}
			},
			"look": func(t *rapid.T) {
				if len(flushes) == 0 {
					return
				}
				i := rapid.IntRange(0, len(flushes)-1).Draw(t, "which")
				f := flushes[i]
				if has := a.has(f.batch, uint64(f.count)); has == missing(f) {
					t.Fatalf("flush behind %d mutations up to batch %d: complete: %v; on their way: %v", f.count, f.batch, has, onTheirWay)
				} else if has {
					flushes = slices.Delete(flushes, i, i+1)
				}
			},
		})
	})
}

// A replica that serves blocks of its own may be sent flushes for long before anything is written there.
func TestFlushesBehindNothingLeaveRoomForWhatIsWrittenLater(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 3, change: func(r *crdt.Record) {
		ackLocal(r)
		all := r.Groups[0].Members
		r.Groups = []crdt.Group{{ID: 0, Members: all[:2]}, {ID: 1, Members: []crdt.Member{all[0], all[2]}}}
		r.Runs = []crdt.Run{{Count: 4, Group: 0}, {Count: 4, Group: 1}}
	}}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		w.mu.Lock()
		w.delay = func(int, int) time.Duration { return 10 * time.Millisecond }
		w.mu.Unlock()
		for v := range byte(2 * batches) {
			w.quick(0, 0, fill(4096, v))
			w.flush(0)
		}
		for v := byte(1); v < 4; v++ {
			w.write(0, 4*testBlock, fill(4096, v)) // at first this raises a stamp
			begin := time.Now()
			w.flush(0)
			if took := time.Since(begin); took > 21*time.Millisecond {
				t.Errorf("flush %d took %v, want one round trip of 20 ms", v, took)
			}
		}
		w.nodes[2].kill()
		w.nodes[2].restart(true)
		if got := w.nodes[2].raw(4*testBlock, 1)[0]; got != 3 {
			t.Errorf("after a power loss n2 has %x, not what was flushed", got)
		}
	})
}

// What a resync or a scrub reads of a replica meanwhile is nothing that a flush must have waited for.
func TestFlushBehindWritesIsNotRepeatedForWhatIsOnlyRead(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: ackLocal}, func(w *world) {
		w.beginFar()
		m := w.d(0).holding.Load().members[w.nodes[1].rid]
		w.quick(0, 0, fill(4096, 2))
		read := async(func() error {
			time.Sleep(time.Millisecond)
			_, _, err := m.hashes(w.t.Context(), 0, ukai.ChunkSize, nil, ukai.BlockStamp{})
			return err
		})
		begin := time.Now()
		w.flush(0)
		if took := time.Since(begin); took > 21*time.Millisecond {
			t.Errorf("the flush took %v, want one round trip of 20 ms", took)
		}
		if err := <-read; err != nil {
			t.Error(err)
		}
	})
}

// It is an older release that answers in the session in which the flush is sent, though not when it was looked at.
func TestFlushBehindIsNoneInASessionThatIsNotCounted(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 3, change: ackLocal}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.flush(0)
		w.mu.Lock()
		w.delay = func(int, int) time.Duration { return 10 * time.Millisecond }
		w.mu.Unlock()
		w.quick(0, 0, fill(4096, 2))
		h := w.d(0).holding.Load()
		var flushes [3]int // to each node
		see := func(_, to int, m *wire.Message) {
			if m.Kind != wire.KindFlush {
				return
			}
			if flushes[to]++; flushes[1]+flushes[2] == 1 {
				m := h.members[w.nodes[3-to].rid]
				h.mu.Lock()
				m.newLink(m.session, false)
				h.mu.Unlock()
			}
		}
		w.onSend.Store(&see)
		w.flush(0)
		w.onSend.Store(nil)
		if flushes != [3]int{0, 2, 2} {
			t.Errorf("flushes to each node: %v, want two to n1 and n2 each", flushes)
		}
	})
}
