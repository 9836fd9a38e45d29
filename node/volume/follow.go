package volume

import (
	"math/bits"
	"slices"

	"ukai"
)

// A replica that is being brought up to date follows the writes of the guest: it gets those to blocks it has, and misses
// those to blocks that must be copied anyway (protocol 3.2 rule O, 3.8 J3 to J6). follow keeps what it lacks and what it
// owes, and decides for each write what becomes of it there. Pure: following, around it, locks and acts.
type follow struct {
	mode      followMode
	blockSize int64
	size      int64 // bytes of the disk that the replica and all its sources have: nothing beyond is sent or compared yet

	dirty   blockSet                  // to be compared with the source; nothing is sent for them
	beyond  map[ukai.Index]int64      // blocks written beyond size -> up to where
	work    map[ukai.Index]*comparing // being compared; not in dirty
	owed    map[ukai.Index][]owedSpan // sent, neither acknowledged nor waited for
	owing   int                       // spans in owed
	pending int64                     // bytes in them
	cursor  ukai.Index                // where take goes on

	have   map[ukai.Index]bitset // of blocks in dirty, the chunks that the replica has all the same
	wanted []ukai.Index          // in dirty, and compared next: the guest reads them
	order  []span                // in which blocks are compared first
	at     int                   // of order, where take goes on
}

// followMode says what a write to a block that the replica has does.
type followMode uint8

const (
	passedBy followMode = iota // the replica is not connected: it misses the write
	informed                   // the write is sent and not waited for
	awaited                    // the write is acknowledged to the guest only when the replica has it, too: it is in the ack set
	admitted                   // as awaited, for good: it may be in the committed in-sync set
)

// verdict says what becomes of one write at the replica.
type verdict uint8

const (
	miss  verdict = iota // not sent: the block is dirty
	send                 // sent, not waited for: sent must follow
	await                // sent and waited for like at any member of the ack set
)

// Bounds of what a following replica may owe. A write beyond them makes its block dirty.
const (
	maxOwed      = 256
	maxOwedBytes = 8 << 20
)

// maxWanted is how many blocks are wanted at once; those that are read beyond have to wait for their turn.
const maxWanted = 64

type owedSpan struct{ off, end int64 }

func (a owedSpan) overlaps(off, end int64) bool { return a.off < end && off < a.end }

// comparing is a block that is being compared and copied, chunk by chunk.
type comparing struct {
	lacking bitset // chunks that may differ
	touched bitset // of these, written or owed since the comparison began: hashes prove nothing
	zero    bitset // read as zeros at the source
	lacks   int
}

func (f *follow) blockOff(i ukai.Index) int64 { return int64(i) * f.blockSize }

// admit decides about a mutation of [off, end) of a block. Its caller holds the range.
func (f *follow) admit(i ukai.Index, off, end int64) verdict {
	switch {
	case f.mode == admitted:
		return await
	case f.mode == passedBy, end > f.size, f.lacksAny(i, off, end), f.owes(i, off, end):
		f.missed(i, off, end)
		return miss
	case f.mode == awaited:
		return await
	case f.owing >= maxOwed || f.pending+end-off > maxOwedBytes:
		f.missed(i, off, end)
		return miss
	}
	if f.owed == nil {
		f.owed = make(map[ukai.Index][]owedSpan)
	}
	f.owed[i] = append(f.owed[i], owedSpan{off, end})
	f.owing++
	f.pending += end - off
	return send
}

// sent ends what admit began with verdict send: the replica has acknowledged it, or it is given up. A mutation that was
// given up may still be applied until the session ends; until then nothing else is sent for its block.
func (f *follow) sent(i ukai.Index, off, end int64, done bool) {
	spans := f.owed[i]
	for n, s := range spans {
		if s == (owedSpan{off, end}) {
			spans[n] = spans[len(spans)-1]
			spans = spans[:len(spans)-1]
			break
		}
	}
	if len(spans) == 0 {
		delete(f.owed, i)
	} else {
		f.owed[i] = spans
	}
	f.owing--
	f.pending -= end - off
	if !done {
		f.missed(i, off, end)
	}
}

