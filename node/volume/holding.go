package volume

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
	"ukai/crdt"
)

// holding is one epoch of holding a disk, from the claim on.
type holding struct {
	host  *Host
	d     *Disk
	epoch ukai.Epoch
	nonce ukai.Nonce

	slow int // attempts of the same takeover before, that ended because something was not answered in time

	ctx        context.Context // ends with the holding
	cancel     context.CancelFunc
	over       atomic.Pointer[error] // why it ended
	ops        *gate                 // requests of the guest
	view       atomic.Pointer[view]
	check      atomic.Pointer[check]
	locks      rangeLocks
	leaseUntil atomic.Int64 // host clock, ns
	leaseWaits atomic.Int32 // reads that wait for the lease

	unflushed  unflushed
	generation atomic.Uint32 // raised when a replica is adopted

	used  atomic.Bool // since the last tick
	wrote atomic.Bool // since the last tick

	leading       atomic.Bool   // the replica that may be ahead is being named
	reconfiguring chan struct{} // lock of 1 around changes of the quorum record
	checking      chan struct{} // lock of 1 around checkpoints
	unfinished    []*check      // under checking: ended by checkpoints that were given up before all their writes were over

	mu       sync.Mutex
	work     sync.WaitGroup
	ended    bool // no goroutine is started any more
	serving  bool
	sets     candidates
	members  map[ukai.ReplicaID]*member
	lease    lease
	size     int64           // of the disk as served: what all replicas have been resized to
	stable   ukai.BlockStamp // to be announced; zero before activation
	checked  time.Duration   // when the current check began
	settling bool            // somebody finds out what became of a change in doubt
	obstacle error           // why a failed replica can be neither mended nor dropped
	changed  chan struct{}   // closed and replaced at each change that somebody may wait for
	window   window          // with ack=local
	mending  int             // blocks that are being mended because a read found them bad
	mended   map[ukai.Index]bool

	// Replicas that are out are brought back by reconcile, one at a time.
	following   *following      // the one that is being brought up to date, nil if there is none
	returning   context.Context // ends when no replica is brought back any more
	stopReturns context.CancelFunc
	stopped     bool          // likewise, under mu
	resting     atomic.Bool   // nothing can be done for any replica now
	rested      chan struct{} // closed when that has become true for the first time

	// Only the host's pulse:
	idleTicks, quietTicks int

	givingBack atomic.Bool // the space of strays
}

// view is what the hot path needs of the sets, made anew at each change and never modified.
type view struct {
	layout    layout
	groups    []groupView
	all       []*member // that must acknowledge, of all groups, each once
	watched   []*member // all, and the one that is being brought up to date
	onLoss    crdt.OnLoss
	suspended error      // why writes wait though all replicas answer
	near      *following // of a replica on this node, nil if there is none
	misled    bool       // the record names another replica as ahead than this node would
	strays    string     // see strayText
}

type groupView struct {
	id        uint8
	ack, read []*member
	possible  int        // of ack, those that may be in sync; they come first
	follow    *following // of a replica of this group, nil if there is none
	ahead     *member    // that has a write when its guest is answered, nil if all must have it
}

func (v *view) group(id uint8) *groupView {
	for i := range v.groups {
		if v.groups[i].id == id {
			return &v.groups[i]
		}
	}
	return nil
}

// groupOf returns the group of a block.
func (v *view) groupOf(i ukai.Index) *groupView {
	group, _ := v.layout.groupAt(i)
	return v.group(group)
}

// last says whether a replica is the only one that may be in sync in some group.
func (v *view) last(m *member) bool {
	return slices.ContainsFunc(v.groups, func(g groupView) bool { return g.possible == 1 && g.ack[0] == m })
}

