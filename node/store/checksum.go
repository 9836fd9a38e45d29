package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"

	"ukai"
)

// Checksums tell data that has rotted on the device from data that was written. A block's checksums stand in the database under the key of
// its stamp, so that raising the stamp is what ends them: there is no moment at which a newer stamp stands beside older checksums.
//
// A change of the data that raises no stamp - none is made of a quiet block, but nothing here relies on that - removes them durably before
// it touches the data. For that a bit per block is kept in memory: all that a write pays is to look at it.

// SumBytes is how much data one checksum is of; the last of a disk may be of less. 1 TiB has 64 MiB of checksums.
const SumBytes = 256 << 10

// Sum is the checksum of SumBytes of data: XXH3, 128 bits. It finds accidents, not forgeries.
type Sum [16]byte

// SumOf returns the checksum of data.
func SumOf(p []byte) Sum { return xxh3.Hash128(p).Bytes() }

// Quiet implements Replica.
func (r *replica) Quiet(index ukai.Index) (ukai.BlockStamp, bool) {
	quiet := func() (ukai.BlockStamp, bool) {
		s, ok := r.Stamp(index)
		h := r.header.Load()
		return s, ok && !h.Stable.Less(s) && !h.Unclean
	}
	if s, ok := quiet(); !ok {
		return s, false // the next write to it pays nothing for having been looked at
	}
	// In this order: a raise that begins after the bit was set clears it, one that ended before has changed the stamp.
	r.summed.set(index)
	return quiet()
}

// Checksums implements Replica.
func (r *replica) Checksums(index ukai.Index) ([]Sum, error) {
	if !r.summed.has(index) {
		return nil, nil
	}
	if err := r.usable(); err != nil {
		return nil, err
	}
	key := r.key.stampKey(r.head, index)
	v, err := r.store.keys.get(key)
	if errors.Is(err, ukai.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, sums, err := decodeStamp(key, v)
	if err != nil {
		return nil, err
	}
	// Another stamp in memory: it was raised meanwhile, or its round has not ended.
	if now, ok := r.Stamp(index); !ok || now != s || len(sums) != r.sums(index) {
		return nil, nil
	}
	return sums, nil
}

// SetChecksums implements Replica.
func (r *replica) SetChecksums(ctx context.Context, index ukai.Index, s ukai.BlockStamp, sums []Sum) (kept bool, err error) {
	if err := r.checkBlocks(index, index); err != nil {
		return false, err
	}
	if want := r.sums(index); len(sums) != want {
		return false, fmt.Errorf("%v: %d checksums for block %d: %w: it has %d", r.key, len(sums), index, ukai.ErrInvalid, want)
	}
	if err := r.usable(); err != nil {
		return false, err
	}
	if h := r.header.Load(); h.Stable.Less(s) || h.Unclean {
		return false, nil
	}
	if err := r.joinChecksums(ctx, index, stampChange{stamp: s, sums: sums}); err != nil {
		return false, fmt.Errorf("checksums of %v: %w", r.key, err)
	}
	now, err := r.Checksums(index)
	return now != nil, err
}

// void removes the checksums of the blocks of a range, durably, before its data changes.
func (r *replica) void(off, n int64) error {
	size := int64(r.blockSize)
	for i, last := ukai.Index(off/size), ukai.Index((off+max(n, 1)-1)/size); i <= last; i++ {
		if !r.summed.has(i) {
			continue
		}
		if err := r.joinChecksums(context.Background(), i, stampChange{void: true}); err != nil {
			return fmt.Errorf("remove checksums of %v: %w", r.key, err)
		}
	}
	return nil
}

// Restore implements Replica.
func (r *replica) Restore(p []byte, off int64) error {
	if err := r.check(off, int64(len(p))); err != nil {
		return err
	}
	if off%SumBytes != 0 || int64(len(p)) != min(SumBytes, r.size.Load()-off) {
		return fmt.Errorf("%v: restore of %d bytes at %d: %w: want all that one checksum is of", r.key, len(p), off, ukai.ErrInvalid)
	}
	index := ukai.Index(off / int64(r.blockSize))
	sums, err := r.Checksums(index)
	if err != nil {
		return err
	}
	if at := off % int64(r.blockSize) / SumBytes; sums == nil || sums[at] != SumOf(p) {
		if err := r.void(off, int64(len(p))); err != nil {
			return err
		}
	}
	return r.write(p, off)
}

// sums returns how many checksums a block has.
func (r *replica) sums(index ukai.Index) int {
	off := int64(index) * int64(r.blockSize)
	n := min(int64(r.blockSize), r.size.Load()-off)
	return int((n + SumBytes - 1) / SumBytes)
}

// joinChecksums adds a change of a block's checksums to the next round, and waits for it. Whatever else the round does to the block comes
// first and ends the checksums, too.
func (r *replica) joinChecksums(ctx context.Context, index ukai.Index, c stampChange) error {
	r.raising.Lock()
	if r.closed.Load() {
		r.raising.Unlock()
		return ukai.ErrClosed
	}
	round := r.nextRound()
	if old, ok := round.blocks[index]; !ok || c.void && old.sums != nil {
		round.blocks[index] = c
	}
	r.startRounds()
	r.raising.Unlock()
	return round.wait(ctx)
}

// blockSet is a set of blocks. Looking takes no lock.
type blockSet struct {
	words atomic.Pointer[[]atomic.Uint64] // a bit per block

	changing sync.Mutex
}

// resize makes room for a number of blocks; those beyond are forgotten.
func (b *blockSet) resize(blocks uint64) {
	b.changing.Lock()
	defer b.changing.Unlock()
	words := make([]atomic.Uint64, (blocks+63)/64)
	if old := b.words.Load(); old != nil {
		for i := range min(len(words), len(*old)) {
			words[i].Store((*old)[i].Load())
		}
		if rest := blocks % 64; rest != 0 {
			words[len(words)-1].And(1<<rest - 1)
		}
	}
	b.words.Store(&words)
}

func (b *blockSet) has(i ukai.Index) bool {
	words := *b.words.Load()
	at := uint64(i) / 64
	return at < uint64(len(words)) && words[at].Load()&(1<<(i%64)) != 0
}

func (b *blockSet) set(i ukai.Index) {
	b.changing.Lock()
	defer b.changing.Unlock()
	if words := *b.words.Load(); uint64(i)/64 < uint64(len(words)) {
		words[i/64].Or(1 << (i % 64))
	}
}

func (b *blockSet) clear(i ukai.Index) {
	if !b.has(i) {
		return
	}
	b.changing.Lock()
	defer b.changing.Unlock()
	if words := *b.words.Load(); uint64(i)/64 < uint64(len(words)) {
		words[i/64].And(^uint64(1 << (i % 64)))
	}
}
