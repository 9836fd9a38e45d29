package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/store"
	"ukai/node/wire"
)

// across is a guest that writes one byte value over the border of two ranges again and again, and reads it back.
type across struct {
	w    *world
	off  int64 // of the border
	stop chan struct{}
	work sync.WaitGroup

	mu    sync.Mutex
	at    int // node on which it runs
	image []byte
	count int
}

const acrossSpan = 256 << 10 // bytes on each side of a border

func startAcross(w *world, at int, border ukai.Index) *across {
	g := &across{w: w, off: int64(border) * testBlock, at: at, stop: make(chan struct{}), image: make([]byte, 2*acrossSpan)}
	g.work.Go(func() {
		rng := rand.New(rand.NewPCG(uint64(border), 9))
		for v := byte(1); ; v = v%250 + 1 {
			select {
			case <-g.stop:
				return
			case <-time.After(time.Duration(rng.IntN(int(40 * time.Millisecond)))):
			}
			from := rng.IntN(2*acrossSpan) / 512 * 512
			n := min(512*(1+rng.IntN(128)), 2*acrossSpan-from)
			g.mu.Lock()
			d := w.d(g.at)
			if _, err := d.WriteAt(context.Background(), fill(n, v), g.off-acrossSpan+int64(from)); err != nil {
				w.t.Errorf("write across block %d: %v", border, err)
				g.mu.Unlock()
				return
			}
			copy(g.image[from:], fill(n, v))
			g.count++
			if g.count%3 == 0 {
				g.verifyLocked()
			}
			if g.count%29 == 0 {
				if err := d.Flush(context.Background()); err != nil {
					w.t.Errorf("flush: %v", err)
				}
			}
			g.mu.Unlock()
		}
	})
	return g
}

func (g *across) verifyLocked() {
	got := make([]byte, len(g.image))
	if _, err := g.w.d(g.at).ReadAt(context.Background(), got, g.off-acrossSpan); err != nil {
		g.w.t.Errorf("read across byte %d: %v", g.off, err)
		return
	}
	for i := range got {
		if got[i] != g.image[i] {
			g.w.t.Errorf("byte %d is %d, was written as %d", g.off-acrossSpan+int64(i), got[i], g.image[i])
			return
		}
	}
}

func (g *across) end() {
	close(g.stop)
	g.work.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.verifyLocked()
	if g.count < 50 {
		g.w.t.Errorf("the guest wrote %d times only", g.count)
	}
}

// wantGroupsEqual compares the in-sync replicas of each block.
func (w *world) wantGroupsEqual() {
	w.t.Helper()
	rec := w.cells.record()
	for b := range ukai.Index(rec.Blocks()) {
		var first []byte
		for _, m := range rec.Locations(b) {
			if m.Role != crdt.InSync {
				continue
			}
			got := w.nodes[int(m.Node[0])-1].raw(int64(b)*testBlock, testBlock)
			if first == nil {
				first = got
			}
			if !bytes.Equal(first, got) {
				w.t.Fatalf("block %d differs between its in-sync replicas, of %v", b, rec.Locations(b))
			}
		}
	}
}

func (w *world) made(n int) *testNode {
	w.t.Helper()
	node := w.nodes[n]
	if err := node.store.Create(w.t.Context(), w.disk, node.rid, store.ReplicaConfig{Size: testSize, BlockSize: testBlock}); err != nil {
		w.t.Fatal(err)
	}
	return node
}

// groupOn waits until a group is in sync on just some nodes.
func (w *world) groupOn(group uint8, nodes ...int) {
	w.t.Helper()
	w.awaitAllInSync()
	rec := w.cells.record()
	var on []int
	for _, m := range rec.InSync(group) {
		on = append(on, int(m.Node[0])-1)
	}
	if slices.Sort(on); !slices.Equal(on, nodes) {
		w.t.Fatalf("group %d is in sync on %v, must be on %v", group, on, nodes)
	}
}

