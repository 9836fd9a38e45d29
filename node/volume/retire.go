package volume

import (
	"context"
	"fmt"

	"ukai"
	"ukai/node/store"
)

// Retire makes a replica refuse every seal from now on, for good; what runs has finished when it returns. The caller has
// read from the arbiters that the disk's record does not name the replica: it was in use, so it was named once, and it is
// never named again. One that was never sealed may yet be named and is refused with ukai.ErrRejected, but for one that was made of a retired one:
// whoever gives that up again knows that it never will. If it has come into use since was, the state that the caller judged by, it is refused, too: then
// it was named since. The data stays until the store removes it.
func (rs *Replicas) Retire(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID, was store.State) error {
	h, err := rs.open(ctx, disk, replica)
	if err != nil {
		return err
	}
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer func() { <-h.control }()
	switch header := h.data.Header(); {
	case header.State == store.StateRetired:
		return nil
	case header.State == store.StateOpen && was == store.StateNew:
		return fmt.Errorf("retire replica %v: %w: it has come into use", replica, ukai.ErrRejected)
	case header.State == store.StateOpen, header.State == store.StateNew && header.Adopted:
		return h.advance(fence{epoch: h.admitted.Load().epoch}, func() error { return h.data.SetState(ctx, store.StateRetired) })
	}
	return fmt.Errorf("retire replica %v: %w: it was never in use", replica, ukai.ErrRejected)
}
