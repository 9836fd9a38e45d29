package place

import (
	"fmt"
	"slices"
	"strings"

	"ukai"
	"ukai/crdt"
)

// Fate is what becomes of a disk when nodes are gone.
type Fate uint8

// Fates, best first.
const (
	KeepsRunning    Fate = iota // it loses nothing that it needs
	LosesRedundancy             // it goes on, with fewer copies in sync or without a majority of its arbiters
	Waits                       // its I/O waits, or it cannot be attached, until nodes return or somebody decides
	LosesData                   // every copy in sync is gone
)

var fates = []string{"keeps running", "loses redundancy", "waits", "loses data"}

// String returns the words that people read.
func (f Fate) String() string { return fates[f] }

// Outcome is the fate of one disk, and why.
type Outcome struct {
	Fate Fate
	Why  []string // one sentence each
	// Then is what is done about it without anybody's help once the nodes are gone.
	Then string
	// Remedy is what an administrator can do beforehand, a command if there is one; empty if nothing is needed.
	Remedy string
}

// Survey answers what disks survive. It is made once for the nodes of a mesh and used for many disks.
type Survey struct {
	nodes []Node
	byID  map[ukai.NodeID]Node
}

// NewSurvey makes a survey of a mesh with these nodes.
func NewSurvey(nodes []Node) *Survey {
	s := &Survey{nodes: byName(nodes), byID: make(map[ukai.NodeID]Node, len(nodes))}
	for _, n := range nodes {
		s.byID[n.ID] = n
	}
	return s
}

// Survive says what becomes of a disk if all nodes that a selector matches were gone for good, beside those that are down already. The nodes
// of the input are those of the survey. disk is its name, for the commands that are told.
func (s *Survey) Survive(disk string, in Input, gone Selector) Outcome {
	in.Nodes = s.nodes
	out := s.fate(in.Rec, gone)
	switch out.Fate {
	case KeepsRunning:
	case LosesRedundancy:
		s.repair(in, gone, &out)
	case Waits, LosesData:
		out.Remedy = s.remedy(disk, in, gone, out.Fate)
	}
	return out
}

// Fate is that of Survive, without what helps: it costs microseconds where that costs milliseconds.
func (s *Survey) Fate(rec crdt.Record, gone Selector) Fate { return s.fate(rec, gone).Fate }

// left says whether a node is there when others are gone.
func (s *Survey) left(id ukai.NodeID, gone Selector) bool {
	n, known := s.byID[id]
	return known && n.Alive && !gone.Matches(n)
}

func (s *Survey) name(id ukai.NodeID) string {
	if n, ok := s.byID[id]; ok {
		return n.name()
	}
	return id.Short()
}

func (s *Survey) names(ids []ukai.NodeID) string {
	var list []string
	for _, id := range ids {
		list = append(list, s.name(id))
	}
	return strings.Join(sorted(list), ", ")
}

// fate judges a record alone.
func (s *Survey) fate(rec crdt.Record, gone Selector) (out Outcome) {
	worse := func(f Fate, format string, args ...any) {
		out.Fate = max(out.Fate, f)
		out.Why = append(out.Why, fmt.Sprintf(format, args...))
	}
	held := rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering
	// The quorum record must be changed: to attach the disk, or to go on without a replica.
	decide, because := !held, "nobody has it attached"
	if held && !s.left(rec.Holder, gone) {
		decide, because = true, "its holder is gone"
		worse(KeepsRunning, "its holder %s is gone, and the VM there; another node can attach it", s.name(rec.Holder))
	}
	for i := range rec.Groups {
		if lost := s.group(&rec, &rec.Groups[i], gone, worse); lost && !decide {
			decide, because = true, "a replica is lost"
		}
	}
	s.quorum(rec, gone, decide, because, worse)
	return out
}

