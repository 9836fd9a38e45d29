package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
	"ukai/node/store"
	"ukai/testnet/memnet"
)

// neglected makes a disk with a replica on t2 that missed most of its content, and that nobody holds.
func neglected(t *testing.T, m *Mesh) (want []byte) {
	t.Helper()
	m.Create("vm1", 16<<20, "dc=tokyo:2")
	ctx := context.Background()
	d := m.Nodes["t1"].Volume("vm1")
	if err := d.Attach(ctx); err != nil {
		t.Fatal(err)
	}
	m.Nodes["t2"].Crash()
	want = pattern(3, 16<<20)
	for off := 0; off < len(want); off += 1 << 20 {
		if _, err := d.WriteAt(ctx, want[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	return want
}

// syncing waits until t1 brings the replica of t2 back.
func syncing(m *Mesh) {
	m.T.Helper()
	m.Await("the resync begins", func() error {
		list, err := locations(m.Nodes["t1"], "vm1")
		if err == nil && (len(list) != 2 || list[1] != "t2 syncing") {
			err = fmt.Errorf("it is on %v", list)
		}
		return err
	})
}

func TestAResyncGivesWayToAHostThatWantsTheDisk(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		want := neglected(t, m)
		ctx := context.Background()
		m.Nodes["t2"].Boot()
		m.link("tokyo", "tokyo", func(l *memnet.Link) { l.Delay = 20 * time.Millisecond })
		syncing(m)
		t2 := m.Nodes["t2"].Volume("vm1")
		start := time.Now()
		if err := t2.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("the attach took %v", took)
		}
		same(t, m.Nodes["t2"], "vm1", want)
		m.awaitLocations(m.Nodes["t2"], "vm1", "t1 in sync", "t2 in sync")
		if err := t2.Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestADiskIsRemovedWhileAReplicaOfItIsBroughtBack(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		neglected(t, m)
		ctx := context.Background()
		m.Nodes["t2"].Boot()
		m.link("tokyo", "tokyo", func(l *memnet.Link) { l.Delay = 20 * time.Millisecond })
		syncing(m)
		zero := int64(0)
		if _, err := m.Nodes["t2"].RemoveDisk(ctx, "vm1", admin.RemoveDisk{GraceSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"t1", "t2"} {
			m.Await("the space on "+name, func() error {
				if left := m.Nodes[name].Store.Replicas(); len(left) > 0 {
					return fmt.Errorf("%d replicas left", len(left))
				}
				return nil
			})
		}
	})
}

func TestAReplicaThatCannotBeBroughtBackCostsLittle(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		neglected(t, m)
		ctx := context.Background()
		m.Nodes["t2"].Boot()
		// Its file cannot be written any more.
		m.Nodes["t2"].Fault = func(op store.Op) error {
			if op.Kind == store.OpWrite {
				return errors.New("medium error")
			}
			return nil
		}
		time.Sleep(20 * time.Minute)
		info, err := m.Nodes["t1"].Disk(ctx, "vm1")
		if err != nil {
			t.Fatal(err)
		}
		if info.Version > 80 {
			t.Errorf("version %d of the record after 20 minutes", info.Version)
		}
		if info.Holder != nil {
			t.Errorf("held by %v for nothing", info.Holder)
		}
		d := m.Nodes["t1"].Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if err := d.Detach(ctx); err != nil && !errors.Is(err, ukai.ErrNotAttached) {
			t.Fatal(err)
		}
	})
}

// A node that has just started serves nothing until it has heard from another: that is not for ever.
func TestTheLastReplicaIsTakenBackThoughItsNodeHadNotHeardFromOthersWhenItWasAsked(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=osaka:1")
		g := m.attach("t1", "vm1")
		for i := range 30 {
			g.write(i, 1)
			m.Cut("tokyo", "osaka")
			m.Cut("fukuoka", "osaka")
			m.Nodes["o1"].Crash()
			m.Nodes["o1"].Boot() // it reaches nobody
			time.Sleep(5*time.Second + time.Duration(i)*130*time.Millisecond)
			m.Heal("tokyo", "osaka")
			time.Sleep(3 * time.Second)
			m.Heal("fukuoka", "osaka")
			if err := g.try(i, 2); err != nil {
				t.Fatalf("time %d: %v", i, err)
			}
		}
		g.detach()
	})
}

// placed returns the nodes with replicas of a disk and one that has none.
func (m *Mesh) placed(disk string) (with []*Node, spare *Node) {
	m.T.Helper()
	list, err := locations(m.Order[0], disk)
	if err != nil {
		m.T.Fatal(err)
	}
	for _, n := range m.Order {
		switch {
		case slices.Contains(list, n.Name+" in sync"):
			with = append(with, n)
		case !n.Witness:
			spare = n
		}
	}
	return with, spare
}

