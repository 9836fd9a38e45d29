package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/wire"
)

// Bounds of all resyncs of a host together.
const (
	maxResyncs = 4 // replicas on one node, each of another disk: those that wait for a slow link keep no other node waiting
)

// rejoinFor is how long a replica that is being brought up to date may be gone before it counts as out again.
const rejoinFor = 10 * time.Second

// EventKind says what happened to a disk or one of its replicas.
type EventKind uint8

// What happens to a disk and its replicas.
const (
	Dropped      EventKind = iota + 1 // left the in-sync set
	Joined                            // its resync begins
	Resynced                          // in sync
	ResyncFailed                      // out again
	// What may be lost, with ack=local or to a loss of power:
	Lossy      // a takeover: writes that were acknowledged and not flushed
	Unfinished // a holder was deposed or gave up: Bytes that were acknowledged and that not all replicas have
	// What a scrub finds in a replica, Bytes at Off:
	Mended // it could not be read, or was not what was written, and was written anew from another replica
	Found  // likewise, and it was only looked for
	Rotten // likewise, and there is nothing to repair it from, or that failed
)

// Event is something that happened to a disk held by this host, or to a replica of it.
type Event struct {
	Kind    EventKind
	Disk    ukai.DiskID
	Name    string // of the disk
	Replica ukai.ReplicaID
	Node    ukai.NodeID   // of the replica
	Why     string        // of all but Joined, Resynced, Mended and Found
	Bytes   int64         // copied, of Resynced and ResyncFailed; see Unfinished
	Took    time.Duration // likewise
	Off     int64         // bytes; of Mended, Found and Rotten
}

func (h *holding) tell(e Event) {
	e.Disk, e.Name = h.d.id, h.d.Name()
	if notify := h.host.cfg.Notify; notify != nil {
		notify(e)
	}
}

// reconcile brings back the replicas that are out, one at a time, until the holding ends or lets go. While there is
// nothing to do it asks nobody.
func (h *holding) reconcile() {
	for h.returning.Err() == nil {
		changed, pauses := h.change(), h.d.pauses()
		h.mu.Lock()
		rec := h.sets.known
		_, _, urgent := h.sets.suspendedGroup()
		h.mu.Unlock()
		now := h.host.cfg.Clock()
		h.d.mu.Lock()
		a, at, due := h.d.tries.choose(absentees(&rec), now, urgent)
		h.d.mu.Unlock()
		if due && !pauses.paused {
			h.resting.Store(false)
			h.bringBack(pauses.going, a)
			continue
		}
		h.rest()
		var timer <-chan time.Time
		stop := func() bool { return false }
		if at != never && !pauses.paused {
			t := time.NewTimer(at - now)
			timer, stop = t.C, t.Stop
		}
		select {
		case <-changed:
		case <-pauses.flipped:
		case <-timer:
		case <-h.returning.Done():
		}
		stop()
	}
}

// rest notes that nothing can be done for any replica now.
func (h *holding) rest() {
	if h.resting.Swap(true) {
		return
	}
	select {
	case <-h.rested:
	default:
		close(h.rested)
	}
}

// endReturns stops bringing replicas back: what is being copied is given up, and writes do not wait for it any more.
func (h *holding) endReturns() {
	h.mu.Lock()
	h.stopped = true
	if f := h.following; f != nil {
		f.suspend()
		h.rebuild()
	}
	h.mu.Unlock()
	h.stopReturns()
}

// bringBack carries one replica from out to in sync, or notes why that cannot be done now. It stops where it is when going ends.
func (h *holding) bringBack(going context.Context, a absentee) {
	ctx, cancel := context.WithCancel(h.returning)
	defer cancel()
	defer context.AfterFunc(going, cancel)()
	leave, err := h.host.resyncSlot(ctx, a.Node)
	if err != nil {
		return
	}
	defer leave()
	m, err := h.reach(ctx, a.Member)
	if ctx.Err() != nil {
		return
	}
	now := h.host.cfg.Clock()
	if err != nil {
		h.d.noteTries(func(t *tries) { t.silent(a.Replica, now, err) })
		return
	}
	h.d.noteTries(func(t *tries) { t.begun(a.Replica, now) })
	for _, g := range a.out {
		if err = h.join(g, a.Member, true); err != nil {
			break
		}
	}
	f := newFollowing(h, m, a.lacking, h.record())
	if err == nil {
		h.tell(Event{Kind: Joined, Replica: m.Replica, Node: m.Node})
		err = f.run(ctx)
	}
	if err == nil {
		h.d.noteTries(func(t *tries) { t.done(m.Replica) })
		h.tell(Event{Kind: Resynced, Replica: m.Replica, Node: m.Node, Bytes: f.moved.Load(), Took: h.host.cfg.Clock() - f.began})
		return
	}
	if h.err() != nil || ctx.Err() != nil {
		return // the next holder finds it out
	}
	left, _ := f.left()
	h.d.noteTries(func(t *tries) { t.failed(m.Replica, h.host.cfg.Clock(), err.Error(), left) })
	h.giveUp(m, a.lacking)
	h.host.cfg.Log.Warn("resync failed", "disk", h.d.Name(), "replica", m.Replica, "node", h.host.cfg.Mesh.NodeName(m.Node), "why", err)
	h.tell(Event{Kind: ResyncFailed, Replica: m.Replica, Node: m.Node, Why: err.Error(), Bytes: f.moved.Load(), Took: h.host.cfg.Clock() - f.began})
}

