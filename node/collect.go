package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/admin"
	"ukai/node/cell"
)

const (
	// graceDefault is how long a removed disk can be restored, maxGrace the longest that may be asked for.
	graceDefault = 24 * time.Hour
	maxGrace     = 365 * 24 * time.Hour

	// policyGrace is the policy of a disk that says, in seconds, how long it can be restored after it was removed.
	policyGrace = "grace"
	// graceForced is its value for a disk that was removed by force: what nodes that come back have of it is not deleted by itself.
	graceForced = "forced"

	// collectEvery is how often a node looks for disks and replicas that are to be deleted for good, and how long it works on either.
	collectEvery = 30 * time.Second
	// deleteTime bounds how long one disk is worked on, so that one whose arbiters do not answer leaves time for others.
	deleteTime = 10 * time.Second
)

// collect deletes removed disks when their grace time is over, then the replicas of deleted disks on this node, and those that their disks do
// not need any more.
func (n *Node) collect() {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		for _, work := range []func(context.Context){n.endDiscarded, n.deleteExpired, n.deleteReplicas, n.retireReplicas} {
			ctx, cancel := context.WithTimeout(n.ctx, collectEvery)
			work(ctx)
			cancel()
		}
	}
}

// expired says whether a disk was removed and, by this node's clock, its grace time is over.
func expired(d *crdt.Disk) bool {
	return d.Removed.Value && !d.Deleted() && !time.Now().Before(d.Removed.Stamp.Time().Add(grace(d)))
}

// deleteExpired ends, in their quorum records, the disks whose grace time is over. The arbiters of a disk try: the first one wins, and the
// others find it done.
func (n *Node) deleteExpired(ctx context.Context) {
	var due []*crdt.Disk
	n.mesh.View(func(c *crdt.Catalog) {
		for d := range c.Disks() {
			if kept, whole := asideKept(d); len(kept) > 0 || !whole {
				continue // the other histories of it would be deleted without having been asked for: it stays removed, and can be restored
			}
			if rec, ok := d.Record(); ok && expired(d) && slices.Contains(rec.Arbiters, n.id) {
				due = append(due, d)
			}
		}
	})
	// In any order, or those that cannot be deleted would keep the same others waiting for ever.
	rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	for _, d := range due {
		if ctx.Err() != nil {
			return
		}
		if !n.majorityHoldsExpired(ctx, d) {
			n.log.Debug("a removed disk is kept: no majority of its arbiters says that its grace time is over", "disk", d.Name.Value)
			continue
		}
		if err := n.deleteIf(ctx, d, func() bool { return n.majorityHoldsExpired(ctx, d) }); err != nil && n.ctx.Err() == nil {
			n.log.Warn("a removed disk cannot be deleted yet; this is tried again", "disk", d.Name.Value, "err", err)
		}
	}
}

// deleteDisk ends a disk that nobody uses.
func (n *Node) deleteDisk(ctx context.Context, d *crdt.Disk) error {
	return n.deleteIf(ctx, d, func() bool { return true })
}

// deleteIf ends a disk that nobody uses, if it still may be once its record was read: what that says is deleted, and nothing that was committed since, as a
// restoration is.
func (n *Node) deleteIf(ctx context.Context, d *crdt.Disk, may func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTime)
	defer cancel()
	rec, err := n.settled(ctx, d)
	if err == nil && rec.Phase != crdt.PhaseDeleted {
		if !may() {
			return nil
		}
		_, err = n.cells.Propose(ctx, d.ID, cell.Delete{Version: rec.Version})
	}
	if err != nil {
		return err
	}
	n.host.Forget(d.ID)
	n.events.add(admin.Event{Level: admin.Notice, Kind: "disk-deleted", Disk: d.Name.Value, Text: fmt.Sprintf("disk %s was deleted for good", d.Name.Value)})
	return nil
}

// majorityHoldsExpired says whether a majority of a disk's arbiters, too, knows it to be removed, by the same removal, and its grace time to be
// over. This node alone may not have heard that the disk was restored, or its clock may be wrong; neither is a reason to delete.
func (n *Node) majorityHoldsExpired(ctx context.Context, d *crdt.Disk) bool {
	rec, ok := d.Record()
	if !ok {
		return false
	}
	payload, err := codec.Marshal(question{Disk: d.ID, Removed: d.Removed.Stamp})
	if err != nil {
		n.log.Error("encode a question", "err", err)
		return false
	}
	return n.majority(ctx, rec.Arbiters, func(ctx context.Context, id ukai.NodeID) bool {
		if id == n.id {
			return n.holdsExpired(d.ID, d.Removed.Stamp)
		}
		q, ok := n.ask(ctx, id, payload)
		return ok && q.Expired
	})
}

func (n *Node) holdsExpired(disk ukai.DiskID, removed crdt.Stamp) bool {
	d, err := n.findByID(disk)
	return err == nil && d.Removed.Stamp == removed && expired(d)
}

// holdsUndone says whether a disk has been restored, or removed anew, since it was removed.
func (n *Node) holdsUndone(disk ukai.DiskID, removed crdt.Stamp) bool {
	d, err := n.findByID(disk)
	return err == nil && removed.Less(d.Removed.Stamp)
}

// deleteReplicas frees the space of replicas of deleted disks on this node, after the arbiters have confirmed that the disk is deleted: what
// gossip does not say, or says, is never a reason to delete.
func (n *Node) deleteReplicas(ctx context.Context) {
	for _, r := range n.store.Replicas() {
		rec, err := n.known(r.Disk)
		if err != nil || rec.Phase != crdt.PhaseDeleted || n.setAside(r.Disk, r.Replica) {
			continue
		}
		if err := n.deleteReplica(ctx, r.Disk, r.Replica); err != nil && n.ctx.Err() == nil {
			n.log.Warn("the space of a deleted disk cannot be freed yet; this is tried again", "disk", r.Disk, "replica", r.Replica, "err", err)
		}
	}
}

func (n *Node) deleteReplica(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTime)
	defer cancel()
	rec, err := n.cells.Read(ctx, disk)
	if err != nil || rec.Phase != crdt.PhaseDeleted {
		return err
	}
	return n.removeReplica(ctx, disk, replica)
}
