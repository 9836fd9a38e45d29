package fusefs

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Bytes of a file by which QEMU says what it does with an image (its raw format's locking): whoever locks byte 100+i
// has a permission, whoever locks 200+i denies it to others; i is 0 to read, 1 to write, 3 to resize.
const (
	byteWrites   = 101
	byteResizes  = 103
	byteNoWrite  = 201
	byteNoResize = 203
)

// releaseWait is how long a conflicting lock is waited for when its holder has been closed: the kernel tells us of
// a close(2) at once, but of the end of the open file, which frees its locks, only some time after close returned.
const releaseWait = time.Second

// attaches says whether taking l makes this node the writer of the disk.
func (l lock) attaches() bool {
	return l.overlaps(byteWrites, byteWrites) || l.overlaps(byteResizes, byteResizes)
}

// asksForWriters says whether l, in a query, is QEMU asking whether anybody writes or forbids to.
func (l lock) asksForWriters() bool {
	return l.write && (l.attaches() || l.overlaps(byteNoWrite, byteNoWrite) || l.overlaps(byteNoResize, byteNoResize))
}

// locks are the locks of one file, with those who wait for them. The zero value is ready.
type locks struct {
	mu      sync.Mutex
	ranges  lockTable           // fcntl: POSIX and open-file-description locks
	whole   lockTable           // flock
	closing map[uint64]struct{} // handles with locks of which a descriptor was closed since they took one
	freed   chan struct{}       // closed when a lock is let go; nil when nobody waits
}

// acquire takes l, in the flock table if whole. On a conflict it waits until ctx ends if wait, for releaseWait if
// whoever is in the way is just being closed, and else returns errConflict. It returns what l replaced.
func (s *locks) acquire(ctx context.Context, l lock, whole, wait bool) ([]lock, error) {
	var patience *time.Timer
	for first := true; ; first = false {
		replaced, conflict, err := s.try(l, whole, first)
		if conflict == nil {
			return replaced, err
		}
		if wait {
			err = await(ctx, conflict.freed, nil)
		} else if !conflict.closing {
			err = errConflict
		} else {
			if patience == nil {
				patience = time.NewTimer(releaseWait)
				defer patience.Stop()
			}
			err = await(ctx, conflict.freed, patience.C)
		}
		if err != nil {
			return nil, err
		}
	}
}

// conflict is what stands in the way of a lock.
type conflict struct {
	lock
	closing bool          // its handle is being closed
	freed   chan struct{} // closed when any lock of the file is let go
}

func (s *locks) try(l lock, whole, first bool) ([]lock, *conflict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.ranges
	if whole {
		t = &s.whole
		// flock gives up what it has before it asks for something else, also if it does not get that.
		if first && t.unset(l.owner, 0, lastByte) {
			s.wake()
		}
	}
	if c := s.against(t, l); c != nil {
		return nil, c, nil
	}
	delete(s.closing, l.fh)
	replaced, ok := t.set(l)
	if !ok {
		return nil, nil, errTooManyLocks
	}
	if len(replaced) > 0 {
		s.wake() // it may have been stronger than l
	}
	return replaced, nil, nil
}

// against returns what is in the way of l, or nil.
func (s *locks) against(t *lockTable, l lock) *conflict {
	other, found := t.conflict(l)
	if !found {
		return nil
	}
	if s.freed == nil {
		s.freed = make(chan struct{})
	}
	_, closing := s.closing[other.fh]
	return &conflict{lock: other, closing: closing, freed: s.freed}
}

// query returns the lock that is in the way of l, or nil; one that is about to go is given releaseWait to do so.
func (s *locks) query(ctx context.Context, l lock, whole bool) (*lock, error) {
	var patience *time.Timer
	for {
		s.mu.Lock()
		t := &s.ranges
		if whole {
			t = &s.whole
		}
		c := s.against(t, l)
		s.mu.Unlock()
		if c == nil {
			return nil, nil
		}
		if !c.closing {
			return &c.lock, nil
		}
		if patience == nil {
			patience = time.NewTimer(releaseWait)
			defer patience.Stop()
		}
		if err := await(ctx, c.freed, patience.C); errors.Is(err, errConflict) {
			return &c.lock, nil
		} else if err != nil {
			return nil, err
		}
	}
}

// await returns nil when freed is closed, errConflict when patience ends and ctx's error when that does.
func await(ctx context.Context, freed <-chan struct{}, patience <-chan time.Time) error {
	select {
	case <-freed:
		return nil
	case <-patience:
		return errConflict
	case <-ctx.Done():
		return ctx.Err()
	}
}

// release lets the range go.
func (s *locks) release(owner, start, end uint64, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.ranges
	if whole {
		t = &s.whole
	}
	if t.unset(owner, start, end) {
		s.wake()
	}
}

// restore undoes that l was taken, which had replaced these, unless somebody else has been given something since that
// does not go together with them.
func (s *locks) restore(l lock, replaced []lock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ranges.unset(l.owner, l.start, l.end)
	for _, old := range replaced {
		if _, found := s.ranges.conflict(old); !found {
			s.ranges.set(old)
		}
	}
	s.wake()
}

// closed notes that a process closed a descriptor of fh: its POSIX locks on the file are gone, by the rules, and
// those of the open file may be about to go. It says whether any were dropped.
func (s *locks) closed(owner, fh uint64) (dropped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ranges.locks)+len(s.whole.locks) == 0 {
		return false
	}
	if dropped = s.ranges.dropOwner(owner); dropped {
		s.wake()
	}
	if s.ranges.holds(fh) || s.whole.holds(fh) {
		if s.closing == nil {
			s.closing = make(map[uint64]struct{})
		}
		s.closing[fh] = struct{}{}
	}
	return dropped
}

// released drops all locks of a handle that has ended.
func (s *locks) released(fh uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.closing, fh)
	ranges, whole := s.ranges.dropHandle(fh), s.whole.dropHandle(fh)
	if ranges || whole {
		s.wake()
	}
}

// attaching says whether a lock taken through fh makes its disk be attached.
func (s *locks) attaching(fh uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ranges.holds(fh, byteWrites, byteResizes)
}

func (s *locks) wake() {
	if s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
}
