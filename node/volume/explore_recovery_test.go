package volume

import (
	"fmt"
	"time"

	"ukai"
)

// From the claim to the activation.

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
	waits := time.Duration(w.tick)*xTick < v.wait && x.s.mutation != "nolease" && x.s.mutation != "noleasewait" &&
		(x.s.mutation != "nearunwaited" || y.sealed != v.members)
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
	c.in, c.ahead, c.lossy, c.lost = v.set, v.ahead, y.lossy, y.lost
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
		if x.s.local && prefer != uint8(h)+1 {
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
		if v.lossy != y.lossy && x.s.mutation == "" {
			x.problem = fmt.Sprintf("a takeover says lossy=%v", v.lossy)
		}
		if at := int(x.records[y.known].Ahead) - 1; at >= 0 {
			// The machine that was ahead cannot be reached or has lost power: only then may what it alone had be gone.
			y.lost = v.members&xBit(at) != 0 && (v.set&xBit(at) == 0 || w.replica[at].unclean)
		}
		if v.abandons != y.lost && x.s.mutation == "" {
			x.problem = fmt.Sprintf("a takeover says abandons=%v", v.abandons)
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
