package crdt

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"ukai"
)

// TombstoneKeep is how long the catalog remembers a deleted disk at least. A node that was away for longer must drop its
// stored catalog and learn anew before it gossips; otherwise it would bring back what all others have forgotten.
const TombstoneKeep = 30 * 24 * time.Hour

// Sweep forgets disks that are long deleted. A deletion that it meets for the first time it only marks, with now: the
// returned Delta spreads the mark. It forgets a disk once the mark is TombstoneKeep old and every node that is not
// retired says, by NodeInfo.CaughtUp, that it has caught up with the mark and so with the deletion. The keys of the
// forgotten are returned, to be dropped from the journal.
//
// Forgetting is no merge: a peer that has not swept yet may send the tombstone again, and the next Sweep forgets it again.
func (c *Catalog) Sweep(now Stamp) (marked Delta, forgotten []Key) {
	caughtUp := c.caughtUp()
	ids := slices.SortedFunc(maps.Keys(c.disks), func(x, y ukai.DiskID) int { return bytes.Compare(x[:], y[:]) })
	for _, id := range ids {
		e := c.disks[id]
		switch {
		case !e.deleted:
		case e.buried.IsZero():
			mark := Delta{disks: []diskFields{{id: id, buried: now}}}
			c.mergeChecked(mark)
			marked = marked.push(mark)
		case now.Wall-e.buried.Wall >= TombstoneKeep.Milliseconds() && caughtUp > e.buried.Wall+2*MaxSkew.Milliseconds():
			c.setVersion(DiskKey(id), &e.version, 0)
			delete(c.disks, id)
			forgotten = append(forgotten, DiskKey(id))
		}
	}
	return marked, forgotten
}

// caughtUp returns the time that all nodes that are not retired have caught up with.
func (c *Catalog) caughtUp() int64 {
	caughtUp, any := int64(0), false
	for _, e := range c.nodes {
		if !e.Retired && (!any || e.Info.CaughtUp < caughtUp) {
			caughtUp, any = e.Info.CaughtUp, true
		}
	}
	return caughtUp
}
