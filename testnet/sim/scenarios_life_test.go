package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
	"ukai/node/store"
	"ukai/testnet/memnet"
)

func TestScenario14AFlappingLinkNeitherReordersNorRepeatsWrites(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		g := m.attach("t1", "vm1")
		stop := make(chan struct{})
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for down := true; ; down = !down {
				if down {
					m.Cut("t1", "t2")
				} else {
					m.Heal("t1", "t2")
				}
				select {
				case <-stop:
					m.Heal("t1", "t2")
					return
				case <-time.After(70 * time.Millisecond):
				}
			}
		}()
		const writers, each = 64, 6
		results := make(chan error, writers)
		for i := range writers {
			go func() {
				for k := range each {
					if err := g.try(i%8, byte(1+(i*each+k)%200)); err != nil {
						results <- err
						return
					}
					time.Sleep(time.Duration(i) * time.Millisecond)
				}
				results <- nil
			}()
		}
		for range writers {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		var now [8]byte
		for i := range now {
			g.write(i, byte(201+i))
			now[i] = byte(201 + i)
		}
		close(stop)
		<-stopped
		time.Sleep(30 * time.Second) // what was late has come
		for i, want := range now {
			m.wantReads("t1", "vm1", i, want)
		}
		m.awaitLocations(g.n, "vm1", "t1 in sync", "t2 in sync")
		g.detach()
		for i, want := range now {
			m.wantReads("t2", "vm1", i, want)
		}
		m.wantEqualReplicas("vm1", 8)
	})
}

func TestScenario15AMigrationOfWhichAnEndDiesIsFinishedElsewhere(t *testing.T) {
	for name, die := range map[string]func(m *Mesh, g *guest){
		"the source after it let go":  func(_ *Mesh, g *guest) { g.detach(); g.n.Crash() },
		"the source before it let go": func(_ *Mesh, g *guest) { g.n.Crash() },
		"the target after it claimed": func(m *Mesh, g *guest) {
			g.detach()
			m.attach("t2", "vm1").n.Crash()
		},
		"the target while it claims": func(m *Mesh, g *guest) {
			g.detach()
			n := m.Nodes["t2"]
			v := n.Volume("vm1")
			ended := make(chan struct{})
			go func() { _ = v.Attach(context.Background()); close(ended) }() // as far as it gets
			time.Sleep(time.Millisecond)
			n.Crash()
			<-ended
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				m.Create("vm1", 4<<20, "dc=tokyo:2")
				g := m.attach("t1", "vm1")
				g.write(0, 1)
				g.flush()
				die(m, g)
				h := m.awaitAttach("o1", "vm1")
				m.wantReads("o1", "vm1", 0, 1)
				h.write(1, 2)
				for _, n := range m.Order {
					if n.Node == nil {
						n.Boot()
					} else if n != h.n && !n.Witness {
						if err := n.Volume("vm1").Attach(context.Background()); !errors.Is(err, ukai.ErrHeld) {
							t.Errorf("%s attached as well: %v", n.Name, err)
						}
					}
				}
				m.awaitLocations(h.n, "vm1", "t1 in sync", "t2 in sync")
				h.detach()
				m.wantEqualReplicas("vm1", 2)
			})
		})
	}
}

func TestScenario16AMigrationThatIsCalledOffGoesOnAtTheSource(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		g := m.attach("t1", "vm1")
		for i := range 5 {
			g.write(0, byte(i))
			g.detach()
			if i%2 == 0 { // the target had it for a moment
				m.attach("o1", "vm1").detach()
			}
			g = m.attach("t1", "vm1")
			m.wantReads("t1", "vm1", 0, byte(i))
		}
		if err := m.Nodes["o1"].Volume("vm1").Attach(context.Background()); !errors.Is(err, ukai.ErrHeld) {
			t.Errorf("the target attached as well: %v", err)
		}
		g.detach()
	})
}

