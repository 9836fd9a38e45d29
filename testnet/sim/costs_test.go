package sim

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
)

// A dry run on a node without a replica counts what is written, not holes, and each link as often as the data then crosses it. So does the job, whose node has
// no replica when it begins; and it takes as long as the budget of the link makes it.
func TestADryRunTellsWhatTheRelocationThenCopies(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		const data, limit = 24 << 20, 1 << 20
		m.Create("vm1", 256<<20, "dc=tokyo:2")
		m.limit("w1", "tokyo-osaka", "1MiB/s")
		ctx := context.Background()
		t1, o1, w1 := m.Nodes["t1"], m.Nodes["o1"], m.Nodes["w1"]
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < data; off += 1 << 20 {
			if _, err := d.WriteAt(ctx, pattern(uint64(off), 1<<20), 16<<20+5*off); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		d = o1.Volume("vm1")
		if err := d.Attach(ctx); err != nil { // the VM moves before its data
			t.Fatal(err)
		}
		rule := admin.Rule{Terms: []string{"dc=osaka:2"}}
		m.Await("w1 knows that o1 has the disk", func() error {
			info, err := w1.Disk(ctx, "vm1")
			if err == nil && (info.Holder == nil || info.Holder.Name != "o1" || info.State != admin.DiskAttached) {
				err = fmt.Errorf("holder %v, %s", info.Holder, info.State)
			}
			return err
		})
		plan, err := w1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: rule, DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		c := plan.Costs
		if c.Bytes != 2*data || c.LeastInSync != 2 || slices.ContainsFunc(c.Assumed, func(s string) bool { return strings.Contains(s, "allocated") }) {
			t.Errorf("costs %+v, want 2 x %d bytes, at least 2 in sync, and no word of what is allocated", c, data)
		}
		want := []admin.LinkBytes{{From: "osaka", To: "osaka", Bytes: data}, {From: "tokyo", To: "osaka", Bytes: data}}
		if fmt.Sprint(c.Links) != fmt.Sprint(want) {
			t.Errorf("links %+v, want %+v", c.Links, want)
		}
		before, crossed := o1.Counters()["ukai_resync_bytes_total"], m.Net.Sent("tokyo", "osaka")
		if _, err := w1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: rule}); err != nil {
			t.Fatal(err)
		}
		var j admin.Job
		m.Await("the job is done", func() error {
			if j, err = o1.job("vm1"); err != nil {
				return err
			}
			if j.State != admin.JobDone {
				return fmt.Errorf("%+v", j)
			}
			return nil
		})
		m.awaitLocations(o1, "vm1", "o1 in sync", "o2 in sync")
		if copied := int64(o1.Counters()["ukai_resync_bytes_total"] - before); copied != c.Bytes {
			t.Errorf("%d bytes were copied, the plan said %d", copied, c.Bytes)
		}
		if got := m.Net.Sent("tokyo", "osaka") - crossed; got < data || got > data*12/10 {
			t.Errorf("%d bytes crossed the link, the plan said %d", got, data)
		}
		if j.TotalBytes != c.Bytes || j.DoneBytes != c.Bytes {
			t.Errorf("the job tells of %d of %d bytes, the plan said %d", j.DoneBytes, j.TotalBytes, c.Bytes)
		}
		took, least := j.Ended.Sub(j.Since).Seconds(), float64(data/limit)
		t.Logf("it took %.1f s, the plan said %.1f s, the budget of the link alone makes it %.1f s", took, c.Seconds, least)
		if took > 1.2*c.Seconds || took < 0.8*c.Seconds || c.Seconds < least {
			t.Errorf("it took %.1f s, the plan said %.1f s, the budget of the link alone makes it %.1f s", took, c.Seconds, least)
		}
	})
}

// A disk of which little is written moves that, there and back: no holes, nothing that was trimmed, no zeros, and of a block with one chunk not the rest.
func TestASparseDiskMovesItsDataAndNotItsHoles(t *testing.T) {
	long(t)
	bubble(t, "t1:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		const size, block, full, bits, zeros, trimmed = 1 << 30, 4 << 20, 12, 100, 8, 8 // blocks but for the size
		const data = full*block + bits*ukai.ChunkSize
		ctx := context.Background()
		t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
		if _, err := t1.CreateDisk(ctx, admin.NewDisk{Name: "vm1", SizeBytes: size, BlockSizeBytes: block, Rule: &admin.Rule{Terms: []string{"dc=tokyo:1"}}}); err != nil {
			t.Fatal(err)
		}
		for _, n := range m.Order {
			m.Await("the disk at "+n.Name, func() error { _, err := n.StatDisk("vm1"); return err })
		}
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		wrote := map[int64][]byte{}
		write := func(p []byte, off int64) {
			wrote[off] = p
			if _, err := d.WriteAt(ctx, p, off); err != nil {
				t.Fatal(err)
			}
		}
		for i := range int64(full) {
			write(pattern(uint64(i), block), (20+i)*block)
		}
		for i := range int64(bits) {
			write(pattern(uint64(100+i), ukai.ChunkSize), (100+i)*block+3*ukai.ChunkSize)
		}
		for i := range int64(zeros) {
			write(make([]byte, block), (40+i)*block)
		}
		for i := range int64(trimmed) {
			off := (60 + i) * block
			write(pattern(uint64(300+i), block), off)
			if err := d.Discard(ctx, off, block); err != nil {
				t.Fatal(err)
			}
			wrote[off] = make([]byte, block)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		for i, to := range []string{"osaka", "tokyo"} {
			from := []string{"tokyo", "osaka"}[i]
			copied := func() (sum uint64) {
				return t1.Counters()["ukai_resync_bytes_total"] + o1.Counters()["ukai_resync_bytes_total"]
			}
			before, crossed := copied(), m.Net.Sent(from, to)
			plan, err := o1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=" + to + ":1"}}})
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range m.Order {
				m.awaitLocations(n, "vm1", []string{"o1 in sync", "t1 in sync"}[i])
			}
			if got := copied() - before; got != data {
				t.Errorf("to %s %d bytes were copied, of a disk of %d with %d", to, got, size, data)
			}
			if got := m.Net.Sent(from, to) - crossed; got < data || got > data*11/10 {
				t.Errorf("%d bytes went from %s to %s for the %d of a disk of %d", got, from, to, data, size)
			}
			if got := plan.Costs.Bytes; got < data || got > data+zeros*block {
				t.Errorf("the plan told of %d bytes, of a disk with %d and %d of zeros", got, data, zeros*block)
			}
		}
		for off, want := range wrote {
			got := make([]byte, len(want))
			if _, err := o1.Volume("vm1").ReadAt(ctx, got, off); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("at %d: %v, or other bytes than were written", off, err)
			}
		}
	})
}
