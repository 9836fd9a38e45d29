package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/gossip"
	"ukai/node/admin"
	"ukai/node/store"
	"ukai/node/wire"
	"ukai/testnet/memnet"
)

// inMesh runs f in virtual time with nodes that see each other.
func inMesh(t *testing.T, count int, f func(t *testing.T, nodes []*Node)) {
	synctest.Test(t, func(t *testing.T) {
		network, key := memnet.New(1), wire.NewMeshKey()
		network.SetDefault(memnet.Link{Delay: 100 * time.Microsecond})
		var nodes []*Node
		for i := range count {
			name, addr := fmt.Sprintf("n%d", i), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 7946)
			conn, err := network.Listen(addr, "dc", name)
			if err != nil {
				t.Fatal(err)
			}
			cfg := Config{
				Name: name, Keys: []wire.MeshKey{key}, Conn: conn, Store: store.NewMem(store.MemConfig{}),
				Boottime: func() time.Duration { return time.Duration(time.Now().UnixNano()) },
			}
			if i > 0 {
				cfg.Seeds = []string{"10.0.0.1:7946"}
			}
			n, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			nodes = append(nodes, n)
		}
		for _, n := range nodes {
			await(t, "all nodes at "+n.cfg.Name, func() bool {
				alive := 0
				for _, m := range n.mesh.Members() {
					if m.State == gossip.Alive && n.people().name(m.ID) != "" {
						alive++
					}
				}
				return alive == count && n.fit() == nil
			})
		}
		f(t, nodes)
		for _, n := range nodes {
			if err := n.Kill(); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(gossip.Linger)
	})
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for start := time.Now(); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 5*time.Minute {
			t.Fatalf("%s: not in five minutes", what)
		}
	}
}

func newDisk(name, rule string) admin.NewDisk {
	return admin.NewDisk{Name: name, SizeBytes: 1 << 20, BlockSizeBytes: ukai.MinBlockSize, Rule: &admin.Rule{Terms: []string{rule}}}
}

func TestOfDisksCreatedAtOnceUnderOneNameOneIsThereAndNothingOfTheOthers(t *testing.T) {
	inMesh(t, 3, func(t *testing.T, nodes []*Node) {
		const tries = 8
		errs := make([]error, tries)
		var all sync.WaitGroup
		for i := range tries {
			all.Go(func() { _, errs[i] = nodes[0].CreateDisk(context.Background(), newDisk("vm1", "any:2")) })
		}
		all.Wait()
		created := 0
		for _, err := range errs {
			if err == nil {
				created++
			} else if !errors.Is(err, ukai.ErrExists) {
				t.Errorf("create: %v", err)
			}
		}
		if created != 1 {
			t.Errorf("%d disks were created", created)
		}
		replicas := 0
		for _, n := range nodes {
			replicas += len(n.store.Replicas())
		}
		if replicas != 2 {
			t.Errorf("%d replicas are on the nodes, want the 2 of one disk", replicas)
		}
	})
}

// removed says whether a node knows vm1 as removed, or as not removed.
func removed(n *Node, want bool) func() bool {
	return func() bool {
		d, err := n.find("vm1", want)
		return err == nil && d.Removed.Value == want
	}
}