func TestScenario22AnArbiterThatWasWipedIsAnotherNodeAndIsReplaced(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		g := m.attach("t1", "vm1")
		w1 := m.Nodes["w1"]
		before := w1.ID()
		w1.Crash()
		if err := w1.Store.Close(); err != nil {
			t.Fatal(err)
		}
		w1.Store = store.NewMem(store.MemConfig{})
		w1.Boot()
		if w1.ID() == before {
			t.Fatal("a node that has forgotten its promises is the one that made them")
		}
		info, err := g.n.Node.Disk(context.Background(), "vm1")
		if err != nil || slices.ContainsFunc(info.Arbiters, func(a admin.Arbiter) bool { return a.Node.ID == w1.ID() }) {
			t.Fatalf("the new node speaks for the old one: %+v, %v", info.Arbiters, err)
		}
		start := time.Now()
		for i := 0; time.Since(start) < time.Hour; i++ {
			g.write(i%100, byte(i))
			if info, err = g.n.Node.Disk(context.Background(), "vm1"); err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(info.Arbiters, func(a admin.Arbiter) bool { return a.Node.ID == before }) {
				break
			}
			time.Sleep(5 * time.Second)
		}
		if !slices.ContainsFunc(info.Arbiters, func(a admin.Arbiter) bool { return a.Node.ID == w1.ID() }) {
			t.Fatalf("the wiped arbiter was not replaced in %v: %+v", time.Since(start), info.Arbiters)
		}
		// The new one counts: with it t2 can be dropped.
		m.Nodes["t2"].Crash()
		g.write(0, 9)
		g.detach()
		m.wantReads("w1", "vm1", 0, 9)
	})
}

func TestScenario25AHostThatWasSuspendedReadsNothingStale(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		g := m.attach("t1", "vm1")
		g.write(0, 1)
		if err := g.n.Volume("vm1").Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
		g.n.Freeze(true)
		h := m.awaitAttach("o1", "vm1")
		h.write(0, 2)
		time.Sleep(time.Minute)
		// Its own clocks stood still but that of time since boot.
		g.n.Ahead.Add(int64(time.Hour))
		g.n.Freeze(false)
		for range 50 {
			if got, err := m.reads("t1", "vm1", 0); err == nil && got != 2 {
				t.Fatalf("the host that was suspended reads %d", got)
			}
			if err := g.try(1, 3); err == nil {
				t.Fatal("the host that was suspended writes on")
			}
			time.Sleep(100 * time.Millisecond)
		}
		m.wantReads("o1", "vm1", 1, 0)
		_ = g.n.Volume("vm1").Detach(context.Background()) // it was told that it lost the disk
		m.wantReads("t1", "vm1", 0, 2)
		m.awaitLocations(h.n, "vm1", "t1 in sync", "t2 in sync")
		h.detach()
		m.wantEqualReplicas("vm1", 2)
	})
}

func TestScenario27WhatWasDiscardedStaysZeroOnAReplicaThatReturns(t *testing.T) {
	for _, attached := range []bool{true, false} {
		t.Run(fmt.Sprint("attached=", attached), func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				m.Create("vm1", 4<<20, "dc=tokyo:2")
				g := m.attach("t1", "vm1")
				ctx := context.Background()
				v := g.n.Volume("vm1")
				for i := range 512 {
					g.write(i, 1)
				}
				g.flush()
				m.Nodes["t2"].Crash()
				// A block of the disk, a part of another, and zeros.
				if err := errors.Join(v.Discard(ctx, 0, 1<<20), v.Discard(ctx, 1<<20+8192, 8192), v.Zero(ctx, 1<<20+32768, 4096)); err != nil {
					t.Fatal(err)
				}
				if !attached {
					g.detach()
				}
				m.Nodes["t2"].Boot()
				m.awaitLocations(m.Nodes["t1"], "vm1", "t1 in sync", "t2 in sync")
				if attached {
					g.detach()
				}
				m.Nodes["t1"].Crash()
				m.Await("t2 reads", func() error { _, err := m.reads("t2", "vm1", 0); return err })
				for i := range 512 {
					want := byte(1)
					if i < 256 || i == 258 || i == 259 || i == 264 {
						want = 0
					}
					m.wantReads("t2", "vm1", i, want)
				}
				m.Nodes["t1"].Boot()
				m.wantEqualReplicas("vm1", 512)
			})
		})
	}
}

