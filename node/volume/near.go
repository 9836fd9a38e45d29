package volume

import (
	"cmp"
	"context"
	"slices"

	"ukai"
)

// A VM that runs where its disk is still being copied to is served by the replica there as far as that has come: protocol, 12. What the replica neither
// lacks nor owes is equal to what the replicas in sync have, as long as its range is locked. What it lacks is read from those, in whole chunks, and
// given to it, so that it travels once.
//
// A successor does not seal such a replica, so no fence ends these reads: only the lease does. That is why a takeover waits for the lease if the
// record names a syncing replica on another node (takeover.followed), and why an answer from here counts only if after the lease was looked at
// this holder had not begun to drop the replica.

// readNear is readPart by the replica on this node that follows. It returns false if that cannot serve the range now.
func (h *holding) readNear(ctx context.Context, f *following, p []byte, off int64) (done bool, err error) {
	c := claims.Get().(*claim)
	defer claims.Put(c)
	for _, pull := range []bool{false, true} {
		c.index, c.off, c.end, c.exclusive = h.view.Load().layout.index(off), off, off+int64(len(p)), pull
		if pull {
			f.align(c)
		}
		if err := h.locks.lock(ctx, c); err != nil {
			return false, err
		}
		done, err := f.serve(ctx, c, p, off)
		h.locks.unlock(c)
		if done || err != nil {
			return done, err
		}
	}
	return false, nil
}

// follows says whether a block is of a group that the replica follows.
func (f *following) follows(i ukai.Index) bool {
	group, _ := f.h.view.Load().layout.groupAt(i)
	return slices.Contains(f.groups, group)
}

// align extends a claim to whole chunks, or to the end of what the replica has room for.
func (f *following) align(c *claim) {
	f.mu.Lock()
	defer f.mu.Unlock()
	start, end := f.state.blockOff(c.index), min(f.state.blockOff(c.index)+f.state.blockSize, f.state.size)
	c.off = start + (c.off-start)/ukai.ChunkSize*ukai.ChunkSize
	c.end = max(c.end, min(start+(c.end-start+ukai.ChunkSize-1)/ukai.ChunkSize*ukai.ChunkSize, end))
}

// serve reads p from off under a claim. If that is exclusive the replica is given what it lacks of the range.
func (f *following) serve(ctx context.Context, c *claim, p []byte, off int64) (done bool, err error) {
	h := f.h
	f.mu.Lock()
	l, has := f.m.link.Load(), f.state.has(c.index, off, off+int64(len(p)))
	may := c.exclusive && f.state.mayGet(c.index, c.off, c.end)
	f.mu.Unlock()
	switch {
	case l == nil, h.err() != nil, !f.follows(c.index): // a split may have come in between, and a write that it was not told of
		return false, nil
	case has:
		if f.m.local.read(h.epoch, l.session, p, off, false) != nil {
			return false, nil // another replica may
		}
		if err := h.awaitLease(ctx); err != nil {
			return false, err
		}
		return h.view.Load().near == f, nil
	case !may:
		return false, nil
	}
	whole := make([]byte, c.end-c.off)
	if f.fromSource(ctx, c.index, func(src *member) error { return src.fetch(ctx, whole, c.off, source()) }) != nil {
		return false, nil // as above, and what a guest may read need not be good enough to copy
	}
	if err := h.awaitLease(ctx); err != nil {
		return false, err
	}
	copy(p, whole[off-c.off:])
	if err := f.fill(ctx, whole, c.off, h.check.Load().stamp); err != nil {
		_ = f.blame(ctx, l, err) // told by the attempt; the guest has its answer
		return true, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.gave(c.index, c.off, c.end)
	return true, nil
}

// leave ends reads by the replica, for it is about to be dropped. The caller holds h.mu and rebuilds the view.
func (f *following) leave() { f.leaves.Store(true) }

// span is blocks [from, to).
type span struct{ from, to ukai.Index }

// hottest returns the parts of a disk that were used most, in that order, as blocks.
func hottest(heat *[HeatParts]uint32, size, blockSize int64) []span {
	part := max(1, (size+HeatParts-1)/HeatParts)
	var parts []int
	for i, n := range heat {
		if n > 0 {
			parts = append(parts, i)
		}
	}
	slices.SortStableFunc(parts, func(a, b int) int { return cmp.Compare(heat[b], heat[a]) })
	spans := make([]span, len(parts))
	for i, n := range parts {
		from := int64(n) * part
		spans[i] = span{ukai.Index(from / blockSize), ukai.Index((from + part + blockSize - 1) / blockSize)}
	}
	return spans
}

// order returns in which order blocks are compared: for a replica on this node those first that its guests use, here of late and on the nodes with
// replicas before; then, as for any other replica, one after the other.
func (f *following) order() []span {
	if f.m.local == nil {
		return nil
	}
	heat := f.heat
	if m := f.h.d.mix.Load(); m != nil {
		for i := range heat {
			heat[i] += m.reads.heat[i].Load() + m.writes.heat[i].Load()
		}
	}
	f.h.mu.Lock()
	size := f.h.size
	f.h.mu.Unlock()
	return hottest(&heat, size, f.state.blockSize)
}
