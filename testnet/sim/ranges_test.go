package sim

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ukai/node/admin"
)

// blocksOn returns "FIRST-LAST NODE+NODE" of each run of blocks of a disk: the nodes in sync. Others are in brackets.
func blocksOn(n *Node, disk string) (list []string, err error) {
	m, err := n.DiskMap(context.Background(), disk)
	for _, run := range m.Runs {
		var on []string
		for _, l := range run.Locations {
			name := l.Node.Name
			if l.Role != admin.InSync {
				name = "(" + name + ")"
			}
			on = append(on, name)
		}
		slices.Sort(on)
		list = append(list, fmt.Sprintf("%d-%d %s", run.First, uint64(run.First)+run.Count-1, strings.Join(on, "+")))
	}
	return list, err
}

func (m *Mesh) awaitBlocks(at *Node, disk string, during func(), want ...string) {
	m.T.Helper()
	m.Await(fmt.Sprintf("%s is on %v", disk, want), func() error {
		if during != nil {
			during()
		}
		got, err := blocksOn(at, disk)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("it is on %v", got)
		}
		return err
	})
}

// A range moves to another datacenter, its border moves, and it comes back, while a guest writes across its borders and the machines that are
// concerned crash one after the other.
func TestARangeOfBlocksMovesUnderIOWithCrashesAndComesBack(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 5*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		m.Create("vm1", 8<<20, "dc=tokyo:2") // 8 blocks
		ctx := context.Background()
		t1, w1 := m.Nodes["t1"], m.Nodes["w1"]
		want := pattern(1, 8<<20)
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		i := 0
		write := func() {
			border := []int{2, 3, 5, 6}[i%4] << 20
			n := 64 << 10
			off := border - n/2 + (i*37%16-8)*512
			if i%5 == 0 {
				off = i * 37 % 128 * n
			}
			copy(want[off:off+n], pattern(uint64(i), n))
			if _, err := d.WriteAt(ctx, want[off:off+n], int64(off)); err != nil {
				t.Fatalf("write %d: %v", i, err)
			}
			got := make([]byte, n)
			if _, err := d.ReadAt(ctx, got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("read of what write %d has written: %v", i, err)
			}
			i++
		}
		for off := 0; off < len(want); off += 1 << 20 {
			if _, err := d.WriteAt(ctx, want[off:off+1<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		place := func(blocks string, remove bool, terms ...string) admin.Placement {
			t.Helper()
			p, err := w1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Blocks: blocks, Remove: remove, Rule: admin.Rule{Terms: terms}})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		dry, err := w1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Blocks: "3-5", DryRun: true, Rule: admin.Rule{Terms: []string{"dc=osaka:2"}}})
		if err != nil || len(dry.Steps) != 5 || dry.Steps[0].Kind != "split" || dry.Costs.LeastInSync != 2 || dry.Costs.Bytes > 2*3<<20 {
			t.Fatalf("%v: %+v %+v", err, dry.Steps, dry.Costs)
		}
		p := place("3-5", false, "dc=osaka:2")
		if len(p.Ranges) != 1 || p.Ranges[0].Blocks != "3-5" || p.Ranges[0].Met {
			t.Fatalf("%+v", p.Ranges)
		}
		// Each of them crashes while something is done about it.
		crash := func(name string) func() {
			began, down, up := time.Now(), false, false
			return func() {
				write()
				switch age := time.Since(began); {
				case !down && age > 700*time.Millisecond:
					m.Nodes[name].PowerCut()
					down = true
				case down && !up && age > 15*time.Second:
					m.Nodes[name].Boot()
					up = true
				}
			}
		}
		m.awaitBlocks(t1, "vm1", crash("o1"), "0-2 t1+t2", "3-5 o1+o2", "6-7 t1+t2")
		same(t, t1, "vm1", want)

		// The border moves: block 2 goes there, block 5 comes back.
		place("5", true)
		place("2", false, "dc=osaka:2")
		m.awaitBlocks(t1, "vm1", crash("t2"), "0-1 t1+t2", "2-4 o1+o2", "5-7 t1+t2")
		m.Await("two groups are left, and the rule is met", func() error {
			p, err := w1.Placement(ctx, "vm1")
			if err == nil && (!p.Met || len(p.Steps) > 0 || len(p.Ranges) != 1 || p.Ranges[0].Blocks != "2-4" || p.Ranges[0].Now != "o1 in sync, o2 in sync") {
				err = fmt.Errorf("%+v", p)
			}
			return err
		})

		// The holder is lost with all of Tokyo's memory of what is under way; the next one in Osaka goes on.
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		place("0-7", true)
		for range 3 {
			write()
		}
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		t1.PowerCut()
		o1 := m.Nodes["o1"]
		d = o1.Volume("vm1")
		m.Await("o1 takes over", func() error { return d.Attach(ctx) })
		for range 20 {
			write()
		}
		same(t, o1, "vm1", want)
		t1.Boot()
		m.awaitBlocks(o1, "vm1", write, "0-7 t1+t2")
		m.Await("no job is left", func() error {
			p, err := w1.Placement(ctx, "vm1")
			if err == nil && (!p.Met || len(p.Steps) > 0 || len(p.Ranges) > 0) {
				err = fmt.Errorf("%+v", p)
			}
			return err
		})
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"o1", "o2"} {
			m.Nodes[name].Crash()
		}
		same(t, t1, "vm1", want)
	})
}

