package gossip

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

func TestANodeThatLeavesIsLeftNotDead(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		leaver, rest := nodes[2], []*testNode{nodes[0], nodes[1], nodes[3], nodes[4]}
		must(t, leaver.Leave(t.Context()))
		await(t, 3*time.Second, "left", allSee(rest, Left, 1))
		leaver.stop()
		tried := rest[0].counter("joins_failed_total")
		time.Sleep(10 * time.Minute)
		if !allSee(rest, Left, 1)() || !allSee(rest, Alive, 3)() {
			t.Error("not left any more")
		}
		if n := rest[0].counter("joins_failed_total"); n != tried {
			t.Errorf("%d attempts to reach a node that left", n-tried)
		}
		leaver.start()
		await(t, 10*time.Second, "back", allSee(nodes, Alive, 4))
	})
}

func TestANodeThatStopsIsSuspectThenDeadThenBack(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		victim, rest := nodes[4], nodes[:4]
		victim.stop()
		took := await(t, 15*time.Second, "suspect", allSee(rest, Suspect, 1))
		t.Logf("suspect after %v", took)
		took = await(t, 30*time.Second, "dead", allSee(rest, Dead, 1))
		t.Logf("dead after another %v", took)
		time.Sleep(time.Minute)
		victim.start()
		await(t, 10*time.Second, "back", allSee(nodes, Alive, 4))
	})
}

func TestAShortSilenceIsForgiven(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		silent := nodes[4].addr
		n.set(func() { n.cut = func(a, b netip.AddrPort) bool { return a == silent || b == silent } })
		await(t, 15*time.Second, "suspect somewhere", func() bool { return nodes[0].sees(Suspect, 1) })
		n.set(func() { n.cut = func(a, b netip.AddrPort) bool { return false } })
		await(t, 20*time.Second, "trusted again", allSee(nodes, Alive, 4))
		time.Sleep(time.Minute)
		if !allSee(nodes, Alive, 4)() {
			t.Error("not all alive a minute later")
		}
	})
}

func TestSeedsMayComeLater(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		seed := addrOf(1, 1)
		var nodes []*testNode
		for i := 2; i <= 4; i++ {
			nodes = append(nodes, n.add(addrOf(1, i), seed.String()))
		}
		time.Sleep(time.Hour)
		select {
		case <-nodes[0].Joined():
			t.Fatal("joined nobody")
		default:
		}
		nodes = append(nodes, n.add(seed, seed.String())) // its own address among its seeds does no harm
		took := await(t, joinMost+dialTime, "whole", allSee(nodes, Alive, 3))
		t.Logf("whole %v after the seed came", took)
		for _, x := range nodes {
			<-x.Joined()
		}
	})
}

func TestANodeThatIsItsOnlySeedIsAMesh(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		a := addrOf(1, 1)
		x := n.add(a, a.String())
		for range 2 {
			<-x.Joined()
			<-x.Recalled()
			must(t, x.Quarantined())
			x.stop()
			x.start()
		}
	})
}

func TestANameMayStandForManySeeds(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		var asked int
		resolve := func(c *Config) {
			c.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
				if host != "seeds.example.org" {
					return nil, errors.New("no such host")
				}
				if asked++; asked < 3 {
					return nil, errors.New("name server is down")
				}
				return []netip.Addr{addrOf(1, 9).Addr(), addrOf(1, 8).Addr(), addrOf(1, 1).Addr()}, nil // two are down
			}
		}
		nodes := []*testNode{n.add(addrOf(1, 1)), n.addWith(addrOf(1, 2), resolve, "nobody.example.org:1", "seeds.example.org")}
		await(t, time.Minute, "whole", allSee(nodes, Alive, 1))
	})
}

func TestANodeWithoutSeedsFindsItsPeersAgain(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n) // the first has no seeds
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		time.Sleep(5 * time.Second)
		nodes[0].stop()
		await(t, time.Minute, "dead", allSee(nodes[1:], Dead, 1))
		nodes[0].start()
		if !nodes[0].sees(Dead, 4) {
			t.Errorf("remembers %v", nodes[0].Members())
		}
		await(t, 5*time.Second, "whole", allSee(nodes, Alive, 4))
	})
}

func TestANodeMayReturnWithAnotherAddress(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		moved := nodes[4]
		moved.stop()
		moved.addr = addrOf(1, 77)
		time.Sleep(time.Second) // others have not noticed
		moved.start()
		await(t, 3*time.Minute, "whole at the new address", func() bool {
			for _, x := range nodes[:4] {
				if a, ok := x.Addr(moved.cfg.ID); !ok || a.String() != moved.addr.String() || !x.sees(Alive, 4) {
					return false
				}
			}
			return moved.sees(Alive, 4)
		})
	})
}

