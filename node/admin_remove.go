package node

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/admin"
	"ukai/node/cell"
)

// RemoveDisk implements admin.Backend.
func (n *Node) RemoveDisk(ctx context.Context, disk string, r admin.RemoveDisk) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	if d.Removed.Value && (r.Force || !removedByForce(d)) {
		return admin.Disk{}, fmt.Errorf("disk %s: %w: it is removed already", d.Name.Value, ukai.ErrNotFound)
	}
	name := d.Name.Value
	if r.Force {
		return n.removeByForce(ctx, d)
	}
	rec, err := n.settled(ctx, d)
	if err != nil {
		return admin.Disk{}, fmt.Errorf("remove disk %s: %w", name, err)
	}
	if rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering {
		return admin.Disk{}, fmt.Errorf("remove disk %s: %w: stop what uses it first", name, n.held(rec))
	}
	seconds := int64(graceDefault / time.Second)
	if r.GraceSeconds != nil {
		seconds = *r.GraceSeconds
	}
	if seconds < 0 || seconds > int64(maxGrace/time.Second) {
		return admin.Disk{}, fmt.Errorf("remove disk %s: grace of %d seconds: %w: from 0 to %d", d.Name.Value, seconds, ukai.ErrInvalid, int64(maxGrace/time.Second))
	}
	if kept, _ := asideKept(d); seconds == 0 && len(kept) > 0 {
		return admin.Disk{}, fmt.Errorf("remove disk %s for good: %w", name, &declined{fmt.Sprintf("it has %d histories that were set aside: first ukai-node disk discard %s %s", len(kept), name, kept[0].Tip())})
	}
	err = n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		policy, err := c.SetPolicy(d.ID, policyGrace, strconv.FormatInt(seconds, 10), stamp())
		if err != nil {
			return policy, err
		}
		removed, err := c.SetRemoved(d.ID, true, stamp())
		return policy.Join(removed), err
	})
	if err != nil {
		return admin.Disk{}, fmt.Errorf("remove disk %s: %w", name, err)
	}
	n.events.add(admin.Event{Level: admin.Notice, Kind: "disk-removed", Disk: name,
		Text: fmt.Sprintf("disk %s was removed; it can be restored for %v", name, time.Duration(seconds)*time.Second)})
	gone, err := n.findByID(d.ID)
	if err != nil {
		return admin.Disk{}, err
	}
	if seconds == 0 {
		// Decided here and now, so that no other node need be asked.
		if err := n.deleteDisk(ctx, gone); err != nil {
			n.log.Warn("a removed disk cannot be deleted yet; this is tried again", "disk", name, "err", err)
		} else if gone, err = n.findByID(d.ID); err != nil {
			return admin.Disk{}, err
		}
	}
	return n.show(n.people(), gone), nil
}

// held returns the error that names a record's holder.
func (n *Node) held(rec crdt.Record) error {
	return &ukai.HeldError{Node: rec.Holder, Name: hearsay{n}.NodeName(rec.Holder)}
}

// yieldPatience is how long a disk on this node is given to be let go: the kernel tells late that the last file was closed.
const yieldPatience = 1500 * time.Millisecond

// letGo has this node let go of a disk that it holds for nobody. If a program has it open: a *ukai.HeldError.
func (n *Node) letGo(ctx context.Context, d *crdt.Disk) error {
	if _, held := n.host.Held(d.ID); !held {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, yieldPatience)
	defer cancel()
	if err := n.host.Disk(d.ID, d.Name.Value).Yield(ctx); err != nil && !errors.Is(err, ukai.ErrNotAttached) {
		return err
	}
	return nil
}

// settleTime bounds how long it is tried to take over a disk whose holder died: longer than a takeover takes, and if its replicas are gone, too,
// whoever asked is told so before they give up.
const settleTime = 15 * time.Second

