package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"ukai"
	"ukai/node/cell"
	"ukai/node/store"
)

const (
	// closedKeep is how long the state of an instance of a quorum record that has ended is kept, to redirect those who still believe in it.
	closedKeep = 30 * 24 * time.Hour
	// forgetEvery is how often a node looks for such states.
	forgetEvery = time.Hour
	// maxForget bounds the states that are forgotten at a time; the others wait for the next.
	maxForget = 1000
)

// cellPrefix is that of the keys of arbiters' states.
const cellPrefix = "c/"

// closedKey says since when this node has known that an instance has ended: seconds of Unix time.
func closedKey(disk ukai.DiskID, instance uint32) string {
	return fmt.Sprintf("cs/%s/%08x", disk, instance)
}

// floorKey holds the newest instance of a disk's record that was forgotten here.
func floorKey(disk ukai.DiskID) string { return "cf/" + disk.String() }

// forgotten says whether this node has forgotten an instance of a disk's record, or a later one.
func (c *cells) forgotten(disk ukai.DiskID, instance uint32) (bool, error) {
	switch v, err := c.store.Get(floorKey(disk)); {
	case errors.Is(err, ukai.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case len(v) != 4:
		return false, fmt.Errorf("newest forgotten instance of disk %v: %d bytes: %w: want 4", disk, len(v), ukai.ErrCorrupt)
	default:
		return instance <= binary.BigEndian.Uint32(v), nil
	}
}

// forget drops the states of instances that ended closedKeep ago. The clock decides only for how long there is a redirect: an instance that is
// forgotten is never begun again, or a late INIT could revive it.
func (c *cells) forget(ctx context.Context) error {
	var ended []*cell.Acceptor
	err := c.store.Scan(cellPrefix, func(_ string, v []byte) error {
		a, err := cell.UnmarshalAcceptor(c.self, v)
		switch {
		case err != nil: // told when it is asked
		case a.Closed() && len(ended) < maxForget:
			ended = append(ended, a)
		}
		return nil //nolint:nilerr // one that cannot be read is kept
	})
	if err != nil {
		return err
	}
	for _, a := range ended {
		if err := c.forgetOne(ctx, a.Disk(), a.Instance()); err != nil {
			return fmt.Errorf("forget instance %d of the quorum record of disk %v: %w", a.Instance(), a.Disk(), err)
		}
	}
	return nil
}

// forgetOne drops the state of an instance that has ended, if that was long ago.
func (c *cells) forgetOne(ctx context.Context, disk ukai.DiskID, instance uint32) error {
	leave, err := c.enter(ctx, disk)
	if err != nil {
		return err
	}
	defer leave()
	now := time.Now()
	since, err := c.store.Get(closedKey(disk, instance))
	if err != nil && !errors.Is(err, ukai.ErrNotFound) {
		return err
	}
	age := time.Duration(-1)
	if len(since) == 8 {
		age = now.Sub(time.Unix(int64(binary.BigEndian.Uint64(since)), 0))
	}
	switch {
	case age < 0: // met for the first time, or by a clock that was ahead
		return c.store.Put(ctx, false, store.KV{K: closedKey(disk, instance), V: binary.BigEndian.AppendUint64(nil, uint64(now.Unix()))})
	case age < closedKeep:
		return nil
	}
	floor, err := c.forgotten(disk, instance)
	if err != nil {
		return err
	}
	kvs := []store.KV{{K: cellKey(disk, instance)}, {K: closedKey(disk, instance)}}
	if !floor {
		kvs = append(kvs, store.KV{K: floorKey(disk), V: binary.BigEndian.AppendUint32(nil, instance)})
	}
	return c.store.Put(ctx, true, kvs...)
}

// forgetEnded calls forget now and then until the node stops.
func (n *Node) forgetEnded() {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		if err := n.cells.forget(n.ctx); err != nil && n.ctx.Err() == nil {
			n.log.Warn("states of quorum records that ended are kept for now; this is tried again", "err", err)
		}
	}
}
