package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/wire"
)

// claiming says what to do about another holder.
type claiming uint8

const (
	claimIfFree claiming = iota // leave it alone, unless its node is dead
	claimAsking                 // ask it to let go
	claimForced                 // depose it
	claimFenced                 // depose it; its machine is certainly off, so its lease need not be waited for
)

const (
	// yieldFor is how long another node is waited for that was asked to let go. It waits itself up to yieldPatience for
	// the last file to be closed, of which the kernel tells late, and then has to flush.
	yieldFor      = 5 * time.Second
	yieldPatience = time.Second

	minAttachPause = 20 * time.Millisecond
	maxAttachPause = 500 * time.Millisecond
)

// open makes this node the holder, unless it is already.
func (d *Disk) open(ctx context.Context, how claiming) error {
	ctx, done := d.host.bounded(ctx, "attached")
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.host.attaching, func() { cancel(fmt.Errorf("node: %w", ukai.ErrClosed)) })()
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.unlock()
	if h := d.holding.Load(); h != nil {
		if err := h.err(); err == nil || d.owed(h) {
			return err
		}
		d.drop(h)
	}
	if d.host.isClosed() {
		return fmt.Errorf("node: %w", ukai.ErrClosed)
	}
	return d.become(ctx, how)
}

// bounded gives a context without a deadline that of Config.AttachTimeout.
func (h *Host) bounded(ctx context.Context, what string) (context.Context, context.CancelFunc) {
	if _, bounded := ctx.Deadline(); bounded {
		return context.WithCancel(ctx)
	}
	limit := h.cfg.AttachTimeout
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("not %s within %v: %w", what, limit, ukai.ErrTimeout))
}

func (h *Host) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// become claims the disk and recovers it, from the beginning after each surprise, until it is held, or that is refused,
// or ctx ends.
func (d *Disk) become(ctx context.Context, how claiming) error {
	pause := minAttachPause
	seen := sighting{}
	seen.rec, seen.known = d.host.cfg.Mesh.Record(d.id)
	for {
		h, err := d.tryBecome(ctx, how, &seen)
		if err == nil {
			if rec, known := d.host.cfg.Mesh.Record(d.id); !known || !h.parted(&rec) {
				h.serve()
				return nil
			}
			h.close()
			err = &surprise{fmt.Errorf("the disk goes on with another history now: %w", ukai.ErrFenced)}
		}
		if !surprising(err) {
			return err
		}
		d.host.cfg.Log.Info("attach, once more", "disk", d.Name(), "why", err)
		seen.known, seen.fresh = false, false
		if errors.Is(err, ukai.ErrTimeout) {
			seen.slow++
		}
		if pause = min(2*pause, maxAttachPause); !sleep(ctx, pause/2+rand.N(pause/2)) {
			return fmt.Errorf("%w: last attempt: %w", context.Cause(ctx), err)
		}
	}
}

// sighting is the newest record seen of a disk.
type sighting struct {
	rec   crdt.Record
	known bool
	fresh bool        // read from the arbiters, not heard by gossip
	dead  ukai.NodeID // of the holder, if a majority of the arbiters holds it for dead

	slow int // attempts that ended because something was not answered in time
}

// read replaces what is known by what is committed.
func (s *sighting) read(ctx context.Context, d *Disk) error {
	rec, err := d.readCell(ctx)
	if err == nil {
		s.rec, s.known, s.fresh = rec, true, true
	}
	return err
}

// free says whether the record names no other holder than a node.
func (s *sighting) free(node ukai.NodeID) bool {
	return s.rec.Phase == crdt.PhaseReleased || s.rec.Holder == node || s.rec.Holder.IsZero()
}

// surprise is an error after which a takeover begins again.
type surprise struct{ err error }

func (s *surprise) Error() string { return s.err.Error() }
func (s *surprise) Unwrap() error { return s.err }

func surprising(err error) bool {
	s := (*surprise)(nil)
	return errors.As(err, &s)
}

