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

// discard gives up a history of vm1.
func (m *Mesh) discard(at, history string) admin.Disk {
	m.T.Helper()
	d, err := m.Nodes[at].DiscardHistory(context.Background(), "vm1", admin.DiscardHistory{History: history})
	if err != nil {
		m.T.Fatal(err)
	}
	return d
}

// awaitReplicas waits until so many replicas are left on a node.
func (m *Mesh) awaitReplicas(on string, want int) time.Duration {
	m.T.Helper()
	return m.Await(fmt.Sprintf("%d replicas are left on %s", want, on), func() error {
		if got := m.Nodes[on].Store.Replicas(); len(got) != want {
			return fmt.Errorf("it has %d", len(got))
		}
		return nil
	})
}

func TestAHistoryThatIsGivenUpIsFreedAfterItsGraceTimeAndTheDiskGoesOn(t *testing.T) {
	long(t)
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		splitDisk(t, m, false)
		ctx := context.Background()
		refused := func(history string, want error) {
			t.Helper()
			if _, err := m.Nodes["t1"].DiscardHistory(ctx, "vm1", admin.DiscardHistory{History: history}); !errors.Is(err, want) {
				t.Errorf("discard %s: %v, want %v", history, err, want)
			}
		}
		refused("o1", ukai.ErrRejected) // before a pick none is given up
		first := m.pick("o1", "t1").Histories
		refused("t1", ukai.ErrRejected)
		refused("t9", ukai.ErrNotFound)
		g := m.awaitAttach("t1", "vm1")
		g.write(1, 5)
		g.flush()
		m.awaitLocations(m.Nodes["t1"], "vm1", "o1 in sync", "t1 in sync")
		// It cannot be given up by the way, as what remains of the disk.
		zero := int64(0)
		g.detach()
		m.unused(m.Nodes["t1"], "vm1")
		if _, err := m.Nodes["t1"].RemoveDisk(ctx, "vm1", admin.RemoveDisk{GraceSeconds: &zero}); !errors.Is(err, ukai.ErrRejected) {
			t.Errorf("removed for good with its histories: %v", err)
		}
		g = m.awaitAttach("t1", "vm1")
		if d := m.discard("t1", first[1].ID[:8]); len(d.Histories) != 2 || !d.Histories[1].Ended || d.Histories[1].Name != "" {
			t.Errorf("after it was discarded: %+v", d.Histories)
		}
		m.discard("t1", first[1].ID) // again
		if _, err := m.Nodes["t1"].PickDisk(ctx, "vm1", admin.PickDisk{History: first[1].ID}); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("picked though it was discarded: %v", err)
		}
		if _, err := m.readPast("t1", "vm1~conflict-"+first[1].ID[:8], 0); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("read though it was discarded: %v", err)
		}
		if kept := len(m.Nodes["o1"].Store.Replicas()); kept != 2 {
			t.Errorf("%d replicas are on o1 at once", kept)
		}
		time.Sleep(55 * time.Minute)
		if kept := len(m.Nodes["o1"].Store.Replicas()); kept != 2 {
			t.Errorf("%d replicas are on o1 after most of the grace time", kept)
		}
		time.Sleep(10 * time.Minute)
		m.awaitReplicas("o1", 1)
		if d, err := m.Nodes["o1"].Disk(ctx, "vm1"); err != nil || len(d.Histories) != 0 {
			t.Errorf("histories %+v, %v", d.Histories, err)
		}
		g.write(0, 6)
		g.flush()
		g.detach()
		m.wantOnEach(6)
		time.Sleep(3 * time.Hour)
		m.wantOnEach(6)
		// Without other histories it can be removed for good.
		m.unused(m.Nodes["t1"], "vm1")
		if _, err := m.Nodes["t1"].RemoveDisk(ctx, "vm1", admin.RemoveDisk{GraceSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		m.awaitReplicas("o1", 0)
		m.awaitReplicas("t1", 0)
	})
}

