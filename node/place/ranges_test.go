package place

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt"
)

func ranges(t testing.TB, text string) RangeRules {
	t.Helper()
	r, err := ParseRangeRules(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRangesAreReplacedCutAndJoined(t *testing.T) {
	r := RangeRules{}
	for _, step := range []struct{ blocks, rule, want string }{
		{"10-19", "dc=osaka:1", "10-19 dc=osaka:1"},
		{"20-29", "dc=osaka:1", "10-29 dc=osaka:1"},                           // neighbours
		{"40-49", "dc=osaka:1", "10-29,40-49 dc=osaka:1"},                     // apart
		{"25-44", "any:3", "10-24,45-49 dc=osaka:1; 25-44 any:3"},             // over both
		{"12-12", "any:3", "10-11,13-24,45-49 dc=osaka:1; 12-12,25-44 any:3"}, // within one
		{"12", "", "10-11,13-24,45-49 dc=osaka:1; 25-44 any:3"},
		{"0-30", "", "31-44 any:3; 45-49 dc=osaka:1"},
		{"31-49", "any:3", "31-49 any:3"},
		{"0-1000", "", ""},
	} {
		var rule Rule
		if step.rule != "" {
			rule = must(ParseText(step.rule))
		}
		var err error
		if r, err = r.Set(must(ParseBlocks(step.blocks)), rule); err != nil {
			t.Fatal(err)
		}
		if got := r.String(); got != step.want {
			t.Fatalf("after %s %s: %s, want %s", step.blocks, step.rule, got, step.want)
		}
	}
	for _, bad := range []string{"", "x", "-1", "3-", "-", "9-3", "1-2-3", "0-999999999999999999999", "1.5", " 1"} {
		if _, err := ParseBlocks(bad); err == nil {
			t.Errorf("blocks %q are taken", bad)
		}
	}
	for _, bad := range []string{"any:2 --min-sync 2", "dc=$here:1 --follow 1m"} {
		if _, err := r.Set(ukai.Range{Count: 1}, must(ParseText(bad))); err == nil {
			t.Errorf("a range with the rule %s is taken", bad)
		}
	}
	for i := range 2 * maxRanges {
		var err error
		if r, err = r.Set(ukai.Range{First: ukai.Index(2 * i), Count: 1}, must(ParseText("any:1"))); (err == nil) != (i < maxRanges) {
			t.Fatalf("%d ranges: %v", i+1, err)
		}
		if err != nil {
			break
		}
	}
}

func TestRangesAreReadBackAsTheyAreWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const blocks = 40
		var r RangeRules
		want := map[int]string{}
		for range rapid.IntRange(0, 12).Draw(t, "edits") {
			first := rapid.IntRange(0, blocks-1).Draw(t, "first")
			last := rapid.IntRange(first, blocks-1).Draw(t, "last")
			text := rapid.SampledFrom([]string{"", "any:1", "dc=osaka:2 --spread rack", "dc=a+ssd=yes:1 dc!=a:1 --prefer"}).Draw(t, "rule")
			var rule Rule
			if text != "" {
				rule = must(ParseText(text))
			}
			r = must(r.Set(ukai.Range{First: ukai.Index(first), Count: uint64(last - first + 1)}, rule))
			for b := first; b <= last; b++ {
				want[b] = text
			}
		}
		back := must(ParseRangeRules(r.String()))
		for b := range blocks {
			got := ""
			for _, x := range back {
				if x.Blocks.Contains(ukai.Index(b)) {
					got = x.Rule.String()
				}
			}
			if got != want[b] {
				t.Fatalf("block %d has rule %q, want %q: %s", b, got, want[b], r)
			}
		}
		if back.String() != r.String() {
			t.Fatalf("%s is read as %s", r, back)
		}
	})
}

