package store

import "sync/atomic"

// shutBit is set in a gate's count while it is shut; the rest counts who is inside.
const shutBit = 1 << 62

// gate lets many in at once, and can be shut and emptied without a lock being held over what they do inside.
type gate struct {
	count atomic.Int64
	left  chan struct{} // a token: someone was the last to leave a shut gate
}

func newGate(open bool) *gate {
	g := &gate{left: make(chan struct{}, 1)}
	if !open {
		g.count.Store(shutBit)
	}
	return g
}

// enter says whether the gate was open; if so, the caller is inside until it calls leave.
func (g *gate) enter() bool {
	if g.count.Add(1)&shutBit != 0 {
		g.leave()
		return false
	}
	return true
}

func (g *gate) leave() {
	if g.count.Add(-1) == shutBit {
		select {
		case g.left <- struct{}{}:
		default: // a token is there already
		}
	}
}

// isOpen says whether enter would succeed now.
func (g *gate) isOpen() bool { return g.count.Load()&shutBit == 0 }

// shut turns away all who come and waits until those inside have left. One caller at a time may shut or open it.
func (g *gate) shut() {
	if !g.isOpen() {
		return
	}
	g.count.Add(shutBit)
	for g.count.Load() != shutBit {
		// A token may be stale, or come from one who found the gate shut: hence the loop.
		<-g.left
	}
}

func (g *gate) open() {
	if !g.isOpen() {
		g.count.Add(-shutBit)
	}
}
