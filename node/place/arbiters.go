package place

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"ukai"
)

// maxArbiterCandidates bounds the sets of arbiters that are compared: choosing 5 of 16 is 4368 sets.
const maxArbiterCandidates = 16

// Arbiters chooses who keeps the quorum record of a disk with replicas on these nodes: one node of a mesh of one, two of
// a mesh of two, else three, or five where the nodes that could do it are in five or more failure domains (racks, else
// datacenters). With a single copy in a mesh of two its node alone decides: nothing would be won by waiting for another.
//
// Of all sets it takes the one with which the disk stays usable through most single failures, where usable means that
// some side still has a replica and a majority: first the death of a datacenter, then its isolation, then the death of
// a rack. Among equals it prefers replica holders, then witnesses, then short round trips from the replicas. Nodes that
// are down are never chosen, nodes being drained only if there are too few others.
//
// The warnings say what no choice could mend, and what would.
func Arbiters(replicas []ukai.NodeID, nodes []Node, near Near) (ids []ukai.NodeID, warnings []string) {
	e := newElection(replicas, nodes, near)
	count := e.count()
	if count == 0 {
		return nil, []string{"no node is alive that could keep the disk's quorum record"}
	}
	best := e.elect(count)
	for _, i := range members(best) {
		ids = append(ids, e.candidates[i].ID)
	}
	slices.SortFunc(ids, func(a, b ukai.NodeID) int { return strings.Compare(string(a[:]), string(b[:])) })
	return ids, e.warnings(best)
}

// election compares sets of arbiters. A set is a bit mask over candidates.
type election struct {
	candidates []Node
	replicas   []Node // those that are known, alive or not
	holds      uint32 // candidates that hold a replica
	witnesses  uint32
	far        [][]time.Duration // replica x candidate
	failures   []failure
}

// failure is a part of the mesh that dies or is cut off, and what is left of the disk's replicas on either side.
type failure struct {
	hit         uint32 // candidates in that part
	replicasIn  bool   // replicas inside
	replicasOut bool
	rank        int // 0 the death of a datacenter, 1 its isolation, 2 the death of a rack
	isolated    bool
	datacenter  string
}

func newElection(replicas []ukai.NodeID, nodes []Node, near Near) *election {
	e := &election{}
	nodes = byName(nodes)
	holds := func(n Node) bool { return slices.Contains(replicas, n.ID) }
	for _, n := range nodes {
		if holds(n) {
			e.replicas = append(e.replicas, n)
		}
	}
	e.candidates = e.shortlist(nodes, holds, near)
	for i, n := range e.candidates {
		if holds(n) {
			e.holds |= 1 << i
		}
		if n.Witness {
			e.witnesses |= 1 << i
		}
	}
	for _, r := range e.replicas {
		row := make([]time.Duration, len(e.candidates))
		for i, n := range e.candidates {
			row[i] = near.known(r, n)
		}
		e.far = append(e.far, row)
	}
	e.failures = e.findFailures()
	return e
}

// shortlist returns the nodes worth comparing: replica holders, then of the others turn by turn one of each failure
// domain, witnesses and near ones first.
func (e *election) shortlist(nodes []Node, holds func(Node) bool, near Near) []Node {
	var list, rest, leaving []Node
	for _, n := range nodes {
		switch {
		case !n.Alive:
		case n.Drain:
			leaving = append(leaving, n)
		case holds(n):
			list = append(list, n)
		default:
			rest = append(rest, n)
		}
	}
	distance := func(n Node) (sum time.Duration) {
		for _, r := range e.replicas {
			sum += near.known(r, n)
		}
		return sum.Round(time.Millisecond)
	}
	slices.SortStableFunc(rest, func(a, b Node) int {
		return cmp.Or(compareBool(b.Witness, a.Witness), cmp.Compare(distance(a), distance(b)))
	})
	for turn := 0; len(list) < maxArbiterCandidates && len(rest) > 0; turn++ {
		seen := map[string]bool{}
		rest = slices.DeleteFunc(rest, func(n Node) bool {
			if seen[n.domain()] || len(list) == maxArbiterCandidates {
				return false
			}
			seen[n.domain()] = true
			list = append(list, n)
			return true
		})
	}
	if len(list) < 3 {
		list = append(list, leaving[:min(len(leaving), 3-len(list))]...)
	}
	return list[:min(len(list), maxArbiterCandidates)]
}

// domain names what fails together with a node: its rack, or its datacenter if it has no rack.
func (n Node) domain() string { return n.dc() + "\x00" + n.Labels["rack"] }