// toldOf is told with the blocks of groups.
func toldOf(nodes []Node, p Plan) string {
	var list []string
	for _, s := range p.Steps {
		switch s.Kind {
		case SplitGroup, MergeGroup:
			list = append(list, fmt.Sprintf("%v %s from %d to %d", s.Kind, Ranges(s.Blocks), s.Group, s.Into))
		case AddReplica, DropReplica:
			list = append(list, fmt.Sprintf("%v %s of %d", s.Kind, names(nodes, []ukai.NodeID{s.Node}), s.Group))
		default:
			list = append(list, told(nodes, Plan{Steps: []Step{s}}))
		}
	}
	return strings.Join(list, ", ")
}

func TestPlansForRanges(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "o2 dc=osaka", "w1 dc=fukuoka witness")
	member := func(i int, role crdt.Role) crdt.Member {
		return crdt.Member{Replica: ukai.ReplicaID(100 + i), Node: nodes[slices.IndexFunc(nodes, func(n Node) bool { return n.Name == []string{"t1", "t2", "o1", "o2"}[i] })].ID, Role: role}
	}
	apart := func(roles ...crdt.Role) crdt.Record { // 100-199 on o1
		rec := placed(t, nodes, "t1 t2")
		rec.Groups = append(rec.Groups, crdt.Group{ID: 1, Members: []crdt.Member{member(2, crdt.InSync)}})
		for i, role := range roles {
			if role != crdt.Async {
				rec.Groups[1].Members = append(rec.Groups[1].Members, member(i, role))
			}
		}
		slices.SortFunc(rec.Groups[1].Members, func(a, b crdt.Member) int { return int(a.Replica) - int(b.Replica) })
		if err := rec.SetRange(ukai.Range{First: 100, Count: 100}, 1); err != nil {
			t.Fatal(err)
		}
		return rec
	}
	for _, test := range []struct {
		name, rule, ranges string
		rec                crdt.Record
		want               string
	}{
		{"a range moves", "dc=tokyo:2", "100-199 dc=osaka:1", placed(t, nodes, "t1 t2"), "split 100-199 from 0 to 1, add o1 of 1, drop t1 of 1, drop t2 of 1"},
		{"a range gets a copy more", "dc=tokyo:2", "100-199 dc=tokyo:2 dc=osaka:1", placed(t, nodes, "t1 t2"), "split 100-199 from 0 to 1, add o1 of 1"},
		{"it has moved", "dc=tokyo:2", "100-199 dc=osaka:1", apart(), ""},
		{"it is removed", "dc=tokyo:2", "", apart(), "add t1 of 1, add t2 of 1, drop o1 of 1, merge 100-199 from 1 to 0"},
		{"it has come back", "dc=tokyo:2", "", func() crdt.Record {
			rec := apart()
			rec.Groups[1].Members = []crdt.Member{member(0, crdt.InSync), member(1, crdt.InSync)}
			return rec
		}(), "merge 100-199 from 1 to 0"},
		{"it is coming back", "dc=tokyo:2", "", func() crdt.Record {
			rec := apart()
			rec.Groups[1].Members = []crdt.Member{member(0, crdt.InSync), member(1, crdt.Syncing)}
			return rec
		}(), "merge 100-199 from 1 to 0"},
		{"part of it is removed", "dc=tokyo:2", "150-199 dc=osaka:1", apart(), "split 150-199 from 1 to 2, add t1 of 1, add t2 of 1, drop o1 of 1, merge 100-149 from 1 to 0"},
		{"it grows", "dc=tokyo:2", "100-299 dc=osaka:1", apart(), "split 200-299 from 0 to 2, add o1 of 2, drop t1 of 2, drop t2 of 2, merge 200-299 from 2 to 1"},
		{"its rule is that of the disk", "dc=tokyo:2", "100-199 dc=tokyo:2", placed(t, nodes, "t1 t2"), ""},
		{"two ranges of one rule are one group", "dc=tokyo:2", "0-9,100-199 dc=osaka:1", placed(t, nodes, "t1 t2"), "split 0-9,100-199 from 0 to 1, add o1 of 1, drop t1 of 1, drop t2 of 1"},
		{"all of the disk", "dc=tokyo:2", "0-2559 dc=osaka:1", placed(t, nodes, "t1 t2"), "add o1 of 0, drop t1 of 0, drop t2 of 0, arbiters o1+o2+w1"},
		{"min-sync is that of the whole disk", "dc=tokyo:2 --min-sync 2", "100-199 dc=osaka:1", func() crdt.Record {
			rec := placed(t, nodes, "t1 t2")
			rec.MinSync = 2
			return rec
		}(), "min-sync 1, split 100-199 from 0 to 1, add o1 of 1, drop t1 of 1, drop t2 of 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := Input{Rule: rule(t, test.rule), Ranges: ranges(t, test.ranges), Rec: test.rec, Nodes: nodes, Now: noon, Allocated: 2 * gib}
			p := must(Relocate(in))
			if got := toldOf(nodes, p); got != test.want || p.Unmet != "" {
				t.Errorf("%s, unmet %q\nwant %s", got, p.Unmet, test.want)
			}
			after := p.After(test.rec)
			if s := CheckRanges(in.Rule, in.Ranges, after, nodes); len(p.Steps) > 0 && !p.Steps[0].Waits && !s.Met {
				t.Errorf("leads to %s: %v", s.Now, s.Differences)
			}
			for i, s := range p.Steps {
				if s.Kind == AddReplica && s.Bytes > 200*ukai.DefaultBlockSize {
					if test.name != "all of the disk" {
						t.Errorf("step %d copies %d bytes", i, s.Bytes)
					}
				}
				if s.Waits != (s.Kind == MergeGroup && test.name != "it has come back") {
					t.Errorf("step %d: %+v", i, s)
				}
			}
		})
	}
}