// group judges one group, and says whether it has lost an in-sync replica.
func (s *Survey) group(rec *crdt.Record, g *crdt.Group, gone Selector, worse func(Fate, string, ...any)) (lost bool) {
	of := ""
	if len(rec.Groups) > 1 {
		of = " of blocks " + Ranges(rec.RangesOf(g.ID))
	}
	var there, taken, down []ukai.NodeID
	for _, m := range g.InSync() {
		n, known := s.byID[m.Node]
		switch {
		case known && gone.Matches(n):
			taken = append(taken, m.Node)
		case s.left(m.Node, gone):
			there = append(there, m.Node)
		default:
			down = append(down, m.Node)
		}
	}
	waiting := "its I/O waits"
	if rec.OnLoss == crdt.Error {
		waiting = "its I/O fails"
	}
	switch {
	case len(there) == 0 && len(down) == 0:
		worse(LosesData, "every copy in sync%s is there: %s", of, s.names(taken))
	case len(there) == 0:
		worse(Waits, "the only copies in sync%s that are left are on nodes that are down: %s", of, s.names(down))
	case len(there) < rec.MinSync:
		worse(Waits, "%d in sync%s is left, on %s, and min-sync is %d: %s", len(there), of, s.names(there), rec.MinSync, waiting)
	case len(taken) > 0:
		worse(LosesRedundancy, "%d of %d in sync%s are left, on %s", len(there), len(there)+len(taken), of, s.names(there))
	}
	return len(taken)+len(down) > 0
}

// quorum judges the arbiters. decide says that the record must be changed for the disk to go on.
func (s *Survey) quorum(rec crdt.Record, gone Selector, decide bool, because string, worse func(Fate, string, ...any)) {
	var votes, silent []ukai.NodeID
	for _, id := range rec.Arbiters {
		if s.left(id, gone) {
			votes = append(votes, id)
		} else {
			silent = append(silent, id)
		}
	}
	need := len(rec.Arbiters)/2 + 1
	if len(votes) >= need {
		return
	}
	what := fmt.Sprintf("%d of its %d arbiters are left, %d are needed (without %s)", len(votes), len(rec.Arbiters), need, s.names(silent))
	switch rec.Quorum {
	case crdt.PreferredNode:
		what = fmt.Sprintf("%s, which alone decides about it, is gone", s.names(silent))
	case crdt.UnsafeSurvivor:
		what += "; its quorum mode is unsafe, so that after 30 s a survivor goes on, perhaps one on each side of a cut"
	case crdt.Majority:
	}
	if decide {
		worse(Waits, "%s, and it needs a decision: %s", what, because)
		return
	}
	worse(LosesRedundancy, "%s: it goes on where it is attached, until it loses a replica or is attached elsewhere", what)
}

// repair tells what is done about lost redundancy once the nodes are gone, or what keeps it from being done.
func (s *Survey) repair(in Input, gone Selector, out *Outcome) {
	if in.RepairAfter == 0 {
		in.RepairAfter = DefaultRepairAfter
	}
	if in.RepairAfter < 0 || len(in.Rule.Terms) == 0 {
		out.Remedy = "copies are not replaced by themselves: move it with ukai-node place disk"
		return
	}
	in.Nodes = slices.Clone(in.Nodes)
	for i := range in.Nodes {
		if n := &in.Nodes[i]; gone.Matches(*n) {
			n.Alive, n.DownSince = false, in.Now.Add(-in.RepairAfter)
		}
	}
	plan, err := relocate(in)
	switch {
	case err != nil:
		out.Remedy = err.Error()
		return
	case plan.Unmet != "":
		out.Remedy = plan.Help
		return
	}
	var on []ukai.NodeID
	for _, step := range plan.Steps {
		if step.Kind == AddReplica {
			on = append(on, step.Node)
		}
	}
	switch {
	case len(on) > 0:
		out.Then = fmt.Sprintf("after %v a copy is made on %s", in.RepairAfter, s.names(on))
	case len(plan.Steps) > 0:
		out.Then = fmt.Sprintf("after %v its quorum record moves to nodes that are left", in.RepairAfter)
	}
}

