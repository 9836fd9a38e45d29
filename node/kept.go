package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/store"
)

// Of a disk with the policy keep-stale a node keeps, as long as it has space, what a replica had that its disk does not need any more: an old copy.
// It is no replica: no record names it, it refuses every seal, so nothing reads or writes it. When a plan wants a replica on the node, that is a new one,
// with an id that no record has named, which begins with the data of the old copy instead of none. It knows of no block that it is equal to any,
// so it is brought up to date like every new one: all that it or its source ever wrote is compared, and what differs is copied.

const (
	// policyKeep is keepOn for a disk of which nodes keep old copies.
	policyKeep = "keep-stale"
	keepOn     = "on"
	// policyKept tells which nodes have one: oldCopies as JSON. It is a hint for plans and for people. Each node looks after its own entry, also
	// when another one's change has overwritten it.
	policyKept = "kept"
)

// oldCopies are those that nodes keep of a disk.
type oldCopies map[ukai.NodeID]oldCopy

type oldCopy struct {
	Bytes int64 `json:"bytes"` // it takes
	Since int64 `json:"since"` // seconds since 1970: when it was found not to be needed any more
}

// keptOf returns the old copies of a disk that nodes have told of.
func keptOf(d *crdt.Disk) (kept oldCopies) {
	if p, ok := d.Policy[policyKept]; ok {
		_ = json.Unmarshal([]byte(p.Value), &kept) // what cannot be read is told anew
	}
	return kept
}

// bytes returns how much of each copy there is, for plans.
func (o oldCopies) bytes() map[ukai.NodeID]int64 {
	all := make(map[ukai.NodeID]int64, len(o))
	for id, c := range o {
		all[id] = max(c.Bytes, 1)
	}
	return all
}

// showKept tells of the old copies of a disk.
func showKept(p people, kept oldCopies) (list []admin.OldCopy) {
	for id, c := range kept {
		list = append(list, admin.OldCopy{Node: p.ref(id), Bytes: c.Bytes, Since: time.Unix(c.Since, 0)})
	}
	slices.SortFunc(list, func(a, b admin.OldCopy) int {
		return cmp.Or(cmp.Compare(a.Node.Name, b.Node.Name), slices.Compare(a.Node.ID[:], b.Node.ID[:]))
	})
	return list
}

// retiredAt returns when a replica here was retired, zero if that was not noted.
func (n *Node) retiredAt(r store.ReplicaInfo) time.Time {
	since, err := n.store.Get(trashKey(r.Disk, r.Replica))
	if err != nil || len(since) != 8 {
		return time.Time{}
	}
	return time.Unix(int64(binary.BigEndian.Uint64(since)), 0)
}

// oldCopyHere returns the newest old copy of a disk on this node.
func (n *Node) oldCopyHere(disk ukai.DiskID) (newest store.ReplicaInfo, since time.Time, ok bool) {
	for _, r := range n.store.Replicas() {
		if r.Disk != disk || r.Err != nil || r.Broken != "" || r.Header.State != store.StateRetired {
			continue
		}
		if at := n.retiredAt(r); !ok || at.After(since) {
			newest, since, ok = r, at, true
		}
	}
	return newest, since, ok
}

// keeps says whether this node keeps a retired replica of a disk, whose record does not name one here, as an old copy.
func (n *Node) keeps(d *crdt.Disk, rec *crdt.Record, r store.ReplicaInfo) bool {
	if d.Policy[policyKeep].Value != keepOn || slices.Contains(nodesOf(rec), n.id) {
		return false
	}
	newest, _, ok := n.oldCopyHere(r.Disk)
	if !ok || newest.Replica != r.Replica {
		return false
	}
	space, err := n.store.Space()
	return err == nil && roomToKeep(space)
}

// roomToKeep says whether a node has space for old copies. As long as it does, they alone are no reason to warn that it is nearly full.
func roomToKeep(s store.Space) bool {
	usable := s.Total - s.Reserve
	return s.Free-s.Reserve >= usable/100*nearlyFull
}

// tellKept tells the mesh which old copies this node has, where that is not known or has changed.
func (n *Node) tellKept(ctx context.Context) {
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) {
		told, was := keptOf(d)[n.id]
		if !was && d.Policy[policyKeep].Value != keepOn || ctx.Err() != nil {
			return
		}
		var is oldCopy
		r, since, any := n.oldCopyHere(d.ID)
		if any = any && n.keeps(d, &rec, r); any {
			if is.Since = since.Unix(); was && told.Since == is.Since {
				return
			}
			is.Bytes = n.replicas.Allocated(ctx, d.ID)[r.Replica]
		}
		if any == was && told == is {
			return
		}
		if err := n.setKept(d.ID, is, any); err != nil {
			if n.ctx.Err() == nil {
				n.log.Warn("the old copies on this node could not be told to the mesh", "disk", d.Name.Value, "err", err)
			}
			return
		}
		if any {
			n.events.add(admin.Event{Level: admin.Fine, Kind: "copy-kept", Node: n.cfg.Name, Disk: d.Name.Value,
				Text: fmt.Sprintf("an old copy of disk %s is kept on %s: a replica that is made there again begins with it", d.Name.Value, n.cfg.Name)})
		}
	})
}

