package volume

import (
	"fmt"

	"ukai"
	"ukai/crdt"
)

// What the holder does for its guest: reads, writes, flushes, and what keeps the lease.

// guest is the guest's reads and writes.
func (x *explorer) guest(w *xWorld, h int, emit xEmit) {
	y := &w.host[h]
	s := x.sets(y)
	if w.writes < x.s.writes && !s.suspended && (y.free(true) || x.s.mutation == "readinflight" && y.value == 0 && y.copying == 0) && y.value == 0 {
		n := *w
		n.writes++
		z := &n.host[h]
		z.value, z.stamp, z.acks, z.targets = n.writes, xStamp(y.epoch, y.check), 0, s.ack
		z.redoing = s.ack&^y.linked != 0
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
	if x.acksLocally(w, h, s) {
		n := *w
		n.host[h].told = true
		n.risk = !x.deposed(w, y.epoch)
		n.acknowledged(y.value)
		emit(n, "host %d acknowledges %d, applied here", h+1, y.value)
	}
	if y.unvouched != 0 && !s.suspended {
		n := *w
		for v := range uint8(8) {
			if y.unvouched>>v&1 == 1 {
				n.acknowledged(v)
			}
		}
		n.host[h].unvouched = 0
		if y.value == 0 {
			x.vouched(&n, h)
		}
		emit(n, "host %d acknowledges what waited for min-sync", h+1)
	}
	if y.value != 0 && x.complete(y, s) {
		n := *w
		z := &n.host[h]
		switch {
		case y.told:
			if x.epoch(w.rec) == y.epoch {
				n.risk = false
			}
		case s.suspended && x.s.mutation != "ackbelow":
			z.unvouched |= 1 << y.value
		default:
			n.acknowledged(y.value)
			x.vouched(&n, h)
		}
		z.told = false
		missed := x.role(y.known, crdt.Syncing) &^ y.acks &^ s.ack
		if x.s.mutation != "missedclean" {
			z.dirty |= missed
		}
		z.owes |= missed & y.linked
		z.value, z.targets, z.acks, z.stamp, z.redoing = 0, 0, 0, 0, false
		emit(n, "host %d acknowledges %d, told before=%v", h+1, y.value, y.told)
	}
	x.reads(w, h, s, emit)
}

// vouched holds min-sync: when a guest is told of a write, so many replicas have what its block holds. No other write is under way.
func (x *explorer) vouched(w *xWorld, h int) {
	y := &w.host[h]
	if y.told || y.known != w.rec {
		return
	}
	have, first := 0, -1
	for r := range x.s.replicas {
		p := &w.replica[r]
		switch {
		case x.role(w.rec, crdt.InSync)&xBit(r) == 0:
		case p.unclean: // it has had it
			have++
		case first < 0 || p.mem == w.replica[first].mem:
			first = r
			have++
		}
	}
	if min := x.records[w.rec].MinSync; have < min {
		x.problem = fmt.Sprintf("a write is acknowledged with %d replicas that have it, min-sync is %d", have, min)
	}
}

// acksLocally says whether the guest may be answered though only the replica on its own node has the write: that is what
// ack=local adds: holding.goAhead. The replica must certainly be in sync and be named in the record, and the lease must hold,
// for a successor that could not seal this node's replica has waited for the lease only.
func (x *explorer) acksLocally(w *xWorld, h int, s xSets) bool {
	y := &w.host[h]
	ahead := s.ahead == uint8(h)+1
	switch x.s.mutation {
	case "localindoubt":
		ahead = s.ack&xBit(h) != 0
	case "localunnamed":
		ahead = s.read&xBit(h) != 0
	}
	return x.s.ackLocal && y.value != 0 && !y.told && ahead && y.acks&xBit(h) != 0 && (x.leaseHolds(w, h) || x.s.mutation == "localnolease")
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
	if y.behind() && x.s.mutation != "localreadany" {
		readable &= xBit(h) // the others may not have what the guest was told of
	}
	readable |= x.near(y, h)
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

// near is a replica on the holder's node that may be read though it is not in sync yet, because it lacks and owes nothing of the range: following.has.
func (x *explorer) near(y *xHost, h int) uint8 {
	b := xBit(h)
	lacks, owes := y.dirty&b != 0, y.owes&b != 0
	for _, rec := range []uint16{y.known, y.proposed} { // not while it may be dropped
		if rec != 0 && (x.role(rec, crdt.Syncing)|x.role(rec, crdt.InSync))&b == 0 {
			return 0
		}
	}
	if !x.s.local || x.role(y.known, crdt.Syncing)&y.linked&b == 0 || lacks && x.s.mutation != "nearlacking" || owes {
		return 0
	}
	return b
}

// flush is the guest's flush, which is a checkpoint too, and release.
func (x *explorer) flush(w *xWorld, h int, emit xEmit) {
	y := &w.host[h]
	s := x.sets(y)
	if y.flushing {
		uncounted := y.uncounted
		if x.s.mutation == "behinduncounted" {
			uncounted = 0
		}
		for r := range x.s.replicas {
			if b := xBit(r); y.flushTargets&s.ack&b != 0 && y.flushed&b == 0 && uncounted&b == 0 && x.reaches(w, h, r) {
				n := *w
				n.replica[r].sync()
				n.host[h].flushed |= b
				emit(n, "host %d flushes replica %d", h+1, r+1)
			}
		}
		again := (y.again || s.ack != y.flushTargets) && x.s.mutation != "behindredone"
		if y.flushBehind != 0 && again && y.value == 0 {
			n := *w
			z := &n.host[h]
			z.flushed, z.flushTargets, z.flushBehind, z.uncounted, z.again = 0, s.ack, 0, 0, false
			emit(n, "host %d flushes again, behind no write", h+1)
		}
		if need := y.flushTargets & s.ack; y.flushed&need == need && (y.flushBehind == 0 || y.value != y.flushBehind && !again) {
			n := *w
			z := &n.host[h]
			z.flushBehind, z.uncounted, z.again = 0, 0, false
			if !x.deposed(w, y.epoch) {
				n.since = y.flushSince
			}
			z.stable = xStamp(y.epoch, y.check-1)
			z.flushing, z.flushed, z.flushTargets, z.flushSince = false, 0, 0, 0
			emit(n, "host %d has flushed", h+1)
		}
		return
	}
	if w.used.flushes < x.s.max.flushes && (y.value == 0 || y.told && x.s.mutation == "localnodrain") && y.check < 7 {
		n := *w
		n.used.flushes++
		z := &n.host[h]
		z.flushing, z.flushTargets, z.flushSince = true, s.ack, w.current()
		z.check++
		emit(n, "host %d begins to flush", h+1)
	}
	if w.used.flushes < x.s.max.flushes && x.s.ackLocal && y.told && !y.redoing && s.ack&^y.linked == 0 && y.check < 7 { // holding.flushBehind
		n := *w
		n.used.flushes++
		z := &n.host[h]
		z.flushing, z.flushTargets, z.flushSince, z.flushBehind = true, s.ack, w.current(), y.value
		for r := range x.s.replicas {
			if s.ack&xBit(r) != 0 && w.replica[r].mem != y.value {
				z.uncounted |= xBit(r)
			}
		}
		z.check++
		emit(n, "host %d begins to flush behind %d", h+1, y.value)
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
	switch x.s.mutation {
	case "stablenosession":
		confirm = p.epoch == y.epoch
		take = confirm
	case "beatnosession":
		confirm = p.epoch == y.epoch
	}
	if confirm && session != 0 && p.incarnation != y.incarnation[r] && x.s.mutation != "stablenosession" {
		x.problem = fmt.Sprintf("replica %d, which has lost power since, confirms a session of host %d", r+1, h+1)
	}
	if !confirm && session != 0 && p.epoch == y.epoch { // it has restarted: the session is given up
		z.linked &^= xBit(r)
		if z.copying == uint8(r)+1 {
			z.copying = 0
		}
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
