package place

import (
	"cmp"
	"math/bits"
	"slices"
	"time"
)

// maxSearchSteps bounds the search for a placement. Rules with at most one spread key never come near it: there every
// step is exact. With several keys the question is one of those that can take exponential time; see search.gaveUp.
const maxSearchSteps = 20_000

// search looks for a set of nodes that fills all slots. A slot is one replica of one term.
//
// Which node fills which slot is left open until the end, so that a node which suits two terms never spoils one of
// them: a set is kept as long as a matching of slots and values of each spread key shows that it can be completed.
type search struct {
	p          *Planner
	e          *eligibility
	size       int64 // bytes of the disk, for preference only
	slots      []int // the term of each
	candidates []int // nodes that may take a replica, by name
	kept       []uint8
	chosen     []int // of candidates

	steps    int
	gaveUp   bool
	excluded []bool // candidates, below some level of the search
	tried    []int  // those excluded, in order

	// Of the matching, by value of a key.
	terms  []uint64
	taken  []int // the candidate that has it, and 1
	owner  []int // the slot that has it, and 1
	seen   []int // the last round in which it was tried
	round  int
	values []int // those that occur
}

// add makes a node a candidate, if the rule may use it.
func (s *search) add(node int) {
	if s.e.terms[node] != 0 {
		s.candidates = append(s.candidates, node)
	}
}

// lacks returns the first spread key of which a node has no label; "" if it has all.
func lacks(r Rule, n Node) string {
	for _, key := range r.Spread {
		if n.value(key) == "" {
			return key
		}
	}
	return ""
}

// fill returns the nodes of the best set of candidates for want[t] replicas of each term t, best first; nil if there is none.
func (s *search) fill(want []int) []int {
	s.slots = s.slots[:0]
	for t, n := range want {
		for range n {
			s.slots = append(s.slots, t)
		}
	}
	s.chosen, s.tried = s.chosen[:0], s.tried[:0]
	s.excluded = slices.Grow(s.excluded[:0], len(s.candidates))[:len(s.candidates)]
	clear(s.excluded)
	if s.terms == nil {
		n := len(s.p.nodes) // no key has more values than there are nodes
		s.terms, s.taken, s.owner, s.seen = make([]uint64, n), make([]int, n), make([]int, n), make([]int, n)
	}
	if !s.feasible() || !s.extend() {
		return nil
	}
	nodes := make([]int, len(s.chosen))
	for i, c := range s.chosen {
		nodes[i] = s.candidates[c]
	}
	return nodes
}

// extend completes a feasible set, best nodes first. What was tried in vain is excluded below this level, and with it
// all that is interchangeable with it.
func (s *search) extend() bool {
	level, tried := len(s.chosen), len(s.tried)
	if level == len(s.slots) {
		return true
	}
	for c := s.best(); c >= 0 && !s.gaveUp; c = s.best() {
		s.chosen = append(s.chosen, c)
		if s.feasible() && s.extend() {
			return true
		}
		s.chosen = s.chosen[:level]
		class := s.e.class[s.candidates[c]]
		for d, node := range s.candidates {
			if !s.excluded[d] && s.e.class[node] == class && !slices.Contains(s.chosen, d) {
				s.excluded[d] = true
				s.tried = append(s.tried, d)
			}
		}
	}
	for _, c := range s.tried[tried:] {
		s.excluded[c] = false
	}
	s.tried = s.tried[:tried]
	return false
}

// feasible says whether the chosen may be part of a full set, as far as each key alone can tell; for one key that is exact.
// By the theorem of Mendelsohn and Dulmage it is enough that all slots can be matched, and all of the chosen can be.
func (s *search) feasible() bool {
	if s.steps++; s.steps > maxSearchSteps {
		s.gaveUp = true
		return false
	}
	for _, value := range s.e.values {
		clear(s.terms)
		clear(s.taken)
		s.values = s.values[:0]
		for _, c := range s.chosen {
			v := value[s.candidates[c]]
			if s.taken[v] != 0 {
				return false
			}
			s.taken[v] = c + 1
		}
		for c, node := range s.candidates {
			v := value[node]
			if s.excluded[c] || s.taken[v] != 0 && s.taken[v] != c+1 {
				continue
			}
			if s.terms[v] == 0 {
				s.values = append(s.values, v)
			}
			s.terms[v] |= s.e.terms[node]
		}
		if s.match() < len(s.slots) {
			return false
		}
		s.values = slices.DeleteFunc(s.values, func(v int) bool { return s.taken[v] == 0 })
		if s.match() < len(s.chosen) {
			return false
		}
	}
	return true
}

// match returns the size of the largest matching of slots and values.
func (s *search) match() (n int) {
	for _, v := range s.values {
		s.owner[v] = 0
	}
	for slot := range s.slots {
		s.round++
		if s.augment(slot) {
			n++
		}
	}
	return n
}

// augment gives a slot a value, moving others if need be (Kuhn's algorithm).
func (s *search) augment(slot int) bool {
	t := s.slots[slot]
	for _, v := range s.values {
		if s.seen[v] == s.round || s.terms[v]>>t&1 == 0 {
			continue
		}
		s.seen[v] = s.round
		if other := s.owner[v]; other == 0 || s.augment(other-1) {
			s.owner[v] = slot + 1
			return true
		}
	}
	return false
}

// best returns the candidate that goes best with those chosen, of those that are not excluded; -1 if there is none.
func (s *search) best() int {
	best := -1
	for c := range s.candidates {
		if !s.excluded[c] && !s.clash(c) && (best < 0 || s.compare(c, best) < 0) {
			best = c
		}
	}
	return best
}

// compare orders candidates, best first: those whose replica may stay, then those that have kept an old copy, then those with room for the whole disk, then by free space,
// then by the share of their space that is free, then by nearness to the chosen. It decides before the name does.
func (s *search) compare(c, d int) int {
	a, b := s.candidates[c], s.candidates[d]
	x, y := &s.p.room[a], &s.p.room[b]
	if d := cmp.Compare(s.kept[b], s.kept[a]); d != 0 {
		return d
	}
	if d := cmp.Or(compareBool(y.exact >= s.size, x.exact >= s.size), cmp.Compare(y.coarse, x.coarse), cmp.Compare(y.share, x.share)); d != 0 {
		return d
	}
	return cmp.Or(cmp.Compare(s.away(a), s.away(b)), cmp.Compare(y.exact, x.exact), cmp.Compare(a, b))
}

// away is how far a node is from the chosen.
func (s *search) away(node int) (sum time.Duration) {
	for _, o := range s.chosen {
		sum += s.p.distances(s.candidates[o])[node].Round(time.Millisecond)
	}
	return sum
}

// clash says whether a candidate is chosen, or shares a value with one that replicas must not share.
func (s *search) clash(c int) bool {
	for _, o := range s.chosen {
		if o == c {
			return true
		}
		for _, value := range s.e.values {
			if value[s.candidates[o]] == value[s.candidates[c]] {
				return true
			}
		}
	}
	return false
}

// coarse keeps the three leading bits of n.
func coarse(n int64) int64 {
	if n < 0 {
		return -coarse(-n)
	}
	drop := max(0, bits.Len64(uint64(n))-3)
	return n >> drop << drop
}
