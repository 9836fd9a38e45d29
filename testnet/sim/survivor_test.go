package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
)

// unsafeDisk makes a disk in quorum mode unsafe, which all nodes know to be so.
func unsafeDisk(t *testing.T, m *Mesh, rule string) {
	t.Helper()
	m.Create("vm1", 4<<20, rule)
	ctx := context.Background()
	if _, err := m.Order[0].SetQuorum(ctx, "vm1", admin.SetQuorum{Mode: admin.QuorumUnsafe, AcceptSplitBrain: "vm1"}); err != nil {
		t.Fatal(err)
	}
	for _, n := range m.Order {
		m.Await(n.Name+" knows that it is unsafe", func() error {
			d, err := n.Disk(ctx, "vm1")
			if err == nil && d.Quorum != admin.QuorumUnsafe {
				err = errors.New(d.Quorum)
			}
			return err
		})
	}
}

// unused lets a disk that nobody uses be let go.
func (m *Mesh) unused(at *Node, disk string) {
	m.T.Helper()
	m.Await(disk+" is let go", func() error {
		d, err := at.Disk(context.Background(), disk)
		if err == nil && d.Holder != nil {
			err = fmt.Errorf("held by %v", d.Holder)
		}
		return err
	})
}

func TestAnUnsafeDiskGoesOnByItselfWhenWitnessAndTheOtherDatacenterAreGone(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		unsafeDisk(t, m, "dc=tokyo:1 dc=osaka:1")
		ctx := context.Background()
		g := m.attach("t1", "vm1")
		g.write(0, 1)
		g.detach()
		before, err := m.Nodes["t1"].Disk(ctx, "vm1")
		if err != nil {
			t.Fatal(err)
		}
		m.Nodes["o1"].Crash()
		m.Nodes["w1"].Crash()
		time.Sleep(10 * time.Minute)
		if d, err := m.Nodes["t1"].Disk(ctx, "vm1"); err != nil || d.Version != before.Version {
			t.Errorf("forced though nobody wants it: version %d after %d, %v", d.Version, before.Version, err)
		}
		g = m.awaitAttach("t1", "vm1")
		if got := g.reads(0); got != 1 {
			t.Errorf("it holds %d", got)
		}
		g.write(1, 2)
		g.flush()
		m.Nodes["o1"].Boot()
		m.Nodes["w1"].Boot()
		m.AwaitWhole()
		m.awaitLocations(m.Nodes["o1"], "vm1", "o1 in sync", "t1 in sync")
		g.detach()
		o := m.awaitAttach("o1", "vm1")
		if a, b := o.reads(0), o.reads(1); a != 1 || b != 2 {
			t.Errorf("through the node that was gone it holds %d and %d", a, b)
		}
		o.detach()
	})
}

func TestADiskIsNotForcedByItselfWhileThatIsNotNeededOrNotAllowed(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness w2:osaka:witness", func(t *testing.T, m *Mesh) {
		unsafeDisk(t, m, "dc=tokyo:2")
		m.Create("vm2", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		g := m.attach("t1", "vm1")
		g.write(0, 1)
		before, err := m.Nodes["t1"].Disk(ctx, "vm1")
		if err != nil {
			t.Fatal(err)
		}
		// Its replicas are there: no arbiter is needed to go on, and its program must not be disturbed.
		for _, n := range []string{"w1", "w2"} {
			m.Nodes[n].Crash()
		}
		time.Sleep(5 * time.Minute)
		g.write(1, 2)
		if d, err := m.Nodes["t1"].Disk(ctx, "vm1"); err != nil || d.Epoch != before.Epoch {
			t.Errorf("in epoch %s after %s: %v", d.Epoch, before.Epoch, err)
		}
		g.detach()
		// Safe modes wait for their arbiters, however long.
		m.Nodes["t2"].Crash()
		for range 30 {
			short, cancel := context.WithTimeout(ctx, 10*time.Second)
			if err := m.Nodes["t1"].Volume("vm2").Attach(short); err == nil {
				t.Fatal("a disk of quorum mode majority was attached without a majority")
			} else if errors.Is(err, ukai.ErrRejected) {
				t.Fatal(err)
			}
			cancel()
			time.Sleep(10 * time.Second)
		}
	})
}

