package place

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt"
)

func mustRule(t *testing.T, text string) Rule {
	t.Helper()
	r, err := ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestHereStandsForTheLabelsOfWhereTheDiskIsUsed(t *testing.T) {
	for _, test := range []struct {
		rule string
		here ukai.Labels
		want string
	}{
		{"dc=$here:2 --follow 1m", ukai.Labels{"dc": "osaka"}, "dc=osaka:2"},
		{"dc=$here:2 dc!=$here:1 --follow 1m --spread rack", ukai.Labels{"dc": "osaka", "ssd": "yes"}, "dc=osaka:2 dc!=osaka:1 --spread rack"},
		{"dc=$here:2 dc=osaka:1 --follow 1m --min-sync 2", ukai.Labels{"dc": "osaka"}, "dc=osaka:3 --min-sync 2"},
		{"dc=$here:2 dc=osaka:1 --follow 1m", ukai.Labels{"dc": "tokyo"}, "dc=tokyo:2 dc=osaka:1"},
		{"node=$here:1 rack!=$here:1 --follow 1m", ukai.Labels{"node": "t1", "rack": "r1"}, "node=t1:1 rack!=r1:1"},
		{"dc=tokyo:2", nil, "dc=tokyo:2"},
	} {
		r, err := mustRule(t, test.rule).At(test.here)
		if err != nil || r.String() != test.want {
			t.Errorf("%q at %v: %q, %v; want %q", test.rule, test.here, r, err, test.want)
		}
		if _, err := ParseText(r.String()); err != nil {
			t.Errorf("%q cannot be read back: %v", r, err)
		}
	}
	for _, test := range []struct {
		rule string
		here ukai.Labels
		want string
	}{
		{"dc=$here:2 --follow 1m", nil, "not known yet what dc=$here stands for"},
		{"dc=$here+dc!=osaka:2 --follow 1m", ukai.Labels{"dc": "osaka"}, "no node has both"},
	} {
		if _, err := mustRule(t, test.rule).At(test.here); !errors.Is(err, ukai.ErrInvalid) || !strings.Contains(fmt.Sprint(err), test.want) {
			t.Errorf("%q at %v: %v; want %q", test.rule, test.here, err, test.want)
		}
	}
}

func TestNobodyPlansForARuleOfWhichHereIsNotKnown(t *testing.T) {
	rule := mustRule(t, "dc!=$here:1 --follow 1m")
	if _, err := Initial(rule, 1<<30, []Node{{ID: ukai.NodeID{9}, Name: "t1", Alive: true, FreeBytes: 1 << 40}}, nil); !errors.Is(err, ukai.ErrInvalid) {
		t.Errorf("planned with $here as a value: %v", err)
	}
}

func TestADiskThatNobodyUsesIsWhereMostOfItsCopiesAre(t *testing.T) {
	nodes := []Node{{ID: ukai.NodeID{1}, Labels: ukai.Labels{"dc": "tokyo"}}, {ID: ukai.NodeID{2}, Labels: ukai.Labels{"dc": "osaka"}}, {ID: ukai.NodeID{3}, Labels: ukai.Labels{"dc": "osaka"}}}
	var g crdt.Group
	for i, n := range nodes {
		g.Members = append(g.Members, crdt.Member{Replica: ukai.ReplicaID(i + 1), Node: n.ID})
	}
	rec := crdt.Record{Groups: []crdt.Group{g}}
	if got := HereNow(mustRule(t, "dc=$here:1 rack=$here:1 --follow 1m"), rec, nodes); !maps.Equal(got, ukai.Labels{"dc": "osaka"}) {
		t.Errorf("%v, want osaka, and nothing of racks", got)
	}
	rec.Groups[0].Members[1].Role = crdt.Out
	if got := HereNow(mustRule(t, "dc=$here:1 --follow 1m"), rec, nodes); got["dc"] != "osaka" {
		t.Errorf("%v, want osaka, the first by name of as many", got)
	}
}

// TestHereFollowsOnlyAStayWithoutABreak moves a VM about at random and holds Here to what it is to mean.
func TestHereFollowsOnlyAStayWithoutABreak(t *testing.T) {
	rule := mustRule(t, "dc=$here:2 --follow 10m")
	places := []string{"tokyo", "osaka", "nagoya", "", "off"} // without a label, and stopped
	rapid.Check(t, func(t *rapid.T) {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		h, _ := Here{}.Used(rule, Node{Labels: ukai.Labels{"dc": "tokyo"}}, now)
		here, since := "tokyo", now // since when the VM has been where it is, without a break
		at := "tokyo"
		for range rapid.IntRange(1, 60).Draw(t, "looks") {
			now = now.Add(time.Duration(rapid.IntRange(1, 400).Draw(t, "seconds")) * time.Second)
			if rapid.IntRange(0, 3).Draw(t, "moves") == 0 {
				if next := rapid.SampledFrom(places).Draw(t, "place"); next != at {
					at, since = next, now
				}
			}
			switch at {
			case "off":
				h, _ = h.Unused()
			case "":
				h, _ = h.Used(rule, Node{}, now)
			default:
				var changed bool
				before := h.Values["dc"]
				h, changed = h.Used(rule, Node{Labels: ukai.Labels{"dc": at}}, now)
				if at != here && now.Sub(since) >= rule.Follow {
					here = at
				}
				if before != h.Values["dc"] && (!changed || !h.Since.Equal(now)) {
					t.Fatalf("it moved and did not say so: %+v", h)
				}
			}
			if h.Values["dc"] != here {
				t.Fatalf("$here is %v, must be %s: the VM has been at %q for %v", h.Values, here, at, now.Sub(since))
			}
			if (h.Next != nil) != (at != here && at != "off" && at != "") {
				t.Fatalf("next %+v while the VM is at %q and $here is %s", h.Next, at, here)
			}
		}
	})
}

func TestAClockThatWasPutBackBeginsAStayAnew(t *testing.T) {
	rule, now := mustRule(t, "dc=$here:1 --follow 10m"), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	osaka := Node{Labels: ukai.Labels{"dc": "osaka"}}
	h, _ := Here{}.Used(rule, Node{Labels: ukai.Labels{"dc": "tokyo"}}, now)
	h, _ = h.Used(rule, osaka, now.Add(48*time.Hour))
	h, changed := h.Used(rule, osaka, now.Add(time.Minute))
	if !changed || !h.Next.Since.Equal(now.Add(time.Minute)) {
		t.Fatalf("%+v", h.Next)
	}
	if h, _ = h.Used(rule, osaka, now.Add(11*time.Minute)); h.Values["dc"] != "osaka" {
		t.Errorf("it does not follow: %+v", h)
	}
}

func TestSelectorsRefuseHere(t *testing.T) {
	if _, err := ParseSelector("dc=$here"); !errors.Is(err, ukai.ErrInvalid) || !strings.Contains(err.Error(), "belongs to the rule of a disk") {
		t.Error(err)
	}
}
