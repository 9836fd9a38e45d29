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
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/store"
	"ukai/node/wire"
)

// resynced returns what a node's host has copied and compared.
func (w *world) resynced(n int) (bytes, hashed int64) {
	r := &w.nodes[n].host.Load().resynced
	return r.bytes.Load(), r.hashed.Load()
}

// away takes the replica of a node out: it is gone until the function that is returned brings it back.
var away = map[string]func(w *world, n int) (back func()){
	"crash": func(w *world, n int) func() {
		w.nodes[n].kill()
		return func() { w.nodes[n].restart(false) }
	},
	"power loss": func(w *world, n int) func() {
		w.nodes[n].kill()
		return func() { w.nodes[n].restart(true) }
	},
	"cut off": func(w *world, n int) func() {
		w.isolate([]int{0}, []int{n}, true)
		return func() { w.isolate([]int{0}, []int{n}, false) }
	},
	"frozen": func(w *world, n int) func() {
		w.nodes[n].freeze()
		return w.nodes[n].thaw
	},
}

func TestReplicaThatWasAwayIsBroughtUpToDate(t *testing.T) {
	for name, leave := range away {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
				w.attach(0)
				for b := range int64(6) {
					w.write(0, b*testBlock, fill(4096, byte(b+1)))
				}
				time.Sleep(checkpointEvery + 3*time.Second) // everything so far is known to be the same
				w.write(0, 5*testBlock, fill(4096, 66))     // in flight when it goes, as far as anybody knows
				back := leave(w, 1)
				w.write(0, 2*testBlock+128<<10, fill(4096, 99))
				if in := w.inSync(); len(in) != 1 {
					t.Fatalf("in sync while n1 is away: %v", in)
				}
				back()
				w.wantReturn(1)
				// Block 2 was written while it was away, block 5 just before; one chunk each, at most.
				copied, hashed := w.resynced(0)
				if copied > 2*ukai.ChunkSize || hashed > 2*testBlock {
					t.Errorf("%d bytes copied and %d compared for two writes of 4 KiB in two blocks", copied, hashed)
				}
				if copied == 0 && name != "frozen" { // that one applies what was sent to it when it thaws
					t.Error("nothing was copied")
				}
				w.wantRead(0, 2*testBlock+128<<10, fill(4096, 99))
				w.nodes[0].kill()
				w.mu.Lock()
				w.dead[0] = true
				w.mu.Unlock()
				w.attach(1)
				for b := range int64(5) {
					w.wantRead(1, b*testBlock, fill(4096, byte(b+1)))
				}
				w.wantRead(1, 5*testBlock, fill(4096, 66))
				w.wantRead(1, 2*testBlock+128<<10, fill(4096, 99))
			})
		})
	}
}

// The guest is quiet, so nothing but the resync itself finds out that the session with the source is gone.
func TestReplicaReturnsThoughTheDaemonOfItsSourceHasRestarted(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.nodes[0].kill()
		w.write(2, 0, fill(512, 1))
		if err := w.d(2).holding.Load().checkpointNow(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		w.nodes[1].kill()
		w.nodes[1].restart(false)
		w.nodes[0].restart(false)
		w.wantReturn(0)
	})
}

func TestReplicaThatMissedNothingIsNotCopied(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		for b := range int64(8) {
			w.write(0, b*testBlock, fill(64<<10, byte(b+1)))
		}
		time.Sleep(checkpointEvery + 3*time.Second)
		w.nodes[1].kill()
		if err := w.d(0).Resize(w.t.Context(), testSize+testBlock); err == nil {
			t.Log("resized") // needs all replicas: n1 is dropped
		}
		w.nodes[1].restart(false)
		w.wantReturn(1)
		if copied, hashed := w.resynced(0); copied != 0 || hashed != 0 {
			t.Errorf("%d bytes copied, %d compared", copied, hashed)
		}
	})
}

