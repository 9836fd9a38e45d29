package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"ukai"
	"ukai/node/wire"
)

// mutation is one write, zero or discard of part of a block, or a flush or resize of all replicas: sent to every replica
// that may be in sync, and complete when all of those have done it. It is pooled.
type mutation struct {
	h     *holding
	kind  wire.Kind
	group int    // of its block when it began, which may get another; allGroups: all replicas must do it
	p     []byte // what is written
	off   int64
	n     int64
	stamp ukai.BlockStamp

	// What finish gives back; nil and zero for a flush or resize.
	claim    claim
	locked   bool
	check    *check
	reserved int64

	generation uint32
	targets    []target

	// The replica that is being brought up to date, if there is one in the group, and what becomes of the mutation there.
	follow  *following
	verdict verdict
	settled bool // every replica that must have it has it

	behind bool // a flush that is sent behind mutations under way

	// With ack=local, once the guest is answered:
	window  windowed
	kept    *[]byte // what p is part of: a copy
	carryOn func()  // catchUp with this mutation; made once, a mutation is pooled
}

const allGroups = -1

// target is one replica's share of a mutation.
type target struct {
	m     *member
	l     *link // session it was last sent in
	slot  uint32
	call  Call
	msg   wire.Message
	done  bool
	err   error
	full  int    // times it was refused for want of room
	again uint64 // of a flush behind mutations: link.again when it was sent
}

var mutations = sync.Pool{New: func() any { return new(mutation) }}

func (h *holding) newMutation(kind wire.Kind, group int, p []byte, off, n int64) *mutation {
	op := mutations.Get().(*mutation)
	op.h, op.kind, op.group, op.p, op.off, op.n = h, kind, group, p, off, n
	op.stamp, op.locked, op.check, op.reserved = ukai.BlockStamp{}, false, nil, 0
	op.follow, op.verdict, op.settled, op.behind = nil, miss, false, false
	return op
}

// finish ends the mutation: its range is free for others.
func (op *mutation) finish() {
	if op.follow != nil && !(op.settled && (op.verdict != await || op.reached(op.follow.m))) {
		op.follow.missed(op)
		op.follow = nil
	}
	if op.check != nil {
		op.check.writes.leave()
	}
	if op.window.number != 0 {
		op.h.mu.Lock()
		op.h.window.remove(op)
		op.h.mu.Unlock()
	}
	if op.locked {
		op.h.locks.unlock(&op.claim)
	}
	if op.kept != nil {
		putPayload(op.kept)
		op.kept = nil
	}
	if op.reserved > 0 {
		op.h.d.inflight.Release(op.reserved)
	}
	clear(op.targets)
	op.targets, op.p, op.h, op.check, op.follow = op.targets[:0], nil, nil, nil, nil
	mutations.Put(op)
}

// reached says whether a replica has done the mutation.
func (op *mutation) reached(m *member) bool {
	return slices.ContainsFunc(op.targets, func(t target) bool { return t.m == m && t.done })
}

// aim chooses the replicas that the mutation is sent to and waited for.
func (op *mutation) aim(v *view) {
	set := op.set(v)
	op.targets = slices.Grow(op.targets[:0], len(set)+1)
	var apart *member // decided on by what it has
	if op.group != allGroups {
		if f := v.groupOf(op.claim.index).follow; f != nil {
			op.follow, op.verdict, apart = f, f.admit(op), f.m
		}
	}
	for _, m := range set {
		if m != apart {
			op.targets = append(op.targets, target{m: m})
		}
	}
	if apart != nil && op.verdict == await {
		op.targets = append(op.targets, target{m: apart})
	}
}

// set returns the members that must have done the mutation.
func (op *mutation) set(v *view) []*member {
	if op.group == allGroups {
		return v.all
	}
	return v.groupOf(op.claim.index).ack // it may be another than when the mutation began
}

// mutate changes [off, off+n) on all replicas that must have it: p is what to write, nil to clear.
func (h *holding) mutate(ctx context.Context, kind wire.Kind, p []byte, off, n int64) error {
	if !h.wrote.Load() {
		h.wrote.Store(true)
	}
	for end := off + n; off < end; {
		l := &h.view.Load().layout
		part := l.partEnd(off, end) - off
		var q []byte
		if p != nil {
			part = min(part, ukai.MaxIO)
			q, p = p[:part], p[part:]
		}
		if err := h.mutatePart(ctx, kind, q, off, part); err != nil {
			return fmt.Errorf("block %d: %w", l.index(off), err)
		}
		off += part
	}
	return nil
}

