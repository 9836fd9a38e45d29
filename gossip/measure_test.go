package gossip

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"ukai"
)

// threeSites is the one-way delay between nodes: 0.2 ms inside a site, 15 ms between 1 and 2, 40 ms between 1 and 3, 30 ms between 2 and 3.
func threeSites(a, b netip.AddrPort) time.Duration {
	switch s, t := min(site(a), site(b)), max(site(a), site(b)); {
	case s == t:
		return 200 * time.Microsecond
	case s == 1 && t == 2:
		return 15 * time.Millisecond
	case s == 1 && t == 3:
		return 40 * time.Millisecond
	}
	return 30 * time.Millisecond
}

func within(a, b time.Duration, part float64) bool {
	return math.Abs(float64(a-b)) <= part*float64(b)
}

func TestRoundTripsAreMeasuredAndEstimated(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		n.set(func() { n.delay = threeSites })
		var nodes []*testNode
		for s := 1; s <= 3; s++ {
			for i := 1; i <= 3; i++ {
				nodes = append(nodes, n.add(addrOf(s, i), addrOf(1, 1).String()))
			}
		}
		await(t, 6*time.Minute, "whole", allSee(nodes, Alive, 8))
		time.Sleep(10 * time.Minute)
		for _, x := range nodes {
			for _, y := range nodes {
				if x == y {
					continue
				}
				want := 2 * threeSites(x.addr, y.addr)
				ewma, p99, ok := x.RTT(y.cfg.ID)
				if !ok || !within(ewma, want, 0.2) || p99 < ewma {
					t.Errorf("%s to %s: measured %v, p99 %v, want %v", x.cfg.Info.Name, y.cfg.Info.Name, ewma, p99, want)
				}
				if site(x.addr) == site(y.addr) {
					continue // coordinates cannot tell 0.2 from 0.5 ms on a map of 80
				}
				// The estimate of somebody else than those two, from coordinates alone.
				third := nodes[0]
				if third == x || third == y {
					third = nodes[8]
				}
				if third == x || third == y {
					third = nodes[4]
				}
				if got, ok := third.Estimate(x.cfg.ID, y.cfg.ID); !ok || !within(got, want, 0.2) {
					t.Errorf("%s to %s: estimated %v, want %v", x.cfg.Info.Name, y.cfg.Info.Name, got, want)
				}
			}
		}
		if _, ok := nodes[0].Estimate(nodes[1].cfg.ID, ukai.NodeID{99}); ok {
			t.Error("an estimate for an unknown node")
		}
		if d, ok := nodes[0].Estimate(nodes[1].cfg.ID, nodes[1].cfg.ID); !ok || d != 0 {
			t.Errorf("a node is %v from itself", d)
		}
	})
}

func TestObserveSteersTheEstimate(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		m, id := nodes[0].Mesh, nodes[1].cfg.ID
		for i := range 1000 {
			rtt := 10 * time.Millisecond
			if i%50 == 0 {
				rtt = 100 * time.Millisecond
			}
			m.Observe(id, rtt)
		}
		ewma, p99, ok := m.RTT(id)
		if !ok || !within(ewma, 10*time.Millisecond, 0.2) || p99 != 100*time.Millisecond {
			t.Errorf("ewma %v, p99 %v", ewma, p99)
		}
		m.Observe(id, -1)
		m.Observe(id, time.Hour)
		if again, _, _ := m.RTT(id); again != ewma {
			t.Errorf("impossible samples moved the estimate to %v", again)
		}
		if n := testing.AllocsPerRun(100, func() { m.Observe(id, time.Millisecond); m.RTT(id) }); n != 0 {
			t.Errorf("%v allocations per sample", n)
		}
		m.Observe(ukai.NodeID{99}, time.Millisecond)
		if _, _, ok := m.RTT(ukai.NodeID{99}); ok {
			t.Error("a sample of a stranger was kept")
		}
	})
}

func BenchmarkObserve(b *testing.B) {
	l := new(link)
	for b.Loop() {
		l.observe(time.Millisecond)
	}
}

func BenchmarkRTT(b *testing.B) {
	m := &Mesh{links: links{by: map[ukai.NodeID]*link{{1}: new(link)}}}
	m.Observe(ukai.NodeID{1}, time.Millisecond)
	for b.Loop() {
		m.RTT(ukai.NodeID{1})
	}
}
