package store

import (
	"context"
	"errors"
	"fmt"

	"ukai"
)

// keeper guards the database: it bounds batches, lets callers share syncs, and stops everything after a failure.
type keeper struct {
	db     database
	space  *spaceGauge
	gate   *gate // open until Close
	syncs  committer
	failed failure
}

func newKeeper(db database, space *spaceGauge) *keeper {
	k := &keeper{db: db, space: space, gate: newGate(true)}
	k.syncs.run = k.sync
	return k
}

// sync is one run of the group commit. After a failed sync it is unknown what the disk holds, and a second one would
// report success about pages that the kernel has given up: nothing is ever promised again.
func (k *keeper) sync() error {
	if err := k.failed.err(); err != nil {
		return err
	}
	if err := k.db.sync(); err != nil {
		return k.breakWith("sync database", err)
	}
	return nil
}

// put applies kvs, and returns after they are durable if sync is set. Without force it refuses to add anything while
// the file system is nearly full.
func (k *keeper) put(ctx context.Context, sync, force bool, kvs []KV) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if !k.gate.enter() {
		return errStoreClosed()
	}
	defer k.gate.leave()
	if err := k.failed.err(); err != nil {
		return err
	}
	if !force && adds(kvs) {
		if err := k.space.allowKeys(); err != nil {
			return err
		}
	}
	if err := k.db.apply(kvs); err != nil {
		return k.breakWith("write database", err) // what it has of the batch now is unknown
	}
	if !sync {
		return nil
	}
	return k.syncs.wait(ctx)
}

func adds(kvs []KV) bool {
	for i := range kvs {
		if kvs[i].V != nil {
			return true
		}
	}
	return false
}

func (k *keeper) get(key string) ([]byte, error) {
	if !k.gate.enter() {
		return nil, errStoreClosed()
	}
	defer k.gate.leave()
	return k.db.get(key)
}

func (k *keeper) scan(prefix string, f func(k string, v []byte) error) error {
	if !k.gate.enter() {
		return errStoreClosed()
	}
	defer k.gate.leave()
	return k.db.scan(prefix, f)
}

// deleteAll deletes the keys with a prefix, in batches: a crash may leave the later ones. It scans once: to begin anew
// after each batch would walk over all that was deleted before, which takes hours for the stamps of a large disk.
func (k *keeper) deleteAll(ctx context.Context, prefix string) error {
	kvs := make([]KV, 0, MaxBatchKeys)
	err := k.scan(prefix, func(key string, _ []byte) error {
		kvs = append(kvs, KV{K: key})
		if len(kvs) < MaxBatchKeys {
			return nil
		}
		err := k.put(ctx, false, true, kvs)
		kvs = kvs[:0]
		return err
	})
	if err != nil || len(kvs) == 0 {
		return err
	}
	return k.put(ctx, false, true, kvs)
}

// moveAll gives the keys with a prefix another one, in batches: a crash may leave the later ones as they were.
func (k *keeper) moveAll(ctx context.Context, from, to string) error {
	var kvs []KV
	bytes := 0
	move := func() error {
		err := k.put(ctx, false, true, kvs)
		kvs, bytes = nil, 0
		return err
	}
	err := k.scan(from, func(key string, v []byte) error {
		kvs = append(kvs, KV{to + key[len(from):], v}, KV{K: key})
		if bytes += 2*len(key) + len(v); len(kvs) < MaxBatchKeys && bytes < MaxBatchBytes/2 {
			return nil
		}
		return move()
	})
	if err != nil || len(kvs) == 0 {
		return err
	}
	return move()
}

func (k *keeper) close() error {
	k.gate.shut()
	k.syncs.join()
	return k.db.close()
}

// checkBatch says why kvs cannot be a batch, or nil.
func checkBatch(kvs []KV) error {
	bytes := 0
	for i := range kvs {
		key, value := kvs[i].K, kvs[i].V
		switch {
		case key == "":
			return fmt.Errorf("put: %w: a key may not be empty", ukai.ErrInvalid)
		case len(key) > MaxKey:
			return fmt.Errorf("put key %q...: %w: %d bytes long, the most is %d", key[:32], ukai.ErrInvalid, len(key), MaxKey)
		case len(value) > MaxValue:
			return fmt.Errorf("put key %q: %w: value of %d bytes, the most is %d", key, ukai.ErrInvalid, len(value), MaxValue)
		}
		bytes += len(key) + len(value)
	}
	if len(kvs) > MaxBatchKeys || bytes > MaxBatchBytes {
		return fmt.Errorf("put: %w: batch of %d keys and %d bytes, the most is %d and %d: split it",
			ukai.ErrInvalid, len(kvs), bytes, MaxBatchKeys, MaxBatchBytes)
	}
	return nil
}

// breakWith makes a failure of the database the fate of the store.
func (k *keeper) breakWith(doing string, err error) error {
	if errors.Is(err, ukai.ErrClosed) {
		return errStoreClosed()
	}
	return k.failed.set(fmt.Errorf("%s: %w: %w (nothing can be promised about this store any more: check the device, then restart ukai-node)",
		doing, ukai.ErrMedia, err))
}

func errStoreClosed() error { return fmt.Errorf("store: %w", ukai.ErrClosed) }
