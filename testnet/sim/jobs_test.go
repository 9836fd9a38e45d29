package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
)

// serveAdmin has the nodes that run now answer each other's administrators.
func (m *Mesh) serveAdmin() {
	for _, n := range m.Order {
		s, l := admin.NewServer(admin.ServerConfig{Backend: n.Node}), n.AdminListener()
		go func() { _ = s.Serve(l) }() // ends with the node
	}
}

// job returns the job of a disk as a node tells it, also one that ended lately.
func (n *Node) job(disk string) (admin.Job, error) {
	jobs, err := n.Jobs(context.Background(), admin.JobQuery{Ended: true})
	if err != nil {
		return admin.Job{}, err
	}
	for _, j := range jobs {
		if j.Disk.Name == disk {
			return j, nil
		}
	}
	return admin.Job{}, fmt.Errorf("%s tells of no job of %s", n.Name, disk)
}

func (n *Node) order(disk, order string) {
	n.mesh.T.Helper()
	if _, err := n.OrderJob(context.Background(), disk, admin.OrderJob{Order: order}); err != nil {
		n.mesh.T.Fatal(err)
	}
	time.Sleep(3 * time.Second) // until it has reached whoever does the job
}

func TestAPausedJobStandsStillThoughItsHolderDiesAndGoesOnWhereItWas(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		const size = 16 << 20
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		m.serveAdmin()
		ctx := context.Background()
		t1, t2, w1 := m.Nodes["t1"], m.Nodes["t2"], m.Nodes["w1"]
		m.Create("vm1", size, "dc=tokyo:2")
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		want := pattern(1, size)
		if _, err := d.WriteAt(ctx, want, 0); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		m.limit("w1", "tokyo-osaka", "512KiB/s")
		m.place("w1", "vm1", "dc=tokyo:1", "dc=osaka:1")
		percent := 0
		watch := func() (admin.Job, error) {
			j, err := w1.job("vm1")
			if err == nil && j.Percent < percent {
				t.Fatalf("a job that was done to %d %% is done to %d %%: %+v", percent, j.Percent, j)
			}
			percent = max(percent, j.Percent)
			return j, err
		}
		m.Await("a third is copied", func() error {
			j, err := watch()
			if err == nil && j.Percent < 33 {
				err = fmt.Errorf("%+v", j)
			}
			return err
		})
		switch j, err := watch(); {
		case err != nil || j.Kind != "relocation" || j.State != admin.JobRunning || j.Node.Name != "t1" || j.TotalBytes < size:
			t.Fatalf("%v: %+v", err, j)
		case j.BytesPerSecond < 200<<10 || j.BytesPerSecond > 1<<20 || j.ETASeconds < 10 || j.ETASeconds > 60:
			t.Errorf("at 512 KiB/s it says %d bytes per second, %d s left", j.BytesPerSecond, j.ETASeconds)
		case !strings.Contains(j.Why, "osaka-tokyo"):
			t.Errorf("it does not say that its link is limited: %+v", j)
		}
		still := func(what string) {
			t.Helper()
			before := m.crossing("tokyo", "osaka")
			for range 30 {
				time.Sleep(time.Second)
				if j, err := watch(); err != nil || j.State != admin.JobPaused {
					t.Fatalf("%s: %v: %+v", what, err, j)
				}
			}
			if got := m.crossing("tokyo", "osaka") - before; got > 512<<10 {
				t.Errorf("%s: %d bytes were copied in 30 s", what, got)
			}
		}
		w1.order("vm1", admin.OrderPause)
		still("paused")
		t1.Crash()
		m.Await("t2 takes over", func() error { return t2.Volume("vm1").Attach(ctx) })
		still("paused, and taken over")
		before := m.crossing("tokyo", "osaka")
		w1.order("vm1", admin.OrderResume)
		m.Await("the job is done", func() error {
			j, err := watch()
			if err == nil && j.State != admin.JobDone {
				err = fmt.Errorf("%+v", j)
			}
			return err
		})
		if got := m.crossing("tokyo", "osaka") - before; got > size*3/4 {
			t.Errorf("%d bytes were copied after the pause, though a third of %d was there", got, size)
		}
		if in := inSyncOn(w1, "vm1", "osaka"); in != 1 {
			t.Errorf("%d replicas are in sync in osaka", in)
		}
		if err := t2.Volume("vm1").Detach(ctx); err != nil {
			t.Fatal(err)
		}
		t2.Crash()
		m.Await("osaka has it", func() error { return m.Nodes["o1"].Volume("vm1").Attach(ctx) })
		same(t, m.Nodes["o1"], "vm1", want)
		if err := m.Nodes["o1"].Volume("vm1").Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNothingIsBegunForADiskWhoseJobIsPaused(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		o1 := m.Nodes["o1"]
		m.filled("t1", "vm1", 2<<20)
		m.limit("o1", "tokyo-osaka", "0")
		m.place("o1", "vm1", "dc=tokyo:1", "dc=osaka:1")
		m.awaitLocations(o1, "vm1", "o1 syncing", "t1 in sync")
		o1.order("vm1", admin.OrderPause)
		m.place("o1", "vm1", "node=t1:1")
		time.Sleep(time.Minute)
		if got, err := locations(o1, "vm1"); err != nil || len(got) != 2 {
			t.Errorf("paused, it is on %v: %v", got, err)
		}
		if p, err := o1.Placement(context.Background(), "vm1"); err != nil || !strings.Contains(p.Doing, "jobs resume vm1") {
			t.Errorf("place show does not say that the job is paused: %q, %v", p.Doing, err)
		}
		o1.order("vm1", admin.OrderResume)
		m.awaitLocations(o1, "vm1", "t1 in sync")
	})
}

