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
)

func TestADiskThatIsLostIsRemovedByForceAndWhatComesBackIsKept(t *testing.T) {
	for _, fate := range []string{"restored", "deleted"} {
		t.Run(fate, func(t *testing.T) {
			bubble(t, "t1:tokyo o1:osaka o2:osaka", func(t *testing.T, m *Mesh) {
				m.Create("vm1", 4<<20, "dc=osaka:2")
				ctx := context.Background()
				t1, o1, o2 := m.Nodes["t1"], m.Nodes["o1"], m.Nodes["o2"]
				force := admin.RemoveDisk{Force: true}
				if _, err := t1.RemoveDisk(ctx, "vm1", force); !errors.Is(err, ukai.ErrRejected) || !strings.Contains(err.Error(), "ukai-node disk rm vm1") {
					t.Fatalf("a disk that the ordinary rm removes: %v", err)
				}
				want := pattern(1, 1<<20)
				if err := o1.Volume("vm1").Attach(ctx); err != nil {
					t.Fatal(err)
				}
				if _, err := o1.Volume("vm1").WriteAt(ctx, want, 0); err != nil {
					t.Fatal(err)
				}
				if err := o1.Volume("vm1").Flush(ctx); err != nil {
					t.Fatal(err)
				}
				if _, err := t1.RemoveDisk(ctx, "vm1", force); !errors.Is(err, ukai.ErrHeld) {
					t.Fatalf("a disk that is in use: %v", err)
				}
				o1.Crash()
				o2.Crash()
				var gone admin.Disk
				m.Await("it is removed", func() (err error) { gone, err = t1.RemoveDisk(ctx, "vm1", force); return err })
				if gone.Removed == nil || !gone.Removed.Until.IsZero() {
					t.Errorf("what comes back of it would be deleted at %v", gone.Removed)
				}
				m.Create("vm1", 4<<20, "dc=tokyo:1")
				found, err := t1.Doctor(ctx)
				if err != nil || slices.ContainsFunc(found, func(w admin.Warning) bool { return w.Disk != "" && w.Level != admin.Notice }) {
					t.Errorf("doctor speaks of it: %v, %v", found, err)
				}

				o1.Boot()
				o2.Boot()
				m.AwaitWhole()
				m.Await("doctor tells of the orphan", func() error {
					found, err := o1.Doctor(ctx)
					if err == nil && !slices.ContainsFunc(found, func(w admin.Warning) bool {
						return w.Code == "replica-orphan" && strings.Contains(w.Text, "vm1, was removed by force") && strings.Contains(w.Remedy, gone.ID.String())
					}) {
						err = fmt.Errorf("found %v", found)
					}
					return err
				})
				time.Sleep(2 * time.Minute)
				for _, n := range []*Node{o1, o2} {
					if kept := n.Store.Replicas(); len(kept) != 1 {
						t.Fatalf("%d replicas are left on %s", len(kept), n.Name)
					}
				}
				if fate == "restored" {
					if _, err := t1.RestoreDisk(ctx, gone.ID.String(), admin.RestoreDisk{Name: "back"}); err != nil {
						t.Fatal(err)
					}
					got := make([]byte, len(want))
					if _, err := t1.Volume("back").ReadAt(ctx, got, 0); err != nil || !slices.Equal(got, want) {
						t.Errorf("its data: %v", err)
					}
					return
				}
				zero := int64(0)
				if _, err := o1.RemoveDisk(ctx, gone.ID.String(), admin.RemoveDisk{GraceSeconds: &zero}); err != nil {
					t.Fatal(err)
				}
				m.Await("the space is free", func() error {
					if left := len(o1.Store.Replicas()) + len(o2.Store.Replicas()); left > 0 {
						return fmt.Errorf("%d replicas are left", left)
					}
					return nil
				})
			})
		})
	}
}

func TestADiskWithACopyInSyncIsForcedOnAndNotRemovedByForce(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		m.Nodes["t2"].Crash()
		m.Nodes["w1"].Crash()
		time.Sleep(time.Minute)
		_, err := m.Nodes["t1"].RemoveDisk(context.Background(), "vm1", admin.RemoveDisk{Force: true})
		if !errors.Is(err, ukai.ErrRejected) || !strings.Contains(err.Error(), "t1 has a copy in sync") || !strings.Contains(err.Error(), "disk force vm1 --gone t2,w1") {
			t.Fatalf("the last copy was given up, or what to do is not told: %v", err)
		}
	})
}
