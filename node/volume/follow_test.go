package volume

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt"
)

// followWorld is a source and a replica that follows it, as numbers: two blocks of two chunks each. Writes to different
// chunks run side by side; each is let in, applied to the source, applied to the replica if it was sent there, and ends.
type followWorld struct {
	f        follow
	src, rep [followBlocks * followChunks]int
	writes   []*followWrite
	late     []*followWrite // sent, not waited for, not applied yet
	work     []*followWork
}

type followWrite struct {
	chunk, value int
	verdict      verdict
	onSrc, onRep bool
}

type followWork struct {
	index    ukai.Index
	before   []*followWrite // that run since before it was taken
	src, rep map[int]int    // hashes taken
}

const (
	followChunks = 2
	followBlocks = 2
)

func (w *followWorld) locked(chunk int) bool {
	return slices.ContainsFunc(w.writes, func(o *followWrite) bool { return o.chunk == chunk })
}

func (w *followWorld) span(chunk int) (i ukai.Index, off, end int64) {
	return ukai.Index(chunk / followChunks), int64(chunk) * ukai.ChunkSize, int64(chunk+1) * ukai.ChunkSize
}

func (w *followWorld) check() error {
	for c := range w.src {
		i, off, end := w.span(c)
		if w.f.has(i, off, end) && !w.locked(c) && w.src[c] != w.rep[c] {
			return fmt.Errorf("chunk %d is %d at the source and %d at the replica, which has it", c, w.src[c], w.rep[c])
		}
	}
	if !w.f.complete() {
		return nil
	}
	for c := range w.src {
		if w.src[c] != w.rep[c] && !w.locked(c) {
			return fmt.Errorf("chunk %d is %d at the source and %d at the replica, which lacks and owes nothing", c, w.src[c], w.rep[c])
		}
	}
	for _, o := range w.writes {
		if o.verdict == miss {
			return fmt.Errorf("a write of chunk %d passes the replica by, which lacks and owes nothing", o.chunk)
		}
	}
	return nil
}

// step does one random thing that may happen next, or nothing.
func (w *followWorld) step(t *testing.T, rng *rand.Rand) string {
	some := func(n int) int { return rng.IntN(max(n, 1)) }
	switch what := rng.IntN(15); what {
	case 0, 1, 2:
		c := rng.IntN(followBlocks * followChunks)
		if w.locked(c) {
			return ""
		}
		i, off, end := w.span(c)
		o := &followWrite{chunk: c, value: rng.IntN(2)} // contents repeat
		o.verdict = w.f.admit(i, off, end)
		w.writes = append(w.writes, o)
		if o.verdict == send {
			if slices.ContainsFunc(w.late, func(l *followWrite) bool { return l.chunk == c }) {
				t.Error("two writes of a range are owed")
			}
			w.late = append(w.late, o)
		}
		return fmt.Sprintf("write %d to chunk %d: verdict %d", o.value, c, o.verdict)
	case 3, 4:
		if n := some(len(w.writes)); n < len(w.writes) {
			o := w.writes[n]
			o.onSrc, w.src[o.chunk] = true, o.value
			return fmt.Sprintf("chunk %d at the source", o.chunk)
		}
	case 5, 6:
		n := some(len(w.writes))
		if n >= len(w.writes) {
			return ""
		}
		o := w.writes[n]
		if o.verdict == await && !o.onRep && rng.IntN(4) > 0 {
			o.onRep, w.rep[o.chunk] = true, o.value
			return fmt.Sprintf("chunk %d at the replica", o.chunk)
		}
		if !o.onSrc {
			return ""
		}
		if o.verdict == await && !o.onRep { // given up: what the replica has of it is not known
			i, off, end := w.span(o.chunk)
			w.f.missed(i, off, end)
		}
		w.writes = slices.Delete(w.writes, n, n+1)
		return fmt.Sprintf("write of chunk %d ends", o.chunk)
	case 7:
		n := some(len(w.late))
		if n >= len(w.late) {
			return ""
		}
		o := w.late[n]
		i, off, end := w.span(o.chunk)
		switch rng.IntN(3) {
		case 0:
			w.rep[o.chunk] = o.value
			return fmt.Sprintf("chunk %d arrives late", o.chunk)
		case 1:
			w.f.sent(i, off, end, false)
			w.late = slices.Delete(w.late, n, n+1)
			return fmt.Sprintf("late chunk %d given up", o.chunk)
		}
		w.rep[o.chunk] = o.value
		w.f.sent(i, off, end, true)
		w.late = slices.Delete(w.late, n, n+1)
		return fmt.Sprintf("late chunk %d paid", o.chunk)
	case 8:
		if rng.IntN(8) == 0 {
			w.f.mode = awaited
			return "awaited"
		}
	case 14:
		c := rng.IntN(followBlocks * followChunks)
		i, off, end := w.span(c)
		if w.locked(c) || !w.f.mayGet(i, off, end) {
			return ""
		}
		w.rep[c] = w.src[c]
		w.f.gave(i, off, end)
		return fmt.Sprintf("chunk %d is given", c)
	case 9:
		i, ok := w.f.take()
		if !ok {
			return ""
		}
		k := &followWork{index: i, src: map[int]int{}, rep: map[int]int{}}
		for _, o := range w.writes {
			if o.chunk/followChunks == int(i) {
				k.before = append(k.before, o)
			}
		}
		w.work = append(w.work, k)
		return fmt.Sprintf("take block %d", i)
	default:
		n := some(len(w.work))
		if n >= len(w.work) {
			return ""
		}
		return w.compare(rng, what, n)
	}
	return ""
}

