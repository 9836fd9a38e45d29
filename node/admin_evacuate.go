package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
)

// Evacuate implements admin.Backend. An evacuation is the role drain of nodes, which the planner obeys: it goes on whoever dies.
func (n *Node) Evacuate(_ context.Context, e admin.Evacuate) (admin.Evacuation, error) {
	s, err := place.ParseSelector(e.Nodes)
	if err != nil {
		return admin.Evacuation{}, err
	}
	p := n.people()
	nodes := p.candidates()
	leaving := map[ukai.NodeID]bool{}
	out := admin.Evacuation{DryRun: e.DryRun, Draining: true, Moves: []admin.Evacuating{}, Attached: []admin.DiskRef{}}
	for i := range nodes {
		if s.Matches(nodes[i]) {
			leaving[nodes[i].ID] = true
			out.Nodes = append(out.Nodes, p.ref(nodes[i].ID))
			out.Draining = out.Draining && nodes[i].Drain
			nodes[i].Drain = true
		}
	}
	if len(leaving) == 0 {
		return admin.Evacuation{}, fmt.Errorf("evacuate %s: %w: no node is meant; `ukai-node status` lists the nodes and their labels", e.Nodes, ukai.ErrNotFound)
	}
	slices.SortFunc(out.Nodes, func(a, b admin.NodeRef) int { return strings.Compare(a.String(), b.String()) })
	n.leftOn(p, leaving, nodes, &out)
	switch {
	case e.DryRun:
		return out, nil
	case e.Cancel:
		out.Problems, out.Draining = nil, false
	case out.Draining:
		return out, nil // asked again
	case len(out.Problems) > 0:
		return admin.Evacuation{}, fmt.Errorf("evacuate %s: %w: %s", e.Nodes, ukai.ErrUnmet, problems(out.Problems))
	default:
		out.Draining = true
	}
	err = n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (all crdt.Delta, err error) {
		for id := range leaving {
			d, err := c.SetRole(id, crdt.RoleDrain, !e.Cancel, stamp())
			if err != nil {
				return all, err
			}
			all = all.Join(d)
		}
		return all, nil
	})
	if err != nil {
		return admin.Evacuation{}, fmt.Errorf("evacuate %s: %w", e.Nodes, err)
	}
	what := "is being evacuated"
	if e.Cancel {
		what = "is not evacuated any more"
	}
	for _, node := range out.Nodes {
		n.events.add(admin.Event{Level: admin.Notice, Kind: "evacuation", Node: node.Name, Text: fmt.Sprintf("node %s %s", node, what)})
	}
	return out, nil
}

// maxProblems bounds the disks that a refusal names; a dry run names all.
const maxProblems = 5

func problems(list []admin.Warning) string {
	var texts []string
	for _, w := range list[:min(len(list), maxProblems)] {
		text := w.Text
		if w.Remedy != "" {
			text += " (" + w.Remedy + ")"
		}
		texts = append(texts, text)
	}
	if more := len(list) - maxProblems; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more disks; --dry-run names them", more))
	}
	return strings.Join(texts, "; ")
}

