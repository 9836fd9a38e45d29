package place

import (
	"strings"
	"testing"

	"ukai"
	"ukai/crdt"
)

func selector(t testing.TB, text string) Selector {
	t.Helper()
	s, err := ParseSelector(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSelectorsNameNodesByNameOrByConditions(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo rack=a", "t2 dc=tokyo rack=b", "o1 dc=osaka rack=a")
	for text, want := range map[string]string{
		"t1": "t1", "node=t1": "t1", "dc=tokyo": "t1 t2", "dc=tokyo+rack=a": "t1", "dc!=tokyo": "o1", "dc=paris": "",
	} {
		var ids []ukai.NodeID
		for _, n := range nodes {
			if selector(t, text).Matches(n) {
				ids = append(ids, n.ID)
			}
		}
		if got := names(nodes, ids); got != want {
			t.Errorf("%s names %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{"", "dc=", "a b", "dc=tokyo+dc=osaka", "dc=tokyo:2"} {
		if s, err := ParseSelector(text); err == nil {
			t.Errorf("%q is taken as %v", text, s)
		}
	}
}

func TestFatesOfADiskWhoseNodesAreGone(t *testing.T) {
	three := []string{"t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "o2 dc=osaka", "w1 dc=fukuoka witness"}
	two := []string{"t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka"}
	for _, test := range []struct {
		name, rule, now, without string
		nodes                    []string
		change                   func(nodes []Node, rec *crdt.Record)
		want                     Fate
		why, remedy, then        string
	}{
		{"nothing of it is there", "dc=tokyo:2", "t1 t2", "dc=osaka", three, nil, KeepsRunning, "", "", ""},
		{"one of two copies, which is made anew", "any:2", "t1 t2", "t2", three, nil, LosesRedundancy, "1 of 2 in sync are left, on t1", "", "after 10m0s a copy is made on o"},
		{"one of two copies, and no place for another", "dc=tokyo:2", "t1 t2", "t2", three, nil, LosesRedundancy, "1 of 2", "label another node: ukai-node place node NAME dc=tokyo", ""},
		{"only copy", "dc=osaka:1", "o1", "o1", three, nil, LosesData, "every copy in sync is there: o1", "ukai-node place disk vm1 dc=osaka:2", ""},
		{"only datacenter", "dc=osaka:2", "o1 o2", "dc=osaka", three, nil, LosesData, "o1, o2", "ukai-node place disk vm1 dc=osaka:2 dc!=osaka:1", ""},
		{"only copy, nowhere to go", "any:1", "t1", "t1", two[:1], nil, LosesData, "t1", "add a node elsewhere", ""},
		{"a copy in each datacenter and a witness", "dc=tokyo:1 dc=osaka:1", "t1 o1", "dc=osaka", three, nil, LosesRedundancy, "1 of 2", "label another node: ukai-node place node NAME dc=osaka", ""},
		{"most arbiters", "dc=tokyo:2 dc=osaka:1", "t1 t2 o1", "dc=tokyo", two, nil, Waits, "1 of its 3 arbiters are left, 2 are needed (without t1, t2), and it needs a decision", "disk quorum vm1 preferred o1", ""},
		{"most arbiters, the node that decides is left", "dc=tokyo:2 dc=osaka:1", "t1 t2 o1", "dc=tokyo", two, func(n []Node, r *crdt.Record) {
			r.Quorum, r.Preferred, r.Arbiters = crdt.PreferredNode, n[2].ID, []ukai.NodeID{n[2].ID}
		}, LosesRedundancy, "1 of 3 in sync are left, on o1", "bring t1 back", ""},
		{"the node that decides alone", "dc=tokyo:2 dc=osaka:1", "t1 t2 o1", "o1", two, func(n []Node, r *crdt.Record) {
			r.Quorum, r.Preferred, r.Arbiters = crdt.PreferredNode, n[2].ID, []ukai.NodeID{n[2].ID}
		}, Waits, "o1, which alone decides about it, is gone", "", ""},
		{"most arbiters of an unsafe disk", "dc=tokyo:2 dc=osaka:1", "t1 t2 o1", "dc=tokyo", two, func(_ []Node, r *crdt.Record) {
			r.Quorum = crdt.UnsafeSurvivor
		}, Waits, "its quorum mode is unsafe", "ukai-node disk force vm1", ""},
		{"most arbiters, but attached with all its copies", "dc=tokyo:2", "t1 t2", "dc=osaka", three, func(n []Node, r *crdt.Record) {
			r.Phase, r.Holder, r.Arbiters = crdt.PhaseActive, n[0].ID, []ukai.NodeID{n[0].ID, n[2].ID, n[3].ID}
		}, LosesRedundancy, "until it loses a replica or is attached elsewhere", "", "its quorum record moves"},
		{"holder", "dc=tokyo:2", "t1 t2", "o1", three, func(n []Node, r *crdt.Record) {
			r.Phase, r.Holder = crdt.PhaseActive, n[2].ID
		}, KeepsRunning, "its holder o1 is gone, and the VM there", "", ""},
		{"min-sync", "dc=tokyo:2 --min-sync 2", "t1 t2", "t2", three, func(_ []Node, r *crdt.Record) { r.MinSync = 2 }, Waits, "min-sync is 2: its I/O waits", "ukai-node place disk vm1 dc=tokyo:2 node!=t2:1 --min-sync 2", ""},
		{"min-sync, and no place for another copy", "dc=tokyo:2 --min-sync 2", "t1 t2", "t2", append([]string{"w2 dc=nara witness"}, three[:2]...), func(_ []Node, r *crdt.Record) { r.MinSync = 2 }, Waits, "min-sync is 2: its I/O waits", "ukai-node place disk vm1 dc=tokyo:2 --min-sync 1", ""},
		{"min-sync, where I/O fails", "any:2 --min-sync 2", "t1 t2", "t2", three, func(_ []Node, r *crdt.Record) { r.MinSync, r.OnLoss = 2, crdt.Error }, Waits, "its I/O fails", "ukai-node place disk vm1 any:3 --min-sync 2", ""},
		{"the other copy is down", "dc=tokyo:2", "t1 t2", "t1", three, func(n []Node, _ *crdt.Record) { n[1].Alive = false }, Waits, "on nodes that are down: t2", "", ""},
		{"a copy that is out does not count", "dc=tokyo:2", "t1 t2:out", "t1", three, nil, LosesData, "there: t1", "", ""},
		{"relocation under way", "dc=tokyo:1 dc=osaka:1", "t1", "t1", three, nil, LosesData, "", "its relocation is under way", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := mesh(t, test.nodes...)
			rec := placed(t, nodes, test.now)
			if test.change != nil {
				test.change(nodes, &rec)
			}
			got := NewSurvey(nodes).Survive("vm1", Input{Rule: rule(t, test.rule), Rec: rec, Now: noon}, selector(t, test.without))
			if got.Fate != test.want || !strings.Contains(strings.Join(got.Why, "; "), test.why) || !strings.Contains(got.Remedy, test.remedy) || !strings.Contains(got.Then, test.then) {
				t.Errorf("%v: %q\nremedy %q, then %q", got.Fate, got.Why, got.Remedy, got.Then)
			}
			if got.Fate == KeepsRunning && got.Remedy != "" || got.Fate >= Waits && got.Remedy == "" {
				t.Errorf("%v with remedy %q", got.Fate, got.Remedy)
			}
		})
	}
}

func TestSinglesAreEachNodeAndEachDatacenter(t *testing.T) {
	var got []string
	for _, s := range Singles(mesh(t, "t2 dc=tokyo", "t1 dc=tokyo", "o1 dc=osaka", "x")) {
		got = append(got, s.String())
	}
	if text := strings.Join(got, " "); text != "node=o1 node=t1 node=t2 node=x dc=osaka dc=tokyo" {
		t.Error(text)
	}
}
