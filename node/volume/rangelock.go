package volume

import (
	"context"
	"sync"
	"sync/atomic"

	"ukai"
)

// Range locks keep overlapping mutations of a disk in one order on all replicas, and keep a read from seeing a write
// that is not everywhere yet. Requests that overlap are served first come, first served; shared claims (reads) overlap
// one another freely. A claim never crosses a block border, so that blocks can be locked apart from each other.
//
// The claim of a write whose guest is answered before all replicas have it is downgraded: it lets reads in, which must go
// to the replica that has it, and still keeps other writes out.

// claim is one request for [off, end) of a block. It may be used again once released.
type claim struct {
	index     ukai.Index
	off, end  int64
	exclusive bool
	settled   bool // waits for downgraded claims too

	downgraded bool
	behind     atomic.Int32 // downgraded claims that it overlaps: not all replicas have its range

	waitsFor int // earlier conflicting claims not yet released; 0 once granted
	granted  chan struct{}
}

// conflicts says whether a and b may not be held together.
func (a *claim) conflicts(b *claim) bool {
	return a.overlaps(b) && (a.exclusive || b.exclusive || a.downgraded && b.settled)
}

func (a *claim) overlaps(b *claim) bool { return a.off < b.end && b.off < a.end }

// rangeQueue is the claims of one block in order of arrival, those granted and those waiting. Pure: it neither waits
// nor locks.
type rangeQueue struct {
	claims []*claim
}

// add appends c and says whether it holds its range at once.
func (q *rangeQueue) add(c *claim) bool {
	c.waitsFor, c.downgraded = 0, false
	c.behind.Store(0)
	for _, e := range q.claims {
		if e.conflicts(c) {
			c.waitsFor++
		} else if e.downgraded && e.overlaps(c) {
			c.behind.Add(1)
		}
	}
	q.claims = append(q.claims, c)
	return c.waitsFor == 0
}

// downgrade lets reads into the range of c, an exclusive claim that holds it, and calls grant for each that holds its range
// now.
func (q *rangeQueue) downgrade(c *claim, grant func(*claim)) {
	c.exclusive, c.downgraded = false, true
	for _, e := range q.claims[q.find(c)+1:] {
		if !c.overlaps(e) || c.conflicts(e) {
			continue
		}
		e.behind.Add(1)
		if e.waitsFor--; e.waitsFor == 0 {
			grant(e)
		}
	}
}

func (q *rangeQueue) find(c *claim) (at int) {
	for q.claims[at] != c {
		at++
	}
	return at
}

// remove takes c out, whether it was granted or waiting, and calls grant for each claim that holds its range now.
func (q *rangeQueue) remove(c *claim, grant func(*claim)) {
	at := q.find(c)
	for _, e := range q.claims[at+1:] {
		if c.conflicts(e) {
			if e.waitsFor--; e.waitsFor == 0 {
				grant(e)
			}
		} else if c.downgraded && c.overlaps(e) {
			e.behind.Add(-1)
		}
	}
	copy(q.claims[at:], q.claims[at+1:])
	q.claims[len(q.claims)-1] = nil
	q.claims = q.claims[:len(q.claims)-1]
}

// rangeShards spreads the blocks of a disk over this many locks.
const rangeShards = 16

// rangeLocks is the waiting shell around rangeQueue: all claims of one disk.
type rangeLocks struct {
	shards [rangeShards]rangeShard
}

type rangeShard struct {
	mu     sync.Mutex
	queues map[ukai.Index]*rangeQueue
	spare  []*rangeQueue // empty queues, kept for the next block that is touched
}

// maxSpareQueues bounds the empty queues a shard keeps; more are left to the collector.
const maxSpareQueues = 8

// lock waits until c holds its range. On an error (only that of ctx) nothing is held.
func (l *rangeLocks) lock(ctx context.Context, c *claim) error {
	s := &l.shards[c.index%rangeShards]
	if s.add(c) {
		return nil
	}
	select {
	case <-c.granted:
		return nil
	case <-ctx.Done():
		s.remove(c)
		select {
		case <-c.granted: // granted while we gave up; the channel must be empty for the next use
		default:
		}
		return ctx.Err()
	}
}

// unlock gives the range of c to those who wait for it.
func (l *rangeLocks) unlock(c *claim) {
	l.shards[c.index%rangeShards].remove(c)
	c.granted = nil // claims are pooled, and a channel must not leave the synctest bubble that made it; only a wait costs one
}

// downgrade lets reads into the range of c.
func (l *rangeLocks) downgrade(c *claim) {
	s := &l.shards[c.index%rangeShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queues[c.index].downgrade(c, grant)
}

// grant never blocks: there is one per claim, and room for one.
func grant(c *claim) { c.granted <- struct{}{} }

func (s *rangeShard) add(c *claim) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.index]
	if q == nil {
		if s.queues == nil {
			s.queues = make(map[ukai.Index]*rangeQueue)
		}
		if n := len(s.spare); n > 0 {
			q, s.spare = s.spare[n-1], s.spare[:n-1]
		} else {
			q = new(rangeQueue)
		}
		s.queues[c.index] = q
	}
	held := q.add(c)
	if !held && c.granted == nil {
		c.granted = make(chan struct{}, 1)
	}
	return held
}

func (s *rangeShard) remove(c *claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.index]
	q.remove(c, grant)
	if len(q.claims) == 0 {
		delete(s.queues, c.index)
		if len(s.spare) < maxSpareQueues {
			s.spare = append(s.spare, q)
		}
	}
}
