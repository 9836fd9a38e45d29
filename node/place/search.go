package place

import (
	"cmp"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"ukai"
)

// maxSearchSteps bounds the search for a placement. Rules with at most one spread key never come near it: there every
// step is exact. With several keys the question is one of those that can take exponential time; see search.gaveUp.
const maxSearchSteps = 20_000

// candidate is a node that may take a replica, in the terms of a search.
type candidate struct {
	node   Node
	terms  uint64 // bit t: term t may use it
	values []int  // of each key that replicas must differ in
	class  string // equal for nodes that are interchangeable to the rule
}

// search looks for a set of nodes that fills all slots. A slot is one replica of one term.
//
// Which node fills which slot is left open until the end, so that a node which suits two terms never spoils one of
// them: a set is kept as long as a matching of slots and values of each spread key shows that it can be completed.
type search struct {
	slots      []int // the term of each
	candidates []candidate
	keys       int
	size       int64               // bytes of the disk, for preference only
	kept       map[ukai.NodeID]int // nodes whose replica may stay, which costs nothing: the higher the better
	near       Near

	steps    int
	gaveUp   bool
	excluded []bool
}

// newSearch prepares a search among nodes that are fit. Those that suit no term, or lack a spread label, are left out.
func newSearch(r Rule, nodes []Node, size int64, near Near) *search {
	s := &search{size: size, near: near, keys: max(1, len(r.Spread))}
	ids := make([]map[string]int, len(r.Spread))
	for i := range ids {
		ids[i] = map[string]int{}
	}
	for _, n := range nodes {
		c := candidate{node: n}
		for t, term := range r.Terms {
			if term.matches(n) {
				c.terms |= 1 << t
			}
		}
		if c.terms == 0 || lacks(r, n) != "" {
			continue
		}
		class := []string{strconv.FormatUint(c.terms, 16)}
		for i, key := range r.Spread {
			v := n.value(key)
			id, ok := ids[i][v]
			if !ok {
				id = len(ids[i])
				ids[i][v] = id
			}
			c.values = append(c.values, id)
			class = append(class, v)
		}
		if len(r.Spread) == 0 {
			c.values = []int{len(s.candidates)}
		}
		c.class = strings.Join(class, "\x00")
		s.candidates = append(s.candidates, c)
	}
	s.excluded = make([]bool, len(s.candidates))
	return s
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

// fill returns the best set of candidates for want[t] replicas of each term t, nil if there is none.
func (s *search) fill(want []int) []int {
	s.slots = s.slots[:0]
	for t, n := range want {
		for range n {
			s.slots = append(s.slots, t)
		}
	}
	clear(s.excluded)
	if !s.feasible(nil) {
		return nil
	}
	return s.extend(nil)
}

// extend completes a feasible set, best nodes first. What was tried in vain is excluded below this level, and with it
// all that is interchangeable with it.
func (s *search) extend(chosen []int) []int {
	if len(chosen) == len(s.slots) {
		return chosen
	}
	var tried []int
	defer func() {
		for _, c := range tried {
			s.excluded[c] = false
		}
	}()
	for _, c := range s.order(chosen) {
		if s.excluded[c] || s.gaveUp {
			continue
		}
		with := append(slices.Clone(chosen), c)
		if s.feasible(with) {
			if full := s.extend(with); full != nil {
				return full
			}
		}
		for d := range s.candidates {
			if !s.excluded[d] && s.candidates[d].class == s.candidates[c].class && !slices.Contains(chosen, d) {
				s.excluded[d] = true
				tried = append(tried, d)
			}
		}
	}
	return nil
}

// feasible says whether a set may be part of a full one, as far as each key alone can tell; for one key that is exact.
// By the theorem of Mendelsohn and Dulmage it is enough that all slots can be matched, and all of the set can be.
func (s *search) feasible(chosen []int) bool {
	if s.steps++; s.steps > maxSearchSteps {
		s.gaveUp = true
		return false
	}
	for k := range s.keys {
		taken := map[int]int{} // value -> candidate that has it
		for _, c := range chosen {
			v := s.candidates[c].values[k]
			if _, ok := taken[v]; ok {
				return false
			}
			taken[v] = c
		}
		edges := make([]map[int]bool, len(s.slots)) // slot -> values
		for i, t := range s.slots {
			if i > 0 && s.slots[i-1] == t {
				edges[i] = edges[i-1]
				continue
			}
			edges[i] = map[int]bool{}
			for c := range s.candidates {
				cand := &s.candidates[c]
				if cand.terms>>t&1 == 0 || s.excluded[c] {
					continue
				}
				if owner, ok := taken[cand.values[k]]; !ok || owner == c {
					edges[i][cand.values[k]] = true
				}
			}
		}
		if match(edges) < len(s.slots) {
			return false
		}
		for i := range edges {
			only := map[int]bool{}
			for v := range taken {
				if edges[i][v] {
					only[v] = true
				}
			}
			edges[i] = only
		}
		if match(edges) < len(chosen) {
			return false
		}
	}
	return true
}

// match returns the size of the largest matching of the left side, whose neighbours on the right are given.
func match(edges []map[int]bool) int {
	n := 0
	owner := map[int]int{}
	for left := range edges {
		if augment(edges, left, owner, map[int]bool{}) {
			n++
		}
	}
	return n
}

// augment matches left, moving others if need be (Kuhn's algorithm).
func augment(edges []map[int]bool, left int, owner map[int]int, seen map[int]bool) bool {
	for right := range edges[left] {
		if seen[right] {
			continue
		}
		seen[right] = true
		if other, ok := owner[right]; !ok || augment(edges, other, owner, seen) {
			owner[right] = left
			return true
		}
	}
	return false
}

// order returns the candidates that go with a set, best first: those whose replica may stay, then those with room for the whole disk, then by free space,
// then by the share of their space that is free, then by nearness to the set. Space counts in coarse steps, or its last
// byte would decide; it decides before the name does.
func (s *search) order(chosen []int) []int {
	type rank struct {
		index  int
		kept   int
		whole  bool
		room   int64
		share  int64
		far    time.Duration
		exact  int64
		sorted Node
	}
	ranks := make([]rank, 0, len(s.candidates))
	for i := range s.candidates {
		c := &s.candidates[i]
		if s.excluded[i] || slices.ContainsFunc(chosen, func(o int) bool { return o == i || s.clash(o, i) }) {
			continue
		}
		room := c.node.room()
		r := rank{index: i, kept: s.kept[c.node.ID], whole: room >= s.size, room: coarse(room), exact: room, sorted: c.node}
		if c.node.CapacityBytes > 0 {
			r.share = 20 * room / c.node.CapacityBytes
		}
		for _, o := range chosen {
			r.far += s.near.known(s.candidates[o].node, c.node).Round(time.Millisecond)
		}
		ranks = append(ranks, r)
	}
	slices.SortFunc(ranks, func(a, b rank) int {
		return cmp.Or(cmp.Compare(b.kept, a.kept), compareBool(b.whole, a.whole), cmp.Compare(b.room, a.room), cmp.Compare(b.share, a.share),
			cmp.Compare(a.far, b.far), cmp.Compare(b.exact, a.exact), compareNames(a.sorted, b.sorted))
	})
	indexes := make([]int, len(ranks))
	for i, r := range ranks {
		indexes[i] = r.index
	}
	return indexes
}

// clash says whether two candidates share a value that replicas must not share.
func (s *search) clash(a, b int) bool {
	for k := range s.keys {
		if s.candidates[a].values[k] == s.candidates[b].values[k] {
			return true
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