// mutatePart is mutate within one block.
func (h *holding) mutatePart(ctx context.Context, kind wire.Kind, p []byte, off, n int64) error {
	v, err := h.writable(ctx)
	if err != nil {
		return err
	}
	index := v.layout.index(off)
	group, _ := v.layout.groupAt(index)
	op := h.newMutation(kind, int(group), p, off, n)
	if op.reserved, err = h.d.reserve(ctx, n); err != nil {
		op.finish()
		return err
	}
	op.claim.index, op.claim.off, op.claim.end, op.claim.exclusive = index, off, off+n, true
	if err := h.locks.lock(ctx, &op.claim); err != nil {
		op.finish()
		return err
	}
	op.locked = true
	op.check = h.check.Load()
	for !op.check.writes.enter() { // a checkpoint began since we looked
		op.check = h.check.Load()
	}
	op.stamp = op.check.stamp
	op.check.touched.add(index)
	return h.run(ctx, op)
}

// run sends a mutation to its replicas and waits until all that must have done it have, or with ack=local until the guest may
// be answered before. If run gives up waiting earlier, because ctx or the limit for losses ended, the mutation goes on
// without its caller, with its range locked: its outcome is open until every replica that may be in sync agrees.
func (h *holding) run(ctx context.Context, op *mutation) error {
	op.generation = h.generation.Load()
	op.aim(h.view.Load())
	h.send(op)
	if h.goAhead(op) {
		return nil
	}
	for i := range op.targets {
		h.await(&op.targets[i])
	}
	if op.complete() && h.sealDone(op) {
		data := op.group != allGroups
		op.settled = true
		op.finish()
		if data {
			return h.vouched(ctx)
		}
		return nil
	}
	return h.settle(ctx, op)
}

// send sends a mutation to all its targets, others first: their answers travel while this node's own replica is written.
func (h *holding) send(op *mutation) {
	for i := range op.targets {
		if t := &op.targets[i]; t.m.local == nil {
			h.sendTo(op, t)
		}
	}
	for i := range op.targets {
		if t := &op.targets[i]; t.m.local != nil {
			h.sendTo(op, t)
		}
	}
}

// sendTo sends a mutation to one replica, or applies it if the replica is on this node.
func (h *holding) sendTo(op *mutation, t *target) {
	t.done, t.err, t.call = false, nil, nil
	t.l = t.m.link.Load()
	if t.l == nil {
		return
	}
	t.msg = wire.Message{
		Kind: op.kind, Disk: h.d.id, Replica: t.m.Replica, Epoch: h.epoch, Session: t.l.session,
		Stamp: op.stamp, Offset: op.off, Payload: op.p,
	}
	if op.kind == wire.KindZero || op.kind == wire.KindDiscard {
		t.msg.Count = uint32(op.n)
	}
	if t.m.local != nil {
		t.err = h.applyLocal(op, t)
		t.done = t.err == nil
		return
	}
	if op.behind {
		t.again = t.l.again.Load() // before the batch ends
		t.msg.Layer, t.msg.Offset = t.l.endBatch()
	}
	t.slot = t.l.age(op.kind).begin()
	t.l.count(&t.msg)
	t.call = h.host.cfg.Peers.Start(t.l.ctx, t.m.Node, &t.msg, nil)
}

// age returns where requests of a kind are counted.
func (l *link) age(kind wire.Kind) *outstanding {
	if kind == wire.KindFlush {
		return &l.flushes
	}
	return &l.ops
}

func (h *holding) applyLocal(op *mutation, t *target) error {
	r, m := t.m.local, &t.msg
	switch op.kind {
	case wire.KindWrite:
		return r.rs.named(r.write(h.ctx, m.Epoch, m.Session, m.Layer, m.Payload, m.Offset, m.Stamp))
	case wire.KindZero, wire.KindDiscard:
		return r.rs.named(r.clear(h.ctx, m.Epoch, m.Session, m.Layer, m.Offset, op.n, m.Stamp, op.kind == wire.KindDiscard))
	}
	_, err := r.rs.do(m, nil)
	return err
}

// await takes in the answer of one replica.
func (h *holding) await(t *target) {
	if t.call == nil {
		return
	}
	_, t.err = t.call.Wait(t.l.ctx)
	t.l.age(t.msg.Kind).end(t.slot)
	t.call, t.msg.Payload = nil, nil
	if t.done = t.err == nil; !t.done {
		t.l.failed(t.msg.Kind)
	}
}

// complete says whether every replica it was sent to has done the mutation.
func (op *mutation) complete() bool {
	for i := range op.targets {
		if !op.targets[i].done {
			return false
		}
	}
	return true
}

// sealDone notes that a complete mutation is in volatile memory only, and says whether it still is there: not if a
// replica that had done it was adopted after a restart. A larger size is durable when a replica has told that it has it, and what nobody wrote
// need not be vouched for.
func (h *holding) sealDone(op *mutation) bool {
	if op.kind != wire.KindFlush && op.kind != wire.KindResize {
		h.unflushed.dirty()
	}
	return h.generation.Load() == op.generation && h.over.Load() == nil
}

