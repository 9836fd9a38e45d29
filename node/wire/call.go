package wire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"ukai"
)

// Call is a request under way.
type Call struct {
	kind   Kind
	id     uint64
	p      *peer
	lane   lane
	cost   int
	sentOn atomic.Pointer[requestLane] // nil until the frame was given to a connection

	// gaveUp tells the goroutine that reads the reply into the caller's buffer to let go of it.
	gaveUp atomic.Pointer[error]

	mu      sync.Mutex
	into    []byte
	filling bool // a reply is being read into into
	over    bool // reply and err are final, done is closed
	reply   Reply
	err     error
	done    chan struct{}
}

// Done is closed when Wait would return at once.
func (c *Call) Done() <-chan struct{} { return c.done }

// Wait returns the reply. When it has returned, neither the payload of the request nor the buffer for the reply is
// touched any more; what the buffer holds after an error is undefined.
//
// The end of ctx ends the call: ukai.ErrTimeout after a deadline, else the context's own error. A lost connection
// ends it with ukai.ErrUnreachable, Close with ukai.ErrClosed. In all three cases the peer may or may not have acted
// on the request, and may still do so. Any other error is the peer's answer.
//
// Wait may be called more than once, and from several goroutines.
func (c *Call) Wait(ctx context.Context) (Reply, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		c.giveUp(contextError(ctx))
		<-c.done
	}
	return c.reply, c.err
}

// giveUp ends the call for its caller. The request stays where it is, and its place in the budget stays taken, until
// the peer answers or the connection is lost: a peer that never answers must not be sent ever more.
func (c *Call) giveUp(err error) {
	c.mu.Lock()
	if c.filling {
		// The reader owns the buffer. It looks at gaveUp between reads; interrupt gets it out of the one it is in.
		c.gaveUp.Store(&err)
		c.mu.Unlock()
		c.sentOn.Load().interrupt()
		return
	}
	c.settle(Reply{}, err)
	c.mu.Unlock()
}

// fill begins to read a reply of n bytes. It returns where to, or nil if nobody wants it any more.
func (c *Call) fill(n int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return nil
	}
	c.filling = true
	if n <= len(c.into) {
		return c.into[:n]
	}
	return make([]byte, n)
}

// finish makes the outcome known, unless there is one already. Once fill has returned a buffer, only the goroutine
// that fills it may call finish.
func (c *Call) finish(r Reply, err error) {
	c.mu.Lock()
	c.settle(r, err)
	c.mu.Unlock()
}

func (c *Call) settle(r Reply, err error) {
	if c.over {
		return
	}
	c.over, c.filling, c.into = true, false, nil
	c.reply, c.err = r, err
	close(c.done)
}

// retire gives back what the call took. Whoever takes it out of the last list it is in does so.
func (c *Call) retire() {
	c.p.budgets[c.lane].release(c.cost)
	c.p.calls.Add(-1)
}

// Start sends m to the node to and returns without waiting for the answer. m and its payload are the caller's again
// when it returns. A payload in the reply is read straight into into if it fits, else into a buffer of its own.
//
// Start waits only while Config.MaxInflight requests or Config.MaxInflightBytes are under way to that node in the
// same lane, and then no longer than ctx lives. Dialing goes on in the background. All errors are Wait's.
func (e *Endpoint) Start(ctx context.Context, to ukai.NodeID, m *Message, into []byte) *Call {
	c := &Call{kind: m.Kind, lane: m.lane(len(into)), into: into, done: make(chan struct{})}
	if err := m.check(); err != nil {
		c.finish(Reply{}, err)
		return c
	}
	p, err := e.peer(to)
	if err != nil {
		c.finish(Reply{}, err)
		return c
	}
	c.p, c.cost = p, headerSize+len(m.Payload)+len(into)
	if err := p.budgets[c.lane].acquire(ctx, c.cost); err != nil {
		p.calls.Add(-1)
		e.counts.overloaded.Add(1)
		c.finish(Reply{}, fmt.Errorf("%w: %d un-answered %v requests to the peer", contextError(ctx), e.cfg.MaxInflight, c.lane))
		return c
	}
	c.id = e.nextID.Add(1)
	f := e.pool.get(headerSize + len(m.Payload))
	copy(f.b[headerSize:], m.Payload)
	h := requestHeader(c.id, m)
	h.put(f.b, f.b[headerSize:])
	e.counts.requests.Add(1)
	e.counts.requestBytes.Add(uint64(len(f.b)))
	p.link(c.lane).submit(c, f)
	return c
}

// Call is Start and Wait.
func (e *Endpoint) Call(ctx context.Context, to ukai.NodeID, m *Message, into []byte) (Reply, error) {
	return e.Start(ctx, to, m, into).Wait(ctx)
}

// contextError says how ctx ended, in the words of package ukai.
func contextError(ctx context.Context) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ukai.ErrTimeout, err)
	}
	return err
}
