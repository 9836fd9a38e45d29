// Package memnet is a packet network in memory: net.PacketConns joined by links with delay, jitter, loss, duplication,
// reordering and one-way cuts. It has no goroutine of its own and keeps time by package time alone, so it runs in the
// virtual time of a testing/synctest bubble. The faults are drawn from a seeded source; which packet meets which fault also
// depends on the schedule, so a seed fixes the odds and not the history.
package memnet

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"ukai/testnet/link"
)

// maxQueue is how many packets may wait at one receiver; more are dropped, as a socket's full receive buffer does.
const maxQueue = 8192

// Link describes one direction between two places.
type Link = link.Link

// Network joins conns by links. Its zero value is not usable; see New.
type Network struct {
	mu    sync.Mutex
	rng   *rand.Rand
	conns map[netip.AddrPort]*Conn
	links link.Table
	stats Stats
	sent  map[[2]string]uint64 // bytes, by places
}

// Stats counts packets since the network was made.
type Stats struct{ Sent, Delivered, Lost, Duplicated, Overflowed, Bytes uint64 }

// New returns an empty network whose faults are drawn from seed.
func New(seed uint64) *Network {
	return &Network{
		rng:   rand.New(rand.NewPCG(seed, 0x756b6169)),
		conns: map[netip.AddrPort]*Conn{},
		sent:  map[[2]string]uint64{},
	}
}

// SetDefault sets the link between all places that have none of their own.
func (n *Network) SetDefault(l Link) { n.mu.Lock(); n.links.SetDefault(l); n.mu.Unlock() }

// SetLink sets the link from one place to another, in that direction only.
func (n *Network) SetLink(from, to string, l Link) {
	n.mu.Lock()
	n.links.Set(from, to, l)
	n.mu.Unlock()
}

// Link returns the link from one place to another.
func (n *Network) Link(from, to string) Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.links.Get(from, to)
}

// Stats returns the counts so far.
func (n *Network) Stats() Stats { n.mu.Lock(); defer n.mu.Unlock(); return n.stats }

// Sent returns how many bytes have been sent from one place to another.
func (n *Network) Sent(from, to string) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent[[2]string{from, to}]
}

// Listen returns a conn at addr, which stands at the given places: a link is looked up between each place of the sender and
// each of the receiver, the most particular last, so that a conn may be both "t1" and in "tokyo".
func (n *Network) Listen(addr netip.AddrPort, places ...string) (*Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, taken := n.conns[addr]; taken {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: net.UDPAddrFromAddrPort(addr), Err: os.NewSyscallError("bind", errors.New("address already in use"))}
	}
	c := &Conn{net: n, addr: addr, places: places, wake: make(chan struct{}, 1), closed: make(chan struct{}), paths: map[netip.AddrPort]*link.Path{}}
	n.conns[addr] = c
	return c, nil
}

func (n *Network) send(from *Conn, p []byte, to netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats.Sent++
	n.stats.Bytes += uint64(len(p))
	dst, ok := n.conns[to]
	if !ok {
		n.stats.Lost++
		return
	}
	for _, a := range from.places {
		for _, b := range dst.places {
			n.sent[[2]string{a, b}] += uint64(len(p))
		}
	}
	path := dst.paths[from.addr]
	if path == nil {
		path = &link.Path{}
		dst.paths[from.addr] = path
	}
	due, copies := n.links.Between(from.places, dst.places).Schedule(path, n.rng, time.Now(), len(p))
	switch copies {
	case 0:
		n.stats.Lost++
	case 2:
		n.stats.Duplicated++
	}
	for i := range copies {
		if dst.queue.Len() >= maxQueue {
			n.stats.Overflowed++
			return
		}
		dst.queue.Push(due[i], packet{from.addr, append([]byte(nil), p...)})
	}
	dst.signal()
}

type packet struct {
	from netip.AddrPort
	data []byte
}

// Conn is one end: a net.PacketConn.
type Conn struct {
	net    *Network
	addr   netip.AddrPort
	places []string
	wake   chan struct{}
	closed chan struct{}

	// guarded by net.mu
	queue    link.Queue[packet]
	paths    map[netip.AddrPort]*link.Path
	deadline time.Time
	frozen   bool
	isClosed bool
}

func (c *Conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Freeze stops (or resumes) the conn: what is sent to it waits, as at a process that was stopped.
func (c *Conn) Freeze(frozen bool) {
	c.net.mu.Lock()
	c.frozen = frozen
	c.net.mu.Unlock()
	c.signal()
}

// ReadFrom waits for the next packet that is due.
func (c *Conn) ReadFrom(p []byte) (int, net.Addr, error) {
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		c.net.mu.Lock()
		now := time.Now()
		if c.isClosed {
			c.net.mu.Unlock()
			return 0, nil, net.ErrClosed
		}
		if !c.deadline.IsZero() && !now.Before(c.deadline) {
			c.net.mu.Unlock()
			return 0, nil, os.ErrDeadlineExceeded
		}
		next := time.Duration(-1)
		if due, ok := c.queue.Next(); ok && !c.frozen {
			if !due.After(now) {
				head := c.queue.Pop()
				c.net.stats.Delivered++
				c.net.mu.Unlock()
				return copy(p, head.data), net.UDPAddrFromAddrPort(head.from), nil
			}
			next = due.Sub(now)
		}
		if !c.deadline.IsZero() && (next < 0 || c.deadline.Sub(now) < next) {
			next = c.deadline.Sub(now)
		}
		c.net.mu.Unlock()
		var due <-chan time.Time
		if next >= 0 {
			if timer == nil {
				timer = time.NewTimer(next)
			} else {
				timer.Reset(next)
			}
			due = timer.C
		}
		select {
		case <-c.wake:
		case <-due:
		case <-c.closed:
		}
	}
}

// WriteTo sends p; it never blocks. Packets to nobody are lost without an error, as with UDP.
func (c *Conn) WriteTo(p []byte, addr net.Addr) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, &net.AddrError{Err: "not a UDP address", Addr: addr.String()}
	}
	ap := to.AddrPort()
	c.net.send(c, p, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	return len(p), nil
}

// Close frees the address. Packets under way to it are lost.
func (c *Conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.isClosed {
		return net.ErrClosed
	}
	c.isClosed = true
	if c.net.conns[c.addr] == c {
		delete(c.net.conns, c.addr)
	}
	close(c.closed)
	return nil
}

// LocalAddr returns the address given to Listen.
func (c *Conn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.addr) }

// SetDeadline sets the read deadline; writes never wait.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline ends reads that wait past t with os.ErrDeadlineExceeded.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.net.mu.Lock()
	c.deadline = t
	c.net.mu.Unlock()
	c.signal()
	return nil
}

// SetWriteDeadline does nothing: writes never wait.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// SetReadBuffer and SetWriteBuffer exist so that quic-go does not warn about buffer sizes.
func (c *Conn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing.
func (c *Conn) SetWriteBuffer(int) error { return nil }
