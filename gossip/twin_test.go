package gossip

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

// twins starts a node and a node with a copy of its data directory, in a mesh of three others.
func twins(t *testing.T, n *network) (a, b *testNode, rest []*testNode) {
	t.Helper()
	nodes := five(n)
	await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
	time.Sleep(5 * time.Second)
	a, rest = nodes[4], nodes[:4]
	a.stop()
	b = &testNode{net: n, addr: addrOf(1, 99), journal: a.journal.copy(), cfg: a.cfg}
	n.nodes = append(n.nodes, b)
	return a, b, rest
}

func isolated(x *testNode) func() bool {
	return func() bool { return errors.Is(x.Quarantined(), ukai.ErrQuarantined) }
}

func TestOfTwoNodesWithOneIdentityNotBothServe(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		a, b, rest := twins(t, n)
		a.start()
		b.start()
		took := await(t, 5*time.Second, "one found out", func() bool { return isolated(a)() || isolated(b)() })
		t.Logf("found out after %v", took)
		time.Sleep(5 * time.Minute)
		for _, x := range rest {
			must(t, x.Quarantined())
		}
	})
}

func TestACopyOfANodeThatRunsDoesNotServe(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		a, b, rest := twins(t, n)
		a.start()
		time.Sleep(5 * time.Second) // it has published nothing since it started
		must(t, a.Quarantined())
		b.start()
		<-b.Recalled() // it may serve from now on
		if !isolated(b)() {
			t.Error("the copy serves")
		}
		for _, x := range rest {
			must(t, x.Quarantined())
		}
	})
}

// The one that moves says the same as ever under an address of its own.
func TestANodeThatMovesIsNoTwinOfItself(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		moved := nodes[4]
		for i := range 3 {
			moved.stop()
			moved.addr = addrOf(1, 77+i)
			time.Sleep(time.Duration(i*i) * 4 * time.Second)
			moved.start()
			time.Sleep(2 * time.Minute)
			must(t, moved.Quarantined())
			must(t, moved.Publish(t.Context(), func(info *crdt.NodeInfo) { info.FreeBytes = int64(i) }))
		}
		await(t, 2*time.Minute, "whole", allSee(nodes, Alive, 4))
		for _, x := range nodes {
			must(t, x.Quarantined())
		}
	})
}

// Peers that suspect the life before tell the node that has come back, which says at once that it is alive: they may know of this start
// before it has greeted any of them.
func TestANodeThatComesBackWhileItIsSuspectedIsNoTwinOfItself(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		n.set(func() { n.delay = func(netip.AddrPort, netip.AddrPort) time.Duration { return 80 * time.Millisecond } })
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		back := nodes[4]
		for i := range 40 {
			back.stop()
			time.Sleep(3*time.Second + time.Duration(i)*70*time.Millisecond)
			back.start()
			time.Sleep(20 * time.Second)
			if err := back.Quarantined(); err != nil {
				t.Fatalf("start %d: %v", i, err)
			}
		}
	})
}

func TestAnotherPublicationUnderOneNumberIsATwins(t *testing.T) {
	m := bare(t, ukai.NodeID{1})
	same := func(edit func(*crdt.NodeInfo)) crdt.Delta {
		info := m.info
		edit(&info)
		c := crdt.NewCatalog()
		d, err := c.PutNode(m.id, info)
		must(t, err)
		return d
	}
	m.absorb(same(func(*crdt.NodeInfo) {}), false)
	must(t, m.Quarantined())
	m.absorb(same(func(i *crdt.NodeInfo) { i.FreeBytes++ }), false)
	if err := m.Quarantined(); !errors.Is(err, ukai.ErrQuarantined) {
		t.Errorf("another publication %d: %v", m.info.Seq, err)
	}
}

func TestWhichMemoriesProveADatabaseOld(t *testing.T) {
	r := report{Boot: 5, Seq: 20, Loaded: 18} // it was opened with 18 publications, and has made two since
	for _, tc := range []struct {
		boot, seq uint64
		old       bool
	}{
		{0, 0, false}, // never heard of
		{4, 18, false},
		{4, 19, true}, // published in an earlier life that the database does not know of
		{5, 18, false},
		{5, 20, false},
		{5, 21, true},
		{6, 0, true}, // a start that the database does not know of
		{6, 18, true},
	} {
		if old := r.olderThan(tc.boot, tc.seq); old != tc.old {
			t.Errorf("boot %d, publication %d: proves it old: %v", tc.boot, tc.seq, old)
		}
	}
}

func TestThisStartAtAnotherAddressIsATwins(t *testing.T) {
	for name, tc := range map[string]struct {
		boot  uint64
		addr  netip.AddrPort
		found bool
	}{
		"this start at this address":         {5, addrOf(1, 1), false},
		"an earlier start elsewhere":         {4, addrOf(1, 2), false},
		"this start elsewhere":               {5, addrOf(1, 2), true},
		"a later start at this very address": {6, addrOf(1, 1), true},
	} {
		m := bare(t, ukai.NodeID{1})
		m.boot = 5
		if err := m.heardOf(m.id, tc.boot, tc.addr); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if found := m.Quarantined() != nil; found != tc.found {
			t.Errorf("%s: quarantined %v", name, found)
		}
	}
}
