package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
	"ukai/node/wire"
)

// minHedge is the shortest time after which a read is sent to a second replica.
const minHedge = 2 * time.Millisecond

var claims = sync.Pool{New: func() any { return new(claim) }}

// read fills p from off.
func (h *holding) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		v := h.view.Load()
		part := min(v.layout.partEnd(off, off+int64(len(p)))-off, ukai.MaxIO)
		if err := h.readPart(ctx, p[:part], off); err != nil {
			return fmt.Errorf("block %d: %w", v.layout.index(off), err)
		}
		p, off = p[part:], off+part
	}
	return nil
}

// readPart is read within one block. It waits for writes to the range that are not on all replicas yet: of two reads the
// later could otherwise see older data, from another replica.
func (h *holding) readPart(ctx context.Context, p []byte, off int64) error {
	reserved, err := h.d.reserve(ctx, int64(len(p)))
	if err != nil {
		return err
	}
	defer h.d.inflight.Release(reserved)
	if f := h.view.Load().near; f != nil && f.follows(h.view.Load().layout.index(off)) {
		if done, err := h.readNear(ctx, f, p, off); done || err != nil {
			return err
		}
	}
	c := claims.Get().(*claim)
	defer claims.Put(c)
	c.index, c.off, c.end, c.exclusive = h.view.Load().layout.index(off), off, off+int64(len(p)), false
	if err := h.locks.lock(ctx, c); err != nil {
		return err
	}
	defer h.locks.unlock(c)
	return h.fromReplica(ctx, c.index, &c.behind, func(ctx context.Context, m *member, l *link, next *member) (*member, error) {
		return h.readFrom(m, l, next, p, off)
	})
}

// fromReplica lets get ask replicas of a block's group, the nearest first, until one has answered while it was certainly
// in sync and under this holder's lease. next is where a second request may go when the first is slow; get returns which
// member the answer is from. While behind is not 0, only the replica on this node has all that its guest was told of.
func (h *holding) fromReplica(ctx context.Context, index ukai.Index, behind *atomic.Int32, get func(ctx context.Context, m *member, l *link, next *member) (*member, error)) error {
	var tried []*member // failed in this round
	var last error
	unreadable := 0 // of tried, those that answered that they cannot read it
	var limit <-chan time.Time
	pause := minMendPause
	for {
		if err := h.err(); err != nil {
			return err
		}
		v := h.view.Load()
		g := v.groupOf(index)
		here := behind.Load() > 0
		m, l, next := g.choose(tried, here)
		if m == nil {
			if unreadable > 0 && unreadable == g.possible {
				return last
			}
			changed := h.change()
			if m, _, _ := h.view.Load().groupOf(index).choose(tried, here); m != nil {
				continue
			}
			if limit == nil {
				var stop func()
				limit, stop = h.lossLimit(v)
				defer stop()
			}
			if err := h.pauseRead(ctx, changed, limit, pause, last); err != nil {
				return err
			}
			pause = min(2*pause, maxMendPause)
			tried, unreadable = tried[:0], 0
			continue
		}
		from, err := get(ctx, m, l, next)
		if err != nil {
			last = err
			tried = append(tried, m)
			if h.readFailed(m, l, err) {
				h.mendSoon(index)
				unreadable++
			}
			continue
		}
		// The answer counts only if the replica is in sync whatever the outcome of a change under way, and if no
		// successor can have let writes pass it by.
		if !slices.Contains(h.view.Load().groupOf(index).read, from) {
			continue
		}
		return h.awaitLease(ctx)
	}
}