// compare does something with a block that was taken.
func (w *followWorld) compare(rng *rand.Rand, what, n int) string {
	k := w.work[n]
	if slices.ContainsFunc(k.before, func(o *followWrite) bool { return slices.Contains(w.writes, o) }) {
		return ""
	}
	c := int(k.index)*followChunks + rng.IntN(followChunks)
	switch what {
	case 10:
		k.src[c] = w.src[c]
		return fmt.Sprintf("hash of chunk %d at the source", c)
	case 11:
		k.rep[c] = w.rep[c]
		return fmt.Sprintf("hash of chunk %d at the replica", c)
	case 12:
		src, hasSrc := k.src[c]
		rep, hasRep := k.rep[c]
		if hasSrc && hasRep && src == rep {
			w.f.same(k.index, c%followChunks)
			return fmt.Sprintf("chunk %d is the same", c)
		}
		if hasSrc && src == 0 {
			w.f.zeros(k.index, c%followChunks)
			return fmt.Sprintf("chunk %d is zeros", c)
		}
	case 13:
		if rng.IntN(3) == 0 {
			w.f.leave(k.index)
			w.work = slices.Delete(w.work, n, n+1)
			return fmt.Sprintf("leave block %d", k.index)
		}
		from, to := w.f.lackingRun(k.index, 0, 1)
		c := int(k.index)*followChunks + from
		i, off, end := w.span(c)
		if from == to || w.locked(c) || w.f.owes(i, off, end) {
			return ""
		}
		if w.f.areZeros(k.index, from, to) {
			w.rep[c] = 0
		} else {
			w.rep[c] = w.src[c]
		}
		w.f.copied(k.index, from, to)
		return fmt.Sprintf("copy chunk %d", c)
	}
	return ""
}

func TestFollowingReplicaIsEqualWhenItLacksAndOwesNothing(t *testing.T) {
	complete := 0
	for seed := range uint64(30000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w := &followWorld{f: follow{blockSize: followChunks * ukai.ChunkSize, size: followBlocks * followChunks * ukai.ChunkSize, mode: informed}}
		for c := range w.src {
			if w.rep[c] = rng.IntN(2); w.rep[c] != 0 {
				w.f.dirty.add(ukai.Index(c / followChunks))
			}
		}
		var trace []string
		for range 80 {
			if s := w.step(t, rng); s != "" {
				trace = append(trace, s)
			}
			if w.f.complete() {
				complete++
			}
			if err := w.check(); err != nil || t.Failed() {
				t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(trace, "\n"))
			}
		}
	}
	if complete < 10000 {
		t.Errorf("complete after %d steps only: this tested next to nothing", complete)
	}
}

func TestFollowingReplicaOwesWithinBounds(t *testing.T) {
	f := follow{mode: informed, blockSize: 64 << 20, size: 64 << 20}
	for n := range int64(maxOwed + 10) {
		f.admit(0, n*4096, (n+1)*4096)
	}
	if f.owing > maxOwed {
		t.Errorf("%d owed", f.owing)
	}
	if !f.dirty.has(0) {
		t.Error("a write beyond the bound is not noted")
	}
	f = follow{mode: informed, blockSize: 64 << 20, size: 64 << 20}
	for n := range int64(20) {
		f.admit(0, n<<20, (n+1)<<20)
	}
	if f.pending > maxOwedBytes {
		t.Errorf("%d bytes owed", f.pending)
	}
}

func TestBlockSetFindsWhatItHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s blockSet
		naive := map[ukai.Index]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "n") {
			i := ukai.Index(rapid.SampledFrom([]uint64{0, 1, 63, 64, 65, 4095, 4096, 4097, 9000, 70000}).Draw(t, "i"))
			if rapid.Bool().Draw(t, "add") {
				s.add(i)
				naive[i] = true
			} else {
				s.remove(i)
				delete(naive, i)
			}
		}
		if s.count != len(naive) {
			t.Fatalf("count %d, want %d", s.count, len(naive))
		}
		var got []ukai.Index
		for i, ok := s.next(0); ok; i, ok = s.next(i + 1) {
			got = append(got, i)
			if !naive[i] || !s.has(i) {
				t.Fatalf("%d is not in the set", i)
			}
		}
		if len(got) != len(naive) {
			t.Fatalf("%d found, want %d", len(got), len(naive))
		}
	})
}

