package gossip

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

// isDelta says whether a packet carries an entry of the catalog or the announcement of one.
func isDelta(b []byte) bool {
	const userMessage = 8
	return bytes.Contains(b, []byte{userMessage, packetDelta}) || bytes.Contains(b, []byte{userMessage, packetAnnounce})
}

func TestCatchingUpCostsWhatWasMissed(t *testing.T) {
	old, missed := 5000, 1000
	if testing.Short() {
		old, missed = 1500, 300
	}
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		for i := range old { // what everybody has
			must(t, nodes[0].setting(fmt.Sprintf("old-%d", i), "1"))
		}
		await(t, 30*time.Second, "known to the node", func() bool { return nodes[4].has(fmt.Sprintf("old-%d", old-1), "1") && nodes[4].has("old-1", "1") })
		time.Sleep(5 * time.Second)
		away := nodes[4]
		away.stop()
		time.Sleep(5 * time.Minute)
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
		t.Logf("%d changes of %d entries caught up after %v with %d bytes", missed, old+missed, took, bytes)
		if limit := uint64(missed*600 + 50_000); bytes > limit {
			t.Errorf("%d bytes for %d changes: more than %d", bytes, missed, limit)
		}
		if n := away.counter("entries_pulled_total"); n < uint64(missed) || n > uint64(missed)+50 {
			t.Errorf("%d entries pulled for %d changes", n, missed)
		}
	})
}

func TestDigestsBringWhatPacketsLost(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		time.Sleep(10 * time.Second)
		n.set(func() { n.drop = isDelta })
		for i := range 50 {
			must(t, nodes[i%5].setting(fmt.Sprintf("s-%d", i), "1"))
		}
		took := await(t, 30*time.Second, "of one mind", func() bool {
			for _, x := range nodes {
				for i := range 50 {
					if !x.has(fmt.Sprintf("s-%d", i), "1") {
						return false
					}
				}
			}
			return true
		})
		t.Logf("repaired after %v", took)
		time.Sleep(time.Minute)
		before := nodes[0].counter("exchanges_total")
		time.Sleep(5 * time.Minute)
		if n := nodes[0].counter("exchanges_total") - before; n > 1 {
			t.Errorf("%d exchanges in 5 minutes although catalogs are equal", n)
		}
	})
}

func TestAnEntryTooLargeForPacketsIsPulled(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		nodes := five(n)
		await(t, 10*time.Second, "whole", allSee(nodes, Alive, 4))
		time.Sleep(10 * time.Second)
		id := ukai.DiskID{1}
		rec := largeRecord(id, nodes)
		must(t, nodes[1].Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
			return c.CreateDisk(crdt.Born{Creator: nodes[1].cfg.ID, Stamp: stamp(), Name: "vm1"}, "dc=tokyo:2", rec)
		}))
		took := await(t, 3*time.Second, "known to all", func() bool {
			return !slices.ContainsFunc(nodes, func(x *testNode) (lacks bool) {
				x.View(func(c *crdt.Catalog) {
					d, ok := c.Disk(id)
					lacks = !ok || len(d.View) != 1 || len(d.View[0].Runs) != len(rec.Runs)
				})
				return lacks
			})
		})
		t.Logf("known to all after %v", took)
	})
}

func largeRecord(id ukai.DiskID, nodes []*testNode) crdt.Record {
	rec := crdt.Record{
		Disk: id, Version: 1, Size: 256 * ukai.DefaultBlockSize, BlockSize: ukai.DefaultBlockSize, MinSync: 1,
	}
	for _, x := range nodes[:3] {
		rec.Arbiters = append(rec.Arbiters, x.cfg.ID)
	}
	for g := range uint8(2) {
		rec.Groups = append(rec.Groups, crdt.Group{ID: g, Members: []crdt.Member{
			{Replica: ukai.ReplicaID(10*g + 1), Node: nodes[0].cfg.ID}, {Replica: ukai.ReplicaID(10*g + 2), Node: nodes[1].cfg.ID},
		}})
	}
	for i := range 256 {
		rec.Runs = append(rec.Runs, crdt.Run{Count: 1, Group: uint8(i % 2)})
	}
	return rec
}