// pauseRead waits until something changes, or for a while: then all replicas are asked again.
func (h *holding) pauseRead(ctx context.Context, changed <-chan struct{}, limit <-chan time.Time, pause time.Duration, last error) error {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-limit:
		return h.unreadable(last)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

func (h *holding) unreadable(last error) error {
	if last == nil {
		last = h.why()
	}
	if last == nil {
		return fmt.Errorf("no replica: %w", ukai.ErrUnavailable)
	}
	return fmt.Errorf("%w: %w", ukai.ErrUnavailable, last)
}

// choose returns the nearest readable member that was not tried, its session, and the one after it; only one on this node,
// if here.
func (g *groupView) choose(tried []*member, here bool) (m *member, l *link, next *member) {
	var best time.Duration
	for _, c := range g.read {
		cl := c.link.Load()
		if cl == nil || here && c.local == nil || slices.Contains(tried, c) {
			continue
		}
		cost := time.Duration(c.latency.mean.Load())
		if c.local != nil {
			cost = -1
		} else if cost == 0 {
			cost = c.h.host.rtt(c.Node)
		}
		switch {
		case m == nil || cost < best:
			m, l, next, best = c, cl, m, cost
		case next == nil:
			next = c
		}
	}
	return m, l, next
}

// readFailed decides what a failed read says about the replica, and returns whether it is about the data. A sector that
// cannot be read does not put the replica out of sync: it may still be written, and is repaired from another.
func (h *holding) readFailed(m *member, l *link, err error) (unreadable bool) {
	switch {
	case errors.Is(err, ukai.ErrOverloaded):
		return false
	case errors.Is(err, ukai.ErrMedia), errors.Is(err, ukai.ErrCorrupt):
		h.host.cfg.Log.Warn("read failed, asking another replica", "disk", h.d.Name(), "replica", m.Replica, "err", err)
		return true
	}
	m.lost(l, err)
	return false
}

// readFrom reads from m, and from next too if m is slow. It returns the member whose answer is in p.
func (h *holding) readFrom(m *member, l *link, next *member, p []byte, off int64) (*member, error) {
	if m.local != nil {
		return m, m.local.rs.named(m.local.read(h.epoch, l.session, p, off, false))
	}
	first := h.startRead(m, l, p, off)
	if next == nil {
		return m, h.endRead(l.ctx, m, l, first)
	}
	delay := time.NewTimer(max(minHedge, m.latency.slow(), 2*h.host.rtt(m.Node)))
	defer delay.Stop()
	select {
	case <-first.Done():
		return m, h.endRead(l.ctx, m, l, first)
	case <-delay.C:
	}
	nl := next.link.Load()
	if nl == nil || next.local != nil {
		return m, h.endRead(l.ctx, m, l, first)
	}
	q := hedges.get(len(p))
	defer hedges.put(q)
	second := h.startRead(next, nl, *q, off)
	select {
	case <-first.Done():
	case <-second.Done():
		if err := h.endRead(nl.ctx, next, nl, second); err == nil {
			// Ended as one that gives up, so that nothing writes to p any more.
			if h.endRead(h.host.gone, m, l, first) != nil {
				copy(p, *q)
				return next, nil
			}
			return m, nil
		}
		return m, h.endRead(l.ctx, m, l, first)
	}
	err := h.endRead(l.ctx, m, l, first)
	if err == nil {
		_ = h.endRead(h.host.gone, next, nl, second) // not needed any more
		return m, nil
	}
	if h.endRead(nl.ctx, next, nl, second) != nil {
		return m, err // whoever asks blames m for it, and asks next on its own
	}
	copy(p, *q)
	return next, nil
}

// pendingRead is a read under way.
type pendingRead struct {
	Call
	slot uint32
	sent time.Time
}

func (h *holding) startRead(m *member, l *link, p []byte, off int64) pendingRead {
	msg := wire.Message{
		Kind: wire.KindRead, Disk: h.d.id, Replica: m.Replica, Epoch: h.epoch, Session: l.session, Offset: off, Count: uint32(len(p)),
	}
	r := pendingRead{slot: l.ops.begin(), sent: time.Now()}
	r.Call = h.host.cfg.Peers.Start(l.ctx, m.Node, &msg, p)
	return r
}

func (h *holding) endRead(ctx context.Context, m *member, l *link, r pendingRead) error {
	_, err := r.Wait(ctx)
	l.ops.end(r.slot)
	if err == nil {
		m.latency.observe(time.Since(r.sent))
	}
	return m.named(err)
}

// awaitLease holds an answer back until the lease is known to hold: a successor may have been writing past the replica
// it came from.
func (h *holding) awaitLease(ctx context.Context) error {
	if h.leaseHolds(h.view.Load(), h.host.cfg.Clock()) {
		return nil
	}
	h.leaseWaits.Add(1)
	defer h.leaseWaits.Add(-1)
	limit, stop := h.lossLimit(h.view.Load())
	defer stop()
	for {
		changed := h.change()
		if err := h.err(); err != nil {
			return err
		}
		if h.leaseHolds(h.view.Load(), h.host.cfg.Clock()) {
			return nil
		}
		select {
		case <-changed:
		case <-limit:
			return fmt.Errorf("lease not confirmed: %w", h.unreadable(nil))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// seek returns where the next data or the next hole begins. A hole is something that reads as zeros.
func (h *holding) seek(ctx context.Context, off int64, what uint32) (int64, error) {
	v := h.view.Load()
	for off < v.layout.size {
		index := v.layout.index(off)
		var found int64
		err := h.fromReplica(ctx, index, new(atomic.Int32), func(ctx context.Context, m *member, l *link, _ *member) (*member, error) {
			if m.local == nil {
				if err := h.drain(ctx); err != nil {
					return m, err
				}
			}
			reply, err := m.ask(l.ctx, l.session, wire.Message{Kind: wire.KindStatus, Offset: off, Count: what}, nil)
			found = reply.Offset
			return m, err
		})
		if err != nil {
			return 0, err
		}
		l := &h.view.Load().layout // blocks may have got a group of their own meanwhile, with other replicas
		_, endIndex := l.groupAt(index)
		end := min(int64(endIndex)*l.blockSize, v.layout.size)
		if found < end {
			return max(found, off), nil
		}
		off = end // a replica holds nothing of other groups' blocks, or old content
	}
	return v.layout.size, nil
}

// hedgeBuffers pools what second reads go to.
type hedgeBuffers struct{ pool sync.Pool }

var hedges hedgeBuffers

func (b *hedgeBuffers) get(n int) *[]byte {
	p, _ := b.pool.Get().(*[]byte)
	if p == nil || cap(*p) < n {
		q := make([]byte, n)
		return &q
	}
	*p = (*p)[:n]
	return p
}

func (b *hedgeBuffers) put(p *[]byte) { b.pool.Put(p) }