func TestAReplicaWhoseDiskFailedIsMadeAnew(t *testing.T) {
	medium := errors.New("medium error")
	for _, c := range []struct {
		name  string
		own   bool // that of the holder's node
		whole bool // nothing can be made in the store any more
	}{{name: "one replica"}, {name: "one replica, on the node of the holder", own: true}, {name: "the whole store", whole: true}} {
		t.Run(c.name, func(t *testing.T) {
			mesh := "t1:tokyo t2:tokyo w1:fukuoka:witness"
			if c.whole {
				mesh = "t1:tokyo t2:tokyo t3:tokyo w1:fukuoka:witness"
			}
			bubble(t, mesh, func(t *testing.T, m *Mesh) {
				m.Create("vm1", 4<<20, "dc=tokyo:2")
				with, spare := m.placed("vm1")
				holder, victim := with[0], with[1]
				if c.own {
					victim = holder
				}
				g := m.attach(holder.Name, "vm1")
				g.write(0, 1)
				old := victim.Store.Replicas()[0].Replica
				victim.Fault = func(op store.Op) error {
					if op.Kind == store.OpWrite && (op.Replica == old || c.whole) || op.Kind == store.OpCreate && c.whole {
						return medium
					}
					return nil
				}
				g.write(0, 2)
				m.Await("two replicas are in sync, and not the one that failed", func() error {
					d, err := holder.Disk(context.Background(), "vm1")
					if err != nil || len(d.Replicas) != 2 {
						return fmt.Errorf("%w: %+v", err, d.Replicas)
					}
					for _, r := range d.Replicas {
						if r.Role != admin.InSync || r.ID == old || c.whole && r.Node.Name == victim.Name {
							return fmt.Errorf("%+v", d.Replicas)
						}
					}
					return nil
				})
				g.write(0, 3)
				g.flush()
				m.wantReads(holder.Name, "vm1", 0, 3)
				g.detach()
				if c.whole && len(spare.Store.Replicas()) != 1 {
					t.Error("the new replica is not on the node that had none")
				}
			})
		})
	}
}

// A medium that hangs answers nothing, while its node is alive to all. Whoever makes a replica there must not wait for ever: others would get none either.
func TestAReplicaIsMadeElsewhereWhereAMediumHangs(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo t3:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "node=t1:1")
		m.Create("vm2", 4<<20, "node=t1:1")
		m.Create("vm3", 4<<20, "node=t1:1")
		var asked atomic.Int64
		over := make(chan struct{})
		m.Nodes["t2"].Fault = func(op store.Op) error {
			if op.Kind == store.OpCreate {
				asked.Add(1)
				<-over
				return errors.New("medium error")
			}
			return nil
		}
		defer close(over)
		for _, disk := range []string{"vm1", "vm2", "vm3"} {
			m.place("w1", disk, "any:2")
		}
		for _, disk := range []string{"vm1", "vm2", "vm3"} {
			m.awaitLocations(m.Nodes["w1"], disk, "t1 in sync", "t3 in sync")
		}
		if asked.Load() == 0 {
			t.Error("nothing was to be made where the medium hangs")
		}
	})
}

func TestAReplicaThatIsMissingWhenItsNodeIsBackIsMadeAnew(t *testing.T) {
	for _, attached := range []bool{true, false} {
		t.Run(fmt.Sprint("attached=", attached), func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				m.Create("vm1", 4<<20, "dc=tokyo:2")
				g := m.attach("t1", "vm1")
				g.write(0, 1)
				t2 := m.Nodes["t2"]
				t2.Crash()
				g.write(0, 2)
				if !attached {
					g.detach()
				}
				lost := t2.Store.Replicas()[0]
				if err := t2.Store.Remove(context.Background(), lost.Disk, lost.Replica); err != nil {
					t.Fatal(err)
				}
				t2.Boot()
				m.awaitLocations(m.Nodes["t1"], "vm1", "t1 in sync", "t2 in sync")
				if all := t2.Store.Replicas(); len(all) != 1 || all[0].Replica == lost.Replica {
					t.Errorf("t2 has %+v", all)
				}
				if attached {
					g.detach()
				}
				m.Nodes["t1"].Crash()
				g = m.awaitAttach("t2", "vm1")
				m.wantReads("t2", "vm1", 0, 2)
				g.detach()
			})
		})
	}
}
