package place

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt"
)

const ms = time.Millisecond

// afar makes a viewpoint of a host from which nodes are as far as their datacenters: 20 ms to osaka, 80 ms to fukuoka.
func afar(nodes []Node, host string) Viewpoint {
	v := Viewpoint{Nodes: nodes, Large: 65537, IO: IO{Reads: Requests{Sizes: map[int64]float64{4096: 1}}, Writes: Requests{Sizes: map[int64]float64{4096: 1}}}}
	var dc string
	byID := map[ukai.NodeID]Node{}
	for _, n := range nodes {
		byID[n.ID] = n
		if n.Name == host {
			v.Host, dc = n.ID, n.dc()
		}
	}
	v.Trip = func(to ukai.NodeID) Trip {
		d := map[string]time.Duration{"tokyo": 0, "osaka": 20 * ms, "fukuoka": 80 * ms}
		rtt := max(d[dc]-d[byID[to].dc()], d[byID[to].dc()]-d[dc], ms/2)
		return Trip{P50: rtt, P99: rtt * 11 / 10, Measured: true}
	}
	v.Store = func(ukai.NodeID) Store {
		io, flush := LogNormal(ms/10, ms), LogNormal(2*ms, 4*ms)
		return Store{Read: io, Write: io, LargeRead: LogNormal(5*ms, 6*ms), LargeWrite: LogNormal(5*ms, 6*ms), Flush: flush}
	}
	return v
}

func (l Latency) about(p50, p99 float64) bool {
	near := func(d time.Duration, want float64) bool {
		return math.Abs(d.Seconds()*1e3-want) <= max(0.12*want, 0.05)
	}
	return near(l.P50, p50) && near(l.P99, p99)
}

func TestForecastOfWhatAGuestFeels(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "o2 dc=osaka", "f1 dc=fukuoka", "w1 dc=fukuoka witness")
	for _, test := range []struct {
		name, at, host string
		ack            crdt.Ack
		change         func(*Viewpoint, *crdt.Record)
		read           [2]float64 // ms
		write          [2]float64
		flush          [2]float64
	}{
		{name: "both replicas near", at: "t1 t2", host: "t1", read: [2]float64{0.1, 1}, write: [2]float64{0.62, 1.8}, flush: [2]float64{2.7, 4.6}},
		{name: "on a host without a replica", at: "t1 t2", host: "o1", read: [2]float64{20.1, 22.1}, write: [2]float64{20.6, 22.6}, flush: [2]float64{22.6, 25}},
		{name: "the last replica decides about writes", at: "t1 o1 f1", host: "t1", read: [2]float64{0.1, 1}, write: [2]float64{80.2, 88}, flush: [2]float64{82.1, 90}},
		{name: "the nearest decides about reads", at: "t1 o1 f1", host: "o2", read: [2]float64{0.6, 1.5}, write: [2]float64{60.2, 66}, flush: [2]float64{62, 68}},
		{name: "ack=local on a node with a replica", at: "t1 o1", host: "t1", ack: crdt.AckLocal, read: [2]float64{0.1, 1}, write: [2]float64{0.1, 1}, flush: [2]float64{22.1, 25}},
		{name: "ack=local on a node without one", at: "t1 o1", host: "t2", ack: crdt.AckLocal, read: [2]float64{0.6, 1.5}, write: [2]float64{20.1, 22}, flush: [2]float64{22.1, 24.8}},
		{name: "a replica out of sync does not count", at: "t1 f1:out", host: "t1", read: [2]float64{0.1, 1}, write: [2]float64{0.1, 1}, flush: [2]float64{2, 4}},
		{name: "large requests take the store longer, and the link", at: "t1 o1", host: "t1", change: func(v *Viewpoint, _ *crdt.Record) {
			v.IO.Reads.Sizes, v.IO.Writes.Sizes = map[int64]float64{1 << 20: 1}, map[int64]float64{1 << 20: 1}
		}, read: [2]float64{5, 6}, write: [2]float64{35, 37.2}, flush: [2]float64{22.1, 24.9}},
		{name: "a tenth of the reads is large", at: "t1 t2", host: "t1", change: func(v *Viewpoint, _ *crdt.Record) {
			v.IO.Reads.Sizes = map[int64]float64{4096: 9, 1 << 20: 1}
		}, read: [2]float64{0.115, 5.5}, write: [2]float64{0.62, 1.8}, flush: [2]float64{2.7, 4.6}},
		{name: "the hot half is near", at: "t1", host: "t1", change: func(v *Viewpoint, rec *crdt.Record) {
			rec.Groups = append(rec.Groups, crdt.Group{ID: 1, Members: []crdt.Member{{Replica: 9, Node: nodes[4].ID}}})
			rec.Runs = []crdt.Run{{Count: 1280}, {Count: 1280, Group: 1}}
			v.IO.Reads.Heat = []float64{1, 1, 0, 0}
			v.IO.Writes.Heat = []float64{0, 0, 1, 1}
		}, read: [2]float64{0.1, 1}, write: [2]float64{80.2, 88}, flush: [2]float64{82.1, 90}},
	} {
		t.Run(test.name, func(t *testing.T) {
			rec, v := placed(t, nodes, test.at), afar(nodes, test.host)
			rec.Ack = test.ack
			if test.change != nil {
				test.change(&v, &rec)
			}
			f := Plan{}.Forecast(rec, v)
			if n := f.Now; !n.Read.about(test.read[0], test.read[1]) || !n.Write.about(test.write[0], test.write[1]) || !n.Flush.about(test.flush[0], test.flush[1]) {
				t.Errorf("read %v, write %v, flush %v", n.Read, n.Write, n.Flush)
			}
			if f.Within != 25 || len(f.Why) != 0 {
				t.Errorf("within %d %%: %q, though all was measured", f.Within, f.Why)
			}
		})
	}
}