func TestZombieWritesOnTheReturningReplicaAreUndone(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(4096, 1))
		time.Sleep(checkpointEvery + 3*time.Second)
		// The holder reaches n1 alone; what it writes there is never acknowledged.
		w.isolate([]int{2}, []int{0}, true)
		w.cells.set(func(c *testCells) { c.down = map[int]bool{2: true} })
		zombie := w.writing(2, 3*testBlock, fill(8192, 0x66)) // a block that nobody else ever touches
		other := w.writing(2, 0, fill(4096, 0x67))
		time.Sleep(200 * time.Millisecond)
		if w.nodes[1].raw(3*testBlock, 1)[0] != 0x66 {
			t.Fatal("the zombie's write is not on n1")
		}
		w.isolate([]int{1}, []int{0}, true)
		if err := w.d(0).Takeover(w.t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if in := w.inSync(); len(in) != 1 || in[0] != 0 {
			t.Fatalf("in sync: %v", in)
		}
		w.write(0, testBlock, fill(4096, 2))
		w.isolate([]int{1}, []int{0}, false)
		w.wantReturn(1)
		if got := w.nodes[1].raw(3*testBlock, 8192); !bytes.Equal(got, make([]byte, 8192)) {
			t.Errorf("the zombie's write is still on n1: %x", got[:4])
		}
		w.wantRead(0, 0, fill(4096, 1))
		w.isolate([]int{2}, []int{0}, false)
		w.cells.heal()
		for _, c := range []<-chan error{zombie, other} {
			if err := <-c; !errors.Is(err, ukai.ErrFenced) {
				t.Errorf("zombie's write: %v", err)
			}
		}
	})
}

// load writes, clears and reads back in regions of its own until it is stopped. What it reads must be what it wrote last
// and was told is done, or a write that failed since.
type load struct {
	w       *world
	at      atomic.Int32 // node through which it works
	stop    chan struct{}
	work    sync.WaitGroup
	done    atomic.Int64 // writes acknowledged
	slowest atomic.Int64 // of these, ns
	lenient atomic.Bool  // errors are expected
	pause   time.Duration
	mu      sync.Mutex
	allowed [loadRegions][]byte // values a region may have
}

const (
	loadRegions = 8
	loadSize    = 8192
)

// region n lies across a chunk's border, four to a block, so that they share blocks and chunks.
func regionAt(n int) int64 { return int64(n%2)*3*testBlock + int64(n/2)*60<<10 }

// prepareLoad fills the disk on node n, and its regions that startLoad writes with zeros.
func (w *world) prepareLoad(n int) {
	for b := range int64(8) {
		w.write(n, b*testBlock, fill(1<<20, byte(b+1)))
	}
	for r := range loadRegions {
		w.write(n, regionAt(r), make([]byte, loadSize))
	}
}

func startLoad(w *world, at int) *load { return startLoadEvery(w, at, 3*time.Millisecond) }

// startLoadEvery is startLoad with a pause of up to so much between the steps of each region.
func startLoadEvery(w *world, at int, pause time.Duration) *load {
	l := &load{w: w, stop: make(chan struct{}), pause: pause}
	l.at.Store(int32(at))
	for n := range loadRegions {
		l.work.Go(func() { l.run(n) })
	}
	return l
}

func (l *load) disk() *Disk {
	if h := l.w.nodes[l.at.Load()].host.Load(); h != nil {
		return h.Disk(l.w.disk, "vm1")
	}
	return nil
}

func (l *load) run(n int) {
	rng := rand.New(rand.NewPCG(uint64(n), 7))
	for v := byte(1); ; v = v%200 + 1 {
		select {
		case <-l.stop:
			return
		case <-time.After(time.Duration(rng.Int64N(int64(l.pause)))):
		}
		d := l.disk()
		if d == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		l.step(ctx, d, rng, n, v)
		cancel()
	}
}

func (l *load) step(ctx context.Context, d *Disk, rng *rand.Rand, n int, v byte) {
	var err error
	begin, flushed := time.Now(), false
	what := rng.IntN(8)
	if l.fresh(n) {
		what = 0
	}
	switch what {
	case 0:
		v, err = 0, d.Discard(ctx, regionAt(n), loadSize)
	case 1:
		v, err = 0, d.Zero(ctx, regionAt(n), loadSize)
	case 2:
		flushed, err = true, d.Flush(ctx)
	default:
		_, err = d.WriteAt(ctx, fill(loadSize, v), regionAt(n))
	}
	l.mu.Lock()
	switch {
	case flushed:
	case err == nil:
		l.allowed[n] = []byte{v}
		l.done.Add(1)
		if took := int64(time.Since(begin)); took > l.slowest.Load() {
			l.slowest.Store(took)
		}
	default:
		l.allowed[n] = append(l.allowed[n], v)
	}
	l.mu.Unlock()
	if err != nil && !l.lenient.Load() {
		l.w.t.Errorf("region %d: %v", n, err)
	}
	l.check(ctx, d, n)
}