// overloadPause is the pause before a request is sent again that was refused for want of room.
const overloadPause = 5 * time.Millisecond

// settle deals with replicas that did not do a mutation at once.
func (h *holding) settle(ctx context.Context, op *mutation) error {
	if err := h.refusal(op); err != nil {
		op.finish()
		return err
	}
	v := h.view.Load()
	limit, stop := h.lossLimit(v)
	defer stop()
	for {
		changed := h.change()
		missing, err := h.resend(op)
		if err != nil {
			op.finish()
			return err
		}
		if missing == 0 {
			if h.sealDone(op) {
				data := op.group != allGroups
				op.settled = true
				op.finish()
				if data {
					_, err = h.unsuspended(ctx, limit)
				}
				return err
			}
			op.restart(h)
			continue
		}
		var failed error
		select {
		case <-changed:
			continue
		case <-limit:
			failed = h.reason() // never nil: the last replica may come back just now
		case <-ctx.Done():
			failed = context.Cause(ctx)
		case <-h.ctx.Done():
			continue
		}
		h.orphan(op)
		return failed
	}
}

// restart makes every replica get the mutation again: one of them has lost its memory.
func (op *mutation) restart(h *holding) {
	op.generation = h.generation.Load()
	for i := range op.targets {
		op.targets[i].done, op.targets[i].l = false, nil
	}
}

// resend sends a mutation again to the replicas that are still needed, have not done it, and can be reached, and returns
// how many are left. An error ends the mutation.
func (h *holding) resend(op *mutation) (missing int, err error) {
	if err := h.err(); err != nil {
		return 0, err
	}
	v := h.view.Load()
	set := op.set(v)
	for i := range op.targets {
		t := &op.targets[i]
		if t.done || !slices.Contains(set, t.m) {
			continue
		}
		for !t.done {
			if t.err != nil && t.l != nil && t.m.link.Load() == t.l {
				// Refused in a session that stands.
				if errors.Is(t.err, ukai.ErrOverloaded) && t.l.ctx.Err() == nil {
					if t.full++; !h.sleep(overloadPause * time.Duration(min(t.full, 20))) {
						return 0, h.err()
					}
				} else if err := v.sole(op, t); err != nil {
					return 0, err
				} else {
					t.m.lost(t.l, t.err)
				}
			}
			if l := t.m.link.Load(); l == nil || l == t.l && !errors.Is(t.err, ukai.ErrOverloaded) {
				missing++
				break
			}
			if h.sendTo(op, t); t.l != nil {
				t.l.again.Add(1)
			}
			h.await(t)
		}
		if err := h.err(); err != nil {
			return 0, err
		}
	}
	return missing, nil
}

// sole returns the error of the only in-sync replica, if that settles the mutation: there is no other that could differ,
// and no other to go on with. A replica may be the only one of some blocks, and one of several of those that are written.
func (v *view) sole(op *mutation, t *target) error {
	for i := range v.groups {
		if g := &v.groups[i]; (op.group == allGroups || g == v.groupOf(op.claim.index)) && slices.Contains(g.ack, t.m) && g.possible > 1 {
			return nil
		}
	}
	if !v.last(t.m) || transient(t.err) || errors.Is(t.err, ukai.ErrFenced) || errors.Is(t.err, ukai.ErrRestarted) {
		return nil
	}
	return t.err
}

// refusal returns the error of a mutation that no replica has done, all for want of space. They are made equal again
// in its range, since each may have written part of it, and stay in sync.
func (h *holding) refusal(op *mutation) error {
	if len(op.targets) < 2 || op.kind == wire.KindFlush {
		return nil
	}
	for i := range op.targets {
		if !errors.Is(op.targets[i].err, ukai.ErrNoSpace) {
			return nil
		}
	}
	for i := range op.targets[1:] {
		if err := h.copyRange(h.ctx, op.targets[0].m, op.targets[1+i].m, op.off, op.n, op.stamp); err != nil {
			return nil //nolint:nilerr // the usual way: those that fail are dropped
		}
	}
	return op.targets[0].err
}

// orphan lets a mutation go on without its caller.
func (h *holding) orphan(op *mutation) {
	op.p = slices.Clone(op.p) // the caller's buffer is its own again
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		op.finish()
		return
	}
	h.ops.hold() // a release must not overlook it
	h.work.Go(func() {
		defer h.ops.leave()
		defer op.finish()
		_ = h.insist(op) // nobody waits for it
	})
}

// insist sends a mutation again and again until every replica that must have it does, or an error ends it.
func (h *holding) insist(op *mutation) error {
	for {
		changed := h.change()
		missing, err := h.resend(op)
		switch {
		case err != nil:
			return err
		case missing == 0 && h.sealDone(op):
			op.settled = true
			return nil
		case missing == 0:
			op.restart(h)
			continue
		}
		select {
		case <-changed:
		case <-h.ctx.Done():
		}
	}
}
