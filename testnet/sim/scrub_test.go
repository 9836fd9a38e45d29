package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node"
	"ukai/node/admin"
)

// scrub asks a node for a scrub and waits for its end.
func (m *Mesh) scrub(at *Node, disk string, verifyOnly bool) admin.ScrubRun {
	m.T.Helper()
	asked, err := at.ScrubDisk(context.Background(), disk, admin.ScrubDisk{VerifyOnly: verifyOnly})
	if err != nil {
		m.T.Fatal(err)
	}
	var run admin.ScrubRun
	m.Await("the scrub of "+disk, func() error {
		d, err := at.Disk(context.Background(), disk)
		if err != nil {
			return err
		}
		if d.Scrub == nil || d.Scrub.Last == nil || d.Scrub.Last.Request != asked.Scrub.Asked {
			return fmt.Errorf("not done: %+v", d.Scrub)
		}
		run = *d.Scrub.Last
		return nil
	})
	return run
}

// rot flips a bit in the replica of a disk that is on a node.
func (m *Mesh) rot(on *Node, disk string, off int64) {
	m.T.Helper()
	d, err := on.Disk(context.Background(), disk)
	if err != nil {
		m.T.Fatal(err)
	}
	for _, r := range d.Replicas {
		if r.Node.Name == on.Name && on.Store.Rot(d.ID, r.ID, off) {
			return
		}
	}
	m.T.Fatalf("%s stores nothing of %s at %d", on.Name, disk, off)
}

// corrupt returns what a node warns of.
func (n *Node) corrupt() []admin.Level {
	n.mesh.T.Helper()
	list, err := n.Doctor(context.Background())
	if err != nil {
		n.mesh.T.Fatal(err)
	}
	var levels []admin.Level
	for _, w := range list {
		if w.Code == "corruption" {
			levels = append(levels, w.Level)
		}
	}
	return levels
}

