package crdt

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ukai"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// TestClocksOrderCauseBeforeEffect lets nodes with skewed clocks that also jump back exchange stamps.
func TestClocksOrderCauseBeforeEffect(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		clocks := []*Clock{NewClock(nodeID(1)), NewClock(nodeID(2)), NewClock(nodeID(3))}
		last := make([]Stamp, len(clocks)) // the latest stamp that node i made or took over
		wall := []time.Time{noon, noon.Add(-20 * time.Second), noon.Add(20 * time.Second)}
		seen := map[Stamp]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, 2).Draw(t, "node")
			wall[i] = wall[i].Add(time.Duration(rapid.IntRange(-5, 10).Draw(t, "ms")) * time.Millisecond)
			j := rapid.IntRange(0, 2).Draw(t, "from")
			if rapid.Bool().Draw(t, "receive") {
				if err := clocks[i].Observe(last[j], wall[i]); err != nil {
					t.Fatal(err)
				}
				if last[i].Less(last[j]) {
					last[i] = last[j]
				}
				continue
			}
			s := clocks[i].Now(wall[i])
			if !last[i].Less(s) {
				t.Fatalf("stamp %v is not after %v, which node %d knew", s, last[i], i)
			}
			if s.Wall < wall[i].UnixMilli() {
				t.Fatalf("stamp %v is before wall time %v", s, wall[i])
			}
			if seen[s] {
				t.Fatalf("stamp %v was made twice", s)
			}
			seen[s], last[i] = true, s
		}
	})
}

func TestClockRefusesAPeerThatIsAMinuteAhead(t *testing.T) {
	c := NewClock(nodeID(1))
	fast := Stamp{Wall: noon.Add(MaxSkew).UnixMilli() + 1, Node: nodeID(7)}
	err := c.Observe(fast, noon)
	var peer *ukai.NodeError
	if !errors.Is(err, ukai.ErrClockSkew) || !errors.As(err, &peer) || peer.Node != nodeID(7) || !strings.Contains(err.Error(), "1m0.001s") {
		t.Errorf("a minute and 1 ms ahead: error %v", err)
	}
	if s := c.Now(noon); s.Wall != noon.UnixMilli() {
		t.Errorf("the refused stamp moved the clock to %v", s)
	}
	fast.Wall--
	if err := c.Observe(fast, noon); err != nil {
		t.Errorf("exactly a minute ahead: %v", err)
	}
	if s := c.Now(noon); !fast.Less(s) {
		t.Errorf("stamp %v is not after the observed %v", s, fast)
	}
	if err := c.Observe(Stamp{Wall: math.MaxInt64, Node: nodeID(7)}, noon); !errors.Is(err, ukai.ErrClockSkew) {
		t.Errorf("the end of time: error %v", err)
	}
	if err := c.Observe(Stamp{Wall: math.MinInt64, Node: nodeID(7)}, noon); err != nil {
		t.Errorf("the beginning of time: %v", err)
	}
}

func TestClockSurvivesLogicalOverflow(t *testing.T) {
	c := NewClock(nodeID(1))
	full := Stamp{Wall: noon.UnixMilli(), Logical: math.MaxUint32, Node: nodeID(2)}
	if err := c.Observe(full, noon); err != nil {
		t.Fatal(err)
	}
	if s := c.Now(noon); !full.Less(s) {
		t.Errorf("stamp %v is not after %v", s, full)
	}
}

func TestRegisterSettlesEqualStampsAlike(t *testing.T) {
	s := Stamp{Wall: 5, Node: nodeID(1)}
	a, b := Register[string]{s, "a"}, Register[string]{s, "b"}
	x, y := a, b
	x.Merge(b)
	y.Merge(a)
	if x != y {
		t.Errorf("merging both ways gives %q and %q", x.Value, y.Value)
	}
	if again := x; again.Merge(x) {
		t.Error("merging with itself changed the register")
	}
}
