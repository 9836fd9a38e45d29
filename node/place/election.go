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

// election compares sets of arbiters. A set is a bit mask over candidates.
type election struct {
	p          *Planner
	candidates []int  // nodes
	replicas   []int  // nodes, those that are known, alive or not; by name
	holds      uint32 // candidates that hold a replica
	witnesses  uint32
	down       uint32                                // for a moment
	far        [][maxArbiterCandidates]time.Duration // replica x candidate
	failures   []failure
	best       uint32
}

// failure is a part of the mesh that dies or is cut off, and what is left of the disk's replicas on either side.
type failure struct {
	hit         uint32 // candidates in that part
	replicasIn  bool   // replicas inside
	replicasOut bool
	rank        int // 0 the death of a datacenter, 1 its isolation, 2 the death of a rack
	isolated    bool
	part        int // number of the datacenter or rack
	datacenter  string
}

// replicaSet is the nodes of a disk's replicas: their numbers and 1.
type replicaSet [MaxReplicas]int32

// election elects the arbiters of disks with replicas on these nodes, which are sorted and different.
func (p *Planner) election(replicas []int) *election {
	var key replicaSet
	keep := len(replicas) <= len(key)
	if keep {
		for i, r := range replicas {
			key[i] = int32(r) + 1
		}
		if e := p.elections[key]; e != nil {
			return e
		}
	}
	e := p.elect(replicas, func(i int) bool { return p.keeps[i] })
	if keep {
		if len(p.elections) >= maxElections {
			clear(p.elections)
		}
		p.elections[key] = e
	}
	return e
}

// elect holds an election among the nodes that may stand.
func (p *Planner) elect(replicas []int, may func(node int) bool) *election {
	e := &election{p: p, replicas: slices.Clone(replicas)}
	e.shortlist(may)
	for i, n := range e.candidates {
		if slices.Contains(replicas, n) {
			e.holds |= 1 << i
		}
		if p.nodes[n].Witness {
			e.witnesses |= 1 << i
		}
		if !p.nodes[n].Alive {
			e.down |= 1 << i
		}
	}
	e.far = make([][maxArbiterCandidates]time.Duration, len(replicas))
	for r, from := range replicas {
		row := p.distances(from)
		for i, n := range e.candidates {
			e.far[r][i] = row[n]
		}
	}
	e.findFailures()
	e.best = e.elect(e.count())
	return e
}

// arbiterRank is a node that may be shortlisted: witnesses and near ones first, then by name.
type arbiterRank struct {
	far  time.Duration // from all replicas together; negative for witnesses
	node int
}

// shortlist finds the nodes worth comparing: replica holders, then of the others turn by turn one of each failure
// domain, witnesses and near ones first.
func (e *election) shortlist(may func(node int) bool) {
	p := e.p
	var leaving []int
	rest := p.rest[:0]
	for i := range p.nodes {
		switch n := &p.nodes[i]; {
		case !may(i):
		case n.Drain:
			leaving = append(leaving, i)
		case slices.Contains(e.replicas, i):
			e.candidates = append(e.candidates, i)
		default:
			rest = append(rest, arbiterRank{node: i})
		}
	}
	for _, r := range e.replicas {
		row := p.distances(r)
		for i := range rest {
			rest[i].far += row[rest[i].node]
		}
	}
	for i := range rest {
		r := &rest[i]
		if r.far = r.far.Round(time.Millisecond); p.nodes[r.node].Witness {
			r.far -= 1 << 60 // before all others
		}
	}
	slices.SortFunc(rest, func(a, b arbiterRank) int { return cmp.Or(cmp.Compare(a.far, b.far), cmp.Compare(a.node, b.node)) })
	for len(e.candidates) < maxArbiterCandidates && len(rest) > 0 {
		p.turn++
		left := rest[:0]
		for _, r := range rest {
			if rack := p.racks[r.node]; p.seen[rack] != p.turn && len(e.candidates) < maxArbiterCandidates {
				p.seen[rack] = p.turn
				e.candidates = append(e.candidates, r.node)
			} else {
				left = append(left, r)
			}
		}
		rest = left
	}
	p.rest = rest
	if len(e.candidates) < 3 {
		e.candidates = append(e.candidates, leaving[:min(len(leaving), 3-len(e.candidates))]...)
	}
	e.candidates = e.candidates[:min(len(e.candidates), maxArbiterCandidates)]
}

// domain names what fails together with a node: its rack, or its datacenter if it has no rack.
func (n Node) domain() string { return n.dc() + "\x00" + n.Labels["rack"] }

// findFailures lists each datacenter's death and isolation, and each rack's death.
func (e *election) findFailures() {
	e.parts(0, e.p.dcs)
	for _, f := range e.failures {
		f.rank, f.isolated = 1, true
		e.failures = append(e.failures, f)
	}
	e.parts(2, e.p.racks)
}

// parts adds the death of each part that the nodes are divided into.
func (e *election) parts(rank int, part []int) {
	first := len(e.failures)
	find := func(node int) *failure {
		for i := first; i < len(e.failures); i++ {
			if e.failures[i].part == part[node] {
				return &e.failures[i]
			}
		}
		e.failures = append(e.failures, failure{rank: rank, part: part[node], datacenter: e.p.nodes[node].dc()})
		return &e.failures[len(e.failures)-1]
	}
	for i, n := range e.candidates {
		find(n).hit |= 1 << i
	}
	for _, r := range e.replicas {
		find(r).replicasIn = true
	}
	for i := first; i < len(e.failures); i++ {
		f := &e.failures[i]
		f.replicasOut = slices.ContainsFunc(e.replicas, func(r int) bool { return part[r] != f.part })
	}
}

