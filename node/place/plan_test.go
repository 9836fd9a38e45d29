package place

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) // two hours after the nodes went down that are

// placed makes a record of a disk from words "NODE[:ROLE]"; its arbiters are those that Arbiters would choose.
func placed(t testing.TB, nodes []Node, words string) crdt.Record {
	t.Helper()
	rec := crdt.Record{
		Disk: ukai.DiskID{1}, Version: 1, Phase: crdt.PhaseReleased, Size: 10 * gib, BlockSize: ukai.DefaultBlockSize, MinSync: 1,
		Groups: []crdt.Group{{Generation: 1}}, Runs: []crdt.Run{{Count: ukai.Blocks(10*gib, ukai.DefaultBlockSize)}},
	}
	var on []ukai.NodeID
	for i, w := range strings.Fields(words) {
		name, role, _ := strings.Cut(w, ":")
		at := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == name })
		if at < 0 {
			t.Fatalf("no node %s", name)
		}
		m := crdt.Member{Replica: ukai.ReplicaID(100 + i), Node: nodes[at].ID}
		switch role {
		case "out":
			m.Role = crdt.Out
		case "syncing":
			m.Role = crdt.Syncing
		}
		rec.Groups[0].Members = append(rec.Groups[0].Members, m)
		on = append(on, m.Node)
	}
	rec.Arbiters, _ = Arbiters(on, nodes, nil)
	return rec
}

func told(nodes []Node, p Plan) string {
	var list []string
	for _, s := range p.Steps {
		switch s.Kind {
		case SetMinSync:
			list = append(list, fmt.Sprintf("min-sync %d", s.MinSync))
		case MoveArbiters:
			list = append(list, "arbiters "+strings.ReplaceAll(names(nodes, s.Arbiters), " ", "+"))
		default:
			list = append(list, s.Kind.String()+" "+names(nodes, []ukai.NodeID{s.Node}))
		}
	}
	return strings.Join(list, ", ")
}

