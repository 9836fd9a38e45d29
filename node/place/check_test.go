package place

import (
	"strings"
	"testing"

	"ukai"
	"ukai/crdt"
)

func TestCheck(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo rack=a ssd=yes", "t2 dc=tokyo rack=a", "t3 dc=tokyo rack=b down", "o1 dc=osaka rack=c")
	member := func(i int, role crdt.Role) crdt.Member {
		return crdt.Member{Replica: ukai.ReplicaID(i), Node: ukai.NodeID{byte(i)}, Role: role}
	}
	for _, test := range []struct {
		name, rule string
		members    []crdt.Member
		now        string
		want       []string // differences
	}{
		{"met", "dc=tokyo:2", []crdt.Member{member(1, crdt.InSync), member(2, crdt.InSync)}, "t1 in sync, t2 in sync", nil},
		{"met only by the right assignment", "dc=tokyo:1 ssd=yes:1", []crdt.Member{member(1, crdt.InSync), member(2, crdt.InSync)}, "t1 in sync, t2 in sync", nil},
		{"no rule", "", []crdt.Member{member(1, crdt.InSync)}, "t1 in sync", nil},
		{"syncing", "dc=tokyo:2", []crdt.Member{member(1, crdt.InSync), member(2, crdt.Syncing)}, "t1 in sync, t2 syncing",
			[]string{"t2 is being brought up to date", "dc=tokyo wants 2 in sync, has 1"}},
		{"down", "dc=tokyo:2", []crdt.Member{member(1, crdt.InSync), member(3, crdt.Out)}, "t1 in sync, t3 out",
			[]string{"t3 is down since 2026-11-22 10:00:00 UTC: its replica is out", "dc=tokyo wants 2 in sync, has 1"}},
		{"out", "dc=tokyo:2", []crdt.Member{member(1, crdt.InSync), member(2, crdt.Out)}, "t1 in sync, t2 out",
			[]string{"t2 has missed writes", "dc=tokyo wants 2 in sync, has 1"}},
		{"elsewhere", "dc=osaka:1", []crdt.Member{member(1, crdt.InSync)}, "t1 in sync",
			[]string{"dc=osaka wants 1 in sync, has 0", "the replica on t1 is not wanted by the rule"}},
		{"one too many", "dc=tokyo:1", []crdt.Member{member(1, crdt.InSync), member(2, crdt.InSync)}, "t1 in sync, t2 in sync",
			[]string{"the replica on t2 is not wanted by the rule"}},
		{"spread", "dc=tokyo:2 --spread rack", []crdt.Member{member(1, crdt.InSync), member(2, crdt.InSync)}, "t1 in sync, t2 in sync",
			[]string{"t1 and t2 share rack=a"}},
		{"gone", "dc=osaka:1", []crdt.Member{member(4, crdt.InSync), member(9, crdt.Out)}, "09000000 out, o1 in sync",
			[]string{"09000000 is not a node of this mesh", "the replica on 09000000 is not wanted"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var r Rule
			if test.rule != "" {
				r = rule(t, test.rule)
			}
			rec := crdt.Record{Size: 8 << 20, BlockSize: 4 << 20, Groups: []crdt.Group{{Members: test.members}}, Runs: []crdt.Run{{Count: 2}}}
			s := Check(r, rec, nodes)
			if s.Met != (test.want == nil) || s.Now != test.now || s.Wanted != test.rule || len(s.Differences) != len(test.want) {
				t.Fatalf("got %+v", s)
			}
			for i, d := range s.Differences {
				if !strings.Contains(d, test.want[i]) {
					t.Errorf("difference %q, want %q", d, test.want[i])
				}
			}
		})
	}
}

func TestCheckNamesTheBlocksOfEachGroup(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "o1 dc=osaka")
	rec := crdt.Record{
		Size: 16 << 20, BlockSize: 4 << 20, Runs: []crdt.Run{{Count: 1}, {Count: 2, Group: 1}, {Count: 1}},
		Groups: []crdt.Group{
			{ID: 0, Members: []crdt.Member{{Replica: 1, Node: nodes[0].ID}}},
			{ID: 1, Members: []crdt.Member{{Replica: 2, Node: nodes[1].ID}}},
		},
	}
	s := Check(rule(t, "dc=tokyo:1"), rec, nodes)
	if s.Met || s.Now != "blocks 0-0,3-3: t1 in sync; blocks 1-2: o1 in sync" || len(s.Differences) != 2 || !strings.HasPrefix(s.Differences[0], "blocks 1-2: ") {
		t.Fatalf("got %+v", s)
	}
}
