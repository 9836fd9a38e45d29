package volume

import (
	"context"
	"fmt"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// Drop takes a replica out of a group of the disk for good: out of the in-sync set, if it is in it, then out of the
// record. It is refused where too few would be left in sync. This node becomes the holder for it, unless another is:
// ukai.HeldError. A replica that is not in the group any more is no error.
func (d *Disk) Drop(ctx context.Context, group uint8, replica ukai.ReplicaID) error {
	h, err := d.enter(ctx, claimIfFree)
	if err != nil {
		return fmt.Errorf("drop replica %v of %s: %w", replica, d.Name(), err)
	}
	defer h.ops.leave()
	if err := h.retire(ctx, group, replica); err != nil {
		return fmt.Errorf("drop replica %v of %s: %w", replica, d.Name(), err)
	}
	return nil
}

// retire shrinks by a replica and retires it.
func (h *holding) retire(ctx context.Context, group uint8, replica ukai.ReplicaID) error {
	h.mu.Lock()
	member := h.members[replica]
	h.mu.Unlock()
	if member != nil && member.local != nil { // it may be the one that is ahead
		open, err := h.closeWindow(ctx)
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
	in := []uint8{group}
	h.mu.Lock()
	rec := h.sets.known
	g := rec.Group(group)
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
		shrink := cell.Shrink{Epoch: h.epoch, Version: rec.Version, Replica: replica, In: in, Keep: rec.MinSync}
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
	return h.commit(cell.Retire{Epoch: h.epoch, Version: rec.Version, Replica: replica, In: in})
}