func TestARangeWhoseRuleCannotBeMetIsToldByItsBlocks(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "w1 dc=fukuoka witness")
	in := Input{Rule: rule(t, "dc=tokyo:2"), Ranges: ranges(t, "100-199 dc=osaka:2"), Rec: placed(t, nodes, "t1 t2"), Nodes: nodes, Now: noon}
	p := must(Relocate(in))
	if !strings.HasPrefix(p.Unmet, "blocks 100-199: ") || !slices.Equal(p.Short, []string{"dc=osaka:2"}) {
		t.Errorf("unmet %q, short of %q", p.Unmet, p.Short)
	}
	if got := toldOf(nodes, p); got != "split 100-199 from 0 to 1, add o1 of 1, drop t1 of 1" && got != "split 100-199 from 0 to 1, add o1 of 1" {
		t.Errorf("plan: %s", got)
	}
	chosen := 0
	for _, r := range p.Reasons {
		if r.Chosen {
			chosen++
		}
	}
	if chosen == 0 || len(p.Reasons) != len(nodes) {
		t.Errorf("reasons %+v", p.Reasons)
	}
}

// Carried out step by step, with a new plan after each, and with replicas that fail and return meanwhile, each block ends where its rule wants it, never
// has fewer copies in sync than it had or than its rule asks for, and there are no more groups than rules.
func TestPlansForRangesArriveAndNeverGiveUpACopyTooEarly(t *testing.T) {
	merged, reused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		const blocks = 12
		var tb testing.TB = &testing.T{}
		var lines []string
		count := rapid.IntRange(3, 7).Draw(t, "nodes")
		for i := range count {
			line := fmt.Sprintf("n%d dc=%c", i, 'a'+i%2)
			if i > 2 {
				line += rapid.SampledFrom([]string{"", "", "", " drain", " nonew", " witness"}).Draw(t, "flag")
			}
			lines = append(lines, line)
		}
		nodes := mesh(tb, lines...)
		rec := placed(tb, nodes, "n0 n1")
		rec.Size, rec.Runs = blocks*int64(rec.BlockSize), []crdt.Run{{Count: blocks}}
		in := Input{Rule: rule(tb, "any:2"), Nodes: nodes, Now: noon}
		next := ukai.ReplicaID(1000)
		for range rapid.IntRange(1, 4).Draw(t, "changes of mind") {
			if rapid.IntRange(0, 3).Draw(t, "whole") == 0 {
				in.Rule = rule(tb, rapid.SampledFrom([]string{"any:1", "any:2", "dc=a:2", "dc=a:1 dc=b:1", "any:3"}).Draw(t, "rule"))
			} else {
				first := rapid.IntRange(0, blocks-1).Draw(t, "first")
				last := rapid.IntRange(first, blocks-1).Draw(t, "last")
				var r Rule
				if text := rapid.SampledFrom([]string{"", "any:1", "dc=b:1", "dc=a:2", "any:3"}).Draw(t, "rule of a range"); text != "" {
					r = rule(tb, text)
				}
				in.Ranges = must(in.Ranges.Set(ukai.Range{First: ukai.Index(first), Count: uint64(last - first + 1)}, r))
			}
			rounds := 200
			if rapid.Bool().Draw(t, "at once another") {
				rounds = rapid.IntRange(1, 6).Draw(t, "steps before")
			}
			for round := 0; ; round++ {
				in.Rec = rec
				p := must(Relocate(in))
				if round == rounds && rounds < 200 {
					break
				}
				if round == 100 {
					t.Fatalf("does not arrive: %s, %+v", toldOf(nodes, p), rec.Groups)
				}
				if len(p.Steps) == 0 || p.Steps[0].Waits {
					again := false
					for i := range rec.Groups {
						for j := range rec.Groups[i].Members {
							m := &rec.Groups[i].Members[j]
							again = again || m.Role != crdt.InSync
							m.Role = crdt.InSync
						}
					}
					if again {
						continue
					}
					if len(p.Steps) > 0 {
						t.Fatalf("waits for ever: %s, %+v", toldOf(nodes, p), rec.Groups)
					}
					if s := CheckRanges(in.Rule, in.Ranges, rec, nodes); p.Unmet == "" && !s.Met {
						t.Fatalf("arrived at %s: %v", s.Now, s.Differences)
					}
					if n := len(in.Ranges.pieces(in.Rule, []ukai.Range{{Count: blocks}})); p.Unmet == "" && len(rec.Groups) > n {
						t.Fatalf("%d groups for %d rules: %+v", len(rec.Groups), n, rec.Groups)
					}
					break
				}
				before := rec.Clone()
				s := p.Steps[0]
				if s.Kind == AddReplica {
					if on := rec.ReplicasOn(s.Node); len(on) > 0 {
						if s.Replica != on[0] {
							t.Fatalf("another replica on a node: %+v, %+v", s, rec.Groups)
						}
						reused++
					} else {
						s.Replica = next
						next++
					}
				}
				s.apply(&rec)
				for i := range rec.Groups {
					g := &rec.Groups[i]
					slices.SortFunc(g.Members, func(a, b crdt.Member) int { return int(a.Replica) - int(b.Replica) })
					if s.Kind == AddReplica && g.ID == s.Group {
						g.Member(s.Replica).Role = rapid.SampledFrom([]crdt.Role{crdt.InSync, crdt.Syncing}).Draw(t, "how far")
					}
				}
				rec.Version++
				if err := rec.Check(); err != nil {
					t.Fatalf("after %+v: %v", s, err)
				}
				if s.Kind == MergeGroup {
					merged++
				}
				for b := range ukai.Index(blocks) {
					was, is := before.GroupOf(b).Count(crdt.InSync), rec.GroupOf(b).Count(crdt.InSync)
					wanted := in.Rule
					for _, x := range in.Ranges {
						if x.Blocks.Contains(b) {
							wanted = x.Rule
						}
					}
					if is < was && is < wanted.Replicas() {
						t.Fatalf("block %d has %d of %d copies after %+v", b, is, wanted.Replicas(), s)
					}
				}
			}
		}
	})
	if merged == 0 || reused == 0 {
		t.Errorf("%d merges, %d replicas that serve more blocks: this shows nothing", merged, reused)
	}
}
