package volume

import (
	"errors"
	"fmt"
	"time"

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
	if x.s.max.flushes == 0 && x.s.max.losses == 0 {
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
				n.activated(c.lossy)
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
		c.in = x.verdict(y.seals()).set
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

// forget drops what was known of replicas that follow no more.
func (x *explorer) forget(y *xHost) {
	syncing := x.role(y.known, crdt.Syncing)
	y.dirty &= syncing
	y.owes &= syncing
	y.linked &= syncing | x.role(y.known, crdt.InSync)
	y.lasting &= syncing | x.role(y.known, crdt.InSync)
	if y.copying != 0 && syncing&xBit(int(y.copying)-1) == 0 {
		y.copying = 0
	}
}

// propose sets a change of the quorum record on its way.
func (x *explorer) propose(w *xWorld, h int, c xChange) {
	w.change[h] = c
	w.host[h].asked = true
}

// claim is T1 and T2.
func (x *explorer) claim(w *xWorld, h int, emit xEmit) {
	if w.change[h].op != 0 || x.epoch(w.rec) >= x.s.epochs {
		return
	}
	n := *w
	y := &n.host[h]
	*y = xHost{mode: xClaiming, epoch: x.epoch(w.rec) + 1, known: w.rec}
	c := x.change(h, y, xOpClaim)
	if x.s.mutation == "latticeclaim" {
		c.seen = w.rec
	}
	x.propose(&n, h, c)
	emit(n, "host %d claims epoch %d", h+1, y.epoch)
}

// seal is member.seal: the replica's answer, and a session with it.
func (x *explorer) seal(w *xWorld, h, r int) bool {
	y, p := &w.host[h], &w.replica[r]
	switch p.fence().onSeal(ukai.Epoch(y.epoch)) {
	case sealRefuse:
		return false
	case sealAdvance:
		p.epoch, p.session = y.epoch, 1
	}
	y.incarnation[r], y.session[r] = p.incarnation, max(y.session[r], p.session)
	if p.session == 0 && x.greet(w, h, r) != nil {
		return false
	}
	y.linked |= xBit(r)
	y.lasting &^= xBit(r)
	y.confirmed[r] = w.tick + 1
	return true
}

// greet is member.greet.
func (x *explorer) greet(w *xWorld, h, r int) error {
	y, p := &w.host[h], &w.replica[r]
	y.session[r]++
	sealed := y.incarnation[r]
	if x.s.mutation == "noinc" {
		sealed = p.incarnation
	}
	err := p.fence().onHello(ukai.Epoch(y.epoch), uint32(y.session[r]), xIncarnation(sealed), xIncarnation(p.incarnation))
	if err == nil {
		p.session = y.session[r]
		y.linked |= xBit(r)
	}
	return err
}

// recovery is T3 to T7.
func (x *explorer) recovery(w *xWorld, h int, emit xEmit) {
	y := &w.host[h]
	v := x.verdict(y.seals())
	for r := range x.s.replicas {
		if v.members&xBit(r) == 0 || y.sealed&xBit(r) != 0 || y.frozen && w.replica[r].epoch >= y.epoch {
			continue
		}
		n := *w
		if !x.seal(&n, h, r) {
			continue
		}
		z := &n.host[h]
		if s := y.seals(); !y.frozen {
			if y.sealed == 0 {
				z.first = w.tick
			}
			z.sealed |= xBit(r)
			x.answered(z, w, r)
		} else {
			s.stables[r] = w.replica[r].stable
			if x.late(s, r) {
				z.sealed |= xBit(r)
				x.answered(z, w, r)
				if y.suspect != 0 {
					z.todo |= xBit(r)
				}
			}
		}
		emit(n, "host %d seals replica %d", h+1, r+1)
	}
	if y.asked {
		return
	}
	if !x.reachesAll(w, h, y.sealed) {
		n := *w
		n.host[h] = xHost{}
		emit(n, "host %d gives up: a sealed replica has restarted", h+1)
		return
	}
	if !y.frozen {
		x.freeze(w, h, v, emit)
		return
	}
	if x.s.mutation == "earlystable" {
		for r := range x.s.replicas {
			if p := w.replica[r]; y.sealed&xBit(r) != 0 && y.todo == 0 && p.stable < xStamp(y.epoch, 0) {
				n := *w
				n.replica[r].stable = xStamp(y.epoch, 0)
				emit(n, "host %d announces early at replica %d", h+1, r+1)
			}
		}
	}
	for r := range x.s.replicas {
		if y.todo&xBit(r) == 0 {
			continue
		}
		n := *w
		p := &n.replica[r]
		p.stamp = max(p.stamp, y.suspect)
		p.durStamp = p.stamp
		p.mem = w.replica[y.authority].mem
		n.host[h].todo &^= xBit(r)
		emit(n, "host %d makes replica %d equal to %d", h+1, r+1, y.authority+1)
	}
	waits := time.Duration(w.tick)*xTick < v.wait && x.s.mutation != "nolease" && x.s.mutation != "noleasewait"
	if y.todo != 0 || waits {
		return
	}
	n := *w
	if !v.clean {
		for r := range x.s.replicas {
			if y.sealed&xBit(r) != 0 {
				n.replica[r].sync()
			}
		}
	}
	c := x.change(h, y, xOpActivate)
	c.in, c.lossy = v.set, y.lossy
	x.propose(&n, h, c)
	emit(n, "host %d activates with %03b", h+1, v.set)
}

// answered notes what the seal's answer says.
func (x *explorer) answered(z *xHost, w *xWorld, r int) {
	z.stables[r] = w.replica[r].stable
	if w.replica[r].unclean && x.s.mutation != "anyauthority" {
		z.unclean |= xBit(r)
	}
}

// freeze fixes the set, chooses the authority and lists what may differ.
func (x *explorer) freeze(w *xWorld, h int, v xVerdict, emit xEmit) {
	if !v.ready {
		return
	}
	var chosen uint8
	for prefer := range uint8(x.s.replicas + 1) {
		if x.s.local && prefer != uint8(h+1) {
			continue
		}
		n := *w
		y := &n.host[h]
		y.prefer, y.frozen = prefer, true
		v := x.verdict(y.seals())
		if chosen&xBit(v.authority) != 0 {
			continue
		}
		chosen |= xBit(v.authority)
		y.authority = uint8(v.authority)
		// Only if every replica that was sealed has lost power, whatever the takeover thinks.
		y.lossy = !v.clean
		for r := range x.s.replicas {
			if v.set&xBit(r) != 0 && !w.replica[r].unclean {
				y.lossy = false
			}
		}
		if v.lossy && !y.lossy && x.s.mutation == "" {
			x.problem = "a takeover calls itself lossy without need"
		}
		if v.recovers && x.s.mutation != "norecover" {
			var list []suspect
			for r := range x.s.replicas {
				if v.set&xBit(r) != 0 {
					list = mergeSuspects(list, w.replica[r].newer(v.watermark))
				}
			}
			if len(list) > 0 {
				y.suspect = xPacked(list[0].stamp)
				y.todo = v.set &^ xBit(v.authority)
			}
		}
		emit(n, "host %d freezes %03b, authority %d, suspect=%v lossy=%v", h+1, v.set, v.authority+1, y.suspect != 0, v.lossy)
	}
}

// guest is the guest's reads and writes.
func (x *explorer) guest(w *xWorld, h int, emit xEmit) {
	y := &w.host[h]
	s := x.sets(y)
	if w.writes < x.s.writes && !s.suspended && (y.free(true) || x.s.mutation == "readinflight" && y.value == 0 && y.copying == 0) && y.value == 0 {
		n := *w
		n.writes++
		z := &n.host[h]
		z.value, z.stamp, z.acks, z.targets = n.writes, xStamp(y.epoch, y.check), 0, s.ack
		n.invoke(z.value, x.deposed(w, y.epoch))
		room := true
		for r := range x.s.replicas {
			switch {
			case (s.ack|x.role(y.known, crdt.Syncing))&xBit(r) == 0:
			case y.owes&xBit(r) != 0 && x.s.mutation != "twoinflight":
				z.dirty |= xBit(r) // rule O: never two mutations of a range that one replica has not acknowledged
			case y.linked&xBit(r) != 0:
				room = n.send(xMessage{xWrite, uint8(h), uint8(r), y.epoch, y.session[r], z.value, z.stamp}) && room
			case s.ack&xBit(r) == 0:
				z.dirty |= xBit(r)
			}
		}
		if room {
			emit(n, "host %d writes %d", h+1, z.value)
		}
	}
	if y.value != 0 && x.complete(y, s) {
		n := *w
		z := &n.host[h]
		n.acknowledged(y.value)
		missed := x.role(y.known, crdt.Syncing) &^ y.acks &^ s.ack
		if x.s.mutation != "missedclean" {
			z.dirty |= missed
		}
		z.owes |= missed & y.linked
		z.value, z.targets, z.acks, z.stamp = 0, 0, 0, 0
		emit(n, "host %d acknowledges %d", h+1, y.value)
	}
	x.reads(w, h, s, emit)
}

// complete says whether a write may be acknowledged: mutation.complete and resend.
func (x *explorer) complete(y *xHost, s xSets) bool {
	in := x.role(y.known, crdt.InSync)
	switch x.s.mutation {
	case "ackearly":
		return y.acks&in != 0
	case "majority":
		return 2*xCount(y.acks&in) > xCount(in)
	}
	need := y.targets & s.ack
	return y.acks&need == need
}

func xCount(mask uint8) (n int) {
	for ; mask != 0; mask &= mask - 1 {
		n++
	}
	return n
}

// reads is holding.fromReplica: the answer counts only if, when it arrives, its replica certainly is in sync and the
// lease holds.
func (x *explorer) reads(w *xWorld, h int, s xSets, emit xEmit) {
	y := &w.host[h]
	readable := s.read
	if x.s.mutation == "readunion" {
		readable = s.ack
	}
	if y.reading != 0 {
		r := int(y.reading) - 1
		n := *w
		n.host[h].reading, n.host[h].read = 0, 0
		if readable&xBit(r) != 0 && x.leaseHolds(w, h) {
			if !y.fresh {
				n.monitor = xMonitor{}
			}
			emit(n, "host %d has read %d from replica %d", h+1, y.read, r+1)
		} else {
			emit(n, "host %d drops what it read from replica %d", h+1, r+1)
		}
		return
	}
	if !y.free(false) && x.s.mutation != "readinflight" {
		return
	}
	for r := range x.s.replicas {
		if readable&xBit(r) == 0 || !x.reaches(w, h, r) {
			continue
		}
		n := *w
		v := w.replica[r].mem
		if x.s.slowReads {
			n.host[h].reading, n.host[h].read = uint8(r)+1, v
			n.host[h].fresh = w.current()>>v&1 == 1
			emit(n, "host %d reads %d from replica %d, answer under way", h+1, v, r+1)
			continue
		}
		if !x.leaseHolds(w, h) {
			continue
		}
		if n.sees(v); n.monitor != w.monitor {
			emit(n, "host %d reads %d from replica %d", h+1, v, r+1)
		}
	}
}

// membership is shrink, join, copy and grow.
func (x *explorer) membership(w *xWorld, h int, emit xEmit) {
	y := &w.host[h]
	s := x.sets(y)
	quiet := w.change[h].op == 0 && !y.asked && y.proposed == 0 // reconfiguring, and nothing in doubt
	in, syncing := x.role(y.known, crdt.InSync), x.role(y.known, crdt.Syncing)
	for r := range x.s.replicas {
		b := xBit(r)
		if quiet && (in|syncing)&b != 0 && in != b && w.used.shrinks < x.s.max.shrinks {
			n := *w
			n.used.shrinks++
			z := &n.host[h]
			next := x.proposal(y, r, crdt.Out)
			if x.s.mutation == "gossipmap" {
				z.known = next // no arbiters: decided here, told later
				x.forget(z)
			} else {
				z.proposed = next
				c := x.change(h, y, xOpShrink)
				c.replica = uint8(r)
				if made := x.apply(c, y.known); made == 0 || x.role(made, crdt.InSync) != x.role(next, crdt.InSync) {
					x.problem = fmt.Sprintf("shrink by replica %d is foreseen otherwise than it comes", r+1)
				}
				x.propose(&n, h, c)
			}
			emit(n, "host %d shrinks by replica %d", h+1, r+1)
		}
		if quiet && (in|syncing)&b == 0 && w.used.joins < x.s.max.joins {
			n := *w
			n.used.joins++
			c := x.change(h, y, xOpJoin)
			c.replica = uint8(r)
			x.propose(&n, h, c)
			emit(n, "host %d joins replica %d", h+1, r+1)
		}
		if syncing&b == 0 || y.linked&b == 0 {
			continue
		}
		if y.dirty&b != 0 && s.ack&b == 0 && (y.owes&b == 0 || x.s.mutation == "twoinflight") && (y.free(true) || x.s.mutation == "copynolock" && y.copying == 0) {
			for q := range x.s.replicas {
				if s.read&xBit(q) == 0 || !x.reaches(w, h, q) {
					continue
				}
				n := *w
				n.host[h].copying = uint8(r) + 1
				if x.s.mutation == "copynolock" {
					n.host[h].copying = 0
					n.host[h].dirty &^= b
				}
				if n.send(xMessage{xCopy, uint8(h), uint8(r), y.epoch, y.session[r], w.replica[q].mem, w.replica[q].stamp}) {
					emit(n, "host %d copies %d from replica %d to %d", h+1, w.replica[q].mem, q+1, r+1)
				}
			}
		}
		// Drained, and waited for from now on; flushed; proposed.
		drained := y.value == 0 && y.copying == 0 || x.s.mutation == "grownodrain"
		if quiet && y.dirty&b == 0 && (y.owes&b == 0 || x.s.mutation == "twoinflight") && drained && x.reaches(w, h, r) {
			n := *w
			n.replica[r].sync()
			if x.s.mutation != "grownomust" {
				n.host[h].proposed = x.proposal(y, r, crdt.InSync)
			}
			c := x.change(h, y, xOpGrow)
			c.replica = uint8(r)
			x.propose(&n, h, c)
			emit(n, "host %d grows by replica %d", h+1, r+1)
		}
	}
}

// link begins sessions: with a replica that has joined, and anew with one that followed before.
func (x *explorer) link(w *xWorld, h, r int, emit xEmit) {
	y := &w.host[h]
	b := xBit(r)
	s := x.sets(y)
	syncing := x.role(y.known, crdt.Syncing)
	if (s.ack|syncing)&b == 0 || y.lasting&b != 0 {
		return
	}
	if syncing&b != 0 && y.linked&b == 0 {
		n := *w
		x.introduce(&n, h, r, s, emit)
		return
	}
	if w.used.reconnects >= x.s.max.reconnects {
		return
	}
	n := *w
	n.used.reconnects++
	z := &n.host[h]
	var restarted bool
	switch err := x.greet(&n, h, r); {
	case err == nil:
		if y.copying == uint8(r)+1 {
			z.copying = 0 // what is left of the copy is fenced off; the block stays dirty
		}
		z.owes &^= b
		if y.value != 0 && y.acks&b == 0 && (s.ack&b != 0 || y.dirty&b == 0) && !n.send(xMessage{xWrite, uint8(h), uint8(r), y.epoch, z.session[r], y.value, y.stamp}) {
			return
		}
	case errors.Is(err, ukai.ErrRestarted):
		restarted = true
		z.lasting |= b
		z.linked &^= b
		if y.copying == uint8(r)+1 {
			z.copying = 0
		}
	default:
		return // deposed, which it learns by itself
	}
	emit(n, "host %d greets replica %d, restarted=%v", h+1, r+1, restarted)
}

// introduce is J2 and J3 for a replica that has joined: seal it, begin a session that no earlier request of this holder
// is in, and find what it may lack.
func (x *explorer) introduce(n *xWorld, h, r int, s xSets, emit xEmit) {
	y := &n.host[h]
	b := xBit(r)
	again := n.replica[r].fence().onSeal(ukai.Epoch(y.epoch)) == sealAgain && n.replica[r].session != 0
	if !x.seal(n, h, r) || again && x.greet(n, h, r) != nil {
		return
	}
	y.owes &^= b
	authority := -1
	for q := range x.s.replicas {
		if s.read&xBit(q) != 0 && x.reaches(n, h, q) {
			authority = q
		}
	}
	if authority < 0 {
		return
	}
	p := &n.replica[r]
	list := n.replica[authority].newer(p.stable)
	if x.s.mutation != "dirtyauthonly" {
		list = mergeSuspects(list, p.newer(p.stable))
	}
	y.dirty &^= b
	if len(list) > 0 {
		y.dirty |= b
	}
	emit(*n, "host %d introduces replica %d, dirty=%v", h+1, r+1, y.dirty&b != 0)
}

// flush is the guest's flush, which is a checkpoint too, and release.
func (x *explorer) flush(w *xWorld, h int, emit xEmit) {
	y := &w.host[h]
	s := x.sets(y)
	if y.flushing {
		for r := range x.s.replicas {
			if b := xBit(r); y.flushTargets&s.ack&b != 0 && y.flushed&b == 0 && x.reaches(w, h, r) {
				n := *w
				n.replica[r].sync()
				n.host[h].flushed |= b
				emit(n, "host %d flushes replica %d", h+1, r+1)
			}
		}
		if need := y.flushTargets & s.ack; y.flushed&need == need {
			n := *w
			z := &n.host[h]
			if !x.deposed(w, y.epoch) {
				n.since = y.flushSince
			}
			z.stable = xStamp(y.epoch, y.check-1)
			z.flushing, z.flushed, z.flushTargets, z.flushSince = false, 0, 0, 0
			emit(n, "host %d has flushed", h+1)
		}
		return
	}
	if w.used.flushes < x.s.max.flushes && y.value == 0 && y.check < 7 {
		n := *w
		n.used.flushes++
		z := &n.host[h]
		z.flushing, z.flushTargets, z.flushSince = true, s.ack, w.current()
		z.check++
		emit(n, "host %d begins to flush", h+1)
	}
	if x.s.release && y.value == 0 && y.reading == 0 && y.copying == 0 && w.change[h].op == 0 && x.reachesAll(w, h, s.ack) {
		for _, told := range []uint8{0, s.ack} {
			n := *w
			for r := range x.s.replicas {
				p := &n.replica[r]
				if s.ack&xBit(r) != 0 && x.s.mutation != "releasedirty" {
					p.sync()
				}
				if told&xBit(r) != 0 {
					p.stable, p.unclean = max(p.stable, xStamp(y.epoch, y.check)), false
				}
			}
			if !x.deposed(w, y.epoch) {
				n.since = w.current()
			}
			x.propose(&n, h, x.change(h, y, xOpRelease))
			n.host[h] = xHost{}
			emit(n, "host %d releases, announced=%v", h+1, told != 0)
		}
	}
}

// heartbeat renews the lease and announces what is stable: member.beat, hosted.beat, member.confirmed.
func (x *explorer) heartbeat(w *xWorld, h, r int, emit xEmit) {
	y := &w.host[h]
	told := x.sets(y).ack
	if (told|x.role(y.known, crdt.Syncing))&xBit(r) == 0 {
		return
	}
	if x.s.mutation == "stablesyncing" {
		told |= xBit(r)
	}
	n := *w
	p, z := &n.replica[r], &n.host[h]
	var session, stable uint8
	if y.linked&xBit(r) != 0 {
		session, stable = y.session[r], y.stable
	}
	confirm, take := p.fence().onHeartbeat(ukai.Epoch(y.epoch), uint32(session))
	if x.s.mutation == "stablenosession" {
		take = confirm
	}
	// A syncing replica lacks blocks: to it nothing is stable.
	if take && stable != 0 && told&xBit(r) != 0 && (x.s.max.flushes > 0 || x.s.max.losses > 0) {
		p.stable, p.unclean = max(p.stable, stable), false
	}
	if confirm {
		z.confirmed[r] = w.tick + 1
	}
	if n != *w {
		emit(n, "host %d beats, replica %d confirms=%v stable=%v", h+1, r+1, confirm, p.stable)
	}
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