func TestForecastFollowsThePlan(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "t2 dc=tokyo", "o1 dc=osaka", "o2 dc=osaka", "w1 dc=fukuoka witness")
	rec := placed(t, nodes, "t1 t2")
	rec.Phase, rec.Holder = crdt.PhaseActive, nodes[2].ID
	plan := must(Relocate(Input{Rule: rule(t, "dc=osaka:2"), Rec: rec, Nodes: nodes, Now: noon}))
	f := plan.Forecast(rec, afar(nodes, "o1"))
	if len(f.Steps) != len(plan.Steps) || f.Now.Read.P50 < 20*ms || f.Steps[0].Read.P50 > ms || f.Steps[0].Write.P50 < 20*ms || f.Steps[len(f.Steps)-1].Write.P50 > 2*ms {
		t.Errorf("%s: %+v", told(nodes, plan), f)
	}
}

func TestForecastSaysWhatItDoesNotKnow(t *testing.T) {
	nodes := mesh(t, "t1 dc=tokyo", "o1 dc=osaka", "f1 dc=fukuoka down", "w1 dc=fukuoka witness")
	for _, test := range []struct {
		name, at, why string
		change        func(*Viewpoint)
		within        int
	}{
		{"estimated round trip", "t1 o1", "the round trip to o1 is estimated", func(v *Viewpoint) { v.Trip = func(ukai.NodeID) Trip { return Trip{P50: ms, P99: 2 * ms} } }, 50},
		{"store", "t1", "the store of t1 has measured no reads lately", func(v *Viewpoint) { v.Store = func(ukai.NodeID) Store { return Store{} } }, 100},
		{"requests", "t1", "no I/O of the disk was recorded", func(v *Viewpoint) { v.IO = IO{} }, 50},
		{"node down", "t1 f1", "on a node that is down", func(*Viewpoint) {}, 25},
		{"no copy", "f1", "their I/O waits", func(*Viewpoint) {}, 100},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := afar(nodes, "t1")
			test.change(&v)
			f := Plan{}.Forecast(placed(t, nodes, test.at), v)
			if f.Within != test.within || !strings.Contains(fmt.Sprint(f.Why), test.why) {
				t.Errorf("within %d %%, want %d: %q", f.Within, test.within, f.Why)
			}
		})
	}
}

func TestSpreadsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) Spread {
			p50 := time.Duration(rapid.Int64Range(100_000, 100_000_000).Draw(t, name))
			return LogNormal(p50, time.Duration(float64(p50)*rapid.Float64Range(1.05, 5).Draw(t, name+" tail")))
		}
		a, b := draw("a"), draw("b")
		mean := func(s Spread) (m float64) {
			for _, d := range s {
				m += float64(d) / spreadPoints
			}
			return m
		}
		for salt := range strides {
			if sum := mean(a.plus(b, salt)); math.Abs(sum-mean(a)-mean(b)) > 10 {
				t.Fatalf("means %v and %v make %v", mean(a), mean(b), sum)
			}
			later := a.later(b, salt)
			// The chance that both are below is the product of the chances.
			for _, p := range []float64{0.5, 0.9} {
				d := later.P(p)
				if both := below(a, d) * below(b, d); math.Abs(both-p) > 0.04 {
					t.Fatalf("salt %d: %v is p%v of the later one, but both are below with %v", salt, d, 100*p, both)
				}
			}
		}
	})
}

func below(s Spread, d time.Duration) (share float64) {
	for _, x := range s {
		if x <= d {
			share += 1.0 / spreadPoints
		}
	}
	return share
}

func TestHeatIsSharedByTheBlocksThatAPartCovers(t *testing.T) {
	rec := crdt.Record{Size: 10 * gib, BlockSize: ukai.DefaultBlockSize, Runs: []crdt.Run{{Count: 1920}, {Count: 640, Group: 1}}}
	for group, want := range map[uint8][2]float64{0: {0.75, 0.625}, 1: {0.25, 0.375}} {
		even, uneven := heat(Requests{Heat: []float64{1, 1}}, &rec, group), heat(Requests{Heat: []float64{1, 3}}, &rec, group)
		unknown := heat(Requests{}, &rec, group)
		if math.Abs(even-want[0]) > 1e-9 || math.Abs(uneven-want[1]) > 1e-9 || math.Abs(unknown-want[0]) > 1e-9 {
			t.Errorf("group %d gets %v, %v, %v", group, even, uneven, unknown)
		}
	}
}
