package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ukai"
	"ukai/node/store"
	"ukai/node/wire"
)

// written attaches the disk to a node, fills it, and waits until all of it is quiet on all replicas.
func (w *world) written(n int) {
	w.t.Helper()
	w.attach(n)
	for b := range w.d(n).Size() / testBlock {
		w.write(n, b*testBlock, w.content(b))
	}
	time.Sleep(checkpointEvery + 3*time.Second)
}

// content is what written writes to a block: no two parts are the same.
func (w *world) content(block int64) []byte {
	p := make([]byte, testBlock)
	for i := range p {
		p[i] = byte(i/512) + byte(i/store.SumBytes)*7 + byte(block)*31 + 1
	}
	return p
}

// scrub scrubs the whole disk, and retries steps that fail for a while.
func (w *world) scrub(n int, verifyOnly bool) ScrubResult {
	w.t.Helper()
	var all ScrubResult
	for begin := time.Now(); ; {
		r, err := w.d(n).Scrub(w.t.Context(), ScrubStep{From: all.Next, VerifyOnly: verifyOnly})
		all.Next, all.Done = r.Next, r.Done
		all.Verified, all.Corrupt = all.Verified+r.Verified, all.Corrupt+r.Corrupt
		all.Repaired, all.Unrepaired = all.Repaired+r.Repaired, all.Unrepaired+r.Unrepaired
		switch {
		case err == nil && r.Done:
			return all
		case err != nil && time.Since(begin) > time.Minute:
			w.t.Fatal(err)
		case err != nil:
			time.Sleep(time.Second)
		}
	}
}

// want compares the counts of a scrub.
func (r ScrubResult) want(t *testing.T, verified, corrupt, repaired, unrepaired int64) {
	t.Helper()
	if r.Verified != verified || r.Corrupt != corrupt || r.Repaired != repaired || r.Unrepaired != unrepaired {
		t.Errorf("verified %d, corrupt %d, repaired %d, unrepaired %d; want %d, %d, %d, %d", r.Verified, r.Corrupt, r.Repaired, r.Unrepaired, verified, corrupt, repaired, unrepaired)
	}
}

// rot flips a bit in a replica behind its back.
func (n *testNode) rot(off int64) {
	n.w.t.Helper()
	if !n.mem.Rot(n.w.disk, n.rid, off) {
		n.w.t.Fatalf("n%d stores nothing at %d", n.n, off)
	}
}

// told gathers the events of a node's disks.
func (w *world) told(n int) *log {
	var l log
	w.nodes[n].host.Load().cfg.Notify = func(e Event) { l.add(e) }
	return &l
}

// log keeps events about repairs.
type log struct{ events atomic.Pointer[[]Event] }

func (l *log) add(e Event) {
	for old := l.events.Load(); ; old = l.events.Load() {
		var list []Event
		if old != nil {
			list = slices.Clone(*old)
		}
		list = append(list, e)
		if l.events.CompareAndSwap(old, &list) {
			return
		}
	}
}

// of returns those of a kind, as "n1 at 4096".
func (l *log) of(kind EventKind) (list []string) {
	if events := l.events.Load(); events != nil {
		for _, e := range *events {
			if e.Kind == kind {
				list = append(list, fmt.Sprintf("n%d at %d", int(e.Node[0])-1, e.Off))
			}
		}
	}
	return list
}

const partsPerBlock = testBlock / store.SumBytes