func TestScenario28AReplicaWhoseDiskFailsLeavesBeforeTheRequestReturns(t *testing.T) {
	for name, fault := range map[string]struct {
		kind store.OpKind
		err  error
	}{"no space": {store.OpWrite, syscall.ENOSPC}, "a write fails": {store.OpWrite, syscall.EIO}, "a sync fails": {store.OpSync, syscall.EIO}} {
		for _, where := range []string{"t1", "t2"} {
			t.Run(name+" on "+where, func(t *testing.T) {
				bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
					m.Create("vm1", 4<<20, "dc=tokyo:2")
					g := m.attach("t1", "vm1")
					g.write(0, 1)
					g.flush()
					m.Nodes[where].Fault = func(op store.Op) error {
						if op.Kind == fault.kind {
							return fault.err
						}
						return nil
					}
					g.write(512, 2)
					g.flush()
					other := map[string]string{"t1": "t2", "t2": "t1"}[where]
					want := []string{other + " in sync", where + " out"}
					slices.Sort(want)
					if got, err := locations(g.n, "vm1"); err != nil || !slices.Equal(got, want) {
						t.Errorf("a write and a flush returned, and it is on %v: %v", got, err)
					}
					// What was flushed is on the other one alone.
					m.Nodes[where].PowerCut()
					m.Nodes[other].PowerCut()
					m.Nodes[other].Boot()
					m.Nodes[where].Fault = nil
					m.Nodes[where].Boot()
					m.awaitAttach("t2", "vm1")
					m.wantReads("t2", "vm1", 0, 1)
					m.wantReads("t2", "vm1", 512, 2)
				})
			})
		}
	}
}

func TestScenario29BothHistoriesOfASplitBrainAreKeptAndShown(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "any:2")
		ctx := context.Background()
		t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
		if _, err := t1.SetQuorum(ctx, "vm1", admin.SetQuorum{Mode: admin.QuorumUnsafe, AcceptSplitBrain: "vm1"}); err != nil {
			t.Fatal(err)
		}
		m.Await("both know that it is unsafe", func() error {
			for _, n := range []*Node{t1, o1} {
				if d, err := n.Node.Disk(ctx, "vm1"); err != nil || d.Quorum != admin.QuorumUnsafe {
					return fmt.Errorf("%s: %s: %w", n.Name, d.Quorum, err)
				}
			}
			return nil
		})
		m.Cut("tokyo", "osaka")
		time.Sleep(time.Minute)
		for i, side := range []*Node{t1, o1} {
			gone := []string{"o1", "t1"}[i]
			if _, err := side.ForceDisk(ctx, "vm1", admin.ForceDisk{Gone: []string{gone}}); err != nil {
				t.Fatalf("on %s: %v", side.Name, err)
			}
			g := m.awaitAttach(side.Name, "vm1")
			g.write(0, byte(1+i))
			g.detach()
		}
		m.Heal("tokyo", "osaka")
		m.AwaitWhole()
		for _, n := range []*Node{t1, o1} {
			m.Await("the conflict is shown on "+n.Name, func() error {
				d, err := n.Node.Disk(ctx, "vm1")
				if err == nil && d.State != admin.DiskConflict {
					err = fmt.Errorf("it is %s", d.State)
				}
				return err
			})
			if _, err := n.OpenDisk("vm1"); err == nil || !strings.Contains(err.Error(), "several histories") {
				t.Errorf("opened on %s: %v", n.Name, err)
			}
		}
		time.Sleep(10 * time.Minute)
		for i, n := range []*Node{t1, o1} {
			kept := n.Store.Replicas()
			if len(kept) != 1 {
				t.Fatalf("%d replicas on %s", len(kept), n.Name)
			}
			n.Crash()
			r, err := n.Store.OpenReplica(kept[0].Disk, kept[0].Replica)
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 4096)
			if err := errors.Join(r.ReadAt(p, 0), r.Close()); err != nil || p[0] != byte(1+i) {
				t.Errorf("%s holds %d: %v", n.Name, p[0], err)
			}
		}
	})
}

func TestScenario30AReplicaThatCannotAnswerIsDroppedAndItsOwnWritesAreUndone(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		g := m.attach("t1", "vm1")
		for i := range 16 {
			g.write(i, 1)
		}
		g.flush()
		m.Net.SetLink("t2", "t1", memnet.Link{Down: true}) // t2 hears, and nobody here hears t2
		for i := range 16 {
			g.write(i, byte(10+i)) // the first of them reached t2 as well
		}
		m.awaitLocations(g.n, "vm1", "t1 in sync", "t2 out")
		for i := range 16 {
			g.write(i, byte(100+i))
		}
		m.Net.SetLink("t2", "t1", memnet.Link{Delay: 100 * time.Microsecond})
		m.awaitLocations(g.n, "vm1", "t1 in sync", "t2 in sync")
		g.detach()
		m.Nodes["t1"].Crash()
		m.Await("t2 reads", func() error { _, err := m.reads("t2", "vm1", 0); return err })
		for i := range 16 {
			m.wantReads("t2", "vm1", i, byte(100+i))
		}
		m.Nodes["t1"].Boot()
		m.wantEqualReplicas("vm1", 16)
	})
}
