package volume

import (
	"errors"
	"fmt"

	"ukai"
	"ukai/crdt"
)

// How replicas leave and join the in-sync set.

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

// membership is shrink, join, copy and grow.
func (x *explorer) membership(w *xWorld, h int, emit xEmit) {
	y := &w.host[h]
	s := x.sets(y)
	quiet := w.change[h].op == 0 && !y.asked && y.proposed == 0 // reconfiguring, and nothing in doubt
	if own := uint8(h) + 1; quiet && x.s.ackLocal && s.read&xBit(h) != 0 && uint8(x.records[y.known].Ahead) != own {
		n := *w
		c := x.change(h, y, xOpLead)
		c.replica = uint8(h)
		n.host[h].proposed = x.apply(c, y.known)
		x.propose(&n, h, c)
		emit(n, "host %d lets replica %d be ahead", h+1, h+1)
	}
	in, syncing := x.role(y.known, crdt.InSync), x.role(y.known, crdt.Syncing)
	for r := range x.s.replicas {
		b := xBit(r)
		if quiet && (in|syncing)&b != 0 && in != b && w.used.shrinks < x.s.max.shrinks && (!y.told || r != h || x.s.mutation == "localshrink") {
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
		z.redoing = y.redoing || y.value != 0 && y.acks&b == 0
		if y.flushBehind != 0 {
			z.again = y.again || z.redoing || y.flushTargets&^y.flushed&b != 0
		}
		if x.s.mutation == "behindredone" {
			z.uncounted &^= b // what was sent in the session before does not count in this one
		}
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
