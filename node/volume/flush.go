package volume

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"ukai/node/wire"
)

// flush returns after everything acknowledged before it is on stable storage on every replica that may be in sync. Each
// replica answers within a session of the incarnation that was sealed, so a machine that restarted, and lost what it had
// in memory, cannot vouch for it.
func (h *holding) flush(ctx context.Context) error {
	if !h.unflushed.any() {
		return h.err() // nothing acknowledged since the last flush that succeeded
	}
	h.unflushed.begin()
	done, err := h.flushBehind(ctx)
	if err == nil && !done {
		err = h.flushDrained(ctx)
	}
	h.unflushed.end(err != nil)
	return err
}

// flushDrained has every replica that may be in sync sync, once it has what guests were told of.
func (h *holding) flushDrained(ctx context.Context) error {
	if err := h.drain(ctx); err != nil {
		return err
	}
	return h.run(ctx, h.newMutation(wire.KindFlush, allGroups, nil, 0, 0))
}

// flushBehind is flush while the window is not empty, in one round trip: the replicas are asked at once, and each syncs when it has applied what it was
// sent before, which it knows by the batch. Whether what it was sent is all that guests were told of is seen afterwards: not if anything was sent once more
// since, in whose place nothing was counted, nor if sessions or the replicas are others by then. Then flushBehind returns false, and that was no flush. It
// is a matter of speed alone: whoever is not sure drains the window first.
func (h *holding) flushBehind(ctx context.Context) (bool, error) {
	if h.unflushed.flushes() > maxBehind {
		return false, nil
	}
	v := h.view.Load()
	h.mu.Lock()
	drained := h.window.drained() // all that are in the window now have been sent
	h.mu.Unlock()
	if drained == nil {
		return false, nil
	}
	op := h.newMutation(wire.KindFlush, allGroups, nil, 0, 0)
	op.behind, op.generation = true, h.generation.Load()
	op.aim(v)
	defer op.finish()
	for i := range op.targets {
		if l := op.targets[i].m.link.Load(); l == nil || l.uneven.Load() {
			return false, nil
		}
	}
	h.send(op)
	for i := range op.targets {
		t := &op.targets[i]
		if h.await(t); t.err != nil && t.l != nil {
			t.l.uneven.Store(true)
		}
	}
	if err := h.awaitDrained(ctx, drained); err != nil {
		return false, err
	}
	if !op.complete() || h.view.Load() != v {
		return false, nil
	}
	for i := range op.targets {
		t := &op.targets[i]
		if t.m.local == nil && (t.m.link.Load() != t.l || t.l.again.Load() != t.again || t.l.uneven.Load()) { // it may have begun since we looked
			return false, nil
		}
	}
	return h.sealDone(op), nil
}

// checkpointNow is checkpoint after any that runs. When it returns nil every mutation that had begun when it was called is
// over.
func (h *holding) checkpointNow(ctx context.Context) error {
	select {
	case h.checking <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-h.checking }()
	return h.checkpoint(ctx)
}

// checkpoint makes all writes so far durable everywhere and lets the heartbeats announce it.
func (h *holding) checkpoint(ctx context.Context) error {
	old := h.check.Load()
	blocks := uint64((h.view.Load().layout.size + h.view.Load().layout.blockSize - 1) / h.view.Load().layout.blockSize)
	h.check.Store(newCheck(h.epoch, old.stamp.Check+1, blocks))
	h.mu.Lock()
	h.checked = h.host.cfg.Clock()
	h.mu.Unlock()
	h.unfinished = append(h.unfinished, old)
	for _, c := range h.unfinished {
		select {
		case <-c.writes.close():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if slices.ContainsFunc(h.unfinished, func(c *check) bool { return c.touched.count.Load() > 0 }) {
		h.unflushed.dirty() // also what was written without being acknowledged becomes stable
	}
	h.unfinished = nil
	if err := h.flush(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	if h.stable.Less(old.stamp) {
		h.stable = old.stamp
	}
	h.mu.Unlock()
	h.announceHere()
	return nil
}

// announceHere tells the replicas on this node, which get no heartbeats, what is stable. Their checksums depend on it.
func (h *holding) announceHere() {
	for _, m := range h.view.Load().all {
		if m.local == nil {
			continue
		}
		if err := m.local.settle(m.beat().beat); err != nil {
			h.host.cfg.Log.Info("the stable stamp was not noted; the next checkpoint tells again", "disk", h.d.Name(), "replica", m.Replica, "err", err)
		}
	}
}

// announceFor is how long a release waits for the replicas to take over the last stable stamp. It may be lost: then a
// later recovery only looks at more blocks.
const announceFor = time.Second

// unflushed is what a replica's restart would lose: a write makes it dirty before it is acknowledged; a flush ends that when it begins, and counts until it
// has succeeded, or failed, which makes it dirty again. It is one word: who looks at two may look at the one just before a flush fails, and at the other just
// after. See adopt.
type unflushed struct{ word atomic.Int64 } // 1: dirty; 2 for each flush

func (u *unflushed) isDirty() bool { return u.word.Load()&1 != 0 }

func (u *unflushed) dirty() {
	if !u.isDirty() {
		u.word.Or(1)
	}
}

func (u *unflushed) begin() {
	u.word.Add(2)
	u.word.And(^1)
}

func (u *unflushed) end(failed bool) {
	if failed {
		u.word.Or(1)
	}
	u.word.Add(-2)
}

// flushes returns how many are under way.
func (u *unflushed) flushes() int64 { return u.word.Load() >> 1 }

// any says whether something that was acknowledged may be on no stable storage.
func (u *unflushed) any() bool { return u.word.Load() != 0 }