// findFailures lists each datacenter's death and isolation, and each rack's death.
func (e *election) findFailures() []failure {
	part := func(rank int, value func(Node) string) []failure {
		byValue := map[string]*failure{}
		var order []string
		find := func(n Node) *failure {
			v := value(n)
			if byValue[v] == nil {
				byValue[v] = &failure{rank: rank, datacenter: n.dc()}
				order = append(order, v)
			}
			return byValue[v]
		}
		for i, n := range e.candidates {
			find(n).hit |= 1 << i
		}
		for _, r := range e.replicas {
			find(r).replicasIn = true
		}
		var list []failure
		for _, v := range order {
			f := byValue[v]
			for _, r := range e.replicas {
				f.replicasOut = f.replicasOut || value(r) != v
			}
			list = append(list, *f)
		}
		return list
	}
	list := part(0, Node.dc)
	for _, f := range part(1, Node.dc) {
		f.isolated = true
		list = append(list, f)
	}
	return append(list, part(2, Node.domain)...)
}

// usable says whether the disk goes on somewhere through f with these arbiters.
func (f *failure) usable(set uint32) bool {
	need := bits.OnesCount32(set)/2 + 1
	out := f.replicasOut && bits.OnesCount32(set&^f.hit) >= need
	return out || f.isolated && f.replicasIn && bits.OnesCount32(set&f.hit) >= need
}

// count returns how many arbiters there should be.
func (e *election) count() int {
	switch n := len(e.candidates); {
	case n == 2 && len(e.replicas) == 1 && e.holds != 0:
		return 1
	case n < 3:
		return n
	case n < 5:
		return 3
	}
	domains := map[string]bool{}
	for _, n := range e.candidates {
		domains[n.domain()] = true
	}
	if len(domains) >= 5 {
		return 5
	}
	return 3
}

// score is what sets are compared by, in this order; larger is better.
type score struct {
	survived  [3]int // failures by rank
	holders   int
	witnesses int
	far       time.Duration // smaller is better
}

func (s score) compare(t score) int {
	for i := range s.survived {
		if d := cmp.Compare(s.survived[i], t.survived[i]); d != 0 {
			return d
		}
	}
	return cmp.Or(cmp.Compare(s.holders, t.holders), cmp.Compare(s.witnesses, t.witnesses), cmp.Compare(t.far, s.far))
}

func (e *election) score(set uint32) score {
	s := e.standing(set)
	s.far = e.distance(set)
	return s
}

// standing is score without the distance.
func (e *election) standing(set uint32) score {
	s := score{holders: bits.OnesCount32(set & e.holds), witnesses: bits.OnesCount32(set & e.witnesses)}
	for i := range e.failures {
		if f := &e.failures[i]; f.usable(set) {
			s.survived[f.rank]++
		}
	}
	return s
}

// distance is how long a change of the record takes, from all replicas together: it waits for the nearest majority.
func (e *election) distance(set uint32) (far time.Duration) {
	need := bits.OnesCount32(set)/2 + 1
	chosen := members(set)
	to := make([]time.Duration, 0, len(chosen))
	for _, row := range e.far {
		to = to[:0]
		for _, i := range chosen {
			to = append(to, row[i])
		}
		slices.Sort(to)
		far += to[need-1]
	}
	return far.Round(time.Millisecond)
}

// elect returns the best set of this size; of equals the one whose members come first in the shortlist.
func (e *election) elect(size int) uint32 {
	if size == 0 {
		return 0
	}
	var best uint32
	var top score // without the distance, which is looked at only where it decides
	var far time.Duration
	for set := uint32(1)<<size - 1; set < 1<<len(e.candidates); set = next(set) {
		s := e.standing(set)
		switch d := s.compare(top); {
		case best == 0 || d > 0:
			best, top, far = set, s, e.distance(set)
		case d == 0:
			if near := e.distance(set); near < far {
				best, far = set, near
			}
		}
	}
	return best
}

// next returns the next larger set with as many members (Gosper).
func next(set uint32) uint32 {
	low := set & -set
	carry := set + low
	return carry | (carry^set)>>2/low
}

func members(set uint32) []int {
	var list []int
	for ; set != 0; set &= set - 1 {
		list = append(list, bits.TrailingZeros32(set))
	}
	return list
}

// warnings says what the chosen arbiters do not survive although a replica would.
func (e *election) warnings(set uint32) []string {
	var list []string
	chosen := members(set)
	if len(chosen) == 2 {
		a, b := e.candidates[chosen[0]], e.candidates[chosen[1]]
		list = append(list, fmt.Sprintf("only two nodes, %s and %s, keep the disk's quorum record: when either is down, a disk that has lost a replica waits and cannot be attached; add a witness, or choose the node that may go on alone (quorum mode preferred)",
			a.name(), b.name()))
	}
	var dcs []string
	for _, i := range chosen {
		if dc := e.candidates[i].dc(); dc != "" && !slices.Contains(dcs, dc) {
			dcs = append(dcs, dc)
		}
	}
	slices.Sort(dcs)
	if len(dcs) != 2 || len(chosen) == 2 {
		return list
	}
	for _, f := range e.failures {
		if f.rank == 0 && f.replicasOut && !f.usable(set) {
			list = append(list, fmt.Sprintf("the disk's arbiters are in exactly two datacenters, %s and %s: when %s is lost, the copy that is left cannot be attached; add a witness in a third datacenter, or choose the node that may go on alone (quorum mode preferred)",
				dcs[0], dcs[1], f.datacenter))
		}
	}
	return list
}
