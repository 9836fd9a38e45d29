package gossip

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

// addJumping makes a mesh of three nodes; the clock of the last one is ahead while the flag is set.
func (n *network) addJumping(t *testing.T, ahead time.Duration) ([]*testNode, *atomic.Bool) {
	t.Helper()
	jumped := new(atomic.Bool)
	fast := func(c *Config) {
		c.Now = func() time.Time {
			if jumped.Load() {
				return time.Now().Add(ahead)
			}
			return time.Now()
		}
	}
	nodes := []*testNode{n.add(addrOf(1, 1)), n.add(addrOf(1, 2), addrOf(1, 1).String()), n.addWith(addrOf(1, 3), fast, addrOf(1, 1).String())}
	await(t, 10*time.Second, "whole", allSee(nodes, Alive, 2))
	return nodes, jumped
}

func TestStampsFromTheFutureAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		const ahead = 5 * time.Minute
		nodes, jumped := n.addJumping(t, ahead)
		jumped.Store(true)
		must(t, nodes[2].setting("a", "from the future")) // nobody has noticed yet
		must(t, nodes[0].setting("b", "1"))
		await(t, 20*time.Second, "known to the fast node", func() bool { return nodes[2].has("b", "1") })
		time.Sleep(time.Minute)
		for _, x := range nodes[:2] {
			if x.has("a", "from the future") {
				t.Error("a stamp from the future was taken")
			}
			if x.counter("entries_refused_skew_total") == 0 {
				t.Error("the refusal is not counted")
			}
			for _, m := range x.Members() {
				if want := m.ID == nodes[2].cfg.ID; m.Refused != want {
					t.Errorf("member %s: refused %v, skew %v", m.Name, m.Refused, m.Skew)
				}
				if m.ID == nodes[2].cfg.ID && (m.Skew-ahead).Abs() > 50*time.Millisecond {
					t.Errorf("skew %v, want %v", m.Skew, ahead)
				}
			}
		}
		// Once it knows, it does not say that it changed what all others refuse; what needs no stamp is told as ever.
		if err := nodes[2].setting("a", "from the future, again"); !errors.Is(err, ukai.ErrClockSkew) || nodes[2].has("a", "from the future, again") {
			t.Errorf("a change that the others refuse: %v", err)
		}
		must(t, nodes[2].Publish(t.Context(), func(info *crdt.NodeInfo) { info.FreeBytes = 77 }))
		must(t, nodes[0].setting("c", "1"))
		before := nodes[0].counter("exchanges_total")
		time.Sleep(10 * time.Minute) // what was refused is no reason to talk all the time; after 5 minutes it is no longer the future
		if n := nodes[0].counter("exchanges_total") - before; n > 60 {
			t.Errorf("%d exchanges in 10 minutes", n)
		}
		if !nodes[0].has("a", "from the future") {
			t.Error("a stamp that is past by now is still refused")
		}
	})
}

// A node whose clock was ahead and has been set follows the advice. What it says it has changed the others must take.
func TestANodeWhoseClockWasSetChangesNothingThatOthersRefuse(t *testing.T) {
	for _, stamped := range []bool{false, true} {
		t.Run(fmt.Sprint("it had stamped something=", stamped), func(t *testing.T) {
			bubble(t, func(t *testing.T, n *network) {
				const ahead = 5 * time.Minute
				nodes, jumped := n.addJumping(t, ahead)
				jumped.Store(true)
				if stamped {
					must(t, nodes[2].setting("a", "from the future")) // nobody has noticed yet
				}
				time.Sleep(time.Minute)
				must(t, nodes[2].tidy())
				jumped.Store(false)
				time.Sleep(time.Minute)
				err := nodes[2].setting("b", "1")
				if stamped {
					if !errors.Is(err, ukai.ErrClockSkew) {
						t.Errorf("a change that the others refuse for minutes: %v", err)
					}
					time.Sleep(ahead)
					err = nodes[2].setting("b", "1")
				}
				must(t, err)
				await(t, 10*time.Second, "known to all", all(nodes, func(x *testNode) bool { return x.has("b", "1") }))
			})
		})
	}
}

func TestARestoredDatabaseIsQuarantined(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		x := nodes[2]
		time.Sleep(5 * time.Second)
		backup := x.journal.copy()
		for i := range 3 {
			must(t, x.Publish(t.Context(), func(info *crdt.NodeInfo) { info.FreeBytes = int64(i) }))
		}
		time.Sleep(10 * time.Second)
		x.stop()
		await(t, time.Minute, "dead", allSee([]*testNode{nodes[0], nodes[1]}, Dead, 1))

		x.journal = backup
		x.start()
		<-x.Recalled()
		if err := x.Quarantined(); !errors.Is(err, ukai.ErrQuarantined) {
			t.Fatalf("a restored database serves: %v", err)
		}
		if err := x.Publish(t.Context(), func(info *crdt.NodeInfo) { info.FreeBytes = 99 }); !errors.Is(err, ukai.ErrQuarantined) {
			t.Errorf("a quarantined node publishes: %v", err)
		}
		for _, y := range []*testNode{nodes[0], nodes[1], nodes[3], nodes[4]} {
			must(t, y.Quarantined())
		}
	})
}