func (w *world) add(at int, group uint8, n *testNode) {
	w.t.Helper()
	if err := w.d(at).AddReplica(w.t.Context(), group, n.rid, n.id); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) drop(at int, group uint8, n *testNode) {
	w.t.Helper()
	if err := w.d(at).Drop(w.t.Context(), group, n.rid, 0); err != nil {
		w.t.Fatal(err)
	}
}

func TestARangeMovesAwayAndBackWhileAGuestWritesAcrossItsBorders(t *testing.T) {
	for _, ack := range []crdt.Ack{crdt.AckAll, crdt.AckLocal} {
		t.Run(fmt.Sprint(ack), func(t *testing.T) {
			bubble(t, setup{nodes: 5, replicas: 2, change: func(r *crdt.Record) { r.Ack = ack }}, func(w *world) {
				ctx := w.t.Context()
				w.attach(0)
				for b := range int64(8) {
					w.write(0, b*testBlock, fill(4096, byte(b+1)))
				}
				w.write(0, 3*testBlock-acrossSpan, make([]byte, 2*acrossSpan))
				w.write(0, 5*testBlock-acrossSpan, make([]byte, 2*acrossSpan))
				guests := []*across{startAcross(w, 0, 3), startAcross(w, 0, 5)}
				time.Sleep(100 * time.Millisecond)
				n2, n3 := w.made(2), w.made(3)

				// Away: blocks 3 and 4 to n2 and n3.
				if err := w.d(0).Split(ctx, 0, []ukai.Range{{First: 3, Count: 2}}, 1); err != nil {
					t.Fatal(err)
				}
				w.groupOn(1, 0, 1)
				w.add(0, 1, n2)
				w.add(0, 1, n3)
				w.groupOn(1, 0, 1, 2, 3)
				w.drop(0, 1, w.nodes[0])
				w.drop(0, 1, w.nodes[1])
				w.groupOn(0, 0, 1)
				w.groupOn(1, 2, 3)
				if err := w.d(0).Merge(ctx, 1, 0); err == nil {
					t.Fatal("merged groups with different replicas")
				}
				time.Sleep(checkpointEvery + 3*time.Second)
				w.wantStale(3)

				// Replicas of either group fail, lose what was in memory, and return.
				for _, n := range []int{1, 3, 2} {
					w.nodes[n].kill()
					time.Sleep(5 * time.Second)
					w.nodes[n].restart(true)
					w.awaitAllInSync()
				}
				w.groupOn(0, 0, 1)
				w.groupOn(1, 2, 3)

				// And back.
				w.add(0, 1, w.nodes[0])
				w.add(0, 1, w.nodes[1])
				w.groupOn(1, 0, 1, 2, 3)
				w.drop(0, 1, n2)
				w.drop(0, 1, n3)
				if err := w.d(0).Merge(ctx, 1, 0); err != nil {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond)
				for _, g := range guests {
					g.end()
				}
				if err := w.d(0).Flush(ctx); err != nil {
					t.Fatal(err)
				}
				if rec := w.cells.record(); len(rec.Groups) != 1 || len(rec.Runs) != 1 {
					t.Errorf("after the merge: %+v %+v", rec.Groups, rec.Runs)
				}
				w.wantGroupsEqual()
				for _, b := range []int64{0, 1, 2, 4, 6, 7} { // the guests write over the begin of the others
					w.wantRead(0, b*testBlock, fill(4096, byte(b+1)))
				}
			})
		})
	}
}

// wantStale makes sure that a test could see a read of a replica that has left the block's group: it differs there.
func (w *world) wantStale(b int64) {
	w.t.Helper()
	if bytes.Equal(w.nodes[0].raw(b*testBlock, acrossSpan), w.nodes[2].raw(b*testBlock, acrossSpan)) {
		w.t.Errorf("the replica that left block %d has it as those that are in sync: this shows nothing", b)
	}
}

