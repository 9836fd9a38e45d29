package volume

import (
	"context"
	"fmt"
	"time"

	"ukai"
	"ukai/crdt"
)

// writable waits until writes are not suspended.
func (h *holding) writable(ctx context.Context) (*view, error) {
	v := h.view.Load()
	if v.suspended == nil {
		return v, h.err()
	}
	limit, stop := h.lossLimit(v)
	defer stop()
	return h.unsuspended(ctx, limit)
}

// vouched waits until as many replicas are in sync as the disk demands: what every replica has that must have it is
// acknowledged only then. It does not hold back what brings replicas back: all it waits for has ended, its range is free.
func (h *holding) vouched(ctx context.Context) error {
	if h.view.Load().suspended == nil {
		return nil
	}
	_, err := h.writable(ctx)
	return err
}

// unsuspended is writable up to a limit.
func (h *holding) unsuspended(ctx context.Context, limit <-chan time.Time) (*view, error) {
	for {
		changed := h.change()
		if err := h.err(); err != nil {
			return nil, err
		}
		v := h.view.Load()
		if v.suspended == nil {
			return v, nil
		}
		select {
		case <-changed:
		case <-limit:
			return nil, v.suspended
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// lossLimit returns what ends the wait for lost replicas: nothing, unless the disk wants errors.
func (h *holding) lossLimit(v *view) (<-chan time.Time, func()) {
	if v.onLoss != crdt.Error {
		return nil, func() {}
	}
	t := time.NewTimer(h.host.cfg.LossLimit)
	return t.C, func() { t.Stop() }
}

// why says what I/O is waiting for.
func (h *holding) why() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.whyLocked()
}

func (h *holding) whyLocked() error {
	if v := h.view.Load(); v.suspended != nil {
		return v.suspended
	}
	if h.obstacle != nil {
		return fmt.Errorf("%w: %w", ukai.ErrSuspended, h.obstacle)
	}
	for _, m := range h.view.Load().all {
		if m.link.Load() == nil && m.failure != nil {
			return fmt.Errorf("%w: %w", ukai.ErrSuspended, m.failure)
		}
	}
	return nil
}