func TestARestoredDatabaseIsFoundOutByWhoComes(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		x := n.add(addrOf(1, 1)) // has no seeds
		early := x.journal.copy()
		y := n.add(addrOf(1, 2), x.addr.String())
		await(t, 10*time.Second, "whole", allSee([]*testNode{x, y}, Alive, 1))
		must(t, x.Publish(t.Context(), func(info *crdt.NodeInfo) { info.FreeBytes = 1 }))
		must(t, x.Publish(t.Context(), func(info *crdt.NodeInfo) { info.FreeBytes = 2 }))
		time.Sleep(5 * time.Second)
		x.stop()
		await(t, time.Minute, "dead", func() bool { return y.sees(Dead, 1) })
		x.journal = early // knows of nobody
		x.start()
		must(t, x.Quarantined())
		await(t, time.Minute, "found out", func() bool { return errors.Is(x.Quarantined(), ukai.ErrQuarantined) })
	})
}

func TestAPlainRestartIsNotQuarantined(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		for i := range 4 {
			nodes[3].stop()
			time.Sleep(time.Duration(i) * 10 * time.Second)
			nodes[3].start()
			<-nodes[3].Recalled()
			time.Sleep(3 * time.Second)
			must(t, nodes[3].Publish(t.Context(), func(info *crdt.NodeInfo) { info.FreeBytes = int64(i) }))
		}
		await(t, time.Minute, "whole", allSee(nodes, Alive, 4))
		time.Sleep(time.Minute)
		for _, x := range nodes {
			must(t, x.Quarantined())
		}
	})
}

func TestGarbageHasNoEffect(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		stranger := n.listen(addrOf(9, 9))
		defer stranger.close()
		to := net.UDPAddrFromAddrPort(nodes[0].addr)
		random := rand.New(rand.NewPCG(1, 2))
		for i := range 3000 {
			b := make([]byte, random.IntN(200))
			for j := range b {
				b[j] = byte(random.Uint32())
			}
			switch {
			case i%3 == 0 && len(b) > 2: // reaches our own decoders
				b[0], b[1] = 8, []byte{packetDelta, packetAnnounce, packetRoot, 'x'}[i%4]
			case i%3 == 1 && len(b) > 0:
				b[0] %= 13
			}
			must(t, stranger.WritePacket(b, to))
			if i%50 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		for i := range 200 {
			c, err := stranger.DialStream(t.Context(), to)
			must(t, err)
			b := make([]byte, random.IntN(300))
			for j := range b {
				b[j] = byte(random.Uint32())
			}
			if i%2 == 0 && len(b) > 6 {
				copy(b, []byte{streamCatalog, 0, 0, 0, byte(len(b) - 5), byte(i % 12)})
			}
			_, _ = c.Write(b) // the other side may have closed it
			if i%3 == 0 {
				must(t, c.Close())
			} else {
				time.AfterFunc(time.Minute, func() { _ = c.Close() })
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Minute)
		if !allSee(nodes, Alive, 4)() {
			t.Error("garbage changed the membership")
		}
		if nodes[0].counter("packets_refused_total") == 0 || nodes[0].counter("messages_refused_total") == 0 || nodes[0].counter("streams_refused_total") == 0 {
			t.Errorf("not all kinds of garbage are counted: %v", nodes[0].Counters())
		}
		must(t, nodes[1].setting("still", "works"))
		await(t, 10*time.Second, "known", func() bool { return nodes[0].has("still", "works") })
	})
}

func TestAJournalThatFailsIsReported(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		bad := errors.New("disk on fire")
		nodes[0].journal.fail(bad)
		if err := nodes[0].setting("a", "1"); !errors.Is(err, bad) || !strings.Contains(err.Error(), "not durable") {
			t.Errorf("Update: %v", err)
		}
		if err := nodes[0].Publish(t.Context(), func(i *crdt.NodeInfo) { i.FreeBytes = 7 }); !errors.Is(err, bad) {
			t.Errorf("Publish: %v", err)
		}
		await(t, 5*time.Second, "spread all the same", func() bool { return nodes[4].has("a", "1") })
		nodes[0].journal.fail(nil)
		time.Sleep(3 * time.Second)
		if _, ok := nodes[0].journal.copy().m["g/s/a"]; !ok {
			t.Error("not written when the journal works again")
		}
	})
}

func TestADamagedJournalEntryIsLearnedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		must(t, nodes[0].setting("a", "1"))
		await(t, 5*time.Second, "known", func() bool { return nodes[4].has("a", "1") })
		time.Sleep(3 * time.Second)
		x := nodes[4]
		x.stop()
		x.journal.m["g/s/a"] = []byte("rubbish")
		x.journal.m[peerPrefix+nodes[1].cfg.ID.String()] = []byte{1}
		x.start()
		if x.has("a", "1") {
			t.Error("rubbish was read")
		}
		await(t, 20*time.Second, "learned again", func() bool { return x.has("a", "1") })

		x.stop()
		x.journal.m[selfKey] = []byte("rubbish") // without this record a rolled-back database cannot be told from a new one
		_, err := Open(x.cfg)
		if !errors.Is(err, ukai.ErrCorrupt) {
			t.Errorf("Open with a damaged record of its own: %v", err)
		}
	})
}
