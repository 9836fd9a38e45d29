package gossip

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs a test on a network of its own, in virtual time.
func bubble(t *testing.T, f func(t *testing.T, n *network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.end()
		f(t, n)
	})
}

// five starts a mesh of five nodes that join through the first.
func five(n *network) []*testNode {
	first := n.add(addrOf(1, 1))
	nodes := []*testNode{first}
	for i := 2; i <= 5; i++ {
		nodes = append(nodes, n.add(addrOf(1, i), first.addr.String()))
	}
	return nodes
}

func TestNodesJoinThroughOneSeed(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		await(t, 10*time.Second, "known by name", func() bool {
			for _, x := range nodes {
				for _, m := range x.Members() {
					if m.Name == "" {
						return false
					}
				}
			}
			return true
		})
		for _, x := range nodes {
			<-x.Joined()
			<-x.Recalled()
			must(t, x.Quarantined())
		}
	})
}

func TestHundredNodesConvergeOnAChange(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		first := n.add(addrOf(1, 1))
		nodes := []*testNode{first}
		for i := 2; i <= 100; i++ {
			nodes = append(nodes, n.add(addrOf(1+i/34, i), first.addr.String()))
		}
		n.set(func() {
			n.delay = func(a, b netip.AddrPort) time.Duration {
				if site(a) == site(b) {
					return 200 * time.Microsecond
				}
				return 40 * time.Millisecond
			}
			n.loss = 0.01
		})
		await(t, time.Minute, "whole", allSee(nodes, Alive, 99))
		time.Sleep(20 * time.Second)
		for i, x := range []*testNode{nodes[7], nodes[50], nodes[99]} {
			name := fmt.Sprintf("rule-%d", i)
			must(t, x.setting(name, "dc=tokyo:2"))
			took := await(t, 10*time.Second, "known to all", func() bool {
				return !slices.ContainsFunc(nodes, func(x *testNode) bool { return !x.has(name, "dc=tokyo:2") })
			})
			t.Logf("change %d known to 100 nodes after %v", i, took)
		}
	})
}

func TestHalvesFindEachOtherAfterAnHour(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		var nodes []*testNode
		for i := range 6 {
			nodes = append(nodes, n.add(addrOf(1+i%2, 1+i), addrOf(1, 1).String()))
		}
		await(t, 20*time.Second, "whole", allSee(nodes, Alive, 5))
		n.set(func() { n.cut = func(a, b netip.AddrPort) bool { return site(a) != site(b) } })
		await(t, time.Minute, "split", allSee(nodes, Dead, 3))
		time.Sleep(time.Hour)
		must(t, nodes[0].setting("here", "1"))
		must(t, nodes[1].setting("there", "1"))
		if !allSee(nodes, Dead, 3)() {
			t.Fatal("the split did not last")
		}
		n.set(func() { n.cut = func(a, b netip.AddrPort) bool { return false } })
		took := await(t, 2*time.Minute, "whole again", allSee(nodes, Alive, 5))
		await(t, 10*time.Second, "of one mind", func() bool {
			return !slices.ContainsFunc(nodes, func(x *testNode) bool { return !x.has("here", "1") || !x.has("there", "1") })
		})
		t.Logf("healed after %v", took)
	})
}

func TestCatchingUpCostsWhatWasMissed(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		for i := range 5000 { // what everybody has
			must(t, nodes[0].setting(fmt.Sprintf("old-%d", i), "1"))
		}
		await(t, 30*time.Second, "known to the node", func() bool { return nodes[4].has("old-4999", "1") && nodes[4].has("old-1", "1") })
		time.Sleep(5 * time.Second)
		away := nodes[4]
		away.stop()
		time.Sleep(time.Hour)
		const missed = 1000
		for i := range missed {
			must(t, nodes[i%4].setting(fmt.Sprintf("new-%d", i), "1"))
		}
		time.Sleep(time.Minute)
		away.start()
		took := await(t, 30*time.Second, "caught up", func() bool {
			for i := range missed {
				if !away.has(fmt.Sprintf("new-%d", i), "1") {
					return false
				}
			}
			return true
		})
		time.Sleep(10 * time.Second)
		bytes := away.counter("catalog_stream_received_bytes_total") + away.counter("catalog_stream_sent_bytes_total")
		t.Logf("%d changes of 6000 entries caught up after %v with %d bytes", missed, took, bytes)
		if limit := uint64(missed*600 + 50_000); bytes > limit {
			t.Errorf("%d bytes for %d changes: more than %d", bytes, missed, limit)
		}
		if n := away.counter("entries_pulled_total"); n < missed || n > missed+50 {
			t.Errorf("%d entries pulled for %d changes", n, missed)
		}
	})
}

func TestLostPacketsAreRepaired(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		n.set(func() { n.loss = 0.5 })
		for i := range 50 {
			must(t, nodes[i%5].setting(fmt.Sprintf("s-%d", i), "1"))
		}
		await(t, time.Minute, "of one mind", func() bool {
			for _, x := range nodes {
				for i := range 50 {
					if !x.has(fmt.Sprintf("s-%d", i), "1") {
						return false
					}
				}
			}
			return true
		})
	})
}
