package place

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
)

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
	p := newPlanner(nodes, near)
	e := p.election(p.find(replicas))
	if len(e.candidates) == 0 {
		return nil, []string{"no node is alive that could keep the disk's quorum record"}
	}
	return e.ids(e.best), e.warnings(e.best)
}

// arbiters plans a move of the quorum record, if that makes the disk survive more, or brings the record to where the
// replicas will be. A few milliseconds more or less are no reason to move it.
func (w *work) arbiters() {
	if len(w.targets) == 0 || w.rec.Quorum != crdt.Majority {
		return // who may decide alone was chosen by an operator
	}
	e := w.p.election(w.targets)
	short := e.best&e.down != 0
	if short {
		// One that is down for a moment keeps its seat, but gets none, and most of those that keep the record must be there to decide.
		e = w.p.elect(w.targets, func(i int) bool {
			n := &w.p.nodes[i]
			return w.p.keeps[i] && (n.Alive || slices.Contains(w.rec.Arbiters, n.ID))
		})
		if bits.OnesCount32(e.best&^e.down) <= bits.OnesCount32(e.best)/2 {
			if !slices.ContainsFunc(w.rec.Arbiters, w.p.unseated) {
				return
			}
			e = w.p.elect(w.targets, func(i int) bool { return w.p.keeps[i] && w.p.nodes[i].Alive })
		}
	}
	if e.best == 0 {
		return
	}
	var now uint32
	var gone []string
	for _, id := range w.rec.Arbiters {
		i, known := w.p.index[id]
		at := slices.Index(e.candidates, i)
		switch {
		case known && at >= 0 && !w.p.nodes[i].Drain:
			now |= 1 << at
		case known:
			gone = append(gone, w.p.nodes[i].name())
		default:
			gone = append(gone, id.Short())
		}
	}
	if len(gone) == 0 && now == e.best {
		return
	}
	var old, top score
	if len(gone) == 0 {
		old, top = e.score(now), e.score(e.best)
	}
	var why string
	switch {
	case len(gone) > 0:
		why = strings.Join(gone, ", ") + " cannot keep it any more"
	case !short && len(w.rec.Arbiters) != bits.OnesCount32(e.best): // else it may be another number when those that are down are back
		why = fmt.Sprintf("%d nodes should keep it", bits.OnesCount32(e.best))
	case slices.Compare(top.survived[:], old.survived[:]) > 0:
		why = "the disk survives more failures then"
	case top.far+arbiterDistance < old.far && 2*top.far < old.far:
		why = "they are nearer to the replicas"
	default:
		return
	}
	ids := e.ids(e.best)
	if slices.Equal(ids, w.rec.Arbiters) {
		return
	}
	w.plan.Steps = append(w.plan.Steps, Step{Kind: MoveArbiters, Arbiters: ids, Why: why})
	w.plan.Warnings = append(w.plan.Warnings, e.warnings(e.best)...)
}

// unseated says whether a node cannot keep a quorum record any more.
func (p *Planner) unseated(id ukai.NodeID) bool {
	i, known := p.index[id]
	return !known || !p.keeps[i] || p.nodes[i].Drain
}

// arbiterDistance is the gain in round-trip time, summed over the replicas, for which the quorum record is moved.
const arbiterDistance = 5 * time.Millisecond
