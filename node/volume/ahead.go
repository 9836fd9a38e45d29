package volume

import (
	"context"
	"fmt"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// What a holder does with ack=local: it lets the replica on its own node be ahead of the others for the length of the window.
// The quorum record names that replica, so that any takeover copies from it and from no other.

// leader returns the replica that a node lets be ahead when it holds the disk: its own, if the disk wants that. Pure.
func leader(rec *crdt.Record, node ukai.NodeID) ukai.ReplicaID {
	if rec.Ack != crdt.AckLocal {
		return 0
	}
	for i := range rec.Groups {
		for _, m := range rec.InSync(rec.Groups[i].ID) {
			if m.Node == node {
				return m.Replica
			}
		}
	}
	return 0
}

// goAhead lets the guest be answered for a mutation that only the replica on this node has for certain, and says whether
// that may be. The mutation then goes on by itself, with its range open to reads of that replica.
func (h *holding) goAhead(op *mutation) bool {
	if op.group == allGroups || len(op.targets) < 2 {
		return false
	}
	v := h.view.Load()
	if m := v.groupOf(op.claim.index).ahead; m == nil || !op.reached(m) {
		return false
	}
	// A successor that cannot seal this node's replica waits for the lease only.
	now := h.host.cfg.Clock()
	if !h.leaseHolds(v, now) {
		return false
	}
	_, bytes := payloadClass(len(op.p))
	h.mu.Lock()
	// An unchanged view: what is proposed from here on finds the mutation in the window.
	if h.view.Load() != v || h.ended || h.over.Load() != nil || h.generation.Load() != op.generation || !h.window.admit(op, int64(bytes), now) {
		h.mu.Unlock()
		return false
	}
	h.ops.hold() // a release must not overlook it
	h.work.Add(1)
	h.mu.Unlock()
	h.unflushed.dirty()
	if op.p != nil {
		op.kept = getPayload(len(op.p))
		copy(*op.kept, op.p)
		op.p = *op.kept
	}
	h.locks.downgrade(&op.claim)
	if op.carryOn == nil {
		op.carryOn = func() { op.h.catchUp(op) }
	}
	go op.carryOn()
	return true
}

// catchUp sees to it that a mutation in the window gets to all replicas that must have it.
func (h *holding) catchUp(op *mutation) {
	defer h.work.Done()
	defer h.ops.leave()
	for i := range op.targets {
		h.await(&op.targets[i])
	}
	if op.complete() && h.generation.Load() == op.generation && h.over.Load() == nil {
		op.settled = true // dirty is set since the guest was answered, and a flush that cleared it waits for this
	} else if err := h.insist(op); err != nil && h.err() == nil {
		h.end(fmt.Errorf("an acknowledged write cannot be completed: %w: %w", err, ukai.ErrLost))
	}
	op.finish()
}

// drain waits until every mutation in the window is on all replicas that must have it.
func (h *holding) drain(ctx context.Context) error {
	h.mu.Lock()
	done := h.window.drained()
	h.mu.Unlock()
	return h.awaitDrained(ctx, done)
}

// awaitDrained waits for what window.drained has returned.
func (h *holding) awaitDrained(ctx context.Context, done <-chan struct{}) error {
	if done == nil {
		return nil
	}
	limit, stop := h.lossLimit(h.view.Load())
	defer stop()
	select {
	case <-done:
		return h.err()
	case <-limit:
		if err := h.why(); err != nil {
			return err
		}
		return fmt.Errorf("acknowledged writes are not on all replicas yet: %w", ukai.ErrTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// closeWindow drains the window and keeps it empty until open is called.
func (h *holding) closeWindow(ctx context.Context) (open func(), err error) {
	h.mu.Lock()
	h.window.bars++
	h.mu.Unlock()
	open = func() {
		h.mu.Lock()
		h.window.bars--
		h.mu.Unlock()
	}
	if err := h.drain(ctx); err != nil {
		open()
		return nil, err
	}
	return open, nil
}

// lead has the quorum record name the replica that may be ahead, after something has changed which one that is.
func (h *holding) lead() {
	defer h.leading.Store(false)
	pause := minMendPause
	for h.view.Load().misled && h.err() == nil {
		if err := h.nameLeader(); err == nil {
			continue
		}
		if !h.sleep(pause) {
			return
		}
		pause = min(2*pause, maxMendPause)
	}
}

func (h *holding) nameLeader() error {
	open, err := h.closeWindow(h.ctx)
	if err != nil {
		return err
	}
	defer open()
	return h.alter(func(known *crdt.Record) (cell.Change, error) {
		return cell.Lead{Epoch: h.epoch, Version: known.Version, Replica: leader(known, h.host.cfg.Node)}, nil
	})
}