func TestRelocationPlans(t *testing.T) {
	small := []string{"t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "o2 dc=osaka", "w1 dc=fukuoka witness"}
	for _, test := range []struct {
		name, rule, now string
		nodes           []string
		want            string
		unmet           bool
	}{
		{"nothing to do", "dc=tokyo:2", "t1 t2", small, "", false},
		{"one more copy", "dc=tokyo:2 dc=osaka:1", "t1 t2", small, "add o1, arbiters o1+t1+w1", false},
		{"one copy less", "dc=tokyo:1", "t1 t2", small, "drop t2", false},
		{"moved whole, first copied and then dropped", "dc=osaka:2", "t1 t2", small, "add o1, add o2, drop t1, drop t2, arbiters o1+o2+w1", false},
		{"moved by half", "dc=tokyo:1 dc=osaka:1", "t1 t2", small, "add o1, drop t2, arbiters o1+t1+w1", false},
		{"what is out comes back by itself", "dc=tokyo:2", "t1 t2:out", small, "", false},
		{"what is out and not wanted goes first", "dc=tokyo:1 dc=osaka:1", "t1 t2:out", small, "add o1, drop t2, arbiters o1+t1+w1", false},
		{"the copy in sync is kept, not the one that is out", "any:1", "t1:out t2", small, "drop t1", false},
		{"drained node is left", "dc=tokyo:2", "t1 t2", []string{"t1 dc=tokyo drain", "t2 dc=tokyo", "t3 dc=tokyo", "w1 dc=fukuoka witness"}, "add t3, drop t1", false},
		{"node that takes nothing new keeps what it has", "dc=tokyo:2", "t1 t2", []string{"t1 dc=tokyo nonew", "t2 dc=tokyo", "t3 dc=tokyo", "w1 dc=fukuoka witness"}, "", false},
		{"node that is down for long is replaced", "dc=tokyo:2", "t1 t2:out", []string{"t1 dc=tokyo", "t2 dc=tokyo down", "t3 dc=tokyo", "w1 dc=fukuoka witness"}, "add t3, drop t2, arbiters t1+t3+w1", false},
		{"what is down stays where there is no other", "dc=tokyo:2", "t1 t2:out", []string{"t1 dc=tokyo", "t2 dc=tokyo down", "w1 dc=fukuoka witness", "w2 dc=osaka witness"}, "arbiters t1+w1+w2", true},
		{"nothing is dropped for less", "dc=osaka:2", "t1 t2", []string{"t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "w1 dc=fukuoka witness"}, "add o1, arbiters o1+t1+w1", true},
		{"more in sync for writes, once they are there", "dc=tokyo:2 --min-sync 2", "t1", small, "add t2, min-sync 2", false},
		{"spread", "any:2 --spread rack", "t1 t2", []string{"t1 dc=tokyo rack=a", "t2 dc=tokyo rack=a", "t3 dc=tokyo rack=b"}, "add t3, drop t2", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := mesh(t, test.nodes...)
			rec := placed(t, nodes, test.now)
			for i := range nodes { // arbiters were chosen when all were well
				if !nodes[i].Alive {
					well := slices.Clone(nodes)
					well[i].Alive = true
					var on []ukai.NodeID
					for _, m := range rec.Groups[0].Members {
						on = append(on, m.Node)
					}
					rec.Arbiters, _ = Arbiters(on, well, nil)
				}
			}
			p, err := Relocate(Input{Rule: rule(t, test.rule), Rec: rec, Nodes: nodes, Now: noon})
			if err != nil {
				t.Fatal(err)
			}
			if got := told(nodes, p); got != test.want || (p.Unmet != "") != test.unmet {
				t.Errorf("%s\nwant %s\nunmet %q", got, test.want, p.Unmet)
			}
		})
	}
}

func TestNodeThatIsDownForAMomentIsWaitedFor(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo down", "t3 dc=tokyo", "w1 dc=fukuoka witness")
	rec := placed(t, mesh(t, "t1 dc=tokyo", "t2 dc=tokyo", "t3 dc=tokyo", "w1 dc=fukuoka witness"), "t1 t2:out")
	for after, want := range map[time.Duration]string{3 * time.Hour: "", time.Hour: "add t3, drop t2, arbiters t1+t3+w1", -1: ""} {
		p, err := Relocate(Input{Rule: rule(t, "dc=tokyo:2"), Rec: rec, Nodes: nodes, Now: noon, RepairAfter: after})
		if err != nil || told(nodes, p) != want {
			t.Errorf("repair after %v: %q %v, want %q", after, told(nodes, p), err, want)
		}
	}
}

// A planner that has planned for other disks before, and looks first whether anything is to be done, plans as one that looks for the best nodes
// at once, and as one that is made for this disk.
func TestShortCutsOfThePlannerChangeNoPlan(t *testing.T) {
	empty := 0
	rapid.Check(t, func(t *rapid.T) {
		var tb testing.TB = &testing.T{}
		var lines []string
		count := rapid.IntRange(2, 12).Draw(t, "nodes")
		for i := range count {
			line := fmt.Sprintf("n%02d dc=%c rack=%c", i, 'a'+rapid.IntRange(0, 2).Draw(t, "dc"), 'p'+rapid.IntRange(0, 3).Draw(t, "rack"))
			line += rapid.SampledFrom([]string{"", "", "", "", " drain", " nonew", " down", " witness", " free=1"}).Draw(t, "flag")
			lines = append(lines, line)
		}
		nodes := mesh(tb, lines...)
		after := rapid.SampledFrom([]time.Duration{0, 3 * time.Hour}).Draw(t, "repair after")
		quick, thorough := NewPlanner(nodes, nil, noon, after), NewPlanner(nodes, nil, noon, after)
		thorough.thorough = true
		for range rapid.IntRange(1, 6).Draw(t, "disks") {
			r := rule(tb, rapid.SampledFrom([]string{"any:1", "any:2", "dc=a:1", "dc=b:1", "dc=a:2", "dc=a:1 dc=b:1", "dc=a:1 any:1", "any:2 --spread rack", "dc!=a:2", "any:2 --min-sync 2"}).Draw(t, "rule"))
			rec := crdt.Record{Size: 10 * gib, BlockSize: ukai.DefaultBlockSize, MinSync: 1, Groups: []crdt.Group{{}}}
			lost := map[ukai.ReplicaID]time.Time{}
			for i, at := range rapid.Permutation([]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}[:count]).Draw(t, "replicas")[:rapid.IntRange(1, min(3, count)).Draw(t, "copies")] {
				m := crdt.Member{Replica: ukai.ReplicaID(1 + i), Node: nodes[at].ID, Role: rapid.SampledFrom([]crdt.Role{crdt.InSync, crdt.InSync, crdt.Out, crdt.Async}).Draw(t, "role")}
				rec.Groups[0].Members = append(rec.Groups[0].Members, m)
				if rapid.IntRange(0, 4).Draw(t, "lost") == 0 {
					lost[m.Replica] = noon.Add(-time.Hour)
				}
				if i == 0 {
					rec.Arbiters, _ = Arbiters([]ukai.NodeID{m.Node}, nodes, nil)
				}
			}
			quick.Lost, thorough.Lost = lost, lost
			a, b := must(quick.Plan(r, rec, 0)), must(thorough.Plan(r, rec, 0))
			c := must(Relocate(Input{Rule: r, Rec: rec, Nodes: nodes, Now: noon, RepairAfter: after, Lost: lost}))
			c.Reasons = nil
			if !reflect.DeepEqual(a, b) || !reflect.DeepEqual(a, c) {
				t.Fatalf("rule %v, members %v\nshort cut %+v\nthorough %+v\nalone %+v", r, rec.Groups[0].Members, a, b, c)
			}
			if len(a.Steps) == 0 {
				empty++
			}
		}
	})
	if empty == 0 {
		t.Error("no disk was settled: this shows nothing")
	}
}

func TestReplicaThatIsLostOnALivingNodeIsReplaced(t *testing.T) {
	for _, c := range []struct {
		name, now string
		nodes     []string
		since     time.Duration
		want      string
		unmet     bool
	}{
		{"elsewhere or in its place", "t1 t2:out", []string{"t1 dc=tokyo", "t2 dc=tokyo", "w1 dc=fukuoka witness"}, time.Minute, "drop t2, add t2", false},
		{"not while its node takes nothing new and there is no other", "t1 t2:out", []string{"t1 dc=tokyo", "t2 dc=tokyo nonew", "w1 dc=fukuoka witness"}, time.Minute, "", true},
		{"elsewhere, where its node takes nothing new", "t1 t2:out", []string{"t1 dc=tokyo", "t2 dc=tokyo nonew", "t3 dc=tokyo", "w1 dc=fukuoka witness"}, time.Minute, "add t3, drop t2", false},
		{"not at once", "t1 t2:out", []string{"t1 dc=tokyo", "t2 dc=tokyo", "w1 dc=fukuoka witness"}, time.Second, "", false},
		{"not while the record has it in sync", "t1 t2", []string{"t1 dc=tokyo", "t2 dc=tokyo", "w1 dc=fukuoka witness"}, time.Minute, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodes := mesh(t, c.nodes...)
			rec := placed(t, nodes, c.now)
			lost := map[ukai.ReplicaID]time.Time{101: noon.Add(-c.since)}
			p, err := Relocate(Input{Rule: rule(t, "dc=tokyo:2"), Rec: rec, Nodes: nodes, Now: noon, Lost: lost})
			if err != nil || told(nodes, p) != c.want || (p.Unmet != "") != c.unmet {
				t.Errorf("%q %v, want %q; unmet %q", told(nodes, p), err, c.want, p.Unmet)
			}
		})
	}
}

