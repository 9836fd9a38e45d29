package volume

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/wire"
)

// member is a replica as the holder of one epoch sees it.
type member struct {
	h *holding
	crdt.Member
	local *hosted // if it is on this node

	link    atomic.Pointer[link] // the session in use; nil while there is none
	latency latency              // of reads

	// Under h.mu:
	incarnation ukai.Incarnation // that was sealed
	session     uint32           // the last one tried
	failure     error            // why there is no link
	lasting     bool             // greeting it again will not help
	dropFirst   bool             // it answers, but must leave the in-sync set before it is tried again
	since       time.Duration    // when it failed
	mending     bool
}

// link is one session at a replica. Its context ends when the session is given up, and with it every request of it.
type link struct {
	session uint32
	ctx     context.Context
	cancel  context.CancelFunc
	ops     outstanding
	flushes outstanding

	// What a flush goes by that is sent behind mutations under way, see flushBehind.
	sent   atomic.Uint64 // how many writes, zeros and discards, and above batchShift the batch they belong to
	again  atomic.Uint64 // how many of them repeat what was sent before, or copy what another replica has; grows after sent
	uneven atomic.Bool   // the replica may have counted otherwise: one of them failed, or it does not count from the beginning of the session
}

// Mutations of a session are counted in batches, which begin with 1: a flush that is sent behind mutations ends one. A replica that does not know of
// batches yet gets the same numbers and counts as it always did.
const batchShift = 48

// count counts a request that the replica counts, too, and gives it its batch. It comes before the request is sent.
func (l *link) count(m *wire.Message) {
	if mutates(m.Kind) {
		m.Layer = uint16(l.sent.Add(1) >> batchShift)
	}
}

// endBatch returns the batch of everything that was counted so far and not in an earlier one, and how many mutations it and those before it have in all. If
// there are none, it goes on.
func (l *link) endBatch() (batch uint16, count int64) {
	for {
		sent := l.sent.Load()
		batch, count = uint16(sent>>batchShift), int64(sent&(1<<batchShift-1))
		if count == 0 {
			return batch, 0 // a flush behind nothing does not tell the replica that one has ended
		}
		next := uint64(max(1, batch+1)) // 0, after 65535, is no batch
		if l.sent.CompareAndSwap(sent, next<<batchShift|uint64(count)) {
			return batch, count
		}
	}
}

// failed notes that a request was answered with an error, or not at all.
func (l *link) failed(kind wire.Kind) {
	if mutates(kind) {
		l.uneven.Store(true)
	}
}

func mutates(kind wire.Kind) bool {
	return kind == wire.KindWrite || kind == wire.KindZero || kind == wire.KindDiscard
}

// newLink puts a session in use. The caller holds h.mu.
func (m *member) newLink(session uint32, counts bool) {
	l := &link{session: session}
	l.sent.Store(1 << batchShift)
	l.uneven.Store(!counts && m.local == nil)
	l.ctx, l.cancel = context.WithCancel(m.h.ctx)
	m.failure, m.lasting, m.dropFirst = nil, false, false
	m.link.Store(l)
}

// ask sends one rare request to the replica, wherever it is, and waits for the answer.
func (m *member) ask(ctx context.Context, session uint32, msg wire.Message, into []byte) (wire.Reply, error) {
	msg.Disk, msg.Replica, msg.Epoch, msg.Session = m.h.d.id, m.Replica, m.h.epoch, session
	if m.local != nil {
		return m.h.host.cfg.Replicas.do(&msg, into)
	}
	reply, err := m.h.host.cfg.Peers.Start(ctx, m.Node, &msg, into).Wait(ctx)
	return reply, m.named(err)
}

// named says of which node an error tells, unless it says so itself or is a matter of epochs.
func (m *member) named(err error) error {
	if err == nil || errors.Is(err, ukai.ErrFenced) {
		return err
	}
	if named := (*ukai.NodeError)(nil); errors.As(err, &named) {
		return err
	}
	return m.h.host.nodeError(m.Node, err)
}

// seal fences the replica at this epoch and begins a session.
func (m *member) seal(ctx context.Context, req sealRequest) (sealReply, error) {
	var reply sealReply
	answer, err := m.ask(ctx, 0, wire.Message{Kind: wire.KindSeal, Payload: encode(req)}, nil)
	if err != nil {
		return reply, err
	}
	if err := codec.Unmarshal(answer.Payload, &reply); err != nil {
		return reply, m.named(err)
	}
	m.h.mu.Lock()
	m.incarnation, m.session = reply.Incarnation, max(m.session, reply.Session)
	m.h.mu.Unlock()
	if reply.Session == 0 { // sealed in this epoch before, and restarted since
		return reply, m.greet(ctx)
	}
	m.h.mu.Lock()
	m.newLink(reply.Session, reply.Counts)
	m.h.mu.Unlock()
	return reply, nil
}

