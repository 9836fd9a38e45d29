package store

import (
	"context"
	"sync"

	"ukai"
)

// committer runs a costly operation on behalf of many callers at once (group commit): each gets the outcome of a run
// that began after it asked, and at most one run is under way.
type committer struct {
	run func() error

	mu   sync.Mutex
	next *round // gathers callers for the run after the present one
	busy bool   // a goroutine is running rounds
	over bool   // join was called
	wg   sync.WaitGroup
}

type round struct {
	done chan struct{}
	err  error // set before done is closed
}

// wait returns the outcome of a run that begins after the call, or ctx's error; the run goes on then. It is a goroutine
// of its own that runs, not the caller, so that a disk which hangs does not hold a caller past its ctx.
func (c *committer) wait(ctx context.Context) error {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return ukai.ErrClosed
	}
	if c.next == nil {
		c.next = &round{done: make(chan struct{})}
	}
	r := c.next
	if !c.busy {
		c.busy = true
		c.wg.Go(c.rounds)
	}
	c.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *committer) rounds() {
	for {
		c.mu.Lock()
		r := c.next
		c.next = nil
		if r == nil {
			c.busy = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		r.err = c.run()
		close(r.done)
	}
}

// join waits for the runs under way; every later wait fails with ukai.ErrClosed.
func (c *committer) join() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.wg.Wait()
}
