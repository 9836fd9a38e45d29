package volume

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// One epoch of holding the disk, as holding.go, write.go, read.go, flush.go and checkpoint.go have it: what is decided
// there by pure code is decided by it here.

type sHold struct {
	w     *sWorld
	n     *sNode
	epoch ukai.Epoch
	nonce ukai.Nonce
	scope *sScope
	over  error

	sets    candidates
	members []*sMember
	lease   lease
	view    sView
	changed sSignal
	serving bool
	stopped bool // no replica is brought back any more
	ops     int
	closing bool
	idle    sSignal // ops fell to 0

	queues  [sBlocks]rangeQueue
	waiting map[*claim]*sSignal

	check    *sCheck
	checked  time.Duration
	checking sLock
	stable   ukai.BlockStamp

	dirty      bool
	flushing   int
	generation int

	reconfiguring sLock
	settling      bool
	following     *sFollowing
	tries         tries
}

type sView struct {
	layout    layout
	groups    []sGroup
	all       []*sMember // of all groups, each once
	watched   []*sMember
	suspended bool
}

type sGroup struct {
	id        uint8
	ack, read []*sMember
	possible  int
	follow    *sFollowing
}

func (v *sView) group(id uint8) *sGroup {
	for i := range v.groups {
		if v.groups[i].id == id {
			return &v.groups[i]
		}
	}
	return nil
}

func (v *sView) groupOf(i ukai.Index) *sGroup {
	id, _ := v.layout.groupAt(i)
	return v.group(id)
}

// last is view.last.
func (v *sView) last(m *sMember) bool {
	return slices.ContainsFunc(v.groups, func(g sGroup) bool { return g.possible == 1 && g.ack[0] == m })
}

// sCheck is check with its gate.
type sCheck struct {
	stamp   ukai.BlockStamp
	writes  int
	closed  bool
	empty   sSignal
	touched touched
}

func newSHold(n *sNode, rec crdt.Record) *sHold {
	h := &sHold{
		w: n.w, n: n, epoch: rec.Epoch, nonce: rec.Nonce, scope: &sScope{up: n.scope, node: n}, waiting: map[*claim]*sSignal{},
	}
	h.newCheck(1)
	h.sets.resolve(rec)
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].InSync() {
			if h.member(m.Replica) == nil {
				h.members = append(h.members, &sMember{h: h, Member: m, node: h.w.node(m.Node)})
			}
		}
	}
	return h
}

func (h *sHold) newCheck(n uint32) {
	h.check = &sCheck{stamp: ukai.BlockStamp{Epoch: h.epoch, Check: n}, touched: newTouched(sBlocks)}
	h.checked = h.n.clock()
}

func (h *sHold) member(id ukai.ReplicaID) *sMember {
	for _, m := range h.members {
		if m.Replica == id {
			return m
		}
	}
	return nil
}

func (h *sHold) lookup(set []crdt.Member) []*sMember {
	var list []*sMember
	for _, c := range set {
		if m := h.member(c.Replica); m != nil {
			list = append(list, m)
		}
	}
	return list
}

