package volume

import (
	"errors"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
)

func TestGateLetsNobodyInAndIsEmptyOnceClosed(t *testing.T) {
	g := newGate()
	var inside, after sync.WaitGroup
	start := make(chan struct{})
	for range 8 {
		after.Go(func() {
			<-start
			for g.enter() {
				g.leave()
			}
		})
	}
	if !g.enter() {
		t.Fatal("an open gate refused")
	}
	close(start)
	empty := g.close()
	select {
	case <-empty:
		t.Fatal("empty while somebody is inside")
	default:
	}
	g.hold()
	g.leave()
	if g.enter() {
		t.Fatal("a closed gate admitted")
	}
	g.leave()
	<-empty
	<-g.close() // closing twice does no harm
	inside.Wait()
	after.Wait()
	if n := g.inside(); n != 0 {
		t.Fatalf("%d inside an empty gate", n)
	}
}

// naiveRanges grants a claim when nothing earlier that conflicts is left: what rangeQueue must do.
type naiveRanges struct{ order []*claim }

func (n *naiveRanges) held(c *claim) bool {
	for _, e := range n.order {
		if e == c {
			return true
		}
		if e.off < c.end && c.off < e.end && (e.exclusive || c.exclusive || e.downgraded && c.settled) {
			return false
		}
	}
	panic("unknown claim")
}

// behind counts the downgraded claims before c in its range.
func (n *naiveRanges) behind(c *claim) (count int32) {
	for _, e := range n.order {
		if e == c {
			break
		}
		if e.downgraded && e.off < c.end && c.off < e.end {
			count++
		}
	}
	return count
}

func TestRangeQueueGrantsInOrderOfArrival(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q rangeQueue
		var naive naiveRanges
		granted := map[*claim]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				off := rapid.Int64Range(0, 9).Draw(t, "off")
				c := &claim{off: off, end: off + rapid.Int64Range(1, 4).Draw(t, "len"), exclusive: rapid.Bool().Draw(t, "exclusive")}
				c.settled = !c.exclusive && rapid.Bool().Draw(t, "settled")
				naive.order = append(naive.order, c)
				if q.add(c) {
					granted[c] = true
				}
			},
			"downgrade": func(t *rapid.T) {
				var held []*claim
				for _, c := range naive.order {
					if c.exclusive && granted[c] {
						held = append(held, c)
					}
				}
				if len(held) == 0 {
					t.Skip()
				}
				q.downgrade(rapid.SampledFrom(held).Draw(t, "which"), func(c *claim) {
					if granted[c] {
						t.Fatal("granted twice")
					}
					granted[c] = true
				})
			},
			"remove": func(t *rapid.T) {
				if len(naive.order) == 0 {
					t.Skip()
				}
				at := rapid.IntRange(0, len(naive.order)-1).Draw(t, "which") // also one that still waits: it gave up
				c := naive.order[at]
				naive.order = slices.Delete(naive.order, at, at+1)
				delete(granted, c)
				q.remove(c, func(c *claim) {
					if granted[c] {
						t.Fatal("granted twice")
					}
					granted[c] = true
				})
			},
			"": func(t *rapid.T) {
				for _, c := range naive.order {
					if granted[c] != naive.held(c) {
						t.Fatalf("claim [%d,%d) exclusive=%v: granted=%v, want %v", c.off, c.end, c.exclusive, granted[c], naive.held(c))
					}
					if want := naive.behind(c); granted[c] && !c.exclusive && c.behind.Load() != want {
						t.Fatalf("claim [%d,%d) is behind %d others, want %d", c.off, c.end, c.behind.Load(), want)
					}
				}
			},
		})
	})
}

