package crdt

import (
	"bytes"
	"slices"
	"time"

	"ukai"
)

// TombstoneKeep is how long the catalog remembers a deleted disk at least.
const TombstoneKeep = 30 * 24 * time.Hour

// Sweep forgets disks that are long deleted. A deletion that it meets for the first time it only marks, with now: the
// returned Delta spreads the mark. It forgets a disk once the mark is TombstoneKeep old and every node that is not
// retired says, by NodeInfo.CaughtUp, that it has caught up with the mark and so with the deletion. The keys of the
// forgotten are returned, to be dropped from the journal.
//
// Forgetting is no merge, and no two nodes do it at the same moment: what comes from a peer has to pass Screen, or each
// would bring back to the others what they have forgotten.
//
// No node can be away for so long that it knows a forgotten disk as a live one: nothing is forgotten before the node has
// said that it knows of the deletion. Only two kinds of nodes are not waited for, see Screen.
func (c *Catalog) Sweep(now Stamp) (marked Delta, forgotten []Key) {
	for _, id := range c.tombstones() {
		if c.disks[id].buried.IsZero() {
			mark := Delta{disks: []diskFields{{id: id, buried: now}}}
			c.mergeChecked(mark)
			marked = marked.push(mark)
		}
	}
	return marked, c.Forget(now.Time())
}

// Forget is Sweep without the marking.
func (c *Catalog) Forget(wall time.Time) (forgotten []Key) {
	limit := c.forgetUpTo(wall)
	for _, id := range c.tombstones() {
		e := c.disks[id]
		if e.buried.IsZero() || e.buried.Wall > limit {
			continue
		}
		c.setVersion(DiskKey(id), &e.version, 0)
		delete(c.disks, id)
		forgotten = append(forgotten, DiskKey(id))
	}
	return forgotten
}

// Screen returns what of a peer's d may be merged: all but disks that this catalog does not have and should not hear of.
// These are deleted ones that it would forget at once, and, if the peer is outdated, any. Outdated are nodes whose
// catalog may be older than what all others have forgotten: those that were retired, which Sweep does not wait for, and
// those whose database was restored from an old copy, which no longer know what they said they had. Whole is false if
// something was withheld because the peer is outdated.
func (c *Catalog) Screen(d Delta, wall time.Time, outdated bool) (passed Delta, whole bool) {
	if len(d.disks) == 0 {
		return d, true
	}
	limit, whole := c.forgetUpTo(wall), true
	d.disks = slices.DeleteFunc(slices.Clone(d.disks), func(f diskFields) bool {
		if _, known := c.disks[f.id]; known {
			return false
		}
		if outdated {
			whole = false
			return true
		}
		// A mark alone, without the deletion, would make an entry that no Sweep forgets.
		return !f.buried.IsZero() && f.buried.Wall <= limit && !f.isLive()
	})
	return d, whole
}

// tombstones returns the disks that are deleted for good, ordered by id.
func (c *Catalog) tombstones() []ukai.DiskID {
	var ids []ukai.DiskID
	for id, e := range c.disks {
		if e.deleted {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(x, y ukai.DiskID) int { return bytes.Compare(x[:], y[:]) })
	return ids
}

// forgetUpTo returns the newest mark, in milliseconds since 1970, that is old enough and that all nodes that are not
// retired have caught up with. Their clocks and the one that made the mark may differ by MaxSkew in either direction.
func (c *Catalog) forgetUpTo(wall time.Time) int64 {
	limit, any := wall.Add(-TombstoneKeep).UnixMilli(), false
	for _, e := range c.nodes {
		if !e.Retired {
			limit, any = min(limit, max(e.Info.CaughtUp, 0)-2*MaxSkew.Milliseconds()-1), true
		}
	}
	if !any {
		return 0 // a catalog that knows nobody does not know for whom to wait
	}
	return limit
}
