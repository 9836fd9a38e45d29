package volume

import (
	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// xEmit takes a state that may follow, and what happened.
type xEmit func(w xWorld, format string, args ...any)

// send puts a message into the net, if there is room.
func (w *xWorld) send(m xMessage) bool {
	if w.net[xMessages-1].kind != 0 {
		return false
	}
	w.net[xMessages-1] = m
	w.sort()
	return true
}

func (w *xWorld) remove(i int) {
	w.net[i] = xMessage{}
	w.sort()
}

func (m *xMessage) order() uint64 {
	return uint64(m.kind)<<48 | uint64(m.host)<<40 | uint64(m.replica)<<32 | uint64(m.epoch)<<24 | uint64(m.session)<<16 | uint64(m.value)<<8 | uint64(m.stamp)
}

func (w *xWorld) sort() {
	for i := 1; i < xMessages; i++ {
		for j := i; j > 0 && w.net[j].order() > w.net[j-1].order(); j-- {
			w.net[j], w.net[j-1] = w.net[j-1], w.net[j]
		}
	}
}

// admits is what a replica's fence says of a holder's request.
func (x *explorer) admits(w *xWorld, r int, epoch, session uint8) bool {
	f := w.replica[r].fence()
	switch x.s.mutation {
	case "nofence":
		return true
	case "nosession":
		session = uint8(f.session)
	}
	return f.admits(ukai.Epoch(epoch), uint32(session)) == nil
}

// reaches says whether a holder's request in the session that stands is admitted.
func (x *explorer) reaches(w *xWorld, h, r int) bool {
	y := &w.host[h]
	return y.linked&xBit(r) != 0 && x.admits(w, r, y.epoch, y.session[r])
}

func (x *explorer) reachesAll(w *xWorld, h int, set uint8) bool {
	for r := range x.s.replicas {
		if set&xBit(r) != 0 && !x.reaches(w, h, r) {
			return false
		}
	}
	return true
}

func (p *xReplica) sync() { p.dur, p.durStamp = p.mem, p.stamp }

// normalise drops what can have no effect any more.
func (x *explorer) normalise(w *xWorld) {
	if x.s.max.flushes == 0 && x.s.max.losses == 0 && !x.s.ackLocal {
		w.since = 0
	}
	for i := 0; i < xMessages && w.net[i].kind != 0; {
		m := w.net[i]
		y := &w.host[m.host]
		r := int(m.replica)
		dead := false
		switch m.kind {
		case xWrite, xCopy:
			// A refusal is for ever: epochs grow, and sessions of an epoch are never used again.
			dead = !x.admits(w, r, m.epoch, m.session)
		case xAck:
			dead = y.mode != xActive || y.epoch != m.epoch || y.session[r] != m.session || y.linked&xBit(r) == 0 || m.value != y.value && y.owes&xBit(r) == 0
		case xCopied:
			dead = y.mode != xActive || y.epoch != m.epoch || y.session[r] != m.session || y.copying != m.replica+1
		}
		if dead {
			w.remove(i)
		} else {
			i++
		}
	}
	for h := range w.host {
		// An answer under way may be of any moment since it was asked for.
		if y := &w.host[h]; y.reading != 0 && !y.fresh {
			y.fresh = w.current()>>y.read&1 == 1
		}
	}
	for h := range w.change {
		// So is the refusal of a change by its guards: versions and epochs grow.
		if c := w.change[h]; c.op != 0 && x.apply(c, w.rec) == 0 {
			w.change[h] = xChange{}
		}
	}
}

// next emits every state that can follow.
func (x *explorer) next(w *xWorld, emit xEmit) {
	for h := range xHosts {
		x.arbiters(w, h, emit)
		y := &w.host[h]
		if y.mode != xIdle && x.epoch(w.rec) == y.epoch && w.used.crashes < x.s.max.crashes {
			n := *w
			n.used.crashes++
			n.host[h] = xHost{}
			emit(n, "host %d crashes", h+1)
		}
		switch y.mode {
		case xIdle:
			x.claim(w, h, emit)
			continue
		case xClaiming:
			continue
		}
		if x.epoch(w.rec) > y.epoch {
			n := *w
			n.host[h] = xHost{}
			emit(n, "host %d learns that it is deposed", h+1)
		}
		if y.mode == xClaimed {
			x.recovery(w, h, emit)
			continue
		}
		x.guest(w, h, emit)
		x.membership(w, h, emit)
		x.flush(w, h, emit)
		for r := range x.s.replicas {
			x.link(w, h, r, emit)
			x.heartbeat(w, h, r, emit)
		}
	}
	x.network(w, emit)
	for r := range x.s.replicas {
		x.replicaFails(w, r, emit)
	}
	if w.used.ticks < x.s.max.ticks {
		n := *w
		n.used.ticks++
		n.tick++
		emit(n, "time passes: every lease confirmed before is over")
	}
}

// arbiters lets a change of the quorum record take effect, get lost, or its proposer learn of it.
func (x *explorer) arbiters(w *xWorld, h int, emit xEmit) {
	y := &w.host[h]
	if c := w.change[h]; c.op != 0 {
		n := *w
		n.change[h] = xChange{}
		emit(n, "host %d: %v is lost", h+1, c.real())
		if next := x.apply(c, w.rec); next != 0 {
			n := n
			n.rec = next
			if c.op == xOpActivate {
				n.activated(c.lossy || c.lost && w.risk)
				n.risk = false
			}
			if y.asked {
				n.host[h].reply = next
			}
			emit(n, "host %d: %v is committed, in sync %03b", h+1, c.real(), x.role(next, crdt.InSync))
		}
		return
	}
	if !y.asked {
		return
	}
	if y.reply != 0 {
		n := *w
		x.learn(&n, h, y.reply)
		emit(n, "host %d learns version %d", h+1, x.records[y.reply].Version)
	}
	if y.reply != w.rec {
		n := *w
		x.learn(&n, h, w.rec)
		emit(n, "host %d reads version %d", h+1, x.records[w.rec].Version)
	}
}

// learn is what a host does with a committed record, all its own proposals being settled: Disk.settled and
// holding.resolved.
func (x *explorer) learn(w *xWorld, h int, number uint16) {
	y := &w.host[h]
	rec := x.records[number]
	y.asked, y.reply = false, 0
	switch y.mode {
	case xClaiming:
		nonce := ukai.Nonce{uint8(h) + 1, y.epoch}
		if !(cell.Claim{Node: xNode(uint8(h)), Nonce: nonce, After: ukai.Epoch(y.epoch - 1)}).Done(*rec) || uint8(rec.Epoch) != y.epoch {
			*y = xHost{}
			return
		}
		*y = xHost{mode: xClaimed, epoch: y.epoch, known: number}
	case xClaimed:
		c := x.change(h, y, xOpActivate)
		v := x.verdict(y.seals())
		c.in, c.ahead = v.set, v.ahead
		if !c.real().Done(*rec) {
			*y = xHost{}
			return
		}
		*y = xHost{
			mode: xActive, epoch: y.epoch, known: number, linked: y.linked, session: y.session, incarnation: y.incarnation,
			confirmed: y.confirmed, check: 1, stable: xStamp(y.epoch, 0),
		}
		// A replica that was sealed too late has a session too, but is out: it must be introduced like any other.
		if x.s.mutation != "lateknown" {
			x.forget(y)
		}
	case xActive:
		if uint8(rec.Epoch) > y.epoch {
			*y = xHost{}
			return
		}
		if rec.Version >= x.records[y.known].Version {
			y.known = number
		}
		y.proposed = 0
		x.forget(y)
	}
}

// propose sets a change of the quorum record on its way.
func (x *explorer) propose(w *xWorld, h int, c xChange) {
	w.change[h] = c
	w.host[h].asked = true
}

// network delivers messages.
func (x *explorer) network(w *xWorld, emit xEmit) {
	for i := range w.net {
		m := w.net[i]
		if m.kind == 0 {
			return
		}
		if i > 0 && w.net[i-1] == m {
			continue
		}
		n := *w
		n.remove(i)
		r := int(m.replica)
		p, y := &n.replica[r], &n.host[m.host]
		mine := y.mode == xActive && y.epoch == m.epoch && y.session[r] == m.session && y.linked&xBit(r) != 0
		switch m.kind {
		case xWrite, xCopy:
			if !x.admits(w, r, m.epoch, m.session) {
				continue
			}
			p.stamp = max(p.stamp, m.stamp)
			if x.s.mutation != "stamplazy" {
				p.durStamp = p.stamp
			}
			p.mem = m.value
			if mine && m.kind == xWrite && m.value == y.flushBehind {
				y.uncounted &^= xBit(r)
			}
			if mine {
				kind := xAck
				if m.kind == xCopy {
					kind = xCopied
				}
				n.send(xMessage{kind, m.host, m.replica, m.epoch, m.session, m.value, 0})
			}
			emit(n, "replica %d applies %d of host %d, epoch %d", r+1, m.value, m.host+1, m.epoch)
		case xAck:
			if mine && y.value == m.value {
				y.acks |= xBit(r)
			} else if mine {
				y.owes &^= xBit(r)
			}
			emit(n, "host %d gets the acknowledgement of %d by replica %d", m.host+1, m.value, r+1)
		case xCopied:
			if mine && y.copying == m.replica+1 {
				y.copying = 0
				y.dirty &^= xBit(r)
			}
			emit(n, "host %d learns that replica %d has the copy", m.host+1, r+1)
		}
	}
}

// replicaFails is power losses, with and without what was in memory, and restarts of the process.
func (x *explorer) replicaFails(w *xWorld, r int, emit xEmit) {
	p := &w.replica[r]
	if w.used.losses < x.s.max.losses {
		for _, kept := range []bool{true, false} {
			if !kept && p.mem == p.dur && p.stamp == p.durStamp {
				continue
			}
			n := *w
			n.used.losses++
			q := &n.replica[r]
			if kept {
				q.dur = q.mem
			} else {
				q.mem = q.dur
			}
			if x.s.mutation == "stamplazy" {
				q.stamp = q.durStamp
			}
			q.incarnation++
			q.unclean = true
			if x.s.mutation != "noinc" {
				q.session = 0
			}
			if x.s.ackLocal && r < xHosts {
				n.host[r] = xHost{} // one machine
			}
			emit(n, "replica %d loses power, has %d", r+1, q.mem)
		}
	}
	if w.used.restarts < x.s.max.restarts && p.session != 0 {
		n := *w
		n.used.restarts++
		n.replica[r].session = 0
		emit(n, "replica %d's process restarts", r+1)
	}
}
