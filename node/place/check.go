package place

import (
	"fmt"
	"slices"
	"strings"

	"ukai"
	"ukai/crdt"
)

// Status compares a rule with a disk's record.
type Status struct {
	Met    bool
	Wanted string       // the rule
	Now    string       // the replicas, as "t1 in sync, t2 syncing"
	Terms  []TermStatus // per group and term
	// Differences says what keeps the rule from being met, why, and what would help; empty if Met.
	Differences []string
	// Parts is the same of all blocks that have the same replicas and are to have the same rule; one for most disks.
	Parts []PartStatus
}

// PartStatus is Status of some blocks.
type PartStatus struct {
	Blocks      []ukai.Range
	Own         bool // they have a rule of their own
	Wanted, Now string
	Terms       []TermStatus
	Differences []string
}

// TermStatus is one term's part of a Status.
type TermStatus struct {
	Group uint8 // of the record; most disks have one
	Term  string
	Want  int
	Have  int      // replicas in sync that count for this term
	Nodes []string // their nodes
}

// Check says whether a disk's record is what its rule wants, and why not.
func Check(rule Rule, rec crdt.Record, nodes []Node) Status {
	return CheckRanges(rule, nil, rec, nodes)
}

// CheckRanges is Check of a disk with blocks that have rules of their own.
func CheckRanges(rule Rule, ranges RangeRules, rec crdt.Record, nodes []Node) Status {
	byID := map[ukai.NodeID]Node{}
	for _, n := range nodes {
		byID[n.ID] = n
	}
	s := Status{Wanted: rule.String()}
	if rec.Phase == crdt.PhaseDeleted {
		s.Now = "deleted"
		s.Differences = []string{"the disk is deleted"}
		return s
	}
	for i := range rec.Groups {
		g := &rec.Groups[i]
		for _, piece := range ranges.pieces(rule, rec.RangesOf(g.ID)) {
			part := PartStatus{Blocks: piece.blocks, Own: piece.class > 0}
			wanted := ranges.rule(rule, piece.class)
			part.Wanted = wanted.String()
			part.group(wanted, g, byID)
			s.Parts = append(s.Parts, part)
		}
	}
	var now []string
	for i := range s.Parts {
		part := &s.Parts[i]
		prefix := ""
		if len(s.Parts) > 1 {
			prefix = "blocks " + Ranges(part.Blocks) + ": "
		}
		now = append(now, prefix+part.Now)
		s.Terms = append(s.Terms, part.Terms...)
		for _, d := range part.Differences {
			s.Differences = append(s.Differences, prefix+d)
		}
	}
	s.Now = strings.Join(now, "; ")
	s.Met = len(s.Differences) == 0
	return s
}

// group compares the rule with one group of replicas.
func (s *PartStatus) group(rule Rule, g *crdt.Group, byID map[ukai.NodeID]Node) {
	var sync, all []Node
	var words []string
	differ := func(format string, args ...any) { s.Differences = append(s.Differences, fmt.Sprintf(format, args...)) }
	for _, m := range g.Members {
		n, known := byID[m.Node]
		if !known {
			n = Node{ID: m.Node}
		}
		all = append(all, n)
		words = append(words, n.name()+" "+m.Role.String())
		switch {
		case !known:
			differ("%s is not a node of this mesh", n.name())
		case !n.Alive:
			differ("%s %s: its replica is %v", n.name(), n.down(), m.Role)
		case m.Role == crdt.Syncing:
			differ("%s is being brought up to date", n.name())
		case m.Role == crdt.Out:
			differ("%s has missed writes and must be brought up to date: attach the disk on any node", n.name())
		}
		if m.Role == crdt.InSync {
			sync = append(sync, n)
		}
	}
	slices.Sort(words)
	s.Now = strings.Join(words, ", ")
	count := assign(rule, sync)
	for t, term := range rule.Terms {
		ts := TermStatus{Group: g.ID, Term: term.String(), Want: term.Count}
		for i, n := range sync {
			if count[i] == t {
				ts.Have++
				ts.Nodes = append(ts.Nodes, n.name())
			}
		}
		slices.Sort(ts.Nodes)
		s.Terms = append(s.Terms, ts)
		if ts.Have < ts.Want {
			differ("%s wants %d in sync, has %d", term.selector(), ts.Want, ts.Have)
		}
	}
	if len(rule.Terms) == 0 {
		return // a disk without a rule: whatever it has is right
	}
	// What no term needs is judged over all members: a replica that is only out is not one too many.
	for i, t := range assign(rule, all) {
		if t < 0 && g.Members[i].Role != crdt.Async {
			differ("the replica on %s is not wanted by the rule", all[i].name())
		}
	}
	for _, key := range rule.Spread {
		for i, a := range all {
			if a.value(key) == "" {
				differ("%s has no label %s, which --spread %s needs", a.name(), key, key)
				continue
			}
			for _, b := range all[:i] {
				if a.value(key) == b.value(key) {
					differ("%s and %s share %s=%s", b.name(), a.name(), key, a.value(key))
				}
			}
		}
	}
}

// assign gives as many nodes as possible a term each; -1 to those left over. Earlier nodes come first.
func assign(rule Rule, nodes []Node) []int {
	var slots []int
	for t, term := range rule.Terms {
		for range term.Count {
			slots = append(slots, t)
		}
	}
	owner := make([]int, len(slots)) // node of a slot
	for i := range owner {
		owner[i] = -1
	}
	var place func(i int, seen []bool) bool
	place = func(i int, seen []bool) bool {
		for s, t := range slots {
			if seen[s] || !rule.Terms[t].matches(nodes[i]) {
				continue
			}
			seen[s] = true
			if owner[s] < 0 || place(owner[s], seen) {
				owner[s] = i
				return true
			}
		}
		return false
	}
	for i := range nodes {
		place(i, make([]bool, len(slots)))
	}
	terms := make([]int, len(nodes))
	for i := range terms {
		terms[i] = -1
	}
	for s, i := range owner {
		if i >= 0 {
			terms[i] = slots[s]
		}
	}
	return terms
}

// Ranges returns ranges of blocks in words.
func Ranges(list []ukai.Range) string {
	text := make([]string, len(list))
	for i, r := range list {
		text[i] = r.String()
	}
	return strings.Join(text, ",")
}
