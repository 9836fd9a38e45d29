package volume

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
)

// opened are the open replicas of a node. Opening and closing do I/O, one at a time for each replica, and nobody waits for that of another one, or
// longer than for its own context: a medium that hangs must not hold up what lies elsewhere.
type opened struct {
	all atomic.Pointer[map[replicaKey]*hosted] // copied on change, with mu

	mu    sync.Mutex                  // not held over I/O
	busy  map[replicaKey]*changing    // being opened or closed
	sizes map[replicaKey]*measurement // of their space
	stuck *measurement                // one that has not ended in its time; while there is one none is begun
}

// changing is the opening or closing of a replica.
type changing struct {
	done chan struct{}
	h    *hosted // that was opened
	err  error   // why it was not
}

// measurement is how much space a replica takes.
type measurement struct {
	since time.Time
	done  chan struct{} // closed when what follows is of now; until then it is of before
	bytes int64
	known bool
}

func (m *measurement) over() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// allocatedTime is how long it is waited for a medium to tell how much space a replica takes. Only one question per replica is under way, however
// many ask, and none is begun while one has not been answered in that time: each would cost a thread.
const allocatedTime = 500 * time.Millisecond

func (o *opened) init() {
	o.all.Store(&map[replicaKey]*hosted{})
	o.busy, o.sizes = map[replicaKey]*changing{}, map[replicaKey]*measurement{}
}

// get returns a replica that is open, or nil.
func (o *opened) get(key replicaKey) *hosted { return (*o.all.Load())[key] }

// change begins to open or close a replica. Is another one at that already, it is returned, with false.
func (o *opened) change(key replicaKey) (c *changing, began bool) {
	if c = o.busy[key]; c == nil {
		c, began = &changing{done: make(chan struct{})}, true
		o.busy[key] = c
	}
	return c, began
}

// end ends what change began. h is open from here on; nil: the replica is closed.
func (o *opened) end(key replicaKey, c *changing, h *hosted, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c.h, c.err = h, err
	if h != nil {
		all := maps.Clone(*o.all.Load())
		all[key] = h
		o.all.Store(&all)
	}
	delete(o.busy, key)
	close(c.done)
}

// open returns a replica of this node, opened if it is not yet. One that does not exist is never made by this:
// errors.Is(err, ukai.ErrNotFound). It returns when ctx ends, and what it began goes on.
func (rs *Replicas) open(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID) (*hosted, error) {
	key := replicaKey{disk, replica}
	for {
		if h := rs.opened.get(key); h != nil {
			return h, nil
		}
		rs.opened.mu.Lock()
		if h := rs.opened.get(key); h != nil {
			rs.opened.mu.Unlock()
			return h, nil
		}
		c, began := rs.opened.change(key)
		rs.opened.mu.Unlock()
		if began {
			if !rs.running.enter() {
				rs.opened.end(key, c, nil, fmt.Errorf("replicas: %w", ukai.ErrClosed))
				return nil, c.err
			}
			go func() {
				defer rs.running.leave()
				data, err := rs.cfg.Store.OpenReplica(disk, replica)
				if err != nil {
					rs.opened.end(key, c, nil, fmt.Errorf("replica %v: %w", replica, err))
					return
				}
				rs.opened.end(key, c, newHosted(rs, key, data), nil)
			}()
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if c.h != nil || c.err != nil {
			return c.h, c.err
		} // else it was closed
	}
}

// Shut closes a replica, after the operations that run have finished, so that it can be removed from the store. It may
// be opened again by a later request.
func (rs *Replicas) Shut(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID) error {
	key := replicaKey{disk, replica}
	for {
		rs.opened.mu.Lock()
		c, began := rs.opened.change(key)
		if !began {
			rs.opened.mu.Unlock()
			select {
			case <-c.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		h := rs.opened.get(key)
		if h != nil {
			all := maps.Clone(*rs.opened.all.Load())
			delete(all, key)
			rs.opened.all.Store(&all)
		}
		delete(rs.opened.sizes, key)
		rs.opened.mu.Unlock()
		defer rs.opened.end(key, c, nil, nil)
		if h == nil {
			return nil
		}
		return h.shut(ctx)
	}
}

// Allocated returns how many bytes this node's replicas of a disk take. One that does not open is left out. Where a medium does not answer within
// allocatedTime it is what it said last, if it ever did.
func (rs *Replicas) Allocated(ctx context.Context, disk ukai.DiskID) map[ukai.ReplicaID]int64 {
	asked := make(map[ukai.ReplicaID]*measurement)
	for _, info := range rs.cfg.Store.Replicas() {
		if info.Disk == disk {
			if m := rs.measure(replicaKey{disk, info.Replica}); m != nil {
				asked[info.Replica] = m
			}
		}
	}
	all := make(map[ukai.ReplicaID]int64, len(asked))
	for id, m := range asked {
		if bytes, known := rs.await(ctx, m); known {
			all[id] = bytes
		}
	}
	return all
}

// measure asks the medium how much space a replica takes, unless that is being asked already. It returns nil if nothing is known, and nothing is asked
// now: another question is stuck, or the node closes.
func (rs *Replicas) measure(key replicaKey) *measurement {
	o := &rs.opened
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.sizes[key]
	if before != nil && !before.over() {
		return before
	}
	if o.stuck != nil && !o.stuck.over() {
		return before
	}
	o.stuck = nil
	if !rs.running.enter() {
		return nil
	}
	m := &measurement{since: time.Now(), done: make(chan struct{})}
	if before != nil {
		m.bytes, m.known = before.bytes, before.known
	}
	o.sizes[key] = m
	go func() {
		defer rs.running.leave()
		h, err := rs.open(rs.ctx, key.disk, key.replica)
		bytes := int64(0)
		if err == nil {
			bytes = h.data.AllocatedBytes()
		}
		o.mu.Lock()
		m.bytes, m.known = bytes, err == nil
		if err != nil && o.sizes[key] == m {
			delete(o.sizes, key)
		}
		o.mu.Unlock()
		close(m.done)
	}()
	return m
}

// await waits until a measurement has ended, but not longer than allocatedTime after it began.
func (rs *Replicas) await(ctx context.Context, m *measurement) (bytes int64, known bool) {
	late := !m.over()
	if left := allocatedTime - time.Since(m.since); late && left > 0 {
		t := time.NewTimer(left)
		defer t.Stop()
		select {
		case <-m.done:
			late = false
		case <-t.C:
		case <-ctx.Done():
			late = false // that is not known yet
		}
	}
	rs.opened.mu.Lock()
	defer rs.opened.mu.Unlock()
	if late && rs.opened.stuck == nil {
		rs.opened.stuck = m
	}
	return m.bytes, m.known
}
