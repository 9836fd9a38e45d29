package place

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"ukai"
	"ukai/crdt"
)

// Limits on the ranges of a disk. Their rules need a group of replicas each, of which a record has few.
const (
	maxRanges     = 64
	maxRangeRules = 8
)

// RangeRule is the rule of a range of blocks of a disk.
type RangeRule struct {
	Blocks ukai.Range
	Rule   Rule
}

// RangeRules are those blocks of a disk that have a rule of their own, in place of the disk's: in order, apart, and neighbours with the same rule are one. How
// many replicas must be in sync, and what follows a VM, is a matter of the whole disk: no rule of a range says --min-sync, $here or --follow.
type RangeRules []RangeRule

// Set returns the ranges with some blocks given another rule, or with the zero Rule none of their own any more. What overlaps them is cut.
// The error matches ukai.ErrInvalid: the rule says what a range's cannot, or there would be too many.
func (r RangeRules) Set(blocks ukai.Range, rule Rule) (RangeRules, error) {
	if rule.MinSync != 0 || rule.Follow != 0 || len(rule.HereKeys()) > 0 {
		return nil, fmt.Errorf("blocks %v: rule %q: %w: --min-sync, --follow and $here are a matter of the whole disk: say them without --blocks", blocks, rule, ukai.ErrInvalid)
	}
	var out RangeRules
	for _, old := range r {
		if first := min(old.Blocks.End(), blocks.First); old.Blocks.First < first {
			out = append(out, RangeRule{ukai.Range{First: old.Blocks.First, Count: uint64(first - old.Blocks.First)}, old.Rule})
		}
		if first := max(old.Blocks.First, blocks.End()); first < old.Blocks.End() {
			out = append(out, RangeRule{ukai.Range{First: first, Count: uint64(old.Blocks.End() - first)}, old.Rule})
		}
	}
	if len(rule.Terms) > 0 && blocks.Count > 0 {
		out = append(out, RangeRule{blocks, rule})
	}
	out = out.joined()
	rules := map[string]bool{}
	for _, o := range out {
		rules[o.Rule.String()] = true
	}
	if text := out.String(); len(out) > maxRanges || len(rules) > maxRangeRules || len(text) > MaxRuleBytes {
		return nil, fmt.Errorf("blocks %v: %w: %d ranges with %d different rules, %d characters; at most %d, %d and %d: use the same rule for more blocks, or give a rule to the whole disk",
			blocks, ukai.ErrInvalid, len(out), len(rules), len(text), maxRanges, maxRangeRules, MaxRuleBytes)
	}
	return out, nil
}

// joined returns the ranges in order, with neighbours that have the same rule made one.
func (r RangeRules) joined() (out RangeRules) {
	slices.SortFunc(r, func(a, b RangeRule) int { return cmp.Compare(a.Blocks.First, b.Blocks.First) })
	for _, next := range r {
		if n := len(out); n > 0 && out[n-1].Blocks.End() == next.Blocks.First && out[n-1].Rule.String() == next.Rule.String() {
			out[n-1].Blocks.Count += next.Blocks.Count
			continue
		}
		out = append(out, next)
	}
	return out
}

// String returns the ranges in the one form that ParseRangeRules reads back to equal ones, and in which they are stored: "0-9,20-29 dc=osaka:1; 40-49 any:3".
// Without any it is empty.
func (r RangeRules) String() string {
	blocks := map[string][]string{}
	var rules []string
	for _, x := range r {
		text := x.Rule.String()
		if blocks[text] == nil {
			rules = append(rules, text)
		}
		blocks[text] = append(blocks[text], x.Blocks.String())
	}
	parts := make([]string, len(rules))
	for i, rule := range rules {
		parts[i] = strings.Join(blocks[rule], ",") + " " + rule
	}
	return strings.Join(parts, "; ")
}

