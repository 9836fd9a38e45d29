package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ukai/node/admin"
)

// A dry run on a node without a replica counts what is written, not holes, and each link as often as the data then crosses it.
func TestADryRunTellsWhatTheRelocationThenCopies(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		const data = 3 << 20
		m.Create("vm1", 64<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1, o1, w1 := m.Nodes["t1"], m.Nodes["o1"], m.Nodes["w1"]
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(ctx, pattern(1, data), 16<<20); err != nil {
			t.Fatal(err)
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
		before := o1.Counters()["ukai_resync_bytes_total"]
		if _, err := w1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: rule}); err != nil {
			t.Fatal(err)
		}
		m.awaitLocations(o1, "vm1", "o1 in sync", "o2 in sync")
		if copied := int64(o1.Counters()["ukai_resync_bytes_total"] - before); copied > c.Bytes || copied < c.Bytes*8/10 {
			t.Errorf("%d bytes were copied, the plan said %d", copied, c.Bytes)
		}
	})
}
