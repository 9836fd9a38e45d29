package wire

import (
	"context"
	"sync"
)

// budget bounds how many requests, and how many bytes in them, may be under way. Waiters are served in order.
type budget struct {
	mu       sync.Mutex
	requests int // free
	bytes    int // free; below zero while too much is borrowed
	maxBytes int
	waiting  []*waiter
}

type waiter struct {
	cost  int
	ready chan struct{}
}

func newBudget(requests, bytes int) *budget {
	return &budget{requests: requests, bytes: bytes, maxBytes: bytes}
}

// clamp makes a request that is larger than the whole budget wait for all of it, not for ever.
func (b *budget) clamp(cost int) int { return min(cost, b.maxBytes) }

// acquire takes one request of cost bytes out of the budget, or waits until it can or ctx ends.
func (b *budget) acquire(ctx context.Context, cost int) error {
	cost = b.clamp(cost)
	b.mu.Lock()
	if len(b.waiting) == 0 && b.requests > 0 && b.bytes >= cost {
		b.requests--
		b.bytes -= cost
		b.mu.Unlock()
		return nil
	}
	w := &waiter{cost: cost, ready: make(chan struct{})}
	b.waiting = append(b.waiting, w)
	b.mu.Unlock()

	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, other := range b.waiting {
		if other == w {
			b.waiting = append(b.waiting[:i], b.waiting[i+1:]...)
			b.wake() // what w waited for may be enough for those behind it
			return ctx.Err()
		}
	}
	return nil // w was served in the meantime
}

// release gives one request of cost bytes back.
func (b *budget) release(cost int) {
	b.mu.Lock()
	b.requests++
	b.bytes += b.clamp(cost)
	b.wake()
	b.mu.Unlock()
}

// borrow takes n bytes without waiting: what is under way turned out to be larger. Until they are repaid, bytes may be
// below zero.
func (b *budget) borrow(n int) {
	b.mu.Lock()
	b.bytes -= n
	b.mu.Unlock()
}

// repay gives borrowed bytes back.
func (b *budget) repay(n int) {
	b.mu.Lock()
	b.bytes += n
	b.wake()
	b.mu.Unlock()
}

func (b *budget) wake() {
	for len(b.waiting) > 0 && b.requests > 0 && b.bytes >= b.waiting[0].cost {
		w := b.waiting[0]
		b.waiting[0] = nil
		b.waiting = b.waiting[1:]
		b.requests--
		b.bytes -= w.cost
		close(w.ready)
	}
}

// used returns what is under way, and how many wait.
func (b *budget) used(maxRequests int) (requests, bytes, waiting int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maxRequests - b.requests, b.maxBytes - b.bytes, len(b.waiting)
}
