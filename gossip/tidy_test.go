package gossip

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

// calendar is the wall clocks of a network, so that a test need not live for a month.
type calendar struct{ later atomic.Int64 }

func (c *calendar) turn(d time.Duration) { c.later.Store(int64(d)) }

// clock is the wall clock of a node that is ahead of the others.
func (c *calendar) clock(ahead time.Duration) func(*Config) {
	return func(cfg *Config) {
		cfg.Now = func() time.Time { return time.Now().Add(ahead + time.Duration(c.later.Load())) }
	}
}

var doomed = ukai.DiskID{1}

// withDoomedDisk starts n nodes, all of which know of the disk.
func withDoomedDisk(t *testing.T, n *network, c *calendar, ahead ...time.Duration) []*testNode {
	t.Helper()
	var nodes []*testNode
	for i, a := range ahead {
		nodes = append(nodes, n.addWith(addrOf(1, 1+i), c.clock(a), addrOf(1, 1).String()))
	}
	await(t, 10*time.Second, "whole", allSee(nodes, Alive, len(nodes)-1))
	rec := largeRecord(doomed, nodes)
	must(t, nodes[1].Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		return c.CreateDisk(crdt.Born{Creator: nodes[1].cfg.ID, Stamp: stamp(), Name: "vm1"}, "", rec)
	}))
	await(t, 10*time.Second, "known to all", func() bool { return !slices.ContainsFunc(nodes, (*testNode).knowsNothing) })
	return nodes
}

func (n *testNode) knowsDoomed() (ok bool) {
	n.View(func(c *crdt.Catalog) { _, ok = c.Disk(doomed) })
	return ok
}

func (n *testNode) knowsNothing() bool { return !n.knowsDoomed() }

// deleteDoomed makes the deletion known to n.
func (n *testNode) deleteDoomed(t *testing.T) {
	t.Helper()
	must(t, n.Update(func(c *crdt.Catalog, _ func() crdt.Stamp) (crdt.Delta, error) {
		d, _ := c.Disk(doomed)
		rec, _ := d.Record()
		rec.Version, rec.Phase, rec.Epoch = rec.Version+1, crdt.PhaseDeleted, ^ukai.Epoch(0)
		return c.PutRecord(rec)
	}))
}

// buried is when the deletion was marked, as n has it; zero if it is not.
func (n *testNode) buried() (at time.Time) {
	n.View(func(c *crdt.Catalog) {
		if d, ok := c.Disk(doomed); ok && !d.Buried.IsZero() {
			at = d.Buried.Time()
		}
	})
	return at
}

// heardOfDeletion says whether n says that it has caught up with the deletion.
func (n *testNode) heardOfDeletion() (ok bool) {
	n.View(func(c *crdt.Catalog) {
		me, _ := c.Node(n.cfg.ID)
		d, known := c.Disk(doomed)
		ok = known && !d.Buried.IsZero() && me.Info.CaughtUp > d.Buried.Wall+2*crdt.MaxSkew.Milliseconds()
	})
	return ok
}

// tidyUntil lets all nodes tidy now and then, more often than they would by themselves.
func tidyUntil(t *testing.T, nodes []*testNode, what string, ok func() bool) {
	t.Helper()
	for range 10 {
		if ok() {
			return
		}
		time.Sleep(time.Minute)
		for _, x := range nodes {
			must(t, x.tidy())
		}
	}
	if !ok() {
		t.Fatalf("after 10 rounds: still not %s", what)
	}
}

func all(nodes []*testNode, f func(*testNode) bool) func() bool {
	return func() bool { return !slices.ContainsFunc(nodes, func(x *testNode) bool { return !f(x) }) }
}

