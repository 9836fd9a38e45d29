package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// What is done about a replica that failed under a live holder. No write completes while it may still be in the in-sync
// set without the data: either it comes back in a new session and gets again what it has not acknowledged, or the
// disk's arbiters take it out.

// Pauses between attempts to mend a replica while it can neither be reached nor dropped.
const (
	minMendPause = 100 * time.Millisecond
	maxMendPause = 2 * time.Second
)

// mend runs, once per failed replica, until the replica is linked again, is out of the in-sync set, or the holding is
// over.
func (m *member) mend() {
	h := m.h
	pause := minMendPause
	for first := true; ; first = false {
		h.mu.Lock()
		needed, lasting, dropFirst := h.needs(m.Replica), m.lasting, m.dropFirst && first
		if m.link.Load() != nil || !needed || h.ctx.Err() != nil {
			m.mending = false
			h.mu.Unlock()
			return
		}
		h.mu.Unlock()
		if !lasting && !dropFirst && m.reconnect() {
			continue
		}
		if h.drop(m) {
			continue
		}
		if pause = min(2*pause, maxMendPause); !h.sleep(pause/2 + rand.N(pause/2)) {
			continue // over: the look above ends it
		}
	}
}

// lasts says whether greeting a replica that failed with an error is of no use. A node that is quarantined may just have started, and
// serves as soon as it has heard of its peers.
func lasts(err error) bool {
	return !transient(err) && !errors.Is(err, ukai.ErrFenced) && !errors.Is(err, ukai.ErrQuarantined)
}

// reconnect greets the replica until it answers, for reconnectFor.
func (m *member) reconnect() bool {
	window := reconnectFor + rttFactor*m.h.host.rtt(m.Node)
	ctx, cancel := context.WithTimeout(m.h.ctx, window)
	defer cancel()
	for {
		err := m.greet(ctx)
		if err == nil {
			return true
		}
		if fenced := (*ukai.FencedError)(nil); errors.As(err, &fenced) && fenced.Epoch > m.h.epoch {
			m.h.fenced(fenced.Epoch)
			return false
		}
		m.h.mu.Lock()
		m.failure = err
		m.lasting = lasts(err)
		lasting := m.lasting
		m.h.mu.Unlock()
		if lasting || !sleep(ctx, minMendPause/2) {
			return false
		}
	}
}

// drop asks the arbiters to take the replica out of the in-sync set. It says whether that, or the replica's place in the
// set, has changed so that mend should look again at once.
func (h *holding) drop(m *member) bool {
	if m.local != nil {
		// Others must have what it alone has before it leaves them.
		ctx, cancel := context.WithTimeoutCause(h.ctx, reconnectFor, fmt.Errorf("others lack writes that it has: %w", ukai.ErrTimeout))
		defer cancel()
		open, err := h.closeWindow(ctx)
		if err != nil {
			h.obstructed(m, err)
			return false
		}
		defer open()
	}
	select {
	case h.reconfiguring <- struct{}{}:
	case <-h.ctx.Done():
		return true
	}
	defer func() { <-h.reconfiguring }()
	if err := h.settleSets(); err != nil {
		h.obstructed(m, err)
		return false
	}
	h.mu.Lock()
	rec := h.sets.known
	if m.link.Load() != nil || !h.needs(m.Replica) {
		h.mu.Unlock()
		return true
	}
	lasting, failure := m.lasting, m.failure
	answers := lasting || m.dropFirst
	mayReturn := !answers && h.host.cfg.Clock()-m.since < rejoinFor
	var others []uint8 // groups that go on without it
	last := false
	for i := range rec.Groups {
		g := &rec.Groups[i]
		if mem := g.Member(m.Replica); mem == nil || mem.Role != crdt.InSync {
			continue
		}
		switch left := g.Count(crdt.InSync) - 1; {
		case left == 0:
			last = true
		case left < rec.MinSync && mayReturn:
			// Writes wait with it and without it. If it is back soon, it needs no resync.
			h.mu.Unlock()
			h.obstructed(m, fmt.Errorf("without it %d replicas would be in sync, the disk demands %d: %w", left, rec.MinSync, ukai.ErrSuspended))
			return false
		default:
			others = append(others, g.ID)
		}
	}
	restarted := lasting && errors.Is(failure, ukai.ErrRestarted)
	if last && (restarted || !answers || len(others) == 0) {
		// The disk waits for it in any case; if it is back soon, it needs no resync anywhere.
		h.mu.Unlock()
		if restarted {
			return h.adopt(m)
		}
		h.obstructed(m, fmt.Errorf("it is the last in-sync replica of its blocks: %w", ukai.ErrUnavailable))
		return false
	}
	change := cell.Shrink{Epoch: h.epoch, Version: rec.Version, Replica: m.Replica}
	if last {
		change.In = others // of the rest its errors are the guest's
	}
	next, err := change.Apply(rec.Clone())
	if err != nil {
		h.mu.Unlock()
		h.obstructed(m, err)
		return false
	}
	h.sets.propose(next)
	h.rebuild()
	h.mu.Unlock()
	h.host.cfg.Log.Warn("dropping a replica from the in-sync set", "disk", h.d.Name(), "replica", m.Replica, "why", failure)
	if h.commit(change) != nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if last && m.link.Load() == nil {
		m.lasting, m.dropFirst = false, false // it is greeted again, for the blocks that only it has
	}
	return true
}