func TestAHistoryIsGivenUpOnANodeThatComesBackLater(t *testing.T) {
	long(t)
	bubble(t, "t1:tokyo t2:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		splitDisk(t, m, false)
		first := m.pick("t1", "t1").Histories
		g := m.awaitAttach("t1", "vm1")
		g.write(0, 7)
		g.detach()
		before := len(m.Nodes["o1"].Store.Replicas())
		m.Nodes["o1"].Crash()
		if d := m.discard("t1", first[1].ID); !d.Histories[1].Discarded || d.Histories[1].Ended {
			t.Errorf("its only arbiter is down, and it is %+v", d.Histories[1])
		}
		time.Sleep(5 * time.Hour)
		m.Nodes["o1"].Boot()
		m.AwaitWhole()
		if has := len(m.Nodes["o1"].Store.Replicas()); has != before {
			t.Errorf("o1 has %d of %d replicas when it is back", has, before)
		}
		m.Await("the history has ended", func() error {
			d, err := m.Nodes["t1"].Disk(context.Background(), "vm1")
			if err == nil && len(d.Histories) > 1 && !d.Histories[1].Ended {
				err = errors.New("it has not")
			}
			return err
		})
		there := func() error {
			for _, r := range m.Nodes["o1"].Store.Replicas() {
				for _, h := range first[1].Replicas {
					if r.Replica == h.ID {
						return fmt.Errorf("%v is there", r.Replica)
					}
				}
			}
			return nil
		}
		time.Sleep(50 * time.Minute)
		if there() == nil {
			t.Error("o1 frees the replica at once when it is back")
		}
		time.Sleep(15 * time.Minute)
		m.Await("o1 frees the replica", there)
		for _, name := range []string{"t1", "o1"} {
			g := m.awaitAttach(name, "vm1")
			if got := g.reads(0); got != 7 {
				t.Errorf("%s reads %d", name, got)
			}
			g.detach()
		}
	})
}

func TestAHistoryThatIsPickedOnTheOtherSideOfACutIsNotGivenUp(t *testing.T) {
	long(t)
	for _, discardLast := range []bool{false, true} {
		bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
			splitDisk(t, m, false)
			first := m.pick("t1", "t1").Histories
			m.Cut("tokyo", "osaka")
			pick := func() {
				if _, err := m.Nodes["o1"].PickDisk(context.Background(), "vm1", admin.PickDisk{History: "o1"}); err != nil {
					t.Fatal(err)
				}
				g := m.awaitAttach("o1", "vm1")
				g.write(0, 12)
				g.detach()
			}
			if discardLast {
				pick()
				time.Sleep(time.Second)
			}
			m.discard("t1", first[1].ID)
			if !discardLast {
				time.Sleep(time.Second)
				pick()
			}
			m.Heal("tokyo", "osaka")
			m.AwaitWhole()
			m.awaitPicked(first[1].ID)
			m.wantOnEach(12)
			// Nor when it is set aside once more: nobody has given up what was written since.
			m.pick("o1", first[0].ID)
			time.Sleep(3 * time.Hour)
			m.wantOnEach(1)
			m.pick("o1", first[1].ID)
			m.wantOnEach(12)
		})
	}
}

func TestAHistoryWhoseArbitersAreRetiredCanBeGivenUp(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		splitDisk(t, m, false)
		first := m.pick("t1", "t1").Histories
		m.Nodes["o1"].Crash()
		m.discard("t1", first[1].ID)
		m.awaitRetired(m.Nodes["t1"], "o1")
		for _, name := range []string{"t1", "t2"} {
			m.Await(name+" shows one history", func() error {
				d, err := m.Nodes[name].Disk(context.Background(), "vm1")
				if err == nil && len(d.Histories) > 0 {
					err = fmt.Errorf("%+v", d.Histories)
				}
				return err
			})
		}
		m.unused(m.Nodes["t1"], "vm1")
		zero := int64(0)
		if _, err := m.Nodes["t1"].RemoveDisk(context.Background(), "vm1", admin.RemoveDisk{GraceSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		m.awaitReplicas("t1", 0)
		m.awaitReplicas("t2", 0)
	})
}
