package node

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/cell"
)

// A history that was set aside is given up in two steps. That an administrator wants it is noted in the catalog; it takes effect when the arbiters
// of that history have ended its record, which is final, and until then whoever picks the history takes it back. Then no history names its
// replicas any more, and each node puts aside and frees those that it has as it does all that are not needed.

// DiscardHistory implements admin.Backend.
func (n *Node) DiscardHistory(ctx context.Context, disk string, discard admin.DiscardHistory) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	name := d.Name.Value
	fail := func(err error) (admin.Disk, error) {
		return admin.Disk{}, fmt.Errorf("discard a history of disk %s: %w", name, err)
	}
	if err := n.fit(); err != nil {
		return fail(err)
	}
	at, err := n.history(d, discard.History)
	if err != nil {
		return fail(err)
	}
	rec := d.View[at]
	chosen, ok := d.Record()
	switch {
	case !ok:
		return fail(&declined{"which one the disk goes on with is not decided: first ukai-node disk pick " + name})
	case chosen.Tip() == rec.Tip():
		return fail(&declined{"the disk goes on with it: pick another one first, or remove the disk: ukai-node disk rm " + name})
	}
	if rec.Phase != crdt.PhaseDeleted {
		err = n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
			return c.SetPolicy(d.ID, crdt.DiscardPolicy(rec.Tip()), strconv.FormatUint(rec.Epoch.Forced(), 10), stamp())
		})
		if err != nil {
			return fail(err)
		}
		n.events.add(admin.Event{Level: admin.Warn, Kind: "history-discarded", Disk: name,
			Text: fmt.Sprintf("history %s of disk %s, which the disk does not go on with, was given up for good", rec.Tip(), name)})
		if d, err = n.findByID(d.ID); err != nil {
			return admin.Disk{}, err
		}
		if err := n.endHistory(ctx, d, rec); err != nil {
			n.log.Warn("a history that was given up is there still; its end is tried again", "disk", name, "history", rec.Tip(), "err", err)
		}
	}
	return n.Disk(ctx, d.ID.String())
}

// endDiscarded ends the records of histories that were given up, where this node is an arbiter of either history.
func (n *Node) endDiscarded(ctx context.Context) {
	type ending struct {
		*crdt.Disk
		rec crdt.Record
	}
	var due []ending
	n.mesh.View(func(c *crdt.Catalog) {
		for d := range c.Disks() {
			chosen, ok := d.Record()
			if !ok || len(d.View) < 2 {
				continue
			}
			for _, rec := range d.View {
				if _, given := d.Discarded(&rec); given && rec.Phase != crdt.PhaseDeleted && (slices.Contains(rec.Arbiters, n.id) || slices.Contains(chosen.Arbiters, n.id)) {
					due = append(due, ending{d, rec})
				}
			}
		}
	})
	for _, e := range due {
		ctx, cancel := context.WithTimeout(ctx, deleteTime)
		if err := n.endHistory(ctx, e.Disk, e.rec); err != nil && n.ctx.Err() == nil {
			n.log.Debug("a history that was given up is there still; its end is tried again", "disk", e.Name.Value, "history", e.rec.Tip(), "err", err)
		}
		cancel()
	}
}

// endHistory ends the record of a history that was given up. Where most of its arbiters are retired nobody can commit anything in it any more, so nobody
// need be asked: all who say so write the same.
func (n *Node) endHistory(ctx context.Context, d *crdt.Disk, rec crdt.Record) error {
	upTo, ok := d.Discarded(&rec)
	if !ok {
		return fmt.Errorf("history %s: %w: it was picked since", rec.Tip(), ukai.ErrRejected)
	}
	end := cell.Discard{Forced: upTo}
	p := n.people()
	retired := 0
	for _, id := range rec.Arbiters {
		if node, known := p.nodes[id]; known && node.Retired {
			retired++
		}
	}
	var err error
	switch {
	case len(rec.Arbiters)-retired <= len(rec.Arbiters)/2:
		if rec, err = end.Apply(rec.Clone()); err == nil {
			err = n.learn(rec)
		}
	case !answer(p, &rec):
		err = fmt.Errorf("most of its arbiters do not answer: %w", ukai.ErrNoQuorum)
	default:
		_, err = n.cells.proposeAt(ctx, rec, end)
	}
	if err == nil {
		n.log.Info("a history that was given up has ended", "disk", d.Name.Value, "history", rec.Tip())
	}
	return err
}