func TestRangeLocksExclude(t *testing.T) {
	var l rangeLocks
	var cells [64]int // guarded by the locks; the race detector and the sums tell
	var work sync.WaitGroup
	for g := range 8 {
		work.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			c := new(claim)
			for range 500 {
				c.index = ukai.Index(r.IntN(2))
				c.off = r.Int64N(16)
				c.end = c.off + 1 + r.Int64N(16)
				c.exclusive = r.IntN(3) > 0
				if err := l.lock(t.Context(), c); err != nil {
					t.Error(err)
					return
				}
				for i := c.off; i < c.end; i++ {
					if c.exclusive {
						cells[int64(c.index)*32+i]++
					} else {
						_ = cells[int64(c.index)*32+i]
					}
				}
				l.unlock(c)
			}
		})
	}
	work.Wait()
	for i := range l.shards {
		if len(l.shards[i].queues) != 0 {
			t.Errorf("shard %d keeps %d queues", i, len(l.shards[i].queues))
		}
	}
}

func record(minSync int, inSync ...ukai.ReplicaID) crdt.Record {
	rec := crdt.Record{MinSync: minSync, BlockSize: 1 << 20, Size: 8 << 20, Runs: []crdt.Run{{Count: 8}}, Groups: []crdt.Group{{}}}
	for r := ukai.ReplicaID(1); r <= 3; r++ {
		role := crdt.Out
		if slices.Contains(inSync, r) {
			role = crdt.InSync
		}
		rec.Groups[0].Members = append(rec.Groups[0].Members, crdt.Member{Replica: r, Node: ukai.NodeID{byte(r)}, Role: role})
	}
	return rec
}

func ids(list []crdt.Member) (out []ukai.ReplicaID) {
	for _, m := range list {
		out = append(out, m.Replica)
	}
	slices.Sort(out)
	return out
}

func TestSetsWhileAChangeIsInDoubt(t *testing.T) {
	type set = []ukai.ReplicaID
	for _, c := range []struct {
		name      string
		known     set
		proposed  []set
		ack, read set
	}{
		{"settled", set{1, 2, 3}, nil, set{1, 2, 3}, set{1, 2, 3}},
		{"a shrink in doubt: acked by all, read from those that stay", set{1, 2}, []set{{2}}, set{1, 2}, set{2}},
		{"a grow in doubt: acked by the new one too, not read from it", set{1}, []set{{1, 2}}, set{1, 2}, set{1}},
		{"two in doubt", set{1, 2}, []set{{1}, {1, 2, 3}}, set{1, 2, 3}, set{1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := candidates{known: record(1, c.known...)}
			for _, s := range c.proposed {
				p.propose(record(1, s...))
			}
			if got := ids(p.ackSet(0)); !slices.Equal(got, c.ack) {
				t.Errorf("ack set %v, want %v", got, c.ack)
			}
			if got := ids(p.readSet(0)); !slices.Equal(got, c.read) {
				t.Errorf("read set %v, want %v", got, c.read)
			}
			if got := ids(p.leaseSet()); !slices.Equal(got, c.ack) {
				t.Errorf("lease set %v, want %v", got, c.ack)
			}
		})
	}
}

func TestSuspendedBelowMinSync(t *testing.T) {
	for _, c := range []struct {
		min, in int
		want    bool
	}{{1, 1, false}, {2, 1, true}, {2, 2, false}, {3, 2, true}} {
		p := candidates{known: record(c.min, []ukai.ReplicaID{1, 2, 3}[:c.in]...)}
		if _, _, got := p.suspendedGroup(); got != c.want {
			t.Errorf("min-sync %d with %d in sync: suspended=%v", c.min, c.in, got)
		}
	}
}

func TestLayoutFindsTheGroupOfEachBlock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rec := crdt.Record{BlockSize: 1 << 20}
		var plain []uint8
		for range rapid.IntRange(1, 6).Draw(t, "runs") {
			n, g := rapid.IntRange(1, 5).Draw(t, "count"), uint8(rapid.IntRange(0, 2).Draw(t, "group"))
			rec.Runs = append(rec.Runs, crdt.Run{Count: uint64(n), Group: g})
			for range n {
				plain = append(plain, g)
			}
		}
		l := newLayout(&rec)
		for i, want := range plain {
			got, end := l.groupAt(ukai.Index(i))
			if got != want {
				t.Fatalf("block %d: group %d, want %d", i, got, want)
			}
			stop := i
			for stop < len(plain) && plain[stop] == want {
				stop++
			}
			if int(end) != stop {
				t.Fatalf("block %d: run ends at %d, want %d", i, end, stop)
			}
		}
	})
}

