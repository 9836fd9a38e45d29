package place

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

func costsTold(nodes []Node, c Costs) string {
	var b strings.Builder
	for i, s := range c.Steps {
		fmt.Fprintf(&b, "%d:", i+1)
		for _, id := range s.Path {
			b.WriteString(" " + names(nodes, []ukai.NodeID{id}))
		}
		fmt.Fprintf(&b, " %dG", s.Bytes/gib)
		for _, k := range s.Copies {
			fmt.Fprintf(&b, " %s=%d", Ranges(k.Blocks), k.InSync)
		}
		fmt.Fprintf(&b, " %v\n", s.Took.Round(time.Second))
	}
	for _, l := range append(c.Links, c.Pairs...) {
		fmt.Fprintf(&b, "%s>%s %dG\n", l.From, l.To, l.Bytes/gib)
	}
	for _, n := range c.Space {
		fmt.Fprintf(&b, "%s +%dG -%dG left %dG\n", n.Name, n.PeakBytes/gib, n.FreedBytes/gib, n.LeftBytes/gib)
	}
	fmt.Fprintf(&b, "least %d, %v", c.Least, c.Took.Round(time.Second))
	return b.String()
}

func TestCostsOfAPlan(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka free=50", "o2 dc=osaka", "w1 dc=fukuoka witness")
	near := func(a, b ukai.NodeID) (time.Duration, bool) { return 20 * time.Millisecond, true }
	limit := func(from, to string) int64 {
		if from == "tokyo" && to == "osaka" {
			return 10 << 20
		}
		return -1
	}
	for _, test := range []struct {
		name    string
		copying Copying
		want    string
		assumed string
	}{
		{"by a node with a replica", Copying{Limit: limit, Pause: time.Second}, `1: t1 o2 4G 0-2559=3 6m51s
2: t1 o1 4G 0-2559=4 6m51s
3: 0G 0-2559=3 1s
4: 0G 0-2559=2 1s
5: 0G 0-2559=2 1s
tokyo>osaka 8G
t1>o1 4G
t1>o2 4G
o1 +4G -0G left 46G
o2 +4G -0G left 96G
t1 +0G -4G left 100G
t2 +0G -4G left 100G
least 2, 13m44s`, ""},
		{"by the holder, which has moved before", Copying{Holder: nodes[2].ID, Near: near, Limit: limit, Window: 1 << 20}, `1: t1 o1 4G 0-2559=3 6m50s
2: o1 o2 4G 0-2559=4 1m22s
3: 0G 0-2559=3 0s
4: 0G 0-2559=2 0s
5: 0G 0-2559=2 0s
osaka>osaka 4G
tokyo>osaka 4G
o1>o2 4G
t1>o1 4G
o1 +4G -0G left 46G
o2 +4G -0G left 96G
t1 +0G -4G left 100G
t2 +0G -4G left 100G
least 2, 8m12s`, ""},
		{"through a holder without a replica", Copying{Holder: nodes[4].ID, Near: near}, `1: t1 w1 o2 4G 0-2559=3 41s
2: t1 w1 o1 4G 0-2559=4 41s
3: 0G 0-2559=3 0s
4: 0G 0-2559=2 0s
5: 0G 0-2559=2 0s
fukuoka>osaka 8G
tokyo>fukuoka 8G
t1>w1 8G
w1>o1 4G
w1>o2 4G
o1 +4G -0G left 46G
o2 +4G -0G left 96G
t1 +0G -4G left 100G
t2 +0G -4G left 100G
least 2, 1m22s`, "copies run at 100 MiB/s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			rec := placed(t, nodes, "t1 t2")
			if rec.Holder = test.copying.Holder; !rec.Holder.IsZero() {
				rec.Phase = crdt.PhaseActive
			}
			plan := must(Relocate(Input{Rule: rule(t, "dc=osaka:2"), Rec: rec, Nodes: nodes, Now: noon, Allocated: 4 * gib}))
			test.copying.Rec, test.copying.Nodes = rec, nodes
			c := plan.Costs(test.copying)
			if got := costsTold(nodes, c); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
			if got := strings.Join(c.Assumed, "; "); !strings.Contains(got, test.assumed) || test.assumed == "" && strings.Contains(got, "copies run") {
				t.Errorf("assumed %q, want %q", got, test.assumed)
			}
		})
	}
}

func TestCostsSayThatALinkIsClosed(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "o1 dc=osaka", "w1 dc=fukuoka witness")
	rec := placed(t, nodes, "t1")
	plan := must(Relocate(Input{Rule: rule(t, "dc=osaka:1"), Rec: rec, Nodes: nodes, Now: noon}))
	c := plan.Costs(Copying{Rec: rec, Nodes: nodes, Limit: func(string, string) int64 { return 0 }})
	if !strings.Contains(strings.Join(c.Assumed, "; "), "from tokyo to osaka lets nothing pass now") {
		t.Errorf("assumed %q", c.Assumed)
	}
}

func TestCostsTellTheFewestCopies(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo", "w1 dc=fukuoka witness")
	rec := placed(t, nodes, "t1 t2")
	plan := must(Relocate(Input{Rule: rule(t, "dc=tokyo:1"), Rec: rec, Nodes: nodes, Now: noon}))
	if c := plan.Costs(Copying{Rec: rec, Nodes: nodes}); c.Least != 1 || len(c.Links) != 0 || c.Space[0].FreedBytes != 10*gib {
		t.Errorf("%+v", c)
	}
}

func TestCostsTellTheCopiesOfEachRangeOfBlocks(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo", "w1 dc=fukuoka witness")
	rec := placed(t, nodes, "t1")
	rec.Groups = append(rec.Groups, crdt.Group{ID: 1, Generation: 1, Members: []crdt.Member{{Replica: 7, Node: nodes[0].ID}, {Replica: 8, Node: nodes[1].ID}}})
	rec.Runs = []crdt.Run{{Count: 2000}, {Count: 560, Group: 1}}
	plan := must(Relocate(Input{Rule: rule(t, "dc=tokyo:2"), Rec: rec, Nodes: nodes, Now: noon, Allocated: 5 * gib}))
	c := plan.Costs(Copying{Rec: rec, Nodes: nodes})
	if c.Least != 1 || len(c.Steps) == 0 || len(c.Steps[0].Copies) != 2 || Ranges(c.Steps[0].Copies[0].Blocks) != "0-1999" || c.Steps[0].Copies[0].InSync != 2 || c.Steps[0].Bytes != 5*gib {
		t.Errorf("%+v", c)
	}
}
