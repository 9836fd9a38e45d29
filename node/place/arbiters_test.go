package place

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ukai"
)

func TestArbiters(t *testing.T) {
	for _, test := range []struct {
		name     string
		nodes    []string
		replicas string
		want     string
		warns    string
	}{
		{"one node", []string{"t1 dc=tokyo"}, "t1", "t1", ""},
		{"two nodes", []string{"t1 dc=tokyo", "t2 dc=tokyo"}, "t1 t2", "t1 t2", "add a witness"},
		{"two nodes, one copy", []string{"t1 dc=tokyo", "t2 dc=tokyo"}, "t1", "t1", ""},
		{"a witness beats another store", []string{"t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "w1 dc=fukuoka witness"}, "t1 t2", "t1 t2 w1", ""},
		{"one per datacenter where copies are in two", []string{"t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "w1 dc=fukuoka witness"}, "t1 t2 o1", "o1 t1 w1", ""},
		{"three copies in one datacenter", []string{"t1 dc=tokyo", "t2 dc=tokyo", "t3 dc=tokyo", "w1 dc=fukuoka witness"}, "t1 t2 t3", "t1 t2 t3", ""},
		{"two of them in one rack", []string{"t1 dc=tokyo rack=a", "t2 dc=tokyo rack=a", "t3 dc=tokyo rack=b", "w1 dc=fukuoka witness"}, "t1 t2 t3", "t1 t3 w1", ""},
		{"two datacenters only", []string{"t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "o2 dc=osaka"}, "t1 o1", "o1 o2 t1", "exactly two datacenters, osaka and tokyo: when osaka is lost"},
		{"two datacenters, copies in one", []string{"t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "o2 dc=osaka"}, "t1 t2", "o1 t1 t2", ""},
		{"five domains", []string{"a dc=a", "b dc=b", "c dc=c", "d dc=d", "e dc=e", "f dc=e"}, "a b", "a b c d e", ""},
		{"five nodes in one domain", []string{"a dc=a", "b dc=a", "c dc=a", "d dc=a", "e dc=a"}, "a b", "a b c", ""},
		{"the dead do not vote", []string{"t1 dc=tokyo", "t2 dc=tokyo", "t3 dc=tokyo down", "t4 dc=tokyo"}, "t1 t2", "t1 t2 t4", ""},
		{"the leaving do not vote", []string{"t1 dc=tokyo", "t2 dc=tokyo", "t3 dc=tokyo drain", "t4 dc=tokyo"}, "t1 t2", "t1 t2 t4", ""},
		{"unless there are too few others", []string{"t1 dc=tokyo", "t2 dc=tokyo", "t3 dc=tokyo drain"}, "t1 t2", "t1 t2 t3", ""},
		{"none", []string{"t1 down"}, "t1", "", "no node is alive"},
		{"no labels at all", []string{"a", "b", "c", "d"}, "b c", "a b c", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := mesh(t, test.nodes...)
			var replicas []ukai.NodeID
			for _, n := range nodes {
				if slices.Contains(strings.Fields(test.replicas), n.Name) {
					replicas = append(replicas, n.ID)
				}
			}
			for range 2 {
				ids, warnings := Arbiters(replicas, nodes, nil)
				if got := names(nodes, ids); got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
				if text := strings.Join(warnings, "\n"); (test.warns == "") != (text == "") || !strings.Contains(text, test.warns) {
					t.Errorf("warnings %q, want %q", text, test.warns)
				}
				if !slices.IsSortedFunc(ids, func(a, b ukai.NodeID) int { return strings.Compare(string(a[:]), string(b[:])) }) {
					t.Errorf("not sorted: %v", ids)
				}
				slices.Reverse(nodes)
			}
		})
	}
}

func TestArbitersAreNear(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo", "far dc=a witness", "near dc=b witness")
	near := func(a, b ukai.NodeID) (time.Duration, bool) {
		if a == nodes[2].ID || b == nodes[2].ID {
			return 90 * time.Millisecond, true
		}
		return 5 * time.Millisecond, true
	}
	ids, _ := Arbiters([]ukai.NodeID{nodes[0].ID}, nodes, near)
	if got := names(nodes, ids); got != "far near t1" && got != "near t1 t2" {
		t.Errorf("got %q", got)
	}
	ids, _ = Arbiters([]ukai.NodeID{nodes[0].ID, nodes[1].ID}, nodes, near)
	if got := names(nodes, ids); got != "near t1 t2" {
		t.Errorf("got %q", got)
	}
}

func TestArbitersOfALargeMesh(t *testing.T) {
	var lines []string
	for i := range 300 {
		lines = append(lines, fmt.Sprintf("n%03d dc=d%d rack=r%d", i, i%7, i%23))
	}
	nodes := mesh(t, lines...)
	ids, _ := Arbiters([]ukai.NodeID{nodes[0].ID, nodes[1].ID}, nodes, nil)
	if len(ids) != 5 {
		t.Errorf("%d arbiters", len(ids))
	}
}

// A node that is down for a moment keeps its seat, and gets none: the record would move to where nobody can decide.
func TestNoSeatIsGivenToANodeThatIsDown(t *testing.T) {
	for _, test := range []struct{ name, now, want string }{
		{"one leaves", "t1 t4 t5", "arbiters t1+t5+t6"},
		{"one leaves, and one that is down has a seat", "t2 t4 t5", "arbiters t1+t2+t5"},
		{"fewer are wanted, and those that are down would be most of them", "t1 t2 t3 t5 t6", ""},
		{"fewer are wanted while some are down", "t1 t2 t4 t5 t6", "arbiters t1+t2+t5"},
		{"one leaves, and those that are down would be most of the rest", "t1 t2 t3 t4 t5", "arbiters t1+t5+t6"},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo down", "t3 dc=tokyo down", "t4 dc=tokyo drain", "t5 dc=tokyo", "t6 dc=tokyo")
			rec := placed(t, nodes, "t1 t2 t3")
			rec.Arbiters = nil
			for _, n := range nodes {
				if slices.Contains(strings.Fields(test.now), n.Name) {
					rec.Arbiters = append(rec.Arbiters, n.ID)
				}
			}
			p, err := Relocate(Input{Rule: rule(t, "dc=tokyo:3"), Rec: rec, Nodes: nodes, Now: noon, RepairAfter: 3 * time.Hour})
			if err != nil || told(nodes, p) != test.want {
				t.Errorf("%q %v, want %q", told(nodes, p), err, test.want)
			}
		})
	}
}

// Of all sets of arbiters the best is taken, however few of them are looked at.
func TestElectionMissesNoBetterSetOfArbiters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tb testing.TB = &testing.T{}
		var lines []string
		for i := range rapid.IntRange(1, 14).Draw(t, "nodes") {
			lines = append(lines, fmt.Sprintf("n%02d dc=%c rack=%c%s", i, 'a'+rapid.IntRange(0, 4).Draw(t, "dc"), 'p'+rapid.IntRange(0, 3).Draw(t, "rack"),
				rapid.SampledFrom([]string{"", "", "", " witness", " drain", " down"}).Draw(t, "flag")))
		}
		nodes := mesh(tb, lines...)
		salt := rapid.IntRange(1, 1000).Draw(t, "distances")
		p := newPlanner(nodes, func(a, b ukai.NodeID) (time.Duration, bool) {
			return time.Duration((int(a[0])*int(b[0])*salt)%7) * time.Millisecond, true
		})
		var replicas []int
		for i := range nodes {
			if rapid.Bool().Draw(t, "replica") && len(replicas) < 4 {
				replicas = append(replicas, i)
			}
		}
		e := p.election(replicas)
		size := e.count()
		best := uint32(0)
		for set := uint32(1)<<size - 1; size > 0 && set < 1<<len(e.candidates); set = next(set) {
			if best == 0 || e.score(set).compare(e.score(best)) > 0 {
				best = set
			}
		}
		if e.best != best {
			t.Fatalf("elected %b %+v, best is %b %+v, of %d candidates", e.best, e.score(e.best), best, e.score(best), len(e.candidates))
		}
	})
}