func TestLeaseEndsWithTheFirstSilentReplica(t *testing.T) {
	var l lease
	if l.until(nil) != never {
		t.Error("a lease that needs nobody ends")
	}
	if l.until([]ukai.ReplicaID{1}) != 0 {
		t.Error("a lease holds that nobody confirmed")
	}
	l.confirm(1, 10*time.Second)
	l.confirm(2, 12*time.Second)
	l.confirm(1, 5*time.Second) // an answer that was overtaken
	if got := l.until([]ukai.ReplicaID{1, 2}); got != 14*time.Second {
		t.Errorf("lease until %v", got)
	}
	if got := l.until([]ukai.ReplicaID{2}); got != 16*time.Second {
		t.Errorf("lease until %v", got)
	}
}

func TestFence(t *testing.T) {
	f := fence{epoch: 5, session: 2}
	mine, other := ukai.Incarnation{1}, ukai.Incarnation{2}
	for _, c := range []struct {
		epoch   ukai.Epoch
		session uint32
		ok      bool
	}{{5, 2, true}, {5, 1, false}, {5, 3, false}, {4, 2, false}, {6, 2, false}, {5, 0, false}} {
		err := f.admits(c.epoch, c.session)
		if (err == nil) != c.ok {
			t.Errorf("epoch %d session %d: %v", c.epoch, c.session, err)
		}
		if fenced := (*ukai.FencedError)(nil); err != nil && (!errors.As(err, &fenced) || fenced.Epoch != 5) {
			t.Errorf("epoch %d session %d: %v", c.epoch, c.session, err)
		}
	}
	if (fence{epoch: 5}).admits(5, 0) == nil {
		t.Error("a replica without a session admits session 0")
	}
	for epoch, want := range map[ukai.Epoch]sealing{4: sealRefuse, 5: sealAgain, 6: sealAdvance, 0: sealRefuse} {
		if got := f.onSeal(epoch); got != want {
			t.Errorf("seal of epoch %d: %v, want %v", epoch, got, want)
		}
	}
	if (fence{}).onSeal(0) != sealRefuse {
		t.Error("a new replica is sealed for epoch 0")
	}
	for _, c := range []struct {
		epoch   ukai.Epoch
		session uint32
		sealed  ukai.Incarnation
		want    error
	}{
		{5, 3, mine, nil}, {5, 2, mine, ukai.ErrFenced}, {5, 1, mine, ukai.ErrFenced}, {4, 3, mine, ukai.ErrFenced},
		{6, 3, mine, ukai.ErrFenced}, {5, 3, other, ukai.ErrRestarted},
	} {
		if err := f.onHello(c.epoch, c.session, c.sealed, mine); !errors.Is(err, c.want) {
			t.Errorf("hello %d/%d: %v, want %v", c.epoch, c.session, err, c.want)
		}
	}
	for _, c := range []struct {
		epoch           ukai.Epoch
		session         uint32
		confirm, stable bool
	}{{5, 2, true, true}, {5, 1, false, false}, {5, 3, false, false}, {5, 0, true, false}, {4, 2, false, false}, {4, 0, false, false}} {
		confirm, stable := f.onHeartbeat(c.epoch, c.session)
		if confirm != c.confirm || stable != c.stable {
			t.Errorf("heartbeat %d/%d: confirm=%v stable=%v", c.epoch, c.session, confirm, stable)
		}
	}
}

func member3(r ukai.ReplicaID) crdt.Member {
	return crdt.Member{Replica: r, Node: ukai.NodeID{byte(r)}, Role: crdt.InSync}
}