// missed notes that the replica does not have what was written to [off, end) of a block.
func (f *follow) missed(i ukai.Index, off, end int64) {
	if end > f.size {
		// The block may be compared before the replica has grown, and what lies beyond would not be.
		if f.beyond == nil {
			f.beyond = make(map[ukai.Index]int64)
		}
		f.beyond[i] = max(f.beyond[i], end)
	}
	w := f.work[i]
	if w == nil {
		if !f.dirty.has(i) {
			f.soil(i, nil)
		}
		f.eachChunk(i, off, end, func(c int) bool { f.have[i].clear(c); return true })
		return
	}
	for c := (off - f.blockOff(i)) / ukai.ChunkSize; c*ukai.ChunkSize < end-f.blockOff(i); c++ {
		if w.lacking.set(int(c)) {
			w.lacks++
		}
		w.touched.set(int(c))
	}
}

// soil makes a block dirty of which the replica has all chunks but those that are lacking: a write that it misses must not cost all of a block.
func (f *follow) soil(i ukai.Index, lacking bitset) {
	f.dirty.add(i)
	if f.have == nil {
		f.have = make(map[ukai.Index]bitset)
	}
	var have bitset
	for c := range f.chunks(i) {
		if !lacking.has(c) {
			have.set(c)
		}
	}
	f.have[i] = have
}

// lacksAny says whether any part of [off, end) of a block must be copied.
func (f *follow) lacksAny(i ukai.Index, off, end int64) bool {
	w := f.work[i]
	if w == nil {
		return f.dirty.has(i) && !f.eachChunk(i, off, end, f.have[i].has)
	}
	for c := (off - f.blockOff(i)) / ukai.ChunkSize; c*ukai.ChunkSize < end-f.blockOff(i); c++ {
		if w.lacking.has(int(c)) {
			return true
		}
	}
	return false
}

// eachChunk calls ok for each chunk of a block that [off, end) is in, until one says no.
func (f *follow) eachChunk(i ukai.Index, off, end int64, ok func(chunk int) bool) bool {
	for c := (off - f.blockOff(i)) / ukai.ChunkSize; c*ukai.ChunkSize < end-f.blockOff(i); c++ {
		if !ok(int(c)) {
			return false
		}
	}
	return true
}

// has says whether [off, end) of a block is the same at the replica as at its sources, if no write to it is under way. Otherwise the block is wanted.
func (f *follow) has(i ukai.Index, off, end int64) bool {
	if f.mode < informed || end > f.size {
		return false
	}
	lacks := f.lacksAny(i, off, end)
	if lacks && f.dirty.has(i) && len(f.wanted) < maxWanted && !slices.Contains(f.wanted, i) {
		f.wanted = append(f.wanted, i)
	}
	return !lacks && !f.owes(i, off, end)
}

// mayGet says whether the replica may be given [off, end) of a block by somebody who holds the range.
func (f *follow) mayGet(i ukai.Index, off, end int64) bool {
	return f.mode >= informed && end <= f.size && !f.owes(i, off, end)
}

// gave notes that the replica was given all of the chunks that [off, end) of a block is in, after mayGet, by somebody who has held the range since.
func (f *follow) gave(i ukai.Index, off, end int64) {
	if f.work[i] != nil {
		from := (off - f.blockOff(i)) / ukai.ChunkSize
		f.copied(i, int(from), int((end-f.blockOff(i)+ukai.ChunkSize-1)/ukai.ChunkSize))
		return
	}
	if !f.dirty.has(i) {
		return
	}
	if f.have == nil {
		f.have = make(map[ukai.Index]bitset)
	}
	b := f.have[i]
	f.eachChunk(i, off, end, func(c int) bool { b.set(c); return true })
	f.have[i] = b
}

