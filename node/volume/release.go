package volume

import (
	"context"
	"fmt"
	"sync"
	"time"

	"ukai"
	"ukai/node/cell"
	"ukai/node/wire"
)

// Detach undoes one Attach. The last one finishes what runs, flushes and lets the disk go. An error says that
// acknowledged writes may not be on stable storage everywhere, also if the disk was lost before, to another holder or
// with the memory of its last replica; it is let go all the same.
func (d *Disk) Detach(ctx context.Context) error {
	d.mu.Lock()
	attached := d.attached
	d.mu.Unlock()
	if attached == 0 {
		return fmt.Errorf("detach %s: %w", d.Name(), ukai.ErrNotAttached)
	}
	if !d.unattach() {
		return nil
	}
	ctx, cancel := d.host.bounded(ctx, "detached")
	defer cancel()
	if err := d.lock(ctx); err != nil {
		return fmt.Errorf("detach %s: %w", d.Name(), err)
	}
	defer d.unlock()
	if d.users() > 0 {
		return nil // attached anew meanwhile
	}
	h := d.holding.Load()
	err := d.release(ctx)
	if err == nil && h != nil && h.unflushed.any() { // it was over before it could be flushed
		err = fmt.Errorf("what was written cannot be vouched for: %w", h.err())
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", d.Name(), err)
	}
	return nil
}

// release lets the disk go. The caller has the turn.
func (d *Disk) release(ctx context.Context) error {
	h := d.holding.Load()
	if h == nil {
		return nil
	}
	defer d.drop(h)
	if h.err() != nil {
		return nil // fenced or poisoned: its guests have been told, or are by the next flush
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	h.endReturns()
	select {
	case <-h.ops.close():
	case <-h.ctx.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w while requests wait: %w", context.Cause(ctx), h.reason())
	}
	// A checkpoint beside the flush would call dirty again what the flush has just made durable.
	select {
	case h.checking <- struct{}{}: // for good: this is the last one
	case <-h.ctx.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w while a checkpoint runs: %w", context.Cause(ctx), h.reason())
	}
	if c := h.check.Load(); c.stamp.Check > 1 || c.touched.count.Load() > 0 {
		h.unflushed.dirty() // also what was written without being acknowledged must be the same everywhere
	}
	if err := h.flush(ctx); err != nil {
		return err
	}
	h.announce(ctx)
	// From here on nothing is served: the next holder may rely on it as soon as the release is committed.
	d.holding.CompareAndSwap(h, nil)
	h.close()
	if _, err := d.host.cfg.Cells.Propose(ctx, d.id, cell.Release{Epoch: h.epoch, Nonce: h.nonce}); err != nil {
		d.host.cfg.Log.Warn("not released, the next attach will recover", "disk", d.Name(), "err", err)
	}
	return nil
}

// drop forgets a holding. A flush that is under way fails.
func (d *Disk) drop(h *holding) {
	if h.unflushed.any() {
		h.end(fmt.Errorf("let go without a flush: %w", ukai.ErrLost)) // unless it is over
		err := h.err()
		d.unvouched.Store(&err)
	}
	d.holding.CompareAndSwap(h, nil)
	h.close()
}

func (h *holding) reason() error {
	if err := h.why(); err != nil {
		return err
	}
	return ukai.ErrTimeout
}

// announce tells the replicas that everything is stable, for at most announceFor.
func (h *holding) announce(ctx context.Context) {
	h.mu.Lock()
	h.stable = h.check.Load().stamp
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, announceFor)
	defer cancel()
	var all sync.WaitGroup
	for _, m := range h.view.Load().all {
		all.Go(func() {
			b := m.beat()
			msg := wire.Message{Kind: wire.KindHeartbeat, Payload: encode(heartbeat{Beats: []beat{b.beat}})}
			_, _ = m.ask(ctx, b.Session, msg, nil) // may be lost: then a later recovery looks at more blocks
		})
	}
	all.Wait()
}

// discardEnded forgets a holding that is over, so that the disk can be attached anew.
func (d *Disk) discardEnded(ctx context.Context) error {
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.unlock()
	if h := d.holding.Load(); h != nil && h.err() != nil {
		d.drop(h)
	}
	d.unvouched.Store(nil) // of no concern to whoever attaches it now
	return nil
}

// lapse lets go of a disk that nobody has attached and that has not been used for a while.
func (d *Disk) lapse(h *holding) {
	if d.users() > 0 {
		return
	}
	select {
	case d.turn <- struct{}{}:
	default:
		return // something else happens to it
	}
	if !d.host.spawn(func() {
		defer d.unlock()
		if d.users() > 0 || d.holding.Load() != h || h.used.Load() {
			return
		}
		ctx, cancel := context.WithTimeout(d.host.ctx, d.host.cfg.AttachTimeout)
		defer cancel()
		if err := d.release(ctx); err != nil {
			d.host.cfg.Log.Warn("letting go of an idle disk", "disk", d.Name(), "err", err)
		}
	}) {
		d.unlock()
	}
}

// Yield lets go of a disk that this node holds for the time being, without Attach, if nothing was written lately. It
// waits for that until ctx ends; then the error is a ukai.HeldError. If this node does not hold the disk, the error
// matches ukai.ErrNotAttached.
func (d *Disk) Yield(ctx context.Context) error {
	for {
		d.mu.Lock()
		detached, attached := d.detached, d.attached
		d.mu.Unlock()
		if attached == 0 && d.holding.Load() == nil {
			break
		}
		if attached == 0 && d.quiet.Load() {
			break
		}
		t := time.NewTimer(tickEvery)
		select {
		case <-detached: // the kernel tells late that a file was closed
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return &ukai.HeldError{Node: d.host.cfg.Node, Name: d.host.cfg.Mesh.NodeName(d.host.cfg.Node)}
		}
		t.Stop()
	}
	if err := d.lock(d.host.ctx); err != nil {
		return err
	}
	defer d.unlock()
	if d.users() > 0 {
		return &ukai.HeldError{Node: d.host.cfg.Node, Name: d.host.cfg.Mesh.NodeName(d.host.cfg.Node)}
	}
	if d.holding.Load() == nil {
		return fmt.Errorf("disk %s: %w", d.Name(), ukai.ErrNotAttached)
	}
	ctx, cancel := context.WithTimeout(d.host.ctx, d.host.cfg.AttachTimeout)
	defer cancel()
	return d.release(ctx)
}

// shut releases the disk because the node stops.
func (d *Disk) shut(ctx context.Context) error {
	// Attaching has been called off, so the turn comes soon even if ctx has ended.
	if err := d.lock(d.host.ctx); err != nil {
		return nil // stopped by another Close
	}
	defer d.unlock()
	if err := d.release(ctx); err != nil {
		return fmt.Errorf("release %s: %w", d.Name(), err)
	}
	return nil
}