func TestPlansThatMayHaveFewerCopiesDropBeforeTheyAdd(t *testing.T) {
	small := []string{"t1 dc=tokyo", "t2 dc=tokyo", "t3 dc=tokyo", "o1 dc=osaka", "o2 dc=osaka", "w1 dc=fukuoka witness"}
	for _, test := range []struct {
		rule, now string
		minSync   int
		want      string
		least     int
	}{
		{"dc=osaka:2", "t1 t2", 1, "drop t1, add o1, add o2, drop t2, arbiters o1+o2+w1", 1},
		{"dc=osaka:2 --min-sync 2", "t1 t2", 2, "add o1, add o2, drop t1, drop t2, arbiters o1+o2+w1", 2},
		{"dc=osaka:2 --min-sync 2", "t1 t2 t3", 1, "drop t1, drop t2, add o1, add o2, drop t3, min-sync 2, arbiters o1+o2+w1", 1},
		{"dc=osaka:2", "t1 t2 t3", 2, "min-sync 1, drop t1, drop t2, add o1, add o2, drop t3, arbiters o1+o2+w1", 1},
		{"node=t1:1 node=o1:1", "t1 t2", 1, "drop t2, add o1, arbiters o1+t1+w1", 1},
		{"dc=osaka:2", "t1:out t2", 1, "drop t1, add o1, add o2, drop t2, arbiters o1+o2+w1", 1},
		{"dc=osaka:3 --prefer", "t1 t2", 1, "add o1, add o2, drop t1, drop t2, arbiters o1+o2+w1", 2}, // cannot be met: nothing is given up first
		{"dc=tokyo:1", "t1 t2", 1, "drop t2", 1},
	} {
		nodes := mesh(t, small...)
		rec := placed(t, nodes, test.now)
		rec.MinSync = test.minSync
		p := must(Relocate(Input{Rule: rule(t, test.rule), Rec: rec, Nodes: nodes, Now: noon, Fewer: true}))
		c := p.Costs(Copying{Rec: rec, Nodes: nodes})
		if got := told(nodes, p); got != test.want || c.Least != test.least {
			t.Errorf("%s from %s: %s, never fewer than %d\nwant %s, %d", test.rule, test.now, got, c.Least, test.want, test.least)
		}
		for i, s := range p.Steps {
			for _, d := range p.Steps[:i] {
				if s.Kind == AddReplica && d.Kind == DropReplica && s.From == d.Node {
					t.Errorf("%s: the copy on %s is made from %s, where it was dropped", test.rule, s.Node, s.From)
				}
			}
		}
	}
}

