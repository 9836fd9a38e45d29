package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/volume"
)

// maintainPause is how long a disk that nobody holds is left alone after an attempt to bring its replicas back. It is also how often a replica
// whose node lives and that cannot be brought back is tried.
const maintainPause = 30 * time.Second

// maintain has the replicas of disks that nobody holds brought back, and disks let go that an earlier process or a failed attach has left
// behind. rest says which disk is left alone until when.
func (n *Node) maintain(p people, disks []tended, rest map[ukai.DiskID]time.Time) {
	seen := map[ukai.DiskID]bool{}
	for _, d := range disks {
		if (d.rec.Phase == crdt.PhaseReleased || p.abandoned(d.rec)) && (paused(d.Disk) || !returnable(p, d.rec)) && !n.straysDue(d) || !n.maintains(p, d.rec) {
			continue
		}
		seen[d.ID] = true
		if time.Now().Before(rest[d.ID]) {
			continue
		}
		rest[d.ID] = time.Now().Add(maintainPause)
		n.spawn(func() { n.bringBack(d.Disk) })
	}
	maps.DeleteFunc(rest, func(id ukai.DiskID, _ time.Time) bool { return !seen[id] })
}

// maintains says whether this node is to have a disk's replicas brought back: the disk is free, or its holder is long gone, and this is the first
// node, by id, with an in-sync replica, or it is held by an earlier process of this node. Whoever holds a disk brings its replicas back without
// being told.
func (n *Node) maintains(p people, rec crdt.Record) bool {
	switch {
	case rec.Phase == crdt.PhaseReleased, p.abandoned(rec):
		return n.relocates(p, rec)
	case rec.Phase != crdt.PhaseDeleted:
		_, here := n.host.Held(rec.Disk)
		return rec.Holder == n.id && !here
	}
	return false
}

// straysDue says whether replicas of a disk have had blocks for long enough that have moved elsewhere.
func (n *Node) straysDue(d tended) bool {
	return len(d.rec.Groups) > 1 && n.host.Disk(d.ID, d.Name.Value).StraysDue(&d.rec)
}

// returnable says whether a replica is not in sync although its node lives.
func returnable(p people, rec crdt.Record) bool {
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].Members {
			if (m.Role == crdt.Out || m.Role == crdt.Syncing) && p.alive(m.Node) {
				return true
			}
		}
	}
	return false
}

func (n *Node) bringBack(d *crdt.Disk) {
	err := n.host.Disk(d.ID, d.Name.Value).Maintain(n.ctx)
	if err != nil && !errors.Is(err, ukai.ErrHeld) && !errors.Is(err, ukai.ErrNotAttached) && !errors.Is(err, context.Canceled) {
		n.log.Warn("a disk that nobody uses cannot be maintained now; this is tried again", "disk", d.Name.Value, "err", err)
	}
}

// replicaEvent tells what happened to a disk held here, or to a replica of it. It does not block.
func (n *Node) replicaEvent(e volume.Event) {
	node := hearsay{n}.NodeName(e.Node)
	ev := admin.Event{Level: admin.Fine, Node: node, Disk: e.Name}
	switch e.Kind {
	case volume.Dropped:
		return // told by all nodes, when they hear of the record
	case volume.Joined:
		ev.Kind, ev.Text = "replica-syncing", fmt.Sprintf("the replica of %s on %s is being brought up to date", e.Name, node)
	case volume.Resynced:
		ev.Kind, ev.Text = "replica-in-sync", fmt.Sprintf("the replica of %s on %s is in sync again: %d bytes copied in %v", e.Name, node, e.Bytes, e.Took.Round(time.Millisecond))
	case volume.ResyncFailed:
		ev.Level, ev.Kind, ev.Text = admin.Warn, "resync-failed", fmt.Sprintf("the replica of %s on %s is not brought up to date: %s", e.Name, node, e.Why)
	case volume.Mended:
		ev.Kind, ev.Level = "corruption-repaired", admin.Warn
		ev.Text = fmt.Sprintf("%d bytes at %d of the replica of %s on %s could not be read or had rotted, and were written anew from another replica", e.Bytes, e.Off, e.Name, node)
	case volume.Found:
		ev.Kind, ev.Level = "corruption-found", admin.Warn
		ev.Text = fmt.Sprintf("%d bytes at %d of the replica of %s on %s cannot be read or have rotted; ukai-node scrub %s repairs them", e.Bytes, e.Off, e.Name, node, e.Name)
	case volume.Rotten:
		ev.Kind, ev.Level = "corruption-unrepaired", admin.Critical
		ev.Text = fmt.Sprintf("%d bytes at %d of the replica of %s on %s cannot be read, have rotted or may have, and cannot be repaired: %s", e.Bytes, e.Off, e.Name, node, e.Why)
	case volume.Lossy:
		ev.Node, ev.Level, ev.Kind = n.cfg.Name, admin.Critical, "writes-lost"
		ev.Text = fmt.Sprintf("writes to %s that were acknowledged and not flushed may be lost: %s", e.Name, e.Why)
	case volume.Unfinished:
		ev.Node, ev.Level, ev.Kind = n.cfg.Name, admin.Critical, "writes-unfinished"
		ev.Text = fmt.Sprintf("%d bytes of writes to %s were acknowledged and may not be on all replicas: %s", e.Bytes, e.Name, e.Why)
	}
	n.events.add(ev)
}
