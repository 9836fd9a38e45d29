package sim

import (
	"context"
	"errors"
	"fmt"
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
