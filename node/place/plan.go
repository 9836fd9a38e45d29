package place

import (
	"fmt"
	"slices"
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
	SplitGroup                   // let blocks have replicas of their own: the same ones for now
	MergeGroup                   // let blocks whose replicas are the same be treated as one again
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
	case SplitGroup:
		return "split"
	case MergeGroup:
		return "merge"
	case SetMinSync:
	}
	return "set min-sync"
}

// Step is one change of where a disk's replicas or its quorum record are.
type Step struct {
	Kind  StepKind
	Group uint8
	Node  ukai.NodeID // where the replica is made or dropped
	// Replica is the one that is dropped, or of an added one that which its node has of other blocks already and is to serve these, too; 0: it has none.
	Replica ukai.ReplicaID
	From    ukai.NodeID // nearest node that the data of a new replica can come from
	Bytes   int64       // copied, at most
	Reuses  int64       // of Bytes: the node kept an old copy of so many, and what is equal in it is not copied
	Frees   int64       // of a drop: given back later, about
	Why     string      // of a drop and of arbiters
	// Arbiters are those of MoveArbiters, sorted.
	Arbiters []ukai.NodeID
	MinSync  int // of SetMinSync
	// InSync is how many replicas of the group are in sync when an AddReplica or DropReplica is done.
	InSync int
	// Blocks are those concerned, where not all blocks have the same replicas or rule.
	Blocks []ukai.Range
	Into   uint8 // of SplitGroup the new group, of MergeGroup the one that gets the blocks
	Waits  bool  // of MergeGroup: until all replicas are in sync
}

// Plan is what leads from a disk's record to its rule. The steps are in the order in which they are safe: copies are
// made and in sync before others are dropped, and at no moment are fewer in sync than before, unless the rule asks for
// fewer or Input.Fewer allows it. Nothing but the record and the rule is needed to go on after any step: planning anew gives the steps that are
// left.
type Plan struct {
	Steps    []Step
	Target   []ukai.NodeID // where the replicas of the first group will be, by name
	Reasons  []Reason      // of every node that was considered, for the first group
	Unmet    string        // what the rule cannot get, why, and what would help; empty if it will be met
	Missing  string        // of Unmet only what
	Help     string        // of Unmet only what would help
	Warnings []string
	// Short are the rules of which Unmet tells, by their text.
	Short []string
	// Targets are, of a disk with ranges, where the replicas of each rule will be, by its text.
	Targets map[string][]ukai.NodeID
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
	// Lost are replicas that their nodes, which are alive, do not have any more or whose disk has failed, and since when that is known. LostAfter
	// later they count for nothing, unless the record has them in sync: new ones are made, on the same nodes or on others.
	Lost map[ukai.ReplicaID]time.Time
	// Fewer allows that fewer replicas are in sync while the disk moves than before: what is not wanted is dropped before others are made, so that no
	// space is needed for both. At least one stays in sync, and as many as writes need.
	Fewer bool
	// Kept is how many bytes of an old copy of the disk nodes have kept. They are not replicas, but a replica is sooner made there than elsewhere.
	Kept map[ukai.NodeID]int64
	// Ranges are the blocks that have a rule of their own.
	Ranges RangeRules
	// About is the rule of which the plan's reasons are; without terms: Rule.
	About Rule
}

// LostAfter is how long a replica must have been lost before it is replaced.
const LostAfter = 30 * time.Second

// Relocate plans what makes a disk's replicas what its rule wants, moving as little data as possible: replicas that
// suit the rule stay. A rule that cannot be met gives a plan for as much as can be had, with Unmet set; nothing is
// dropped then that leaves fewer in sync than there are. Deterministic.
//
// The error matches ukai.ErrInvalid for a rule that means nothing.
func Relocate(in Input) (Plan, error) {
	p := in.planner()
	plan, err := p.Plan(in.Rule, in.Rec, in.Allocated)
	if err == nil {
		about := in.Rule
		if len(in.About.Terms) > 0 {
			about = in.About
		}
		plan.Reasons = p.Reasons(about, in.Rec, in.Allocated, plan)
	}
	return plan, err
}

// relocate is Relocate without the reasons, which take most of the time.
func relocate(in Input) (Plan, error) { return in.planner().Plan(in.Rule, in.Rec, in.Allocated) }

func (in Input) planner() *Planner {
	p := NewPlanner(in.Nodes, in.Near, in.Now, in.RepairAfter)
	p.Lost, p.Fewer, p.Ranges, p.Kept = in.Lost, in.Fewer, in.Ranges, in.Kept
	return p
}

// work is the making of one plan.
type work struct {
	p         *Planner
	e         *eligibility
	rule      Rule // of the group that is looked at
	rec       *crdt.Record
	allocated int64
	need      int64 // bytes of a replica of the group that is looked at
	inSync    int   // fewest with which writes go on
	targets   []int // nodes of the first group
	plan      Plan
	grouping  *grouping // of a disk whose blocks have not all the same replicas and rule
}