func TestAGroupNeverHasMoreMembersThanItsRecordCan(t *testing.T) {
	var lines []string
	for i := range 20 {
		lines = append(lines, fmt.Sprintf("n%02d dc=%s", i, []string{"a", "b"}[i/10]))
	}
	nodes := mesh(t, lines...)
	for copies := 1; copies <= crdt.MaxMembers; copies++ {
		for _, fewer := range []bool{false, true} {
			rec := placed(t, nodes, strings.Join(strings.Fields("n00 n01 n02 n03 n04 n05 n06 n07")[:copies], " "))
			p := must(Relocate(Input{Rule: rule(t, fmt.Sprintf("dc=b:%d", copies)), Rec: rec, Nodes: nodes, Now: noon, Fewer: fewer}))
			full := copies == crdt.MaxMembers && !fewer
			if (p.Unmet != "") != full || full && !strings.Contains(p.Help, "--allow-fewer") {
				t.Errorf("%d copies, fewer %v: unmet %q", copies, fewer, p.Unmet)
			}
			members, steps := copies, 0
			for _, s := range p.Steps {
				switch s.Kind {
				case AddReplica:
					members, steps = members+1, steps+1
				case DropReplica:
					members, steps = members-1, steps+1
				}
				if members > crdt.MaxMembers || !fewer && s.InSync < copies && s.Kind != MoveArbiters {
					t.Fatalf("%d copies, fewer %v: %d members, %d in sync: %s", copies, fewer, members, s.InSync, told(nodes, p))
				}
			}
			if !full && steps != 2*copies {
				t.Errorf("%d copies, fewer %v: %s", copies, fewer, told(nodes, p))
			}
		}
	}
}