func TestATakeoverOfADiskOfTwoRangesLosesNothing(t *testing.T) {
	bubble(t, setup{nodes: 5, replicas: 2}, func(w *world) {
		ctx := w.t.Context()
		w.attach(0)
		n2, n3 := w.made(2), w.made(3)
		if err := w.d(0).Split(ctx, 0, []ukai.Range{{First: 3, Count: 2}}, 1); err != nil {
			t.Fatal(err)
		}
		w.add(0, 1, n2)
		w.add(0, 1, n3)
		w.groupOn(1, 0, 1, 2, 3)
		w.drop(0, 1, w.nodes[1])
		w.groupOn(1, 0, 2, 3) // n0 is in sync in both
		for b := range int64(8) {
			w.write(0, b*testBlock, fill(testBlock, byte(b+11)))
		}
		w.nodes[0].kill()
		w.mu.Lock()
		w.dead[0] = true
		w.mu.Unlock()
		began := time.Now()
		w.attach(3)
		t.Logf("taken over after %v", time.Since(began))
		for b := range int64(8) {
			w.wantRead(3, b*testBlock, fill(testBlock, byte(b+11)))
		}
		w.wantGroupsEqual()
		w.nodes[0].restart(true)
		w.mu.Lock()
		w.dead[0] = false
		w.mu.Unlock()
		w.awaitAllInSync()
		w.wantGroupsEqual()
		// Handed over cleanly, it is there at once: each replica is sealed once, however many groups it serves.
		w.detach(3)
		began = time.Now()
		w.attach(1)
		if took := time.Since(began); took > time.Second {
			t.Errorf("a clean handover of a disk of two groups took %v", took)
		}
		for b := range int64(8) {
			w.wantRead(1, b*testBlock, fill(4096, byte(b+11)))
		}
	})
}

// A write that began before its block got a group of its own waits for the replicas of that one.
func TestAWriteIsAcknowledgedByTheGroupThatItsBlockHasThen(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		ctx := w.t.Context()
		w.attach(0)
		w.write(0, 3*testBlock, fill(4096, 1))
		var once sync.Once
		see := func(from, to int, m *wire.Message) {
			if to == 1 && m.Kind == wire.KindWrite {
				once.Do(func() { w.setCut(0, 1, true) }) // it vanishes
			}
		}
		w.onSend.Store(&see)
		written := make(chan error, 1)
		go func() {
			_, err := w.d(0).WriteAt(ctx, fill(4096, 2), 3*testBlock)
			written <- err
		}()
		synctest.Wait()
		if err := w.d(0).Split(ctx, 0, []ukai.Range{{First: 3, Count: 1}}, 1); err != nil {
			t.Fatal(err)
		}
		// Not by Drop, which flushes first, and so waits until n1 answers.
		h := w.d(0).holding.Load()
		for _, change := range []func(known *crdt.Record) (cell.Change, error){
			func(known *crdt.Record) (cell.Change, error) {
				return cell.Shrink{Epoch: h.epoch, Version: known.Version, Replica: w.nodes[1].rid, In: []uint8{0}}, nil
			},
			func(known *crdt.Record) (cell.Change, error) {
				return cell.Retire{Epoch: h.epoch, Version: known.Version, Replica: w.nodes[1].rid, In: []uint8{0}}, nil
			},
		} {
			if err := h.alter(change); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-written:
			t.Fatalf("acknowledged without n1, which is in sync for the block: %v", err)
		default:
		}
		w.onSend.Store(nil)
		w.setCut(0, 1, false)
		w.flap(1)
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		rec := w.cells.record()
		if !inSyncIn(&rec, w.nodes[1].rid, []uint8{1}) || rec.Group(0).Member(w.nodes[1].rid) != nil {
			t.Fatalf("groups %+v: this shows nothing", rec.Groups)
		}
		if got := w.nodes[1].raw(3*testBlock, 1)[0]; got != 2 {
			t.Errorf("n1, which is in sync for the block, has %d instead of what was acknowledged", got)
		}
	})
}

