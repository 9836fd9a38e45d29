package sim

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
)

// splitDisk makes a disk that t1 and o1 wrote 1 and 2 to, each in a history of its own. busy: both have it attached still.
func splitDisk(t *testing.T, m *Mesh, busy bool) {
	t.Helper()
	unsafeDisk(t, m, "any:2")
	m.unused(m.Nodes["t1"], "vm1")
	m.Cut("tokyo", "osaka")
	for i, name := range []string{"t1", "o1"} {
		g := m.awaitAttach(name, "vm1")
		for range 3 * i { // the epoch of o1 is the higher one
			g.detach()
			g = m.awaitAttach(name, "vm1")
		}
		g.write(0, byte(1+i))
		g.flush()
		if !busy {
			g.detach()
		}
	}
	m.Heal("tokyo", "osaka")
	m.AwaitWhole()
	for _, name := range []string{"t1", "o1"} {
		m.Await(name+" shows both histories", func() error {
			d, err := m.Nodes[name].Disk(context.Background(), "vm1")
			if err == nil && (d.State != admin.DiskConflict || len(d.Histories) != 2) {
				err = fmt.Errorf("it is %s, with %d", d.State, len(d.Histories))
			}
			return err
		})
	}
}

// pick picks a history of vm1, and waits until all nodes know.
func (m *Mesh) pick(at, history string) admin.Disk {
	m.T.Helper()
	picked, err := m.Nodes[at].PickDisk(context.Background(), "vm1", admin.PickDisk{History: history})
	if err != nil {
		m.T.Fatal(err)
	}
	if len(picked.Histories) != 2 || !picked.Histories[0].Picked || picked.Histories[1].Picked {
		m.T.Fatalf("histories %+v", picked.Histories)
	}
	m.awaitPicked(picked.Histories[0].ID)
	return picked
}

func (m *Mesh) awaitPicked(id string) {
	m.T.Helper()
	for _, n := range m.Order {
		m.Await(n.Name+" knows what was picked", func() error {
			d, err := n.Disk(context.Background(), "vm1")
			if err == nil && (len(d.Histories) != 2 || !d.Histories[0].Picked || d.Histories[0].ID != id) {
				err = fmt.Errorf("%+v", d.Histories)
			}
			return err
		})
	}
}

// wantOnEach says what each node reads of block 0 of vm1.
func (m *Mesh) wantOnEach(want byte) {
	m.T.Helper()
	for _, n := range m.Order {
		g := m.awaitAttach(n.Name, "vm1")
		if got := g.reads(0); got != want {
			m.T.Errorf("%s reads %d, want %d", n.Name, got, want)
		}
		g.detach()
	}
}

func TestTheHistoryThatIsPickedGoesOnAndTheOtherIsKept(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		splitDisk(t, m, false)
		ctx := context.Background()
		if _, err := m.Nodes["t1"].PickDisk(ctx, "vm1", admin.PickDisk{History: "t9"}); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("a history that does not exist: %v", err)
		}
		first := m.pick("o1", "t1")
		m.wantOnEach(1)
		before, err := m.Nodes["t1"].Disk(ctx, "vm1")
		if err != nil {
			t.Fatal(err)
		}
		m.pick("o1", "t1")
		if d, err := m.Nodes["t1"].Disk(ctx, "vm1"); err != nil || d.Epoch != before.Epoch {
			t.Errorf("picked again it changed: %s after %s, %v", d.Epoch, before.Epoch, err)
		}
		g := m.awaitAttach("o1", "vm1")
		g.write(0, 3)
		g.flush()
		// The picked history gets its second replica, beside the one of the other history.
		m.awaitLocations(m.Nodes["t1"], "vm1", "o1 in sync", "t1 in sync")
		g.detach()
		for _, n := range m.Order {
			n.Crash()
		}
		for _, n := range m.Order {
			n.Boot()
		}
		m.AwaitWhole()
		m.awaitPicked(first.Histories[0].ID)
		m.wantOnEach(3)
		time.Sleep(3 * time.Hour) // longer than what is not needed is kept for
		if kept := m.Nodes["o1"].Store.Replicas(); len(kept) != 2 {
			t.Errorf("o1 keeps %d replicas", len(kept))
		}
		m.pick("t1", first.Histories[1].ID[:8])
		m.wantOnEach(2)
		g = m.awaitAttach("t1", "vm1")
		g.write(0, 4)
		g.flush()
		g.detach()
		m.pick("o1", first.Histories[0].ID)
		m.wantOnEach(3)
	})
}

func TestWhoHoldsADiskWhenAHistoryIsPickedDoesNotGoOn(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		splitDisk(t, m, true)
		other := m.pick("t1", "t1").Histories[1].ID
		for _, n := range m.Order {
			m.Await("what "+n.Name+" wrote with is over", func() error {
				_, err := n.Volume("vm1").WriteAt(context.Background(), make([]byte, 512), 4096)
				if !errors.Is(err, ukai.ErrFenced) {
					return errors.Join(errors.New("it is not fenced"), err)
				}
				return nil
			})
			if err := n.Volume("vm1").Detach(context.Background()); err != nil {
				t.Logf("detach on %s: %v", n.Name, err)
			}
		}
		m.wantOnEach(1)
		m.pick("t1", other)
		m.wantOnEach(2)
	})
}

func TestWhenEachSideOfACutPicksItsHistoryOneGoesOnAndNoneIsLost(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		splitDisk(t, m, false)
		m.Cut("tokyo", "osaka")
		ctx := context.Background()
		var ids []string
		for i, name := range []string{"t1", "o1"} {
			d, err := m.Nodes[name].PickDisk(ctx, "vm1", admin.PickDisk{History: name})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, d.Histories[0].ID)
			g := m.awaitAttach(name, "vm1")
			g.write(0, byte(11+i))
			g.flush()
			g.detach()
			time.Sleep(time.Second)
		}
		m.Heal("tokyo", "osaka")
		m.AwaitWhole()
		m.awaitPicked(ids[1])
		m.wantOnEach(12)
		time.Sleep(3 * time.Hour)
		m.pick("o1", ids[0])
		m.wantOnEach(11)
	})
}