func TestRotIsFoundAndMendedUnderAGuestThatWrites(t *testing.T) {
	for name, replicas := range map[string]int{"two replicas": 2, "three replicas": 3} {
		for which := range 2 {
			t.Run(fmt.Sprintf("%s, rot on n%d", name, which), func(t *testing.T) {
				bubble(t, setup{nodes: 4, replicas: replicas}, func(w *world) {
					events := w.told(0)
					w.written(0)
					w.scrub(0, false).want(t, 8*partsPerBlock, 0, 0, 0) // makes the checksums
					rotten := []int64{3*testBlock + 17, 5*testBlock + 2*store.SumBytes + 99999}
					for _, off := range rotten {
						w.nodes[which].rot(off)
					}
					stamp := func(n int, i ukai.Index) ukai.BlockStamp {
						h, err := w.nodes[n].replicas.Load().open(context.Background(), w.disk, w.nodes[n].rid)
						if err != nil {
							t.Fatal(err)
						}
						s, _ := h.data.Stamp(i)
						return s
					}
					before := stamp(which, 3)
					r := w.scrub(0, true)
					r.want(t, 8*partsPerBlock, 2, 0, 2)
					want := []string{fmt.Sprintf("n%d at %d", which, 3*testBlock), fmt.Sprintf("n%d at %d", which, 5*testBlock+2*store.SumBytes)}
					if got := events.of(Found); !slices.Equal(got, want) {
						t.Errorf("with verify-only, found: %v, want %v", got, want)
					}
					if w.nodes[which].raw(rotten[0], 1)[0] == w.content(3)[17] {
						t.Error("verify-only changed the replica")
					}
					stop, done := make(chan struct{}), make(chan struct{})
					var serial atomic.Int32
					go func() { // to all blocks but these
						defer close(done)
						for i := 0; ; i++ {
							select {
							case <-stop:
								return
							default:
							}
							b := []int64{0, 1, 2, 4, 6, 7}[i%6]
							w.write(0, b*testBlock+int64(i%256)*4096, fill(4096, byte(serial.Add(1))))
							time.Sleep(100 * time.Microsecond)
						}
					}()
					time.Sleep(10 * time.Millisecond)
					r = w.scrub(0, false)
					close(stop)
					<-done
					r.want(t, 8*partsPerBlock, 2, 2, 0)
					if got := events.of(Mended); !slices.Equal(got, want) {
						t.Errorf("mended: %v, want %v", got, want)
					}
					w.wantEqual()
					w.wantRead(0, 3*testBlock, w.content(3))
					w.wantRead(0, 5*testBlock, w.content(5))
					if after := stamp(which, 3); after != before {
						t.Errorf("the repair raised the stamp from %v to %v", before, after)
					}
					if c := w.nodes[0].host.Load().Counters(); c["ukai_scrub_repaired_total"] != 2 || c["ukai_scrub_corrupt_total"] != 4 || c["ukai_scrub_unrepaired_total"] != 2 {
						t.Errorf("counters: %v", c)
					}
				})
			})
		}
	}
}

func TestARepairDoesNotUndoWhatTheGuestWritesThereMeanwhile(t *testing.T) {
	bubble(t, setup{nodes: 4, replicas: 3, size: testBlock}, func(w *world) {
		w.written(3)
		stop, done := make(chan struct{}), make(chan struct{})
		want := w.content(0)
		go func() {
			defer close(done)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				off := i * 37 % 64 * 4096 // of the first part
				w.write(3, int64(off), fill(4096, byte(i)))
				copy(want[off:], fill(4096, byte(i)))
			}
		}()
		repaired := int64(0)
		for i := range 100 {
			w.nodes[i%3].rot(int64(i*4096%store.SumBytes) + 7)
			r := w.scrub(3, false)
			repaired += r.Repaired
			if r.Unrepaired > 0 {
				t.Fatalf("two of three copies agree, and yet: %+v", r)
			}
		}
		close(stop)
		<-done
		if repaired == 0 {
			t.Error("nothing was repaired")
		}
		w.scrub(3, false)
		w.wantEqual()
		w.wantRead(3, 0, want)
	})
}

func TestARepairSurvivesALossOfPower(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.written(0)
		w.scrub(0, false)
		w.nodes[1].rot(testBlock)
		w.scrub(0, false).want(t, 8*partsPerBlock, 1, 1, 0)
		w.nodes[1].kill()
		w.nodes[1].restart(true)
		if got := w.nodes[1].raw(testBlock, 1)[0]; got != w.content(1)[0] {
			t.Error("it is rotten again")
		}
	})
}

func TestRotWithoutAChecksumIsMendedOnlyByAMajority(t *testing.T) {
	for replicas, repaired := range map[int]int64{2: 0, 3: 1} {
		t.Run(fmt.Sprint(replicas, " replicas"), func(t *testing.T) {
			bubble(t, setup{nodes: 4, replicas: replicas}, func(w *world) {
				w.written(0)
				w.nodes[0].rot(testBlock)
				w.scrub(0, false).want(t, 8*partsPerBlock, 1, repaired, 1-repaired)
				if repaired > 0 {
					w.wantEqual()
					w.wantRead(0, testBlock, w.content(1))
				}
			})
		})
	}
}

func TestASingleReplicaKnowsThatItHasRotted(t *testing.T) {
	bubble(t, setup{nodes: 1, replicas: 1}, func(w *world) {
		events := w.told(0)
		w.written(0)
		w.scrub(0, false).want(t, 8*partsPerBlock, 0, 0, 0)
		w.nodes[0].rot(0)
		w.scrub(0, false).want(t, 8*partsPerBlock, 1, 0, 1)
		if got := events.of(Rotten); len(got) != 1 {
			t.Errorf("rotten: %v", got)
		}
	})
}

