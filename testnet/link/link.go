// Package link decides what a link between two places does to each packet: delay, jitter, loss, duplication, reordering, rate
// and cuts. It is pure - time and randomness come in as arguments - and serves both the network in memory (memnet) and the
// one between network namespaces (wan).
package link

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// Link describes one direction between two places. The zero Link delivers at once, in order, everything.
type Link struct {
	Delay     time.Duration // one way
	Jitter    time.Duration // added, uniform from 0; packets keep their order unless Reorder says otherwise
	Loss      float64       // share of packets dropped, 0 to 1
	Duplicate float64       // share of packets delivered twice
	Reorder   float64       // share of packets held back by another Delay/2 + Jitter
	Down      bool          // nothing passes
	Rate      int64         // bytes per second, 0 = no limit; packets queue behind one another
}

// Table holds the links between places. A place is the name of a host, or of the datacenter it is in.
type Table struct {
	deflt Link
	links map[[2]string]Link
}

// SetDefault sets the link between all places that have none of their own.
func (t *Table) SetDefault(l Link) { t.deflt = l }

// Set sets the link from one place to another, in that direction only.
func (t *Table) Set(from, to string, l Link) {
	if t.links == nil {
		t.links = map[[2]string]Link{}
	}
	t.links[[2]string{from, to}] = l
}

// Get returns the link that was set from one place to another, or the default.
func (t *Table) Get(from, to string) Link {
	if l, ok := t.links[[2]string{from, to}]; ok {
		return l
	}
	return t.deflt
}

// Between returns the link from a host to another, each given by its places, the least particular first: the link of the most
// particular pair goes before the others, but a cut of any pair cuts.
func (t *Table) Between(from, to []string) Link {
	l := t.deflt
	for _, a := range from {
		for _, b := range to {
			if own, ok := t.links[[2]string{a, b}]; ok {
				own.Down = own.Down || l.Down
				l = own
			}
		}
	}
	return l
}

// Path is what must be remembered between two packets that travel the same way. Its zero value is ready.
type Path struct {
	last      time.Time // when the last one is due that keeps its place
	busyUntil time.Time // when the link has sent all it was given
}

// Schedule returns when copies of a packet of size bytes, sent now, are due: none if it is lost, two if it is duplicated.
func (l Link) Schedule(p *Path, rng *rand.Rand, now time.Time, size int) (due [2]time.Time, copies int) {
	if l.Down || l.Loss > 0 && rng.Float64() < l.Loss {
		return due, 0
	}
	copies = 1
	if l.Duplicate > 0 && rng.Float64() < l.Duplicate {
		copies = 2
	}
	for i := range copies {
		start := now
		if l.Rate > 0 {
			if p.busyUntil.After(start) {
				start = p.busyUntil
			}
			start = start.Add(time.Duration(int64(size) * int64(time.Second) / l.Rate))
			p.busyUntil = start
		}
		t := start.Add(l.Delay)
		if l.Jitter > 0 {
			t = t.Add(time.Duration(rng.Int64N(int64(l.Jitter))))
		}
		if l.Reorder > 0 && rng.Float64() < l.Reorder {
			t = t.Add(l.Delay/2 + l.Jitter)
		} else {
			if t.Before(p.last) {
				t = p.last
			}
			p.last = t
		}
		due[i] = t
	}
	return due, copies
}

// Queue holds items until they are due; those due at the same time leave in the order they came.
type Queue[T any] struct {
	h   entries[T]
	seq uint64
}

// Len counts the items.
func (q *Queue[T]) Len() int { return len(q.h) }

// Push adds an item.
func (q *Queue[T]) Push(due time.Time, item T) {
	q.seq++
	heap.Push(&q.h, entry[T]{due, q.seq, item})
}

// Next returns when the first item is due.
func (q *Queue[T]) Next() (due time.Time, ok bool) {
	if len(q.h) == 0 {
		return time.Time{}, false
	}
	return q.h[0].due, true
}

// Pop removes and returns the first item, which must exist.
func (q *Queue[T]) Pop() T { return heap.Pop(&q.h).(entry[T]).item }

type entry[T any] struct {
	due  time.Time
	seq  uint64
	item T
}

type entries[T any] []entry[T]

func (h entries[T]) Len() int { return len(h) }
func (h entries[T]) Less(i, j int) bool {
	return h[i].due.Before(h[j].due) || h[i].due.Equal(h[j].due) && h[i].seq < h[j].seq
}
func (h entries[T]) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *entries[T]) Push(x any)   { *h = append(*h, x.(entry[T])) }
func (h *entries[T]) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = entry[T]{}
	*h = old[:len(old)-1]
	return last
}
