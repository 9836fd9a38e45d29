package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
	"ukai/node/volume"
)

// splitDisk makes a disk that t1 and o1 wrote 1 and 2 to, each in a history of its own. busy: both have it attached still, as what is returned.
func splitDisk(t *testing.T, m *Mesh, busy bool) map[string]*volume.Disk {
	t.Helper()
	used := map[string]*volume.Disk{}
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
		used[name] = m.Nodes[name].Volume("vm1")
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
	return used
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

// readPast returns the first byte of a block of 4 KiB of a history that vm1 does not go on with.
func (m *Mesh) readPast(at, name string, block int) (byte, error) {
	past, err := m.Nodes[at].OpenPast(context.Background(), name)
	if err != nil {
		return 0, err
	}
	p := make([]byte, 4096)
	_, err = past.ReadAt(context.Background(), p, int64(block)*4096)
	return p[0], err
}

// pastsOf returns the names under which a node shows histories of vm1 in its directory, by the node that they are in sync on.
func (m *Mesh) pastsOf(at string) map[string]string {
	m.T.Helper()
	d, err := m.Nodes[at].Disk(context.Background(), "vm1")
	if err != nil {
		m.T.Fatal(err)
	}
	shown := map[string]bool{}
	for _, i := range m.Nodes[at].LiveDisks() {
		shown[i.Name] = true
		if want := i.Name != "vm1"; i.ReadOnly != want {
			m.T.Errorf("%s: it can only be read: %v", i.Name, i.ReadOnly)
		}
	}
	names := map[string]string{}
	for _, h := range d.Histories {
		if h.Name != "" {
			for _, on := range h.Nodes {
				names[on.Name] = h.Name
			}
			if !shown[h.Name] {
				m.T.Errorf("%s is not among %v", h.Name, shown)
			}
			for _, r := range h.Replicas {
				if r.Role == admin.InSync && r.NodeState == admin.NodeAlive && r.AllocatedBytes <= 0 {
					m.T.Errorf("%s on %v takes %d bytes", h.Name, r.Node, r.AllocatedBytes)
				}
			}
		}
	}
	return names
}

// What nobody moves must be told of before a node is turned off or retired: the replicas of histories, which may be their only ones.
func TestANodeWithTheOnlyReplicaOfAHistoryIsNotSafeToTurnOff(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		splitDisk(t, m, false)
		ctx, t1 := context.Background(), m.Nodes["t1"]
		has := func(list []admin.Warning, words ...string) bool {
			return slices.ContainsFunc(list, func(w admin.Warning) bool {
				return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(w.Text+w.Remedy, word) })
			})
		}
		left, err := t1.Evacuate(ctx, admin.Evacuate{Nodes: "o1", DryRun: true})
		if err != nil || left.Safe || left.Replicas != 1 || !has(left.Problems, "2 histories", "disk pick vm1") {
			t.Errorf("none was picked: %v: %+v", err, left)
		}
		if _, err := t1.Evacuate(ctx, admin.Evacuate{Nodes: "o1"}); !errors.Is(err, ukai.ErrUnmet) {
			t.Errorf("none was picked, and it is evacuated: %v", err)
		}
		picked := m.pick("t1", m.pastsOf("t1")["t1"])
		aside := picked.Histories[1].ID
		m.awaitLocations(t1, "vm1", "o1 in sync", "t1 in sync")
		if left, err = t1.Evacuate(ctx, admin.Evacuate{Nodes: "o1", DryRun: true}); err != nil || !has(left.Warnings, "history "+aside, "disk discard vm1 "+aside) {
			t.Errorf("one was set aside: %v: %+v", err, left)
		}
		if left, err = t1.Evacuate(ctx, admin.Evacuate{Nodes: "t1", DryRun: true}); err != nil || has(left.Warnings, "history") {
			t.Errorf("where none was set aside: %v: %+v", err, left)
		}
		m.Nodes["o1"].Crash()
		m.Await("o1 can be retired", func() error {
			out, err := t1.RetireNode(ctx, "o1", admin.RetireNode{DryRun: true})
			if err == nil && !has(out.Warnings, "history "+aside, "last copy") {
				t.Errorf("it does not warn of what is lost: %+v", out.Warnings)
			}
			return err
		})
	})
}