// ParseRangeRules reads what RangeRules.String wrote. Errors match ukai.ErrInvalid.
func ParseRangeRules(text string) (out RangeRules, err error) {
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, "; ") {
		where, words, _ := strings.Cut(part, " ")
		rule, err := ParseText(words)
		if err != nil {
			return nil, err
		}
		for one := range strings.SplitSeq(where, ",") {
			blocks, err := ParseBlocks(one)
			if err != nil {
				return nil, err
			}
			if out, err = out.Set(blocks, rule); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// ParseBlocks reads a range of blocks "FIRST-LAST", or one block. Errors match ukai.ErrInvalid.
func ParseBlocks(text string) (ukai.Range, error) {
	first, last, ok := strings.Cut(text, "-")
	if !ok {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 48)
	b, errB := strconv.ParseUint(last, 10, 48)
	if errA != nil || errB != nil || b < a {
		return ukai.Range{}, fmt.Errorf("blocks %q: %w: write FIRST-LAST, the numbers of blocks from 0, for example 0-255", text, ukai.ErrInvalid)
	}
	return ukai.Range{First: ukai.Index(a), Count: b - a + 1}, nil
}

// copies returns the fewest copies that a rule of the disk asks for.
func (r RangeRules) copies(disk Rule) int {
	n := disk.Replicas()
	for _, x := range r {
		n = min(n, x.Rule.Replicas())
	}
	return n
}

// InSync returns the fewest replicas in sync with which writes of a disk go on: what its rule says, but no more than any of its blocks is to have.
func (r RangeRules) InSync(disk Rule) int { return min(disk.InSync(), max(1, r.copies(disk))) }

// piece is blocks that are to have the same rule.
type piece struct {
	class  int // 0: the disk's, else 1 more than the index of the first of them with that rule
	blocks []ukai.Range
}

// pieces takes blocks apart by the rules they are to have, the disk's first.
func (r RangeRules) pieces(disk Rule, blocks []ukai.Range) []piece {
	class, own := map[string]int{}, disk.String()
	of := func(i int) int {
		text := r[i].Rule.String()
		if text == own {
			return 0
		}
		if _, ok := class[text]; !ok {
			class[text] = i + 1
		}
		return class[text]
	}
	by := map[int][]ukai.Range{}
	add := func(class int, from, to ukai.Index) {
		if from < to {
			by[class] = append(by[class], ukai.Range{First: from, Count: uint64(to - from)})
		}
	}
	for i := range r {
		of(i) // numbered in their order, whichever blocks are asked for
	}
	for _, b := range blocks {
		at := b.First
		for i := range r {
			first, end := max(at, r[i].Blocks.First), min(b.End(), r[i].Blocks.End())
			if first >= end {
				continue
			}
			add(0, at, first)
			add(of(i), first, end)
			at = end
		}
		add(0, at, b.End())
	}
	var out []piece
	for c := 0; c <= len(r); c++ {
		if list := by[c]; list != nil {
			out = append(out, piece{c, ukai.JoinRanges(list)})
		}
	}
	if out == nil {
		out = []piece{{blocks: blocks}}
	}
	return out
}

// rule returns the rule of a class of blocks.
func (r RangeRules) rule(disk Rule, class int) Rule {
	if class == 0 {
		return disk
	}
	return r[class-1].Rule
}

// mergeable says whether two groups may become one now.
func mergeable(a, b *crdt.Group) bool {
	return slices.Equal(a.Members, b.Members) && a.Count(crdt.InSync) == len(a.Members)
}

// alike says whether two groups are to become one: they are on the same nodes, with the same replicas as far as these have been made.
func alike(a, b *crdt.Group) bool {
	sorted := func(g *crdt.Group) []crdt.Member {
		list := slices.Clone(g.Members)
		slices.SortFunc(list, func(a, b crdt.Member) int { return slices.Compare(a.Node[:], b.Node[:]) })
		return list
	}
	return slices.EqualFunc(sorted(a), sorted(b), func(x, y crdt.Member) bool {
		return x.Node == y.Node && (x.Replica == y.Replica || x.Replica == 0 || y.Replica == 0)
	})
}
