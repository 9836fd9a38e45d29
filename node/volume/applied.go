package volume

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
)

// applied counts the mutations that a replica has applied in one session, by batches, and lets flushes wait that were sent behind them: on a connection of
// their own they may overtake what they are to make stable.
//
// The holder sends no mutation of a batch any more when it has sent the flush that ends it, and says in the flush how many there are in it and in those
// before. A later mutation that is applied sooner belongs to a later batch: it is not counted in place of one that is on its way. The number of a batch
// comes around after 65535.
type applied struct {
	counts  [batches]atomic.Uint64 // of the batches after through
	waiting atomic.Int32
	mu      sync.Mutex
	through uint16        // the last batch that is known to be complete, and with it all before
	count   uint64        // of them
	news    chan struct{} // closed when something was applied while somebody waits
	over    bool
}

// batches is how many batches are counted apart. A holder waits for fewer flushes at once.
const (
	batches   = 64
	maxBehind = batches / 2
)

// behindFor is how long a flush waits for mutations that were sent before it: one that failed is never counted.
const behindFor = time.Second

func (a *applied) init() { a.news = make(chan struct{}) }

// add counts a mutation whose data is in place; 0: it belongs to no batch.
func (a *applied) add(batch uint16) {
	if batch == 0 {
		return
	}
	a.counts[batch%batches].Add(1)
	if a.waiting.Load() > 0 {
		a.wake(false)
	}
}

// has says whether all mutations of the batches up to one have been applied, if there are so many in them. The caller holds mu.
func (a *applied) has(batch uint16, count uint64) bool {
	ahead := int16(batch - a.through)
	if ahead <= 0 {
		return count <= a.count
	}
	sum := a.count
	for b := a.through + 1; b != batch+1; b++ {
		sum += a.counts[b%batches].Load()
	}
	if sum < count {
		return false
	}
	for b := a.through + 1; b != batch+1; b++ {
		a.counts[b%batches].Store(0) // nothing of it comes any more, and another batch is to be counted here
	}
	a.through, a.count = batch, sum
	return true
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

// reach waits until all mutations of the batches up to one have been applied, if there are so many in them. It fails with ukai.ErrOverloaded if they do not
// come, or the session ends.
func (a *applied) reach(ctx context.Context, batch uint16, count uint64) error {
	a.waiting.Add(1)
	defer a.waiting.Add(-1)
	var late <-chan time.Time // only who waits needs a timer
	for {
		a.mu.Lock()
		if ahead := int16(batch - a.through); batch == 0 || ahead >= batches {
			a.mu.Unlock()
			return fmt.Errorf("flush behind batch %d, where %d is complete: %w: want a batch at most %d after that, and not 0", batch, a.through, ukai.ErrInvalid, batches-1)
		}
		has, news, over := a.has(batch, count), a.news, a.over
		a.mu.Unlock()
		switch {
		case has:
			return nil
		case over:
			return fmt.Errorf("flush behind %d writes: the session is over: %w", count, ukai.ErrOverloaded)
		}
		if late == nil {
			timer := time.NewTimer(behindFor)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-news:
		case <-late:
			return fmt.Errorf("flush behind %d writes: some have not come after %v: %w", count, behindFor, ukai.ErrOverloaded)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
