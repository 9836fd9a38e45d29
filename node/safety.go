package node

import (
	"context"
	"errors"
	"fmt"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/cell"
)

// applySafety changes a record as far as s is not empty.
func applySafety(rec *crdt.Record, s admin.SetDisk) error {
	if s.OnLoss != "" {
		if err := rec.OnLoss.UnmarshalText([]byte(s.OnLoss)); err != nil {
			return err
		}
	}
	if s.Ack != "" {
		return rec.Ack.UnmarshalText([]byte(s.Ack))
	}
	return nil
}

// maxSets is how often a change of a disk's settings is tried where other changes of its record get in between.
const maxSets = 5

// SetDisk implements admin.Backend. The holder obeys when it hears of the record.
func (n *Node) SetDisk(ctx context.Context, disk string, s admin.SetDisk) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	name := d.Name.Value
	fail := func(err error) (admin.Disk, error) { return admin.Disk{}, fmt.Errorf("set disk %s: %w", name, err) }
	for again := 0; ; again++ {
		rec, err := n.cells.Read(ctx, d.ID)
		if err != nil {
			return fail(err)
		}
		if err := applySafety(&rec, s); err != nil {
			return fail(err)
		}
		change := cell.Safety{Version: rec.Version, MinSync: rec.MinSync, OnLoss: rec.OnLoss, Ack: rec.Ack}
		_, err = n.cells.Propose(ctx, d.ID, change)
		if err == nil {
			n.events.add(admin.Event{Level: admin.Fine, Kind: "disk-set", Disk: name, Text: fmt.Sprintf("disk %s: on-loss %v, ack %v", name, rec.OnLoss, rec.Ack)})
			return n.Disk(ctx, d.ID.String())
		}
		if !errors.Is(err, ukai.ErrRejected) || again == maxSets {
			return fail(err)
		}
	}
}
