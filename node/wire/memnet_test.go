package wire

import (
	"container/heap"
	"net"
	"os"
	"sync"
	"time"
)

// memNet is a packet network in memory. It has no goroutines: each reader waits for its own heap of packets.
type memNet struct {
	mu    sync.Mutex
	conns map[string]*memConn
	link  func(from, to string, b []byte) []memDelivery
}

// memDelivery is one copy of a packet and how long it takes.
type memDelivery struct {
	after time.Duration
	b     []byte
}

type memAddr string

func (a memAddr) Network() string { return "mem" }
func (a memAddr) String() string  { return string(a) }

func newMemNet(delay time.Duration) *memNet {
	return &memNet{conns: map[string]*memConn{}, link: func(_, _ string, b []byte) []memDelivery { return []memDelivery{{delay, b}} }}
}

// setLink changes what the network does with packets from now on.
func (n *memNet) setLink(f func(from, to string, b []byte) []memDelivery) {
	n.mu.Lock()
	n.link = f
	n.mu.Unlock()
}

func (n *memNet) listen(addr string) *memConn {
	c := &memConn{net: n, addr: memAddr(addr), wake: make(chan struct{}, 1)}
	n.mu.Lock()
	n.conns[addr] = c
	n.mu.Unlock()
	return c
}

type memPacket struct {
	at   time.Time
	from memAddr
	b    []byte
}

type memHeap []memPacket

func (h memHeap) Len() int           { return len(h) }
func (h memHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h memHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *memHeap) Push(x any)        { *h = append(*h, x.(memPacket)) }
func (h *memHeap) Pop() any {
	old := *h
	p := old[len(old)-1]
	*h = old[:len(old)-1]
	return p
}

type memConn struct {
	net  *memNet
	addr memAddr
	wake chan struct{}

	mu       sync.Mutex
	queue    memHeap
	deadline time.Time
	closed   bool
}

func (c *memConn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *memConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		c.mu.Lock()
		now := time.Now()
		var wait time.Duration = -1
		switch {
		case c.closed:
			c.mu.Unlock()
			return 0, nil, net.ErrClosed
		case !c.deadline.IsZero() && !now.Before(c.deadline):
			c.mu.Unlock()
			return 0, nil, os.ErrDeadlineExceeded
		case len(c.queue) > 0 && !now.Before(c.queue[0].at):
			p := heap.Pop(&c.queue).(memPacket)
			c.mu.Unlock()
			return copy(b, p.b), p.from, nil
		case len(c.queue) > 0:
			wait = c.queue[0].at.Sub(now)
		}
		if !c.deadline.IsZero() && (wait < 0 || c.deadline.Sub(now) < wait) {
			wait = c.deadline.Sub(now)
		}
		c.mu.Unlock()
		if wait < 0 {
			<-c.wake
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-c.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

func (c *memConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	c.net.mu.Lock()
	to := c.net.conns[addr.String()]
	link := c.net.link
	c.net.mu.Unlock()
	if to == nil {
		return len(b), nil // like UDP: nobody there, nobody told
	}
	own := append([]byte(nil), b...)
	for _, d := range link(string(c.addr), string(to.addr), own) {
		to.mu.Lock()
		heap.Push(&to.queue, memPacket{time.Now().Add(d.after), c.addr, d.b})
		to.mu.Unlock()
		to.poke()
	}
	return len(b), nil
}

func (c *memConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.poke()
	c.net.mu.Lock()
	if c.net.conns[string(c.addr)] == c {
		delete(c.net.conns, string(c.addr))
	}
	c.net.mu.Unlock()
	return nil
}

func (c *memConn) LocalAddr() net.Addr { return c.addr }
func (c *memConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	c.poke()
	return nil
}
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }
func (c *memConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
