// Package memnet is a packet network in memory: net.PacketConns joined by links with delay, jitter, loss, duplication,
// reordering and one-way cuts. It has no goroutine of its own and keeps time by package time alone, so it runs in the
// virtual time of a testing/synctest bubble. The faults are drawn from a seeded source; which packet meets which fault also
// depends on the schedule, so a seed fixes the odds and not the history.
package memnet

import (
	"container/heap"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// maxQueue is how many packets may wait at one receiver; more are dropped, as a socket's full receive buffer does.
const maxQueue = 8192

// Link describes one direction between two places. The zero Link delivers at once, in order, everything.
type Link struct {
	Delay     time.Duration // one way
	Jitter    time.Duration // added, uniform from 0; packets keep their order unless Reorder says otherwise
	Loss      float64       // share of packets dropped, 0 to 1
	Duplicate float64       // share of packets delivered twice
	Reorder   float64       // share of packets held back by another Delay/2 + Jitter
	Down      bool          // nothing passes
	Rate      int64         // bytes per second, 0 = no limit; packets queue behind one another
}

// Network joins conns by links. Its zero value is not usable; see New.
type Network struct {
	mu    sync.Mutex
	rng   *rand.Rand
	conns map[netip.AddrPort]*Conn
	links map[[2]string]Link
	deflt Link
	stats Stats
}

// Stats counts packets since the network was made.
type Stats struct{ Sent, Delivered, Lost, Duplicated, Overflowed, Bytes uint64 }

// New returns an empty network whose faults are drawn from seed.
func New(seed uint64) *Network {
	return &Network{
		rng:   rand.New(rand.NewPCG(seed, 0x756b6169)),
		conns: map[netip.AddrPort]*Conn{},
		links: map[[2]string]Link{},
	}
}

// SetDefault sets the link between all places that have none of their own.
func (n *Network) SetDefault(l Link) { n.mu.Lock(); n.deflt = l; n.mu.Unlock() }

// SetLink sets the link from one place to another, in that direction only.
func (n *Network) SetLink(from, to string, l Link) {
	n.mu.Lock()
	n.links[[2]string{from, to}] = l
	n.mu.Unlock()
}

// Link returns the link from one place to another.
func (n *Network) Link(from, to string) Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.link(from, to)
}

func (n *Network) link(from, to string) Link {
	if l, ok := n.links[[2]string{from, to}]; ok {
		return l
	}
	return n.deflt
}

// Stats returns the counts so far.
func (n *Network) Stats() Stats { n.mu.Lock(); defer n.mu.Unlock(); return n.stats }

// Listen returns a conn at addr, which stands at the given places: a link is looked up between each place of the sender and
// each of the receiver, the most particular last, so that a conn may be both "t1" and in "tokyo".
func (n *Network) Listen(addr netip.AddrPort, places ...string) (*Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, taken := n.conns[addr]; taken {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: net.UDPAddrFromAddrPort(addr), Err: os.NewSyscallError("bind", errors.New("address already in use"))}
	}
	c := &Conn{net: n, addr: addr, places: places, wake: make(chan struct{}, 1), closed: make(chan struct{})}
	n.conns[addr] = c
	return c, nil
}

// linkBetween returns the link for a packet from a to b: the one named by the most particular places that has been set.
func (n *Network) linkBetween(a, b *Conn) Link {
	l := n.deflt
	for _, from := range a.places {
		for _, to := range b.places {
			if own, ok := n.links[[2]string{from, to}]; ok {
				if l.Down && !own.Down {
					own.Down = true // a cut of any level cuts
				}
				l = own
			}
		}
	}
	return l
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
	l := n.linkBetween(from, dst)
	if l.Down || n.rng.Float64() < l.Loss {
		n.stats.Lost++
		return
	}
	copies := 1
	if n.rng.Float64() < l.Duplicate {
		copies = 2
		n.stats.Duplicated++
	}
	now := time.Now()
	for range copies {
		due := now.Add(l.Delay)
		if l.Rate > 0 {
			if dst.busyUntil == nil {
				dst.busyUntil = map[*Conn]time.Time{}
			}
			start := dst.busyUntil[from]
			if start.Before(now) {
				start = now
			}
			start = start.Add(time.Duration(int64(len(p)) * int64(time.Second) / l.Rate))
			dst.busyUntil[from] = start
			due = start.Add(l.Delay)
		}
		if l.Jitter > 0 {
			due = due.Add(time.Duration(n.rng.Int64N(int64(l.Jitter))))
		}
		if l.Reorder > 0 && n.rng.Float64() < l.Reorder {
			due = due.Add(l.Delay/2 + l.Jitter)
		} else {
			if last := dst.last[from.addr]; due.Before(last) {
				due = last
			}
			if dst.last == nil {
				dst.last = map[netip.AddrPort]time.Time{}
			}
			dst.last[from.addr] = due
		}
		if len(dst.queue) >= maxQueue {
			n.stats.Overflowed++
			return
		}
		dst.seq++
		heap.Push(&dst.queue, packet{due: due, seq: dst.seq, from: from.addr, data: append([]byte(nil), p...)})
	}
	dst.signal()
}

// Conn is one end: a net.PacketConn.
type Conn struct {
	net    *Network
	addr   netip.AddrPort
	places []string
	wake   chan struct{}
	closed chan struct{}

	// guarded by net.mu
	queue     packets
	seq       uint64
	last      map[netip.AddrPort]time.Time
	busyUntil map[*Conn]time.Time
	deadline  time.Time
	frozen    bool
	isClosed  bool
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
		if len(c.queue) > 0 && !c.frozen {
			if head := c.queue[0]; !head.due.After(now) {
				heap.Pop(&c.queue)
				c.net.stats.Delivered++
				c.net.mu.Unlock()
				return copy(p, head.data), net.UDPAddrFromAddrPort(head.from), nil
			}
			next = c.queue[0].due.Sub(now)
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

type packet struct {
	due  time.Time
	seq  uint64
	from netip.AddrPort
	data []byte
}

// packets is a heap by the time a packet is due.
type packets []packet

func (q packets) Len() int { return len(q) }
func (q packets) Less(i, j int) bool {
	return q[i].due.Before(q[j].due) || q[i].due.Equal(q[j].due) && q[i].seq < q[j].seq
}
func (q packets) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *packets) Push(x any)   { *q = append(*q, x.(packet)) }
func (q *packets) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = packet{}
	*q = old[:len(old)-1]
	return last
}
