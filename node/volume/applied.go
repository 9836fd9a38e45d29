package volume

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
)

// applied counts the mutations that a replica has applied in one session, and lets flushes wait that were sent behind them: on a connection of their
// own they may overtake what they are to make stable.
type applied struct {
	count   atomic.Uint64
	waiting atomic.Int32
	mu      sync.Mutex
	news    chan struct{} // closed when the count has grown while somebody waits
	over    bool
}

// behindFor is how long a flush waits for mutations that were sent before it: one that failed is never counted.
const behindFor = time.Second

func (a *applied) init() { a.news = make(chan struct{}) }

// add counts a mutation whose data is in place.
func (a *applied) add() {
	a.count.Add(1)
	if a.waiting.Load() > 0 {
		a.wake(false)
	}
}

// giveUp has all fail that wait: the session is over.
func (a *applied) giveUp() { a.wake(true) }

func (a *applied) wake(over bool) {
	a.mu.Lock()
	a.over = a.over || over
	close(a.news)
	a.news = make(chan struct{})
	a.mu.Unlock()
}

// reach waits until so many mutations have been applied. It fails with ukai.ErrOverloaded if they do not come, or the session ends.
func (a *applied) reach(ctx context.Context, count uint64) error {
	if a.count.Load() >= count {
		return nil
	}
	a.waiting.Add(1)
	defer a.waiting.Add(-1)
	timer := time.NewTimer(behindFor)
	defer timer.Stop()
	for {
		a.mu.Lock()
		news, over := a.news, a.over
		a.mu.Unlock()
		if a.count.Load() >= count {
			return nil
		}
		if over {
			return fmt.Errorf("flush behind %d writes: the session is over: %w", count, ukai.ErrOverloaded)
		}
		select {
		case <-news:
		case <-timer.C:
			return fmt.Errorf("flush behind %d writes: %d have come after %v: %w", count, a.count.Load(), behindFor, ukai.ErrOverloaded)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