// owes says whether the replica owes an acknowledgement in [off, end) of a block.
func (f *follow) owes(i ukai.Index, off, end int64) bool {
	for _, s := range f.owed[i] {
		if s.overlaps(off, end) {
			return true
		}
	}
	return false
}

// take begins to compare the next dirty block of a sweep, and says whether there is one. Blocks that become dirty behind
// it are left to the next sweep, which begins after take has returned false. What runs on the block now must have ended
// before the hashes of its chunks are asked for.
func (f *follow) take() (i ukai.Index, ok bool) {
	for len(f.wanted) > 0 && !ok {
		i = f.wanted[0]
		f.wanted = f.wanted[1:]
		ok = f.dirty.has(i)
	}
	for !ok {
		end := ^ukai.Index(0)
		if f.at < len(f.order) {
			f.cursor, end = max(f.cursor, f.order[f.at].from), f.order[f.at].to
		}
		i, ok = f.dirty.next(f.cursor)
		if ok = ok && i < end && f.blockOff(i) < f.size; ok {
			f.cursor = i + 1
			break
		}
		if f.at >= len(f.order) {
			f.rewind(nil)
			return 0, false
		}
		f.at++
		f.cursor = 0
	}
	f.dirty.remove(i)
	w := new(comparing)
	have := f.have[i]
	delete(f.have, i)
	for c := range f.chunks(i) {
		if !have.has(c) {
			w.lacking.set(c)
			w.lacks++
		}
		if from := f.blockOff(i) + int64(c)*ukai.ChunkSize; f.owes(i, from, from+ukai.ChunkSize) {
			w.touched.set(c)
		}
	}
	if f.work == nil {
		f.work = make(map[ukai.Index]*comparing)
	}
	f.work[i] = w
	return i, true
}

// rewind makes take begin anew, with the blocks of order first.
func (f *follow) rewind(order []span) { f.order, f.at, f.cursor = order, 0, 0 }

// chunks returns how many chunks of a block the replica has room for.
func (f *follow) chunks(i ukai.Index) int {
	return int((min(f.blockSize, f.size-f.blockOff(i)) + ukai.ChunkSize - 1) / ukai.ChunkSize)
}

// same notes that a chunk had the same hash at the source and at the replica, both taken since take.
func (f *follow) same(i ukai.Index, chunk int) {
	if w := f.work[i]; !w.touched.has(chunk) && w.lacking.clear(chunk) {
		w.lacks--
	}
}

// zeros notes that a chunk read as zeros at the source, since take.
func (f *follow) zeros(i ukai.Index, chunk int) { f.work[i].zero.set(chunk) }

// areZeros says whether chunks [from, to) of a block are known to be zeros at the source: nothing was written to them since they were looked at.
func (f *follow) areZeros(i ukai.Index, from, to int) bool {
	w := f.work[i]
	for c := from; c < to; c++ {
		if !w.zero.has(c) || w.touched.has(c) {
			return false
		}
	}
	return true
}

// lackingRun returns the next run of chunks to copy of a block, at or after a chunk, at most so many: [from, to). All of it, or nothing, is known to be
// zeros.
func (f *follow) lackingRun(i ukai.Index, after, most int) (from, to int) {
	w, n := f.work[i], f.chunks(i)
	for from = after; from < n && !w.lacking.has(from); from++ {
	}
	zeros := f.areZeros(i, from, from+1)
	for to = from; to < n && to-from < most && w.lacking.has(to) && f.areZeros(i, to, to+1) == zeros; to++ {
	}
	return from, to
}

// copied notes that chunks [from, to) are the same at the replica. The caller holds their range, and owes has said no
// since it does.
func (f *follow) copied(i ukai.Index, from, to int) {
	w := f.work[i]
	for c := from; c < to; c++ {
		w.touched.clear(c)
		w.zero.clear(c)
		if w.lacking.clear(c) {
			w.lacks--
		}
	}
}