func TestBitRotUnderALiveMeshIsFoundAndMended(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 8<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1, t2, w1 := m.Nodes["t1"], m.Nodes["t2"], m.Nodes["w1"]
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		want := pattern(1, 8<<20)
		for off := 0; off < len(want); off += 1 << 20 {
			if _, err := d.WriteAt(ctx, want[off:off+1<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(65 * time.Second) // a checkpoint, and the heartbeats that tell of it
		if run := m.scrub(w1, "vm1", false); run.Verified != 32 || run.Corrupt != 0 {
			t.Fatalf("the first scrub: %v", run)
		}
		m.rot(t2, "vm1", 3<<20)
		m.rot(t1, "vm1", 5<<20+300<<10)
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() { // a guest, in the other blocks
			defer close(stopped)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				off := []int{0, 1, 2, 4, 6, 7}[i%6]<<20 + i%200*4096
				copy(want[off:], pattern(uint64(i), 4096))
				if _, err := d.WriteAt(ctx, want[off:off+4096], int64(off)); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		if run := m.scrub(w1, "vm1", true); run.Corrupt != 2 || run.Repaired != 0 || !run.VerifyOnly {
			t.Errorf("with verify-only: %v", run)
		}
		if got := w1.corrupt(); !slices.Equal(got, []admin.Level{admin.Warn}) {
			t.Errorf("after a scrub that only looks, the doctor warns: %v", got)
		}
		if run := m.scrub(w1, "vm1", false); run.Corrupt != 2 || run.Repaired != 2 {
			t.Errorf("the scrub that repairs: %v", run)
		}
		if got := t2.corrupt(); len(got) != 0 {
			t.Errorf("after the repair the doctor warns: %v", got)
		}
		close(stop)
		<-stopped
		if c := t1.Counters(); c["ukai_scrub_repaired_total"] != 2 {
			t.Errorf("repaired, of the holder: %d", c["ukai_scrub_repaired_total"])
		}
		same(t, t1, "vm1", want)
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		t1.Crash()
		m.Await("t2 takes over", func() error { return t2.Volume("vm1").Attach(ctx) })
		same(t, t2, "vm1", want)
		if err := t2.Volume("vm1").Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCorruptionThatCannotBeRepairedIsToldUntilItIsGone(t *testing.T) {
	bubble(t, "t1:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 2<<20, "dc=tokyo:1")
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		events, err := t1.Events(ctx)
		if err != nil {
			t.Fatal(err)
		}
		d := t1.Volume("vm1")
		if _, err := d.WriteAt(ctx, pattern(1, 2<<20), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // let go of, and thereby quiet
		m.scrub(t1, "vm1", false)
		m.rot(t1, "vm1", 1<<20)
		if run := m.scrub(m.Nodes["w1"], "vm1", false); run.Unrepaired != 1 {
			t.Errorf("%v", run)
		}
		if got := m.Nodes["w1"].corrupt(); !slices.Equal(got, []admin.Level{admin.Critical}) {
			t.Errorf("the doctor warns: %v", got)
		}
		for ev := range events {
			if ev.Kind == "corruption-unrepaired" {
				if ev.Level != admin.Critical || !strings.Contains(ev.Text, "262144 bytes at 1048576 of the replica of vm1 on t1") {
					t.Errorf("%+v", ev)
				}
				break
			}
		}
		if g := t1.Gauges(); g[`ukai_disk_unrepaired{disk="vm1"}`] != 1 {
			t.Errorf("gauges: %v", g)
		}
		if _, err := d.WriteAt(ctx, pattern(2, 1<<20), 1<<20); err != nil { // restored in the guest
			t.Fatal(err)
		}
		if run := m.scrub(m.Nodes["w1"], "vm1", false); run.Unrepaired != 0 {
			t.Errorf("%v", run)
		}
		if got := m.Nodes["w1"].corrupt(); len(got) != 0 {
			t.Errorf("the doctor warns still: %v", got)
		}
	})
}

func TestDisksAreScrubbedByThemselvesAndGoneOnWithWhenANodeDies(t *testing.T) {
	bubble(t, "", func(t *testing.T, m *Mesh) {
		m.Tune = func(c *node.Config) { c.ScrubEvery, c.ScrubRate = 10*time.Minute, 64<<10 }
		m.AddAll("t1:tokyo t2:tokyo w1:fukuoka:witness")
		ctx := context.Background()
		m.Create("vm1", 8<<20, "dc=tokyo:2")
		t1, w1 := m.Nodes["t1"], m.Nodes["w1"]
		want := pattern(1, 8<<20)
		for off := 0; off < len(want); off += 1 << 20 {
			if _, err := t1.Volume("vm1").WriteAt(ctx, want[off:off+1<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		shown := func() *admin.Scrub {
			d, err := w1.Disk(ctx, "vm1")
			if err != nil {
				t.Fatal(err)
			}
			return d.Scrub
		}
		time.Sleep(8 * time.Minute)
		if s := shown(); s != nil {
			t.Fatalf("scrubbed before its time: %+v", s)
		}
		m.Await("half of it is scrubbed", func() error {
			if s := shown(); s == nil || s.Running == nil || s.Running.Percent < 50 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		began := shown().Running.Began
		d, err := w1.Disk(ctx, "vm1")
		if err != nil {
			t.Fatal(err)
		}
		if d.Holder == nil {
			t.Fatal("nobody holds the disk that is being scrubbed")
		}
		busy := m.Nodes[d.Holder.Name]
		busy.Crash()
		other := t1
		if busy == t1 {
			other = m.Nodes["t2"]
		}
		m.Await("the disk is used on the other node", func() error { return other.Volume("vm1").Attach(ctx) })
		start := time.Now()
		m.Await("the other node goes on", func() error {
			if s := shown(); s.Last == nil {
				return fmt.Errorf("running: %+v", s.Running)
			}
			return nil
		})
		if took := time.Since(start); took > 4*time.Minute {
			t.Errorf("it took %v to scrub the other half", took)
		}
		if run := *shown().Last; run.Verified < 32 || run.Corrupt != 0 || !run.Began.Equal(began) {
			t.Errorf("%+v, begun %v", run, began)
		}
		busy.Boot()
		m.awaitLocations(w1, "vm1", "t1 in sync", "t2 in sync")
		// The next one finds what rots.
		m.rot(busy, "vm1", 2<<20)
		time.Sleep(20 * time.Minute)
		if run := *shown().Last; run.Repaired != 1 || run.Unrepaired != 0 {
			t.Errorf("%+v", run)
		}
		same(t, busy, "vm1", want)
		if err := other.Volume("vm1").Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

// scrubbed makes a disk with a replica in tokyo and in osaka, full of data whose checksums are known, that t1 has attached.
func scrubbed(t *testing.T, m *Mesh, size int) {
	t.Helper()
	m.Create("vm1", int64(size), "dc=tokyo:1 dc=osaka:1")
	ctx := context.Background()
	d := m.Nodes["t1"].Volume("vm1")
	if err := d.Attach(ctx); err != nil {
		t.Fatal(err)
	}
	want := pattern(1, size)
	for off := 0; off < len(want); off += 1 << 20 {
		if _, err := d.WriteAt(ctx, want[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(65 * time.Second) // a checkpoint, and the heartbeats that tell of it
	if run := m.scrub(m.Nodes["w1"], "vm1", false); run.Corrupt != 0 || int(run.Verified) != size>>18 {
		t.Fatalf("the first scrub: %v", run)
	}
}

func TestAScrubKeepsToTheBudgetOfItsLink(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		m.serveAdmin()
		const size, rotten = 16 << 20, 4
		scrubbed(t, m, size)
		w1, ctx := m.Nodes["w1"], context.Background()
		for i := range int64(rotten) {
			m.rot(m.Nodes["o1"], "vm1", i*4<<20+1<<20)
		}
		m.limit("w1", "tokyo-osaka", "0")
		asked, err := w1.ScrubDisk(ctx, "vm1", admin.ScrubDisk{})
		if err != nil {
			t.Fatal(err)
		}
		m.Await("it waits for its link, and says so", func() error {
			j, err := w1.job("vm1")
			if err == nil && (j.Kind != "scrub" || j.State != admin.JobRunning || !strings.Contains(j.Why, "osaka-tokyo")) {
				err = fmt.Errorf("%+v", j)
			}
			return err
		})
		before := m.crossing("tokyo", "osaka")
		d := m.Nodes["t1"].Volume("vm1")
		for i := range 30 { // in no guest's way
			short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			if _, err := d.WriteAt(short, pattern(uint64(i), 512), 3<<20); err != nil {
				t.Fatalf("a write while a scrub waits for its link: %v", err)
			}
			cancel()
			time.Sleep(time.Second)
		}
		if got := m.crossing("tokyo", "osaka") - before; got > 128<<10 {
			t.Errorf("%d bytes crossed a link that carries no copies", got)
		}
		// What it repairs is paid.
		const limit = 64 << 10
		m.limit("w1", "tokyo-osaka", "64KiB/s")
		start := time.Now()
		m.Await("it is done", func() error {
			d, err := w1.Disk(ctx, "vm1")
			if err == nil && (d.Scrub.Last == nil || d.Scrub.Last.Request != asked.Scrub.Asked) {
				err = fmt.Errorf("%+v", d.Scrub.Running)
			}
			return err
		})
		if took, least := time.Since(start), time.Duration(rotten*256<<10/limit)*time.Second*3/4; took < least {
			t.Errorf("%d repairs of 256 KiB took %v at 64 KiB/s, at least %v", rotten, took, least)
		}
		shown, err := w1.Disk(ctx, "vm1")
		if err != nil || shown.Scrub.Last.Repaired != rotten {
			t.Errorf("%v, %v", shown.Scrub.Last, err)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAPausedScrubStandsStillAndOneThatWasAskedForIsCancelled(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		m.serveAdmin()
		scrubbed(t, m, 64<<20)
		w1, ctx := m.Nodes["w1"], context.Background()
		m.limit("w1", "tokyo-osaka", "200B/s") // a block takes seconds
		if _, err := w1.ScrubDisk(ctx, "vm1", admin.ScrubDisk{}); err != nil {
			t.Fatal(err)
		}
		at := func() (int, error) {
			d, err := w1.Disk(ctx, "vm1")
			if err != nil || d.Scrub == nil || d.Scrub.Running == nil {
				return 0, fmt.Errorf("%+v: %w", d.Scrub, err)
			}
			return d.Scrub.Running.Percent, nil
		}
		beyond := func(percent int) {
			t.Helper()
			m.Await("it goes on", func() error {
				if now, err := at(); err != nil || now <= percent {
					return fmt.Errorf("at %d %%: %w", now, err)
				}
				return nil
			})
		}
		beyond(10)
		w1.order("vm1", admin.OrderPause)
		time.Sleep(5 * time.Second)
		before, err := at()
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			time.Sleep(time.Second)
			j, err := w1.job("vm1")
			if err != nil || j.Kind != "scrub" || j.State != admin.JobPaused || !strings.Contains(j.Why, "administrator") {
				t.Fatalf("%v: %+v", err, j)
			}
		}
		if now, err := at(); err != nil || now != before {
			t.Fatalf("paused at %d %% it is at %d: %v", before, now, err)
		}
		w1.order("vm1", admin.OrderResume)
		if now, err := at(); err != nil || now < before {
			t.Errorf("it began anew: at %d %% after %d: %v", now, before, err)
		}
		beyond(before)
		w1.order("vm1", admin.OrderCancel)
		m.Await("it has ended", func() error {
			d, err := w1.Disk(ctx, "vm1")
			if err == nil && (d.Scrub.Running != nil || d.Scrub.Waiting || !d.Scrub.Cancelled) {
				err = fmt.Errorf("%+v", d.Scrub)
			}
			if j, none := w1.job("vm1"); none == nil && !j.State.Ended() {
				err = fmt.Errorf("%+v", j)
			}
			return err
		})
		time.Sleep(time.Minute)
		if d, err := w1.Disk(ctx, "vm1"); err != nil || d.Scrub.Running != nil {
			t.Errorf("it runs again: %+v, %v", d.Scrub, err)
		}
		m.limit("w1", "tokyo-osaka", "none")
		if run := m.scrub(w1, "vm1", false); run.Verified != 256 {
			t.Errorf("the next one: %v", run)
		}
		if err := m.Nodes["t1"].Volume("vm1").Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAScrubThatWasDueIsNotCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(t, 1)
		m.Tune = func(c *node.Config) { c.ScrubEvery = 10 * time.Minute }
		m.AddAll("t1:tokyo o1:osaka w1:fukuoka:witness")
		defer m.Stop()
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		m.serveAdmin()
		scrubbed(t, m, 8<<20)
		m.limit("w1", "tokyo-osaka", "0")
		time.Sleep(15 * time.Minute)
		w1 := m.Nodes["w1"]
		m.Await("it runs", func() error {
			j, err := w1.job("vm1")
			if err == nil && j.Kind != "scrub" {
				err = fmt.Errorf("%+v", j)
			}
			return err
		})
		if _, err := w1.OrderJob(context.Background(), "vm1", admin.OrderJob{Order: admin.OrderCancel}); !errors.Is(err, ukai.ErrRejected) || !strings.Contains(err.Error(), "scrub-every") {
			t.Errorf("cancelled: %v", err)
		}
		if err := m.Nodes["t1"].Volume("vm1").Detach(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
}