func TestTakeoverWaitsForAllOrTwoSecondsAfterTheFirst(t *testing.T) {
	tk := newTakeover(record(1, 1, 2, 3), 0)
	if _, more := tk.wait(time.Hour); !more {
		t.Fatal("gave up before anybody was sealed")
	}
	if err := tk.freeze(); !errors.Is(err, ukai.ErrUnavailable) {
		t.Fatalf("froze nothing: %v", err)
	}
	tk.onSealed(10*time.Second, 9*time.Second, member3(1), sealReply{})
	if until, more := tk.wait(11 * time.Second); !more || until != 12*time.Second {
		t.Fatalf("waits until %v, %v", until, more)
	}
	if _, more := tk.wait(12 * time.Second); more {
		t.Fatal("waits longer than two seconds after the first")
	}
	tk.onLost(member3(2), ukai.ErrNotFound)
	tk.onSealed(11*time.Second, 9*time.Second, member3(3), sealReply{})
	if _, more := tk.wait(11 * time.Second); more {
		t.Fatal("waits though all have answered")
	}
	if got := tk.leaseEnds(false); got != 10*time.Second+leaseWait {
		t.Errorf("lease ends at %v", got)
	}
	tk.onSealed(11*time.Second, 9*time.Second, member3(3), sealReply{Quiet: 3 * time.Second})
	if got := tk.leaseEnds(false); got != 8*time.Second+leaseWait {
		t.Errorf("lease that was confirmed last at 8 s ends at %v", got)
	}
	if got := tk.leaseEnds(true); got != 0 {
		t.Errorf("waits for the lease of a holder that is off")
	}
	if got := tk.replicas(); !slices.Equal(got, []ukai.ReplicaID{1, 3}) {
		t.Errorf("S is %v", got)
	}
}

func TestTakeoverWaitsLessForTheReplicaOfADeadHolder(t *testing.T) {
	for _, c := range []struct {
		dead  byte
		until time.Duration
	}{{2, 10*time.Second + deadSealWait}, {1, 10*time.Second + sealWait}, {0, 10*time.Second + sealWait}} {
		tk := newTakeover(record(1, 1, 2), 0)
		if c.dead != 0 {
			tk.dead = ukai.NodeID{c.dead}
		}
		tk.onSealed(10*time.Second, 9*time.Second, member3(1), sealReply{})
		if until, more := tk.wait(10 * time.Second); !more || until != c.until {
			t.Errorf("node %d is dead, replica 2 is not sealed: waits until %v, %v", c.dead, until, more)
		}
	}
}

func TestTakeoverIgnoresALateReplica(t *testing.T) {
	tk := newTakeover(record(1, 1, 2), 0)
	tk.onSealed(0, 0, member3(1), sealReply{Unclean: true})
	if err := tk.freeze(); err != nil {
		t.Fatal(err)
	}
	tk.onSealed(0, 0, member3(2), sealReply{})
	if got := tk.replicas(); !slices.Equal(got, []ukai.ReplicaID{1}) {
		t.Errorf("S is %v after it was frozen", got)
	}
}

func TestAuthorityIsCleanThenAheadThenLocal(t *testing.T) {
	for _, c := range []struct {
		name          string
		unclean       []ukai.ReplicaID
		silent, ahead ukai.ReplicaID
		prefer        ukai.ReplicaID
		want          ukai.ReplicaID
		lossy, loses  bool
	}{
		{"all clean, local preferred", nil, 0, 0, 2, 2, false, false},
		{"local is unclean", []ukai.ReplicaID{2}, 0, 0, 2, 1, false, false},
		{"all unclean", []ukai.ReplicaID{1, 2, 3}, 0, 0, 3, 3, true, true},
		{"nothing local", []ukai.ReplicaID{1}, 0, 0, 0, 2, false, false},
		{"another is ahead", nil, 0, 3, 2, 3, false, false},
		{"the one that is ahead is unclean", []ukai.ReplicaID{3}, 0, 3, 2, 2, false, true},
		{"the one that is ahead is silent", nil, 3, 3, 2, 2, false, true},
		{"all unclean, one ahead", []ukai.ReplicaID{1, 2, 3}, 0, 1, 3, 1, true, true},
	} {
		rec := record(1, 1, 2, 3)
		rec.Ahead = c.ahead
		tk := newTakeover(rec, c.prefer)
		for r := ukai.ReplicaID(1); r <= 3; r++ {
			if r == c.silent {
				continue
			}
			tk.onSealed(0, 0, member3(r), sealReply{Unclean: slices.Contains(c.unclean, r)})
		}
		if got := tk.set(0)[0].member.Replica; got != c.want {
			t.Errorf("%s: authority %v, want %v", c.name, got, c.want)
		}
		if got := tk.lossy(0); got != c.lossy {
			t.Errorf("%s: lossy=%v", c.name, got)
		}
		if why := tk.loses(); (why != "") != c.loses {
			t.Errorf("%s: loses because %q", c.name, why)
		}
	}
}

