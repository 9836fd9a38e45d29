package volume

import (
	"errors"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// Replicas as the holder sees them, and how they are mended, dropped and brought back: member.go, mend.go, following.go,
// resync.go, copy.go and reconcile.go without their waits.

type sMember struct {
	h *sHold
	crdt.Member
	node *sNode

	link        *sLink
	incarnation ukai.Incarnation
	session     uint32
	failure     error
	lasting     bool
	dropFirst   bool
	since       time.Duration
	mending     bool
	asked       time.Duration // when the oldest unanswered heartbeat was sent, 0: none
}

// sLink is a session and what is under way in it.
type sLink struct {
	session uint32
	calls   []*sCall
}

// start sends a request in a session; it ends with the session.
func (m *sMember) start(l *sLink, f func(r *sReplica, session uint32) (any, error)) *sCall {
	session := l.session
	c := m.send(false, func(r *sReplica) (any, error) { return f(r, session) })
	if m.link != l {
		m.h.w.finish(c, nil, ukai.ErrUnreachable)
		return c
	}
	l.calls = append(l.calls, c)
	return c
}

// send is a request outside of sessions.
func (m *sMember) send(repeats bool, f func(r *sReplica) (any, error)) *sCall {
	node, rid := m.node, m.Replica
	return m.h.w.call(m.h.n, node, repeats, func() (any, error) {
		r := node.replica(rid)
		if r == nil {
			return nil, ukai.ErrNotFound
		}
		return f(r)
	})
}

// mutate sends a write, and holds I13: a replica owes at most one acknowledgement per range.
func (m *sMember) mutate(l *sLink, off, end int64, vals []sVal, stamp ukai.BlockStamp) *sCall {
	epoch := m.h.epoch
	for _, c := range l.calls {
		if !c.over && c.off < end && off < c.end {
			m.h.w.fail("I13: replica %d is sent a write of [%d, %d) and owes one of [%d, %d)", m.Replica, off, end, c.off, c.end)
		}
	}
	c := m.start(l, func(r *sReplica, session uint32) (any, error) {
		return nil, r.write(epoch, session, off, end, vals, stamp)
	})
	if len(vals) > 0 {
		c.off, c.end = off, end
	}
	return c
}

// command sends a request in the session that stands and waits for the answer.
func (m *sMember) command(f func(r *sReplica, session uint32) (any, error)) (any, error) {
	if m.link == nil {
		return nil, ukai.ErrUnreachable
	}
	return m.h.w.wait(m.start(m.link, f), sForever)
}

func (m *sMember) put(off, end int64, vals []sVal, stamp ukai.BlockStamp) error {
	if m.link == nil {
		return ukai.ErrUnreachable
	}
	_, err := m.h.w.wait(m.mutate(m.link, off, end, vals, stamp), sForever)
	return err
}

func (m *sMember) get(off, end int64) ([]sVal, error) {
	rep, err := m.command(func(r *sReplica, session uint32) (any, error) { return r.read(m.h.epoch, session, off, end) })
	if err != nil {
		return nil, err
	}
	return rep.([]sVal), nil
}

// sHashed is what a replica says of a block.
type sHashed struct {
	chunks []uint64
	stamp  ukai.BlockStamp
}

func (m *sMember) hashes(off, end int64) (sHashed, error) {
	rep, err := m.command(func(r *sReplica, session uint32) (any, error) { return r.hashes(m.h.epoch, session, off, end) })
	if err != nil {
		return sHashed{}, err
	}
	return rep.(sHashed), nil
}

func (m *sMember) suspects(than ukai.BlockStamp) ([]suspect, error) {
	rep, err := m.command(func(r *sReplica, session uint32) (any, error) { return r.suspects(m.h.epoch, session, than) })
	if err != nil {
		return nil, err
	}
	return rep.([]suspect), nil
}

func (m *sMember) sync() error {
	_, err := m.command(func(r *sReplica, session uint32) (any, error) { return nil, r.flush(m.h.epoch, session) })
	return err
}

func (m *sMember) newLink(session uint32) {
	m.failure, m.lasting, m.dropFirst, m.asked = nil, false, false, 0
	m.link = &sLink{session: session}
}

func (m *sMember) cutLink() {
	l := m.link
	m.link = nil
	for _, c := range l.calls {
		m.h.w.finish(c, nil, ukai.ErrUnreachable)
	}
}

// seal is member.seal.
func (m *sMember) seal(until time.Duration) (sealReply, error) {
	rep, err := m.h.w.wait(m.send(true, func(r *sReplica) (any, error) { return r.seal(m.h.epoch) }), until)
	if err != nil {
		return sealReply{}, err
	}
	reply := rep.(sealReply)
	m.incarnation, m.session = reply.Incarnation, max(m.session, reply.Session)
	if reply.Session == 0 {
		return reply, m.greet(until)
	}
	m.newLink(reply.Session)
	return reply, nil
}

// greet is member.greet.
func (m *sMember) greet(until time.Duration) error {
	m.session++
	session, incarnation, epoch := m.session, m.incarnation, m.h.epoch
	_, err := m.h.w.wait(m.send(true, func(r *sReplica) (any, error) { return nil, r.hello(epoch, session, incarnation) }), until)
	if err != nil {
		return err
	}
	m.newLink(session)
	if m.h.serving {
		m.h.rebuild()
	}
	return nil
}

// lost is member.lost.
func (m *sMember) lost(l *sLink, err error) {
	h := m.h
	if fenced := (*ukai.FencedError)(nil); errors.As(err, &fenced) && fenced.Epoch > h.epoch {
		h.fenced(fenced.Epoch)
		return
	}
	if m.link != l || h.over != nil {
		return
	}
	m.cutLink()
	m.failure, m.since = err, h.n.clock()
	m.lasting = !transient(err) && !errors.Is(err, ukai.ErrFenced) && !errors.Is(err, ukai.ErrNoSpace)
	m.dropFirst = m.lasting || errors.Is(err, ukai.ErrNoSpace)
	h.w.note("n%d: replica %d is lost: %v", h.n.n, m.Replica, err)
	if f := h.following; f != nil && f.m == m {
		f.suspend()
		h.rebuild()
	}
	h.w.broadcast(&h.changed)
	if !m.mending && h.serving {
		m.mending = true
		h.w.spawn(h.scope, m.mend)
	}
}

// heartbeat is member.beat and what becomes of it.
func (m *sMember) heartbeat() {
	h, w := m.h, m.h.w
	b := beat{Disk: w.disk, Replica: m.Replica, Epoch: h.epoch}
	if m.link != nil {
		b.Session = m.link.session
		if all, in := memberships(&h.sets.known, m.Replica); in > 0 && all == in || w.broken("stablesyncing") {
			b.Stable = h.stable
		}
	}
	sent := h.n.clock()
	if m.asked == 0 {
		m.asked = max(sent, 1)
	}
	c := m.send(true, func(r *sReplica) (any, error) {
		err := r.beat(b)
		if err == nil && b.Session != 0 && r.incarnation() != m.incarnation {
			w.fail("replica %d, which has lost power since, confirms session %d to n%d", r.rid, b.Session, h.n.n)
		}
		return nil, err
	})
	w.spawn(h.scope, func() {
		_, err := w.wait(c, w.now+leaseTime)
		switch {
		case err == nil:
			m.asked = 0
			m.confirmed(sent)
		case transient(err), errors.Is(err, ukai.ErrMedia) && h.view.last(m):
		case m.link != nil && m.link.session == b.Session:
			m.lost(m.link, err)
		}
	})
}

func (m *sMember) confirmed(sent time.Duration) {
	m.h.lease.confirm(m.Replica, sent)
	m.h.w.broadcast(&m.h.changed)
}

// tick is member.tick.
func (m *sMember) tick() {
	l, w := m.link, m.h.w
	if l == nil || m.node == m.h.n {
		return
	}
	l.calls = slices.DeleteFunc(l.calls, func(c *sCall) bool { return c.over })
	age := -1
	for _, c := range l.calls {
		age = max(age, int((w.now-c.sent)/tickEvery))
	}
	if age >= suspectAfter && m.asked == 0 {
		m.heartbeat()
	}
	silence := time.Duration(0)
	if m.asked > 0 {
		silence = m.h.n.clock() - m.asked
	}
	allowed := idleSilentAfter
	if age >= 0 {
		allowed = silentAfter
	}
	allowed += rttFactor * 2 * w.cfg.delay
	if silence > allowed && (age < 0 || age >= suspectAfter) || age >= int(slowAfter) {
		m.lost(l, ukai.ErrTimeout)
	}
}

// mend is member.mend.
func (m *sMember) mend() {
	h, pause := m.h, minMendPause
	for first := true; ; first = false {
		if m.link != nil || h.over != nil || !h.needs(m.Replica) {
			m.mending = false
			return
		}
		if !m.lasting && !(m.dropFirst && first) && m.reconnect() {
			continue
		}
		if h.drop(m) {
			continue
		}
		pause = min(2*pause, maxMendPause)
		h.w.sleep(h.w.between(pause/2, pause))
	}
}

func (m *sMember) reconnect() bool {
	w := m.h.w
	until := w.now + reconnectFor + rttFactor*2*w.cfg.delay
	for {
		err := m.greet(until)
		if err == nil {
			return true
		}
		if fenced := (*ukai.FencedError)(nil); errors.As(err, &fenced) && fenced.Epoch > m.h.epoch {
			m.h.fenced(fenced.Epoch)
			return false
		}
		m.failure = err
		m.lasting = !transient(err) && !errors.Is(err, ukai.ErrFenced)
		if m.lasting || w.now+minMendPause/2 >= until {
			return false
		}
		w.sleep(minMendPause / 2)
	}
}

// drop is holding.drop.
func (h *sHold) drop(m *sMember) bool {
	w := h.w
	w.lock(&h.reconfiguring)
	defer w.unlock(&h.reconfiguring)
	if err := h.settleSets(); err != nil {
		return false
	}
	rec := h.sets.known
	if m.link != nil || !h.needs(m.Replica) {
		return true
	}
	answers := m.lasting || m.dropFirst
	var others []uint8
	last := false
	for i := range rec.Groups {
		g := &rec.Groups[i]
		if mem := g.Member(m.Replica); mem == nil || mem.Role != crdt.InSync {
			continue
		}
		switch left := g.Count(crdt.InSync) - 1; {
		case left == 0:
			last = true
		case left < rec.MinSync && (!answers && h.n.clock()-m.since < rejoinFor || w.broken("minsyncrepair")):
			return false
		default:
			others = append(others, g.ID)
		}
	}
	restarted := m.lasting && errors.Is(m.failure, ukai.ErrRestarted)
	if last && (restarted || !answers || len(others) == 0) {
		return restarted && h.adopt(m)
	}
	change := cell.Shrink{Epoch: h.epoch, Version: rec.Version, Replica: m.Replica}
	if last {
		change.In = others
	}
	w.note("n%d drops replica %d of groups %v", h.n.n, m.Replica, others)
	if w.broken("gossipmap") {
		h.sets.resolve(withRole(rec, m.Replica, crdt.Out)) // decided here, told later
		h.rebuild()
		return true
	}
	next, err := change.Apply(rec.Clone())
	if err != nil {
		return false
	}
	h.sets.propose(next)
	h.rebuild()
	if h.commit(change) != nil {
		return false
	}
	if last && m.link == nil {
		m.lasting, m.dropFirst = false, false
	}
	return true
}

// adopt is holding.adopt.
func (h *sHold) adopt(m *sMember) bool {
	h.generation++
	if h.dirty || h.flushing > 0 {
		h.end(ukai.ErrLost)
		return true
	}
	_, err := m.seal(h.w.now + reconnectFor + rttFactor*2*h.w.cfg.delay)
	h.w.broadcast(&h.changed)
	return err == nil
}

// sFollowing is following.
type sFollowing struct {
	h      *sHold
	m      *sMember
	groups []uint8
	state  follow
	news   sSignal
	listed ukai.Incarnation
	known  bool // listed is
	steps  int
}

// admit is following.admit. What is not waited for is sent at once.
func (f *sFollowing) admit(op *sMutation) verdict {
	i, off, end := op.claim.index, op.off, op.end
	if f.h.w.broken("grownomust") && f.state.mode >= awaited {
		f.state.mode = informed // it is proposed, but nothing waits for it
		defer func() { f.state.mode = awaited }()
	}
	v := f.state.admit(i, off, end)
	if f.h.w.broken("twoinflight") && v == miss && f.state.mode == informed && !f.state.lacksAny(i, off, end) {
		f.state.owed[i] = append(f.state.owed[i], owedSpan{off, end})
		f.state.owing++
		f.state.pending += end - off
		v = send
	}
	if v != send {
		return v
	}
	l, vals, stamp := f.m.link, op.vals, op.stamp
	f.h.w.spawn(f.h.scope, func() {
		err := ukai.ErrUnreachable
		if f.m.link == l && l != nil {
			if err = f.m.put(off, end, vals, stamp); err != nil {
				f.m.lost(l, err)
			}
		}
		f.state.sent(i, off, end, err == nil)
		f.h.w.broadcast(&f.news)
	})
	return v
}

func (f *sFollowing) suspend() {
	if f.state.mode != admitted {
		f.state.mode = passedBy
	}
	f.h.w.broadcast(&f.news)
}

// reconcile is holding.reconcile.
func (h *sHold) reconcile() {
	w := h.w
	for !h.stopped {
		rec := h.sets.known
		now := h.n.clock()
		a, at, due := h.tries.choose(absentees(&rec), now, h.view.suspended)
		if due {
			h.bringBack(a)
			continue
		}
		until := sForever
		if at != never {
			until = h.n.until(at)
		}
		w.await(&h.changed, until)
	}
}

// bringBack is holding.bringBack.
func (h *sHold) bringBack(a absentee) {
	w := h.w
	m := h.member(a.Replica)
	if m == nil {
		m = &sMember{h: h, Member: a.Member, node: w.node(a.Node)}
		h.members = append(h.members, m)
	}
	b := beat{Disk: w.disk, Replica: a.Replica, Epoch: h.epoch}
	_, err := w.wait(m.send(true, func(r *sReplica) (any, error) { return nil, r.beat(b) }), w.now+sealWait)
	fenced := (*ukai.FencedError)(nil)
	switch {
	case errors.As(err, &fenced) && fenced.Epoch > h.epoch:
		h.fenced(fenced.Epoch)
		return
	case err != nil && fenced == nil:
		h.tries.silent(a.Replica, h.n.clock(), err)
		return
	}
	h.tries.begun(a.Replica, h.n.clock())
	err = nil
	for _, g := range a.out {
		if err = h.join(g, a.Member, true); err != nil {
			break
		}
	}
	if err == nil {
		f := &sFollowing{h: h, m: m, groups: a.lacking}
		f.state.blockSize, f.state.size = sBlockSize, sBlocks*sBlockSize
		err = f.run()
	}
	if err == nil {
		h.tries.done(a.Replica)
		return
	}
	h.tries.failed(a.Replica, h.n.clock(), "", 0)
	if h.stopped || inSyncIn(&h.sets.known, a.Replica, a.lacking) {
		return
	}
	_ = h.alter(func(known *crdt.Record) (cell.Change, error) {
		return cell.Shrink{Epoch: h.epoch, Version: known.Version, Replica: a.Replica, In: a.lacking}, nil
	})
}

func (h *sHold) join(group uint8, m crdt.Member, returns bool) error {
	return h.alter(func(known *crdt.Record) (cell.Change, error) {
		if g := known.Group(group); returns && (g == nil || g.Member(m.Replica) == nil) {
			return nil, ukai.ErrRejected
		}
		return cell.Join{Epoch: h.epoch, Version: known.Version, Group: group, Replica: m.Replica, Node: m.Node}, nil
	})
}

// run is following.run.
func (f *sFollowing) run() error {
	h, w := f.h, f.h.w
	h.following = f
	h.rebuild()
	defer func() {
		if h.over != nil {
			return
		}
		h.following = nil
		if f.m.link != nil && !h.needs(f.m.Replica) {
			f.m.cutLink()
		}
		h.rebuild()
	}()
	pause, good, seen := minMendPause, w.now, 0
	for {
		err := f.attempt()
		if err == nil || h.stopped || hopeless(err) {
			return err
		}
		w.note("n%d: resync of replica %d, once more: %v", h.n.n, f.m.Replica, err)
		if f.steps > seen {
			pause, good, seen = minMendPause, w.now, f.steps
		}
		if w.now-good > rejoinFor {
			return err
		}
		w.sleep(pause)
		pause = min(2*pause, maxMendPause)
	}
}

// attempt is following.attempt, connect and follow.
func (f *sFollowing) attempt() error {
	h, m, w := f.h, f.m, f.h.w
	if !w.broken("lateknown") {
		if err := h.checkpoint(); err != nil {
			return err
		}
	}
	stable, err := f.connect()
	if err != nil {
		return err
	}
	l := m.link
	if l == nil {
		return ukai.ErrUnreachable
	}
	err = f.follow(l, stable)
	if err != nil {
		f.suspend()
		h.rebuild()
	}
	return err
}

// connect is following.connect and awaitLink.
func (f *sFollowing) connect() (stable ukai.BlockStamp, err error) {
	h, m, w := f.h, f.m, f.h.w
	if h.needs(m.Replica) {
		if m.link != nil {
			m.lost(m.link, ukai.ErrUnreachable)
		}
		for m.link == nil {
			if h.over != nil || !h.needs(m.Replica) {
				return stable, ukai.ErrUnreachable
			}
			w.await(&h.changed, sForever)
		}
		return stable, nil
	}
	if m.link != nil {
		m.cutLink()
	}
	rep, err := w.wait(m.send(true, func(r *sReplica) (any, error) { return r.seal(h.epoch) }), w.now+sealWait)
	if err != nil {
		return stable, f.fenced(err)
	}
	reply := rep.(sealReply)
	m.incarnation, m.session = reply.Incarnation, max(m.session, reply.Session)
	if err := m.greet(w.now + sealWait); err != nil {
		return stable, f.fenced(err)
	}
	return reply.Stable, nil
}

func (f *sFollowing) fenced(err error) error {
	if fenced := (*ukai.FencedError)(nil); errors.As(err, &fenced) && fenced.Epoch > f.h.epoch {
		f.h.fenced(fenced.Epoch)
	}
	return err
}

func (f *sFollowing) follow(l *sLink, stable ukai.BlockStamp) error {
	if !f.known || f.listed != f.m.incarnation {
		if err := f.list(stable); err != nil {
			return err
		}
		f.known, f.listed = true, f.m.incarnation
	}
	if err := f.setMode(l, informed); err != nil {
		return err
	}
	for n := 1; ; n++ {
		if err := f.sweep(l); err != nil {
			return err
		}
		if f.state.blocks() == 0 || n >= maxSweeps { // the disk is small: fewBlocks would be all of it
			break
		}
	}
	return f.join(l)
}

func (f *sFollowing) setMode(l *sLink, mode followMode) error {
	if f.m.link != l || f.h.stopped {
		return ukai.ErrUnreachable
	}
	f.state.mode = mode
	f.h.rebuild()
	return nil
}

// list is following.list (J3).
func (f *sFollowing) list(stable ukai.BlockStamp) error {
	h, rec := f.h, f.h.sets.known
	var all []ukai.Index
	for _, id := range f.groups {
		than := stable
		if g := rec.Group(id); g == nil || g.Member(f.m.Replica) == nil || g.Member(f.m.Replica).Fresh {
			than = ukai.BlockStamp{}
		}
		own, err := f.m.suspects(than)
		if err != nil {
			return err
		}
		if h.w.broken("dirtyauthonly") {
			own = nil
		}
		for listed := false; !listed; {
			g := h.view.group(id)
			if g == nil {
				return ukai.ErrUnavailable
			}
			src := h.choose(g, nil)
			if src == nil {
				return ukai.ErrUnavailable
			}
			l := src.link
			theirs, err := src.suspects(than)
			if err != nil {
				h.readFailed(src, l, err)
				return err
			}
			if g := h.view.group(id); g == nil || !slices.Contains(g.read, src) {
				continue
			}
			if h.w.broken("dirtyownonly") {
				theirs = nil
			}
			for _, s := range append(own, theirs...) {
				if of, _ := h.view.layout.groupAt(s.index); of == id {
					all = append(all, s.index)
				}
			}
			listed = true
		}
	}
	if !h.w.broken("haveafterloss") {
		clear(f.state.have)
	}
	for _, i := range all {
		f.state.dirty.add(i)
	}
	return nil
}

func (f *sFollowing) sweep(l *sLink) error {
	defer func() { f.state.cursor = 0 }()
	for {
		i, ok := f.state.take()
		if !ok {
			return nil
		}
		err := f.block(l, i)
		f.state.leave(i)
		if err != nil {
			return err
		}
	}
}

// block is following.block, compare and copy.
func (f *sFollowing) block(l *sLink, i ukai.Index) error {
	h := f.h
	off, end := f.state.blockOff(i), min(f.state.blockOff(i)+sBlockSize, f.state.size)
	c := &claim{index: i, off: off, end: end}
	if err := h.lock(c); err != nil {
		return err
	}
	h.unlock(c)
	var want sHashed
	if err := f.fromSource(i, func(src *sMember) (err error) { want, err = src.hashes(off, end); return err }); err != nil {
		return err
	}
	have, err := f.m.hashes(off, end)
	if err != nil {
		f.m.lost(l, err)
		return err
	}
	for k := range want.chunks {
		if want.chunks[k] == have.chunks[k] {
			f.state.same(i, k)
		}
	}
	copied := false
	for chunk := 0; ; {
		from, to := f.state.lackingRun(i, chunk, copyBytes/ukai.ChunkSize)
		if from == to {
			break
		}
		if err := f.copy(l, i, from, to, end); err != nil {
			return err
		}
		copied, chunk = true, to
	}
	if !copied && have.stamp.Less(want.stamp) && !h.w.broken("equalunstamped") {
		if f.m.link != l {
			return ukai.ErrUnreachable
		}
		if err := f.m.put(off, off+1, nil, want.stamp); err != nil {
			f.state.missed(i, off, end)
			f.m.lost(l, err)
			return err
		}
	}
	f.steps++
	return nil
}

func (f *sFollowing) copy(l *sLink, i ukai.Index, from, to int, end int64) error {
	h, w := f.h, f.h.w
	start := f.state.blockOff(i)
	off := start + int64(from)*ukai.ChunkSize
	end = min(end, start+int64(to)*ukai.ChunkSize)
	c := &claim{index: i, off: off, end: end, exclusive: true}
	if !w.broken("copynolock") {
		for {
			if err := h.lock(c); err != nil {
				return err
			}
			if !f.state.owes(i, off, end) || w.broken("twoinflight") {
				break
			}
			h.unlock(c)
			w.await(&f.news, sForever)
			if f.m.link != l {
				return ukai.ErrUnreachable
			}
		}
		defer func() {
			if h.over == nil {
				h.unlock(c)
			}
		}()
	}
	var vals []sVal
	if err := f.fromSource(i, func(src *sMember) (err error) { vals, err = src.get(off, end); return err }); err != nil {
		return err
	}
	if f.m.link != l {
		return ukai.ErrUnreachable
	}
	if err := f.m.put(off, end, vals, h.check.stamp); err != nil {
		f.m.lost(l, err)
		return err
	}
	f.state.copied(i, from, to)
	return nil
}

// fromSource is following.fromSource.
func (f *sFollowing) fromSource(i ukai.Index, get func(src *sMember) error) error {
	var tried []*sMember
	for {
		src := f.h.choose(f.h.view.groupOf(i), tried)
		if src == nil {
			return ukai.ErrUnavailable
		}
		l := src.link
		err := get(src)
		switch {
		case err == nil && slices.Contains(f.h.view.groupOf(i).read, src):
			return nil
		case err == nil:
			continue
		}
		f.h.readFailed(src, l, err)
		tried = append(tried, src)
	}
}

// join is following.join.
func (f *sFollowing) join(l *sLink) error {
	h, w := f.h, f.h.w
	b := beat{Disk: w.disk, Replica: f.m.Replica, Epoch: h.epoch, Session: l.session}
	sent := h.n.clock()
	if _, err := w.wait(f.m.start(l, func(r *sReplica, _ uint32) (any, error) { return nil, r.beat(b) }), sForever); err != nil {
		f.m.lost(l, err)
		return err
	}
	f.m.confirmed(sent)
	if err := f.setMode(l, awaited); err != nil {
		return err
	}
	for {
		for !f.state.complete() {
			if f.m.link != l {
				return ukai.ErrUnreachable
			}
			if err := f.sweep(l); err != nil {
				return err
			}
			if f.state.blocks() > 0 || f.state.complete() {
				continue
			}
			w.await(&f.news, sForever)
		}
		if !w.broken("grownodrain") {
			if err := h.checkpoint(); err != nil {
				return err
			}
		}
		if f.state.complete() {
			break
		}
	}
	if err := f.m.sync(); err != nil {
		f.m.lost(l, err)
		return err
	}
	return f.grow(l)
}

// grow is following.grow.
func (f *sFollowing) grow(l *sLink) error {
	h, w := f.h, f.h.w
	w.lock(&h.reconfiguring)
	err := f.propose(l)
	for again := 0; errors.Is(err, ukai.ErrRejected) && again < maxGrows; again++ {
		err = f.propose(l)
	}
	w.unlock(&h.reconfiguring)
	for {
		doubt, in := h.sets.inDoubt(), inSyncIn(&h.sets.known, f.m.Replica, f.groups)
		if !doubt {
			if !in {
				f.state.mode = passedBy
			}
			h.rebuild()
		}
		switch {
		case in && !doubt:
			return nil
		case !doubt && err == nil:
			return ukai.ErrRejected
		case !doubt:
			return err
		}
		w.sleep(minMendPause)
		w.lock(&h.reconfiguring)
		if again := h.settleSets(); again != nil {
			err = again
		}
		w.unlock(&h.reconfiguring)
	}
}

func (f *sFollowing) propose(l *sLink) error {
	h := f.h
	if err := h.settleSets(); err != nil {
		return err
	}
	known := h.sets.known
	change := cell.Grow{Epoch: h.epoch, Version: known.Version, Replica: f.m.Replica, In: f.groups}
	next, err := change.Apply(known.Clone())
	if err != nil {
		return err
	}
	if f.m.link != l || h.stopped || f.state.mode < awaited || !f.state.complete() {
		return ukai.ErrUnreachable
	}
	if !h.w.broken("grownomust") {
		f.state.mode = admitted
		h.sets.propose(next)
	}
	h.rebuild()
	return h.commit(change)
}

// withRole returns a copy of rec in which one replica has another role: what a proposal would commit.
func withRole(rec crdt.Record, replica ukai.ReplicaID, role crdt.Role) crdt.Record {
	rec.Groups = slices.Clone(rec.Groups)
	for i := range rec.Groups {
		g := &rec.Groups[i]
		g.Members = slices.Clone(g.Members)
		for j := range g.Members {
			if g.Members[j].Replica == replica {
				g.Members[j].Role = role
			}
		}
	}
	if !rec.InSyncAnywhere(rec.Ahead) {
		rec.Ahead = 0
	}
	return rec
}
