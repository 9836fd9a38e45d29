package place

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ukai"
)

const gib = 1 << 30

// mesh makes nodes from lines "NAME key=value ... [flag ...]" with 100 GiB free each, or free=N GiB.
func mesh(t testing.TB, lines ...string) []Node {
	t.Helper()
	var nodes []Node
	for i, line := range lines {
		words := strings.Fields(line)
		n := Node{ID: ukai.NodeID{byte(i + 1)}, Name: words[0], Labels: ukai.Labels{}, FreeBytes: 100 * gib, CapacityBytes: 200 * gib, Alive: true}
		for _, w := range words[1:] {
			key, value, _ := strings.Cut(w, "=")
			switch key {
			case "witness":
				n.Witness = true
			case "drain":
				n.Drain = true
			case "nonew":
				n.NoNew = true
			case "down":
				n.Alive, n.DownSince = false, time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
			case "free", "reserve", "promised":
				var v int64
				if _, err := fmt.Sscan(value, &v); err != nil {
					t.Fatal(err)
				}
				*map[string]*int64{"free": &n.FreeBytes, "reserve": &n.ReserveBytes, "promised": &n.PromisedBytes}[key] = v * gib
			default:
				n.Labels[key] = value
			}
		}
		nodes = append(nodes, n)
	}
	return nodes
}