func TestLabelsSetElsewhereReachANodeThatWasDown(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		down := nodes[3]
		id := down.cfg.ID
		await(t, 5*time.Second, "in the catalog", func() bool { return nodes[0].label(id, "dc", "tokyo") == nil })
		await(t, 5*time.Second, "labelled", func() bool { return down.labelOf(id, "dc") == "tokyo" })
		down.stop()
		must(t, nodes[0].label(id, "dc", "osaka"))
		must(t, nodes[1].label(id, "rack", "r2"))
		time.Sleep(24 * time.Minute)
		down.start()
		if v := down.labelOf(id, "dc"); v != "tokyo" {
			t.Errorf("dc=%q in the journal, want tokyo", v)
		}
		await(t, 5*time.Second, "told", func() bool { return down.labelOf(id, "dc") == "osaka" && down.labelOf(id, "rack") == "r2" })
	})
}

func TestARetiredNodeIsNotLetIn(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		time.Sleep(3 * time.Second)
		gone, rest := nodes[4], nodes[:4]
		gone.stop()
		must(t, rest[0].Update(func(c *crdt.Catalog, _ func() crdt.Stamp) (crdt.Delta, error) { return c.Retire(gone.cfg.ID) }))
		await(t, time.Minute, "retired", allSee(rest, Left, 1))
		time.Sleep(5 * time.Second)
		gone.start()
		time.Sleep(2 * time.Minute)
		if !allSee(rest, Alive, 3)() {
			t.Error("the retired node is alive for others")
		}
		for _, x := range rest {
			for k := range x.journal.copy().m {
				if k == peerPrefix+gone.cfg.ID.String() {
					t.Error("the retired node is remembered")
				}
			}
		}
		var retired bool
		gone.View(func(c *crdt.Catalog) {
			me, ok := c.Node(gone.cfg.ID)
			retired = ok && me.Retired
		})
		if !retired {
			t.Error("the node does not learn that it was retired")
		}
		for range 2 { // at once, and at a start at which it knows
			if err := gone.Quarantined(); !errors.Is(err, ukai.ErrQuarantined) || !strings.Contains(err.Error(), "was retired") {
				t.Errorf("a node that was retired serves: %v", err)
			}
			gone.stop()
			gone.start()
		}
	})
}

func TestTheCatalogSurvivesARestart(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		x := n.add(addrOf(1, 1))
		<-x.Joined()
		<-x.Recalled()
		must(t, x.setting("default-rule", "dc=tokyo:2"))
		backup := x.journal.copy() // as if the power failed now: what Update returned from must be there
		x.stop()
		x.journal = backup
		x.start()
		if !x.has("default-rule", "dc=tokyo:2") {
			t.Error("the setting is gone")
		}
		var info crdt.NodeInfo
		x.View(func(c *crdt.Catalog) {
			me, _ := c.Node(x.cfg.ID)
			info = me.Info
		})
		if info.Boot != 2 || info.Seq != 2 || info.Addr != x.addr.String() {
			t.Errorf("after the second start: boot %d, seq %d, addr %s", info.Boot, info.Seq, info.Addr)
		}
	})
}

func TestPublishTellsOnlyNews(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		x := nodes[0]
		before := x.counter("publishes_total")
		for range 5 {
			must(t, x.Publish(t.Context(), func(i *crdt.NodeInfo) { i.FreeBytes = 12345 }))
		}
		if got := x.counter("publishes_total") - before; got != 1 {
			t.Errorf("%d publications, want 1", got)
		}
		await(t, 5*time.Second, "known", func() bool {
			free := int64(0)
			nodes[4].View(func(c *crdt.Catalog) {
				if e, ok := c.Node(x.cfg.ID); ok {
					free = e.Info.FreeBytes
				}
			})
			return free == 12345
		})
	})
}

func TestSubscribersHearOfChanges(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		time.Sleep(10 * time.Second)
		news, cancel := nodes[4].Subscribe()
		for len(news) > 0 {
			<-news
		}
		for !nodes[4].has("a", "1") {
			if !nodes[0].has("a", "1") {
				must(t, nodes[0].setting("a", "1"))
			}
			<-news
		}
		cancel()
		must(t, nodes[0].setting("a", "2"))
		await(t, 5*time.Second, "known", func() bool { return nodes[4].has("a", "2") })
	})
}

func TestUseAfterCloseIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		x := n.add(addrOf(1, 1))
		m := x.Mesh
		x.stop()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		noChange := func(*crdt.Catalog, func() crdt.Stamp) (crdt.Delta, error) { return crdt.Delta{}, nil }
		for what, err := range map[string]error{
			"Update": m.Update(noChange), "Leave": m.Leave(t.Context()), "Publish": m.Publish(t.Context(), func(*crdt.NodeInfo) {}),
		} {
			if !errors.Is(err, ukai.ErrClosed) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

// With equal catalogs nothing but the first greeting makes a node talk to its peers by stream.
func TestANodeWhosePeersCouldNotBeGreetedAtFirstServesLater(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		time.Sleep(time.Minute)
		back := nodes[4]
		back.stop()
		await(t, time.Minute, "it is dead", allSee(nodes[:4], Dead, 1)) // then its peers look for it
		n.set(func() { n.stuck = back.addr })
		back.start()
		await(t, 30*time.Minute, "it sees a peer alive", func() bool { return len(back.alivePeers()) > 0 })
		time.Sleep(10 * time.Second)
		n.set(func() { n.stuck = netip.AddrPort{} })
		await(t, 10*time.Second, "it may serve", func() bool { return back.isRecalled() })
	})
}