func TestRangesThatMakeNoSenseAreRefusedWithARemedy(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 8<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		if _, err := t1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=tokyo:2"}, MinSync: 2}}); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []struct {
			change admin.PlaceDisk
			want   string
		}{
			{admin.PlaceDisk{Blocks: "6-8", Rule: admin.Rule{Terms: []string{"any:2"}}}, "say --blocks 6-7"},
			{admin.PlaceDisk{Blocks: "9-12", Rule: admin.Rule{Terms: []string{"any:2"}}}, "the disk ends with block 7"},
			{admin.PlaceDisk{Blocks: "2-1", Rule: admin.Rule{Terms: []string{"any:2"}}}, "write FIRST-LAST"},
			{admin.PlaceDisk{Blocks: "0-1", Remove: true}, "they have no rule of their own"},
			{admin.PlaceDisk{Blocks: "0-1", Rule: admin.Rule{Terms: []string{"any:1"}}}, "give the disk a rule with --min-sync 1"},
			{admin.PlaceDisk{Blocks: "0-1", Rule: admin.Rule{Terms: []string{"any:2"}, MinSync: 1}}, "a matter of the whole disk"},
			{admin.PlaceDisk{Blocks: "0-1", Rule: admin.Rule{Terms: []string{"any:2"}}, AllowFewer: true}, "--allow-fewer is about the whole disk"},
			{admin.PlaceDisk{Blocks: "0-1", Rule: admin.Rule{Terms: []string{"dc=osaka:2"}}}, "cannot be met"},
			{admin.PlaceDisk{Blocks: "0-1"}, "no term"},
			{admin.PlaceDisk{Remove: true}, "a disk always has a rule"},
		} {
			_, err := t1.PlaceDisk(ctx, "vm1", bad.change)
			if err == nil || !strings.Contains(err.Error(), bad.want) {
				t.Errorf("%+v: %v", bad.change, err)
			}
		}
		if _, err := t1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Blocks: "0-1", Rule: admin.Rule{Terms: []string{"any:3"}}}); err != nil {
			t.Fatal(err)
		}
		m.awaitBlocks(t1, "vm1", nil, "0-1 o1+t1+t2", "2-7 t1+t2")
		if _, err := t1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"any:4"}, MinSync: 4, Prefer: true}}); err == nil || !strings.Contains(err.Error(), "blocks 0-1 are to have 3 in sync at most") {
			t.Errorf("a min-sync that a range cannot have: %v", err)
		}
		// What asks the planner takes the ranges along.
		e, err := t1.Evacuate(ctx, admin.Evacuate{Nodes: "o1", DryRun: true})
		if err != nil || len(e.Problems) != 1 || !strings.Contains(e.Problems[0].Text, "0-1") {
			t.Errorf("evacuation of a node that a range needs: %v, %+v", err, e.Problems)
		}
		s, err := t1.Survive(ctx, "dc=tokyo")
		if err != nil || len(s.Cases) != 1 || s.Cases[0].LoseData != 1 || !strings.Contains(strings.Join(s.Cases[0].Disks[0].Why, "\n"), "of blocks 2-7") {
			t.Errorf("without tokyo: %v, %+v", err, s)
		}
		// Cancelled, a range goes back to what it was.
		if _, err := t1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Blocks: "4-5", Rule: admin.Rule{Terms: []string{"any:3"}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := t1.OrderJob(ctx, "vm1", admin.OrderJob{Order: admin.OrderCancel}); err != nil {
			t.Fatal(err)
		}
		m.awaitBlocks(t1, "vm1", nil, "0-1 o1+t1+t2", "2-7 t1+t2")
		p, err := t1.Placement(ctx, "vm1")
		if err != nil || len(p.Ranges) != 1 || p.Ranges[0].Blocks != "0-1" {
			t.Errorf("after a cancelled change: %v, %+v", err, p.Ranges)
		}
		// A larger disk goes on with its own rule, whatever its last blocks have.
		if _, err := t1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Blocks: "7", Rule: admin.Rule{Terms: []string{"any:3"}}}); err != nil {
			t.Fatal(err)
		}
		m.awaitBlocks(t1, "vm1", nil, "0-1 o1+t1+t2", "2-6 t1+t2", "7-7 o1+t1+t2")
		if _, err := t1.ResizeDisk(ctx, "vm1", admin.ResizeDisk{SizeBytes: 12 << 20}); err != nil {
			t.Fatal(err)
		}
		m.awaitBlocks(t1, "vm1", nil, "0-1 o1+t1+t2", "2-6 t1+t2", "7-7 o1+t1+t2", "8-11 t1+t2")
	})
}

