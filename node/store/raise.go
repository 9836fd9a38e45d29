package store

import (
	"context"
	"fmt"

	"ukai"
)

// raiseBlocks is how many blocks one caller adds to a round: discarding a whole disk raises all of its stamps.
const raiseBlocks = MaxBatchKeys

// raiseRound gathers changes of stamps that become durable together.
type raiseRound struct {
	blocks map[ukai.Index]stampChange
	done   chan struct{}
	err    error // set before done is closed
}

// stampChange is a new stamp for a block, or none any more, or new checksums beside the stamp it has, or none any more.
type stampChange struct {
	stamp ukai.BlockStamp
	drop  bool
	sums  []Sum // of the block while it has this stamp
	void  bool  // no checksums, whatever the stamp
}

// has says whether the round will have raised a block to at least s.
func (r *raiseRound) has(i ukai.Index, s ukai.BlockStamp) bool {
	if r == nil {
		return false
	}
	c, ok := r.blocks[i]
	return ok && !c.drop && !c.stamp.Less(s)
}

// Stamp implements Replica.
func (r *replica) Stamp(index ukai.Index) (ukai.BlockStamp, bool) {
	if s := r.stamps.get(index); s != nil {
		return *s, true
	}
	return ukai.BlockStamp{}, false
}

// Newer implements Replica.
func (r *replica) Newer(than ukai.BlockStamp) []BlockInfo { return r.stamps.newer(than) }

// Raise implements Replica.
func (r *replica) Raise(ctx context.Context, from, to ukai.Index, s ukai.BlockStamp) error {
	if err := r.checkBlocks(from, to); err != nil {
		return err
	}
	if err := r.usable(); err != nil {
		return err
	}
	for from <= to {
		upTo := min(to, from+raiseBlocks-1)
		for !r.stamps.cover(from, upTo, s) {
			if err := r.joinRaise(ctx, from, upTo, stampChange{stamp: s}); err != nil {
				return fmt.Errorf("raise stamps of %v: %w", r.key, err)
			}
			// A round that was under way may have failed; then the next one is asked.
		}
		from = upTo + 1
	}
	return nil
}

// dropStamps removes the stamps of blocks first through last, lazily.
func (r *replica) dropStamps(ctx context.Context, first, last ukai.Index) error {
	return r.joinRaise(ctx, first, last, stampChange{drop: true})
}

// DropBlock implements Replica. The data must be durably gone before the stamp may be: a block without a stamp counts
// as one that was never written.
func (r *replica) DropBlock(ctx context.Context, index ukai.Index) error {
	if err := r.checkBlocks(index, index); err != nil {
		return err
	}
	off := int64(index) * int64(r.blockSize)
	if err := r.Discard(off, min(int64(r.blockSize), r.size.Load()-off)); err != nil {
		return err
	}
	if err := r.Sync(ctx); err != nil {
		return err
	}
	if err := r.dropStamps(ctx, index, index); err != nil {
		return fmt.Errorf("drop stamp of %v: %w", r.key, err)
	}
	return nil
}

// joinRaise adds a change to the blocks of the next round that need it, and waits for that round, or for the present
// one if it does all that is needed. Rounds of a replica follow one another, so that the database never gets an older
// stamp of a block after a newer one.
func (r *replica) joinRaise(ctx context.Context, from, to ukai.Index, c stampChange) error {
	r.raising.Lock()
	if r.closed.Load() {
		r.raising.Unlock()
		return ukai.ErrClosed
	}
	round := r.present
	for i := from; i <= to; i++ {
		if !c.drop && (r.stamps.cover(i, i, c.stamp) || r.present.has(i, c.stamp)) {
			continue
		}
		round = r.nextRound()
		if !round.has(i, c.stamp) || c.drop {
			round.blocks[i] = c
		}
	}
	r.startRounds()
	r.raising.Unlock()
	if round == nil {
		return nil // another round raised them all in the meantime
	}
	return round.wait(ctx)
}

// wait returns the outcome of a round.
func (r *raiseRound) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// nextRound returns the round that takes changes. The caller holds raising.
func (r *replica) nextRound() *raiseRound {
	if r.next == nil {
		r.next = &raiseRound{blocks: make(map[ukai.Index]stampChange), done: make(chan struct{})}
	}
	return r.next
}

// startRounds has the next round run, unless it will be when the present one ends. The caller holds raising.
func (r *replica) startRounds() {
	if r.next != nil && r.present == nil {
		r.startRound()
		r.raisers.Go(r.raiseRounds)
	}
}

// startRound makes the next round the present one. The caller holds raising.
func (r *replica) startRound() {
	r.present, r.next = r.next, nil
}

// raiseRounds runs rounds until there is none to run.
func (r *replica) raiseRounds() {
	r.raising.Lock()
	round := r.present
	r.raising.Unlock()
	for round != nil {
		round.err = r.runRound(round)
		done := round.done
		r.raising.Lock()
		r.startRound()
		round = r.present
		r.raising.Unlock()
		close(done)
	}
}

// runRound makes a round's changes durable, and only then visible.
func (r *replica) runRound(round *raiseRound) error {
	ctx := context.Background()
	kvs := make([]KV, 0, min(len(round.blocks), MaxBatchKeys))
	// Removing checksums makes room for the data that was admitted already.
	raises, force, bytes := false, false, 0
	for i, c := range round.blocks {
		kv := KV{K: r.key.stampKey(r.head, i)}
		switch now := r.stamps.get(i); {
		case c.drop:
		case !c.void && c.sums == nil:
			kv.V = encodeStamp(c.stamp, nil)
			raises = true
		case now == nil || c.sums != nil && (*now != c.stamp || !r.summed.has(i)):
			delete(round.blocks, i) // nothing to remove, or something was written since the checksums were made
			continue
		default:
			kv.V = encodeStamp(*now, c.sums)
			raises, force = raises || c.void, force || c.void
		}
		kvs, bytes = append(kvs, kv), bytes+len(kv.K)+len(kv.V)
		if len(kvs) == MaxBatchKeys || bytes > MaxBatchBytes-MaxValue {
			if err := r.store.keys.put(ctx, false, force, kvs); err != nil {
				return err
			}
			kvs, bytes = kvs[:0], 0
		}
	}
	// The last put makes the earlier ones durable, too. A round of nothing but drops need not wait for that.
	if err := r.store.keys.put(ctx, raises, force, kvs); err != nil {
		return err
	}
	for i, c := range round.blocks {
		switch {
		case c.sums != nil:
			continue
		case c.drop:
			r.stamps.drop(i)
		case !c.void:
			r.stamps.raise(i, c.stamp)
		}
		r.summed.clear(i)
	}
	return nil
}

func (r *replica) checkBlocks(from, to ukai.Index) error {
	if n := ukai.Blocks(r.size.Load(), r.blockSize); from > to || uint64(to) >= n {
		return fmt.Errorf("%v: blocks %d to %d: %w: the disk has %d blocks", r.key, from, to, ukai.ErrInvalid, n)
	}
	return nil
}
