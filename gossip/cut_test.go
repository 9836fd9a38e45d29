package gossip

import (
	"net/netip"
	"testing"
	"time"
)

func TestCutsBetweenTwoNodesHarmNobody(t *testing.T) {
	a, b := addrOf(1, 2), addrOf(1, 4)
	for name, cut := range map[string]func(from, to netip.AddrPort) bool{
		"one way":   func(from, to netip.AddrPort) bool { return from == a && to == b },
		"both ways": func(from, to netip.AddrPort) bool { return from == a && to == b || from == b && to == a },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *network) {
				nodes := five(n)
				await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
				n.set(func() { n.cut = cut })
				for range 600 {
					time.Sleep(time.Second)
					if !allSee(nodes, Dead, 0)() {
						t.Fatal("a node that others reach is taken for dead")
					}
				}
				must(t, nodes[1].setting("a", "1"))
				await(t, 30*time.Second, "known behind the cut", func() bool { return nodes[3].has("a", "1") })
			})
		})
	}
}

func TestADeafOrMuteNodeIsDeadUntilItIsHealed(t *testing.T) {
	a := addrOf(1, 2)
	for name, cut := range map[string]func(from, to netip.AddrPort) bool{
		"deaf": func(_, to netip.AddrPort) bool { return to == a },
		"mute": func(from, _ netip.AddrPort) bool { return from == a },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *network) {
				nodes := five(n)
				await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
				rest := append([]*testNode{nodes[0]}, nodes[2:]...)
				n.set(func() { n.cut = cut })
				await(t, time.Minute, "dead", allSee(rest, Dead, 1))
				must(t, nodes[0].setting("a", "1"))
				must(t, nodes[1].setting("b", "1"))
				time.Sleep(10 * time.Minute)
				n.set(func() { n.cut = func(_, _ netip.AddrPort) bool { return false } })
				await(t, 2*time.Minute, "whole", allSee(nodes, Alive, 4))
				await(t, 30*time.Second, "equal", func() bool { return nodes[1].has("a", "1") && nodes[4].has("b", "1") })
			})
		})
	}
}

// Seeds are only for the first time: later, halves of a mesh must find each other by what they remember.
func TestHalvesWithoutSeedsFindEachOther(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		time.Sleep(5 * time.Second)
		for _, x := range nodes {
			x.stop()
			x.cfg.Seeds = nil
		}
		for _, x := range nodes {
			x.start()
		}
		await(t, time.Minute, "whole without seeds", allSee(nodes, Alive, 4))
		half := map[netip.AddrPort]bool{nodes[0].addr: true, nodes[1].addr: true}
		n.set(func() { n.cut = func(from, to netip.AddrPort) bool { return half[from] != half[to] } })
		await(t, 2*time.Minute, "split", func() bool { return allSee(nodes[:2], Dead, 3)() && allSee(nodes[2:], Dead, 2)() })
		time.Sleep(time.Hour)
		n.set(func() { n.cut = func(_, _ netip.AddrPort) bool { return false } })
		t.Log("healed after", await(t, 3*time.Minute, "whole again", allSee(nodes, Alive, 4)))
	})
}