// Scrubs, takeovers and force know that not all nodes have all blocks.
func TestADiskWithARangeElsewhereIsScrubbedAndForced(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 8<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1, t2, o1 := m.Nodes["t1"], m.Nodes["t2"], m.Nodes["o1"]
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		want := pattern(1, 8<<20)
		write := func(seed uint64, off, n int) {
			t.Helper()
			copy(want[off:off+n], pattern(seed, n))
			if _, err := d.WriteAt(ctx, want[off:off+n], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		for off := 0; off < len(want); off += 1 << 20 {
			write(uint64(off), off, 1<<20)
		}
		if _, err := t1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Blocks: "3-5", Rule: admin.Rule{Terms: []string{"dc=osaka:2"}}}); err != nil {
			t.Fatal(err)
		}
		m.awaitBlocks(t1, "vm1", nil, "0-2 t1+t2", "3-5 o1+o2", "6-7 t1+t2")
		write(7, 3<<20-4096, 8192) // t1 and t2 keep block 3 as it was before
		time.Sleep(65 * time.Second)
		if run := m.scrub(t1, "vm1", false); run.Verified != 32 || run.Corrupt != 0 {
			t.Fatalf("the first scrub: %v", run)
		}
		m.rot(o1, "vm1", 4<<20)
		m.rot(t2, "vm1", 1<<20)
		if run := m.scrub(t1, "vm1", false); run.Verified != 32 || run.Repaired != 2 {
			t.Fatalf("the second scrub: %v", run)
		}
		same(t, t1, "vm1", want)

		// The holder and most arbiters are lost for good.
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		var gone []string
		for _, a := range arbiters(t, o1, "vm1") {
			if a != "t2" {
				gone = append(gone, a)
				m.Nodes[a].Crash()
			}
		}
		if t1.Node != nil {
			t.Fatalf("arbiters %v: this shows nothing", gone)
		}
		m.Nodes["o2"].Crash()
		o1.Crash()
		m.Await("t2 holds them for dead", func() error {
			_, err := t2.ForceDisk(ctx, "vm1", admin.ForceDisk{Gone: gone})
			if err == nil || !strings.Contains(err.Error(), "blocks 3-5") {
				return fmt.Errorf("force without a copy of the range: %w", err)
			}
			return nil
		})
		o1.Boot()
		m.Await("t2 is told to go on", func() error { _, err := t2.ForceDisk(ctx, "vm1", admin.ForceDisk{Gone: gone}); return err })
		d = t2.Volume("vm1")
		m.Await("t2 attaches", func() error { return d.Attach(ctx) })
		write(8, 3<<20-4096, 8192)
		write(9, 6<<20-4096, 8192)
		same(t, t2, "vm1", want)
		m.awaitBlocks(t2, "vm1", func() { write(10, 5<<20, 4096) }, "0-2 (t1)+t2", "3-5 (o2)+o1", "6-7 (t1)+t2")
	})
}

func TestTheSpaceOfARangeThatHasMovedIsGivenBackThoughNobodyUsesTheDisk(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 8<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		want := pattern(1, 8<<20)
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		for off := 0; off < len(want); off += 1 << 20 {
			if _, err := d.WriteAt(ctx, want[off:off+1<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		takes := func(n string) int64 {
			info, err := m.Nodes[n].Disk(ctx, "vm1")
			if err != nil {
				t.Fatal(err)
			}
			return info.AllocatedBytes
		}
		if _, err := t1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Blocks: "2-5", Rule: admin.Rule{Terms: []string{"dc=osaka:1"}}}); err != nil {
			t.Fatal(err)
		}
		m.awaitBlocks(t1, "vm1", nil, "0-1 t1+t2", "2-5 o1", "6-7 t1+t2")
		if took := takes("t1"); took < 8<<20 {
			t.Fatalf("%d bytes on t1 when the range has just moved", took)
		}
		time.Sleep(70 * time.Minute)
		for n, most := range map[string]int64{"t1": 4 << 20, "t2": 4 << 20, "o1": 4 << 20} {
			if took := takes(n); took > most {
				t.Errorf("%s: %d bytes, an hour after the range has moved", n, took)
			}
		}
		same(t, t1, "vm1", want)
	})
}