// tryBecome is one attempt: T1 and T2 of the protocol here, the rest in recover.
func (d *Disk) tryBecome(ctx context.Context, how claiming, seen *sighting) (*holding, error) {
	if !seen.known {
		if err := seen.read(ctx, d); err != nil {
			return nil, err
		}
	}
	if seen.rec.Phase == crdt.PhaseDeleted {
		return nil, fmt.Errorf("it is deleted: %w", ukai.ErrNotFound)
	}
	if err := d.clear(ctx, how, seen); err != nil {
		return nil, err
	}
	// The claim names the epoch it succeeds, so an old record does no harm: then it is refused.
	claim := cell.Claim{Node: d.host.cfg.Node, Nonce: ukai.NewNonce(), After: seen.rec.Epoch}
	claimed, err := d.settled(ctx, claim)
	switch {
	case errors.Is(err, ukai.ErrRejected):
		if how == claimIfFree && claimed.Version > 0 && claimed.Phase != crdt.PhaseReleased && claimed.Holder != d.host.cfg.Node {
			return nil, d.heldBy(claimed.Holder)
		}
		return nil, &surprise{err}
	case err != nil:
		return nil, err
	}
	h := newHolding(d, claimed)
	h.slow = seen.slow
	if err := h.recover(ctx, seen.dead, how == claimFenced); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (d *Disk) heldBy(node ukai.NodeID) error {
	return &ukai.HeldError{Node: node, Name: d.host.cfg.Mesh.NodeName(node)}
}

// clear returns nil if the disk may be claimed: nobody holds it, or its holder has let go, or is dead, or force is used.
func (d *Disk) clear(ctx context.Context, how claiming, seen *sighting) error {
	if seen.free(d.host.cfg.Node) {
		return nil
	}
	if !seen.fresh {
		if err := seen.read(ctx, d); err != nil {
			return err
		}
		if seen.free(d.host.cfg.Node) {
			return nil
		}
	}
	holder := seen.rec.Holder
	held := d.heldBy(holder)
	asked := held
	if how != claimIfFree {
		if asked = d.askUnlessDead(ctx, seen); seen.dead == holder {
			return nil
		}
	}
	switch {
	case asked == nil, errors.Is(asked, ukai.ErrNotAttached):
		// It has let go, or does not know of holding the disk, as after a restart.
		if err := seen.read(ctx, d); err != nil {
			return err
		}
		if seen.free(d.host.cfg.Node) || seen.rec.Holder == holder && asked != nil {
			return nil //nolint:nilerr // asked says that nobody holds it
		}
		return &surprise{d.heldBy(seen.rec.Holder)}
	case d.host.cfg.Mesh.Dead(seen.rec, how != claimIfFree): // whoever is to write it cannot wait until it is certain; a reader can
		seen.dead = holder
		return nil
	case how == claimForced, how == claimFenced:
		return nil
	case errors.Is(asked, ukai.ErrHeld):
		return asked
	}
	return fmt.Errorf("%w, which does not answer (%w): if it is certainly gone, take the disk over", held, asked)
}

// askUnlessDead asks the holder to let go. If it does not answer soon and is held for dead, it is not waited for.
func (d *Disk) askUnlessDead(ctx context.Context, seen *sighting) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	holder := seen.rec.Holder
	answer := make(chan error, 1)
	go func() { answer <- d.askToYield(ctx, holder) }()
	soon := time.NewTimer(silentAfter + rttFactor*d.host.rtt(holder))
	defer soon.Stop()
	select {
	case err := <-answer:
		return err
	case <-soon.C:
	}
	if d.host.cfg.Mesh.Dead(seen.rec, true) {
		seen.dead = holder
		cancel()
	}
	return <-answer
}

// askToYield asks the holder to let go.
func (d *Disk) askToYield(ctx context.Context, holder ukai.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, yieldFor+rttFactor*d.host.rtt(holder))
	defer cancel()
	_, err := d.host.cfg.Peers.Start(ctx, holder, &wire.Message{Kind: wire.KindYield, Disk: d.id}, nil).Wait(ctx)
	return err
}

// readCell reads the committed record.
func (d *Disk) readCell(ctx context.Context) (crdt.Record, error) {
	return d.host.cfg.Cells.Propose(ctx, d.id, cell.Identity{})
}

// settled proposes a change until its outcome is known.
func (d *Disk) settled(ctx context.Context, change cell.Change) (crdt.Record, error) {
	rec, err := d.host.cfg.Cells.Propose(ctx, d.id, change)
	if err == nil || errors.Is(err, ukai.ErrRejected) || errors.Is(err, ukai.ErrNoQuorum) {
		return rec, err
	}
	for {
		rec, again := d.readCell(ctx)
		if again == nil {
			if change.Done(rec) {
				return rec, nil
			}
			return rec, fmt.Errorf("%v: %w: it did not come through", change, ukai.ErrRejected)
		}
		if !sleep(ctx, maxAttachPause) {
			return rec, err
		}
	}
}

