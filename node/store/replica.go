package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"ukai"
)

// replica is an open Replica.
//
// Its writes gate is open exactly while the durable header says that the replica may hold volatile data of the present
// incarnation: whoever finds it shut makes the header say so first. That is one durable put after an open or a
// MarkClean, and two atomic operations per write otherwise.
type replica struct {
	store *Store
	key   replicaKey
	entry *entry
	file  file
	path  string

	blockSize int
	head      uint16
	size      atomic.Int64

	turn   chan struct{} // lock: held by whoever changes the header, or the gate, or closes
	header atomic.Pointer[header]
	closed atomic.Bool
	failed failure
	writes *gate

	written atomic.Uint64 // counts changes of the data that have returned
	synced  atomic.Uint64 // what written was when the last successful fdatasync began
	syncs   committer

	stamps  *stamps
	summed  blockSet // with checksums, or about to get them
	raising sync.Mutex
	present *raiseRound // being made durable
	next    *raiseRound // gathers raises
	raisers sync.WaitGroup
}

var _ Replica = (*replica)(nil)

// openReplica opens the data file, notices a reboot, and loads the stamps.
func openReplica(s *Store, k replicaKey, e *entry, h header) (*replica, error) {
	r := &replica{
		store: s, key: k, entry: e, path: s.files.path(k, h.Head), blockSize: h.BlockSize, head: h.Head,
		turn: make(chan struct{}, 1), stamps: newStamps(ukai.Blocks(h.Size, h.BlockSize)),
	}
	r.syncs.run = r.syncFile
	r.summed.resize(ukai.Blocks(h.Size, h.BlockSize))
	r.size.Store(h.Size)
	r.header.Store(&h)
	if h.Dirty && h.Incarnation != s.incarnation {
		// The marks of this incarnation must not replace those of the last before it is noted what was lost with it.
		h.Unclean, h.Incarnation = true, s.incarnation
		if err := r.put(context.Background(), h, true); err != nil {
			return nil, err
		}
	}
	if h.Dirty {
		r.written.Add(1) // by an earlier process: the first Sync may not be left out
	}
	r.writes = newGate(h.Dirty)
	beyond, err := r.loadStamps()
	if err != nil {
		return nil, err
	}
	if r.file, err = s.files.open(k, h.Head); err != nil {
		return nil, mediaError(r.path, err)
	}
	if err := r.finishResize(beyond); err != nil {
		return nil, errors.Join(err, r.file.Close())
	}
	return r, nil
}

// loadStamps fills the index, and returns the blocks with a stamp that are beyond the end of the disk.
func (r *replica) loadStamps() (beyond []ukai.Index, err error) {
	blocks := ukai.Index(ukai.Blocks(r.size.Load(), r.blockSize))
	err = r.store.keys.scan(r.key.stampPrefix(r.head), func(key string, v []byte) error {
		index, err := parseStampIndex(key)
		if err != nil {
			return err
		}
		if index >= blocks {
			beyond = append(beyond, index)
			return nil
		}
		stamp, sums, err := decodeStamp(key, v)
		if err != nil {
			return err
		}
		r.stamps.raise(index, stamp)
		if sums != nil {
			r.summed.set(index)
		}
		return nil
	})
	return beyond, err
}

// usable returns why nothing can be done with the replica, or nil.
func (r *replica) usable() error {
	if r.closed.Load() {
		return fmt.Errorf("%v: %w", r.key, ukai.ErrClosed)
	}
	return r.failed.err()
}

// lock takes the replica's turn.
func (r *replica) lock(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := r.usable(); err != nil {
		r.unlock()
		return err
	}
	return nil
}

func (r *replica) unlock() { <-r.turn }

// put writes a header and, once it is as durable as asked, makes it the one that others see. The caller has the turn.
// It does not end early: a caller that gave up would leave a header behind of which nobody knows.
func (r *replica) put(ctx context.Context, h header, sync bool) error {
	ctx = context.WithoutCancel(ctx)
	if err := r.store.putHeader(ctx, r.key, h, sync, false); err != nil {
		return err
	}
	r.header.Store(&h)
	r.entry.mu.Lock()
	r.entry.header = h
	r.entry.mu.Unlock()
	if err := r.failed.err(); err != nil {
		r.noteBroken(err) // this put may have erased the note
	}
	return nil
}

// change applies f to the header and writes it if f says so.
func (r *replica) change(ctx context.Context, sync bool, f func(*header) (bool, error)) error {
	if err := r.lock(ctx); err != nil {
		return err
	}
	defer r.unlock()
	h := *r.header.Load()
	changed, err := f(&h)
	if err != nil || !changed {
		return err
	}
	return r.put(ctx, h, sync)
}

// Header implements Replica.
func (r *replica) Header() Header { return r.header.Load().public() }

// Failed implements Replica.
func (r *replica) Failed() error { return r.failed.err() }

