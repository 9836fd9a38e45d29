package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node"
	"ukai/node/admin"
	"ukai/node/store"
)

// keeping gives a disk a rule and says whether old copies of it are kept.
func (m *Mesh) keeping(at, disk, term string, keep bool) admin.Placement {
	m.T.Helper()
	p, err := m.Nodes[at].PlaceDisk(context.Background(), disk, admin.PlaceDisk{Rule: admin.Rule{Terms: []string{term}}, KeepStale: &keep})
	if err != nil {
		m.T.Fatal(err)
	}
	return p
}

// awaitKept waits until a node knows that nodes keep old copies of a disk.
func (m *Mesh) awaitKept(at, disk string, want ...string) {
	m.T.Helper()
	m.Await(fmt.Sprintf("%s knows the old copies on %v", at, want), func() error {
		p, err := m.Nodes[at].Placement(context.Background(), disk)
		var got []string
		for _, k := range p.Kept {
			got = append(got, k.Node.Name)
		}
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("they are on %v", got)
		}
		return err
	})
}

const (
	keptBytes = 8 << 20 // of data, on a disk twice as large
	keptGrace = 20 * time.Second
)

// away makes a disk with data on t1 that h1 uses, moves it to o1, and leaves an old copy of it on t1.
func away(t *testing.T, m *Mesh) (want []byte, g *guest) {
	m.Tune = func(c *node.Config) { c.TrashGrace = keptGrace }
	m.AddAll("t1:tokyo t2:tokyo o1:osaka h1:nagoya:witness w1:fukuoka:witness")
	wan(m, 5*time.Millisecond, 0, "tokyo", "osaka", "nagoya", "fukuoka")
	m.Create("vm1", 2*keptBytes, "node=t1:1")
	g = m.attach("h1", "vm1")
	want = make([]byte, 2*keptBytes)
	copy(want, pattern(7, keptBytes))
	if _, err := g.n.Volume("vm1").WriteAt(context.Background(), want[:keptBytes], 0); err != nil {
		t.Fatal(err)
	}
	g.flush()
	m.keeping("w1", "vm1", "dc=osaka:1", true)
	m.awaitLocations(m.Nodes["w1"], "vm1", "o1 in sync")
	m.awaitKept("w1", "vm1", "t1")
	return want, g
}

// change writes what t1 misses, and returns how many bytes of it must be copied there.
func changed(t *testing.T, want []byte, g *guest, chunks int) int64 {
	ctx, d := context.Background(), g.n.Volume("vm1")
	write := func(off int, p []byte) {
		copy(want[off:], p)
		if _, err := d.WriteAt(ctx, p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range chunks - 2 {
		write(2*i*ukai.ChunkSize, pattern(uint64(40+i), ukai.ChunkSize))
	}
	write(5<<20+4096, pattern(8, 4096))                // one chunk, for a page of it
	write(keptBytes+3<<20, pattern(9, ukai.ChunkSize)) // where there was a hole
	write(6<<20, slices.Clone(want[6<<20:7<<20]))      // the same again
	clear(want[7<<20 : 8<<20])                         // zeros are not sent
	if err := d.Discard(ctx, 7<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	g.flush()
	return int64(chunks) * ukai.ChunkSize
}

// The node that copies is a third one, or the one with the old copy, to which the VM went back first.
func TestADiskThatComesBackToAnOldCopyMovesOnlyWhatChanged(t *testing.T) {
	long(t)
	for _, by := range []string{"h1", "t1"} {
		t.Run("by_"+by, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { comesBack(t, by) })
		})
	}
}

func comesBack(t *testing.T, by string) {
	m := New(t, 1)
	defer m.Stop()
	want, g := away(t, m)
	t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
	from := "nagoya"
	if by == "t1" {
		g.detach()
		g, from = m.awaitAttach("t1", "vm1"), "osaka"
	}
	time.Sleep(time.Hour) // many times as long as dropped replicas are kept otherwise
	if all := t1.Store.Replicas(); len(all) != 1 || all[0].Header.State != store.StateRetired {
		t.Fatalf("t1 has %+v", all)
	}
	must := changed(t, want, g, 4)
	p, err := o1.PlaceDisk(context.Background(), "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=tokyo:1"}}, DryRun: true})
	if err != nil || !p.KeepStale || len(p.Steps) == 0 || p.Steps[0].Node.Name != "t1" || p.Steps[0].ReusesBytes < keptBytes*3/4 {
		t.Fatalf("%v: %+v", err, p)
	}
	copied, crossed := g.n.Counters()["ukai_resync_bytes_total"], m.crossing(from, "tokyo")
	m.place("w1", "vm1", "dc=tokyo:1")
	m.awaitLocations(m.Nodes["w1"], "vm1", "t1 in sync")
	if n := int64(g.n.Counters()["ukai_resync_bytes_total"] - copied); n != must {
		t.Errorf("%d bytes were copied, must be %d", n, must)
	}
	// Beside these, the hashes of 8 MiB, gossip and heartbeats.
	if n := m.crossing(from, "tokyo") - crossed; n < uint64(must) || n > uint64(must)+keptBytes/16 {
		t.Errorf("%d bytes went to tokyo, of %d that changed", n, must)
	}
	m.awaitKept("w1", "vm1", "o1")
	if all := t1.Store.Replicas(); len(all) != 1 || all[0].Header.State != store.StateOpen {
		t.Errorf("t1 has %+v", all)
	}
	if p := m.keeping("w1", "vm1", "dc=tokyo:1", false); p.KeepStale {
		t.Errorf("%+v", p)
	}
	m.awaitReplicas("o1", 0)
	m.awaitKept("w1", "vm1")
	g.detach()
	o1.Crash()
	same(t, m.Nodes["w1"], "vm1", want)
}