func names(nodes []Node, ids []ukai.NodeID) string {
	var list []string
	for _, id := range ids {
		for _, n := range nodes {
			if n.ID == id {
				list = append(list, n.Name)
			}
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func rule(t testing.TB, text string) Rule {
	t.Helper()
	r, err := ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestInitialChoosesNodes(t *testing.T) {
	small := []string{"t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "w1 dc=fukuoka witness"}
	for _, test := range []struct {
		name, rule string
		nodes      []string
		want       string
	}{
		{"as the rule says", "dc=tokyo:2", small, "t1 t2"},
		{"two terms", "dc=tokyo:2 dc=osaka:1", small, "o1 t1 t2"},
		{"most free space", "dc=tokyo:1", []string{"t1 dc=tokyo free=50", "t2 dc=tokyo free=90", "t3 dc=tokyo free=90 reserve=60"}, "t2"},
		{"room for all of the disk before more free space that is promised", "dc=tokyo:1", []string{"t1 dc=tokyo free=100 promised=95", "t2 dc=tokyo free=60"}, "t2"},
		{"larger share free", "dc=tokyo:1", []string{"t1 dc=tokyo free=100", "t2 dc=tokyo free=101"}, "t2"},
		{"a label that only one has is not wasted", "dc=tokyo:1 ssd=yes:1", []string{"t1 dc=tokyo ssd=yes free=200", "t2 dc=tokyo free=10"}, "t1 t2"},
		{"a chain of such", "a=1:1 b=1:1 c=1:1", []string{"n1 a=1 b=1 free=90", "n2 b=1 c=1 free=80", "n3 c=1 free=10"}, "n1 n2 n3"},
		{"spread", "dc=tokyo:2 --spread rack", []string{"t1 dc=tokyo rack=r1 free=90", "t2 dc=tokyo rack=r1 free=80", "t3 dc=tokyo rack=r2 free=10"}, "t1 t3"},
		{"spread gives way to terms", "dc=tokyo:1 ssd=yes:1 --spread rack", []string{"t1 dc=tokyo rack=r1 free=90", "t2 dc=tokyo rack=r2 free=10", "t3 ssd=yes rack=r1 free=20"}, "t2 t3"},
		{"two spread keys", "a!=z:3 --spread x --spread y", []string{"n1 x=1 y=1 free=99", "n2 x=1 y=2 free=10", "n3 x=2 y=1 free=10", "n4 x=3 y=3 free=10"}, "n2 n3 n4"},
		{"not equal", "dc!=tokyo:1", small[:3], "o1"},
		{"by name", "node=t2:1", small, "t2"},
		{"no drain, no new, no down", "dc=tokyo:1", []string{"t1 dc=tokyo drain", "t2 dc=tokyo nonew", "t3 dc=tokyo down", "t4 dc=tokyo free=6"}, "t4"},
		{"near each other", "dc!=tokyo:2", []string{"a1 dc=a", "b1 dc=b", "c1 dc=a"}, "a1 c1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := mesh(t, test.nodes...)
			for range 3 {
				c, err := Initial(rule(t, test.rule), 20*gib, nodes, nil)
				if err != nil || names(nodes, c.Nodes) != test.want {
					t.Fatalf("chose %q, %v; want %q", names(nodes, c.Nodes), err, test.want)
				}
				slices.Reverse(nodes) // the order of the input must not matter
			}
		})
	}
}

func TestInitialRefusesWithReasonsAndRemedies(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo rack=r1", "t2 dc=tokyo rack=r1 down", "t3 dc=tokyo rack=r1 free=6 reserve=6", "t4 dc=tokyo drain", "t5 dc=tokyo nonew",
		"o1 dc=osaka rack=r9", "w1 dc=tokyo witness", "x1")
	c, err := Initial(rule(t, "dc=tokyo:3 --spread rack"), 20*gib, nodes, nil)
	if !errors.Is(err, ukai.ErrUnmet) || c.Nodes != nil {
		t.Fatalf("%v, %v", c, err)
	}
	for _, want := range []string{
		"dc=tokyo gets 1 of 3", "t1 fits dc=tokyo:3", "t2 is down since 2026-11-22 10:00:00 UTC", "t3 has no space: 6 GiB free less 6 GiB reserve, 1 GiB needed",
		"t4 is being drained", "t5 takes no new replicas", "o1 has dc=osaka, dc=tokyo is wanted", "w1 is a witness", "x1 has no label dc",
		"bring t2 back", "free 1 GiB on t3", "stop draining t4", "open t5", "ukai-node place node NAME dc=tokyo", "leave out a --spread key", "--prefer",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if len(c.Reasons) != len(nodes) {
		t.Errorf("%d reasons for %d nodes", len(c.Reasons), len(nodes))
	}
	nodes = mesh(t, "t1 dc=tokyo rack=r1", "t2 dc=tokyo rack=r1", "t3 dc=tokyo")
	_, err = Initial(rule(t, "dc=tokyo:2 --spread rack"), 20*gib, nodes, nil)
	for _, want := range []string{"t2 shares rack=r1 with t1", "t3 has no label rack", "ukai-node place node t3 rack=VALUE"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

func TestPreferredRulePlacesWhatItCan(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "o1 dc=osaka")
	c, err := Initial(rule(t, "dc=tokyo:2 dc=osaka:1 --prefer"), gib, nodes, nil)
	if err != nil || names(nodes, c.Nodes) != "o1 t1" || !strings.Contains(c.Unmet, "dc=tokyo gets 1 of 2") {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err = Initial(rule(t, "dc=tokyo:2 --prefer --min-sync 2"), gib, nodes, nil); !errors.Is(err, ukai.ErrUnmet) {
		t.Fatalf("fewer than min-sync: %v", err)
	}
	if _, err = Initial(rule(t, "dc=kyoto:2 --prefer"), gib, nodes, nil); !errors.Is(err, ukai.ErrUnmet) {
		t.Fatalf("none: %v", err)
	}
	if _, err = Initial(Rule{}, gib, nodes, nil); !errors.Is(err, ukai.ErrInvalid) {
		t.Fatalf("empty rule: %v", err)
	}
}

func TestThinAndThick(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo free=10")
	c, err := Initial(rule(t, "dc=tokyo:1"), 100*gib, nodes, nil)
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "10 GiB of the disk's 100 GiB") {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err = Initial(rule(t, "dc=tokyo:1"), 300*gib, nodes, nil); !errors.Is(err, ukai.ErrUnmet) {
		t.Fatalf("thin, far too large: %v", err)
	}
	if _, err = InitialThick(rule(t, "dc=tokyo:1"), 11*gib, nodes, nil); !errors.Is(err, ukai.ErrUnmet) {
		t.Fatalf("thick: %v", err)
	}
	if got := ThinNeed(64 << 20); got != 64<<20 {
		t.Errorf("a disk of 64 MiB needs %d", got)
	}
}

// possible tries all sets of nodes.
func possible(r Rule, nodes []Node, need int64) bool {
	n := r.Replicas()
	var try func(from int, set []Node) bool
	try = func(from int, set []Node) bool {
		if len(set) == n {
			return satisfies(r, set)
		}
		for i := from; i < len(nodes); i++ {
			if nodes[i].unfit(need) == "" && try(i+1, append(slices.Clone(set), nodes[i])) {
				return true
			}
		}
		return false
	}
	return try(0, nil)
}

// satisfies is written another way than the code it judges: it gives the terms to the set in every order.
func satisfies(r Rule, set []Node) bool {
	for i, a := range set {
		for _, key := range r.Spread {
			if a.Labels[key] == "" {
				return false
			}
			for _, b := range set[:i] {
				if a.Labels[key] == b.Labels[key] {
					return false
				}
			}
		}
	}
	var slots []Term
	for _, t := range r.Terms {
		for range t.Count {
			slots = append(slots, t)
		}
	}
	var give func(s int, used int) bool
	give = func(s, used int) bool {
		if s == len(slots) {
			return true
		}
		for i, n := range set {
			if used>>i&1 == 0 && slots[s].matches(n) && give(s+1, used|1<<i) {
				return true
			}
		}
		return false
	}
	return len(set) == len(slots) && give(0, 0)
}

func anyMesh(t *rapid.T) []Node {
	label := rapid.SampledFrom([]string{"a", "b", "c", "d", ""})
	nodes := make([]Node, rapid.IntRange(0, 8).Draw(t, "nodes"))
	for i := range nodes {
		n := Node{ID: ukai.NodeID{byte(i + 1)}, Name: string(rune('a' + i)), Labels: ukai.Labels{}, Alive: true, CapacityBytes: 100 * gib}
		for _, key := range []string{"dc", "rack", "ssd"} {
			if v := label.Draw(t, key); v != "" {
				n.Labels[key] = v
			}
		}
		n.FreeBytes = rapid.Int64Range(1, 100).Draw(t, "free") * gib
		n.Drain = rapid.IntRange(0, 9).Draw(t, "drain") == 0
		nodes[i] = n
	}
	return nodes
}

// A rule is met if and only if trying all sets finds one, and what is chosen satisfies it.
func TestInitialRefusesExactlyWhatIsImpossible(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			refusesExactlyWhatIsImpossible(t)
		}
	})
}

func refusesExactlyWhatIsImpossible(t *rapid.T) {
	r, nodes := anyRule(t), anyMesh(t)
	need := ThinNeed(20 * gib)
	c, err := Initial(r, 20*gib, nodes, nil)
	var set []Node
	for _, id := range c.Nodes {
		for _, n := range nodes {
			if n.ID == id {
				set = append(set, n)
			}
		}
	}
	can := possible(r, nodes, need)
	if err == nil && c.Unmet == "" && !satisfies(r, set) {
		t.Fatalf("%q: chose %v", r, c)
	}
	if met := err == nil && c.Unmet == ""; met != can {
		t.Fatalf("%q: possible %v, but %+v, %v", r, can, c, err)
	}
	for i, n := range set {
		if n.unfit(need) != "" || slices.Contains(c.Nodes[:i], n.ID) {
			t.Fatalf("chose %s: %s", n.Name, n.unfit(need))
		}
	}
	again, _ := Initial(r, 20*gib, nodes, nil)
	if !slices.Equal(again.Nodes, c.Nodes) {
		t.Fatalf("%q: chose %v, then %v", r, c.Nodes, again.Nodes)
	}
}

func TestInitialOnALargeMesh(t *testing.T) {
	var lines []string
	for i := range 200 {
		lines = append(lines, fmt.Sprintf("n%03d dc=d%d rack=r%d row=w%d free=%d", i, i%5, i%40, i%17, 50+i%30))
	}
	nodes := mesh(t, lines...)
	for text, can := range map[string]bool{
		"dc=d1:3 dc=d2:2 dc!=d1:3":                        true,
		"dc=d1:3 dc=d2:3 --spread rack --spread row":      true,
		"dc!=d9:8 --spread dc --spread row":               false, // there are five values of dc
		"dc=d1:2 dc=d2:2 rack=r7:1 row=w3:3 --spread row": false, // three in one row
	} {
		_, err := Initial(rule(t, text), gib, nodes, nil)
		if (err == nil) != can || strings.Contains(fmt.Sprint(err), "steps") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