func TestSuspectsAreThoseAboveTheNewestStableStampOfAny(t *testing.T) {
	tk := newTakeover(record(1, 1, 2), 0)
	tk.onSealed(0, 0, member3(1), sealReply{Stable: ukai.BlockStamp{Epoch: 3, Check: 2}})
	tk.onSealed(0, 0, member3(2), sealReply{Stable: ukai.BlockStamp{Epoch: 3, Check: 5}})
	if got := tk.watermark(0); got != (ukai.BlockStamp{Epoch: 3, Check: 5}) {
		t.Errorf("watermark %v", got)
	}
	s := func(c uint32) ukai.BlockStamp { return ukai.BlockStamp{Epoch: 4, Check: c} }
	got := mergeSuspects([]suspect{{1, s(1)}, {4, s(7)}}, []suspect{{0, s(1)}, {1, s(3)}, {4, s(2)}, {9, s(1)}})
	want := []suspect{{0, s(1)}, {1, s(3)}, {4, s(7)}, {9, s(1)}}
	if !slices.Equal(got, want) {
		t.Errorf("suspects %v, want %v", got, want)
	}
	if !tk.recovers(0) {
		t.Error("two replicas after a crash are not compared")
	}
	tk.rec.Clean = true
	if tk.recovers(0) {
		t.Error("replicas are compared after a clean release")
	}
}

func TestTouchedCountsEachBlockOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.Uint64Range(1, 3*touchedPageBlocks).Draw(t, "blocks")
		seen := map[ukai.Index]bool{}
		touched := newTouched(blocks)
		for range rapid.IntRange(0, 200).Draw(t, "writes") {
			i := ukai.Index(rapid.Uint64Range(0, blocks-1).Draw(t, "block"))
			if touched.add(i) == seen[i] {
				t.Fatalf("block %d: first=%v", i, !seen[i])
			}
			seen[i] = true
		}
		set := 0
		for i := range touched.pages {
			if p := touched.pages[i].Load(); p != nil {
				for j := range p {
					set += bits.OnesCount64(p[j].Load())
				}
			}
		}
		if n := int(touched.count.Load()); n != len(seen) || set != n {
			t.Fatalf("count %d, bits %d, want %d", n, set, len(seen))
		}
	})
}

func TestCheckpointIsDue(t *testing.T) {
	c := newCheck(1, 1, 4096)
	if c.due(time.Hour) {
		t.Error("a checkpoint is due though nothing was written")
	}
	c.touched.add(1)
	if c.due(checkpointEvery-1) || !c.due(checkpointEvery) {
		t.Error("not due after its time")
	}
	for i := range checkpointBlocks {
		c.touched.add(ukai.Index(i))
	}
	if !c.due(0) {
		t.Errorf("not due after %d blocks", checkpointBlocks)
	}
}

func TestOutstandingKnowsTheAgeOfTheOldest(t *testing.T) {
	var o outstanding
	if o.advance() != -1 {
		t.Fatal("age without requests")
	}
	old := o.begin()
	for want := range 5 {
		if got := o.advance(); got != want {
			t.Fatalf("age %d, want %d", got, want)
		}
		o.end(o.begin())
	}
	young := o.begin()
	o.end(old)
	if got := o.advance(); got != 0 {
		t.Fatalf("age %d after the oldest ended", got)
	}
	o.end(young)
	if o.advance() != -1 {
		t.Fatal("age after all ended")
	}
}

