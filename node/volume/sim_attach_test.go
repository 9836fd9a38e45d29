package volume

import (
	"errors"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// Attaching, handing over, taking over and letting go: attach.go, equalise.go and release in disk.go.

// become is Disk.become.
func (n *sNode) become(how claiming) error {
	w, pause := n.w, minAttachPause
	until := w.now + 30*time.Second
	w.lock(&n.turn)
	defer w.unlock(&n.turn)
	if n.hold != nil && n.hold.over == nil {
		return nil
	}
	n.hold = nil
	seen := n.view
	known := true
	for {
		err := n.tryBecome(how, &seen, known)
		if err == nil || !surprising(err) {
			return err
		}
		known = false
		if w.now > until {
			return err
		}
		pause = min(2*pause, maxAttachPause)
		w.sleep(w.between(pause/2, pause))
	}
}

// free is sighting.free.
func (n *sNode) free(rec *crdt.Record) bool {
	return (&sighting{rec: *rec}).free(n.id)
}

// tryBecome is Disk.tryBecome.
func (n *sNode) tryBecome(how claiming, seen *crdt.Record, known bool) (err error) {
	w := n.w
	if !known {
		if *seen, err = n.propose(cell.Identity{}); err != nil {
			return err
		}
	}
	if err := n.clear(how, seen, !known); err != nil {
		return err
	}
	w.nonces++
	claim := cell.Claim{Node: n.id, Nonce: ukai.Nonce{byte(n.n), byte(w.nonces), byte(w.nonces >> 8)}, After: seen.Epoch}
	claimed, err := n.settled(claim)
	switch {
	case errors.Is(err, ukai.ErrRejected):
		return &surprise{err}
	case err != nil:
		return err
	}
	h := newSHold(n, claimed)
	if err := h.recover(); err != nil {
		h.end(err)
		return err
	}
	h.serve()
	return nil
}

// clear is Disk.clear.
func (n *sNode) clear(how claiming, seen *crdt.Record, fresh bool) (err error) {
	w := n.w
	if n.free(seen) {
		return nil
	}
	if !fresh {
		if *seen, err = n.propose(cell.Identity{}); err != nil || n.free(seen) {
			return err
		}
	}
	holder := w.node(seen.Holder)
	_, asked := w.wait(w.call(n, holder, false, func() (any, error) { return nil, holder.yieldDisk() }), w.now+yieldFor)
	switch {
	case asked == nil, errors.Is(asked, ukai.ErrNotAttached):
		by := seen.Holder
		if *seen, err = n.propose(cell.Identity{}); err != nil {
			return err
		}
		if n.free(seen) || seen.Holder == by && asked != nil {
			return nil //nolint:nilerr // asked says that nobody holds it
		}
		return &surprise{ukai.ErrHeld}
	case how == claimForced, !holder.up:
		return nil
	}
	return ukai.ErrHeld
}

// yieldDisk is Disk.Yield.
func (n *sNode) yieldDisk() error {
	w := n.w
	if n.wanted {
		return ukai.ErrHeld
	}
	w.lock(&n.turn)
	defer w.unlock(&n.turn)
	if n.hold == nil {
		return ukai.ErrNotAttached
	}
	return n.release()
}

// recover is holding.recover.
func (h *sHold) recover() error {
	w, rec := h.w, h.sets.known
	t := newTakeover(rec, 0)
	for _, m := range h.members {
		if m.node == h.n {
			t.prefer = m.Replica
		}
	}
	if err := h.sealAll(t); err != nil {
		return err
	}
	if err := t.freeze(); err != nil {
		return &surprise{err}
	}
	if w.broken("lateseal") {
		t.frozen = false
	}
	lossy := false
	for i := range rec.Groups {
		g := rec.Groups[i].ID
		set := t.set(g)
		if w.broken("anyauthority") || w.broken("newest") {
			for i := range set {
				if w.broken("newest") && h.node(set[i]).changes > h.node(set[0]).changes || w.broken("anyauthority") && w.chance(0.5) {
					set[0], set[i] = set[i], set[0]
				}
			}
		}
		lossy = lossy || t.lossy(g)
		if t.recovers(g) && !w.broken("norecover") {
			if err := h.recoverGroup(t, g, set); err != nil {
				return &surprise{err}
			}
		}
	}
	for _, m := range h.members {
		if _, ok := t.sealed[m.Replica]; ok && w.broken("earlystable") {
			_ = m.sync()
			_, _ = m.command(func(r *sReplica, session uint32) (any, error) {
				return nil, r.beat(beat{Epoch: h.epoch, Session: session, Stable: ukai.BlockStamp{Epoch: h.epoch}})
			})
		}
	}
	if !rec.Clean {
		for _, m := range h.members {
			if _, ok := t.sealed[m.Replica]; !ok {
				continue
			}
			if err := m.sync(); err != nil {
				return &surprise{err}
			}
		}
	}
	if until := t.leaseEnds(w.broken("noleasewait") || w.broken("nolease")); until > 0 {
		w.sleep(h.n.until(until) - w.now)
	}
	if lossy {
		w.note("n%d: epoch %v recovers from replicas that have all lost power", h.n.n, h.epoch)
	}
	w.lossy[h.epoch] = lossy
	active, err := h.n.settled(cell.Activate{Epoch: h.epoch, Nonce: h.nonce, Version: rec.Version, InSync: t.replicas()})
	switch {
	case errors.Is(err, ukai.ErrRejected):
		return &surprise{err}
	case err != nil:
		return err
	}
	h.sets.resolve(active)
	return nil
}

func (h *sHold) node(e sealed) *sReplica { return h.w.node(e.member.Node).replica(e.member.Replica) }

// sealAll is holding.sealAll and sealOne.
func (h *sHold) sealAll(t *takeover) error {
	w := h.w
	var news sSignal
	var fatal error
	scope := &sScope{up: h.scope, node: h.n}
	for _, m := range h.members {
		w.spawn(scope, func() {
			for {
				sent := h.n.clock()
				reply, err := m.seal(w.now + sealWait)
				if err != nil && transient(err) {
					w.sleep(minMendPause)
					continue
				}
				fenced := (*ukai.FencedError)(nil)
				switch {
				case err == nil:
					t.onSealed(h.n.clock(), sent, m.Member, reply)
					h.lease.confirm(m.Replica, sent)
				case errors.As(err, &fenced) && fenced.Epoch > h.epoch:
					fatal = err
				default:
					t.onLost(m.Member, err)
				}
				w.broadcast(&news)
				return
			}
		})
	}
	limit := w.now + 30*time.Second
	for {
		until, more := t.wait(h.n.clock())
		switch {
		case fatal != nil:
			w.kill(scope)
			return &surprise{fatal}
		case !more:
			if !w.broken("lateseal") {
				w.kill(scope)
			}
			return nil
		case w.now >= limit:
			w.kill(scope)
			return ukai.ErrTimeout
		}
		w.await(&news, min(limit, h.n.until(min(until, 1<<50))))
	}
}

// recoverGroup is holding.recoverGroup and equalise.
func (h *sHold) recoverGroup(t *takeover, group uint8, set []sealed) error {
	k, l := t.watermark(group), newLayout(&t.rec)
	var list []suspect
	for _, e := range set {
		more, err := h.member(e.member.Replica).suspects(k)
		if err != nil {
			return err
		}
		list = mergeSuspects(list, more)
	}
	from := h.member(set[0].member.Replica)
	for _, s := range list {
		off := int64(s.index) * sBlockSize
		if of, _ := l.groupAt(s.index); of != group {
			continue
		}
		for _, e := range set[1:] {
			m := h.member(e.member.Replica)
			if err := m.put(off, off+1, nil, s.stamp); err != nil {
				return err
			}
			want, err := from.hashes(off, off+sBlockSize)
			if err != nil {
				return err
			}
			have, err := m.hashes(off, off+sBlockSize)
			if err != nil {
				return err
			}
			for c := range want.chunks {
				if want.chunks[c] == have.chunks[c] {
					continue
				}
				at := off + int64(c)*ukai.ChunkSize
				vals, err := from.get(at, at+ukai.ChunkSize)
				if err == nil {
					err = m.put(at, at+ukai.ChunkSize, vals, s.stamp)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// serve is holding.serve.
func (h *sHold) serve() {
	h.serving = true
	h.stable = ukai.BlockStamp{Epoch: h.epoch}
	h.rebuild()
	for _, m := range h.members { // out of reach since it was sealed
		if m.link == nil && h.needs(m.Replica) && !m.mending {
			m.mending = true
			h.w.spawn(h.scope, m.mend)
		}
	}
	h.n.hold = h
	h.w.spawn(h.scope, h.tick)
	h.w.spawn(h.scope, h.reconcile)
	h.w.note("%v serves", h)
}

// release is Disk.release. The caller has the turn.
func (n *sNode) release() error {
	w, h := n.w, n.hold
	if h == nil {
		return nil
	}
	if h.over != nil {
		n.hold = nil
		return nil
	}
	defer func() {
		h.end(ukai.ErrNotAttached)
		if n.hold == h {
			n.hold = nil
		}
	}()
	h.stopped, h.closing = true, true
	if h.following != nil {
		h.following.suspend()
		h.rebuild()
	}
	w.broadcast(&h.changed)
	for until := w.now + 10*time.Second; h.ops > 0 && h.over == nil; {
		if w.now >= until {
			return ukai.ErrTimeout
		}
		w.await(&h.idle, until)
	}
	if h.over != nil {
		return nil
	}
	w.lock(&h.checking) // for good
	if h.over != nil {
		return nil
	}
	if h.check.stamp.Check > 1 || h.check.touched.count.Load() > 0 {
		h.dirty = true
	}
	if !w.broken("releasedirty") {
		if err := h.flush(); err != nil {
			return err
		}
	}
	h.stable = h.check.stamp
	for _, m := range h.view.all {
		m.heartbeat()
	}
	w.sleep(w.between(0, announceFor/50))
	h.end(ukai.ErrNotAttached)
	n.hold = nil
	_, _ = n.propose(cell.Release{Epoch: h.epoch, Nonce: h.nonce})
	return nil
}
