package sim

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
)

func TestHandoverMovesADiskThatNobodyHasOpenAndRefusesOtherwise(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka")
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		if _, err := t1.Volume("vm1").WriteAt(ctx, pattern(1, 4096), 0); err != nil { // held for the time being
			t.Fatal(err)
		}
		o1 := m.Nodes["o1"]
		d, err := o1.Handover(ctx, "vm1", admin.Handover{To: "o1"})
		if err != nil || d.Holder == nil || d.Holder.Name != "o1" {
			t.Fatalf("handed over to %v: %v", d.Holder, err)
		}
		if err := t1.Volume("vm1").Attach(ctx); err != nil {
			t.Fatalf("o1 does not let go of what nobody there uses: %v", err)
		}
		_, err = o1.Handover(ctx, "vm1", admin.Handover{To: "o1"})
		if !errors.Is(err, ukai.ErrHeld) || !strings.Contains(err.Error(), "attached on node t1") || !strings.Contains(err.Error(), "--force") {
			t.Fatalf("a disk that is in use was handed over, or the text does not say what to do: %v", err)
		}
		if d, err = o1.Handover(ctx, "vm1", admin.Handover{To: "o1", Force: true}); err != nil || d.Holder == nil || d.Holder.Name != "o1" {
			t.Fatalf("forced: handed over to %v: %v", d.Holder, err)
		}
		if _, err := t1.Volume("vm1").WriteAt(ctx, pattern(2, 4096), 0); err == nil {
			t.Error("the deposed host writes on")
		}
		if _, err := t1.Handover(ctx, "vm1", admin.Handover{To: "o9"}); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("to a node that does not exist: %v", err)
		}
	})
}

func TestTakeoverDeposesASilentHostAndLeavesOneThatAnswersAlone(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:1 dc=osaka:1")
		ctx := context.Background()
		t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
		if err := o1.Volume("vm1").Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := t1.Takeover(ctx, "vm1", admin.Takeover{}); !errors.Is(err, ukai.ErrHeld) || !strings.Contains(err.Error(), "--fenced") {
			t.Fatalf("a disk was taken from a host that answers and uses it: %v", err)
		}
		d, err := t1.Takeover(ctx, "vm1", admin.Takeover{Fenced: true})
		if err != nil || d.State != admin.DiskIdle {
			t.Fatalf("fenced: %s: %v", d.State, err)
		}
		if _, err := o1.Volume("vm1").WriteAt(ctx, pattern(2, 4096), 0); err == nil {
			t.Error("the deposed host writes on")
		}
		if err := o1.Volume("vm1").Detach(ctx); err != nil {
			t.Fatal(err)
		}
		if err := o1.Volume("vm1").Attach(ctx); err != nil {
			t.Fatal(err)
		}
		o1.Crash() // nobody holds it for dead yet
		if d, err = t1.Takeover(ctx, "vm1", admin.Takeover{}); err != nil || d.State != admin.DiskIdle {
			t.Fatalf("of a silent host: %s: %v", d.State, err)
		}
		if d, err = t1.Takeover(ctx, "vm1", admin.Takeover{}); err != nil || d.State != admin.DiskIdle {
			t.Fatalf("of a disk that is free: %s: %v", d.State, err)
		}
	})
}

func TestADiskThatIsOpenHereIsNeitherRemovedNorLeft(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		if err := t1.Volume("vm1").Attach(ctx); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := t1.RemoveDisk(ctx, "vm1", admin.RemoveDisk{}); !errors.Is(err, ukai.ErrHeld) {
			t.Errorf("removed: %v", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the refusal took %v", took)
		}
		if _, err := t1.Leave(ctx, admin.Leave{}); !errors.Is(err, ukai.ErrRejected) || !strings.Contains(err.Error(), "disk vm1 is attached here") {
			t.Errorf("left: %v", err)
		}
		if err := t1.Volume("vm1").Detach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := t1.Volume("vm1").WriteAt(ctx, pattern(1, 4096), 0); err != nil { // held for nobody
			t.Fatal(err)
		}
		if _, err := t1.Leave(ctx, admin.Leave{}); err != nil {
			t.Errorf("does not leave although nobody uses a disk: %v", err)
		}
	})
}

func codes(list []admin.Warning) (all []string) {
	for _, w := range list {
		all = append(all, w.Code)
	}
	return all
}

func TestDoctorFindsANodeThatOnlyOthersReach(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka f1:fukuoka", func(t *testing.T, m *Mesh) {
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		found, err := t1.Doctor(ctx)
		if err != nil || len(found) > 0 {
			t.Fatalf("a mesh that is well: %v, %v", found, err)
		}
		m.Cut("tokyo", "osaka") // fukuoka still reaches both, so membership holds both for alive
		m.Cut("osaka", "tokyo")
		time.Sleep(time.Minute)
		if found, err = t1.Doctor(ctx); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(found, func(w admin.Warning) bool { return w.Code == "node-unreachable" })
		if i < 0 || found[i].Node != "o1" || !strings.Contains(found[i].Remedy, "let UDP port 7946 pass") {
			t.Errorf("found %v", found)
		}
	})
}

func TestDoctorFindsDisksAndMeshesThatDoNotSurviveMuch(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:1")
		found, err := m.Nodes["t1"].Doctor(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, code := range []string{"no-witness", "disk-single"} {
			i := slices.Index(codes(found), code)
			if i < 0 || found[i].Remedy == "" {
				t.Errorf("%s was not found, or without a remedy: %v", code, found)
			}
		}
	})
}

func TestANodeThatReachesNoSeedSaysSo(t *testing.T) {
	bubble(t, "t1:tokyo", func(t *testing.T, m *Mesh) {
		m.Cut("tokyo", "osaka")
		m.Cut("osaka", "tokyo")
		o1 := m.Add("o1", "osaka", false)
		time.Sleep(10 * time.Second)
		s, err := o1.Status(context.Background())
		if err != nil || !slices.Contains(codes(s.Warnings), "alone") || s.Health != admin.Warn {
			t.Errorf("health %s, warnings %v: %v", s.Health, s.Warnings, err)
		}
		m.Heal("tokyo", "osaka")
		m.Heal("osaka", "tokyo")
		m.AwaitWhole()
		if s, err = o1.Status(context.Background()); err != nil || slices.Contains(codes(s.Warnings), "alone") {
			t.Errorf("in the mesh, and still: %v: %v", s.Warnings, err)
		}
	})
}