// A node that was away may know of a removal, and not that it was undone.
func TestADiskThatWasRestoredIsNotDeletedByANodeThatMissedIt(t *testing.T) {
	inMesh(t, 3, func(t *testing.T, nodes []*Node) {
		ctx := context.Background()
		if _, err := nodes[0].CreateDisk(ctx, newDisk("vm1", "any:3")); err != nil {
			t.Fatal(err)
		}
		await(t, "the disk at n1", removed(nodes[1], false))
		grace := int64(3600)
		if _, err := nodes[0].RemoveDisk(ctx, "vm1", admin.RemoveDisk{GraceSeconds: &grace}); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			await(t, "the removal at "+n.cfg.Name, removed(n, true))
		}
		stale, err := nodes[1].find("vm1", true)
		if err != nil {
			t.Fatal(err)
		}
		if nodes[1].majorityHoldsExpired(ctx, stale) {
			t.Error("the grace time is over before it is")
		}
		time.Sleep(time.Hour - 40*time.Second)
		if _, err := nodes[0].RestoreDisk(ctx, "vm1", admin.RestoreDisk{}); err != nil {
			t.Fatal(err)
		}
		await(t, "the restoration at n2", removed(nodes[2], false))
		time.Sleep(time.Minute)
		if nodes[1].majorityHoldsExpired(ctx, stale) {
			t.Error("a majority of the arbiters consents to the deletion of a disk that was restored")
		}
		for _, n := range nodes {
			await(t, "the disk at "+n.cfg.Name, removed(n, false))
		}
		// Removed once more, it is deleted when its time has come.
		if _, err := nodes[0].RemoveDisk(ctx, "vm1", admin.RemoveDisk{GraceSeconds: &grace}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour - time.Minute)
		for _, n := range nodes {
			if len(n.store.Replicas()) != 1 {
				t.Errorf("%s gave up its replica within the grace time", n.cfg.Name)
			}
		}
		await(t, "the end of the replicas", func() bool {
			left := 0
			for _, n := range nodes {
				left += len(n.store.Replicas())
			}
			return left == 0
		})
		if _, err := nodes[0].RestoreDisk(ctx, stale.ID.String(), admin.RestoreDisk{}); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("restoring a deleted disk = %v", err)
		}
	})
}

// Whoever deletes a disk has asked the arbiters before, and may be slow: a restoration that was reported in between holds.
func TestADiskIsNotDeletedByWhoWasAllowedToBeforeItWasRestored(t *testing.T) {
	inMesh(t, 3, func(t *testing.T, nodes []*Node) {
		ctx := context.Background()
		if _, err := nodes[0].CreateDisk(ctx, newDisk("vm1", "any:3")); err != nil {
			t.Fatal(err)
		}
		await(t, "the disk at n1", removed(nodes[1], false))
		grace := int64(1)
		if _, err := nodes[0].RemoveDisk(ctx, "vm1", admin.RemoveDisk{GraceSeconds: &grace}); err != nil {
			t.Fatal(err)
		}
		await(t, "the removal at n1", removed(nodes[1], true))
		d, err := nodes[1].find("vm1", true)
		if err != nil {
			t.Fatal(err)
		}
		await(t, "the end of the grace time", func() bool { return nodes[1].majorityHoldsExpired(ctx, d) })
		restored := make(chan error, 1)
		err = nodes[1].deleteIf(ctx, d, func() bool {
			if !nodes[1].majorityHoldsExpired(ctx, d) {
				t.Error("no majority consents any more")
			}
			_, err := nodes[0].RestoreDisk(ctx, "vm1", admin.RestoreDisk{})
			restored <- err
			return true
		})
		if restore := <-restored; restore != nil || !errors.Is(err, ukai.ErrRejected) {
			t.Errorf("restored: %v, deleted: %v", restore, err)
		}
		time.Sleep(2 * time.Minute)
		for _, n := range nodes {
			if _, err := n.StatDisk("vm1"); err != nil {
				t.Errorf("at %s: %v", n.cfg.Name, err)
			}
			if len(n.store.Replicas()) != 1 {
				t.Errorf("%d replicas at %s", len(n.store.Replicas()), n.cfg.Name)
			}
		}
	})
}

func TestGraceOutOfBoundsIsRefused(t *testing.T) {
	inMesh(t, 1, func(t *testing.T, nodes []*Node) {
		n, ctx := nodes[0], context.Background()
		if _, err := n.CreateDisk(ctx, newDisk("vm1", "any:1")); err != nil {
			t.Fatal(err)
		}
		// 1<<34 seconds are more than a time.Duration holds: the disk would be deleted at once.
		for _, grace := range []int64{-1, 366 * 24 * 3600, 1 << 34} {
			if _, err := n.RemoveDisk(ctx, "vm1", admin.RemoveDisk{GraceSeconds: &grace}); !errors.Is(err, ukai.ErrInvalid) {
				t.Errorf("grace of %d seconds: %v", grace, err)
			}
		}
		if _, err := n.StatDisk("vm1"); err != nil {
			t.Error(err)
		}
	})
}

