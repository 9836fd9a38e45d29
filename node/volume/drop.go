package volume

import (
	"context"
	"fmt"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// flushBefore bounds how long all replicas in sync may take to answer before one of them is dropped.
const flushBefore = 10 * time.Second

// Drop takes a replica out of a group of the disk for good: out of the in-sync set, if it is in it, then out of the
// record. It is refused where fewer than keep, or than writes need, would be left in sync and answer: others may have failed since it was planned. This node
// becomes the holder for it, unless another is: ukai.HeldError. A replica that is not in the group any more is no error.
func (d *Disk) Drop(ctx context.Context, group uint8, replica ukai.ReplicaID, keep int) error {
	h, err := d.enter(ctx, claimIfFree)
	if err != nil {
		return fmt.Errorf("drop replica %v of %s: %w", replica, d.Name(), err)
	}
	defer h.ops.leave()
	if err := h.retire(ctx, group, replica, keep); err != nil {
		return fmt.Errorf("drop replica %v of %s: %w", replica, d.Name(), err)
	}
	return nil
}

// retire shrinks by a replica and retires it.
func (h *holding) retire(ctx context.Context, group uint8, replica ukai.ReplicaID, keep int) error {
	h.mu.Lock()
	member := h.members[replica]
	g := h.sets.known.Group(group)
	in := g != nil && g.Member(replica) != nil && g.Member(replica).Role == crdt.InSync
	h.mu.Unlock()
	if in {
		// The others are not only said to be in sync: they answer, or are put out of the set first.
		ctx, cancel := context.WithTimeout(ctx, flushBefore)
		err := h.flushDrained(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("flush before: %w", err)
		}
	}
	if member != nil && member.local != nil { // it may be the one that is ahead
		closing, cancel := context.WithTimeout(ctx, flushBefore)
		open, err := h.closeWindow(closing)
		cancel()
		if err != nil {
			return err
		}
		defer open()
	}
	select {
	case h.reconfiguring <- struct{}{}:
	case <-h.ctx.Done():
		return h.err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-h.reconfiguring }()
	if err := h.settleSets(); err != nil {
		return err
	}
	groups := []uint8{group}
	h.mu.Lock()
	rec := h.sets.known
	g = rec.Group(group)
	var m *crdt.Member
	if g != nil {
		m = g.Member(replica)
	}
	if m == nil {
		h.mu.Unlock()
		return nil
	}
	if m.Role == crdt.InSync {
		// The guard of the change itself is looked at first, so that nothing is put in doubt for what is refused anyway.
		shrink := cell.Shrink{Epoch: h.epoch, Version: rec.Version, Replica: replica, In: groups, Keep: max(rec.MinSync, keep)}
		next, err := shrink.Apply(rec.Clone())
		if err != nil {
			h.mu.Unlock()
			return err
		}
		h.sets.propose(next)
		h.rebuild()
		h.mu.Unlock()
		if err := h.commit(shrink); err != nil {
			return err
		}
		h.mu.Lock()
		rec = h.sets.known
	}
	if f := h.following; f != nil && f.m.Replica == replica {
		f.leave()
		h.rebuild()
	}
	h.mu.Unlock()
	return h.commit(cell.Retire{Epoch: h.epoch, Version: rec.Version, Replica: replica, In: groups})
}