// Carried out step by step, with a new plan after each, a plan ends where it said, never has fewer copies in sync than
// it had or than the rule asks for, and does not run in circles.
func TestPlansArriveAndNeverGiveUpACopyTooEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var lines []string
		count := rapid.IntRange(2, 8).Draw(t, "nodes")
		for i := range count {
			line := fmt.Sprintf("n%d dc=%c rack=%c", i, 'a'+rapid.IntRange(0, 2).Draw(t, "dc"), 'p'+rapid.IntRange(0, 3).Draw(t, "rack"))
			line += rapid.SampledFrom([]string{"", "", "", "", " drain", " nonew", " down", " witness", " free=1"}).Draw(t, "flag")
			lines = append(lines, line)
		}
		var tb testing.TB = &testing.T{}
		nodes := mesh(tb, lines...)
		text := rapid.SampledFrom([]string{"any:1", "any:2", "any:3", "dc=a:1", "dc=a:2", "dc=a:1 dc=b:1", "dc=b:2 dc=c:1", "any:2 --spread rack", "dc!=a:2"}).Draw(t, "rule")
		var now []string
		for i, at := range rapid.Permutation([]int{0, 1, 2, 3, 4, 5, 6, 7}[:count]).Draw(t, "replicas")[:rapid.IntRange(1, min(3, count)).Draw(t, "copies")] {
			w := fmt.Sprintf("n%d", at)
			if i > 0 {
				w += rapid.SampledFrom([]string{"", "", ":out", ":syncing"}).Draw(t, "role")
			}
			now = append(now, w)
		}
		in := Input{Rule: rule(tb, text), Rec: placed(tb, nodes, strings.Join(now, " ")), Nodes: nodes, Now: noon, Fewer: rapid.IntRange(0, 3).Draw(t, "fewer") == 0}
		in.Rec.MinSync = rapid.IntRange(1, in.Rec.Groups[0].Count(crdt.InSync)).Draw(t, "min-sync")
		in.Rule.MinSync = rapid.IntRange(0, in.Rule.Replicas()).Draw(t, "rule's min-sync")
		g := &in.Rec.Groups[0]
		next := ukai.ReplicaID(1000)
		for round := 0; ; round++ {
			if round > 30 {
				t.Fatalf("does not arrive: %v", told(nodes, must(Relocate(in))))
			}
			// What can come back does.
			for i := range g.Members {
				if at := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == g.Members[i].Node }); nodes[at].Alive {
					g.Members[i].Role = crdt.InSync
				}
			}
			p := must(Relocate(in))
			if len(p.Steps) == 0 {
				if s := Check(in.Rule, in.Rec, nodes); p.Unmet == "" && !s.Met && !slices.ContainsFunc(nodes, func(n Node) bool { return !n.Alive }) {
					t.Fatalf("arrived at %s, not at %s: %v", s.Now, s.Wanted, s.Differences)
				}
				return
			}
			before := g.Count(crdt.InSync)
			switch s := p.Steps[0]; s.Kind {
			case AddReplica:
				g.Members = append(g.Members, crdt.Member{Replica: next, Node: s.Node})
				next++
			case DropReplica:
				g.Members = slices.DeleteFunc(g.Members, func(m crdt.Member) bool { return m.Replica == s.Replica })
				after := g.Count(crdt.InSync)
				few := min(in.Rule.Replicas(), before)
				if in.Fewer && p.Unmet == "" {
					few = in.Rec.MinSync
				}
				if after < before && after < few || after == 0 {
					t.Fatalf("dropping %v leaves %d in sync of %d, the rule asks for %d", s.Replica, after, before, in.Rule.Replicas())
				}
			case SetMinSync:
				in.Rec.MinSync = s.MinSync
			case MoveArbiters:
				in.Rec.Arbiters = s.Arbiters
			}
		}
	})
}

