package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"ukai"
	"ukai/node/store"
)

// A node that creates a disk or adds a replica may die when the replica is there and no record names it.
func TestReplicasWhoseMakerDiedAreRemovedAndThoseThatARecordNamesAreNot(t *testing.T) {
	long(t)
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2") // never attached: its replicas are as new
		ctx := context.Background()
		d, err := m.Nodes["t1"].Disk(ctx, "vm1")
		if err != nil {
			t.Fatal(err)
		}
		t2 := m.Nodes["t2"]
		for _, disk := range []ukai.DiskID{d.ID, ukai.NewDiskID()} {
			if err := t2.Store.Create(ctx, disk, ukai.NewReplicaID(), store.ReplicaConfig{Size: 4 << 20, BlockSize: 1 << 20}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Minute)
		if left := t2.Store.Replicas(); len(left) != 3 {
			t.Fatalf("%d replicas after 50 minutes", len(left))
		}
		// While a node is away it is not known whether it knows of a disk.
		m.Nodes["w1"].Crash()
		time.Sleep(3 * time.Hour)
		if left := t2.Store.Replicas(); len(left) != 2 {
			t.Fatalf("%d replicas while a node is away", len(left))
		}
		m.Nodes["w1"].Boot()
		for range 48 {
			if time.Sleep(time.Hour); len(t2.Store.Replicas()) == 1 {
				break
			}
		}
		left := t2.Store.Replicas()
		if len(left) != 1 || left[0].Disk != d.ID {
			t.Fatalf("%d replicas in the end", len(left))
		}
		g := m.attach("t1", "vm1")
		g.write(0, 1)
		if got, err := locations(t2, "vm1"); err != nil || fmt.Sprint(got) != "[t1 in sync t2 in sync]" {
			t.Errorf("it is on %v: %v", got, err)
		}
		g.detach()
	})
}
