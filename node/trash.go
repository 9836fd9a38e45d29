package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/store"
)

// trashGraceDefault is how long a replica that its disk does not need any more is kept.
const trashGraceDefault = time.Hour

// trashKey says since when a replica is to be removed: seconds of Unix time. The clock only decides how long it is kept; that it may be
// removed is decided by the quorum record.
func trashKey(disk ukai.DiskID, replica ukai.ReplicaID) string {
	return fmt.Sprintf("t/%s/%v", disk, replica)
}

// retireReplicas puts aside the replicas on this node that their disks' records do not name any more, and frees the space of those that
// were put aside long enough ago. What gossip says only makes this node ask the arbiters, each time; a record that is not known is no
// reason to do anything. Those that are kept as old copies are told to the mesh.
func (n *Node) retireReplicas(ctx context.Context) {
	defer n.tellKept(ctx)
	for _, r := range n.store.Replicas() {
		if r.Err != nil || r.Broken != "" || n.setAside(r.Disk, r.Replica) {
			continue
		}
		rec, err := n.known(r.Disk)
		if r.Header.State == store.StateNew && (errors.Is(err, ukai.ErrNotFound) || err == nil && rec.Phase != crdt.PhaseDeleted) {
			if err := n.dropUnused(ctx, r, err == nil); err != nil {
				n.log.Warn("an empty replica that nobody wants stays for now; this is tried again", "disk", r.Disk, "replica", r.Replica, "err", err)
			}
			continue
		}
		if r.Header.State != store.StateOpen && r.Header.State != store.StateRetired {
			continue
		}
		if err != nil || rec.Phase == crdt.PhaseDeleted { // deleted disks are deleteReplicas' matter
			continue
		}
		if _, named := rec.NodeOf(r.Replica); named {
			continue
		}
		if err := n.retireReplica(ctx, r); err != nil {
			n.log.Warn("a replica that its disk does not need any more stays for now; this is tried again", "disk", r.Disk, "replica", r.Replica, "err", err)
		}
	}
}

// dropUnused removes a replica that was made and never used, TrashGrace after it was first met: who made it died before a record named it.
// The arbiters confirm that; of a disk that is not in the catalog, that this node has since had all that any node of the mesh knew.
func (n *Node) dropUnused(ctx context.Context, r store.ReplicaInfo, known bool) error {
	key := trashKey(r.Disk, r.Replica)
	since, err := n.store.Get(key)
	if err != nil && !errors.Is(err, ukai.ErrNotFound) {
		return err
	}
	now := time.Now()
	if len(since) != 8 || now.Unix() < int64(binary.BigEndian.Uint64(since)) {
		return n.store.Put(ctx, true, store.KV{K: key, V: binary.BigEndian.AppendUint64(nil, uint64(now.Unix()))})
	}
	due := time.Unix(int64(binary.BigEndian.Uint64(since)), 0).Add(n.cfg.TrashGrace)
	if now.Before(due) {
		return nil
	}
	if !known && n.caughtUp().Before(due) {
		return nil
	}
	switch err := n.dropNewReplica(ctx, r.Disk, r.Replica); {
	case errors.Is(err, ukai.ErrRejected): // it is named, or was used just now
		return n.store.Put(ctx, false, store.KV{K: key})
	case err != nil:
		return err
	}
	n.log.Info("an empty replica that nobody wanted was removed", "disk", r.Disk, "replica", r.Replica)
	return n.store.Put(ctx, false, store.KV{K: key})
}

// caughtUp returns up to when this node's catalog has all that any node's had.
func (n *Node) caughtUp() (at time.Time) {
	n.mesh.View(func(c *crdt.Catalog) {
		if me, ok := c.Node(n.id); ok {
			at = time.UnixMilli(me.Info.CaughtUp)
		}
	})
	return at
}

// unknownDisk says whether the catalog does not know a disk, deleted or not, and up to when it has all that any node's had.
func (n *Node) unknownDisk(disk ukai.DiskID) (caughtUp time.Time, unknown bool) {
	_, err := n.findByID(disk)
	return n.caughtUp(), err != nil
}

func (n *Node) retireReplica(ctx context.Context, r store.ReplicaInfo) error {
	key := trashKey(r.Disk, r.Replica)
	since, err := n.store.Get(key)
	if err != nil && !errors.Is(err, ukai.ErrNotFound) {
		return err
	}
	fresh := r.Header.State == store.StateOpen || len(since) != 8
	if !fresh {
		switch age := time.Since(time.Unix(int64(binary.BigEndian.Uint64(since)), 0)); {
		case age < 0: // a clock was ahead: it is kept from now on
			return n.store.Put(ctx, true, store.KV{K: key, V: binary.BigEndian.AppendUint64(nil, uint64(time.Now().Unix()))})
		case age < n.cfg.TrashGrace:
			return nil
		}
		if d, err := n.findByID(r.Disk); err == nil {
			if rec, ok := d.Record(); ok && n.keeps(d, &rec, r) {
				return nil
			}
		}
	}
	rec, err := n.cells.Read(ctx, r.Disk)
	if err != nil {
		return err
	}
	if _, named := rec.NodeOf(r.Replica); named {
		return nil // what gossip brought was old
	}
	if fresh {
		return n.putAside(ctx, r)
	}
	for i := range rec.Groups {
		if rec.Groups[i].Count(crdt.InSync) == 0 && rec.Phase != crdt.PhaseDeleted {
			return fmt.Errorf("group %d of the disk has no replica in sync: %w", rec.Groups[i].ID, ukai.ErrUnavailable)
		}
	}
	if err := n.removeReplica(ctx, r.Disk, r.Replica); err != nil {
		return err
	}
	if err := n.store.Put(ctx, false, store.KV{K: key}); err != nil {
		return err
	}
	name := hearsay{n}.diskName(r.Disk)
	n.events.add(admin.Event{Level: admin.Fine, Kind: "replica-removed", Node: n.cfg.Name, Disk: name, Text: fmt.Sprintf("the space of a former replica of %s on %s is free", name, n.cfg.Name)})
	return nil
}