func TestOfSeveralNodesOnOneSideThatWantAnUnsafeDiskOneForcesIt(t *testing.T) {
	for name, want := range map[string]struct{ first, second bool }{"both want it": {true, true}, "the one that does not force it wants it": {second: true}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				unsafeDisk(t, m, "dc=tokyo:2 dc=osaka:1")
				ctx := context.Background()
				m.unused(m.Nodes["t1"], "vm1")
				m.Nodes["o1"].Crash()
				m.Nodes["w1"].Crash()
				sides := []*Node{m.Nodes["t1"], m.Nodes["t2"]} // the first by id forces it
				slices.SortFunc(sides, func(a, b *Node) int { x, y := a.ID(), b.ID(); return slices.Compare(x[:], y[:]) })
				var all sync.WaitGroup
				for i, wants := range []bool{want.first, want.second} {
					if !wants {
						continue
					}
					all.Go(func() {
						m.Await(sides[i].Name+" reads the disk", func() error {
							short, cancel := context.WithTimeout(ctx, 10*time.Second)
							defer cancel()
							_, err := sides[i].Volume("vm1").ReadAt(short, make([]byte, 512), 0)
							return err
						})
					})
				}
				all.Wait()
				time.Sleep(time.Minute)
				for _, n := range sides {
					d, err := n.Disk(ctx, "vm1")
					if err != nil {
						t.Fatal(err)
					}
					if d.State == admin.DiskConflict || len(d.Histories) > 0 || !strings.HasPrefix(d.Epoch, "1.") {
						t.Errorf("on %s it is %s in epoch %s, with histories %v", n.Name, d.State, d.Epoch, d.Histories)
					}
				}
			})
		})
	}
}

func TestWhenBothSidesOfACutGoOnBothHistoriesAreKept(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		unsafeDisk(t, m, "any:2")
		ctx := context.Background()
		m.unused(m.Nodes["t1"], "vm1")
		m.Cut("tokyo", "osaka")
		cut := time.Now()
		for i, name := range []string{"t1", "o1"} {
			g := m.awaitAttach(name, "vm1")
			if waited := time.Since(cut); waited < 30*time.Second {
				t.Errorf("%s went on after %v", name, waited)
			}
			g.write(0, byte(1+i))
			if got := g.reads(0); got != byte(1+i) {
				t.Errorf("%s reads %d", name, got)
			}
			g.detach()
		}
		m.Heal("tokyo", "osaka")
		m.AwaitWhole()
		for _, name := range []string{"t1", "o1"} {
			m.Await("the conflict is shown on "+name, func() error {
				d, err := m.Nodes[name].Disk(ctx, "vm1")
				if err == nil && d.State != admin.DiskConflict {
					err = fmt.Errorf("it is %s", d.State)
				}
				return err
			})
		}
		time.Sleep(10 * time.Minute)
		for _, name := range []string{"t1", "o1"} {
			if kept := m.Nodes[name].Store.Replicas(); len(kept) != 1 {
				t.Errorf("%d replicas on %s", len(kept), name)
			}
			if _, err := m.Nodes[name].OpenDisk("vm1"); !errors.Is(err, ukai.ErrRejected) {
				t.Errorf("opened on %s: %v", name, err)
			}
		}
	})
}

// reads returns the first byte of a block of 4 KiB.
func (g *guest) reads(block int) byte {
	g.m.T.Helper()
	p := make([]byte, 4096)
	if _, err := g.n.Volume(g.disk).ReadAt(context.Background(), p, int64(block)*4096); err != nil {
		g.m.T.Fatal(err)
	}
	return p[0]
}

