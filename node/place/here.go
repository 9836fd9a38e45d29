package place

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
)

// hereValue, as the value of a condition, stands for the value that the label has on the node where the disk is used: dc=$here.
const hereValue = "$here"

// Bounds of Rule.Follow. Less would move data after a VM that is only being moved from host to host, more is better said as never.
const (
	MinFollow = 10 * time.Second
	MaxFollow = 30 * 24 * time.Hour
)

// HereKeys returns the keys of conditions whose value is $here, sorted; none if the rule says of every node where it is.
func (r Rule) HereKeys() (keys []string) {
	for _, t := range r.Terms {
		for _, c := range t.Conditions {
			if c.Value == hereValue && !slices.Contains(keys, c.Key) {
				keys = append(keys, c.Key)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// checkFollow holds --follow and $here to each other.
func (r Rule) checkFollow() error {
	keys := r.HereKeys()
	switch {
	case r.Follow == 0 && len(keys) > 0:
		return fmt.Errorf("rule %q: %w: %s=$here means where the VM has run for some time: say for how long, for example --follow 10m", r, ukai.ErrInvalid, keys[0])
	case r.Follow != 0 && len(keys) == 0:
		return fmt.Errorf("rule %q: %w: --follow moves what $here says, and no term does; for example dc=$here:2", r, ukai.ErrInvalid)
	case r.Follow != 0 && (r.Follow < MinFollow || r.Follow > MaxFollow || r.Follow%time.Second != 0):
		return fmt.Errorf("rule %q: %w: --follow %v must be whole seconds from %v to %v", r, ukai.ErrInvalid, r.Follow, MinFollow, MaxFollow)
	}
	return nil
}

// At returns the rule with what $here stands for in its place, and without Follow; a rule that does not say $here as it is. Terms that have become
// the same are one. The error matches ukai.ErrInvalid if a value is not known, or no node can satisfy what comes of it.
func (r Rule) At(here ukai.Labels) (Rule, error) {
	if len(r.HereKeys()) == 0 {
		return r, nil
	}
	out := r
	out.Follow, out.Terms = 0, nil
	for _, t := range r.Terms {
		u := Term{Count: t.Count, Conditions: slices.Clone(t.Conditions)}
		for i := range u.Conditions {
			c := &u.Conditions[i]
			if c.Value != hereValue {
				continue
			}
			if c.Value = here[c.Key]; c.Value == "" {
				return Rule{}, fmt.Errorf("rule %q: %w: it is not known yet what %s=$here stands for: the disk was not used on a node with that label", r, ukai.ErrInvalid, c.Key)
			}
		}
		sortConditions(&u)
		if err := u.check(u.String()); err != nil {
			return Rule{}, fmt.Errorf("rule %q, $here being %v: %w", r, here, err)
		}
		if i := slices.IndexFunc(out.Terms, func(o Term) bool { return slices.Equal(o.Conditions, u.Conditions) }); i >= 0 {
			out.Terms[i].Count += u.Count
			continue
		}
		out.Terms = append(out.Terms, u)
	}
	return out, nil
}

// HereAt returns what $here stands for in a rule when its disk is used on a node, or an error that matches ukai.ErrInvalid: the node lacks a label.
func HereAt(rule Rule, at Node) (ukai.Labels, error) {
	values := ukai.Labels{}
	for _, key := range rule.HereKeys() {
		if values[key] = at.value(key); values[key] == "" {
			return nil, fmt.Errorf("node %s: %w: it has no label %s, which %s=$here needs: ukai-node place node %s %s=VALUE", at.name(), ukai.ErrInvalid, key, key, at.name(), key)
		}
	}
	return values, nil
}

// HereNow returns what $here stands for in the rule of a disk that nobody uses: of each label the value that most of its in-sync replicas have, so that
// nothing moves because of it. Of labels that none of them has there is no value.
func HereNow(rule Rule, rec crdt.Record, nodes []Node) ukai.Labels {
	values := ukai.Labels{}
	for _, key := range rule.HereKeys() {
		count := map[string]int{}
		for i := range rec.Groups {
			for _, m := range rec.Groups[i].InSync() {
				if at := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == m.Node }); at >= 0 && nodes[at].value(key) != "" {
					count[nodes[at].value(key)]++
				}
			}
		}
		best := ""
		for _, v := range slices.Sorted(maps.Keys(count)) {
			if best == "" || count[v] > count[best] {
				best = v
			}
		}
		if best != "" {
			values[key] = best
		}
	}
	return values
}

// Here is what $here stands for in the rule of one disk, and what it will stand for if the disk goes on being used where it is. It is changed by the
// methods only, whose time is an argument. The zero Here is that of a disk which was never looked at.
type Here struct {
	Values ukai.Labels `json:"values"`         // of each label
	Node   ukai.NodeID `json:"node,omitzero"`  // on which the disk was used then; zero: on none
	Since  time.Time   `json:"since,omitzero"` // when it became that
	Next   *Stay       `json:"next,omitempty"`
}

// Stay is the use of a disk elsewhere, for not long enough yet.
type Stay struct {
	Values ukai.Labels `json:"values"`
	Node   ukai.NodeID `json:"node"` // where it began
	Since  time.Time   `json:"since"`
}

// Used notes that the disk is used on a node now, and says whether that changed anything. Only a stay without a break of rule.Follow at other values changes
// what $here stands for, so a VM that goes to and fro moves nothing. On a node that lacks a label nothing can be told.
func (h Here) Used(rule Rule, at Node, now time.Time) (Here, bool) {
	values, err := HereAt(rule, at)
	switch {
	case err != nil:
		return h.Unused()
	case !h.says(rule):
		return Here{Values: values, Node: at.ID, Since: now}, true
	case h.same(values):
		return h.Unused()
	case h.Next == nil || !maps.Equal(h.Next.Values, values) || h.Next.Since.After(now): // or a clock was put back
		h.Next = &Stay{Values: values, Node: at.ID, Since: now}
		return h, true
	case now.Sub(h.Next.Since) < rule.Follow:
		return h, false
	}
	return Here{Values: values, Node: at.ID, Since: now}, true
}

// Unused notes that the disk is not used elsewhere any more, and says whether that changed anything.
func (h Here) Unused() (Here, bool) {
	changed := h.Next != nil
	h.Next = nil
	return h, changed
}

// says whether it is known of all labels that a rule asks for.
func (h Here) says(rule Rule) bool {
	return !slices.ContainsFunc(rule.HereKeys(), func(key string) bool { return h.Values[key] == "" })
}

// same says whether h has all of some values. It may have more, of labels that the rule does not ask for any more.
func (h Here) same(values ukai.Labels) bool {
	for key, v := range values {
		if h.Values[key] != v {
			return false
		}
	}
	return true
}
