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
	"ukai/node/cell"
)

// A disk that was forced on both sides of a cut has two histories, each with a record, arbiters and replicas of its own. A pick says with which
// it goes on. The other is set aside: its record stays in the catalog and with its arbiters, and its replicas stay where they are.

// minPrefix is the fewest digits that name a history.
const minPrefix = 4

// PickDisk implements admin.Backend. What it commits before the catalog says which history was picked only makes that history ready for it, so
// it can be cut short anywhere and repeated, for the same history or another.
func (n *Node) PickDisk(ctx context.Context, disk string, pick admin.PickDisk) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	fail := func(err error) (admin.Disk, error) {
		return admin.Disk{}, fmt.Errorf("pick a history of disk %s: %w", d.Name.Value, err)
	}
	if err := n.fit(); err != nil {
		return fail(err)
	}
	at, err := n.history(d, pick.History)
	if err != nil {
		return fail(err)
	}
	if rec, ok := d.Record(); ok && rec.Tip() == d.View[at].Tip() {
		return n.Disk(ctx, d.ID.String()) // it is picked, or the only one
	}
	picked := d.View[at]
	if picked.Phase == crdt.PhaseDeleted {
		return fail(fmt.Errorf("history %s: %w: it was discarded", picked.Tip(), ukai.ErrNotFound))
	}
	others := slices.Delete(slices.Clone(d.View), at, at+1)
	n.refresh(ctx, others)
	if picked, err = n.cells.proposeAt(ctx, picked, cell.Identity{}); err != nil {
		return fail(err)
	}
	if picked, err = n.cells.proposeAt(ctx, picked, picking(picked, others, n.id)); err != nil {
		return fail(err)
	}
	if err := n.passInstances(ctx, picked, others); err != nil {
		return fail(err)
	}
	err = n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		return c.SetPolicy(d.ID, crdt.PolicyPicked, strings.Join(tips(d, picked, others), " "), stamp())
	})
	if err != nil {
		return fail(err)
	}
	n.host.Observe(picked)
	n.events.add(admin.Event{Level: admin.Warn, Kind: "disk-picked", Disk: d.Name.Value,
		Text: fmt.Sprintf("disk %s goes on with history %s; %d others are set aside and kept", d.Name.Value, picked.Tip(), len(others))})
	return n.Disk(ctx, d.ID.String())
}

