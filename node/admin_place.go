package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
)

// Placement implements admin.Backend.
func (n *Node) Placement(_ context.Context, disk string) (admin.Placement, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Placement{}, err
	}
	return n.placementOf(n.people(), d), nil
}

// Placements implements admin.Backend.
func (n *Node) Placements(context.Context) ([]admin.Placement, error) {
	p := n.people()
	list := []admin.Placement{}
	n.eachLive(func(d *crdt.Disk, _ crdt.Record) { list = append(list, n.placementOf(p, d)) })
	slices.SortFunc(list, func(a, b admin.Placement) int { return strings.Compare(a.Disk.Name, b.Disk.Name) })
	return list, nil
}

func (n *Node) placementOf(p people, d *crdt.Disk) admin.Placement {
	var rec *crdt.Record
	if r, ok := d.Record(); ok {
		rec = &r
	}
	return n.placement(p, admin.DiskRef{ID: d.ID, Name: d.Name.Value}, d.Rule.Value, rec)
}

// placement compares a rule with a record.
func (n *Node) placement(p people, disk admin.DiskRef, rule string, rec *crdt.Record) admin.Placement {
	out := admin.Placement{Disk: disk, Rule: rule, Wanted: []admin.Want{}, Replicas: []admin.Replica{}}
	if rec == nil {
		out.Differences = []string{"what is true of this disk is not known here"}
		return out
	}
	described := n.describe(p, *rec, rule)
	out.Replicas, out.Arbiters = described.Replicas, described.Arbiters
	for _, w := range described.Warnings {
		if w.Code == "arbiters" {
			w.Disk = disk.Name
			out.Warnings = append(out.Warnings, w)
		}
	}
	if rule == "" {
		out.Met = true
		return out
	}
	parsed, err := place.ParseText(rule)
	if err != nil {
		out.Differences = []string{err.Error()}
		return out
	}
	s := place.Check(parsed, *rec, p.candidates())
	out.Met, out.Differences = s.Met, s.Differences
	for _, t := range s.Terms {
		out.Wanted = append(out.Wanted, admin.Want{Term: t.Term, Count: t.Want, Have: t.Have, Nodes: t.Nodes})
	}
	if !s.Met {
		out.Doing = "nothing: this release does not move the data of existing disks"
	}
	return out
}

// PlaceDisk implements admin.Backend.
func (n *Node) PlaceDisk(_ context.Context, disk string, change admin.PlaceDisk) (admin.Placement, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Placement{}, err
	}
	rule, err := parseRule(change.Rule)
	if err != nil {
		return admin.Placement{}, err
	}
	rec, err := n.known(d.ID)
	if err != nil {
		return admin.Placement{}, err
	}
	p := n.people()
	choice, err := place.Initial(rule, rec.Size, p.candidates(), n.mesh.Estimate)
	if err != nil && !place.Check(rule, rec, p.candidates()).Met {
		return admin.Placement{}, p.refusal(rule, choice, err)
	}
	if !change.DryRun {
		err := n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
			return c.SetRule(d.ID, rule.String(), stamp())
		})
		if err != nil {
			return admin.Placement{}, fmt.Errorf("place disk %s: %w", d.Name.Value, err)
		}
		n.events.add(admin.Event{Level: admin.Fine, Kind: "rule-set", Disk: d.Name.Value, Text: fmt.Sprintf("the rule of disk %s is now %s", d.Name.Value, rule)})
	}
	out := n.placement(p, admin.DiskRef{ID: d.ID, Name: d.Name.Value}, rule.String(), &rec)
	out.DryRun, out.Reasons = change.DryRun, p.reasons(choice.Reasons)
	if !out.Met {
		out.Notice = fmt.Sprintf("the rule is recorded, and the data of %s stays where it is: this release does not move the data of existing disks", d.Name.Value)
		if change.DryRun {
			out.Notice = fmt.Sprintf("the rule would be recorded, and the data of %s would stay where it is: this release does not move the data of existing disks", d.Name.Value)
		}
	}
	return out, nil
}
