package volume

import (
	"context"
	"errors"
	"fmt"

	"ukai"
	"ukai/crdt"
)

// Maintain holds a disk that nobody holds for as long as something can be done for replicas of it that are out, and lets
// it go. It also ends what an attach on this node that failed half-way, or an earlier process, has left behind: a record that
// names this node as the holder, and gives back the space of blocks that have moved elsewhere. It gives way to anybody who attaches the disk or asks for it: then, and if another node holds it already, the
// error matches ukai.ErrHeld or ukai.ErrNotAttached. When it returns nil there is nothing more to do now.
func (d *Disk) Maintain(ctx context.Context) error {
	rec, known := d.host.cfg.Mesh.Record(d.id)
	due := known && d.StraysDue(&rec)
	if d.holding.Load() != nil || !d.leftBehind() && !due && (d.pauses().paused || !d.anyReturns(ctx)) {
		return nil // whoever uses it here has it brought up to date; or there is nothing to hold it for
	}
	if err := d.open(ctx, claimIfFree); err != nil {
		return fmt.Errorf("maintain %s: %w", d.Name(), err)
	}
	h := d.holding.Load()
	if h == nil {
		return fmt.Errorf("maintain %s: %w", d.Name(), ukai.ErrNotAttached)
	}
	var err error
	select {
	case <-h.rested:
		if due && h.givingBack.CompareAndSwap(false, true) {
			h.giveBack(h.returning)
			h.givingBack.Store(false)
		}
	case <-h.ctx.Done():
		return fmt.Errorf("maintain %s: %w", d.Name(), h.err())
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	d.lapse(h)
	return err
}

// leftBehind says whether the record names this node as the holder.
func (d *Disk) leftBehind() bool {
	rec, known := d.host.cfg.Mesh.Record(d.id)
	return known && rec.Holder == d.host.cfg.Node && (rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering)
}

// anyReturns says whether some replica that is out can be brought back now, as far as can be told without holding the disk.
func (d *Disk) anyReturns(ctx context.Context) bool {
	rec, _ := d.host.cfg.Mesh.Record(d.id)
	list := absentees(&rec)
	for range list {
		now := d.host.cfg.Clock()
		d.mu.Lock()
		a, _, due := d.tries.choose(list, now, false)
		d.mu.Unlock()
		if !due {
			return false
		}
		_, err := d.host.present(ctx, d.id, a.Member, rec.Epoch)
		if err == nil || ctx.Err() != nil {
			return err == nil
		}
		d.noteTries(func(t *tries) { t.silent(a.Replica, now, err) })
	}
	return false
}

// Free makes sure that nobody holds the disk for the time being: it is let go here, or its holder is asked to. If it is
// attached, or in use, the error is a ukai.HeldError. It returns the committed record.
func (d *Disk) Free(ctx context.Context) (crdt.Record, error) {
	if err := d.Yield(ctx); err != nil && !errors.Is(err, ukai.ErrNotAttached) {
		return crdt.Record{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, yieldFor, fmt.Errorf("not let go within %v: %w", yieldFor, ukai.ErrTimeout))
	defer cancel()
	seen := sighting{}
	for {
		if err := seen.read(ctx, d); err != nil {
			return seen.rec, err
		}
		if seen.rec.Phase == crdt.PhaseDeleted || seen.free(ukai.NodeID{}) {
			return seen.rec, nil
		}
		holder := seen.rec.Holder
		if holder == d.host.cfg.Node {
			return seen.rec, d.heldBy(holder) // claimed before this process started
		}
		switch err := d.askToYield(ctx, holder); {
		case errors.Is(err, ukai.ErrHeld):
			return seen.rec, d.heldBy(holder)
		case err == nil:
		case !errors.Is(err, ukai.ErrNotAttached), !sleep(ctx, maxAttachPause/2):
			return seen.rec, fmt.Errorf("%w, which was asked to let go: %w", d.heldBy(holder), err)
		}
		// It has let go, or is about to: it denies that it holds a disk while it recovers or releases it.
	}
}