// leftOn tells what nodes that are to be evacuated still have, and how each disk leaves them. What earlier disks take of other nodes' space is not
// there for later ones.
func (n *Node) leftOn(p people, leaving map[ukai.NodeID]bool, nodes []place.Node, out *admin.Evacuation) {
	gone := func(id ukai.NodeID) bool { return leaving[id] }
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) {
		ref := admin.DiskRef{ID: d.ID, Name: d.Name.Value}
		if (rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering) && leaving[rec.Holder] && p.alive(rec.Holder) {
			out.Attached = append(out.Attached, ref)
		}
		replicas := 0
		for _, id := range nodesOf(&rec) {
			if leaving[id] {
				replicas++
			}
		}
		seat := slices.ContainsFunc(rec.Arbiters, gone)
		if replicas == 0 && !seat {
			return
		}
		out.DisksTotal++
		out.Replicas += replicas
		if seat {
			out.Seats++
		}
		trouble := func(remedy, format string, args ...any) {
			out.Problems = append(out.Problems, admin.Warning{Level: admin.Critical, Code: "evacuation", Disk: ref.Name, Text: "disk " + ref.Name + ": " + fmt.Sprintf(format, args...), Remedy: remedy})
		}
		if paused(d) {
			trouble("ukai-node jobs resume "+ref.Name, "its job is paused")
		}
		want := wishOf(d)
		plan, err := n.planning(nodes).plan(want, rec) // each disk that moves leaves less room to the next
		if err != nil {
			trouble("", "%v", err)
			return
		}
		out.Moves = append(out.Moves, admin.Evacuating{Disk: ref, Steps: n.steps(p, plan, nil)})
		out.CopyBytes += plan.Bytes()
		arbiters := rec.Arbiters
		for _, step := range plan.Steps {
			switch step.Kind {
			case place.AddReplica:
				if i := slices.IndexFunc(nodes, func(x place.Node) bool { return x.ID == step.Node }); i >= 0 {
					nodes[i].FreeBytes -= step.Bytes
				}
			case place.MoveArbiters:
				arbiters = step.Arbiters
			case place.DropReplica, place.SetMinSync, place.SplitGroup, place.MergeGroup:
			}
		}
		stay, after := 0, plan.After(rec)
		for _, id := range nodesOf(&after) {
			if leaving[id] {
				stay++
			}
		}
		switch {
		case stay > 0 && plan.Unmet != "":
			trouble("give it a rule that other nodes meet: ukai-node place disk "+ref.Name+" TERM...", "rule %s, without these nodes: %s", want.all(), plan.Missing)
		case stay > 0:
			trouble("", "%d of its replicas would stay", stay)
		case !slices.ContainsFunc(arbiters, gone):
		case rec.Quorum != crdt.Majority:
			trouble("ukai-node disk quorum "+ref.Name+" majority", "its quorum mode is %s, which keeps its quorum record there", quorumText(p, &rec))
		default:
			trouble("start another node, a witness will do", "no other node could keep its quorum record")
		}
	})
	n.eachHistory(func(d *crdt.Disk, rec crdt.Record, aside bool) {
		copied, seat := slices.ContainsFunc(inSyncNodes(&rec), gone), slices.ContainsFunc(rec.Arbiters, gone)
		if !copied && (aside || !seat) {
			return
		}
		if aside {
			out.Warnings = append(out.Warnings, admin.Warning{Level: admin.Notice, Code: "history", Disk: d.Name.Value, Remedy: historyRemedy(d, &rec, aside),
				Text: fmt.Sprintf("history %s of disk %s, which was set aside, has a replica there that does not move, and may not be read or picked without it", rec.Tip(), d.Name.Value)})
			return
		}
		out.DisksTotal++
		if copied {
			out.Replicas++
		}
		if seat {
			out.Seats++
		}
		out.Problems = append(out.Problems, admin.Warning{Level: admin.Critical, Code: "evacuation", Disk: d.Name.Value, Remedy: historyRemedy(d, &rec, aside),
			Text: fmt.Sprintf("disk %s: it has %d histories, and what is there of %s does not move before one was picked", d.Name.Value, len(d.View), rec.Tip())})
	})
	n.mesh.View(func(c *crdt.Catalog) {
		for d := range c.Disks() {
			rec, ok := d.Record()
			if ok && d.Removed.Value && !d.Deleted() && time.Now().Before(d.Removed.Stamp.Time().Add(grace(d))) && slices.ContainsFunc(nodesOf(&rec), gone) {
				out.Warnings = append(out.Warnings, admin.Warning{Level: admin.Notice, Code: "removed", Disk: d.Name.Value,
					Text: fmt.Sprintf("disk %s, which was removed, has a replica there, and may not be restored without it", d.Name.Value)})
			}
		}
	})
	out.Safe = out.Replicas == 0 && out.Seats == 0 && len(out.Attached) == 0
}