// record returns a copy of the record last known to be committed.
func (h *holding) record() *crdt.Record {
	h.mu.Lock()
	defer h.mu.Unlock()
	rec := h.sets.known
	return &rec
}

func (d *Disk) noteTries(f func(*tries)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.tries)
}

// reach returns a replica if its node answers and has it.
func (h *holding) reach(ctx context.Context, who crdt.Member) (*member, error) {
	var local *hosted
	if who.Node == h.host.cfg.Node {
		var err error
		if local, err = h.host.cfg.Replicas.open(ctx, h.d.id, who.Replica); err != nil {
			return nil, h.host.nodeError(who.Node, err)
		}
	}
	h.mu.Lock()
	m := h.members[who.Replica]
	if m == nil {
		m = &member{h: h, Member: who}
		h.members[who.Replica] = m
	}
	if m.local == nil && local != nil {
		m.local = local
	}
	h.mu.Unlock()
	owner, err := h.host.present(ctx, h.d.id, who, h.epoch)
	if err != nil {
		return nil, err
	}
	if owner > h.epoch {
		return nil, h.surpassed(ctx, who, owner)
	}
	return m, nil
}

// surpassed ends the holding if it was deposed by the epoch that a replica is in which is not in sync, and returns why that replica cannot be brought
// back. The replica may also belong to another history of the disk, whose epochs count on from the same one as those here and depose nobody; only
// the quorum record tells.
func (h *holding) surpassed(ctx context.Context, who crdt.Member, owner ukai.Epoch) error {
	rec, err := h.host.cfg.Cells.Propose(ctx, h.d.id, cell.Identity{})
	switch {
	case err != nil:
		err = fmt.Errorf("it is in epoch %v, and the quorum record does not answer: %w", owner, err)
	case rec.Epoch > h.epoch:
		h.fenced(rec.Epoch)
		return h.err()
	default:
		err = fmt.Errorf("it is in epoch %v of another history of the disk: %w", owner, ukai.ErrRejected)
	}
	return h.host.nodeError(who.Node, fmt.Errorf("replica %v: %w", who.Replica, err))
}

// present asks a replica's node whether it has the replica and can open it. It returns the epoch that owns the replica:
// an older one than the caller's will be told of that by the seal.
func (h *Host) present(ctx context.Context, disk ukai.DiskID, who crdt.Member, epoch ukai.Epoch) (owner ukai.Epoch, err error) {
	ctx, cancel := context.WithTimeout(ctx, sealWait+rttFactor*h.rtt(who.Node))
	defer cancel()
	hb := heartbeat{Beats: []beat{{Disk: disk, Replica: who.Replica, Epoch: epoch}}}
	msg := wire.Message{Kind: wire.KindHeartbeat, Payload: encode(hb)}
	var reply wire.Reply
	if who.Node == h.cfg.Node {
		reply, err = h.cfg.Replicas.do(&msg, nil)
	} else {
		reply, err = h.cfg.Peers.Start(ctx, who.Node, &msg, nil).Wait(ctx)
	}
	if err != nil {
		return 0, h.nodeError(who.Node, err)
	}
	out, err := decodeHeartbeatReply(reply.Payload, 1)
	switch {
	case err != nil:
		return 0, h.nodeError(who.Node, err)
	case len(out.Exceptions) == 0:
		return epoch, nil
	}
	err = ukai.Sentinel(out.Exceptions[0].Code)
	switch {
	case errors.Is(err, ukai.ErrFenced):
		return out.Exceptions[0].Now, nil
	case err == nil:
		err = fmt.Errorf("heartbeat refused with code %d", out.Exceptions[0].Code)
	}
	return 0, h.nodeError(who.Node, fmt.Errorf("replica %v: %w", who.Replica, err))
}

