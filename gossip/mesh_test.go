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
	size := 100
	if testing.Short() {
		size = 40
	}
	bubble(t, func(t *testing.T, n *network) {
		first := n.add(addrOf(1, 1))
		nodes := []*testNode{first}
		for i := 2; i <= size; i++ {
			nodes = append(nodes, n.add(addrOf(1+3*(i-1)/size, i), first.addr.String()))
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
		// All join within a second. Who misses the packets about somebody then hears of it by push/pull, which memberlist does every two to
		// three minutes in meshes of these sizes.
		await(t, 6*time.Minute, "whole", allSee(nodes, Alive, size-1))
		time.Sleep(20 * time.Second)
		for i, x := range []*testNode{nodes[7], nodes[size/2], nodes[size-1]} {
			name := fmt.Sprintf("rule-%d", i)
			must(t, x.setting(name, "dc=tokyo:2"))
			took := await(t, 10*time.Second, "known to all", func() bool {
				return !slices.ContainsFunc(nodes, func(x *testNode) bool { return !x.has(name, "dc=tokyo:2") })
			})
			t.Logf("change %d known to %d nodes after %v", i, size, took)
		}
	})
}

func TestHalvesFindEachOtherAfterAnHour(t *testing.T) {
	apart := time.Hour
	if testing.Short() {
		apart = 10 * time.Minute // memberlist has given up the dead long before that
	}
	bubble(t, func(t *testing.T, n *network) {
		var nodes []*testNode
		for i := range 6 {
			nodes = append(nodes, n.add(addrOf(1+i%2, 1+i), addrOf(1, 1).String()))
		}
		await(t, 20*time.Second, "whole", allSee(nodes, Alive, 5))
		n.set(func() { n.cut = func(a, b netip.AddrPort) bool { return site(a) != site(b) } })
		await(t, time.Minute, "split", allSee(nodes, Dead, 3))
		time.Sleep(apart)
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
