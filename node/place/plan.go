package place

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
)

// DefaultRepairAfter is how long a node with a replica may be down before its replica is made anew elsewhere. One that
// comes back before is resynced, which copies only what changed.
const DefaultRepairAfter = 10 * time.Minute

// StepKind is what a Step does.
type StepKind uint8

// Kinds of steps. A replica that is out or syncing and may stay needs no step: its disk's holder brings it up to date.
const (
	AddReplica   StepKind = iota // make a replica on a node, bring it up to date, count it in
	DropReplica                  // take a replica out for good; its space is freed later
	MoveArbiters                 // let other nodes keep the quorum record
	SetMinSync                   // change how many replicas must be in sync for writes
)

// String returns a verb.
func (k StepKind) String() string {
	switch k {
	case AddReplica:
		return "add"
	case DropReplica:
		return "drop"
	case MoveArbiters:
		return "move arbiters"
	}
	return "set min-sync"
}

// Step is one change of where a disk's replicas or its quorum record are.
type Step struct {
	Kind    StepKind
	Group   uint8
	Node    ukai.NodeID    // where the replica is made or dropped
	Replica ukai.ReplicaID // that is dropped
	From    ukai.NodeID    // nearest node that the data of a new replica can come from
	Bytes   int64          // copied, at most
	Why     string         // of a drop and of arbiters
	// Arbiters are those of MoveArbiters, sorted.
	Arbiters []ukai.NodeID
	MinSync  int // of SetMinSync
	// InSync is how many replicas of the group are in sync when an AddReplica or DropReplica is done.
	InSync int
}

// Plan is what leads from a disk's record to its rule. The steps are in the order in which they are safe: copies are
// made and in sync before others are dropped, and at no moment are fewer in sync than before, unless the rule asks for
// fewer. Nothing but the record and the rule is needed to go on after any step: planning anew gives the steps that are
// left.
type Plan struct {
	Steps    []Step
	Target   []ukai.NodeID // where the replicas of the first group will be
	Reasons  []Reason      // of every node that was considered, for the first group
	Unmet    string        // what the rule cannot get, why, and what would help; empty if it will be met
	Missing  string        // of Unmet only what
	Help     string        // of Unmet only what would help
	Warnings []string
}

// Bytes returns how many bytes the plan copies at most.
func (p Plan) Bytes() (n int64) {
	for _, s := range p.Steps {
		n += s.Bytes
	}
	return n
}

// Input is what a plan is made from.
type Input struct {
	Rule  Rule
	Rec   crdt.Record
	Nodes []Node
	Near  Near
	// Allocated is how many bytes a full replica of the disk takes; 0: not known, its size is assumed.
	Allocated int64
	// Now and RepairAfter decide for which nodes that are down a replacement is wanted; 0: DefaultRepairAfter,
	// negative: for none.
	Now         time.Time
	RepairAfter time.Duration
}

// Relocate plans what makes a disk's replicas what its rule wants, moving as little data as possible: replicas that
// suit the rule stay. A rule that cannot be met gives a plan for as much as can be had, with Unmet set; nothing is
// dropped then that leaves fewer in sync than there are. Deterministic.
//
// The error matches ukai.ErrInvalid for a rule that means nothing.
func Relocate(in Input) (Plan, error) {
	if in.RepairAfter == 0 {
		in.RepairAfter = DefaultRepairAfter
	}
	if in.Allocated <= 0 || in.Allocated > in.Rec.Size {
		in.Allocated = in.Rec.Size
	}
	if len(in.Rule.Terms) == 0 {
		return Plan{}, fmt.Errorf("place disk: %w: the rule is empty; say where the copies go, %s", ukai.ErrInvalid, examples)
	}
	if err := in.Rule.check(); err != nil {
		return Plan{}, err
	}
	in.Nodes = byName(in.Nodes)
	var p Plan
	minSync := Step{Kind: SetMinSync, MinSync: in.Rule.InSync()}
	if minSync.MinSync < in.Rec.MinSync {
		p.Steps = append(p.Steps, minSync) // else replicas that are not wanted any more could not be dropped
	}
	for i := range in.Rec.Groups {
		p.group(in, &in.Rec.Groups[i], i == 0)
	}
	if minSync.MinSync > in.Rec.MinSync && p.Unmet == "" {
		p.Steps = append(p.Steps, minSync)
	}
	p.arbiters(in)
	return p, nil
}