func must[T any](p T, err error) T {
	if err != nil {
		panic(err)
	}
	return p
}

func TestAReplicaIsMadeWhereAnOldCopyWasKept(t *testing.T) {
	small := []string{"t1 dc=tokyo", "t2 dc=tokyo", "t3 dc=tokyo free=15", "o1 dc=osaka", "o2 dc=osaka", "w1 dc=fukuoka witness"}
	for _, test := range []struct {
		rule, now, kept string
		want            string
		reuses          int64
	}{
		{"dc=tokyo:1", "o1", "", "add t1, drop o1", 0},
		{"dc=tokyo:1", "o1", "t2:9", "add t2, drop o1", 9},
		{"dc=tokyo:2", "o1 o2", "t3:9", "add t3, add t1, drop o1, drop o2", 9},
		{"dc=tokyo:1", "o1", "t2:30", "add t2, drop o1", 10}, // it was larger, or has holes filled
		{"dc=tokyo:1", "o1", "w1:9", "add t1, drop o1", 0},
		{"dc=tokyo:1", "t1", "t2:9", "", 0}, // what is there stays
		{"any:1", "t1:out o1", "t2:9", "drop t1", 0},
		{"node=t3:1", "o1", "t3:9", "add t3, drop o1", 9},
	} {
		nodes := mesh(t, small...)
		in := Input{Rule: rule(t, test.rule), Rec: placed(t, nodes, test.now), Nodes: nodes, Now: noon, Kept: map[ukai.NodeID]int64{}}
		if name, gibs, any := strings.Cut(test.kept, ":"); any {
			n, _ := strconv.ParseInt(gibs, 10, 64)
			in.Kept[nodes[slices.IndexFunc(nodes, func(n Node) bool { return n.Name == name })].ID] = n * gib
		}
		p := must(Relocate(in))
		got, _, _ := strings.Cut(told(nodes, p), ", arbiters")
		reuses := int64(0)
		for _, s := range p.Steps {
			reuses += s.Reuses / gib
		}
		if got != test.want || reuses != test.reuses || p.Unmet != "" {
			t.Errorf("%s from %s, kept %s: %s, which reuses %d GiB %s\nwant %s, %d GiB", test.rule, test.now, test.kept, got, reuses, p.Unmet, test.want, test.reuses)
		}
		for _, s := range p.Costs(Copying{Rec: in.Rec, Nodes: nodes}).Space {
			if want := 10 - reuses; reuses > 0 && s.PeakBytes > 0 && s.PeakBytes/gib != want && s.PeakBytes/gib != 10 {
				t.Errorf("%s: %s takes %d GiB, want %d", test.rule, s.Name, s.PeakBytes/gib, want)
			}
		}
	}
	// What the copy takes need not be free.
	nodes := mesh(t, "t1 dc=tokyo free=5", "o1 dc=osaka")
	in := Input{Rule: rule(t, "dc=tokyo:1"), Rec: placed(t, nodes, "o1"), Nodes: nodes, Now: noon}
	if p := must(Relocate(in)); p.Unmet == "" {
		t.Errorf("5 GiB hold a disk of 10: %s", told(nodes, p))
	}
	in.Kept = map[ukai.NodeID]int64{nodes[0].ID: 8 * gib}
	if p := must(Relocate(in)); p.Unmet != "" || p.Steps[0].Reuses != 8*gib || p.Reasons[1].Why != "has kept an old copy" {
		t.Errorf("%s: %s, %+v", told(nodes, p), p.Unmet, p.Reasons)
	}
}