func TestHashOfZerosIsZero(t *testing.T) {
	if hashChunk(make([]byte, 1001)) != (chunkHash{}) {
		t.Error("zeros do not hash to zero")
	}
	for _, at := range []int{0, 500, 1000} {
		p := make([]byte, 1001)
		p[at] = 1
		if hashChunk(p) == (chunkHash{}) {
			t.Errorf("a byte at %d is overlooked", at)
		}
	}
}

func FuzzDecodePayloads(f *testing.F) {
	f.Add(encode(heartbeat{Beats: []beat{{Epoch: 3}}}))
	f.Add(encode(heartbeatReply{Exceptions: []exception{{At: 0, Code: 4, Now: 9}}}))
	f.Add(appendSuspect(appendSuspect(nil, suspect{index: 1}), suspect{index: 7}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if hb, err := decodeHeartbeat(b); err == nil && len(hb.Beats) > maxBeats {
			t.Error("too many beats")
		}
		if out, err := decodeHeartbeatReply(b, 1); err == nil {
			for _, e := range out.Exceptions {
				if e.At != 0 {
					t.Error("exception for nobody")
				}
			}
		}
		var past pastRequest
		if err := codec.Unmarshal(b, &past); err == nil && codec.Unmarshal(encode(past), &past) != nil {
			t.Error("the request to read a past does not survive")
		}
		if list, err := decodeSuspects(b); err == nil {
			var again []byte
			for _, s := range list {
				again = appendSuspect(again, s)
			}
			if !slices.Equal(again, b) {
				t.Error("suspects do not survive")
			}
		}
	})
}

func TestWindowIsBoundedAndToldWhenItIsDrained(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		var inside []*mutation
		type waiter struct {
			done <-chan struct{}
			ops  []*mutation
		}
		var waiters []waiter
		now := time.Duration(0)
		bytes := func() (n int64) {
			for _, op := range inside {
				n += op.window.bytes
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"admit": func(t *rapid.T) {
				op, n := new(mutation), rapid.Int64Range(1, maxWindowBytes/3).Draw(t, "bytes")
				want := w.bars == 0 && bytes()+n <= maxWindowBytes && (len(inside) == 0 || now-inside[0].window.since <= maxWindowAge)
				if got := w.admit(op, n, now); got != want {
					t.Fatalf("admitted=%v with %d of %d bytes inside, want %v", got, bytes(), maxWindowBytes, want)
				} else if got {
					inside = append(inside, op)
				}
			},
			"remove": func(t *rapid.T) {
				if len(inside) == 0 {
					t.Skip()
				}
				at := rapid.IntRange(0, len(inside)-1).Draw(t, "which")
				w.remove(inside[at])
				inside = slices.Delete(inside, at, at+1)
			},
			"time passes": func(t *rapid.T) { now += time.Duration(rapid.Int64Range(1, int64(maxWindowAge)).Draw(t, "d")) },
			"bar":         func(*rapid.T) { w.bars = 1 - w.bars },
			"drain": func(t *rapid.T) {
				done := w.drained()
				if (done == nil) != (len(inside) == 0) {
					t.Fatalf("drained=%v with %d inside", done == nil, len(inside))
				}
				if done != nil {
					waiters = append(waiters, waiter{done, slices.Clone(inside)})
				}
			},
			"": func(t *rapid.T) {
				if w.bytes != bytes() {
					t.Fatalf("%d bytes, want %d", w.bytes, bytes())
				}
				for _, wait := range waiters {
					left := slices.ContainsFunc(wait.ops, func(op *mutation) bool { return slices.Contains(inside, op) })
					select {
					case <-wait.done:
						if left {
							t.Fatal("told that it is drained, and it is not")
						}
					default:
						if !left {
							t.Fatal("drained, and not told")
						}
					}
				}
			},
		})
	})
}
