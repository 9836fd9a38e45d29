package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
)

// removedByForce says whether the last removal of a disk was one by force.
func removedByForce(d *crdt.Disk) bool { return d.Policy[policyGrace].Value == graceForced }

// removeByForce takes a disk of which nothing can be had out of sight. Only the catalog changes: the quorum record, which nobody can change, and
// replicas that may yet come back stay as they are.
func (n *Node) removeByForce(ctx context.Context, d *crdt.Disk) (admin.Disk, error) {
	name := d.Name.Value
	settle, cancel := context.WithTimeout(ctx, settleTime) // its arbiters may not answer either
	_, trouble := n.settled(settle, d)
	cancel()
	fail := func(err error) (admin.Disk, error) {
		return admin.Disk{}, fmt.Errorf("remove disk %s by force: %w", name, err)
	}
	rec, err := n.known(d.ID)
	switch {
	case trouble == nil:
		return fail(&declined{"nothing needs to be forced: ukai-node disk rm " + name})
	case errors.Is(trouble, ukai.ErrHeld), err != nil, n.fit() != nil:
		return fail(trouble)
	}
	p := n.people()
	var there, missing []ukai.NodeID // with a copy in sync; arbiters that do not answer
	whole := true
	for i := range rec.Groups {
		before := len(there)
		for _, m := range rec.Groups[i].InSync() {
			if p.alive(m.Node) {
				there = append(there, m.Node)
			}
		}
		whole = whole && len(there) > before
	}
	for _, id := range rec.Arbiters {
		if !p.alive(id) {
			missing = append(missing, id)
		}
	}
	if whole {
		on := strings.Join(slices.Compact(refs(p, there)), ", ")
		if len(rec.Arbiters)-len(missing) > len(rec.Arbiters)/2 {
			return fail(&declined{fmt.Sprintf("%s has a copy in sync, so that nothing needs to be forced; try again without --force: %v", on, trouble)})
		}
		return fail(&declined{fmt.Sprintf("%s has a copy in sync: make sure that the others are gone for good, have it go on (ukai-node disk force %s --gone %s), and remove it then",
			on, name, strings.Join(refs(p, missing), ","))})
	}
	err = n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		policy, err := c.SetPolicy(d.ID, policyGrace, graceForced, stamp())
		if err != nil {
			return policy, err
		}
		removed, err := c.SetRemoved(d.ID, true, stamp())
		return policy.Join(removed), err
	})
	if err != nil {
		return fail(err)
	}
	n.events.add(admin.Event{Level: admin.Warn, Kind: "disk-removed", Disk: name, Text: fmt.Sprintf("disk %s (%v) was removed by force: no copy of it could be had", name, d.ID)})
	gone, err := n.findByID(d.ID)
	if err != nil {
		return admin.Disk{}, err
	}
	return n.show(n.people(), gone), nil
}
