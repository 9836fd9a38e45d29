package volume

import (
	"context"
	"errors"
	"fmt"

	"ukai"
	"ukai/crdt"
)

// Maintain holds a disk that nobody holds for as long as something can be done for replicas of it that are out, and lets
// it go. It gives way to anybody who attaches the disk or asks for it: then, and if another node holds it already, the
// error matches ukai.ErrHeld or ukai.ErrNotAttached. When it returns nil there is nothing more to do now.
func (d *Disk) Maintain(ctx context.Context) error {
	if d.holding.Load() != nil {
		return nil // whoever uses it here has it brought up to date
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
	case <-h.ctx.Done():
		return fmt.Errorf("maintain %s: %w", d.Name(), h.err())
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	d.lapse(h)
	return err
}

// Free makes sure that nobody holds the disk for the time being: it is let go here, or its holder is asked to. If it is
// attached, or in use, the error is a ukai.HeldError. It returns the committed record.
func (d *Disk) Free(ctx context.Context) (crdt.Record, error) {
	if err := d.Yield(ctx); err != nil && !errors.Is(err, ukai.ErrNotAttached) {
		return crdt.Record{}, err
	}
	seen := sighting{}
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
	if err := d.askToYield(ctx, holder); err != nil {
		if errors.Is(err, ukai.ErrHeld) {
			return seen.rec, d.heldBy(holder)
		}
		return seen.rec, fmt.Errorf("%w, which was asked to let go: %w", d.heldBy(holder), err)
	}
	if err := seen.read(ctx, d); err != nil {
		return seen.rec, err
	}
	if seen.free(ukai.NodeID{}) || seen.rec.Phase == crdt.PhaseDeleted {
		return seen.rec, nil
	}
	return seen.rec, d.heldBy(seen.rec.Holder)
}