// leave ends the comparison of a block. It is dirty again if a chunk is lacking.
func (f *follow) leave(i ukai.Index) {
	if w := f.work[i]; w.lacks > 0 {
		f.soil(i, w.lacking)
	}
	delete(f.work, i)
}

// grow notes that the replica and all its sources have so many bytes. No block is being compared.
func (f *follow) grow(size int64) {
	if size <= f.size {
		return
	}
	f.size = size
	for i, end := range f.beyond {
		if end <= size {
			delete(f.beyond, i)
			f.dirty.add(i)
			delete(f.have, i) // its last chunk may have been given in part
		}
	}
}

// blocks returns how many blocks are still to be compared, or are being.
func (f *follow) blocks() int { return f.dirty.count + len(f.beyond) + len(f.work) }

// complete says whether the replica lacks and owes nothing.
func (f *follow) complete() bool { return f.blocks() == 0 && f.owing == 0 }

// left returns how many bytes are still to be compared or copied.
func (f *follow) left() int64 {
	n := int64(f.dirty.count+len(f.beyond)) * f.blockSize
	for _, have := range f.have {
		n -= int64(have.count()) * ukai.ChunkSize
	}
	for _, w := range f.work {
		n += int64(w.lacks) * ukai.ChunkSize
	}
	return n
}

// bitset is a small set of numbers, made as large as needed.
type bitset []uint64

func (b bitset) has(n int) bool { return n/64 < len(b) && b[n/64]&(1<<(n%64)) != 0 }

func (b bitset) count() (n int) {
	for _, word := range b {
		n += bits.OnesCount64(word)
	}
	return n
}

// set adds n and says whether it was not in.
func (b *bitset) set(n int) bool {
	for n/64 >= len(*b) {
		*b = append(*b, 0)
	}
	had := b.has(n)
	(*b)[n/64] |= 1 << (n % 64)
	return !had
}

// clear removes n and says whether it was in.
func (b bitset) clear(n int) bool {
	if !b.has(n) {
		return false
	}
	b[n/64] &^= 1 << (n % 64)
	return true
}

// blockSet is a set of blocks: 128 KiB for a dirty TiB of 1 MiB blocks, next to nothing for few.
type blockSet struct {
	pages []*blockPage
	count int
}

const blockPageWords = 64

type blockPage [blockPageWords]uint64

func (s *blockSet) has(i ukai.Index) bool {
	p := uint64(i) / (64 * blockPageWords)
	return p < uint64(len(s.pages)) && s.pages[p] != nil && s.pages[p][uint64(i)/64%blockPageWords]&(1<<(uint64(i)%64)) != 0
}

func (s *blockSet) add(i ukai.Index) {
	p := uint64(i) / (64 * blockPageWords)
	for p >= uint64(len(s.pages)) {
		s.pages = append(s.pages, nil)
	}
	if s.pages[p] == nil {
		s.pages[p] = new(blockPage)
	}
	if !s.has(i) {
		s.count++
		s.pages[p][uint64(i)/64%blockPageWords] |= 1 << (uint64(i) % 64)
	}
}

func (s *blockSet) remove(i ukai.Index) {
	if s.has(i) {
		s.count--
		s.pages[uint64(i)/(64*blockPageWords)][uint64(i)/64%blockPageWords] &^= 1 << (uint64(i) % 64)
	}
}

// next returns the first block of the set at or after one.
func (s *blockSet) next(from ukai.Index) (ukai.Index, bool) {
	for word := uint64(from) / 64; word/blockPageWords < uint64(len(s.pages)); word++ {
		p := s.pages[word/blockPageWords]
		if p == nil {
			word = (word/blockPageWords+1)*blockPageWords - 1
			continue
		}
		w := p[word%blockPageWords]
		if word == uint64(from)/64 {
			w &= ^uint64(0) << (uint64(from) % 64)
		}
		if w != 0 {
			return ukai.Index(word*64 + uint64(bits.TrailingZeros64(w))), true
		}
	}
	return 0, false
}
