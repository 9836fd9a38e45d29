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
// reason to do anything.
func (n *Node) retireReplicas(ctx context.Context) {
	for _, r := range n.store.Replicas() {
		if r.Err != nil || r.Broken != "" || r.Header.State != store.StateOpen && r.Header.State != store.StateRetired {
			continue
		}
		rec, err := n.known(r.Disk)
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

func (n *Node) retireReplica(ctx context.Context, r store.ReplicaInfo) error {
	key := trashKey(r.Disk, r.Replica)
	since, err := n.store.Get(key)
	if err != nil && !errors.Is(err, ukai.ErrNotFound) {
		return err
	}
	fresh := r.Header.State == store.StateOpen || len(since) != 8
	if !fresh {
		if age := time.Since(time.Unix(int64(binary.BigEndian.Uint64(since)), 0)); age < n.cfg.TrashGrace && age >= 0 {
			return nil
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
		if err := n.replicas.Retire(ctx, r.Disk, r.Replica); err != nil {
			return err
		}
		n.log.Info("a replica is not needed any more", "disk", r.Disk, "replica", r.Replica, "kept", n.cfg.TrashGrace)
		return n.store.Put(ctx, true, store.KV{K: key, V: binary.BigEndian.AppendUint64(nil, uint64(time.Now().Unix()))})
	}
	for i := range rec.Groups {
		if rec.Groups[i].Count(crdt.InSync) == 0 && rec.Phase != crdt.PhaseDeleted {
			return fmt.Errorf("group %d of the disk has no replica in sync: %w", rec.Groups[i].ID, ukai.ErrUnavailable)
		}
	}
	if err := n.replicas.Shut(ctx, r.Disk, r.Replica); err != nil {
		return err
	}
	if err := n.store.Remove(ctx, r.Disk, r.Replica); err != nil {
		return err
	}
	if err := n.store.Put(ctx, false, store.KV{K: key}); err != nil {
		return err
	}
	name := hearsay{n}.diskName(r.Disk)
	n.events.add(admin.Event{Level: admin.Fine, Kind: "replica-removed", Node: n.cfg.Name, Disk: name, Text: fmt.Sprintf("the space of a former replica of %s on %s is free", name, n.cfg.Name)})
	return nil
}