// commit proposes a change whose possible outcome is in h.sets already, and takes in the outcome if it becomes known.
// The caller holds reconfiguring.
func (h *holding) commit(change cell.Change) error {
	rec, err := h.propose(change)
	switch {
	case err == nil || errors.Is(err, ukai.ErrRejected):
		h.resolved(rec)
	case errors.Is(err, ukai.ErrNoQuorum):
		// Certainly not committed, now or later.
		h.mu.Lock()
		h.sets.resolve(h.sets.known)
		h.rebuild()
		h.mu.Unlock()
	default:
		h.settleLater()
	}
	if err != nil {
		h.host.cfg.Log.Warn("quorum record not changed", "disk", h.d.Name(), "change", change.String(), "why", err)
	}
	return err
}

// settleSets makes sure that the committed record is known. The caller holds reconfiguring.
func (h *holding) settleSets() error {
	h.mu.Lock()
	doubt := h.sets.inDoubt()
	h.mu.Unlock()
	if !doubt {
		return nil
	}
	rec, err := h.propose(cell.Identity{})
	if err != nil {
		return err
	}
	h.resolved(rec)
	return nil
}

// settleLater has the outcome of a change in doubt found out, whatever becomes of those who wanted the change: a replica
// that was dropped after all must be brought back, though it is linked again and nothing else happens to the disk.
func (h *holding) settleLater() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.settling {
		h.settling = true
		h.goLocked(h.settleDoubt)
	}
}

func (h *holding) settleDoubt() {
	for pause := minMendPause; ; pause = min(2*pause, maxMendPause) {
		if !h.sleep(pause/2 + rand.N(pause/2)) {
			return
		}
		select {
		case h.reconfiguring <- struct{}{}:
		case <-h.ctx.Done():
			return
		}
		_ = h.settleSets() // tried again until it succeeds
		h.mu.Lock()
		h.settling = h.sets.inDoubt()
		again := h.settling
		h.mu.Unlock()
		<-h.reconfiguring
		if !again {
			return
		}
	}
}

// cellTimeout bounds one change of the quorum record under a live holder; it is tried again.
const cellTimeout = 10 * time.Second

func (h *holding) propose(change cell.Change) (crdt.Record, error) {
	ctx, cancel := context.WithTimeout(h.ctx, cellTimeout)
	defer cancel()
	return h.host.cfg.Cells.Propose(ctx, h.d.id, change)
}

// resolved takes in a record that is committed after everything proposed before.
func (h *holding) resolved(rec crdt.Record) {
	if rec.Epoch > h.epoch || rec.Phase == crdt.PhaseDeleted {
		h.fenced(rec.Epoch)
		return
	}
	var dropped []Event
	h.mu.Lock()
	if rec.Version >= h.sets.known.Version {
		dropped = h.droppedBy(&rec)
		h.sets.resolve(rec)
	}
	h.rebuild()
	h.mu.Unlock()
	for _, e := range dropped {
		h.tell(e)
	}
}

// droppedBy notes which replicas leave the in-sync set by a record that follows the one known. The caller holds h.mu.
func (h *holding) droppedBy(rec *crdt.Record) (events []Event) {
	for _, m := range h.sets.leaseSet() {
		if !slices.ContainsFunc(rec.Groups, func(g crdt.Group) bool {
			now := g.Member(m.Replica)
			return now != nil && now.Role != crdt.InSync && inSyncIn(&h.sets.known, m.Replica, []uint8{g.ID})
		}) {
			continue
		}
		why := ""
		if e := h.members[m.Replica]; e != nil && e.failure != nil {
			why = e.failure.Error()
		}
		h.d.noteTries(func(t *tries) {
			t.dropped(m.Replica, h.host.cfg.Clock(), why)
			t.of(m.Replica).stable = h.stable
		})
		events = append(events, Event{Kind: Dropped, Replica: m.Replica, Node: m.Node, Why: why})
	}
	return events
}

// obstructed notes why a failed replica cannot be dropped; writes wait.
func (h *holding) obstructed(m *member, why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.obstacle == nil {
		h.host.cfg.Log.Warn("writes wait", "disk", h.d.Name(), "replica", m.Replica, "failure", m.failure, "why", why)
	}
	fresh := h.obstacle == nil
	h.obstacle = fmt.Errorf("%w; %w", m.failure, why)
	if fresh {
		h.rebuild() // no guest is answered early any more
	}
}

// adopt goes on with the only in-sync replica after its machine restarted: only if no acknowledged write can have been
// lost with its memory. What was not acknowledged is sent again.
func (h *holding) adopt(m *member) bool {
	// Writes look at generation after they have set dirty, we the other way round: one of us sees the other.
	h.generation.Add(1)
	if h.unflushed.any() {
		h.end(fmt.Errorf("the last in-sync replica restarted with unflushed writes in its memory: %w: %w", m.failure, ukai.ErrLost))
		return true
	}
	ctx, cancel := context.WithTimeout(h.ctx, reconnectFor+rttFactor*h.host.rtt(m.Node))
	defer cancel()
	h.mu.Lock()
	req := newSeal(h.nonce, &h.sets.known)
	h.mu.Unlock()
	if _, err := m.seal(ctx, req); err != nil {
		h.obstructed(m, err)
		return false
	}
	h.mu.Lock()
	h.obstacle = nil
	h.rebuild()
	h.mu.Unlock()
	return true
}

// sleep waits unless the holding ends before.
func (h *holding) sleep(d time.Duration) bool { return sleep(h.ctx, d) }

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
