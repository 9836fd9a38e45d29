package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"ukai"
	"ukai/crdt"
	"ukai/node/store"
)

// lineageKey holds the id of the forced takeover that the last seal of a replica descended from. Where there was none there is no key.
func lineageKey(disk ukai.DiskID, replica ukai.ReplicaID) string {
	return fmt.Sprintf("l/%s/%v", disk, replica)
}

// admitLineage refuses a seal of a replica by a holder whose history is not the one that the replica was sealed in before, or left from it at a record
// after which nothing was committed in it. Epochs do not tell: after forced takeovers on both sides of a cut both histories count on from the same one.
//
// That the history here went on is known from the catalog: who commits in it does so on this side of the cut, and before a holder acknowledges
// what the replica of the other side lacks it has dropped that by a commit.
func (n *Node) admitLineage(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID, lineage []crdt.Fork) error {
	key := lineageKey(disk, replica)
	had, err := n.store.Get(key)
	if err != nil && !errors.Is(err, ukai.ErrNotFound) {
		return err
	}
	var view []crdt.Record
	if d, err := n.findByID(disk); err == nil {
		view = d.View
	}
	if err := follows(had, lineage, view); err != nil {
		return fmt.Errorf("replica %v: %w", replica, err)
	}
	if len(lineage) == 0 || string(had) == string(lineage[len(lineage)-1].ID[:]) {
		return nil
	}
	return n.store.Put(ctx, true, store.KV{K: key, V: slices.Clone(lineage[len(lineage)-1].ID[:])})
}

// follows says why a replica that was last sealed after the forced takeover had, before any if that is empty, may not be sealed by a holder
// whose record descends from these, or nil. view is what is known of the disk.
func follows(had []byte, lineage []crdt.Fork, view []crdt.Record) error {
	at := 0 // of the takeover by which the holder's history left that of the replica
	if len(had) > 0 {
		if at = 1 + slices.IndexFunc(lineage, func(f crdt.Fork) bool { return string(f.ID[:]) == string(had) }); at == 0 {
			return fmt.Errorf("%w: it belongs to another history of the disk, after a forced takeover", ukai.ErrRejected)
		}
	}
	if at == len(lineage) {
		return nil
	}
	left := lineage[at]
	for i := range view {
		rec := &view[i]
		if len(rec.Lineage) != at || !slices.Equal(rec.Lineage, lineage[:at]) {
			continue
		}
		if cmp.Or(cmp.Compare(rec.Instance, left.Instance), cmp.Compare(rec.Version, left.Version)) > 0 {
			return fmt.Errorf("%w: the disk went on here, to version %d, after a takeover was forced elsewhere at version %d", ukai.ErrRejected, rec.Version, left.Version)
		}
	}
	return nil
}

// within refuses to read a replica that was last sealed in a history other than these: after one of the forced takeovers, or with base before any.
func (n *Node) within(disk ukai.DiskID, replica ukai.ReplicaID, forks []ukai.Nonce, base bool) error {
	had, err := n.store.Get(lineageKey(disk, replica))
	switch {
	case err != nil && !errors.Is(err, ukai.ErrNotFound):
		return err
	case len(had) == 0 && base, len(had) > 0 && slices.ContainsFunc(forks, func(f ukai.Nonce) bool { return string(f[:]) == string(had) }):
		return nil
	}
	return fmt.Errorf("replica %v: %w: it was never used in this history, or another history of the disk has it now", replica, ukai.ErrRejected)
}

// removeReplica frees the space of a replica here. The caller knows that nobody needs it.
func (n *Node) removeReplica(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID) error {
	if err := n.replicas.Shut(ctx, disk, replica); err != nil {
		return err
	}
	if err := n.store.Remove(ctx, disk, replica); err != nil {
		return err
	}
	return n.store.Put(ctx, false, store.KV{K: lineageKey(disk, replica)})
}