// stays says why a member may not stay where it is; "" if it may.
func (in *Input) stays(n Node, known bool) string {
	switch {
	case !known:
		return "its node has left the mesh for good"
	case n.Witness:
		return n.name() + " is a witness and stores no blocks"
	case n.Drain:
		return n.name() + " is being drained"
	case !n.Alive && in.RepairAfter > 0 && !n.DownSince.IsZero() && in.Now.Sub(n.DownSince) >= in.RepairAfter:
		return n.name() + " " + n.down()
	}
	return ""
}

// group plans for one group.
func (p *Plan) group(in Input, g *crdt.Group, first bool) {
	byID := map[ukai.NodeID]Node{}
	for _, n := range in.Nodes {
		byID[n.ID] = n
	}
	kept := map[ukai.NodeID]int{} // preference of the nodes whose replicas may stay
	for _, m := range g.Members {
		n, known := byID[m.Node]
		if m.Role == crdt.Async || in.stays(n, known) != "" {
			continue
		}
		switch {
		case m.Role == crdt.InSync && n.Alive:
			kept[m.Node] = 3
		case n.Alive:
			kept[m.Node] = 2
		default:
			kept[m.Node] = 1
		}
	}
	need := in.Allocated
	var fit []Node
	for _, n := range in.Nodes {
		if kept[n.ID] > 0 || n.unfit(need) == "" {
			fit = append(fit, n)
		}
	}
	s := newSearch(in.Rule, fit, in.Rec.Size, in.Near)
	s.kept = kept
	want := make([]int, len(in.Rule.Terms))
	for t := range want {
		want[t] = in.Rule.Terms[t].Count
	}
	set := s.fill(want)
	var got []int
	if set == nil {
		got, set = s.most(want)
	}
	var target []Node
	for _, k := range set {
		target = append(target, s.candidates[k].node)
	}
	if got != nil {
		list := in.reasons(need, target, kept)
		unmet, missing, help := explain(in.Rule, need, in.Nodes, list, got)
		if s.gaveUp {
			unmet = fmt.Sprintf("no placement was found in %d steps: use fewer --spread keys", maxSearchSteps)
			missing, help = unmet, ""
		}
		if p.Unmet == "" {
			p.Unmet, p.Missing, p.Help = unmet, missing, help
		}
	}
	if first {
		for _, n := range target {
			p.Target = append(p.Target, n.ID)
		}
		p.Reasons = in.reasons(need, target, kept)
	}
	p.steps(in, g, target, byID)
}

// reasons says of each node why it is or is not chosen.
func (in *Input) reasons(need int64, target []Node, kept map[ukai.NodeID]int) []Reason {
	list := reasons(in.Rule, need, in.Nodes, target)
	for i := range list {
		if r := &list[i]; r.Chosen && kept[r.Node] > 0 {
			r.Why = "has a replica already"
		}
	}
	return list
}

// steps lists what leads from a group's members to the target.
func (p *Plan) steps(in Input, g *crdt.Group, target []Node, byID map[ukai.NodeID]Node) {
	inSync := g.Count(crdt.InSync)
	on := func(id ukai.NodeID) func(crdt.Member) bool { return func(m crdt.Member) bool { return m.Node == id } }
	coming := 0 // in sync when everything that is added or brought up to date is
	bytes := in.share(g.ID)
	for _, n := range target {
		if i := slices.IndexFunc(g.Members, on(n.ID)); i >= 0 {
			if n.Alive {
				coming++
			}
			continue
		}
		coming++
		inSync++
		p.Steps = append(p.Steps, Step{Kind: AddReplica, Group: g.ID, Node: n.ID, From: in.nearest(g, n, byID), Bytes: bytes, InSync: inSync})
	}
	// Those that are not in sync go first: that costs nothing.
	members := slices.Clone(g.Members)
	slices.SortStableFunc(members, func(a, b crdt.Member) int { return compareBool(a.Role == crdt.InSync, b.Role == crdt.InSync) })
	// With a rule that cannot be met, what is there is not given up for less.
	floor := min(in.Rule.Replicas(), g.Count(crdt.InSync))
	for _, m := range members {
		if m.Role == crdt.Async || slices.ContainsFunc(target, func(n Node) bool { return n.ID == m.Node }) {
			continue
		}
		n, known := byID[m.Node]
		why := in.stays(n, known)
		if why == "" {
			why = "the rule does not want it there"
		}
		if m.Role == crdt.InSync {
			if coming < floor || inSync-1 < max(floor, 1) {
				continue
			}
			inSync--
		} else if p.Unmet != "" && (!known || !n.Alive) {
			continue // it may come back, and is better than nothing
		}
		p.Steps = append(p.Steps, Step{Kind: DropReplica, Group: g.ID, Node: m.Node, Replica: m.Replica, Why: why, InSync: inSync})
	}
}

