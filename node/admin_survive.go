package node

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
)

// Survive implements admin.Backend.
func (n *Node) Survive(ctx context.Context, without string) (admin.Survival, error) {
	nodes := n.people().candidates()
	cases, list := place.Singles(nodes), place.Waits
	if without != "" {
		s, err := place.ParseSelector(without)
		if err != nil {
			return admin.Survival{}, err
		}
		cases, list = []place.Selector{s}, place.KeepsRunning
	}
	type subject struct {
		admin.DiskRef
		place.Input
	}
	var disks []subject
	now, repairAfter := time.Now(), n.repairAfter()
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) {
		want := wishOf(d) // one that cannot be read is told of by place show; the record speaks for itself
		disks = append(disks, subject{admin.DiskRef{ID: d.ID, Name: d.Name.Value}, place.Input{Rule: want.rule, Ranges: want.ranges, Fewer: want.fewer, Rec: rec, Near: n.mesh.Estimate, Now: now, RepairAfter: repairAfter}})
	})
	survey := place.NewSurvey(nodes)
	out := admin.Survival{}
	for _, gone := range cases {
		c := admin.SurvivalCase{Without: gone.String()}
		for _, node := range nodes {
			if gone.Matches(node) {
				c.Nodes++
			}
		}
		worst := map[place.Fate][]admin.DiskFate{}
		for i := range disks {
			if ctx.Err() != nil {
				return admin.Survival{}, ctx.Err()
			}
			d := &disks[i]
			fate := survey.Fate(d.Rec, gone)
			*map[place.Fate]*int{place.KeepsRunning: &c.KeepRunning, place.LosesRedundancy: &c.LoseRedundancy, place.Waits: &c.Wait, place.LosesData: &c.LoseData}[fate]++
			if fate >= list {
				o := survey.Survive(d.Name, d.Input, gone)
				worst[o.Fate] = append(worst[o.Fate], admin.DiskFate{Disk: d.DiskRef, Fate: o.Fate.String(), Why: o.Why, Then: o.Then, Remedy: o.Remedy})
			}
		}
		for _, fate := range []place.Fate{place.LosesData, place.Waits, place.LosesRedundancy, place.KeepsRunning} {
			slices.SortFunc(worst[fate], func(a, b admin.DiskFate) int {
				return cmp.Or(strings.Compare(a.Disk.Name, b.Disk.Name), slices.Compare(a.Disk.ID[:], b.Disk.ID[:]))
			})
			c.Disks = append(c.Disks, worst[fate]...)
		}
		out.Cases = append(out.Cases, c)
	}
	return out, nil
}