// A machine dies while the disk comes back: the one that copies, that it comes from, or where the old copy is.
func TestADiskThatComesBackToAnOldCopyDoesSoThoughAMachineDies(t *testing.T) {
	const chunks = 32
	for i, moment := range []string{"adopted", "begun", "half", "in sync"} {
		for j, victim := range []string{"h1", "t1", "o1", "t1 power"} {
			if testing.Short() && i != j {
				continue
			}
			if moment == "in sync" && victim == "t1 power" {
				continue // it may be the only one in sync by then
			}
			t.Run(moment+"_"+victim, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := New(t, 1)
					defer m.Stop()
					want, g := away(t, m)
					must := changed(t, want, g, chunks)
					t1 := m.Nodes["t1"]
					m.limit("w1", "nagoya-tokyo", "4MiB/s")
					var landed atomic.Int64
					var adopted atomic.Bool
					t1.Fault = func(op store.Op) error {
						switch {
						case op.Kind == store.OpRename:
							adopted.Store(true)
						case op.Kind == store.OpWrite && op.Bytes > guestWrites:
							landed.Add(op.Bytes)
						}
						return nil
					}
					m.place("w1", "vm1", "node=t1:1")
					m.Await(moment, func() error {
						there, err := locations(m.Nodes["w1"], "vm1")
						n := landed.Load()
						if moment == "adopted" && adopted.Load() || moment == "begun" && n > 0 || moment == "half" && n >= must/2 || moment == "in sync" && slices.Contains(there, "t1 in sync") {
							return nil
						}
						return errors.Join(err, fmt.Errorf("%d bytes are there", n))
					})
					dead := m.Nodes[victim[:2]]
					if victim == "t1 power" {
						dead.PowerCut()
					} else {
						dead.Crash()
					}
					time.Sleep(15 * time.Second)
					dead.Boot()
					if dead.Name == "h1" {
						g = m.awaitAttach("h1", "vm1")
					}
					m.awaitLocations(m.Nodes["w1"], "vm1", "t1 in sync")
					// What was in flight is copied again, and after a power cut what was not durable.
					if n := landed.Load(); n > 2*must+1<<20 {
						t.Errorf("%d bytes were copied, of which %d must be", n, must)
					}
					g.detach()
					m.Nodes["o1"].Crash()
					same(t, m.Nodes["w1"], "vm1", want)
				})
			})
		}
	}
}

func TestAnOldCopyGoesWhenItsNodeIsNearlyFullOrItsDiskIsRemoved(t *testing.T) {
	long(t)
	for _, why := range []string{"full", "removed"} {
		t.Run(why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := New(t, 1)
				defer m.Stop()
				m.Space = 6 * keptBytes
				_, g := away(t, m)
				g.detach()
				ctx := context.Background()
				if why == "removed" {
					if _, err := m.Nodes["w1"].RemoveDisk(ctx, "vm1", admin.RemoveDisk{GraceSeconds: new(int64(0))}); err != nil {
						t.Fatal(err)
					}
					m.awaitReplicas("t1", 0)
					return
				}
				m.Create("vm2", 5*keptBytes, "node=t1:1")
				other := m.attach("t1", "vm2")
				fill := func(from, to int) {
					for off := from; off < to; off += 1 << 20 {
						if _, err := other.n.Volume("vm2").WriteAt(ctx, pattern(uint64(off>>20), 1<<20), int64(off)); err != nil {
							t.Fatal(err)
						}
					}
					other.flush()
				}
				fill(0, 34<<20) // 6 MiB are left, an eighth
				time.Sleep(time.Hour)
				m.awaitKept("w1", "vm1", "t1")
				fill(34<<20, 38<<20)
				m.awaitReplicas("t1", 1)
				m.awaitKept("w1", "vm1")
				other.detach()
			})
		})
	}
}