func (w *work) run() error {
	minSync := Step{Kind: SetMinSync, MinSync: w.inSync}
	if minSync.MinSync < w.rec.MinSync {
		w.plan.Steps = append(w.plan.Steps, minSync) // else replicas that are not wanted any more could not be dropped
	}
	if len(w.p.Ranges) > 0 || len(w.rec.Groups) > 1 {
		if err := w.apart(); err != nil {
			return err
		}
	} else {
		w.need = w.allocated
		w.targets = w.group(&w.rec.Groups[0])
		if w.plan.Unmet != "" {
			w.plan.Short = []string{w.rule.String()}
		}
	}
	slices.Sort(w.targets)
	w.plan.Target = w.p.ids(w.targets)
	if minSync.MinSync > w.rec.MinSync && w.plan.Unmet == "" {
		w.plan.Steps = append(w.plan.Steps, minSync)
	}
	w.arbiters()
	return nil
}

// group plans one group, and returns the nodes of its replicas.
func (w *work) group(g *crdt.Group) []int {
	target := w.settled(g)
	if target == nil || w.p.thorough {
		target = w.target(g)
		w.steps(g, target)
	}
	return slices.Clone(target)
}

// settled returns the nodes of a group's members if they are just what the search would choose, so that the group needs no step: as many
// as the rule wants, all where they may stay, and together filling all its terms. For the search prefers nodes with a replica to all others.
func (w *work) settled(g *crdt.Group) []int {
	s := w.p.searching(w.e, w.rec.Size)
	for _, m := range g.Members {
		if m.Role == crdt.Async {
			continue
		}
		i, known := w.p.index[m.Node]
		if !known || w.p.leaves[i] != "" || w.p.lost(m) || w.e.terms[i] == 0 || slices.Contains(s.candidates, i) {
			return nil
		}
		s.add(i)
	}
	if len(s.candidates) != w.e.replicas() {
		return nil
	}
	return s.fill(w.e.want)
}

// target chooses the nodes of a group's replicas, best first, and says in the plan what cannot be had.
func (w *work) target(g *crdt.Group) []int {
	s := w.p.searching(w.e, w.rec.Size)
	for _, m := range g.Members {
		i, known := w.p.index[m.Node]
		if m.Role == crdt.Async || !known || w.p.leaves[i] != "" || w.p.lost(m) {
			continue
		}
		switch n := &w.p.nodes[i]; {
		case m.Role == crdt.InSync && n.Alive:
			s.kept[i] = 4
		case n.Alive:
			s.kept[i] = 3
		default:
			s.kept[i] = 2
		}
	}
	for i := range w.p.nodes {
		n := &w.p.nodes[i]
		kept := w.p.Kept[n.ID]
		switch {
		case s.kept[i] > 0:
		case !n.fits(w.need-min(kept, w.need)+w.grouping.taken(i)) || w.grouping.stuck(i):
			continue
		case kept > 0:
			s.kept[i] = 1
		}
		s.add(i)
	}
	set := s.fill(w.e.want)
	if set != nil {
		return set
	}
	gaveUp := s.gaveUp
	got, set := s.most(w.e.want)
	if w.plan.Unmet != "" {
		return set
	}
	w.plan.Unmet, w.plan.Missing, w.plan.Help = explain(w.rule, w.need, w.p.nodes, w.p.reasons(w.rule, w.need, g, set), got)
	if gaveUp {
		w.plan.Unmet = fmt.Sprintf("no placement was found in %d steps: use fewer --spread keys", maxSearchSteps)
		w.plan.Missing, w.plan.Help = w.plan.Unmet, ""
	}
	return set
}

// Reasons says of each node why a plan does or does not put a replica of the first blocks of a rule on it.
func (p *Planner) Reasons(rule Rule, rec crdt.Record, allocated int64, plan Plan) []Reason {
	if allocated <= 0 || allocated > rec.Size {
		allocated = rec.Size
	}
	g, target := &rec.Groups[0], plan.Target
	if at, ok := plan.Targets[rule.String()]; ok {
		target = at
		for _, x := range p.Ranges {
			if owner := rec.GroupOf(x.Blocks.First); owner != nil && x.Rule.String() == rule.String() {
				g, allocated = owner, min(allocated, int64(x.Blocks.Count)*int64(rec.BlockSize))
				break
			}
		}
	}
	return p.reasons(rule, allocated, g, p.find(target))
}

func (p *Planner) reasons(rule Rule, need int64, g *crdt.Group, target []int) []Reason {
	chosen := make([]Node, len(target))
	for i, n := range target {
		chosen[i] = p.nodes[n]
	}
	list := reasons(rule, need, p.nodes, chosen)
	for i := range list {
		r := &list[i]
		has := slices.ContainsFunc(g.Members, func(m crdt.Member) bool { return m.Node == r.Node && m.Role != crdt.Async })
		switch {
		case r.Chosen && has && p.stays(r.Node) == "":
			r.Why = "has a replica already"
		case r.Chosen && !has && p.Kept[r.Node] > 0:
			r.Why = "has kept an old copy"
		}
	}
	return list
}