// history returns where in the view of a disk the history is that was named, by the begin of its id or by a node that no other history has an
// in-sync replica on.
func (n *Node) history(d *crdt.Disk, name string) (int, error) {
	name = strings.TrimPrefix(name, d.Name.Value+pastMark)
	var found []int
	if id, err := n.nodeID(name); err == nil {
		for i := range d.View {
			if slices.Contains(inSyncNodes(&d.View[i]), id) {
				found = append(found, i)
			}
		}
	}
	if len(found) != 1 {
		named := found
		found = nil
		for i := range d.View {
			if tip := d.View[i].Tip(); tip == name || len(name) >= minPrefix && strings.HasPrefix(tip, name) {
				found = append(found, i)
			}
		}
		if len(found) == 0 && len(named) > 1 {
			return 0, fmt.Errorf("history %q: %w: %d of its histories have an in-sync replica on that node; name one by its id", name, ukai.ErrInvalid, len(named))
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return 0, fmt.Errorf("history %q: %w: disk show lists those that there are", name, ukai.ErrNotFound)
	}
	return 0, fmt.Errorf("history %q: %w: the ids of %d begin so; give more of it", name, ukai.ErrInvalid, len(found))
}

// refresh replaces records by newer ones, where their arbiters answer.
func (n *Node) refresh(ctx context.Context, records []crdt.Record) {
	for i := range records {
		ctx, cancel := context.WithTimeout(ctx, forceAskTime)
		if rec, err := n.cells.proposeAt(ctx, records[i], cell.Identity{}); err == nil {
			records[i] = rec
		}
		cancel()
	}
}

// picking returns the change that makes a record ready to be that of the disk.
func picking(rec crdt.Record, others []crdt.Record, node ukai.NodeID) cell.Pick {
	top := rec.Epoch
	var foreign []ukai.ReplicaID
	for i := range others {
		top = max(top, others[i].Epoch)
		if !wentOn(&others[i]) {
			continue
		}
		for g := range others[i].Groups {
			for _, m := range others[i].Groups[g].InSync() {
				foreign = append(foreign, m.Replica)
			}
		}
	}
	// Above all that any of them reaches without being forced again.
	epoch := ukai.NewEpoch(top.Forced()+1, uint64(top)+1)
	return cell.Pick{Version: rec.Version, Epoch: epoch, Node: node, Nonce: ukai.NewNonce(), Foreign: foreign}
}

// wentOn says whether anything was committed in a history since it began. Before, nobody can have written to its replicas.
func wentOn(rec *crdt.Record) bool {
	n := len(rec.Lineage)
	return n == 0 || rec.Version > rec.Lineage[n-1].Version+1
}

// passInstances begins an instance of a quorum record that has passed those of the other histories. Where an arbiter of theirs is or becomes one of
// this, it must not find that instance taken.
func (n *Node) passInstances(ctx context.Context, rec crdt.Record, others []crdt.Record) error {
	change := cell.Rearb{Instance: rec.Instance, Arbiters: rec.Arbiters, Quorum: rec.Quorum, Preferred: rec.Preferred}
	for i := range others {
		change.Beyond = max(change.Beyond, others[i].Instance)
	}
	if rec.Instance > change.Beyond {
		return nil
	}
	_, err := n.cells.proposeAt(ctx, rec, change)
	return err
}

// tips returns the value of crdt.PolicyPicked. Histories that were set aside before stay so, though this node may not have them.
func tips(d *crdt.Disk, picked crdt.Record, others []crdt.Record) []string {
	list := []string{picked.Tip()}
	for i := range others {
		list = append(list, others[i].Tip())
	}
	for _, tip := range d.Picked() {
		if !slices.Contains(list, tip) {
			list = append(list, tip)
		}
	}
	return list
}

// setAside says whether a replica here belongs to a history that was set aside, or may, because it was last sealed in one that is not known here.
func (n *Node) setAside(disk ukai.DiskID, replica ukai.ReplicaID) bool {
	d, err := n.findByID(disk)
	if err != nil {
		return false
	}
	if keeps, whole := asideKept(d); !whole || slices.ContainsFunc(keeps, func(rec crdt.Record) bool { return names(rec, replica) }) {
		return true
	}
	had, err := n.store.Get(lineageKey(disk, replica))
	if errors.Is(err, ukai.ErrNotFound) || err == nil && len(had) == 0 {
		return false
	}
	return err != nil || !slices.ContainsFunc(d.View, func(rec crdt.Record) bool {
		return slices.ContainsFunc(rec.Lineage, func(f crdt.Fork) bool { return string(f.ID[:]) == string(had) })
	})
}

// asideKept returns the histories that were set aside and have not ended, and whether all that were are known.
func asideKept(d *crdt.Disk) (kept []crdt.Record, whole bool) {
	aside, whole := d.Aside()
	return slices.DeleteFunc(aside, func(rec crdt.Record) bool { return rec.Phase == crdt.PhaseDeleted }), whole
}

// eachHistory calls f, outside the catalog's lock, for each history that no rule looks after and that has not ended: those that were set aside, or all of a disk
// of which none was picked.
func (n *Node) eachHistory(f func(d *crdt.Disk, rec crdt.Record, aside bool)) {
	var split []*crdt.Disk
	n.mesh.View(func(c *crdt.Catalog) {
		for d := range c.Disks() {
			if d.Live() && len(d.View) > 1 {
				split = append(split, d)
			}
		}
	})
	for _, d := range split {
		kept, _ := asideKept(d)
		if aside := !d.Conflict(); aside {
			for _, rec := range kept {
				f(d, rec, true)
			}
			continue
		}
		for _, rec := range d.View {
			if rec.Phase != crdt.PhaseDeleted {
				f(d, rec, false)
			}
		}
	}
}

// historyRemedy is the command after which a history that eachHistory has told of stands in nobody's way.
func historyRemedy(d *crdt.Disk, rec *crdt.Record, aside bool) string {
	if aside {
		return fmt.Sprintf("ukai-node disk discard %s %s", d.Name.Value, rec.Tip())
	}
	return "ukai-node disk pick " + d.Name.Value
}

func inSyncNodes(rec *crdt.Record) (ids []ukai.NodeID) {
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].InSync() {
			if !slices.Contains(ids, m.Node) {
				ids = append(ids, m.Node)
			}
		}
	}
	return ids
}
