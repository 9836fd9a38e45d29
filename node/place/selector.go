package place

import (
	"fmt"
	"strings"

	"ukai"
)

// Selector names nodes: by conditions that must all hold, as in a term of a rule.
type Selector struct{ conditions []Condition }

// ParseSelector reads key=value, key!=value, node=NAME, several of these joined by +, or the bare NAME of a node.
func ParseSelector(text string) (Selector, error) {
	written := text
	if !strings.Contains(text, "=") {
		written = nodeKey + "=" + text
	}
	t, err := parseTerm(written + ":1")
	if err != nil {
		return Selector{}, fmt.Errorf("selector %q: %w: write the name of a node, key=value, key!=value, or several of these joined by +: dc=osaka+rack=r1", text, ukai.ErrInvalid)
	}
	if keys := (Rule{Terms: []Term{t}}).HereKeys(); len(keys) > 0 {
		return Selector{}, fmt.Errorf("selector %q: %w: $here is where the VM of a disk runs, and belongs to the rule of a disk", text, ukai.ErrInvalid)
	}
	return Selector{t.Conditions}, nil
}

// String returns the selector as conditions.
func (s Selector) String() string { return Term{Conditions: s.conditions}.selector() }

// Matches says whether all conditions hold of a node.
func (s Selector) Matches(n Node) bool { return Term{Conditions: s.conditions}.matches(n) }

// others returns a term for one replica elsewhere, false if no single term says that.
func (s Selector) others() (Term, bool) {
	if len(s.conditions) != 1 {
		return Term{}, false
	}
	c := s.conditions[0]
	c.Not = !c.Not
	return Term{Conditions: []Condition{c}, Count: 1}, true
}

// Singles returns what may be lost at once by one failure: each node, then each datacenter if there are several.
func Singles(nodes []Node) []Selector {
	var list []Selector
	var dcs []string
	seen := map[string]bool{}
	for _, n := range byName(nodes) {
		if n.Name == "" {
			continue
		}
		list = append(list, Selector{[]Condition{{Key: nodeKey, Value: n.Name}}})
		if dc := n.dc(); dc != "" && !seen[dc] {
			seen[dc] = true
			dcs = append(dcs, dc)
		}
	}
	if len(dcs) > 1 {
		for _, dc := range sorted(dcs) {
			list = append(list, Selector{[]Condition{{Key: ukai.LabelDC, Value: dc}}})
		}
	}
	return list
}
