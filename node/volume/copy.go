package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ukai"
)

// How the blocks that a replica lacks are compared and copied: J5 of the protocol, 3.8.

const (
	resyncWidth = 8         // blocks of one replica compared at once
	copyBytes   = 256 << 10 // copied under one range lock: what a write of the guest may have to wait for
	// hashShare is how much less it is to compare a byte than to copy it, of what guests may feel.
	hashShare = 4
)

// CopyWindow is how many bytes of a resync are under way at once: with round trips it bounds how fast copies are made.
const CopyWindow = resyncWidth * copyBytes

// sweep compares and copies all blocks that are dirty now, each once.
func (f *following) sweep(ctx context.Context, l *link) error {
	if err := f.fit(ctx, l, 0); err != nil {
		return err
	}
	order := f.order()
	f.mu.Lock()
	f.state.rewind(order)
	f.mu.Unlock()
	work, ctx := errgroup.WithContext(ctx)
	for range resyncWidth {
		work.Go(func() error {
			for ctx.Err() == nil {
				f.mu.Lock()
				i, ok := f.state.take()
				f.mu.Unlock()
				if !ok {
					return nil
				}
				err := f.block(ctx, l, i)
				f.mu.Lock()
				f.state.leave(i)
				f.mu.Unlock()
				if err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return work.Wait()
}

// block makes one block equal. Its chunks are compared without keeping the guest out, which is why those that were
// written meanwhile are copied whatever their hashes say; chunks are copied under the range lock, few at a time.
func (f *following) block(ctx context.Context, l *link, i ukai.Index) error {
	f.mu.Lock()
	off, end := f.state.blockOff(i), min(f.state.blockOff(i)+f.state.blockSize, f.state.size)
	f.mu.Unlock()
	// Writes that were let in before the comparison began are on all replicas when this lock is granted. Reads go on.
	c := &claim{index: i, off: off, end: end, settled: true}
	if err := f.h.locks.lock(ctx, c); err != nil {
		return err
	}
	f.h.locks.unlock(c)
	err := f.equalise(ctx, l, i, off, end, source())
	if none := (*sourceless)(nil); errors.As(err, &none) && (errors.Is(err, ukai.ErrCorrupt) || errors.Is(err, ukai.ErrMedia)) {
		// Perhaps this replica has what the others have lost. If nobody has, it gets what any reader gets: a disk with one copy is worse.
		var found ScrubResult
		if err = f.h.scrubBlock(ctx, i, false, f.h.host.cfg.Budget, &found); err == nil {
			as := source()
			if found.Unrepaired > 0 {
				as = nil
			}
			err = f.equalise(ctx, l, i, off, end, as)
		}
	}
	if err == nil {
		f.steps.Add(1)
	}
	return err
}

// equalise makes [off, end), which is a block, equal. Also one of which nothing has to be copied gets a stamp that is not older than what the source has of it:
// others are brought up to date from here, and would else not hear of what was written to it meanwhile.
func (f *following) equalise(ctx context.Context, l *link, i ukai.Index, off, end int64, as []byte) error {
	var behind ukai.BlockStamp // of the source, where the replica's is older
	for chunk, compared := 0, false; ; {
		most := int(f.h.host.piece(maxHashed/hashShare) * hashShare / ukai.ChunkSize)
		f.mu.Lock()
		from, to := f.state.lackingRun(i, chunk, most)
		f.mu.Unlock()
		if from == to {
			if compared {
				break
			}
			from, to = 0, 1 // for the stamps
		}
		at := off + int64(from)*ukai.ChunkSize
		newer, err := f.compare(ctx, l, i, at, min(off+int64(to)*ukai.ChunkSize, end)-at, as)
		if err != nil {
			return err
		}
		if behind.Less(newer) {
			behind = newer
		}
		chunk, compared = to, true
	}
	copied := false
	for chunk := 0; ; {
		most := int(f.h.host.piece(copyBytes) / ukai.ChunkSize)
		f.mu.Lock()
		from, to := f.state.lackingRun(i, chunk, most)
		f.mu.Unlock()
		if from == to {
			break
		}
		if err := f.copy(ctx, l, i, from, to, end, as); err != nil {
			return err
		}
		copied, chunk = true, to
	}
	if copied {
		f.h.host.resynced.blocks.Add(1)
	} else if behind != (ukai.BlockStamp{}) {
		if err := f.m.put(ctx, nil, off, behind); err != nil {
			f.mu.Lock()
			f.state.missed(i, off, end)
			f.mu.Unlock()
			return f.blame(ctx, l, err)
		}
	}
	return nil
}

// pay waits until so many bytes may go from the nearest source of a block to this host, and on to the replica. No range is locked meanwhile. Should
// that source fail, another is asked for what it was paid for.
func (f *following) pay(ctx context.Context, i ukai.Index, n int64) error {
	budget, here := f.h.host.cfg.Budget, f.h.host.cfg.Node
	if budget == nil {
		return nil
	}
	v := f.h.view.Load()
	if src, _, _ := v.groupOf(i).choose(nil, false); src != nil && src.Node != here {
		if err := budget(ctx, f.h.d.id, src.Node, here, n); err != nil {
			return err
		}
	}
	if f.m.Node == here {
		return nil
	}
	return budget(ctx, f.h.d.id, here, f.m.Node, n)
}

// compare asks the source and the replica for the hashes of a part of a block. It returns the stamp of the source if that of the replica is older.
func (f *following) compare(ctx context.Context, l *link, i ukai.Index, off, n int64, as []byte) (behind ukai.BlockStamp, err error) {
	if err := f.pay(ctx, i, (n+ukai.ChunkSize-1)/ukai.ChunkSize*int64(len(chunkHash{}))); err != nil {
		return behind, err
	}
	release, err := f.h.host.room(ctx, n/hashShare)
	if err != nil {
		return behind, err
	}
	defer release()
	var want, have []chunkHash
	var ours, theirs ukai.BlockStamp
	both, part := errgroup.WithContext(ctx)
	both.Go(func() error {
		return f.fromSource(part, i, func(src *member) (err error) {
			want, theirs, err = src.hashes(part, off, n, as, f.h.check.Load().stamp) // if it does not tell, the newest there is
			return err
		})
	})
	both.Go(func() (err error) {
		if have, ours, err = f.m.hashes(part, off, n, nil, ukai.BlockStamp{}); err != nil {
			return f.blame(part, l, err)
		}
		return nil
	})
	if err := both.Wait(); err != nil {
		return behind, err
	}
	f.h.host.resynced.hashed.Add(n)
	f.mu.Lock()
	defer f.mu.Unlock()
	first := int((off - f.state.blockOff(i)) / ukai.ChunkSize)
	for k := range want {
		switch {
		case want[k] == have[k]:
			f.state.same(i, first+k)
		case want[k] == chunkHash{}:
			f.state.zeros(i, first+k)
		}
	}
	if ours.Less(theirs) {
		behind = theirs
	}
	return behind, nil
}

// copy copies chunks [from, to) of a block, whose end on the disk is given, under their range lock. Zeros are neither read nor sent. If they were written
// meanwhile they stay lacking.
func (f *following) copy(ctx context.Context, l *link, i ukai.Index, from, to int, end int64, as []byte) error {
	f.mu.Lock()
	start, zeros := f.state.blockOff(i), f.state.areZeros(i, from, to)
	f.mu.Unlock()
	off := start + int64(from)*ukai.ChunkSize
	end = min(end, start+int64(to)*ukai.ChunkSize)
	if !zeros {
		if err := f.pay(ctx, i, end-off); err != nil {
			return err
		}
	}
	c := &claim{index: i, off: off, end: end, exclusive: true}
	release, err := f.lockInRoom(ctx, c)
	if err != nil {
		return err
	}
	defer release()
	defer f.h.locks.unlock(c)
	if f.mu.Lock(); !f.state.lacksAny(i, off, end) { // a guest has read it meanwhile, which has given it to the replica
		f.mu.Unlock()
		return nil
	}
	f.mu.Unlock()
	var p []byte
	if zeros {
		f.mu.Lock()
		zeros = f.state.areZeros(i, from, to)
		f.mu.Unlock()
		if !zeros {
			return nil
		}
	} else {
		p = make([]byte, end-off)
		if err := f.fromSource(ctx, i, func(src *member) error { return src.fetch(ctx, p, off, as) }); err != nil {
			return err
		}
	}
	// Not older than any write in the range, and newer than what the replica is known to have, so that an interrupted
	// resync finds the block again.
	stamp := f.h.check.Load().stamp
	if zeros {
		err = f.m.zero(ctx, off, end-off, stamp)
	} else {
		err = f.fill(ctx, p, off, stamp)
	}
	if err != nil {
		// It may still be applied, until the next session begins; nothing is sent for a lacking chunk before that.
		return f.blame(ctx, l, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.copied(i, from, to)
	return nil
}

// fill writes p, which begins with a chunk, to the replica. Chunks of zeros are not sent.
func (f *following) fill(ctx context.Context, p []byte, off int64, stamp ukai.BlockStamp) (err error) {
	for at := int64(0); at < int64(len(p)) && err == nil; at += ukai.ChunkSize {
		chunk := p[at:min(at+ukai.ChunkSize, int64(len(p)))]
		if allZero(chunk) {
			err = f.m.zero(ctx, off+at, int64(len(chunk)), stamp)
			continue
		}
		rest := at + int64(len(chunk))
		for rest < int64(len(p)) && !allZero(p[rest:min(rest+ukai.ChunkSize, int64(len(p)))]) {
			rest = min(rest+ukai.ChunkSize, int64(len(p)))
		}
		err = f.m.put(ctx, p[at:rest], off+at, stamp)
		f.moved.Add(rest - at)
		f.h.host.resynced.bytes.Add(rest - at)
		at = (rest - 1) / ukai.ChunkSize * ukai.ChunkSize
	}
	return err
}

// roomFor is how long a copy that may begin waits for its range at most before others get its room: a write to it may hang as long as its disk does.
const roomFor = time.Second

// lockInRoom locks a range as lockPaid does, when it may be copied.
func (f *following) lockInRoom(ctx context.Context, c *claim) (release func(), err error) {
	for {
		if release, err = f.h.host.room(ctx, c.end-c.off); err != nil {
			return nil, err
		}
		try, cancel := context.WithTimeout(ctx, roomFor)
		err = f.lockPaid(try, c)
		cancel()
		if err == nil {
			return release, nil
		}
		release()
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

// lockPaid locks a range of which the replica owes no acknowledgement (rule O). It does not keep the guest out while the
// replica pays.
func (f *following) lockPaid(ctx context.Context, c *claim) error {
	for {
		if err := f.h.locks.lock(ctx, c); err != nil {
			return err
		}
		f.mu.Lock()
		owes, news := f.state.owes(c.index, c.off, c.end), f.news
		f.mu.Unlock()
		if !owes {
			return nil
		}
		f.h.locks.unlock(c)
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// sourceless is the error of a block of which no source has all.
type sourceless struct{ err error }

func (s *sourceless) Error() string { return s.err.Error() }
func (s *sourceless) Unwrap() error { return s.err }

// fromSource lets get ask members of the read set, the nearest first, until one has answered.
func (f *following) fromSource(ctx context.Context, i ukai.Index, get func(src *member) error) error {
	var tried []*member
	last := ukai.ErrUnavailable
	for {
		v := f.h.view.Load()
		src, l, _ := v.groupOf(i).choose(tried, false)
		if src == nil {
			return &sourceless{fmt.Errorf("no source for block %d: %w", i, last)}
		}
		err := get(src)
		switch {
		case err == nil && slices.Contains(f.h.view.Load().groupOf(i).read, src):
			return nil
		case err == nil:
			continue // it may have been dropped before it answered
		case ctx.Err() != nil:
			return err
		}
		if f.h.readFailed(src, l, err) {
			f.h.mendSoon(i)
		}
		last, tried = err, append(tried, src)
	}
}