func TestAScrubPassesByWhatWasNeverWrittenAndClaimsADiskThatIsFree(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, size: 1 << 40}, func(w *world) {
		w.attach(1)
		w.write(1, 5<<30, fill(4096, 1))
		w.write(1, 900<<30, fill(4096, 2))
		w.detach(1)
		w.scrub(1, false).want(t, 2*partsPerBlock, 0, 0, 0)
		w.nodes[0].rot(900 << 30)
		w.scrub(1, false).want(t, 2*partsPerBlock, 1, 1, 0)
		// Who wants it gets it, and is not kept waiting.
		begin := time.Now()
		w.attach(2)
		if took := time.Since(begin); took > 200*time.Millisecond {
			t.Errorf("attached after %v", took)
		}
		w.wantEqual2(900<<30, 4096)
		if _, err := w.d(1).Scrub(w.t.Context(), ScrubStep{}); !errors.Is(err, ukai.ErrHeld) {
			t.Errorf("a scrub on a node that does not hold the disk: %v", err)
		}
	})
}

// wantEqual2 compares a range of the replicas of n0 and n1.
func (w *world) wantEqual2(off, n int64) {
	w.t.Helper()
	if !bytes.Equal(w.nodes[0].raw(off, n), w.nodes[1].raw(off, n)) {
		w.t.Errorf("the replicas differ in %d bytes at %d", n, off)
	}
}

func TestADetachDoesNotWaitForAScrub(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.written(2)
		pace := func(ctx context.Context, _ int64) error { <-ctx.Done(); return ctx.Err() }
		scrub := async(func() error { _, err := w.d(2).Scrub(w.t.Context(), ScrubStep{Pace: pace}); return err })
		time.Sleep(100 * time.Millisecond)
		begin := time.Now()
		w.detach(2)
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("detached after %v", took)
		}
		if err := <-scrub; !errors.Is(err, ukai.ErrNotAttached) {
			t.Errorf("the scrub ended with %v", err)
		}
	})
}

func TestAScrubThatRestsBetweenBlocksKeepsTheDisk(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.written(2)
		w.detach(2)
		pace := func(ctx context.Context, _ int64) error { sleep(ctx, 5*time.Second); return ctx.Err() }
		for at := ukai.Index(0); ; {
			r, err := w.d(0).Scrub(w.t.Context(), ScrubStep{From: at, Pace: pace})
			if err != nil {
				t.Fatal(err)
			}
			if at = r.Next; r.Done {
				break
			}
		}
		time.Sleep((readLinger + 1) * w.nodes[0].host.Load().cfg.Linger)
		if w.d(0).holding.Load() != nil {
			t.Error("the disk is still held after the scrub")
		}
	})
}

// badSector is for setup.mem: reads of node n that touch a sector fail from when bad is set until the sector is written.
func badSector(n int, off int64) (mem func(int) store.MemConfig, bad *atomic.Bool) {
	bad = new(atomic.Bool)
	return func(node int) store.MemConfig {
		return store.MemConfig{Fault: func(op store.Op) error {
			if node != n || off < op.Off || off >= op.Off+op.Bytes || !bad.Load() {
				return nil
			}
			switch op.Kind {
			case store.OpRead:
				return ukai.ErrMedia
			case store.OpWrite:
				bad.Store(false)
			}
			return nil
		}}
	}, bad
}

func TestASectorThatCannotBeReadIsMendedByRewritingIt(t *testing.T) {
	const at = 2*testBlock + store.SumBytes + 512
	for name, find := range map[string]func(w *world){
		"by a scrub": func(w *world) { w.scrub(0, false).want(w.t, 8*partsPerBlock, 1, 1, 0) },
		"by the guest": func(w *world) {
			w.wantRead(0, at, w.content(2)[store.SumBytes+512:store.SumBytes+1024])
			time.Sleep(time.Second)
		},
	} {
		for _, checksums := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", checksums: ", checksums), func(t *testing.T) {
				mem, bad := badSector(0, at)
				bubble(t, setup{nodes: 3, replicas: 2, mem: mem}, func(w *world) {
					events := w.told(0)
					w.written(0)
					if checksums {
						w.scrub(0, false)
					}
					bad.Store(true)
					find(w)
					if bad.Load() {
						t.Fatal("the sector was not written anew")
					}
					if got := events.of(Mended); len(got) != 1 {
						t.Errorf("mended: %v", got)
					}
					if in := w.inSync(); len(in) != 2 {
						t.Errorf("in sync: %v", in)
					}
					w.wantEqual()
					w.wantRead(0, 2*testBlock, w.content(2))
				})
			})
		}
	}
}