// A replica that was given up while it joined a second group, and has left the first since, is not believed what its stable stamp says.
func TestAReplicaThatLeftItsOnlyGoodGroupIsComparedInFull(t *testing.T) {
	bubble(t, setup{nodes: 4, replicas: 2}, func(w *world) {
		ctx := w.t.Context()
		w.attach(0)
		for b := range int64(8) {
			w.write(0, b*testBlock, fill(4096, byte(b+1)))
		}
		if err := w.d(0).Split(ctx, 0, []ukai.Range{{First: 3, Count: 2}}, 1); err != nil {
			t.Fatal(err)
		}
		w.drop(0, 1, w.nodes[1])
		w.write(0, 3*testBlock, fill(4096, 33))
		w.write(0, 4*testBlock, fill(4096, 44))
		time.Sleep(checkpointEvery + 3*time.Second) // n1 is told that everything is stable
		n1 := w.nodes[1]
		see := func(_, to int, m *wire.Message) {
			if to == 1 && m.Kind == wire.KindStamps { // before anything is copied
				w.setClosed(1, true)
			}
		}
		w.onSend.Store(&see)
		w.add(0, 1, n1)
		w.write(0, 0, fill(4096, 1))
		for rec := w.cells.record(); rec.Groups[0].Count(crdt.Out)+rec.Groups[1].Count(crdt.Out) < 2; rec = w.cells.record() {
			time.Sleep(100 * time.Millisecond)
		}
		w.drop(0, 0, n1)
		w.onSend.Store(nil)
		w.setClosed(1, false)
		w.groupOn(1, 0, 1)
		if a, b := n1.raw(3*testBlock, 1)[0], n1.raw(4*testBlock, 1)[0]; a != 33 || b != 44 {
			t.Errorf("n1 is in sync with %d and %d", a, b)
		}
	})
}

// The only replica of some blocks, which is one of two of others, fails: its errors are the guest's where it is alone, and it is dropped where it is not.
func TestTheOnlyReplicaOfARangeIsDroppedWhereThereAreOthers(t *testing.T) {
	for _, failure := range []error{ukai.ErrMedia, ukai.ErrNoSpace} {
		t.Run(failure.Error(), func(t *testing.T) {
			var broken atomic.Bool
			mem := func(node int) store.MemConfig {
				return store.MemConfig{Fault: func(op store.Op) error {
					if node == 1 && broken.Load() && op.Kind == store.OpWrite {
						return failure
					}
					return nil
				}}
			}
			bubble(t, setup{nodes: 3, replicas: 2, mem: mem}, func(w *world) {
				ctx := w.t.Context()
				w.attach(0)
				for b := range int64(8) {
					w.write(0, b*testBlock, fill(4096, byte(b+1)))
				}
				if err := w.d(0).Split(ctx, 0, []ukai.Range{{First: 3, Count: 2}}, 1); err != nil {
					w.t.Fatal(err)
				}
				w.drop(0, 1, w.nodes[0])
				broken.Store(true)
				w.write(0, 0, fill(4096, 77)) // n1 does not have it
				rec := w.cells.record()
				if rec.Group(0).Member(w.nodes[1].rid).Role == crdt.InSync || !inSyncIn(&rec, w.nodes[1].rid, []uint8{1}) {
					w.t.Fatalf("after a write that n1 has not done: %+v", rec.Groups)
				}
				w.wantRead(0, 0, fill(4096, 77))
				if _, err := w.d(0).WriteAt(ctx, fill(4096, 78), 3*testBlock); !errors.Is(err, failure) {
					w.t.Fatalf("a write that the only replica refused: %v", err)
				}
				broken.Store(false)
				if errors.Is(failure, ukai.ErrMedia) {
					return // for good
				}
				w.write(0, 3*testBlock, fill(4096, 79))
				w.awaitAllInSync()
				w.wantGroupsEqual()
				w.wantRead(0, 0, fill(4096, 77))
				w.wantRead(0, 3*testBlock, fill(4096, 79))
			})
		})
	}
}