// fresh says whether a region has not been written yet.
func (l *load) fresh(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.allowed[n] == nil
}

// check reads a region back. A value that was read settles which of the allowed ones it is, sector by sector.
func (l *load) check(ctx context.Context, d *Disk, n int) {
	p := make([]byte, loadSize)
	if _, err := d.ReadAt(ctx, p, regionAt(n)); err != nil {
		if !l.lenient.Load() {
			l.w.t.Errorf("region %d: %v", n, err)
		}
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.allowed[n] == nil {
		return
	}
	for off := 0; off < len(p); off += 512 {
		if !bytes.Contains(l.allowed[n], p[off:off+1]) || !bytes.Equal(p[off:off+512], fill(512, p[off])) {
			l.w.t.Errorf("region %d, byte %d: read %x, allowed %x", n, off, p[off], l.allowed[n])
			return
		}
	}
}

func (l *load) end() {
	l.w.t.Helper()
	close(l.stop)
	l.work.Wait()
}

// verify reads all regions through a node.
func (l *load) verify(at int) {
	for n := range loadRegions {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		l.check(ctx, l.w.d(at), n)
		cancel()
	}
}

func TestGuestWritesOnWhileAReplicaReturns(t *testing.T) {
	for _, c := range []struct {
		name  string
		delay time.Duration // to and from the replica that returns
	}{{"near", 100 * time.Microsecond}, {"far", 30 * time.Millisecond}} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
				w.mu.Lock()
				w.delay = func(from, to int) time.Duration {
					if from == 1 || to == 1 {
						return c.delay
					}
					return 100 * time.Microsecond
				}
				w.mu.Unlock()
				w.attach(0)
				w.prepareLoad(0)
				w.nodes[1].kill()
				l := startLoad(w, 0)
				time.Sleep(2 * time.Second)
				w.nodes[1].restart(true)
				var during atomic.Int64 // slowest write until all wait for n1
				l.slowest.Store(0)
				seen := false
				for {
					rec := w.cells.record()
					in := len(rec.InSync(0))
					if h := w.d(0).holding.Load(); !seen && h.view.Load() != nil && len(h.view.Load().groups[0].ack) == 2 {
						seen = true
						during.Store(l.slowest.Load())
					}
					if in == 2 {
						break
					}
					time.Sleep(time.Millisecond)
				}
				time.Sleep(time.Second)
				l.end()
				w.wantReturn(1)
				l.verify(0)
				// A write may wait for the copy of a few chunks, at most.
				if limit := 4*c.delay + 100*time.Millisecond; time.Duration(during.Load()) > limit {
					t.Errorf("a write took %v while the replica was brought up to date, more than %v", time.Duration(during.Load()), limit)
				}
				if l.done.Load() < 100 {
					t.Errorf("only %d writes", l.done.Load())
				}
			})
		})
	}
}

func TestDiskGrowsWhileAReplicaReturns(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		for b := range int64(8) {
			w.write(0, b*testBlock, fill(1<<20, byte(b+1)))
		}
		w.nodes[1].kill()
		for b := range int64(8) {
			w.write(0, b*testBlock, fill(1<<20, byte(b+10)))
		}
		w.mu.Lock()
		w.delay = func(int, int) time.Duration { return 20 * time.Millisecond }
		w.mu.Unlock()
		w.nodes[1].restart(false)
		for w.d(0).holding.Load().record().Groups[0].Count(crdt.Syncing) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(150 * time.Millisecond) // in the midst of it
		size := int64(testSize)
		for range 4 {
			size += testBlock + 4096
			if err := w.d(0).Resize(w.t.Context(), size); err != nil {
				t.Fatal(err)
			}
			w.write(0, size-8192, fill(8192, 77))
			time.Sleep(50 * time.Millisecond)
		}
		w.wantReturn(1)
		if got := w.nodes[1].raw(size-8192, 8192); !bytes.Equal(got, fill(8192, 77)) {
			t.Error("the replica lacks what was written beyond the old end")
		}
	})
}

