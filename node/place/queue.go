package place

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
)

// queue puts the steps of one group into an order.
type queue struct {
	w               *work
	g               *crdt.Group
	adds            []int  // nodes, in order
	outs, ins       []Step // drops of replicas that are not in sync, and of those that are
	members, inSync int    // when all steps so far are done
	floor           int    // fewest in sync that a drop may leave
	gone            []ukai.ReplicaID
}

func (q *queue) drop(s Step) {
	s.Kind, s.InSync = DropReplica, q.inSync
	q.members--
	q.gone = append(q.gone, s.Replica)
	q.w.plan.Steps = append(q.w.plan.Steps, s)
}

// next drops one replica that may go now. Those that are not in sync go first: that costs nothing.
func (q *queue) next() bool {
	if len(q.outs) > 0 {
		s := q.outs[0]
		q.outs = q.outs[1:]
		q.drop(s)
		return true
	}
	if len(q.ins) == 0 || q.inSync-1 < q.floor {
		return false
	}
	s := q.ins[0]
	q.ins = q.ins[1:]
	q.inSync--
	q.drop(s)
	return true
}

// drops drops all that may go now.
func (q *queue) drops() {
	for q.next() {
	}
}

// room makes sure that another replica can be added, by drops that come early.
func (q *queue) room() bool {
	for q.members >= crdt.MaxMembers {
		if !q.next() {
			return false
		}
	}
	return true
}

func (q *queue) add(node int, bytes int64) {
	q.members++
	q.inSync++
	id, reuses := q.w.p.nodes[node].ID, int64(0)
	replica := q.w.grouping.take(node, bytes)
	if replica == 0 {
		reuses = min(q.w.p.Kept[id], bytes)
	}
	q.w.plan.Steps = append(q.w.plan.Steps, Step{
		Kind: AddReplica, Group: q.g.ID, Node: id, Replica: replica, From: q.w.nearest(q.g, q.gone, node), Bytes: bytes, Reuses: reuses, InSync: q.inSync,
	})
}

// farthestFirst sorts the replicas in sync that are to go so that those from which copies are made soonest go last: the nearest to the node that copies, or
// if nobody has the disk attached to the first new replica.
func (q *queue) farthestFirst() {
	to, known := q.w.holder()
	if !known {
		to = q.adds[0]
	}
	slices.SortStableFunc(q.ins, func(a, b Step) int {
		i, knownA := q.w.p.index[a.Node]
		j, knownB := q.w.p.index[b.Node]
		if !knownA || !knownB {
			return compareBool(knownA, knownB)
		}
		d := q.w.p.distances(to)
		return cmp.Or(compareBool(q.w.p.nodes[i].Alive, q.w.p.nodes[j].Alive), cmp.Compare(d[j], d[i]))
	})
}

const lostWhy = "it is gone, or its disk has failed"

// nearest returns the node with an in-sync replica, that is not gone, which is nearest to another.
func (w *work) nearest(g *crdt.Group, gone []ukai.ReplicaID, to int) (from ukai.NodeID) {
	var best time.Duration
	for _, m := range g.InSync() {
		i, known := w.p.index[m.Node]
		if !known || !w.p.nodes[i].Alive || slices.Contains(gone, m.Replica) {
			continue
		}
		if d := w.p.distances(i)[to]; from.IsZero() || d < best {
			from, best = m.Node, d
		}
	}
	return from
}

// steps lists what leads from a group's members to the target.
func (w *work) steps(g *crdt.Group, target []int) {
	coming := 0 // in sync when everything that is added or brought up to date is
	bytes := w.need
	wanted := func(id ukai.NodeID) bool {
		i, known := w.p.index[id]
		return known && slices.Contains(target, i)
	}
	q := queue{w: w, g: g, members: len(g.Members), inSync: g.Count(crdt.InSync)}
	for _, m := range g.Members { // a node has one replica of a group
		if w.p.lost(m) && wanted(m.Node) {
			q.drop(Step{Group: g.ID, Node: m.Node, Replica: m.Replica, Why: lostWhy})
		}
	}
	// All data of new replicas goes through the holder: with a replica of its own first, it comes from afar only once.
	if holder, known := w.holder(); known {
		if at := slices.Index(target, holder); at > 0 {
			target = slices.Insert(slices.Delete(slices.Clone(target), at, at+1), 0, holder)
		}
	}
	for _, i := range target {
		n := &w.p.nodes[i]
		if slices.ContainsFunc(g.Members, func(m crdt.Member) bool { return m.Node == n.ID && !w.p.lost(m) }) {
			if n.Alive {
				coming++
			}
			continue
		}
		coming++
		q.adds = append(q.adds, i)
	}
	for _, m := range g.Members {
		if m.Role == crdt.Async || wanted(m.Node) {
			continue
		}
		i, known := w.p.index[m.Node]
		s := Step{Group: g.ID, Node: m.Node, Replica: m.Replica, Why: w.p.stays(m.Node), Frees: bytes}
		switch {
		case s.Why != "":
		case w.p.lost(m):
			s.Why = lostWhy
		default:
			s.Why = "the rule does not want it there"
		}
		switch {
		case m.Role == crdt.InSync:
			q.ins = append(q.ins, s)
		case w.plan.Unmet == "" || known && w.p.nodes[i].Alive && !w.p.lost(m): // else it may come back, and is better than nothing
			q.outs = append(q.outs, s)
		}
	}
	// With a rule that cannot be met, what is there is not given up for less.
	q.floor = max(min(w.e.replicas(), q.inSync), 1)
	if coming < q.floor {
		q.floor = crdt.MaxMembers + 1
	}
	first := w.p.Fewer && w.plan.Unmet == "" && len(q.adds) > 0
	if first {
		q.floor = max(1, min(w.rec.MinSync, w.inSync)) // what is in force then: a smaller one is set first, a larger one last
		q.farthestFirst()
		q.drops()
	}
	for _, i := range q.adds {
		if !q.room() {
			w.full(g)
			break
		}
		q.add(i, bytes)
	}
	q.drops()
}

// holder returns the node that has the disk attached.
func (w *work) holder() (i int, known bool) {
	i, known = w.p.index[w.rec.Holder]
	return i, known && w.rec.Phase == crdt.PhaseActive
}

// full says that a group has as many replicas as can be, and none may go before another is made.
func (w *work) full(g *crdt.Group) {
	if w.plan.Unmet != "" {
		return
	}
	w.plan.Missing = fmt.Sprintf("%d replicas, the most there can be, are to go on being in sync until others are", len(g.Members))
	w.plan.Help = "ask for fewer copies, or allow fewer in sync while it moves: --allow-fewer"
	w.plan.Unmet = w.plan.Missing + "; what would help: " + w.plan.Help
}