// The holder of a disk loses the other replica together with the arbiters: nothing can be dropped, and its guest waits. See ARCHITECTURE.md, "Quorum modes",
// for why what waits does not simply go on in the new lineage.
func TestAGuestWhoseIOWaitsWhenItsDiskIsForcedGetsErrorsOnceAndLosesNothing(t *testing.T) {
	for _, ack := range []string{"all", "local"} {
		t.Run(ack, func(t *testing.T) {
			bubble(t, "t1:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				ctx := context.Background()
				unsafeDisk(t, m, "dc=tokyo:1 dc=osaka:1")
				if _, err := m.Nodes["t1"].SetDisk(ctx, "vm1", admin.SetDisk{Ack: ack}); err != nil {
					t.Fatal(err)
				}
				g := m.attach("t1", "vm1")
				d := m.Nodes["t1"].Volume("vm1")
				for block := range 8 {
					g.write(block, byte(1+block))
				}
				g.flush()
				began := time.Now()
				m.Nodes["o1"].Crash()
				m.Nodes["w1"].Crash()
				// Writes of a guest that goes on until one is not acknowledged, an overlapping one, and a flush: all of them wait.
				acked := 0
				type ended struct {
					what string
					err  error
					took time.Duration
				}
				waiting, waits := make(chan ended, 4), 0
				issue := func(what string, op func() error) {
					waits++
					go func() {
						err := op()
						waiting <- ended{what, err, time.Since(began)}
					}()
				}
				write := func(value byte) func() error {
					return func() error { _, err := d.WriteAt(ctx, filled(value), 0); return err }
				}
				for {
					done := make(chan error, 1)
					go func() { done <- write(byte(20 + acked))() }()
					select {
					case err := <-done:
						if err != nil {
							t.Fatalf("after %v: %v", time.Since(began), err)
						}
						acked++
						continue
					case <-time.After(5 * time.Second):
					}
					issue("the first write that waits", func() error { return <-done })
					break
				}
				issue("a write that overlaps it", write(99))
				issue("another write", func() error { _, err := d.WriteAt(ctx, filled(50), 9*4096); return err })
				if acked > 0 { // else there is nothing that a flush promises
					issue("a flush", func() error { return d.Flush(ctx) })
				}
				for range waits {
					e := <-waiting
					if !errors.Is(e.err, ukai.ErrFenced) {
						t.Errorf("%s: %v", e.what, e.err)
					}
					if e.took < 30*time.Second || e.took > 2*time.Minute {
						t.Errorf("%s ended %v after the loss", e.what, e.took)
					}
				}
				// Until the program opens the disk anew it is told so, and nothing hangs.
				if err := g.try(0, 77); !errors.Is(err, ukai.ErrFenced) {
					t.Errorf("a write after that: %v", err)
				}
				if err := d.Detach(ctx); err != nil && !errors.Is(err, ukai.ErrFenced) {
					t.Errorf("detach: %v", err)
				}
				start := time.Now()
				g = m.awaitAttach("t1", "vm1")
				if took := time.Since(start); took > 30*time.Second {
					t.Errorf("opened anew after %v", took)
				}
				shown, err := m.Nodes["t1"].Disk(ctx, "vm1")
				if err != nil || !strings.HasPrefix(shown.Epoch, "1.") || len(shown.Histories) > 0 {
					t.Errorf("epoch %s, histories %v, %v", shown.Epoch, shown.Histories, err)
				}
				if early := ack == "local"; early != (acked > 0) {
					t.Errorf("%d writes were acknowledged after the loss", acked)
				}
				// Acknowledged is there; what was not is there or not, for good.
				last := byte(1)
				if acked > 0 {
					last = byte(20 + acked - 1)
				}
				first := g.reads(0)
				if first != last && first != byte(20+acked) && first != 99 {
					t.Errorf("the last write that was acknowledged is %d, and it reads %d", last, first)
				}
				other := g.reads(9)
				if other != 0 && other != 50 {
					t.Errorf("it reads %d where only 50 was written", other)
				}
				for block := 1; block < 8; block++ {
					if got := g.reads(block); got != byte(1+block) {
						t.Errorf("block %d reads %d", block, got)
					}
				}
				g.write(10, 10)
				g.flush()
				m.Nodes["o1"].Boot()
				m.Nodes["w1"].Boot()
				m.AwaitWhole()
				m.awaitLocations(m.Nodes["t1"], "vm1", "o1 in sync", "t1 in sync")
				if a, b := g.reads(0), g.reads(9); a != first || b != other {
					t.Errorf("it read %d and %d, and reads %d and %d now", first, other, a, b)
				}
				g.detach()
				m.wantEqualReplicas("vm1", 16)
			})
		})
	}
}