func TestACancelledRelocationLeavesTheDiskWhereItWas(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka")
		m.filled("t1", "vm1", 8<<20)
		m.limit("o1", "tokyo-osaka", "512KiB/s")
		m.place("o1", "vm1", "dc=osaka:1")
		m.Await("something is copied", func() error {
			j, err := m.Nodes["o1"].job("vm1")
			if err == nil && j.Percent < 20 {
				err = fmt.Errorf("%+v", j)
			}
			return err
		})
		m.Nodes["o1"].order("vm1", admin.OrderCancel)
		m.awaitLocations(m.Nodes["o1"], "vm1", "t1 in sync")
		p, err := m.Nodes["t1"].Placement(context.Background(), "vm1")
		if err != nil || p.Rule != "node=t1:1" || !p.Met {
			t.Errorf("%v: %+v", err, p)
		}
		m.Await("the job has ended", func() error {
			j, err := m.Nodes["t1"].job("vm1")
			if err == nil && !j.State.Ended() {
				err = fmt.Errorf("%+v", j)
			}
			return err
		})
		if _, err := m.Nodes["t1"].OrderJob(context.Background(), "vm1", admin.OrderJob{Order: admin.OrderPause}); !errors.Is(err, ukai.ErrNotFound) {
			t.Errorf("a job that has ended is paused: %v", err)
		}
	})
}

