package volume

import (
	"context"
	"fmt"
	"strings"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// Ranges of blocks with replicas of their own: a group each.
//
// Neither Split nor Merge changes which replicas of a block are in sync, so whichever of the two records is the committed one, a write goes to the same
// replicas and a read may be answered by the same. What is under way looks up the group of its block each time it asks for its replicas: after a split those of the
// new group may change, and a mutation that went on with the old group's would pass one by.

// Split gives ranges of blocks of a group a group of their own, with the same replicas. This node becomes the holder for it, unless another is:
// ukai.HeldError. The error matches ukai.ErrRejected if the blocks are not of the group, or the record has no room.
func (d *Disk) Split(ctx context.Context, group uint8, blocks []ukai.Range, into uint8) error {
	return d.regroup(ctx, fmt.Sprintf("split group %d", group), func(h *holding, known *crdt.Record) cell.Change {
		return cell.Split{Epoch: h.epoch, Version: known.Version, Group: group, Blocks: blocks, Into: into}
	})
}

// Merge gives all blocks of a group to another that has the same replicas, all in sync in both; otherwise the error matches ukai.ErrRejected. Else it
// is as Split.
func (d *Disk) Merge(ctx context.Context, group, into uint8) error {
	return d.regroup(ctx, fmt.Sprintf("merge group %d into %d", group, into), func(h *holding, known *crdt.Record) cell.Change {
		return cell.Merge{Epoch: h.epoch, Version: known.Version, Group: group, Into: into}
	})
}

// ofBlocks says of which blocks a group is, if not of all: " of blocks 0-255".
func ofBlocks(rec *crdt.Record, group uint8) string {
	if len(rec.Groups) == 1 {
		return ""
	}
	var text []string
	for _, r := range rec.RangesOf(group) {
		text = append(text, r.String())
	}
	return " of blocks " + strings.Join(text, ",")
}

func (d *Disk) regroup(ctx context.Context, what string, change func(*holding, *crdt.Record) cell.Change) error {
	h, err := d.enter(ctx, claimIfFree)
	if err == nil {
		defer h.ops.leave()
		err = h.alter(func(known *crdt.Record) (cell.Change, error) { return change(h, known), nil })
	}
	if err != nil {
		return fmt.Errorf("%s of disk %s: %w", what, d.Name(), err)
	}
	return nil
}