// setKept tells of the old copy of a disk on this node, or that there is none, and forgets those of nodes that are gone for good.
func (n *Node) setKept(disk ukai.DiskID, is oldCopy, any bool) error {
	return n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		d, ok := c.Disk(disk)
		if !ok {
			return crdt.Delta{}, fmt.Errorf("disk %v: %w", disk, ukai.ErrNotFound)
		}
		kept := keptOf(d)
		if kept == nil {
			kept = oldCopies{}
		}
		maps.DeleteFunc(kept, func(id ukai.NodeID, _ oldCopy) bool {
			node, known := c.Node(id)
			return !known || node.Retired || id == n.id
		})
		if any {
			kept[n.id] = is
		}
		text, err := json.Marshal(kept)
		if err != nil {
			return crdt.Delta{}, err
		}
		return c.SetPolicy(disk, policyKept, string(text), stamp())
	})
}

// maxAdopts bounds how often it is tried to have an old copy closed, which others may open for a look.
const maxAdopts = 5

// reuse makes a replica here of what this node kept of a disk. The error matches ukai.ErrNotFound if there is nothing that can be used. That may also be
// what is left of a relocation that died before a record named its replica.
func (n *Node) reuse(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID, cfg store.ReplicaConfig) error {
	d, err := n.findByID(disk)
	if err != nil {
		return err
	}
	rec, err := n.cells.Read(ctx, disk)
	if err != nil {
		return err
	}
	if err := n.retireUnnamed(ctx, disk, &rec); err != nil {
		return err
	}
	r, _, ok := n.oldCopyHere(disk)
	if !ok || r.Size > cfg.Size || r.BlockSize != cfg.BlockSize || n.setAside(disk, r.Replica) || r.Header.Fence > rec.Epoch {
		return fmt.Errorf("an old copy of disk %v: %w", disk, ukai.ErrNotFound)
	}
	// One that was last sealed in another history would refuse this one's holder for ever.
	had, err := n.store.Get(lineageKey(disk, r.Replica))
	if err != nil && !errors.Is(err, ukai.ErrNotFound) {
		return err
	}
	if err := follows(had, rec.Lineage, d.View); err != nil {
		return fmt.Errorf("an old copy of disk %v: %w: %w", disk, ukai.ErrNotFound, err)
	}
	if len(had) > 0 {
		if err := n.store.Put(ctx, true, store.KV{K: lineageKey(disk, replica), V: had}); err != nil {
			return err
		}
	}
	err = ukai.ErrLocked
	for range maxAdopts {
		if err = n.replicas.Shut(ctx, disk, r.Replica); err != nil {
			return err
		}
		if err = n.store.Adopt(ctx, disk, r.Replica, replica); !errors.Is(err, ukai.ErrLocked) {
			break
		}
	}
	if err != nil {
		return err
	}
	n.log.Info("a replica begins with an old copy", "disk", d.Name.Value, "replica", replica, "copy", r.Replica)
	return n.store.Put(ctx, false, store.KV{K: lineageKey(disk, r.Replica)}, store.KV{K: trashKey(disk, r.Replica)})
}

// retireUnnamed retires the replicas of a disk here that were in use or made of an old copy, and that its record, as the arbiters told it, does not
// name. One of the latter that is named after all, by who made it, is lost, and made anew.
func (n *Node) retireUnnamed(ctx context.Context, disk ukai.DiskID, rec *crdt.Record) error {
	for _, r := range n.store.Replicas() {
		if _, named := rec.NodeOf(r.Replica); r.Disk != disk || named || r.Err != nil || r.Broken != "" || n.setAside(disk, r.Replica) {
			continue
		}
		if r.Header.State == store.StateOpen || r.Header.State == store.StateNew && r.Header.Adopted {
			if err := n.putAside(ctx, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// putAside retires a replica here, and notes when.
func (n *Node) putAside(ctx context.Context, r store.ReplicaInfo) error {
	if err := n.replicas.Retire(ctx, r.Disk, r.Replica, r.Header.State); err != nil {
		return err
	}
	n.log.Info("a replica is not needed any more", "disk", r.Disk, "replica", r.Replica, "kept", n.cfg.TrashGrace)
	return n.store.Put(ctx, true, store.KV{K: trashKey(r.Disk, r.Replica), V: binary.BigEndian.AppendUint64(nil, uint64(time.Now().Unix()))})
}