// alter proposes a change of the record that changes no in-sync set, or one of a replica that is in none, and waits for its
// outcome. It takes reconfiguring.
func (h *holding) alter(make func(known *crdt.Record) (cell.Change, error)) error {
	select {
	case h.reconfiguring <- struct{}{}:
	case <-h.ctx.Done():
		return h.err()
	}
	defer func() { <-h.reconfiguring }()
	if err := h.settleSets(); err != nil {
		return err
	}
	h.mu.Lock()
	known := h.sets.known
	change, err := make(&known)
	if err == nil && change.Done(known) {
		h.mu.Unlock()
		return nil
	}
	var next crdt.Record
	if err == nil {
		next, err = change.Apply(known.Clone())
	}
	if err == nil {
		h.sets.propose(next)
		h.rebuild()
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	return h.commit(change)
}

// join makes a replica a syncing member of a group (J1). One that returns must be a member still: a replica that was
// retired meanwhile is never named again.
func (h *holding) join(group uint8, m crdt.Member, returns bool) error {
	return h.alter(func(known *crdt.Record) (cell.Change, error) {
		if g := known.Group(group); returns && (g == nil || g.Member(m.Replica) == nil) {
			return nil, fmt.Errorf("replica %v is not in group %d any more: %w", m.Replica, group, ukai.ErrRejected)
		}
		return cell.Join{Epoch: h.epoch, Version: known.Version, Group: group, Replica: m.Replica, Node: m.Node}, nil
	})
}

// giveUp makes a syncing replica out again. If that cannot be committed it stays syncing, which promises nothing.
func (h *holding) giveUp(m *member, groups []uint8) {
	if inSyncIn(h.record(), m.Replica, groups) {
		return
	}
	_ = h.alter(func(known *crdt.Record) (cell.Change, error) { // logged by commit
		return cell.Shrink{Epoch: h.epoch, Version: known.Version, Replica: m.Replica, In: groups}, nil
	})
}

// run tries until the replica is in sync, has been gone for too long, or cannot become in sync as it is.
func (f *following) run(ctx context.Context) error {
	h := f.h
	h.mu.Lock()
	h.following = f
	h.rebuild()
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.following = nil
		if l := f.m.link.Load(); l != nil && !h.needs(f.m.Replica) {
			f.m.link.Store(nil)
			l.cancel()
		}
		h.rebuild()
	}()
	pause, good, seen := minMendPause, h.host.cfg.Clock(), int64(0)
	for {
		err := f.attempt(ctx)
		if err == nil || ctx.Err() != nil || h.err() != nil || hopeless(err) {
			return err
		}
		h.host.cfg.Log.Info("resync, once more", "disk", h.d.Name(), "replica", f.m.Replica, "why", err)
		now := h.host.cfg.Clock()
		if done := f.steps.Load(); done > seen {
			pause, good, seen = minMendPause, now, done
		}
		if now-good > rejoinFor || !sleep(ctx, pause) {
			return err
		}
		pause = min(2*pause, maxMendPause)
	}
}

// hopeless says whether a resync that failed would fail in the same way at once.
func hopeless(err error) bool {
	for _, lasting := range []error{ukai.ErrNoSpace, ukai.ErrMedia, ukai.ErrCorrupt, ukai.ErrNotFound, ukai.ErrInvalid, ukai.ErrRejected, ukai.ErrQuarantined, ukai.ErrPermission} {
		if errors.Is(err, lasting) {
			return true
		}
	}
	return false
}

// AddReplica makes a replica that its node already has, empty, a member of a group of blocks. It returns when that is
// committed; the replica is then filled like one that returns, and becomes in sync by itself. The disk is claimed for
// that if nobody holds it, and only its holder can do it.
func (d *Disk) AddReplica(ctx context.Context, group uint8, replica ukai.ReplicaID, node ukai.NodeID) error {
	h, err := d.enter(ctx, claimAsking)
	if err == nil {
		defer h.ops.leave()
		m := crdt.Member{Replica: replica, Node: node}
		if _, err = h.reach(ctx, m); err == nil {
			h.resting.Store(false)
			err = h.join(group, m, false)
		}
	}
	if err != nil {
		return fmt.Errorf("add replica %v to disk %s: %w", replica, d.Name(), err)
	}
	return nil
}

// resyncSlot waits until another replica on a node may be brought up to date by this host.
func (h *Host) resyncSlot(ctx context.Context, node ukai.NodeID) (leave func(), err error) {
	h.mu.Lock()
	slots := h.resyncs[node]
	if slots == nil {
		slots = make(chan struct{}, maxResyncs)
		h.resyncs[node] = slots
	}
	h.mu.Unlock()
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