// What a replica has of blocks that have moved elsewhere takes no space an hour later, whether or not somebody uses the disk, and is not missed when they come back.
func TestTheSpaceOfBlocksThatHaveMovedIsGivenBack(t *testing.T) {
	for _, attached := range []bool{true, false} {
		t.Run(fmt.Sprint("attached=", attached), func(t *testing.T) {
			bubble(t, setup{nodes: 4, replicas: 2}, func(w *world) {
				ctx := w.t.Context()
				w.attach(0)
				for b := range int64(8) {
					w.write(0, b*testBlock, fill(testBlock, byte(b+1)))
				}
				if err := w.d(0).Split(ctx, 0, []ukai.Range{{First: 3, Count: 2}}, 1); err != nil {
					w.t.Fatal(err)
				}
				w.add(0, 1, w.made(2))
				w.groupOn(1, 0, 1, 2)
				w.drop(0, 1, w.nodes[0])
				w.drop(0, 1, w.nodes[1])
				holes := func(n int) (list []int) {
					for b := range int64(8) {
						if bytes.Equal(w.nodes[n].raw(b*testBlock, testBlock), make([]byte, testBlock)) {
							list = append(list, int(b))
						}
					}
					return list
				}
				if !attached {
					w.detach(0)
				}
				maintain := func() {
					if !attached {
						if err := w.d(1).Maintain(ctx); err != nil {
							w.t.Fatal(err)
						}
					}
				}
				maintain()
				time.Sleep(50 * time.Minute)
				maintain()
				if len(holes(0))+len(holes(1)) > 0 {
					w.t.Fatalf("given back at once: %v %v", holes(0), holes(1))
				}
				time.Sleep(11 * time.Minute)
				maintain()
				time.Sleep(time.Second)
				for n := range 2 {
					if got := holes(n); fmt.Sprint(got) != "[3 4]" {
						w.t.Errorf("n%d has holes %v, must have those of blocks 3 and 4", n, got)
					}
				}
				if got := holes(2); fmt.Sprint(got) != "[0 1 2 5 6 7]" {
					w.t.Errorf("n2 has holes %v, must have those that it never had", got)
				}
				if !attached {
					w.attach(0)
				}
				for b := range int64(8) {
					w.wantRead(0, b*testBlock, fill(testBlock, byte(b+1)))
				}
				w.add(0, 1, w.nodes[0])
				w.groupOn(1, 0, 2)
				w.drop(0, 1, w.nodes[2])
				w.nodes[2].kill()
				for b := range int64(8) {
					w.wantRead(0, b*testBlock, fill(testBlock, byte(b+1)))
				}
			})
		})
	}
}

func TestStraysAreWhatAReplicaDoesNotServe(t *testing.T) {
	m := func(ids ...int) (list []crdt.Member) {
		for _, id := range ids {
			list = append(list, crdt.Member{Replica: ukai.ReplicaID(id)})
		}
		return list
	}
	rec := crdt.Record{Groups: []crdt.Group{{ID: 0, Members: m(1, 2)}, {ID: 3, Members: m(2, 4)}}, Runs: []crdt.Run{{Count: 5}, {Count: 2, Group: 3}, {Count: 1}}}
	if got := fmt.Sprint(strayRanges(&rec, 1), strayRanges(&rec, 2), strayRanges(&rec, 4)); got != "[5-6] [] [0-4 7-7]" {
		t.Error(got)
	}
	if strayText(&rec) == "" {
		t.Error("there are strays")
	}
	rec.Groups[1].Members[0].Role = crdt.Out
	if got := strayRanges(&rec, 2); len(got) > 0 {
		t.Errorf("%v of a replica that returns are strays", got)
	}
	forced := rec
	forced.Epoch = ukai.NewEpoch(1, 9)
	if strayText(&forced) != "" {
		t.Error("of a disk that was forced something is given back")
	}
}
