package volume

import (
	"math"
	"sync"
	"sync/atomic"
)

// gate counts the operations that run under one set of terms (an epoch and session at a replica, a checkpoint at the
// holder, one epoch of holding a disk) and can be closed: then it admits no more, and says when the last has left.
// Entering and leaving are one atomic addition each, and no lock is held while the operation runs.
type gate struct {
	running atomic.Int64
	once    sync.Once
	empty   chan struct{} // closed when the gate is closed and nobody is inside
}

// closedBias is added to running by close, so that one addition both enters and finds out that it may not.
const closedBias = math.MinInt64 / 2

func newGate() *gate { return &gate{empty: make(chan struct{})} }

// enter admits one operation; if it returns true, leave must follow.
func (g *gate) enter() bool {
	if g.running.Add(1) > 0 {
		return true
	}
	g.leave()
	return false
}

// hold admits one more on behalf of somebody who is inside, open or not; leave must follow.
func (g *gate) hold() { g.running.Add(1) }

// leave ends one operation.
func (g *gate) leave() {
	if g.running.Add(-1) == closedBias {
		// An operation that was refused adds and subtracts one too, so this can be reached more than once.
		g.once.Do(func() { close(g.empty) })
	}
}

// close stops admission and returns a channel that is closed once every admitted operation has left.
func (g *gate) close() <-chan struct{} {
	for {
		n := g.running.Load()
		if n < 0 && n < closedBias/2 {
			return g.empty
		}
		if g.running.CompareAndSwap(n, n+closedBias) {
			if n == 0 {
				g.once.Do(func() { close(g.empty) })
			}
			return g.empty
		}
	}
}

// inside returns how many operations run now.
func (g *gate) inside() int64 {
	n := g.running.Load()
	if n < closedBias/2 {
		n -= closedBias
	}
	return n
}