// recover carries a claimed disk to the point where it may be served: T3 to T7. dead is the node of the holder before if that is held for
// dead, and fenced says that it is certainly off. Errors that another attempt may avoid are surprises.
func (h *holding) recover(ctx context.Context, dead ukai.NodeID, fenced bool) error {
	h.mu.Lock()
	rec := h.sets.known
	h.mu.Unlock()
	t := newTakeover(rec, 0)
	t.dead = dead
	for _, m := range h.members {
		if m.Node == h.host.cfg.Node {
			t.prefer = m.Replica
		}
	}
	if err := h.sealAll(ctx, t); err != nil {
		return err
	}
	if err := t.freeze(); err != nil {
		return &surprise{err}
	}
	for i := range rec.Groups {
		if g := rec.Groups[i].ID; t.recovers(g) {
			if err := h.recoverGroup(ctx, t, g); err != nil {
				return &surprise{fmt.Errorf("recover: %w", err)}
			}
		}
	}
	if !rec.Clean {
		if err := h.syncAll(ctx, t); err != nil {
			return &surprise{fmt.Errorf("recover: %w", err)}
		}
	}
	if until := t.leaseEnds(fenced); until > 0 {
		if wait := until - h.host.cfg.Clock(); wait > 0 && !sleep(ctx, wait) {
			return fmt.Errorf("waiting for the lease of the holder before: %w", context.Cause(ctx))
		}
	}
	why := t.loses()
	if why != "" { // said before it can come true: who says it may not live to see that
		h.host.cfg.Log.Warn("writes that were acknowledged and not flushed may be lost", "disk", h.d.Name(), "epoch", h.epoch, "why", why)
	}
	activate := cell.Activate{Epoch: h.epoch, Nonce: h.nonce, Version: rec.Version, InSync: t.replicas(), Ahead: t.ahead()}
	active, err := h.d.settled(ctx, activate)
	switch {
	case errors.Is(err, ukai.ErrRejected):
		return &surprise{err}
	case err != nil:
		return err
	}
	h.mu.Lock()
	h.sets.resolve(active)
	h.mu.Unlock()
	if why != "" {
		h.tell(Event{Kind: Lossy, Why: why})
	}
	return nil
}

// sealOutcome is what became of sealing one replica.
type sealOutcome struct {
	m     *member
	reply sealReply
	sent  time.Duration
	err   error
}

// sealAll seals the in-sync replicas, as far as they answer in time.
func (h *holding) sealAll(ctx context.Context, t *takeover) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	outcomes := make(chan sealOutcome, len(h.members))
	h.mu.Lock()
	for _, m := range h.members {
		h.goLocked(func() { outcomes <- h.sealOne(ctx, m, t) })
	}
	h.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := h.host.cfg.Clock()
		until, more := t.wait(now)
		if !more {
			return nil
		}
		timer.Reset(min(until-now, sealWait))
		select {
		case o := <-outcomes:
			switch fenced := (*ukai.FencedError)(nil); {
			case o.err == nil:
				t.onSealed(h.host.cfg.Clock(), o.sent, o.m.Member, o.reply)
				h.mu.Lock()
				h.lease.confirm(o.m.Replica, o.sent)
				h.mu.Unlock()
			case errors.As(o.err, &fenced) && fenced.Epoch > h.epoch:
				return &surprise{o.err}
			default:
				t.onLost(o.m.Member, o.err)
			}
		case <-timer.C:
		case <-ctx.Done():
			if err := t.uncovered(); err != nil {
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return context.Cause(ctx)
		}
	}
}

// sealOne seals one replica, again and again while it cannot be reached.
func (h *holding) sealOne(ctx context.Context, m *member, t *takeover) sealOutcome {
	req := newSeal(h.nonce, &t.rec)
	if m.Node == h.host.cfg.Node {
		local, err := h.host.cfg.Replicas.open(ctx, h.d.id, m.Replica)
		if err != nil {
			return sealOutcome{m: m, err: m.named(err)}
		}
		m.local = local
	}
	for {
		sent := h.host.cfg.Clock()
		try, cancel := context.WithTimeout(ctx, sealWait)
		reply, err := m.seal(try, req)
		cancel()
		if err == nil || !transient(err) || !sleep(ctx, minMendPause) {
			return sealOutcome{m: m, reply: reply, sent: sent, err: err}
		}
	}
}

// syncAll makes the sealed replicas durable.
func (h *holding) syncAll(ctx context.Context, t *takeover) error {
	var all errgroup.Group
	for r := range t.sealed {
		all.Go(func() error { return h.members[r].sync(ctx) })
	}
	return all.Wait()
}

// serve begins to answer the guest.
func (h *holding) serve() {
	h.mu.Lock()
	h.serving = true
	// The replicas are equal and durable as of now: nothing older than this epoch is suspect any more. It may be said
	// only now that the activation is committed.
	h.stable = ukai.BlockStamp{Epoch: h.epoch}
	h.size = h.sets.known.Size
	h.checked = h.host.cfg.Clock()
	h.rebuild()
	h.mu.Unlock()
	h.host.cfg.Log.Info("attached", "disk", h.d.Name(), "epoch", h.epoch) // before the first request is served
	h.d.holding.Store(h)
	h.host.heartbeat([]*holding{h})
	h.mu.Lock()
	h.goLocked(h.reconcile)
	h.goLocked(h.announceHere)
	h.mu.Unlock()
}
