package wire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
)

const (
	// maxPeers bounds the nodes that requests may be under way to; more are refused with ukai.ErrOverloaded.
	maxPeers = 4096
	// A failed dial is not repeated for minBackoff, then twice as long each time up to maxBackoff, unless the peer
	// dials this node meanwhile. Requests in that time fail at once.
	minBackoff = 100 * time.Millisecond
	maxBackoff = 2 * time.Second
	// staleDial is after how long a dial begins anew when the peer dials this node: QUIC repeats its first packets at
	// growing intervals, so a dial that began before the peer was up may take seconds to notice that it is.
	staleDial = 500 * time.Millisecond
)

// peer is another node as the caller of requests sees it.
type peer struct {
	e       *Endpoint
	id      ukai.NodeID
	budgets [numLanes]*budget
	calls   atomic.Int64 // under way
	used    atomic.Int64 // when peer was last asked for, in nanoseconds since the endpoint was opened
	fast    link         // for control, small writes and small reads
	bulk    []link
	next    atomic.Uint32 // bulk link to use

	mu       sync.Mutex
	failures int // dials that led to nothing since the last reply
	retryAt  time.Time
	lastErr  error
	up       chan struct{} // closed when the peer dials this node; then there is another one
}

// peer returns the peer with its count of calls raised by one.
func (e *Endpoint) peer(id ukai.NodeID) (*peer, error) {
	e.mu.RLock()
	p := e.peers[id]
	if p != nil && !e.closed {
		p.calls.Add(1)
		e.mu.RUnlock()
		p.used.Store(int64(e.sinceOpen()))
		return p, nil
	}
	e.mu.RUnlock()

	e.mu.Lock()
	defer e.mu.Unlock()
	switch p = e.peers[id]; {
	case e.closed:
		return nil, errClosing
	case p != nil:
	case id.IsZero():
		return nil, fmt.Errorf("request to node %v: %w: the zero id names no node", id, ukai.ErrInvalid)
	case len(e.peers) >= maxPeers:
		return nil, fmt.Errorf("request to node %v: %w: requests to %d nodes are under way", id.Short(), ukai.ErrOverloaded, maxPeers)
	default:
		p = &peer{e: e, id: id, bulk: make([]link, e.cfg.BulkConns), up: make(chan struct{})}
		p.fast.p = p
		for i := range p.bulk {
			p.bulk[i].p = p
		}
		for n := range p.budgets {
			p.budgets[n] = newBudget(e.cfg.MaxInflight, e.cfg.MaxInflightBytes)
		}
		e.peers[id] = p
	}
	p.calls.Add(1)
	p.used.Store(int64(e.sinceOpen()))
	return p, nil
}

func (p *peer) link(n lane) *link {
	if n != laneBulk {
		return &p.fast
	}
	return &p.bulk[int(p.next.Add(1))%len(p.bulk)]
}

func (p *peer) links() []*link {
	all := []*link{&p.fast}
	for i := range p.bulk {
		all = append(all, &p.bulk[i])
	}
	return all
}

// reached forgets failures: a reply came through.
func (p *peer) reached() {
	p.mu.Lock()
	p.failures, p.retryAt, p.lastErr = 0, time.Time{}, nil
	p.mu.Unlock()
}

// heard makes the next dial begin at once, and one that has been waiting begin anew: the peer has dialed this node.
func (e *Endpoint) heard(id ukai.NodeID) {
	e.mu.RLock()
	p := e.peers[id]
	e.mu.RUnlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	p.retryAt = time.Time{}
	close(p.up)
	p.up = make(chan struct{})
	p.mu.Unlock()
}

// failed notes a dial that led to nothing.
func (p *peer) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := min(minBackoff<<min(p.failures, 10), maxBackoff)
	wait += time.Duration(rand.Int64N(int64(wait) / 4))
	p.failures++
	p.retryAt = time.Now().Add(wait)
	p.lastErr = err
}

// refusal returns why no dial is tried now, or nil if one may be.
func (p *peer) refusal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if wait := time.Until(p.retryAt); p.lastErr != nil && wait > 0 {
		return fmt.Errorf("%w (%d failed, next try in %v)", p.lastErr, p.failures, wait.Round(time.Millisecond))
	}
	return nil
}

// link is one connection to a peer, whether it exists at the moment or not.
type link struct {
	p *peer

	mu      sync.Mutex
	conn    *conn // nil if there is none
	dialing bool
	waiting []parked // for the dial; bounded by the peer's budgets
}

type parked struct {
	c *Call
	f *buffer
}