// usable says whether the disk goes on somewhere through f with these arbiters.
func (f *failure) usable(set uint32) bool {
	return f.usableWith(bits.OnesCount32(set&f.hit), bits.OnesCount32(set))
}

// usableWith is usable for any set of this size with so many members in the part that fails.
func (f *failure) usableWith(in, size int) bool {
	need := size/2 + 1
	return f.replicasOut && size-in >= need || f.isolated && f.replicasIn && in >= need
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
	racks := 0
	for i := range e.failures {
		if f := &e.failures[i]; f.rank == 2 && f.hit != 0 {
			racks++
		}
	}
	if racks >= 5 {
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
	for r := range e.far {
		row := &e.far[r]
		var nearest [maxArbiterCandidates]time.Duration // the first are the nearest, sorted
		count := 0
		for left := set; left != 0; left &= left - 1 {
			d := row[bits.TrailingZeros32(left)%maxArbiterCandidates]
			at := count
			for ; at > 0 && nearest[at-1] > d; at-- {
				nearest[at] = nearest[at-1]
			}
			nearest[at] = d
			count++
		}
		far += nearest[need-1]
	}
	return far.Round(time.Millisecond)
}

// outlook is what failures are survived by sets of one size. Most failures are survived by all of them or by none.
type outlook struct {
	always   packed // survived whatever the set
	possible packed // survived by some set each; no set survives more
	open     []openFailure
}

// openFailure is one that some sets survive: bit n of with says that those with n members in the part that fails do.
type openFailure struct {
	hit  uint32
	with uint8
	adds packed
}

// packed is a score without the distance, as a number that compares as the score does.
type packed uint64

// pack returns what one survived failure of a rank adds.
func pack(rank int) packed { return 1 << (32 - 8*rank) }

func (e *election) look(size int) (o outlook) {
	all := uint32(1)<<len(e.candidates) - 1
	// So many members fit outside of any one datacenter that outlives it; where some are left over, one datacenter has a majority in it.
	over, sink := size, false
	for i := range e.failures {
		f := &e.failures[i]
		least, most := max(0, size-bits.OnesCount32(all&^f.hit)), min(size, bits.OnesCount32(f.hit))
		var with uint8
		for n := least; n <= most; n++ {
			if f.usableWith(n, size) {
				with |= 1 << n
			}
		}
		if f.rank == 0 {
			over -= min(most, (size-1)/2)
			sink = sink || with == 0
		}
		switch every := uint8(1)<<(most+1) - uint8(1)<<least; with {
		case 0:
		case every:
			o.always += pack(f.rank)
			o.possible += pack(f.rank)
		default:
			o.possible += pack(f.rank)
			o.open = append(o.open, openFailure{f.hit, with, pack(f.rank)})
		}
	}
	if over > 0 && !sink {
		o.possible -= pack(0)
	}
	return o
}

// elect returns the best set of this size; of equals the one whose members come first in the shortlist.
func (e *election) elect(size int) uint32 {
	if size == 0 {
		return 0
	}
	o := e.look(size)
	var best uint32
	var top packed
	var far time.Duration
	for holders := min(size, bits.OnesCount32(e.holds)); holders >= 0; holders-- {
		if best != 0 && top>>16 == o.possible>>16 {
			break // sets with fewer holders survive no more
		}
		for set := uint32(1)<<size - 1; set < 1<<len(e.candidates); set = next(set) {
			if bits.OnesCount32(set&e.holds) != holders {
				continue
			}
			p := o.always + packed(holders)<<8 + packed(bits.OnesCount32(set&e.witnesses))
			for i := range o.open {
				if f := &o.open[i]; f.with>>bits.OnesCount32(set&f.hit)&1 != 0 {
					p += f.adds
				}
			}
			switch {
			case best == 0 || p > top:
				best, top, far = set, p, e.distance(set)
			case p == top:
				if near := e.distance(set); near < far {
					best, far = set, near
				}
			}
		}
	}
	return best
}

// next returns the next larger set with as many members (Gosper).
func next(set uint32) uint32 {
	low := set & -set
	carry := set + low
	return carry | (carry^set)>>(2+bits.TrailingZeros32(low))
}

// ids returns the members of a set, sorted.
func (e *election) ids(set uint32) []ukai.NodeID {
	var ids []ukai.NodeID
	for _, i := range members(set) {
		ids = append(ids, e.p.nodes[e.candidates[i]].ID)
	}
	slices.SortFunc(ids, func(a, b ukai.NodeID) int { return strings.Compare(string(a[:]), string(b[:])) })
	return ids
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
		a, b := e.p.nodes[e.candidates[chosen[0]]], e.p.nodes[e.candidates[chosen[1]]]
		list = append(list, fmt.Sprintf("only two nodes, %s and %s, keep the disk's quorum record: when either is down, a disk that has lost a replica waits and cannot be attached; add a witness, or choose the node that may go on alone (quorum mode preferred)",
			a.name(), b.name()))
	}
	var dcs []string
	for _, i := range chosen {
		if dc := e.p.nodes[e.candidates[i]].dc(); dc != "" && !slices.Contains(dcs, dc) {
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
