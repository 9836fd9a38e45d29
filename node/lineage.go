package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"ukai"
	"ukai/node/store"
)

// lineageKey holds the id of the forced takeover that the last seal of a replica descended from. Where there was none there is no key.
func lineageKey(disk ukai.DiskID, replica ukai.ReplicaID) string {
	return fmt.Sprintf("l/%s/%v", disk, replica)
}

// admitLineage refuses a seal of a replica by a holder whose history is not the one that the replica was sealed in before, or descends from it. Epochs
// do not tell: after forced takeovers on both sides of a cut both histories count on from the same one.
func (n *Node) admitLineage(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID, forks []ukai.Nonce) error {
	key := lineageKey(disk, replica)
	had, err := n.store.Get(key)
	if err != nil && !errors.Is(err, ukai.ErrNotFound) {
		return err
	}
	if len(had) > 0 && !slices.ContainsFunc(forks, func(f ukai.Nonce) bool { return string(f[:]) == string(had) }) {
		return fmt.Errorf("replica %v: %w: it belongs to another history of the disk, after a forced takeover", replica, ukai.ErrRejected)
	}
	if len(forks) == 0 || string(had) == string(forks[len(forks)-1][:]) {
		return nil
	}
	return n.store.Put(ctx, true, store.KV{K: key, V: slices.Clone(forks[len(forks)-1][:])})
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