func TestAbsenteesAreThoseOutOrSyncingInAnyGroup(t *testing.T) {
	rec := record(1, 1)
	rec.Groups[0].Members[2].Role = crdt.Async
	rec.Groups = append(rec.Groups, crdt.Group{ID: 1, Members: slices.Clone(rec.Groups[0].Members)})
	rec.Groups[1].Members[0].Role = crdt.Syncing
	list := absentees(&rec)
	if len(list) != 2 || list[0].Replica != 2 || len(list[0].out) != 2 || list[1].Replica != 1 || len(list[1].out) != 0 || !slices.Equal(list[1].lacking, []uint8{1}) {
		t.Errorf("absentees %+v", list)
	}
}

func TestEqualHashesProveNothingWhileAWriteIsOwed(t *testing.T) {
	f := follow{mode: informed, blockSize: 2 * ukai.ChunkSize, size: 2 * ukai.ChunkSize}
	if v := f.admit(0, 0, 512); v != send {
		t.Fatalf("verdict %d for a clean block", v)
	}
	if v := f.admit(0, 0, 512); v != miss {
		t.Fatalf("verdict %d while a write of the range is owed", v)
	}
	i, ok := f.take()
	if !ok {
		t.Fatal("the block is not dirty")
	}
	f.same(i, 0) // the first write undid what the second did, and has not arrived yet
	if !f.lacksAny(0, 0, 512) {
		t.Error("taken for equal though the first write may still arrive")
	}
	f.same(i, 1)
	if f.lacksAny(0, ukai.ChunkSize, 2*ukai.ChunkSize) {
		t.Error("the other chunk is copied for nothing")
	}
}

func TestWriteBeyondTheReplicaIsNotTakenForCopiedWithTheChunkItEndsIn(t *testing.T) {
	half := int64(ukai.ChunkSize / 2)
	f := follow{mode: informed, blockSize: 2 * ukai.ChunkSize, size: half}
	f.dirty.add(0)
	i, _ := f.take()
	if v := f.admit(0, half, half+512); v != miss {
		t.Fatalf("verdict %d for a write that the replica has no room for", v)
	}
	f.copied(i, 0, 1) // up to the replica's end
	f.leave(i)
	if f.complete() {
		t.Fatal("complete without what lies beyond")
	}
	if i, ok := f.take(); ok { // not grown yet: what is copied is not all
		f.copied(i, 0, 1)
		f.leave(i)
	}
	f.grow(half + 256) // not far enough
	if i, ok := f.take(); ok {
		f.copied(i, 0, 1)
		f.leave(i)
	}
	if f.complete() {
		t.Fatal("complete without what lies beyond")
	}
	f.grow(2 * ukai.ChunkSize)
	if i, ok := f.take(); !ok || !f.lacksAny(i, half, half+512) {
		t.Error("what lies beyond the old end is not copied")
	}
}

func TestAMissedWriteCostsItsChunkAndNotItsBlock(t *testing.T) {
	const chunks = 8
	f := follow{mode: informed, blockSize: chunks * ukai.ChunkSize, size: 2 * chunks * ukai.ChunkSize}
	at := func(c int) (off, end int64) { return int64(c) * ukai.ChunkSize, int64(c+1) * ukai.ChunkSize }
	lacking := func() (list []int) {
		for c := range chunks {
			if off, end := at(c); f.lacksAny(0, off, end) {
				list = append(list, c)
			}
		}
		return list
	}
	f.owing = maxOwed
	off, end := at(3)
	if v := f.admit(0, off+512, off+1024); v != miss {
		t.Fatalf("a write beyond what may be owed: %v", v)
	}
	f.owing = 0
	if got := lacking(); !slices.Equal(got, []int{3}) {
		t.Errorf("it lacks chunks %v", got)
	}
	if got := f.left(); got != ukai.ChunkSize {
		t.Errorf("%d bytes are left", got)
	}
	if off, end := at(2); f.admit(0, off, end) != send {
		t.Error("a write to what the replica has is not sent")
	} else {
		f.sent(0, off, end, true)
	}
	if i, ok := f.take(); !ok || i != 0 {
		t.Fatal(i, ok)
	}
	if from, to := f.lackingRun(0, 0, chunks); from != 3 || to != 4 {
		t.Errorf("chunks [%d, %d) are compared", from, to)
	}
	f.copied(0, 3, 4)
	f.admit(0, end, end+512)
	f.owing = maxOwed
	f.admit(0, off, end) // missed after it was copied
	f.owing = 0
	f.sent(0, end, end+512, false) // given up
	f.leave(0)
	if got := lacking(); !slices.Equal(got, []int{3, 4}) {
		t.Errorf("after a comparison it lacks chunks %v", got)
	}
}