func TestADiskWhoseHolderDiedCanBeRemoved(t *testing.T) {
	inMesh(t, 4, func(t *testing.T, nodes []*Node) {
		ctx, holder := context.Background(), nodes[3]
		if _, err := nodes[0].CreateDisk(ctx, newDisk("vm1", "node=n0:1")); err != nil {
			t.Fatal(err)
		}
		await(t, "the disk at its holder", func() bool { _, err := holder.StatDisk("vm1"); return err == nil })
		d, err := holder.OpenDisk("vm1")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(ctx, make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := nodes[0].RemoveDisk(ctx, "vm1", admin.RemoveDisk{}); !errors.Is(err, ukai.ErrHeld) {
			t.Errorf("a disk in use was removed: %v", err)
		}
		if err := holder.Kill(); err != nil {
			t.Fatal(err)
		}
		await(t, "the removal", func() bool {
			_, err := nodes[0].RemoveDisk(ctx, "vm1", admin.RemoveDisk{})
			return err == nil
		})
	})
}

func TestRemovalOfADiskThatIsGoneWithItsHolderFailsSoon(t *testing.T) {
	inMesh(t, 4, func(t *testing.T, nodes []*Node) {
		holder := nodes[3]
		if _, err := nodes[0].CreateDisk(context.Background(), newDisk("vm1", "node=n3:1")); err != nil {
			t.Fatal(err)
		}
		await(t, "the disk at its holder", func() bool { _, err := holder.StatDisk("vm1"); return err == nil })
		d, err := holder.OpenDisk("vm1")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Attach(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := holder.Kill(); err != nil {
			t.Fatal(err)
		}
		await(t, "the death of the holder", func() bool {
			return nodes[0].holdsDead(t.Context(), holder.id, false) && nodes[1].holdsDead(t.Context(), holder.id, false)
		})
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		start := time.Now()
		if _, err := nodes[0].RemoveDisk(ctx, "vm1", admin.RemoveDisk{}); err == nil {
			t.Error("the disk was removed although it is attached")
		}
		if took := time.Since(start); took > 2*settleTime { // of virtual time
			t.Errorf("it took %v", took)
		}
	})
}

func TestAReplicaPutAsideByAClockThatWasAheadIsKeptForItsTime(t *testing.T) {
	inMesh(t, 3, func(t *testing.T, nodes []*Node) {
		ctx := context.Background()
		if _, err := nodes[0].CreateDisk(ctx, newDisk("vm1", "any:2")); err != nil {
			t.Fatal(err)
		}
		v, err := nodes[0].OpenDisk("vm1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.WriteAt(ctx, make([]byte, 512), 0); err != nil { // so that they are in use
			t.Fatal(err)
		}
		if _, err := nodes[0].PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"any:1"}}}); err != nil {
			t.Fatal(err)
		}
		var at *Node
		var aside store.ReplicaInfo
		await(t, "a replica is put aside", func() bool {
			for _, n := range nodes {
				for _, r := range n.store.Replicas() {
					if r.Header.State == store.StateRetired {
						at, aside = n, r
					}
				}
			}
			return at != nil
		})
		ahead := binary.BigEndian.AppendUint64(nil, uint64(time.Now().Add(24*time.Hour).Unix()))
		if err := at.store.Put(ctx, true, store.KV{K: trashKey(aside.Disk, aside.Replica), V: ahead}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Minute)
		if len(at.store.Replicas()) != 1 {
			t.Error("it was removed at once when the clock was right again")
		}
		time.Sleep(15 * time.Minute)
		if len(at.store.Replicas()) != 0 {
			t.Error("it is kept for ever")
		}
	})
}

func TestANodeStopsWhileItsEventsAreListenedTo(t *testing.T) {
	inMesh(t, 1, func(t *testing.T, nodes []*Node) {
		events, err := nodes[0].Events(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range events { //nolint:revive // until it is closed
		}
	})
}