func TestNothingIsLostWhateverFailsAtWhateverStepOfARepair(t *testing.T) {
	faults := map[string]func(w *world){
		"holder dies": holderDies,
		"rotten replica restarts": func(w *world) {
			w.nodes[1].kill()
			w.nodes[1].restart(false)
		},
		"rotten replica loses power": func(w *world) {
			w.nodes[1].kill()
			time.Sleep(2 * time.Second)
			w.nodes[1].restart(true)
		},
		"good replica loses power": func(w *world) {
			w.nodes[0].kill()
			time.Sleep(2 * time.Second)
			w.nodes[0].restart(true)
		},
		"answers of the rotten replica are lost": func(w *world) {
			w.setCut(1, 2, true)
			time.Sleep(10 * time.Second)
			w.setCut(1, 2, false)
		},
		"connections to it break": func(w *world) { w.flap(1) },
	}
	const steps = 12 // lists, looks, looks again, reads, writes back, flushes, and some of the next block
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			for k := int32(1); k <= steps; k++ {
				bubble(t, setup{nodes: 3, replicas: 2, size: 3 * testBlock}, func(w *world) {
					w.written(2)
					w.scrub(2, false)
					w.nodes[1].rot(100)
					guest := [][]byte{w.content(0), w.content(1), w.content(2)}
					var seen atomic.Int32
					hit := make(chan struct{})
					see := func(from, _ int, m *wire.Message) {
						if from == 2 && m.Kind != wire.KindHeartbeat && seen.Add(1) == k {
							w.work.Go(func() { defer close(hit); fault(w) })
						}
					}
					w.onSend.Store(&see)
					scrub := async(func() error { _, err := w.d(2).Scrub(context.Background(), ScrubStep{}); return err })
					<-hit
					<-scrub // its error is that of the fault
					w.onSend.Store(nil)
					holder := 2
					if w.nodes[2].host.Load() == nil {
						holder = 0
						w.attach(0)
					}
					// A write into the part must not be undone by anything that is still under way. While the good copy is out it would end the
					// checksum by which the rot is known, and with both lost there is nothing to repair from.
					block := 0
					if name == "good replica loses power" {
						block = 1
					}
					w.write(holder, int64(block)*testBlock+4096, fill(4096, 9))
					copy(guest[block][4096:], fill(4096, 9))
					w.awaitAllInSync()
					time.Sleep(checkpointEvery + 15*time.Second)
					w.scrub(holder, false)
					r := w.scrub(holder, true)
					if !bytes.Equal(w.nodes[0].raw(0, 3*testBlock), slices.Concat(guest...)) {
						t.Errorf("step %d: the good copy has other bytes", k)
					}
					// Where the write ended the checksum before the repair, two copies differ and neither is known to be the good one.
					if r.Corrupt == 0 {
						w.wantEqual()
					} else if block > 0 || w.nodes[1].raw(100, 1)[0] == guest[0][100] {
						t.Errorf("step %d: not repaired: %+v", k, r)
					}
				})
			}
		})
	}
}

func TestARepairWhoseAnswerIsLostDoesNotLandOnNewerData(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.written(2)
		w.scrub(2, false)
		w.nodes[1].rot(100)
		w.mu.Lock()
		w.delay = func(int, int) time.Duration { return 10 * time.Millisecond }
		w.late = 2 * time.Second
		w.mu.Unlock()
		see := func(_, to int, m *wire.Message) {
			if m.Kind == wire.KindRestore {
				w.work.Go(func() {
					time.Sleep(5 * time.Millisecond)
					w.flap(to)
				})
			}
		}
		w.onSend.Store(&see)
		r, err := w.d(2).Scrub(w.t.Context(), ScrubStep{})
		if err != nil && r.Unrepaired == 0 {
			t.Fatal(err)
		}
		w.onSend.Store(nil)
		w.write(2, 0, fill(store.SumBytes, 9))
		time.Sleep(5 * time.Second)
		w.wantEqual()
		w.wantRead(2, 0, fill(store.SumBytes, 9))
	})
}