func TestGrowthThatIsUnderWayDoesNotCostTheSourceItsSession(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, size: 2<<20 + 4096}, func(w *world) {
		w.attach(2)
		w.nodes[1].kill()
		w.write(2, 2<<20, fill(4096, 1))
		w.mu.Lock()
		w.delay = func(from, to int) time.Duration {
			if from == 0 || to == 0 {
				return 40 * time.Millisecond // it grows late
			}
			return time.Millisecond
		}
		w.mu.Unlock()
		var greeted atomic.Int32
		see := func(_, to int, m *wire.Message) {
			if to == 0 && m.Kind == wire.KindHello {
				greeted.Add(1)
			}
		}
		w.onSend.Store(&see)
		w.nodes[1].restart(false)
		size := int64(2<<20 + 4096)
		var writes []<-chan error
		for range 30 {
			writes = append(writes, w.writing(2, size-4096, fill(4096, 2)))
			size += 4096
			if err := w.d(2).Resize(w.t.Context(), size); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range writes {
			if err := <-c; err != nil {
				t.Fatal(err)
			}
		}
		w.wantReturn(1)
		if n := greeted.Load(); n > 0 {
			t.Errorf("the source lost its session %d times", n)
		}
	})
}

func TestReplicaIsNotReadBeforeItIsInSync(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(2)
		w.write(2, 0, fill(1<<20, 1))
		w.nodes[1].kill()
		w.write(2, 0, fill(1<<20, 2))
		early := false
		see := func(_, to int, m *wire.Message) {
			rec := w.cells.record()
			if to == 1 && m.Kind == wire.KindRead && !inSyncIn(&rec, w.nodes[1].rid, []uint8{0}) {
				early = true
			}
		}
		w.onSend.Store(&see)
		w.nodes[1].restart(false)
		l := startLoad(w, 2)
		w.awaitAllInSync()
		l.end()
		if early {
			t.Error("a syncing replica was read")
		}
		w.wantEqual()
	})
}

func TestNewReplicaIsFilled(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		for b := range int64(4) {
			w.write(0, 2*b*testBlock, fill(100<<10, byte(b+1)))
		}
		time.Sleep(checkpointEvery + 3*time.Second)
		n := w.nodes[2]
		if err := w.d(0).AddReplica(w.t.Context(), 0, n.rid, n.id); !errors.Is(err, ukai.ErrNotFound) {
			t.Fatalf("a replica that its node does not have was added: %v", err)
		}
		if err := n.store.Create(w.t.Context(), w.disk, n.rid, store.ReplicaConfig{Size: testSize, BlockSize: testBlock}); err != nil {
			t.Fatal(err)
		}
		if err := w.d(0).AddReplica(w.t.Context(), 0, n.rid, n.id); err != nil {
			t.Fatal(err)
		}
		w.wantReturn(2)
		if copied, _ := w.resynced(0); copied != 4*2*ukai.ChunkSize {
			t.Errorf("%d bytes copied of 4 x 100 KiB", copied)
		}
	})
}

// twoGroups lays blocks out in runs of two groups. Both have replicas on n0 and n1.
func twoGroups(rec *crdt.Record) {
	rec.Groups = append(rec.Groups, crdt.Group{ID: 1, Members: append([]crdt.Member(nil), rec.Groups[0].Members...)})
	rec.Runs = []crdt.Run{{Count: 2}, {Count: 3, Group: 1}, {Count: 3}}
}

func TestReplicaOfTwoGroupsReturns(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: twoGroups}, func(w *world) {
		w.attach(0)
		for b := range int64(8) {
			w.write(0, b*testBlock, fill(4096, byte(b+1)))
		}
		time.Sleep(checkpointEvery + 3*time.Second)
		w.nodes[1].kill()
		w.write(0, 3*testBlock, fill(4096, 33))
		w.write(0, 7*testBlock, fill(4096, 77))
		w.nodes[1].restart(true)
		l := startLoad(w, 0)
		w.awaitAllInSync()
		l.end()
		w.wantEqual()
		rec := w.cells.record()
		if !inSyncIn(&rec, w.nodes[1].rid, []uint8{0, 1}) {
			t.Errorf("groups: %+v", rec.Groups)
		}
	})
}

