package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
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
func floorKey(disk ukai.DiskID) string { return floorPrefix + disk.String() }

const (
	floorPrefix = "cf/"
	// unknownPrefix, before a key, is that of the time since when the catalog does not know the key's disk: seconds of Unix time.
	unknownPrefix = "cu/"
)

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
//
// It drops likewise, without a trace, what is kept of disks that nobody knows: they were deleted and forgotten, or never came to be.
func (c *cells) forget(ctx context.Context) error {
	var ended, others []*cell.Acceptor
	err := c.store.Scan(cellPrefix, func(_ string, v []byte) error {
		a, err := cell.UnmarshalAcceptor(c.self, v)
		switch {
		case err != nil: // told when it is asked
		case !a.Closed():
			others = append(others, a)
		case len(ended) < maxForget:
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
	for _, a := range others {
		if err := c.forgetUnknown(ctx, a.Disk(), cellKey(a.Disk(), a.Instance())); err != nil {
			return fmt.Errorf("forget the quorum record of disk %v: %w", a.Disk(), err)
		}
	}
	var floors []ukai.DiskID
	err = c.store.Scan(floorPrefix, func(k string, _ []byte) error {
		if disk, err := ukai.ParseDiskID(strings.TrimPrefix(k, floorPrefix)); err == nil {
			floors = append(floors, disk)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, disk := range floors {
		if err := c.forgetUnknown(ctx, disk, floorKey(disk)); err != nil {
			return fmt.Errorf("forget the quorum record of disk %v: %w", disk, err)
		}
	}
	return nil
}

// forgetUnknown drops what is kept under a key about a disk that the catalog does not know, if it has been so for closedKeep and this node has since had
// all that any node of the mesh knew: then nobody can ask for it any more.
func (c *cells) forgetUnknown(ctx context.Context, disk ukai.DiskID, key string) error {
	leave, err := c.enter(ctx, disk)
	if err != nil {
		return err
	}
	defer leave()
	mark := unknownPrefix + key
	v, err := c.store.Get(mark)
	if err != nil && !errors.Is(err, ukai.ErrNotFound) {
		return err
	}
	caughtUp, unknown := c.unknown(disk)
	now, since := time.Now(), time.Time{}
	if len(v) == 8 {
		since = time.Unix(int64(binary.BigEndian.Uint64(v)), 0)
	}
	due := since.Add(closedKeep)
	switch {
	case !unknown && len(v) == 0:
		return nil
	case !unknown:
		return c.store.Put(ctx, false, store.KV{K: mark})
	case since.IsZero() || now.Before(since): // met for the first time, or by a clock that was ahead
		return c.store.Put(ctx, false, store.KV{K: mark, V: binary.BigEndian.AppendUint64(nil, uint64(now.Unix()))})
	case now.Before(due) || caughtUp.Before(due):
		return nil
	}
	return c.store.Put(ctx, true, store.KV{K: key}, store.KV{K: mark})
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