func newHolding(d *Disk, rec crdt.Record) *holding {
	h := &holding{
		host: d.host, d: d, epoch: rec.Epoch, nonce: rec.Nonce, ops: newGate(), reconfiguring: make(chan struct{}, 1),
		checking: make(chan struct{}, 1), members: make(map[ukai.ReplicaID]*member), size: rec.Size, changed: make(chan struct{}),
		rested: make(chan struct{}),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.returning, h.stopReturns = context.WithCancel(h.ctx)
	h.check.Store(newCheck(rec.Epoch, 1, ukai.Blocks(rec.Size, rec.BlockSize)))
	h.sets.resolve(rec)
	for i := range rec.Groups {
		for _, m := range rec.InSync(rec.Groups[i].ID) {
			if h.members[m.Replica] == nil {
				h.members[m.Replica] = &member{h: h, Member: m}
			}
		}
	}
	return h
}

// rebuild makes the view from the sets. The caller holds h.mu.
func (h *holding) rebuild() {
	rec := &h.sets.known
	v := &view{layout: newLayout(rec), onLoss: rec.OnLoss}
	v.layout.size = h.size
	for i := range rec.Groups {
		id := rec.Groups[i].ID
		g := groupView{id: id, ack: h.lookup(h.sets.ackSet(id)), read: h.lookup(h.sets.readSet(id))}
		g.possible = len(g.ack)
		// One that has become in sync is a member like any other, also before whoever had it grow has seen that.
		if f := h.following; f != nil && slices.Contains(f.groups, id) && !inSyncIn(rec, f.m.Replica, []uint8{id}) {
			g.follow = f
			if f.m.local != nil && !f.leaves.Load() {
				v.near = f
			}
			if f.waitedFor() && !slices.Contains(g.ack, f.m) {
				g.ack = append(g.ack, f.m)
			}
		}
		v.groups = append(v.groups, g)
		for _, m := range g.ack {
			if !slices.Contains(v.all, m) {
				v.all = append(v.all, m)
			}
		}
	}
	v.watched = v.all
	if f := h.following; f != nil && !slices.Contains(v.all, f.m) {
		v.watched = append(slices.Clone(v.all), f.m)
	}
	if g, have, below := h.sets.suspendedGroup(); below {
		v.suspended = fmt.Errorf("%d of at least %d replicas%s are in sync: %w", have, rec.MinSync, ofBlocks(rec, g), ukai.ErrSuspended)
	}
	if !slices.ContainsFunc(v.all, func(m *member) bool { return m.link.Load() == nil }) {
		h.obstacle = nil
	}
	for i := range v.groups {
		g := &v.groups[i]
		if m := h.members[h.sets.ahead(g.id)]; m != nil && m.local != nil && v.suspended == nil && h.obstacle == nil {
			g.ahead = m
		}
	}
	v.strays = strayText(rec)
	v.misled = !h.sets.inDoubt() && rec.Ahead != leader(rec, h.host.cfg.Node)
	h.view.Store(v)
	h.renewLease()
	h.broadcast()
}

// lookup returns the members in question, that of this node first, the others by distance.
func (h *holding) lookup(set []crdt.Member) []*member {
	list := make([]*member, 0, len(set))
	for _, s := range set {
		if m := h.members[s.Replica]; m != nil {
			list = append(list, m)
		}
	}
	slices.SortStableFunc(list, func(a, b *member) int {
		if (a.local != nil) != (b.local != nil) {
			if a.local != nil {
				return -1
			}
			return 1
		}
		return cmp.Compare(h.host.rtt(a.Node), h.host.rtt(b.Node))
	})
	return list
}

// needs says whether a replica may be in the in-sync set. The caller holds h.mu.
func (h *holding) needs(r ukai.ReplicaID) bool {
	return slices.ContainsFunc(h.sets.leaseSet(), func(m crdt.Member) bool { return m.Replica == r })
}

// broadcast wakes all who wait for a change. The caller holds h.mu.
func (h *holding) broadcast() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// change returns a channel that is closed at the next change. Take it before looking at what may change.
func (h *holding) change() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

// renewLease computes anew when the lease ends. The replica on this node needs no heartbeat: its fence is looked at with
// each read. The caller holds h.mu.
func (h *holding) renewLease() {
	var needs []ukai.ReplicaID
	for _, m := range h.view.Load().all {
		if m.local == nil {
			needs = append(needs, m.Replica)
		}
	}
	h.leaseUntil.Store(int64(h.lease.until(needs)))
	if h.leaseWaits.Load() > 0 {
		h.broadcast()
	}
}

// leaseHolds says whether the lease holds now. It ends the holding if the replica on this node has been sealed for
// another epoch.
func (h *holding) leaseHolds(v *view, now time.Duration) bool {
	for _, m := range v.all {
		if m.local == nil {
			continue
		}
		if epoch := m.local.admitted.Load().epoch; epoch > h.epoch {
			h.fenced(epoch)
			return false
		}
	}
	until := time.Duration(h.leaseUntil.Load())
	return until == never || now < until
}

// goLocked runs f in a goroutine that the end of the holding waits for. The caller holds h.mu.
func (h *holding) goLocked(f func()) {
	if !h.ended {
		h.work.Go(f)
	}
}

// fenced ends the holding because a newer epoch owns the disk.
func (h *holding) fenced(now ukai.Epoch) {
	h.end(fmt.Errorf("epoch %v is over: %w", h.epoch, &ukai.FencedError{Epoch: now}))
}

// end stops serving at once: every request under way or to come fails with err. The first call decides.
func (h *holding) end(err error) {
	if !h.over.CompareAndSwap(nil, &err) {
		return
	}
	h.mu.Lock()
	unfinished := h.window.bytes // nothing is admitted any more, and what is there goes with ctx
	h.mu.Unlock()
	h.cancel()
	h.mu.Lock()
	h.broadcast()
	serving := h.serving
	h.mu.Unlock()
	if serving {
		h.host.cfg.Log.Warn("stopped serving", "disk", h.d.Name(), "why", err)
	}
	if unfinished > 0 {
		h.host.cfg.Log.Warn("writes were acknowledged that not all replicas have", "disk", h.d.Name(), "bytes", unfinished)
		h.tell(Event{Kind: Unfinished, Bytes: unfinished, Why: err.Error()})
	}
}

// err says why the holding is over, or nil.
func (h *holding) err() error {
	if e := h.over.Load(); e != nil {
		return *e
	}
	return nil
}

// close ends the holding quietly and joins its goroutines.
func (h *holding) close() {
	h.mu.Lock()
	h.serving = false
	h.mu.Unlock()
	h.end(fmt.Errorf("disk %s: %w", h.d.Name(), ukai.ErrNotAttached))
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	h.work.Wait()
}

// tick looks after everything that depends on time. It does not wait.
func (h *holding) tick() {
	now := h.host.cfg.Clock()
	v := h.view.Load()
	for _, m := range v.watched {
		m.tick(now)
		if m.local != nil {
			if epoch := m.local.admitted.Load().epoch; epoch > h.epoch {
				h.fenced(epoch)
			}
		}
	}
	h.mu.Lock()
	if h.check.Load().due(now-h.checked) && len(h.checking) == 0 && h.serving {
		h.goLocked(func() {
			if err := h.checkpointNow(h.ctx); err != nil && h.err() == nil {
				h.host.cfg.Log.Warn("checkpoint", "disk", h.d.Name(), "err", err)
			}
		})
	}
	if v.misled && h.serving && h.leading.CompareAndSwap(false, true) {
		h.goLocked(h.lead)
	}
	if v.strays != "" && h.serving && !h.givingBack.Load() && h.d.straysDue(v.strays) {
		h.givingBack.Store(true)
		h.goLocked(func() {
			defer h.givingBack.Store(false)
			h.giveBack(h.returning)
		})
	}
	h.mu.Unlock()
	h.idle()
}

// idle counts how long the disk has not been used, and lets go of one that nobody has attached.
func (h *holding) idle() {
	h.idleTicks++
	h.quietTicks++
	if h.used.Swap(false) || h.ops.inside() > 0 {
		h.idleTicks = 0
	}
	if h.wrote.Swap(false) {
		h.quietTicks = 0
		h.d.quiet.Store(false)
	}
	if time.Duration(h.quietTicks)*tickEvery >= writerLinger {
		h.d.quiet.Store(true) // a write ends that; a disk that was not written yet is quiet from the beginning
	}
	linger := h.host.cfg.Linger
	if c := h.check.Load(); c.stamp.Check == 1 && c.touched.count.Load() == 0 {
		linger *= readLinger
	}
	if time.Duration(h.idleTicks)*tickEvery >= linger && (h.resting.Load() || h.err() != nil) {
		h.d.lapse(h)
	}
}