// SetFence implements Replica.
func (r *replica) SetFence(ctx context.Context, epoch ukai.Epoch) error {
	return r.change(ctx, true, func(h *header) (bool, error) {
		switch {
		case h.State == StateRetired:
			return false, fmt.Errorf("%v: %w: it is retired", r.key, ukai.ErrRejected)
		case epoch < h.Fence:
			return false, fmt.Errorf("%v: %w", r.key, &ukai.FencedError{Epoch: h.Fence})
		}
		changed := epoch > h.Fence || h.State == StateNew
		h.Fence, h.State = epoch, StateOpen
		return changed, nil
	})
}

// SetStable implements Replica.
func (r *replica) SetStable(s ukai.BlockStamp, clearUnclean bool) error {
	return r.change(context.Background(), false, func(h *header) (bool, error) {
		changed := h.Stable.Less(s)
		if changed {
			h.Stable = s
		}
		if clearUnclean && h.Unclean {
			h.Unclean, changed = false, true
		}
		return changed, nil
	})
}

// SetVersion implements Replica.
func (r *replica) SetVersion(version uint64) error {
	return r.change(context.Background(), false, func(h *header) (bool, error) {
		if version <= h.Version {
			return false, nil
		}
		h.Version = version
		return true, nil
	})
}

// SetState implements Replica.
func (r *replica) SetState(ctx context.Context, state State) error {
	return r.change(ctx, true, func(h *header) (bool, error) {
		switch {
		case state > StateRetired:
			return false, fmt.Errorf("%v: state %d: %w: must be new, open or retired", r.key, state, ukai.ErrInvalid)
		case h.State == StateRetired && state != StateRetired:
			return false, fmt.Errorf("%v: %w: it is retired, and that is final", r.key, ukai.ErrRejected)
		}
		changed := h.State != state
		h.State = state
		return changed, nil
	})
}

// admit lets a change of the data in; the caller leaves the writes gate afterwards.
func (r *replica) admit() error {
	for {
		if err := r.usable(); err != nil {
			return err
		}
		if r.writes.enter() {
			return nil
		}
		if err := r.markDirty(); err != nil {
			return err
		}
	}
}

// markDirty notes durably that volatile data of this incarnation may exist from now on, and opens the gate.
func (r *replica) markDirty() error {
	if err := r.lock(context.Background()); err != nil {
		return err
	}
	defer r.unlock()
	if r.writes.isOpen() {
		return nil // another writer was here first
	}
	h := *r.header.Load()
	h.Dirty, h.Incarnation = true, r.store.incarnation
	if err := r.put(context.Background(), h, true); err != nil {
		return err
	}
	r.writes.open()
	return nil
}

// MarkClean implements Replica.
func (r *replica) MarkClean(ctx context.Context) error {
	if err := r.lock(ctx); err != nil {
		return err
	}
	defer r.unlock()
	return r.markClean()
}

// markClean shuts the gate, syncs what was let in, and takes the note back. The caller has the turn.
func (r *replica) markClean() error {
	if !r.header.Load().Dirty {
		return nil
	}
	r.writes.shut()
	err := r.syncs.wait(context.Background())
	if err == nil {
		h := *r.header.Load()
		h.Dirty = false
		err = r.put(context.Background(), h, true)
	}
	if err != nil {
		r.writes.open() // the note still stands
	}
	return err
}

// breakWith makes err the fate of the replica, and notes it where the next process sees it. It returns the first error
// that broke it.
func (r *replica) breakWith(err error) error {
	if first := r.failed.set(err); first != err { //nolint:errorlint // this very error, not one like it
		return first
	}
	r.store.log.Error("replica is broken", "disk", r.key.disk, "replica", r.key.rid, "err", err)
	r.noteBroken(err)
	return err
}

// noteBroken adds what broke the replica to its header. That may itself fail, for it is likely the same device.
func (r *replica) noteBroken(err error) {
	r.entry.mu.Lock()
	r.entry.header.Broken = err.Error()
	h := r.entry.header
	r.entry.mu.Unlock()
	if err := r.store.putHeader(context.Background(), r.key, h, true, true); err != nil {
		r.store.log.Error("that the replica is broken could not be noted: remove it before the node restarts", "replica", r.key.String(), "err", err)
	}
}

// Fd implements Replica.
func (r *replica) Fd() (uintptr, bool) { return r.file.fd() }

// Close implements Replica.
func (r *replica) Close() error {
	r.entry.turn <- struct{}{}
	defer func() { <-r.entry.turn }()
	r.turn <- struct{}{}
	defer r.unlock()
	if r.closed.Load() {
		return nil
	}
	var err error
	if r.failed.err() == nil {
		err = r.markClean()
	}
	return errors.Join(err, r.end())
}

// end closes the replica as it is. The caller has both turns, or is alone.
func (r *replica) end() error {
	r.raising.Lock()
	r.closed.Store(true) // no raise begins after this
	r.raising.Unlock()
	r.raisers.Wait()
	r.writes.shut()
	r.syncs.join()
	r.entry.mu.Lock()
	r.entry.open = nil
	r.entry.mu.Unlock()
	if err := r.file.Close(); err != nil {
		return mediaError(r.path, err)
	}
	return nil
}