func TestReplicaJoinsASecondGroupThoughItsStampSpeaksOfTheFirstOnly(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: func(rec *crdt.Record) {
		twoGroups(rec)
		rec.Groups[1].Members = rec.Groups[1].Members[:1] // n1 has nothing of group 1
	}}, func(w *world) {
		w.attach(0)
		for b := range int64(8) {
			w.write(0, b*testBlock, fill(4096, byte(b+1)))
		}
		time.Sleep(checkpointEvery + 3*time.Second) // n1 is told that everything is stable
		n := w.nodes[1]
		if err := w.d(0).AddReplica(w.t.Context(), 1, n.rid, n.id); err != nil {
			t.Fatal(err)
		}
		w.awaitAllInSync()
		for b := range int64(8) {
			if got := n.raw(b*testBlock, 1)[0]; got != byte(b+1) {
				t.Errorf("block %d on n1: %d", b, got)
			}
		}
	})
}

func TestReplicaThatWasNeverInSyncInItsSecondGroupReturns(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, change: func(rec *crdt.Record) {
		twoGroups(rec)
		rec.Groups[1].Members = rec.Groups[1].Members[:1]
	}}, func(w *world) {
		w.attach(0)
		for b := range int64(8) {
			w.write(0, b*testBlock, fill(4096, byte(b+1)))
		}
		time.Sleep(checkpointEvery + 3*time.Second)
		n := w.nodes[1]
		see := func(_, to int, m *wire.Message) {
			if to == 1 && m.Kind == wire.KindStamps { // before anything is copied
				w.setClosed(1, true)
			}
		}
		w.onSend.Store(&see)
		if err := w.d(0).AddReplica(w.t.Context(), 1, n.rid, n.id); err != nil {
			t.Fatal(err)
		}
		w.write(0, 0, fill(4096, 1))
		for rec := w.cells.record(); rec.Groups[0].Count(crdt.Out)+rec.Groups[1].Count(crdt.Out) < 2; rec = w.cells.record() {
			time.Sleep(100 * time.Millisecond)
		}
		w.onSend.Store(nil)
		w.setClosed(1, false)
		w.awaitAllInSync()
		for b := range int64(8) {
			if got := n.raw(b*testBlock, 1)[0]; got != byte(b+1) {
				t.Errorf("block %d on n1: %d", b, got)
			}
		}
	})
}

func TestOneWriteToEachChunkDuringAResyncIsOnTheReplica(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, size: 4 << 20}, func(w *world) {
		w.resyncing(2, 1, 4, 10*time.Millisecond)
		var writes []<-chan error
		for _, chunk := range rand.New(rand.NewPCG(3, 4)).Perm(4 << 20 / ukai.ChunkSize) {
			writes = append(writes, w.writing(2, int64(chunk)*ukai.ChunkSize, fill(512, 3)))
			time.Sleep(7 * time.Millisecond)
		}
		for _, c := range writes {
			if err := <-c; err != nil {
				t.Fatal(err)
			}
		}
		w.wantReturn(1)
	})
}

func TestUnreadableSourceIsPassedOverForAnother(t *testing.T) {
	mem, broken := mediaFault(0, store.OpRead)
	bubble(t, setup{nodes: 4, replicas: 3, mem: mem}, func(w *world) {
		w.attach(0)
		w.write(0, 0, fill(1<<20, 1))
		w.nodes[2].kill()
		w.write(0, 0, fill(1<<20, 2))
		broken.Store(true)
		w.nodes[2].restart(false)
		w.awaitAllInSync()
		broken.Store(false)
		w.wantReturn(2)
	})
}