// submit sends a request on the link's connection, after dialing it if need be. It does not wait.
func (l *link) submit(c *Call, f *buffer) {
	for {
		l.mu.Lock()
		conn := l.conn
		if conn == nil {
			break
		}
		l.mu.Unlock()
		if l.send(conn, c, f) {
			return
		}
	}
	if l.dialing {
		l.waiting = append(l.waiting, parked{c, f})
		l.mu.Unlock()
		return
	}
	if err := l.p.refusal(); err != nil {
		l.mu.Unlock()
		l.p.e.counts.unreachable.Add(1)
		l.drop(parked{c, f}, err)
		return
	}
	l.dialing = true
	l.waiting = append(l.waiting, parked{c, f})
	l.mu.Unlock()
	if !l.p.e.spawn(l.dial) {
		l.give(nil, errClosing)
	}
}

// send returns false if conn is gone; then the link has none any more.
func (l *link) send(conn *conn, c *Call, f *buffer) bool {
	err := conn.submit(c, f)
	if err != nil {
		l.lost(conn, err)
	}
	return err == nil
}

// submit sends a request on its lane. An error means that nothing was sent, and the frame is still the caller's.
func (c *conn) submit(call *Call, f *buffer) error {
	lane, err := c.lane(call.lane)
	if err == nil {
		err = lane.send(call, f)
	}
	if err == nil || errors.Is(err, errRetired) {
		return err
	}
	return lost(c.q, err)
}

// lost forgets conn if it is the link's. A connection that never carried a reply counts as a failed dial: a server
// refuses a certificate only after the dial has succeeded for the client.
func (l *link) lost(conn *conn, err error) {
	l.mu.Lock()
	mine := l.conn == conn
	if mine {
		l.conn = nil
	}
	l.mu.Unlock()
	if mine && !conn.proven.Load() && !errors.Is(err, errRetired) {
		l.p.failed(err)
	}
}

func (l *link) drop(w parked, err error) {
	l.p.e.pool.put(w.f)
	w.c.finish(Reply{}, err)
	w.c.retire()
}

// dial connects to where the peer listens now and sends what has been waiting for it.
func (l *link) dial() {
	e, p := l.p.e, l.p
	addr, ok := e.cfg.Addr(p.id)
	if !ok {
		err := fmt.Errorf("%w: no address is known for node %v", ukai.ErrUnreachable, p.id.Short())
		p.failed(err)
		l.give(nil, err)
		return
	}
	conn, err := l.dialOnce(addr)
	if errors.Is(err, errStale) {
		conn, err = l.dialOnce(addr)
	}
	if err != nil {
		p.failed(err)
	}
	l.give(conn, err)
}

var errStale = fmt.Errorf("%w: the dial began before the peer was up", ukai.ErrUnreachable)

// dialOnce returns errStale if the peer has dialed this node meanwhile and should have answered long ago.
func (l *link) dialOnce(addr net.Addr) (*conn, error) {
	e, p := l.p.e, l.p
	p.mu.Lock()
	up := p.up
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(e.ctx, e.cfg.DialTimeout)
	defer cancel()
	began, done := time.Now(), make(chan struct{})
	var stale bool
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		select {
		case <-up:
			if stale = time.Since(began) > staleDial; stale {
				cancel()
			}
		case <-done:
		}
	}()
	conn, err := e.dial(ctx, addr, p.id, l)
	close(done)
	<-watch
	if err != nil && stale {
		err = errStale
	}
	return conn, err
}

// give makes conn the link's connection and sends on it what has been waiting, in order, before anything newer. If
// conn is nil, what has been waiting fails with err.
func (l *link) give(conn *conn, err error) {
	for {
		l.mu.Lock()
		waiting := l.waiting
		l.waiting = nil
		if len(waiting) == 0 {
			l.dialing = false
			l.conn = conn
			l.mu.Unlock()
			break
		}
		l.mu.Unlock()
		for _, w := range waiting {
			if err == nil {
				if err = conn.submit(w.c, w.f); err == nil {
					continue
				}
			}
			l.p.e.counts.unreachable.Add(1)
			l.drop(w, err)
		}
	}
	if conn != nil && conn.q.Context().Err() != nil {
		l.lost(conn, lost(conn.q, nil)) // it was lost while links did not know of it
	}
}

// Drop gives up all connections dialed to a node. Calls under way fail with ukai.ErrUnreachable, and the next one
// dials anew, at once.
func (e *Endpoint) Drop(to ukai.NodeID) {
	e.mu.RLock()
	p := e.peers[to]
	e.mu.RUnlock()
	if p == nil {
		return
	}
	for _, l := range p.links() {
		l.mu.Lock()
		c := l.conn
		l.conn = nil
		l.mu.Unlock()
		if c != nil {
			c.close(codeReset, "")
		}
	}
	p.reached()
}