// What moves a disk may be no new rule: a label was changed. Then there is nothing to go back to, least of all what the disk had long before.
func TestCancellingAMoveThatNoNewRuleBeganLeavesTheRuleAsItIs(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka")
		m.filled("t1", "vm1", 4<<20)
		ctx, o1 := context.Background(), m.Nodes["o1"]
		zone := func(value, at string) {
			t.Helper()
			for _, name := range []string{"t1", "o1"} {
				change := admin.NodeChange{Unset: []string{"zone"}}
				if name == at {
					change = admin.NodeChange{Set: ukai.Labels{"zone": value}}
				}
				if _, err := o1.ChangeNode(ctx, name, change); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(3 * time.Second) // until all have heard of it
		}
		for i, rule := range []string{"zone=a:1", "zone=b:1"} { // the first is met when it is set, the second moves the disk
			from, to := "t1", "o1"
			zone(rule[5:6], from)
			m.limit("o1", "tokyo-osaka", "none")
			m.place("o1", "vm1", rule)
			m.awaitLocations(o1, "vm1", from+" in sync")
			if i > 0 {
				m.Await("the job is done", func() error {
					j, err := o1.job("vm1")
					if err == nil && j.State != admin.JobDone {
						err = fmt.Errorf("%+v", j)
					}
					return err
				})
			}
			m.limit("o1", "tokyo-osaka", "64KiB/s")
			zone(rule[5:6], to)
			m.Await("it is being moved", func() error {
				j, err := o1.job("vm1")
				if err == nil && (j.Kind != "relocation" || j.State.Ended()) {
					err = fmt.Errorf("%+v", j)
				}
				return err
			})
			if _, err := o1.OrderJob(ctx, "vm1", admin.OrderJob{Order: admin.OrderCancel}); !errors.Is(err, ukai.ErrRejected) {
				t.Errorf("%s: cancelled: %v", rule, err)
			}
			if p, err := o1.Placement(ctx, "vm1"); err != nil || p.Rule != rule {
				t.Errorf("the rule was %s and is %s, %v", rule, p.Rule, err)
			}
			m.limit("o1", "tokyo-osaka", "none")
			m.awaitLocations(o1, "vm1", to+" in sync")
		}
	})
}

func TestAnEvacuatedNodeHasNothingLeftAndCanBeTurnedOff(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo t3:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		ctx := context.Background()
		want := map[string][]byte{}
		for i, rule := range []string{"dc=tokyo:2", "dc=tokyo:1 dc=osaka:1", "dc=tokyo:2"} {
			disk := fmt.Sprintf("vm%d", i+1)
			m.Create(disk, 4<<20, rule)
			want[disk] = pattern(uint64(i), 4<<20)
			d := m.Nodes["t2"].Volume(disk)
			if _, err := d.WriteAt(ctx, want[disk], 0); err != nil {
				t.Fatal(err)
			}
		}
		// Not all of tokyo can be: no node there would be left for the rules.
		o1 := m.Nodes["o1"]
		dry, err := o1.Evacuate(ctx, admin.Evacuate{Nodes: "dc=tokyo", DryRun: true})
		if err != nil || len(dry.Problems) != 3 || len(dry.Nodes) != 3 || dry.Safe {
			t.Fatalf("%v: %+v", err, dry)
		}
		if _, err := o1.Evacuate(ctx, admin.Evacuate{Nodes: "dc=tokyo"}); !errors.Is(err, ukai.ErrUnmet) || !strings.Contains(err.Error(), "disk vm1: ") {
			t.Fatalf("evacuating all of tokyo: %v", err)
		}
		if s, err := o1.Status(ctx); err != nil || s.Nodes[2].Drain {
			t.Fatalf("a refused evacuation drains: %v", err)
		}
		before, err := o1.Evacuate(ctx, admin.Evacuate{Nodes: "t1"})
		if err != nil || before.Replicas == 0 || !before.Draining {
			t.Fatalf("%v: %+v", err, before)
		}
		o1.Crash() // whoever was asked is not needed
		o1.Boot()
		m.AwaitWhole()
		m.Await("nothing is left on t1", func() error {
			left, err := m.Nodes["w1"].Evacuate(ctx, admin.Evacuate{Nodes: "t1", DryRun: true})
			if err == nil && !left.Safe {
				err = fmt.Errorf("%+v", left)
			}
			for disk := range want {
				got, e := locations(m.Nodes["w1"], disk)
				in := 0
				for _, l := range got {
					if strings.HasSuffix(l, " in sync") {
						in++
					}
				}
				if e == nil && in < 2 {
					t.Fatalf("%s has %d replicas in sync while it moves: %v", disk, in, got)
				}
			}
			return err
		})
		m.Nodes["t1"].Crash()
		for disk, data := range want {
			if slot := arbiters(t, m.Nodes["w1"], disk); strings.Contains(fmt.Sprint(slot), "t1") {
				t.Errorf("the quorum record of %s is still kept on t1: %v", disk, slot)
			}
			same(t, m.Nodes["t2"], disk, data)
		}
	})
}
