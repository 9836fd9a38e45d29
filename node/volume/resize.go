package volume

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"ukai"
	"ukai/node/cell"
	"ukai/node/wire"
)

// Resize grows the disk to size bytes. It becomes usable when all in-sync replicas have grown.
func (d *Disk) Resize(ctx context.Context, size int64) error {
	if err := d.resize(ctx, size); err != nil {
		return fmt.Errorf("resize %s to %d bytes: %w", d.Name(), size, err)
	}
	return nil
}

func (d *Disk) resize(ctx context.Context, size int64) error {
	if err := ukai.CheckDiskSize(size); err != nil {
		return err
	}
	h, err := d.enter(ctx, claimAsking)
	if err != nil {
		return err
	}
	defer h.ops.leave()
	return h.resize(ctx, size)
}

func (h *holding) resize(ctx context.Context, size int64) error {
	if err := h.growReplicas(ctx, size); err != nil {
		return err
	}
	select {
	case h.reconfiguring <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := h.resizeRecord(size)
	<-h.reconfiguring // the replicas may have to be mended before they can grow
	if err != nil {
		return err
	}
	if err := h.run(ctx, h.newMutation(wire.KindResize, allGroups, nil, size, 0)); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.size = max(h.size, size)
	h.rebuild()
	return nil
}

// growReplicas gives the replicas that answer a larger size before it is committed: a size that one of them cannot take must never be, since no
// epoch could seal that replica again. A replica that is larger than its disk does no harm. Those that do not answer are dealt with afterwards.
func (h *holding) growReplicas(ctx context.Context, size int64) error {
	var all errgroup.Group
	for _, m := range h.view.Load().all {
		all.Go(func() error {
			_, err := m.command(ctx, wire.Message{Kind: wire.KindResize, Offset: size}, nil)
			if transient(err) || errors.Is(err, ukai.ErrFenced) || errors.Is(err, ukai.ErrRestarted) {
				return ctx.Err()
			}
			return err
		})
	}
	return all.Wait()
}

// resizeRecord commits a larger size.
func (h *holding) resizeRecord(size int64) error {
	if err := h.settleSets(); err != nil {
		return err
	}
	h.mu.Lock()
	rec := h.sets.known
	switch {
	case size < rec.Size:
		h.mu.Unlock()
		return fmt.Errorf("%w: it has %d bytes, and a disk is made smaller only while it is detached", ukai.ErrInvalid, rec.Size)
	case size == rec.Size:
		h.mu.Unlock()
		return nil // committed before; the replicas may have missed it
	}
	next := rec
	next.Size = size
	h.sets.propose(next)
	h.mu.Unlock()
	if err := h.commit(cell.Resize{Epoch: h.epoch, Version: rec.Version, Size: size}); err != nil {
		return err
	}
	return nil
}