// settled returns the committed record of a disk that nobody uses: this node has let go of it, or has taken it over from a holder that died or
// was restarted, and let go. A holder that uses it refuses, and the error says who that is.
func (n *Node) settled(ctx context.Context, d *crdt.Disk) (crdt.Record, error) {
	disk := n.host.Disk(d.ID, d.Name.Value)
	if err := n.letGo(ctx, d); err != nil {
		return crdt.Record{}, err
	}
	rec, err := n.cells.Read(ctx, d.ID)
	if err != nil || rec.Phase == crdt.PhaseReleased || rec.Phase == crdt.PhaseDeleted {
		return rec, err
	}
	take, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if err := disk.Attach(take); err != nil {
		return rec, err
	}
	if err := disk.Detach(take); err != nil {
		return rec, err
	}
	return n.cells.Read(ctx, d.ID)
}

// hearTime bounds how long it is waited until most of a disk's arbiters have heard that it was restored, who are asked every hearEvery.
const (
	hearTime  = 3 * time.Second
	hearEvery = 50 * time.Millisecond
)

// RestoreDisk implements admin.Backend.
func (n *Node) RestoreDisk(ctx context.Context, disk string, r admin.RestoreDisk) (admin.Disk, error) {
	d, err := n.find(disk, true)
	if err != nil {
		return admin.Disk{}, err
	}
	if !d.Removed.Value {
		return admin.Disk{}, fmt.Errorf("restore disk %s: %w: it is not removed", d.Name.Value, ukai.ErrExists)
	}
	// Another node may have deleted it. And who can be heard by a majority of the arbiters can count on them to hear of the restoration before
	// anyone asks them for their consent to a deletion.
	if rec, err := n.cells.Read(ctx, d.ID); err != nil {
		return admin.Disk{}, fmt.Errorf("restore disk %s: it cannot be told whether it was deleted: %w", d.Name.Value, err)
	} else if rec.Phase == crdt.PhaseDeleted {
		return admin.Disk{}, fmt.Errorf("restore disk %s: %w: its grace time was over, and it was deleted for good", d.Name.Value, ukai.ErrNotFound)
	}
	err = n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (all crdt.Delta, err error) {
		if r.Name != "" && r.Name != d.Name.Value {
			if all, err = c.RenameDisk(d.ID, r.Name, stamp()); err != nil {
				return all, err
			}
		}
		back, err := c.SetRemoved(d.ID, false, stamp())
		return all.Join(back), err
	})
	if err != nil {
		return admin.Disk{}, fmt.Errorf("restore disk %s: %w", d.Name.Value, err)
	}
	if err := n.stay(ctx, d); err != nil {
		return admin.Disk{}, fmt.Errorf("restore disk %s: %w", d.Name.Value, err)
	}
	if d, err = n.findByID(d.ID); err != nil {
		return admin.Disk{}, err
	}
	n.events.add(admin.Event{Level: admin.Fine, Kind: "disk-restored", Disk: d.Name.Value, Text: fmt.Sprintf("disk %s was restored", d.Name.Value)})
	return n.show(n.people(), d), nil
}

// stay sees to it that nobody deletes a disk which was removed as d says and has been restored since: most of its arbiters have heard of that before whoever
// asks them from now on, and who was allowed to before finds another record.
func (n *Node) stay(ctx context.Context, d *crdt.Disk) error {
	rec, err := n.known(d.ID)
	if err != nil {
		return err
	}
	payload, err := codec.Marshal(question{Disk: d.ID, Removed: d.Removed.Stamp, Undone: true})
	if err != nil {
		return err
	}
	heard := func() bool {
		return n.majority(ctx, rec.Arbiters, func(ctx context.Context, id ukai.NodeID) bool {
			if id == n.id {
				return n.holdsUndone(d.ID, d.Removed.Stamp)
			}
			q, ok := n.ask(ctx, id, payload)
			return ok && q.Undone
		})
	}
	for began := time.Now(); !heard() && time.Since(began) < hearTime; { // else they will have, as they answer
		select {
		case <-time.After(hearEvery):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	// Not before: who changes the record from here on asks the arbiters after that.
	if rec, err = n.cells.Read(ctx, d.ID); err == nil {
		_, err = n.cells.Propose(ctx, d.ID, cell.Stay{Version: rec.Version})
	}
	switch {
	case errors.Is(err, ukai.ErrRejected):
		return fmt.Errorf("%w: its grace time was over, and it was deleted for good", ukai.ErrNotFound)
	case err != nil:
		return fmt.Errorf("it cannot be told whether it is being deleted: %w", err)
	}
	return nil
}