// remedy looks for something that makes a disk survive: by trying what an administrator could do, mildest first.
func (s *Survey) remedy(disk string, in Input, gone Selector, fate Fate) string {
	mends := func(rule Rule, ranges RangeRules) bool {
		if rule.check() != nil {
			return false
		}
		with := in
		with.Rule, with.Ranges = rule, ranges
		plan, err := relocate(with)
		return err == nil && plan.Unmet == "" && s.fate(plan.After(in.Rec), gone).Fate < min(fate, Waits)
	}
	if len(in.Rule.Terms) > 0 {
		if mends(in.Rule, in.Ranges) {
			return "nothing: its relocation is under way, see ukai-node place show " + disk
		}
		for _, r := range s.stronger(in.Rule, gone) {
			if mends(r, in.Ranges) {
				return fmt.Sprintf("ukai-node place disk %s %s", disk, r)
			}
		}
		for _, x := range in.Ranges {
			for _, r := range s.stronger(x.Rule, gone) {
				if ranges, err := in.Ranges.Set(x.Blocks, r); err == nil && mends(in.Rule, ranges) {
					return fmt.Sprintf("ukai-node place disk %s --blocks %v %s", disk, x.Blocks, r)
				}
			}
		}
	}
	// A node that decides alone goes on where a copy is left. It is told last, for without that node nobody goes on.
	if fate == Waits && in.Rec.Quorum == crdt.Majority {
		alone := in.Rec.Clone()
		alone.Quorum = crdt.PreferredNode
		for i := range alone.Groups {
			for _, m := range alone.Groups[i].InSync() {
				alone.Arbiters = []ukai.NodeID{m.Node}
				if s.left(m.Node, gone) && s.fate(alone, gone).Fate < Waits {
					return fmt.Sprintf("add a witness elsewhere: ukai-node start --witness --label dc=THIRD; or let one node decide alone: ukai-node disk quorum %s preferred %s", disk, s.name(m.Node))
				}
			}
		}
	}
	switch {
	case in.Rec.Quorum == crdt.UnsafeSurvivor && fate == Waits:
		return fmt.Sprintf("nothing: a survivor goes on by itself; at once with ukai-node disk force %s", disk)
	case fate == Waits:
		return "bring back the nodes that are down, or add nodes elsewhere for copies and for its quorum record"
	}
	return "add a node elsewhere that can take a copy, then give the disk a rule with a copy there"
}

// stronger lists rules that may survive what a rule does not: a copy more, a copy elsewhere, fewer in sync for writes.
func (s *Survey) stronger(rule Rule, gone Selector) (list []Rule) {
	with := func(change func(*Rule)) {
		r := rule
		r.Terms = slices.Clone(rule.Terms)
		change(&r)
		list = append(list, r)
	}
	for t, term := range rule.Terms {
		if !slices.ContainsFunc(term.Conditions, func(c Condition) bool { return c.Key == nodeKey && !c.Not }) {
			with(func(r *Rule) { r.Terms[t].Count++ })
		}
	}
	if term, ok := gone.others(); ok && !slices.ContainsFunc(rule.Terms, func(t Term) bool { return slices.Equal(t.Conditions, term.Conditions) }) {
		with(func(r *Rule) { r.Terms = append(r.Terms, term) })
	}
	for n := rule.InSync() - 1; n >= 1; n-- {
		with(func(r *Rule) { r.MinSync = n })
	}
	return list
}

func sorted(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return list
}

// After returns the record as it is when the plan has been carried out and what is added is in sync.
func (p Plan) After(rec crdt.Record) crdt.Record {
	rec = rec.Clone()
	for _, s := range p.Steps {
		s.apply(&rec)
	}
	return rec
}

// apply does to a record what carrying out the step does. A replica that is added has no id yet.
func (s Step) apply(rec *crdt.Record) {
	switch s.Kind {
	case SetMinSync:
		rec.MinSync = s.MinSync
		return
	case MoveArbiters:
		rec.Arbiters = s.Arbiters
		return
	case SplitGroup:
		if g := rec.Group(s.Group); g != nil {
			rec.Groups = append(rec.Groups, crdt.Group{ID: s.Into, Members: slices.Clone(g.Members)})
			slices.SortFunc(rec.Groups, func(a, b crdt.Group) int { return int(a.ID) - int(b.ID) })
		}
		for _, b := range s.Blocks {
			_ = rec.SetRange(b, s.Into) // a plan is made for the record
		}
		return
	case MergeGroup:
		for _, b := range rec.RangesOf(s.Group) {
			_ = rec.SetRange(b, s.Into)
		}
		rec.Groups = slices.DeleteFunc(rec.Groups, func(g crdt.Group) bool { return g.ID == s.Group })
		return
	case AddReplica, DropReplica:
	}
	for i := range rec.Groups {
		if g := &rec.Groups[i]; g.ID == s.Group && s.Kind == AddReplica {
			g.Members = append(g.Members, crdt.Member{Replica: s.Replica, Node: s.Node, Role: crdt.InSync})
		} else if g.ID == s.Group {
			g.Members = slices.DeleteFunc(g.Members, func(m crdt.Member) bool { return m.Replica == s.Replica && m.Node == s.Node })
		}
	}
}
