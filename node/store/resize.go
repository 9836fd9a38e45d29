package store

import (
	"context"
	"fmt"

	"ukai"
)

// Resize implements Replica. The file grows before the header says so: a crash in between leaves a file that is too
// long, which the next open cuts.
func (r *replica) Resize(ctx context.Context, size int64) error {
	if err := ukai.CheckDiskSize(size); err != nil {
		return fmt.Errorf("resize %v: %w", r.key, err)
	}
	if err := r.lock(ctx); err != nil {
		return err
	}
	defer r.unlock()
	h := *r.header.Load()
	if size < h.Size {
		return fmt.Errorf("resize %v: %w: %d bytes is less than the present %d; cutting data off is an operation of its own",
			r.key, ukai.ErrInvalid, size, h.Size)
	}
	if size == h.Size {
		return nil
	}
	if err := r.void(h.Size-1, 1); err != nil { // the last checksum will be of more
		return err
	}
	if err := r.file.truncate(size); err != nil {
		return r.writeError("resize", size, err)
	}
	h.Size = size
	if err := r.put(ctx, h, true); err != nil {
		return err
	}
	r.stamps.resize(ukai.Blocks(size, r.blockSize))
	r.summed.resize(ukai.Blocks(size, r.blockSize))
	r.size.Store(size)
	return nil
}

// Shrink implements Replica. The header comes first: once it is durable, what is beyond does not exist, and a crash
// leaves the rest to the next open.
func (r *replica) Shrink(ctx context.Context, size int64) error {
	if err := ukai.CheckDiskSize(size); err != nil {
		return fmt.Errorf("shrink %v: %w", r.key, err)
	}
	if err := r.lock(ctx); err != nil {
		return err
	}
	defer r.unlock()
	h := *r.header.Load()
	old := h.Size
	if size > old {
		return fmt.Errorf("shrink %v: %w: %d bytes is more than the present %d", r.key, ukai.ErrInvalid, size, old)
	}
	if size == old {
		return nil
	}
	if err := r.void(size-1, 1); err != nil { // the last checksum will be of less
		return err
	}
	h.Size = size
	if err := r.put(ctx, h, true); err != nil {
		return err
	}
	r.size.Store(size)
	first, end := ukai.Index(ukai.Blocks(size, r.blockSize)), ukai.Index(ukai.Blocks(old, r.blockSize))
	if first < end {
		if err := r.dropStamps(context.WithoutCancel(ctx), first, end-1); err != nil {
			return fmt.Errorf("shrink %v: %w", r.key, err)
		}
	}
	r.stamps.resize(uint64(first))
	r.summed.resize(uint64(first))
	if err := r.file.truncate(size); err != nil {
		return r.writeError("shrink", size, err)
	}
	return nil
}

// finishResize cuts what a Resize or Shrink that was interrupted left beyond the end of the disk. Data and stamps there
// would come back to life when the disk grows.
func (r *replica) finishResize(beyond []ukai.Index) error {
	size := r.size.Load()
	have, err := r.file.size()
	switch {
	case err != nil:
		return mediaError(r.path, err)
	case have < size:
		return fmt.Errorf("%s: %w: %d bytes long, its header says %d: something other than ukai-node cut it; remove the replica and let its disk be resynced from another",
			r.path, ukai.ErrCorrupt, have, size)
	case have > size:
		if err := r.file.truncate(size); err != nil {
			return mediaError(r.path, err)
		}
	}
	for len(beyond) > 0 {
		n := min(len(beyond), MaxBatchKeys)
		kvs := make([]KV, n)
		for i, index := range beyond[:n] {
			kvs[i].K = r.key.stampKey(r.head, index)
		}
		if err := r.store.keys.put(context.Background(), false, true, kvs); err != nil {
			return err
		}
		beyond = beyond[n:]
	}
	return nil
}