// rebuild is holding.rebuild.
func (h *sHold) rebuild() {
	v := sView{layout: newLayout(&h.sets.known)}
	f := h.following
	for i := range h.sets.known.Groups {
		id := h.sets.known.Groups[i].ID
		g := sGroup{id: id, ack: h.lookup(h.sets.ackSet(id)), read: h.lookup(h.sets.readSet(id))}
		if h.w.broken("readunion") {
			g.read = slices.Clone(g.ack)
		}
		g.possible = len(g.ack)
		if f != nil && slices.Contains(f.groups, id) {
			g.follow = f
			if f.state.mode >= awaited && !slices.Contains(g.ack, f.m) {
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
	if f != nil && !slices.Contains(v.all, f.m) {
		v.watched = append(slices.Clone(v.all), f.m)
	}
	_, _, v.suspended = h.sets.suspendedGroup()
	h.view = v
	h.w.broadcast(&h.changed)
}

func (h *sHold) needs(r ukai.ReplicaID) bool {
	return slices.ContainsFunc(h.sets.leaseSet(), func(m crdt.Member) bool { return m.Replica == r })
}

// end stops serving; the first reason counts.
func (h *sHold) end(err error) {
	if h.over != nil {
		return
	}
	h.over = err
	h.w.note("n%d: epoch %v ends: %v", h.n.n, h.epoch, err)
	for _, m := range h.members {
		if m.link != nil {
			m.cutLink()
		}
	}
	h.w.kill(h.scope)
	h.w.broadcast(&h.changed)
	h.w.broadcast(&h.idle)
}

func (h *sHold) fenced(now ukai.Epoch) { h.end(&ukai.FencedError{Epoch: now}) }

// leaseHolds is holding.leaseHolds.
func (h *sHold) leaseHolds() bool {
	if h.w.broken("nolease") {
		return true
	}
	var needs []ukai.ReplicaID
	for _, m := range h.view.all {
		if m.node != h.n {
			needs = append(needs, m.Replica)
			continue
		}
		if r := h.n.replica(m.Replica); r != nil && r.admission.epoch > h.epoch {
			h.fenced(r.admission.epoch)
			return false
		}
	}
	until := h.lease.until(needs)
	return until == never || h.n.clock() < until
}

// Range locks.

func (h *sHold) lock(c *claim) error {
	q := &h.queues[c.index]
	if h.w.broken("readinflight") && !c.exclusive {
		return h.over
	}
	if q.add(c) {
		return nil
	}
	sig := &sSignal{}
	h.waiting[c] = sig
	for c.waitsFor > 0 {
		h.w.await(sig, sForever)
		if h.over != nil {
			return h.over
		}
	}
	delete(h.waiting, c)
	return nil
}

func (h *sHold) unlock(c *claim) {
	if h.w.broken("readinflight") && !c.exclusive {
		return
	}
	h.queues[c.index].remove(c, func(next *claim) { h.w.broadcast(h.waiting[next]) })
}

// Mutations.

type sMutation struct {
	h          *sHold
	flush      bool
	vals       []sVal
	off, end   int64
	stamp      ukai.BlockStamp
	claim      claim
	check      *sCheck
	generation int
	targets    []sTarget
	follow     *sFollowing
	verdict    verdict
	settled    bool
	group      int // when it began; negative: it has not
}

type sTarget struct {
	m    *sMember
	l    *sLink
	call *sCall
	done bool
	err  error
}

// write is holding.mutate and mutatePart.
func (h *sHold) write(from, to int, id sVal) error {
	off, end := sOff(from), sOff(to-1)+512
	for off < end {
		part := h.view.layout.partEnd(off, end)
		if err := h.writePart(off, part, id); err != nil {
			return err
		}
		off = part
	}
	return nil
}

func (h *sHold) writePart(off, end int64, id sVal) error {
	w := h.w
	for h.view.suspended && h.over == nil {
		w.await(&h.changed, sForever)
	}
	if h.over != nil {
		return h.over
	}
	from, to := sRange(off, end)
	if from == to {
		return nil
	}
	op := &sMutation{h: h, vals: slices.Repeat([]sVal{id}, to-from), off: off, end: end, group: -1}
	op.claim = claim{index: h.view.layout.index(off), off: off, end: end, exclusive: true}
	if err := h.lock(&op.claim); err != nil {
		return err
	}
	op.check = h.check
	op.check.writes++
	op.stamp = op.check.stamp
	op.check.touched.add(op.claim.index)
	err := h.run(op)
	if err == nil {
		h.complete(op, from, to, id)
	}
	op.finish()
	if err == nil {
		err = h.vouched()
	}
	if err == nil {
		h.acknowledged(op, from, to)
	}
	return err
}

// vouched is holding.vouched.
func (h *sHold) vouched() error {
	for h.view.suspended && h.over == nil && !h.w.broken("ackbelow") {
		h.w.await(&h.changed, sForever)
	}
	return h.over
}

// acknowledged holds min-sync: so many replicas have what a guest is told of. They are compared only at rest.
func (h *sHold) acknowledged(op *sMutation, from, to int) {
	rec := &h.w.latest
	busy := func(c *claim) bool { return c.exclusive && c.overlaps(&op.claim) }
	if rec.Epoch != h.epoch || rec.Phase != crdt.PhaseActive || h.sets.inDoubt() || slices.ContainsFunc(h.queues[op.claim.index].claims, busy) {
		return
	}
	for i := from; i < to; i++ {
		var first *sReplica
		have := 0
		for _, m := range rec.GroupOf(op.claim.index).InSync() {
			r := h.w.node(m.Node).replica(m.Replica)
			switch {
			case r == nil || r.unclean || r.broken: // it has had it
				have++
			case first == nil || r.mem[i] == first.mem[i]:
				first = r
				have++
			}
		}
		if have < rec.MinSync {
			h.w.fail("a write of sector %d is acknowledged with %d replicas that have it, min-sync is %d", i, have, rec.MinSync)
		}
	}
}

// complete holds I3: every replica that is in sync in this epoch has what the guest is going to be told of.
func (h *sHold) complete(op *sMutation, from, to int, id sVal) {
	rec := &h.w.latest
	if rec.Epoch != h.epoch || rec.Phase != crdt.PhaseActive {
		return
	}
	for _, m := range rec.GroupOf(op.claim.index).InSync() {
		r := h.w.node(m.Node).replica(m.Replica)
		if r == nil || r.unclean || r.broken {
			continue
		}
		for i := from; i < to; i++ {
			if r.mem[i] != id && r.epoch == h.epoch {
				h.w.fail("I3: write %d is acknowledged in epoch %v, and replica %d, in sync, has %d in sector %d", id, h.epoch, r.rid, r.mem[i], i)
			}
		}
	}
}

// finish is mutation.finish.
func (op *sMutation) finish() {
	if op.follow != nil && !(op.settled && (op.verdict != await || op.reached(op.follow.m))) && !op.h.w.broken("missedclean") {
		op.follow.state.missed(op.claim.index, op.off, op.end)
	}
	if op.check != nil {
		if op.check.writes--; op.check.writes == 0 {
			op.h.w.broadcast(&op.check.empty)
		}
	}
	if !op.flush {
		op.h.unlock(&op.claim)
	}
}

func (op *sMutation) reached(m *sMember) bool {
	return slices.ContainsFunc(op.targets, func(t sTarget) bool { return t.m == m && t.done })
}

// run is holding.run and settle.
func (h *sHold) run(op *sMutation) error {
	w := h.w
	op.generation = h.generation
	h.aim(op)
	for i := range op.targets {
		h.sendTo(op, &op.targets[i])
	}
	h.awaitAll(op)
	if h.enough(op) && h.sealDone(op) {
		op.settled = true
		return nil
	}
	for {
		missing, err := h.resend(op)
		if err != nil {
			return err
		}
		if missing == 0 {
			if h.sealDone(op) {
				op.settled = true
				return nil
			}
			op.generation = h.generation
			for i := range op.targets {
				op.targets[i].done, op.targets[i].l = false, nil
			}
			continue
		}
		w.await(&h.changed, sForever)
	}
}

// aim is mutation.aim.
func (h *sHold) aim(op *sMutation) {
	var apart *sMember
	set := h.set(op)
	if !op.flush {
		if f := h.view.groupOf(op.claim.index).follow; f != nil {
			op.follow, apart = f, f.m
			op.verdict = f.admit(op)
		}
	}
	for _, m := range set {
		if m != apart {
			op.targets = append(op.targets, sTarget{m: m})
		}
	}
	if apart != nil && op.verdict == await {
		op.targets = append(op.targets, sTarget{m: apart})
	}
}

// set is mutation.set.
func (h *sHold) set(op *sMutation) []*sMember {
	if op.flush {
		return h.view.all
	}
	if op.group < 0 {
		op.group = int(h.view.groupOf(op.claim.index).id)
	}
	if g := h.view.group(uint8(op.group)); h.w.broken("stalegroup") && g != nil {
		return g.ack
	}
	return h.view.groupOf(op.claim.index).ack
}

func (h *sHold) sendTo(op *sMutation, t *sTarget) {
	t.done, t.err, t.call = false, nil, nil
	if t.l = t.m.link; t.l == nil {
		return
	}
	off, end, vals, stamp := op.off, op.end, op.vals, op.stamp
	if op.flush {
		t.call = t.m.start(t.l, func(r *sReplica, session uint32) (any, error) { return nil, r.flush(h.epoch, session) })
		return
	}
	t.call = t.m.mutate(t.l, off, end, vals, stamp)
}

// awaitAll takes in the answers.
func (h *sHold) awaitAll(op *sMutation) {
	for i := range op.targets {
		if t := &op.targets[i]; t.call != nil {
			if (h.w.broken("ackearly") || h.w.broken("majority")) && !op.flush && h.enough(op) {
				return
			}
			_, t.err = h.w.wait(t.call, sForever)
			t.call, t.done = nil, t.err == nil
		}
	}
}

// enough is mutation.complete.
func (h *sHold) enough(op *sMutation) bool {
	done := 0
	for i := range op.targets {
		if op.targets[i].done {
			done++
		}
	}
	switch {
	case h.w.broken("ackearly") && !op.flush:
		return done > 0
	case h.w.broken("majority") && !op.flush:
		return 2*done > len(op.targets)
	}
	return done == len(op.targets)
}

func (h *sHold) sealDone(op *sMutation) bool {
	if !op.flush {
		h.dirty = true
	}
	return h.generation == op.generation && h.over == nil
}

// resend is holding.resend.
func (h *sHold) resend(op *sMutation) (missing int, err error) {
	if h.over != nil {
		return 0, h.over
	}
	set := h.set(op)
	for i := range op.targets {
		t := &op.targets[i]
		if t.done || !slices.Contains(set, t.m) {
			continue
		}
		for !t.done {
			if t.err != nil && t.l != nil && t.m.link == t.l {
				if err := h.sole(op, t); err != nil {
					return 0, err
				}
				t.m.lost(t.l, t.err)
			}
			if l := t.m.link; l == nil || l == t.l {
				missing++
				break
			}
			h.sendTo(op, t)
			if t.call != nil {
				_, t.err = h.w.wait(t.call, sForever)
				t.call, t.done = nil, t.err == nil
			}
		}
		if h.over != nil {
			return 0, h.over
		}
	}
	return missing, nil
}

// sole is view.sole.
func (h *sHold) sole(op *sMutation, t *sTarget) error {
	for i := range h.view.groups {
		if g := &h.view.groups[i]; (op.flush || g == h.view.groupOf(op.claim.index)) && slices.Contains(g.ack, t.m) && g.possible > 1 && !h.w.broken("soleanywhere") {
			return nil
		}
	}
	if !h.view.last(t.m) || transient(t.err) || errors.Is(t.err, ukai.ErrFenced) || errors.Is(t.err, ukai.ErrRestarted) {
		return nil
	}
	return t.err
}

// Reads.

func (h *sHold) read(from, to int) ([]sVal, error) {
	var all []sVal
	off, end := sOff(from), sOff(to-1)+512
	for off < end {
		part := h.view.layout.partEnd(off, end)
		if a, b := sRange(off, part); a < b {
			c := claim{index: h.view.layout.index(off), off: off, end: part}
			if err := h.lock(&c); err != nil {
				return nil, err
			}
			vals, err := h.readPart(off, part)
			h.unlock(&c)
			if err != nil {
				return nil, err
			}
			all = append(all, vals...)
		}
		off = part
	}
	return all, nil
}

// readPart is fromReplica.
func (h *sHold) readPart(off, end int64) ([]sVal, error) {
	var tried []*sMember
	unreadable := 0
	for {
		if h.over != nil {
			return nil, h.over
		}
		index := h.view.layout.index(off)
		m := h.choose(h.view.groupOf(index), tried)
		if m == nil {
			if unreadable > 0 && unreadable == h.view.groupOf(index).possible {
				return nil, ukai.ErrMedia
			}
			h.w.await(&h.changed, h.w.now+minMendPause)
			tried, unreadable = nil, 0
			continue
		}
		l := m.link
		rep, err := h.w.wait(m.start(l, func(r *sReplica, session uint32) (any, error) { return r.read(h.epoch, session, off, end) }), sForever)
		if err != nil {
			tried = append(tried, m)
			if h.readFailed(m, l, err) {
				unreadable++
			}
			continue
		}
		if !slices.Contains(h.view.groupOf(index).read, m) {
			continue
		}
		for !h.leaseHolds() {
			if h.over != nil {
				return nil, h.over
			}
			h.w.await(&h.changed, h.w.now+heartbeatEvery)
		}
		if h.over != nil {
			return nil, h.over
		}
		return rep.([]sVal), nil
	}
}

// readFailed is holding.readFailed.
func (h *sHold) readFailed(m *sMember, l *sLink, err error) (unreadable bool) {
	if errors.Is(err, ukai.ErrMedia) {
		return true
	}
	m.lost(l, err)
	return false
}

// choose picks a readable member of a group: mostly this node's own, else any.
func (h *sHold) choose(g *sGroup, tried []*sMember) *sMember {
	var list []*sMember
	for _, m := range g.read {
		if m.link != nil && !slices.Contains(tried, m) {
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return nil
	}
	for _, m := range list {
		if m.node == h.n && h.w.chance(h.w.cfg.near) {
			return m
		}
	}
	return list[h.w.rnd.IntN(len(list))]
}

// Flushes and checkpoints.

func (h *sHold) flush() error {
	if !h.dirty && h.flushing == 0 {
		return h.over
	}
	h.flushing++
	h.dirty = false
	err := h.run(&sMutation{h: h, flush: true})
	if err != nil {
		h.dirty = true
	}
	h.flushing--
	return err
}

func (h *sHold) checkpoint() error {
	w := h.w
	w.lock(&h.checking)
	defer w.unlock(&h.checking)
	old := h.check
	h.newCheck(old.stamp.Check + 1)
	for old.closed = true; old.writes > 0 && !w.broken("nocheckdrain"); {
		w.await(&old.empty, sForever)
		if h.over != nil {
			return h.over
		}
	}
	if old.touched.count.Load() > 0 {
		h.dirty = true
	}
	if err := h.flush(); err != nil {
		return err
	}
	if h.stable.Less(old.stamp) {
		h.stable = old.stamp
	}
	return nil
}

// tick is holding.tick and the heartbeats.
func (h *sHold) tick() {
	w := h.w
	due := time.Duration(0)
	for n := 0; ; n++ {
		if n%heartbeatTicks == 0 {
			for _, m := range h.view.watched {
				m.heartbeat()
			}
		}
		for _, m := range h.view.watched {
			m.tick()
			if r := h.n.replica(m.Replica); m.node == h.n && r != nil && r.admission.epoch > h.epoch {
				h.fenced(r.admission.epoch)
			}
		}
		if due == 0 {
			due = h.checked + w.between(time.Second, w.cfg.checkEvery)
		}
		if h.n.clock() > due && h.check.touched.count.Load() > 0 && !h.checking.held {
			due = 0
			w.spawn(h.scope, func() { _ = h.checkpoint() })
		}
		w.sleep(tickEvery)
	}
}

// Changes of the record.

func (h *sHold) commit(change cell.Change) error {
	rec, err := h.n.propose(change)
	switch {
	case err == nil || errors.Is(err, ukai.ErrRejected):
		h.resolved(rec)
	case errors.Is(err, ukai.ErrNoQuorum):
		h.sets.resolve(h.sets.known)
		h.rebuild()
	case !h.settling:
		h.settling = true
		h.w.spawn(h.scope, h.settleDoubt)
	}
	return err
}

// settleDoubt is holding.settleDoubt.
func (h *sHold) settleDoubt() {
	w := h.w
	for pause := minMendPause; h.settling; pause = min(2*pause, maxMendPause) {
		w.sleep(w.between(pause/2, pause))
		w.lock(&h.reconfiguring)
		_ = h.settleSets()
		h.settling = h.sets.inDoubt()
		w.unlock(&h.reconfiguring)
	}
}

func (h *sHold) settleSets() error {
	if !h.sets.inDoubt() {
		return nil
	}
	rec, err := h.n.propose(cell.Identity{})
	if err != nil {
		return err
	}
	h.resolved(rec)
	return nil
}

func (h *sHold) resolved(rec crdt.Record) {
	if rec.Epoch > h.epoch || rec.Phase == crdt.PhaseDeleted {
		h.fenced(rec.Epoch)
		return
	}
	if rec.Version >= h.sets.known.Version {
		for _, m := range h.sets.leaseSet() {
			if slices.ContainsFunc(rec.Groups, func(g crdt.Group) bool {
				now := g.Member(m.Replica)
				return now != nil && now.Role != crdt.InSync && inSyncIn(&h.sets.known, m.Replica, []uint8{g.ID})
			}) {
				h.tries.dropped(m.Replica, h.n.clock(), "")
			}
		}
		h.sets.resolve(rec)
	}
	h.rebuild()
}

// alter is holding.alter.
func (h *sHold) alter(make func(known *crdt.Record) (cell.Change, error)) error {
	w := h.w
	w.lock(&h.reconfiguring)
	defer w.unlock(&h.reconfiguring)
	if err := h.settleSets(); err != nil {
		return err
	}
	known := h.sets.known
	change, err := make(&known)
	if err != nil || change.Done(known) {
		return err
	}
	next, err := change.Apply(known.Clone())
	if err != nil {
		return err
	}
	h.sets.propose(next)
	h.rebuild()
	return h.commit(change)
}

// retire is holding.retire: flush, shrink by a replica, then retire it.
func (h *sHold) retire(group uint8, id ukai.ReplicaID) error {
	in := []uint8{group}
	if inSyncIn(&h.sets.known, id, in) {
		h.dirty = true
		if err := h.flush(); err != nil {
			return err
		}
		err := h.alter(func(known *crdt.Record) (cell.Change, error) {
			return cell.Shrink{Epoch: h.epoch, Version: known.Version, Replica: id, In: in}, nil
		})
		if err != nil {
			return err
		}
	}
	return h.alter(func(known *crdt.Record) (cell.Change, error) {
		return cell.Retire{Epoch: h.epoch, Version: known.Version, Replica: id, In: in}, nil
	})
}

func (h *sHold) String() string { return fmt.Sprintf("n%d epoch %v", h.n.n, h.epoch) }