// greet begins the next session with the incarnation that was sealed.
func (m *member) greet(ctx context.Context) error {
	m.h.mu.Lock()
	m.session++
	session, incarnation := m.session, m.incarnation
	m.h.mu.Unlock()
	msg := wire.Message{Kind: wire.KindHello, Payload: encode(helloRequest{Incarnation: incarnation})}
	sent := m.h.host.cfg.Clock()
	reply, err := m.ask(ctx, session, msg, nil)
	if err != nil {
		return err
	}
	m.h.host.answered(m.Node, sent) // or the next tick would give the session up for a heartbeat from before
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	m.newLink(session, reply.Count == helloCounts)
	if m.h.view.Load() != nil {
		m.h.rebuild()
	}
	return nil
}

// lost gives up a session: its requests end, and if the replica is needed, somebody begins to mend it. err says why.
func (m *member) lost(l *link, err error) {
	h := m.h
	if fenced := (*ukai.FencedError)(nil); errors.As(err, &fenced) && fenced.Epoch > h.epoch {
		h.fenced(fenced.Epoch)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.link.Load() != l {
		return // somebody was quicker
	}
	m.link.Store(nil)
	l.cancel()
	m.failure, m.since = m.named(err), h.host.cfg.Clock()
	m.lasting = lasts(err) && !errors.Is(err, ukai.ErrNoSpace)
	m.dropFirst = m.lasting || errors.Is(err, ukai.ErrNoSpace)
	if f := h.following; f != nil && f.m == m {
		f.suspend()
		h.rebuild()
	}
	h.broadcast()
	if !m.mending {
		m.mending = true
		h.goLocked(m.mend)
	}
}

// beat returns the replica's part of the next heartbeat.
func (m *member) beat() pendingBeat {
	b := beat{Disk: m.h.d.id, Replica: m.Replica, Epoch: m.h.epoch}
	if l := m.link.Load(); l != nil {
		b.Session = l.session
		m.h.mu.Lock()
		// Not to a replica that lacks anything, in any of its groups: the stamp would hide that from its next resync.
		if all, in := memberships(&m.h.sets.known, m.Replica); in > 0 && all == in {
			b.Stable = m.h.stable
		}
		m.h.mu.Unlock()
	}
	return pendingBeat{m: m, beat: b}
}

// confirmed notes that the replica still is at this epoch, as of a heartbeat sent at a given time.
func (m *member) confirmed(sent time.Duration) {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	m.h.lease.confirm(m.Replica, sent)
	m.h.renewLease()
}

// refused takes in that the replica did not confirm the epoch, or the session that the heartbeat named: it has restarted since.
func (m *member) refused(b beat, e exception) {
	err := ukai.Sentinel(e.Code)
	switch {
	case err == nil:
		err = fmt.Errorf("heartbeat refused with code %d", e.Code)
	case errors.Is(err, ukai.ErrFenced):
		err = &ukai.FencedError{Epoch: e.Now}
	}
	if errors.Is(err, ukai.ErrMedia) && m.h.view.Load().last(m) {
		return // there is no other to go on with: its errors are the guest's
	}
	if l := m.link.Load(); l != nil && (l.session == b.Session || errors.Is(err, ukai.ErrFenced) && e.Now > b.Epoch) {
		m.lost(l, err) // else it is of a session that has been replaced
	}
}

// tick looks after the age of what the replica owes. It runs once per tick of the host.
func (m *member) tick(now time.Duration) {
	l := m.link.Load()
	if l == nil || m.local != nil {
		return
	}
	age := max(l.ops.advance(), l.flushes.advance())
	if age >= suspectAfter {
		m.h.host.probe(m.Node, m)
	}
	silence := m.h.host.silence(m.Node, now)
	allowed := idleSilentAfter
	if age >= 0 {
		allowed = silentAfter
	}
	allowed += rttFactor * m.h.host.rtt(m.Node)
	switch {
	case silence > allowed && (age < 0 || age >= suspectAfter):
		m.lost(l, fmt.Errorf("silent for %v: %w", silence.Round(time.Millisecond), ukai.ErrTimeout))
	case age >= int(slowAfter):
		m.lost(l, fmt.Errorf("a request is unanswered for %v: %w", time.Duration(age)*tickEvery, ukai.ErrTimeout))
	}
}

// latency is a running estimate of how long a replica's reads take, as RFC 6298 keeps it of round trips.
type latency struct {
	mean, deviation atomic.Int64 // ns; losing one of two concurrent samples does no harm
}

func (e *latency) observe(d time.Duration) {
	n, mean := int64(d), e.mean.Load()
	if mean == 0 {
		e.mean.Store(n)
		e.deviation.Store(n / 2)
		return
	}
	diff := n - mean
	e.mean.Store(mean + diff/8)
	if diff < 0 {
		diff = -diff
	}
	dev := e.deviation.Load()
	e.deviation.Store(dev + (diff-dev)/4)
}

// slow returns what only about one read in a hundred exceeds.
func (e *latency) slow() time.Duration {
	return time.Duration(e.mean.Load() + 4*e.deviation.Load())
}
