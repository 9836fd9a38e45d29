package node

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/store"
)

// ended is an arbiter's node in a bubble whose part in instance 0 of a record has ended: instance 1 is kept by another node.
func ended(t *testing.T) (c *cells, ask func(cell.Request) cell.Answer, first, last crdt.Record) {
	t.Helper()
	ctx := context.Background()
	self, other := ukai.NodeID{1}, ukai.NodeID{2}
	mem := store.NewMem(store.MemConfig{})
	t.Cleanup(func() { _ = mem.Close() })
	c = newCells(self, mem.Store())
	c.ready = func() error { return nil }
	c.unknown = func(ukai.DiskID) (time.Time, bool) { return time.Now(), false }
	ask = func(r cell.Request) cell.Answer {
		t.Helper()
		r.Disk = ukai.DiskID{7}
		rep, err := c.Step(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return rep.Answer
	}
	first = crdt.Record{
		Disk: ukai.DiskID{7}, Arbiters: []ukai.NodeID{self}, Version: 1, Size: 8 << 20, BlockSize: 4 << 20, MinSync: 1,
		Groups: []crdt.Group{{Members: []crdt.Member{{Replica: 1, Node: self}}}}, Runs: []crdt.Run{{Count: 2}},
	}
	last, err := cell.Rearb{Arbiters: []ukai.NodeID{other}}.Apply(first.Clone())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []cell.Request{
		{Kind: cell.Init, Record: &first},
		{Kind: cell.Accept, Ballot: cell.Ballot{Counter: 1, Node: self}, Record: &last},
		{Kind: cell.Close, Record: &last},
	} {
		if got := ask(r); got != cell.Accepted {
			t.Fatalf("%v: %v", r.Kind, got)
		}
	}
	return c, ask, first, last
}

// forgets lets time pass as a node does: it looks once a day.
func forgets(t *testing.T, c *cells, days int) {
	t.Helper()
	for range days {
		if err := c.forget(context.Background()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
	}
	if err := c.forget(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestAnInstanceThatEndedRedirectsFor30DaysAndIsNeverRevived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ask, first, _ := ended(t)
		prepare := cell.Request{Kind: cell.Prepare, Ballot: cell.Ballot{Counter: 9, Node: ukai.NodeID{3}}}
		forgets(t, c, 29)
		if got := ask(prepare); got != cell.Final {
			t.Errorf("after 29 days it answers %v", got)
		}
		forgets(t, c, 2)
		if _, err := c.store.Get(cellKey(first.Disk, 0)); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("after 31 days its state is still there: %v", err)
		}
		if _, err := c.store.Get(closedKey(first.Disk, 0)); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("after 31 days a note of it is still there: %v", err)
		}
		// Whoever still believes in it could begin it anew, and there would be two records.
		for _, r := range []cell.Request{prepare, {Kind: cell.Init, Record: &first}, prepare} {
			if got := ask(r); got != cell.Unknown {
				t.Errorf("after 31 days %v is answered %v", r.Kind, got)
			}
		}
		later := first.Clone()
		later.Instance, later.Version = 5, 40
		if got := ask(cell.Request{Kind: cell.Init, Instance: 5, Record: &later}); got != cell.Accepted {
			t.Errorf("a later instance on this node: %v", got)
		}
		forgets(t, c, 60)
		if got := ask(cell.Request{Kind: cell.Prepare, Instance: 5, Ballot: cell.Ballot{Counter: 1, Node: ukai.NodeID{3}}}); got != cell.Promised {
			t.Errorf("one that has not ended answers %v after 60 days", got)
		}
	})
}

func TestAClockThatWasAheadDoesNotKeepStatesForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, first, _ := ended(t)
		ahead := binary.BigEndian.AppendUint64(nil, uint64(time.Now().Add(10*365*24*time.Hour).Unix()))
		if err := c.store.Put(context.Background(), true, store.KV{K: closedKey(first.Disk, 0), V: ahead}); err != nil {
			t.Fatal(err)
		}
		forgets(t, c, 31)
		if _, err := c.store.Get(cellKey(first.Disk, 0)); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("its state is still there: %v", err)
		}
	})
}

func TestWhatIsKeptOfADiskThatNobodyKnowsIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ask, first, _ := ended(t)
		later := first.Clone()
		later.Instance, later.Version = 5, 40
		if got := ask(cell.Request{Kind: cell.Init, Instance: 5, Record: &later}); got != cell.Accepted {
			t.Fatal(got)
		}
		forgets(t, c, 31) // the first instance leaves its number
		kept := func() (keys []string) {
			t.Helper()
			if err := c.store.Scan("c", func(k string, _ []byte) error { keys = append(keys, k); return nil }); err != nil {
				t.Fatal(err)
			}
			return keys
		}
		want := []string{cellKey(first.Disk, 5), floorKey(first.Disk)}
		unknown, behind := true, time.Duration(0)
		c.unknown = func(ukai.DiskID) (time.Time, bool) { return time.Now().Add(-behind), unknown }
		forgets(t, c, 29)
		unknown = false // somebody knew it after all
		forgets(t, c, 60)
		if got := kept(); !slices.Equal(got, want) {
			t.Fatalf("of a disk that is known there is %v", got)
		}
		unknown, behind = true, 60*24*time.Hour // a node is away
		forgets(t, c, 50)
		if got := kept(); len(got) != 4 {
			t.Fatalf("while somebody may know it there is %v", got)
		}
		behind = time.Hour
		forgets(t, c, 1)
		if got := kept(); len(got) != 0 {
			t.Errorf("there is still %v", got)
		}
	})
}