// share returns how many bytes a replica of a group takes.
func (in *Input) share(group uint8) int64 {
	if len(in.Rec.Groups) == 1 {
		return in.Allocated
	}
	var blocks uint64
	for _, r := range in.Rec.Runs {
		if r.Group == group {
			blocks += r.Count
		}
	}
	return int64(float64(in.Allocated) * float64(blocks) / float64(in.Rec.Blocks()))
}

// nearest returns the node with an in-sync replica that is nearest to n.
func (in *Input) nearest(g *crdt.Group, n Node, byID map[ukai.NodeID]Node) (from ukai.NodeID) {
	var best time.Duration
	for _, m := range g.InSync() {
		s, known := byID[m.Node]
		if !known || !s.Alive {
			continue
		}
		if d := in.Near.known(s, n); from.IsZero() || d < best {
			from, best = m.Node, d
		}
	}
	return from
}

// arbiters plans a move of the quorum record, if that makes the disk survive more, or brings the record to where the
// replicas will be. A few milliseconds more or less are no reason to move it.
func (p *Plan) arbiters(in Input) {
	replicas := p.Target
	if len(replicas) == 0 || in.Rec.Quorum != crdt.Majority {
		return // who may decide alone was chosen by an operator
	}
	nodes := slices.Clone(in.Nodes)
	for i := range nodes {
		// A node that is down for a moment keeps its place.
		if n := &nodes[i]; !n.Alive && in.stays(Node{Name: n.Name, DownSince: n.DownSince}, true) == "" {
			n.Alive = true
		}
	}
	e := newElection(replicas, nodes, in.Near)
	best := e.elect(e.count())
	if best == 0 {
		return
	}
	var now uint32
	var gone []string
	for _, id := range in.Rec.Arbiters {
		i := slices.IndexFunc(e.candidates, func(n Node) bool { return n.ID == id })
		if i >= 0 && !e.candidates[i].Drain {
			now |= 1 << i
			continue
		}
		name := id.Short()
		if i := slices.IndexFunc(in.Nodes, func(n Node) bool { return n.ID == id }); i >= 0 {
			name = in.Nodes[i].name()
		}
		gone = append(gone, name)
	}
	var old, top score
	if len(gone) == 0 {
		old, top = e.score(now), e.score(best)
	}
	var why string
	switch {
	case len(gone) > 0:
		why = strings.Join(gone, ", ") + " cannot keep it any more"
	case len(in.Rec.Arbiters) != len(members(best)):
		why = fmt.Sprintf("%d nodes should keep it", len(members(best)))
	case slices.Compare(top.survived[:], old.survived[:]) > 0:
		why = "the disk survives more failures then"
	case top.far+arbiterDistance < old.far && 2*top.far < old.far:
		why = "they are nearer to the replicas"
	default:
		return
	}
	var ids []ukai.NodeID
	for _, i := range members(best) {
		ids = append(ids, e.candidates[i].ID)
	}
	slices.SortFunc(ids, func(a, b ukai.NodeID) int { return strings.Compare(string(a[:]), string(b[:])) })
	if slices.Equal(ids, in.Rec.Arbiters) {
		return
	}
	p.Steps = append(p.Steps, Step{Kind: MoveArbiters, Arbiters: ids, Why: why})
	p.Warnings = append(p.Warnings, e.warnings(best)...)
}

// arbiterDistance is the gain in round-trip time, summed over the replicas, for which the quorum record is moved.
const arbiterDistance = 5 * time.Millisecond
