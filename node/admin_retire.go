package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/admin"
	"ukai/node/place"
	"ukai/node/wire"
)

// RetireNode implements admin.Backend. All that follows follows from the node being retired in the catalog: the planner does without it.
func (n *Node) RetireNode(ctx context.Context, node string, r admin.RetireNode) (admin.NodeRetired, error) {
	var gone *crdt.Node
	var err error
	n.mesh.View(func(c *crdt.Catalog) { gone, err = nodeByName(c, node) })
	if err != nil {
		return admin.NodeRetired{}, err
	}
	p := n.people()
	out := admin.NodeRetired{Node: p.ref(gone.ID), DryRun: r.DryRun}
	if by := n.hearing(ctx, p, gone.ID); len(by) > 0 {
		return admin.NodeRetired{}, &declined{fmt.Sprintf("retire node %s: %s hears from it, or did a moment ago: if it is off, try again in half a minute; "+
			"if it runs, move what it has elsewhere first (ukai-node evacuate %s), and turn it off", out.Node, strings.Join(by, ", "), out.Node)}
	}
	without := n.planning(slices.DeleteFunc(p.candidates(), func(x place.Node) bool { return x.ID == gone.ID }))
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) { missed(p, gone.ID, without, d, rec, &out) })
	n.eachHistory(func(d *crdt.Disk, rec crdt.Record, aside bool) {
		if slices.Contains(inSyncNodes(&rec), gone.ID) && slices.ContainsFunc(rec.Groups, func(g crdt.Group) bool { return !inSyncElsewhere(p, gone.ID, g) }) {
			out.Warnings = append(out.Warnings, admin.Warning{Level: admin.Critical, Code: "retire", Disk: d.Name.Value, Remedy: historyRemedy(d, &rec, aside),
				Text: fmt.Sprintf("history %s of disk %s has its last copy in sync on nodes that are gone: its data are lost", rec.Tip(), d.Name.Value)})
		}
	})
	sortWarnings(out.Warnings)
	if r.DryRun {
		return out, nil
	}
	if err := n.mesh.Update(func(c *crdt.Catalog, _ func() crdt.Stamp) (crdt.Delta, error) { return c.Retire(gone.ID) }); err != nil {
		return admin.NodeRetired{}, fmt.Errorf("retire node %s: %w", out.Node, err)
	}
	n.events.add(admin.Event{Level: admin.Notice, Kind: "node-retired", Node: out.Node.Name, Text: fmt.Sprintf("node %s (%s) was retired, for good", out.Node, gone.ID.Short())})
	return out, nil
}

// hearing returns the names of the nodes that a node answers, or that do not hold it for dead. A node that cannot be asked has no opinion.
func (n *Node) hearing(ctx context.Context, p people, id ukai.NodeID) (names []string) {
	if p.alive(id) {
		return []string{n.cfg.Name}
	}
	payload, err := codec.Marshal(question{Node: id})
	if err != nil {
		n.log.Error("encode a question", "err", err)
		return []string{n.cfg.Name}
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	asked := []ukai.NodeID{id}
	for other := range p.nodes {
		if other != n.id && p.alive(other) {
			asked = append(asked, other)
		}
	}
	hears := make([]bool, len(asked))
	var all errgroup.Group
	all.SetLimit(maxAsked)
	for i, other := range asked {
		all.Go(func() error {
			if other == id {
				_, err := n.call(ctx, id, &wire.Message{Kind: wire.KindPing})
				hears[i] = err == nil
			} else if q, ok := n.ask(ctx, other, payload); ok {
				hears[i] = !q.Dead
			}
			return nil
		})
	}
	_ = all.Wait() // none fails
	for i, other := range asked {
		switch {
		case !hears[i]:
		case other == id:
			names = append(names, n.cfg.Name)
		default:
			names = append(names, p.ref(other).String())
		}
	}
	slices.Sort(names)
	return names
}

// inSyncElsewhere says whether a group has a replica in sync on a node that is neither retired nor the one that is gone.
func inSyncElsewhere(p people, gone ukai.NodeID, g crdt.Group) bool {
	return slices.ContainsFunc(g.InSync(), func(m crdt.Member) bool {
		node := p.nodes[m.Node]
		return m.Node != gone && (node == nil || !node.Retired)
	})
}

// missed adds to out what a disk has on a node that is to be retired, and warns of what cannot be made anew from what is left; without plans as if
// the node were gone.
func missed(p people, gone ukai.NodeID, without *planning, d *crdt.Disk, rec crdt.Record, out *admin.NodeRetired) {
	warn := func(level admin.Level, remedy, format string, args ...any) {
		out.Warnings = append(out.Warnings, admin.Warning{Level: level, Code: "retire", Disk: d.Name.Value, Text: "disk " + d.Name.Value + ": " + fmt.Sprintf(format, args...), Remedy: remedy})
	}
	seat := slices.Contains(rec.Arbiters, gone)
	if seat {
		out.Seats++
	}
	copied := slices.Contains(nodesOf(&rec), gone)
	if copied {
		out.Replicas++
	}
	if !seat && !copied {
		return
	}
	left := func(id ukai.NodeID) bool { node := p.nodes[id]; return id != gone && (node == nil || !node.Retired) }
	lost, silent := false, false
	for i := range rec.Groups {
		members, answer := 0, 0
		for _, m := range rec.Groups[i].InSync() {
			if left(m.Node) {
				members++
			}
			if p.alive(m.Node) {
				answer++
			}
		}
		lost, silent = lost || members == 0, silent || answer == 0
	}
	var missing []ukai.NodeID
	for _, id := range rec.Arbiters {
		if !p.alive(id) {
			missing = append(missing, id)
		}
	}
	decided := len(rec.Arbiters)-len(missing) > len(rec.Arbiters)/2
	switch {
	case lost:
		warn(admin.Critical, "ukai-node disk rm "+d.Name.Value+" --force", "its last copy in sync is on nodes that are gone: its data are lost")
		return
	case silent:
		warn(admin.Critical, "bring one of its nodes back", "no node with a copy in sync answers")
	case !decided:
		warn(admin.Critical, fmt.Sprintf("make sure that they are gone for good, then: ukai-node disk force %s --gone %s", d.Name.Value, strings.Join(refs(p, missing), ",")),
			"most of its arbiters do not answer, and what is lost cannot be made anew without them")
	}
	if plan, err := without.plan(wishOf(d), rec); copied && err == nil && plan.Unmet != "" {
		warn(admin.Warn, plan.Help, "rule %s cannot be met without it: %s", wishOf(d).all(), plan.Missing)
	}
}