func TestSourceThatDiesIsReplacedByAnother(t *testing.T) {
	bubble(t, setup{nodes: 4, replicas: 3}, func(w *world) {
		w.resyncing(3, 2, 8, 10*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		w.nodes[0].kill()
		l := startLoad(w, 3)
		time.Sleep(20 * time.Second)
		l.end()
		if in := w.inSync(); fmt.Sprint(in) != "[1 2]" {
			t.Errorf("in sync: %v", in)
		}
		w.nodes[0].restart(true)
		w.wantReturn(0)
		l.verify(3)
	})
}

func TestFlappingReplicaIsJoinedLessAndLessOften(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		var joins atomic.Int32
		w.cells.set(func(c *testCells) {
			c.decide = func(_ int, change cell.Change) fate {
				if _, ok := change.(cell.Join); ok {
					joins.Add(1)
				}
				return commits
			}
		})
		for range 100 {
			w.nodes[1].kill()
			w.write(0, 0, fill(512, 1))
			w.nodes[1].restart(false)
			time.Sleep(6 * time.Second)
		}
		if n := joins.Load(); n > 12 {
			t.Errorf("%d joins in ten minutes", n)
		}
		time.Sleep(maxReturnPause)
		w.awaitAllInSync()
	})
}

func TestUnreachableReplicaCostsTheArbitersNothing(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		w.attach(0)
		w.nodes[1].kill()
		w.write(0, 0, fill(512, 1))
		time.Sleep(time.Second)
		before := 0
		w.cells.set(func(c *testCells) { before = c.count })
		sent := w.requests.Load()
		time.Sleep(10 * time.Minute)
		w.cells.set(func(c *testCells) {
			if c.count != before {
				t.Errorf("%d changes or reads of the record in ten minutes", c.count-before)
			}
		})
		if n := w.requests.Load() - sent; n > 10*60/10+20 {
			t.Errorf("%d requests in ten minutes to a node that does not answer", n)
		}
		w.nodes[1].restart(false)
		w.wantReturn(1)
	})
}

func TestReplicaWithoutRoomIsTriedLessAndLessOften(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2, mem: func(n int) store.MemConfig {
		if n == 1 {
			return store.MemConfig{Capacity: 2 << 20}
		}
		return store.MemConfig{}
	}}, func(w *world) {
		var failures atomic.Int32
		w.nodes[0].host.Load().cfg.Notify = func(e Event) {
			if e.Kind == ResyncFailed {
				failures.Add(1)
			}
		}
		w.attach(0)
		for b := range int64(6) {
			w.write(0, b*testBlock, fill(1<<20, byte(b+1)))
		}
		time.Sleep(time.Hour)
		if n := failures.Load(); n < 3 || n > 30 {
			t.Errorf("%d failed resyncs in an hour", n)
		}
		s := w.d(0).Status()
		for _, r := range s.Replicas {
			if r.Node == w.nodes[1].id && (r.Trouble == "" || r.Out == 0) {
				t.Errorf("status does not say why n1 is out: %+v", r)
			}
		}
	})
}

// A replica may find that it has a block already which was written since it left: then its stamp must tell of that, too, for others are brought up to date
// from it.
func TestAReplicaThatHadTheContentAlreadyTellsThoseThatItIsTheSourceOf(t *testing.T) {
	const at = 3 * testBlock
	for name, c := range map[string]struct {
		change func(w *world) // while n2 is away
		source int
		want   byte
	}{
		"zeros, which a new replica has": {func(w *world) {
			w.nodes[2].kill()
			if err := w.d(0).Discard(w.t.Context(), at, 4096); err != nil {
				w.t.Fatal(err)
			}
			w.add(0, 0, w.made(3))
			for !slices.Contains(w.inSync(), 3) {
				time.Sleep(time.Second)
			}
		}, 3, 0},
		"what was there before": {func(w *world) {
			w.nodes[1].kill()
			w.write(0, at, fill(4096, 2))
			time.Sleep(checkpointEvery + 3*time.Second)
			w.nodes[2].kill()
			w.write(0, at, fill(4096, 1))
			w.nodes[1].restart(false)
			for !slices.Contains(w.inSync(), 1) {
				time.Sleep(time.Second)
			}
		}, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{nodes: 4, replicas: 3}, func(w *world) {
				w.attach(0)
				w.write(0, at, fill(4096, 1))
				time.Sleep(checkpointEvery + 3*time.Second)
				c.change(w)
				w.flush(0)
				w.detach(0)
				w.attach(c.source) // reads its own replica, and fills others from there
				w.nodes[2].restart(false)
				w.wantReturn(2)
				if got := w.nodes[2].raw(at, 1)[0]; got != c.want {
					t.Errorf("n2 is in sync and has %d, want %d", got, c.want)
				}
			})
		})
	}
}