func TestAResyncTakesNothingFromASourceThatHasRotted(t *testing.T) {
	bubble(t, setup{nodes: 4, replicas: 2}, func(w *world) {
		events := w.told(0)
		w.written(0)
		w.scrub(0, false)
		w.nodes[0].rot(testBlock + 5) // on the holder's node: it is asked first
		n := w.nodes[3]
		if err := n.mem.Create(w.t.Context(), w.disk, n.rid, store.ReplicaConfig{Size: testSize, BlockSize: testBlock}); err != nil {
			t.Fatal(err)
		}
		if err := w.d(0).AddReplica(w.t.Context(), 0, n.rid, n.id); err != nil {
			t.Fatal(err)
		}
		w.awaitAllInSync()
		if !bytes.Equal(n.raw(testBlock, testBlock), w.content(1)) {
			t.Error("the new replica has rotten data")
		}
		time.Sleep(time.Second)
		if got := events.of(Mended); len(got) != 1 {
			t.Errorf("the source was not mended: %v", got)
		}
		w.wantEqual()
	})
}

func TestAResyncFromTheLastCopyDoesNotFailBecauseAPartOfItHasRotted(t *testing.T) {
	bubble(t, setup{nodes: 4, replicas: 1}, func(w *world) {
		events := w.told(0)
		w.written(0)
		w.scrub(0, false)
		w.nodes[0].rot(testBlock + 5)
		n := w.nodes[3]
		if err := n.mem.Create(w.t.Context(), w.disk, n.rid, store.ReplicaConfig{Size: testSize, BlockSize: testBlock}); err != nil {
			t.Fatal(err)
		}
		if err := w.d(0).AddReplica(w.t.Context(), 0, n.rid, n.id); err != nil {
			t.Fatal(err)
		}
		w.awaitAllInSync()
		w.wantEqual()
		if got := events.of(Rotten); len(got) == 0 {
			t.Error("nobody was told")
		}
		w.scrub(0, false).want(t, 8*partsPerBlock, 1, 0, 1)
	})
}

func TestAReplicaThatReturnsGivesBackWhatTheLastCopyHasLost(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		events := w.told(2)
		w.written(2)
		w.scrub(2, false)
		w.nodes[0].kill()
		w.nodes[1].rot(3*testBlock + 5)
		w.write(2, 0, fill(4096, 9))
		w.nodes[0].restart(true) // it has lost its memory of what is stable: all blocks are compared
		w.awaitAllInSync()
		w.wantEqual()
		w.wantRead(2, 3*testBlock, w.content(3))
		if got := events.of(Mended); len(got) != 1 || got[0] != fmt.Sprint("n1 at ", 3*testBlock) {
			t.Errorf("mended: %v", got)
		}
	})
}

func TestChecksumsOfABlockThatIsWrittenAgainAreMadeAnew(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.written(0)
		w.scrub(0, false)
		w.write(0, 0, fill(4096, 200))
		time.Sleep(checkpointEvery + 3*time.Second)
		w.scrub(0, false).want(t, 8*partsPerBlock, 0, 0, 0)
		w.nodes[1].rot(0)
		w.scrub(0, false).want(t, 8*partsPerBlock, 1, 1, 0)
		w.wantRead(0, 0, fill(4096, 200))
		w.wantEqual()
	})
}

// A repair of which it is not known whether it is still to be applied must not be so after a newer write, also if the replica has been greeted since it was
// looked at.
func TestARepairThatFailsGivesUpTheSessionInWhichItWasSent(t *testing.T) {
	bubble(t, setup{nodes: 2, replicas: 2}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(store.SumBytes, 1))
		h := w.d(0).holding.Load()
		list, err := h.inspect(w.t.Context(), 0, 0, store.SumBytes)
		if err != nil {
			t.Fatal(err)
		}
		in := &list[slices.IndexFunc(list, func(in inspected) bool { return in.m.local == nil })]
		in.m.lost(in.m.link.Load(), ukai.ErrUnreachable)
		for in.m.link.Load() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		l := in.m.link.Load()
		w.setDelay(1, 10*time.Millisecond)
		repaired := async(func() error { return h.repair(in, fill(store.SumBytes, 1), 0) })
		time.Sleep(time.Millisecond)
		w.flap(1)
		if err := <-repaired; err == nil {
			t.Fatal("it was repaired: this shows nothing")
		}
		if in.m.link.Load() == l {
			t.Error("what was sent may still be applied")
		}
	})
}