func TestDeletedDisksAreForgottenWhenAllHaveHeard(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		var c calendar
		nodes := withDoomedDisk(t, n, &c, 0, 0, 0, 0)
		away, rest := nodes[3], nodes[:3]
		time.Sleep(2 * journalEvery)
		away.stop() // for more than the 30 days, with the disk alive in its journal
		nodes[2].deleteDoomed(t)
		must(t, nodes[2].tidy()) // marks it
		await(t, time.Minute, "marked", all(rest, func(x *testNode) bool { return !x.buried().IsZero() }))
		c.turn(crdt.TombstoneKeep + 10*24*time.Hour)
		for range 3 {
			time.Sleep(3 * time.Minute)
			for _, x := range rest {
				must(t, x.tidy())
			}
			if !all(rest, (*testNode).knowsDoomed)() {
				t.Fatal("forgotten although a node that is not retired has not heard of the deletion")
			}
		}

		away.start()
		if !away.knowsDoomed() || !away.buried().IsZero() {
			t.Fatal("the node that was away does not come with the disk alive")
		}
		await(t, time.Minute, "deleted for the node that was away", func() bool { return !away.buried().IsZero() })
		if !all(rest, (*testNode).knowsDoomed)() {
			t.Fatal("forgotten although that node does not yet say that it has heard")
		}
		// Nobody calls tidy now: they do it by themselves.
		took := await(t, 4*tidyEvery, "forgotten by one", func() bool { return slices.ContainsFunc(nodes, (*testNode).knowsNothing) })
		spread := await(t, time.Minute, "forgotten by all", all(nodes, (*testNode).knowsNothing))
		t.Logf("forgotten after %v, by all %v later", took, spread)

		time.Sleep(time.Minute)
		before := nodes[0].counter("exchanges_total")
		time.Sleep(tidyEvery / 4)
		if n := nodes[0].counter("exchanges_total") - before; n > 6 {
			t.Errorf("%d exchanges in a quarter of an hour although there is nothing to tell", n)
		}
		for _, x := range nodes {
			if x.knowsDoomed() {
				t.Error("came back")
			}
			if _, ok := x.journal.copy().m["g/d/"+doomed.String()]; ok {
				t.Error("still in the journal")
			}
		}
	})
}

func TestForgettingIsNotUndoneByASlowClock(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		var c calendar
		const ahead = 50 * time.Second
		nodes := withDoomedDisk(t, n, &c, 0, ahead, 0, 0)
		fast := nodes[1]
		fast.deleteDoomed(t)
		must(t, fast.tidy()) // marks it
		buried := fast.buried()
		tidyUntil(t, nodes, "heard of by all", all(nodes, (*testNode).heardOfDeletion))
		time.Sleep(10 * time.Second)
		c.turn(time.Until(buried.Add(crdt.TombstoneKeep - ahead))) // on the fast clock the 30 days are over
		must(t, fast.tidy())
		if fast.knowsDoomed() {
			t.Fatal("not forgotten after 30 days")
		}
		others := slices.DeleteFunc(slices.Clone(nodes), func(x *testNode) bool { return x == fast })
		if !all(others, (*testNode).knowsDoomed)() {
			t.Fatal("forgotten before 30 days")
		}
		await(t, 3*time.Minute, "forgotten by all", func() bool {
			if fast.knowsDoomed() {
				t.Fatal("brought back by those whose clocks are behind")
			}
			return all(others, (*testNode).knowsNothing)()
		})
	})
}

func TestOutdatedNodesBringNothingBack(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		var c calendar
		nodes := withDoomedDisk(t, n, &c, 0, 0, 0, 0, 0)
		restored, retired, rest := nodes[3], nodes[4], nodes[:3]
		time.Sleep(2 * journalEvery)
		backup := restored.journal.copy() // the disk is alive in it, and in the journal of the other
		retired.stop()
		nodes[2].deleteDoomed(t)
		must(t, nodes[0].Update(func(c *crdt.Catalog, _ func() crdt.Stamp) (crdt.Delta, error) { return c.Retire(retired.cfg.ID) }))
		tidyUntil(t, nodes[:4], "heard of by all", all(nodes[:4], (*testNode).heardOfDeletion))
		c.turn(crdt.TombstoneKeep + 10*24*time.Hour)
		tidyUntil(t, nodes[:4], "forgotten by all", all(nodes[:4], (*testNode).knowsNothing))

		restored.stop()
		restored.journal = backup
		restored.start()
		retired.start()
		if !restored.knowsDoomed() || !retired.knowsDoomed() {
			t.Fatal("the outdated nodes do not come with the disk")
		}
		for range 20 {
			time.Sleep(30 * time.Second)
			if !all(rest, (*testNode).knowsNothing)() {
				t.Fatal("a forgotten disk came back")
			}
		}
		if err := restored.Quarantined(); !errors.Is(err, ukai.ErrQuarantined) {
			t.Errorf("a restored database serves: %v", err)
		}
		for _, x := range []*testNode{restored, retired} { // they still learn
			must(t, rest[0].setting("news", x.cfg.Info.Name))
			await(t, 10*time.Minute, "told", func() bool { return x.has("news", x.cfg.Info.Name) })
		}
	})
}
