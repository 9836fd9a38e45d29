package sim

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"ukai/node/admin"
)

const follows = 10 * time.Minute

// run has a VM use a disk on a node for a time: it writes now and then.
func (m *Mesh) run(n *Node, disk string, span time.Duration) {
	m.T.Helper()
	ctx := context.Background()
	d := n.Volume(disk)
	if err := d.Attach(ctx); err != nil {
		m.T.Fatalf("on %s: %v", n.Name, err)
	}
	for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(min(span, 5*time.Second)) {
		if _, err := d.WriteAt(ctx, pattern(1, 4096), 0); err != nil {
			m.T.Fatalf("on %s: %v", n.Name, err)
		}
	}
	if err := d.Detach(ctx); err != nil {
		m.T.Fatalf("on %s: %v", n.Name, err)
	}
}

func (m *Mesh) here(at *Node, disk string) *admin.Here {
	m.T.Helper()
	p, err := at.Placement(context.Background(), disk)
	if err != nil || p.Here == nil {
		m.T.Fatalf("here: %+v, %v", p.Here, err)
	}
	return p.Here
}

func TestADiskFollowsItsVMOnlyToWhereItStays(t *testing.T) {
	long(t)
	bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		ctx := context.Background()
		t1, o1, o2, w1 := m.Nodes["t1"], m.Nodes["o1"], m.Nodes["o2"], m.Nodes["w1"]
		m.Create("vm1", 8<<20, "dc=tokyo:2 dc=osaka:1")
		m.run(t1, "vm1", time.Second)
		rule := admin.Rule{Terms: []string{"dc=$here:2", "dc!=$here:1"}, FollowSeconds: int64(follows / time.Second)}
		m.Await("the disk is let go", func() error {
			p, err := w1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: rule})
			if err == nil && (!p.Met || len(p.Steps) > 0 || p.Here == nil || p.Here.Values["dc"] != "tokyo") {
				t.Fatalf("most of its copies are in tokyo, and the rule wants it so: %+v", p)
			}
			return err
		})

		// A VM that goes to and fro never stays for long enough.
		for range 3 {
			m.run(o1, "vm1", follows-time.Minute)
			if h := m.here(w1, "vm1"); h.Next == nil || h.Next.Values["dc"] != "osaka" || h.Values["dc"] != "tokyo" {
				t.Fatalf("after some minutes in osaka: %+v", h)
			}
			m.run(t1, "vm1", time.Minute)
			if h := m.here(w1, "vm1"); h.Next != nil || h.Values["dc"] != "tokyo" {
				t.Fatalf("back in tokyo: %+v", h)
			}
		}
		// Nor does one that is off between two short stays.
		for range 2 {
			m.run(o1, "vm1", follows-time.Minute)
			time.Sleep(5 * time.Minute)
		}
		if got, err := locations(t1, "vm1"); err != nil || strings.Count(fmt.Sprint(got), "in sync") != 3 || !strings.Contains(fmt.Sprint(got), "t1 in sync t2 in sync") {
			t.Fatalf("it moved: %v, %v", got, err)
		}

		// One that is moved from host to host in osaka stays there.
		m.run(o1, "vm1", follows/2)
		d := o2.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for m.here(w1, "vm1").Values["dc"] != "osaka" && time.Since(began) < follows {
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took < follows/2-time.Minute || took > follows/2+time.Minute {
			t.Errorf("it followed %v after the VM had come from the other host in osaka, must be about %v", took, follows/2)
		}
		met := func() error {
			p, err := w1.Placement(ctx, "vm1")
			if err == nil && (!p.Met || len(p.Steps) > 0) {
				err = fmt.Errorf("differs: %v", p.Differences)
			}
			return err
		}
		m.Await("the data have followed", met)
		got, err := locations(w1, "vm1")
		if all := fmt.Sprint(got); err != nil || !strings.Contains(all, "o1 in sync o2 in sync") || len(got) != 3 {
			t.Fatalf("%v, %v", got, err)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}

		// What $here is outlives every node.
		for _, n := range m.Order {
			n.Crash()
		}
		for _, n := range m.Order {
			n.Boot()
		}
		m.Await("the mesh is back", met)
		if h := m.here(t1, "vm1"); h.Values["dc"] != "osaka" || h.Node == nil || h.Node.Name != "o2" || h.Next != nil {
			t.Errorf("after a restart of all nodes: %+v", h)
		}
	})
}

func TestANewDiskIsWhereItIsCreatedAndBadRulesAreRefused(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		ctx := context.Background()
		t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
		rule := admin.Rule{Terms: []string{"dc=$here:1"}, FollowSeconds: 60}
		for _, n := range []*Node{t1, o1} {
			made, err := n.CreateDisk(ctx, admin.NewDisk{Name: "vm-" + n.Name, SizeBytes: 8 << 20, Rule: &rule})
			if err != nil || made.Placement.Here == nil || made.Placement.Here.Node.Name != n.Name || made.Placement.Replicas[0].Labels["dc"] != n.DC {
				t.Fatalf("on %s: %v, %+v", n.Name, err, made.Placement)
			}
		}
		for _, bad := range []struct {
			rule admin.Rule
			want string
		}{
			{admin.Rule{Terms: []string{"dc=$here:1"}}, "say for how long, for example --follow 10m"},
			{admin.Rule{Terms: []string{"dc=tokyo:1"}, FollowSeconds: 60}, "no term does"},
			{admin.Rule{Terms: []string{"rack=$here:1"}, FollowSeconds: 60}, "no node with a copy in sync has a label rack"},
		} {
			if _, err := t1.PlaceDisk(ctx, "vm-t1", admin.PlaceDisk{Rule: bad.rule}); err == nil || !strings.Contains(err.Error(), bad.want) {
				t.Errorf("%+v: %v; want %q", bad.rule, err, bad.want)
			}
		}
		if _, err := t1.CreateDisk(ctx, admin.NewDisk{Name: "vm2", SizeBytes: 8 << 20, Rule: &admin.Rule{Terms: []string{"rack=$here:1"}, FollowSeconds: 60}}); err == nil || !strings.Contains(err.Error(), "has no label rack") {
			t.Errorf("created though this node has no rack: %v", err)
		}
	})
}