func TestEachHistoryThatADiskDoesNotGoOnWithCanBeRead(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		splitDisk(t, m, false)
		read := func(at, name string, want byte) {
			t.Helper()
			if got, err := m.readPast(at, name, 0); err != nil || got != want {
				t.Errorf("%s of %s: %d, want %d: %v", name, at, got, want, err)
			}
		}
		// To decide, both can be looked at.
		for _, at := range []string{"t1", "o1"} {
			names := m.pastsOf(at)
			if len(names) != 2 {
				t.Fatalf("%s shows %v", at, names)
			}
			read(at, names["t1"], 1)
			read(at, names["o1"], 2)
		}
		m.pick("o1", m.pastsOf("o1")["t1"])
		aside := m.pastsOf("t1")["o1"]
		if aside == "" || len(m.pastsOf("o1")) != 1 {
			t.Fatalf("set aside are %v", m.pastsOf("o1"))
		}
		// The disk is used meanwhile, and gets a second replica on the node where the other history has its only one.
		g := m.awaitAttach("t1", "vm1")
		before := m.Nodes["o1"].Store.Replicas()
		for i := range byte(20) {
			g.write(0, 10+i)
			for _, at := range []string{"t1", "o1"} {
				read(at, aside, 2)
			}
		}
		m.awaitLocations(m.Nodes["t1"], "vm1", "o1 in sync", "t1 in sync")
		read("t1", aside, 2)
		read("o1", aside, 2)
		g.flush()
		if got := g.reads(0); got != 29 {
			t.Errorf("the disk reads %d", got)
		}
		for _, was := range before {
			for _, is := range m.Nodes["o1"].Store.Replicas() {
				if is.Replica == was.Replica && is.Header.Fence != was.Header.Fence {
					t.Errorf("reading raised the fence of %v from %v to %v", is.Replica, was.Header.Fence, is.Header.Fence)
				}
			}
		}
		// No other way leads to it.
		if _, err := m.Nodes["t1"].OpenDisk(aside); !errors.Is(err, ukai.ErrPermission) {
			t.Errorf("opened for writing: %v", err)
		}
		if _, err := m.Nodes["t1"].RemoveDisk(context.Background(), aside, admin.RemoveDisk{}); !errors.Is(err, ukai.ErrPermission) {
			t.Errorf("removed as a disk: %v", err)
		}
		g.detach()
		// Who has it open when it is picked in turn does not read what is written from then on.
		past, err := m.Nodes["t1"].OpenPast(context.Background(), aside)
		if err != nil {
			t.Fatal(err)
		}
		m.pick("t1", aside)
		g = m.awaitAttach("o1", "vm1")
		g.write(0, 3)
		if _, err := past.ReadAt(context.Background(), make([]byte, 512), 0); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("read after it was picked: %v", err)
		}
		g.detach()
		read("o1", m.pastsOf("o1")["t1"], 29)
		// Equal replicas stand in for each other.
		name := m.pastsOf("o1")["t1"]
		m.Nodes["t1"].Crash()
		read("o1", name, 29)
	})
}

func TestAHolderDoesNotNoticeThatAnotherHistoryIsLookedAt(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		used := splitDisk(t, m, true)
		for range 3 {
			time.Sleep(10 * time.Second) // in which each looks for the replica of the other
			for _, at := range []string{"t1", "o1"} {
				for _, name := range m.pastsOf(at) {
					if _, err := m.readPast(at, name, 0); err != nil {
						t.Errorf("%s on %s: %v", name, at, err)
					}
				}
			}
		}
		for name, d := range used {
			if _, err := d.WriteAt(context.Background(), filled(7), 0); err != nil {
				t.Errorf("the holder on %s: %v", name, err)
			}
		}
	})
}

// Where one side of a cut has the majority and goes on, and a survivor on the other forces the disk, the two histories are one and its parent.
func TestAHistoryThatWentOnWithoutBeingForcedIsNotCopiedOver(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		splitDisk(t, m, false)
		time.Sleep(time.Minute)
		names := m.pastsOf("t2")
		for on, want := range map[string]byte{"t1": 1, "o1": 2} {
			if got, err := m.readPast("t2", names[on], 0); err != nil || got != want {
				t.Errorf("the history on %s has %d, want %d: %v", on, got, want, err)
			}
		}
		m.pick("t2", "t1")
		g := m.awaitAttach("t2", "vm1")
		if got := g.reads(0); got != 1 {
			t.Errorf("it reads %d", got)
		}
		g.write(0, 5)
		g.flush()
		g.detach()
		m.pick("t2", "o1")
		g = m.awaitAttach("t2", "vm1")
		if got := g.reads(0); got != 2 {
			t.Errorf("the other one reads %d", got)
		}
		g.detach()
		m.pick("t2", "t1")
		g = m.awaitAttach("t1", "vm1")
		if got := g.reads(0); got != 5 {
			t.Errorf("picked again it reads %d", got)
		}
		g.detach()
	})
}
