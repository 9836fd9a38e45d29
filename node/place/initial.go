package place

import (
	"fmt"
	"slices"
	"strings"

	"ukai"
)

// maxTold bounds how many nodes an error names; Choice.Reasons has all of them.
const maxTold = 24

// Choice is where the replicas of a new disk go.
type Choice struct {
	Nodes    []ukai.NodeID // all different, best first
	Reasons  []Reason      // of every node that was considered, by name
	Unmet    string        // what the rule could not get, why, and what would help; empty if it is met
	Missing  string        // of Unmet only what: "dc=tokyo gets 1 of 2"
	Help     string        // of Unmet only what would help
	Warnings []string      // what is allowed but may turn out badly
}

// Reason says why a node was chosen or not.
type Reason struct {
	Node   ukai.NodeID
	Name   string
	Chosen bool
	Why    string
}

// ThinNeed returns how many bytes a node must have free beyond its reserve for a replica of a thin disk of this size: a
// twentieth of it, at least 256 MiB, never more than all of it. Most disks are never written in full; those that are
// find their nodes' stores full one day, so the choice prefers nodes with room for all of it, and warns.
func ThinNeed(diskBytes int64) int64 {
	return min(diskBytes, max(256<<20, diskBytes/20))
}

// Initial chooses the nodes of a new disk of this many bytes, thin: each has room for ThinNeed. The choice satisfies
// all terms and spread keys if that is possible at all, never uses a node twice, and never one that is a witness, down,
// being drained or closed to new replicas.
//
// If the rule cannot be met the error matches ukai.ErrUnmet; its text says why for each node, and what would help. If
// the rule is to be preferred, as many replicas as possible are placed instead and Choice.Unmet says the same, unless
// there would be too few for writes.
func Initial(rule Rule, diskBytes int64, nodes []Node, near Near) (Choice, error) {
	return choose(rule, diskBytes, ThinNeed(diskBytes), nodes, near)
}

// InitialThick is Initial for a disk whose whole size must be free on each of its nodes.
func InitialThick(rule Rule, diskBytes int64, nodes []Node, near Near) (Choice, error) {
	return choose(rule, diskBytes, diskBytes, nodes, near)
}

func choose(rule Rule, diskBytes, need int64, nodes []Node, near Near) (Choice, error) {
	p := newPlanner(nodes, near)
	e, err := p.eligibility(rule)
	if err != nil {
		return Choice{}, err
	}
	s := p.searching(e, diskBytes)
	for i := range p.nodes {
		if p.nodes[i].fits(need) {
			s.add(i)
		}
	}
	var got []int
	set := s.fill(e.want)
	if set == nil {
		if s.gaveUp {
			return Choice{}, fmt.Errorf("rule %q: %w: no placement found in %d steps, so that it is not known whether there is one; use fewer --spread keys",
				rule, ukai.ErrUnmet, maxSearchSteps)
		}
		got, set = s.most(e.want)
	}
	var c Choice
	chosen := make([]Node, len(set))
	for i, k := range set {
		chosen[i] = p.nodes[k]
		c.Nodes = append(c.Nodes, chosen[i].ID)
		if n := &chosen[i]; n.room() < diskBytes {
			c.Warnings = append(c.Warnings, fmt.Sprintf("node %s has room for %s of the disk's %s: it is full when more is written", n.name(), size(max(0, n.room())), size(diskBytes)))
		}
	}
	c.Reasons = reasons(rule, need, p.nodes, chosen)
	if got == nil {
		return c, nil
	}
	c.Unmet, c.Missing, c.Help = explain(rule, need, p.nodes, c.Reasons, got)
	if rule.Mode == Strict || len(set) < rule.InSync() {
		return Choice{Reasons: c.Reasons, Unmet: c.Unmet, Missing: c.Missing, Help: c.Help}, fmt.Errorf("rule %q: %w: %s", rule, ukai.ErrUnmet, c.Unmet)
	}
	return c, nil
}

// most finds the most replicas that can be placed when not all can, earlier terms first.
func (s *search) most(want []int) (got []int, set []int) {
	total := 0
	for _, n := range want {
		total += n
	}
	for total--; total > 0; total-- {
		for _, some := range parts(want, total) {
			if set := s.fill(some); set != nil {
				return some, set
			}
		}
	}
	return make([]int, len(want)), nil
}

// parts returns all ways to ask for total replicas with no more than want of each term, fullest first terms first.
func parts(want []int, total int) [][]int {
	if len(want) == 0 {
		if total == 0 {
			return [][]int{nil}
		}
		return nil
	}
	var all [][]int
	for n := min(want[0], total); n >= 0; n-- {
		for _, rest := range parts(want[1:], total-n) {
			all = append(all, append([]int{n}, rest...))
		}
	}
	return all
}

// reasons says of each node why it was chosen or not.
func reasons(rule Rule, need int64, nodes, chosen []Node) []Reason {
	list := make([]Reason, len(nodes))
	for i, n := range nodes {
		r := Reason{Node: n.ID, Name: n.name()}
		r.Chosen = slices.ContainsFunc(chosen, func(c Node) bool { return c.ID == n.ID })
		r.Why = why(rule, need, n, chosen, r.Chosen)
		list[i] = r
	}
	return list
}

func why(rule Rule, need int64, n Node, chosen []Node, isChosen bool) string {
	var fits, not []string
	for _, t := range rule.Terms {
		if miss := t.mismatch(n); miss == "" {
			fits = append(fits, t.String())
		} else if !slices.Contains(not, miss) {
			not = append(not, miss)
		}
	}
	if unfit := n.unfit(need); unfit != "" {
		return unfit
	}
	if fits == nil {
		return strings.Join(not, "; ")
	}
	if key := lacks(rule, n); key != "" {
		return fmt.Sprintf("has no label %s, which --spread %s needs", key, key)
	}
	if isChosen {
		return "fits " + strings.Join(fits, " and ")
	}
	for _, key := range rule.Spread {
		for _, c := range chosen {
			if c.value(key) == n.value(key) {
				return fmt.Sprintf("shares %s=%s with %s", key, n.value(key), c.name())
			}
		}
	}
	return "fits " + strings.Join(fits, " and ") + ", but others were better placed"
}

// explain says which terms are short, why each node does not help, and what would. got is what could be placed.
func explain(rule Rule, need int64, nodes []Node, list []Reason, got []int) (unmet, missing, remedy string) {
	var short, told, help []string
	for t, term := range rule.Terms {
		if got[t] == term.Count {
			continue
		}
		short = append(short, fmt.Sprintf("%s gets %d of %d", term.selector(), got[t], term.Count))
		help = append(help, remedies(rule, term, need, nodes)...)
	}
	for i, r := range list {
		if i == maxTold {
			told = append(told, fmt.Sprintf("and %d more nodes", len(list)-i))
			break
		}
		told = append(told, r.Name+" "+r.Why)
	}
	if told == nil {
		told = []string{"there is no node"}
	}
	help = append(help, "ask for fewer copies")
	if len(rule.Spread) > 0 {
		help = append(help, "leave out a --spread key")
	}
	if rule.Mode == Strict {
		help = append(help, "or accept fewer for now with --prefer")
	}
	slices.Sort(help[:len(help)-1])
	missing, remedy = strings.Join(short, ", "), strings.Join(slices.Compact(help), ", ")
	return fmt.Sprintf("%s (%s); what would help: %s", missing, strings.Join(told, "; "), remedy), missing, remedy
}

// remedies names what stands between a term and nodes that could serve it.
func remedies(rule Rule, t Term, need int64, nodes []Node) []string {
	var help []string
	for _, n := range nodes {
		if t.mismatch(n) != "" || n.Witness {
			continue
		}
		switch {
		case !n.Alive:
			help = append(help, "bring "+n.name()+" back")
		case n.Drain:
			help = append(help, "stop draining "+n.name())
		case n.NoNew:
			help = append(help, "open "+n.name()+" to new replicas")
		case n.available() < need:
			help = append(help, fmt.Sprintf("free %s on %s", size(need-n.available()), n.name()))
		case lacks(rule, n) != "":
			help = append(help, fmt.Sprintf("ukai-node place node %s %s=VALUE", n.name(), lacks(rule, n)))
		}
	}
	labels := make([]string, 0, len(t.Conditions))
	for _, c := range t.Conditions {
		if c.Key == nodeKey && !c.Not && !slices.ContainsFunc(nodes, func(n Node) bool { return n.Name == c.Value }) {
			help = append(help, fmt.Sprintf("no node is called %s: ukai-node status lists them", c.Value))
		}
		if c.Key == nodeKey || c.Not {
			continue
		}
		labels = append(labels, c.String())
	}
	if len(labels) > 0 && len(labels) == len(t.Conditions) {
		help = append(help, fmt.Sprintf("label another node: ukai-node place node NAME %s", strings.Join(labels, " ")))
	}
	return help
}
