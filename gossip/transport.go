package gossip

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"ukai"
)

// Transport is what gossip needs of the network. Packets may be lost, repeated and reordered, streams are reliable;
// both come only from nodes that have the mesh key, and what they carry is hidden from everybody else. Addresses
// are *net.UDPAddr, or something whose String is "ip:port".
type Transport interface {
	// WritePacket sends at most maxPacket bytes and does not keep b.
	WritePacket(b []byte, to net.Addr) error
	// ReadPacket waits for a packet. The bytes need to stay valid only until the next call.
	ReadPacket(ctx context.Context) ([]byte, net.Addr, error)
	DialStream(ctx context.Context, to net.Addr) (net.Conn, error)
	AcceptStream(ctx context.Context) (net.Conn, error)
	// LocalAddr is the address the transport listens on; it may be a wildcard.
	LocalAddr() net.Addr
	// RTT is the round trip to a connected peer as the transport sees it, smoothed; false if it does not know.
	RTT(ukai.NodeID) (time.Duration, bool)
}

const (
	// maxPacket bounds what memberlist puts into one packet. With 48 bytes of sealing and 48 of IPv6 and UDP headers it
	// stays below 1280 bytes, the least that any IPv6 path carries whole.
	maxPacket = 1180

	// The first byte of a stream says whose it is.
	streamMembership = 'M' // memberlist's push/pull and fallback pings
	streamCatalog    = 'U' // ours, see exchange.go

	// maxMembershipStream bounds what is read from one of memberlist's streams: the table of 16,384 nodes and a digest.
	// At the bound the stream ends with an error.
	maxMembershipStream = 4 << 20

	// maxOpenStreams bounds the streams of peers that are served at a time; further ones are closed at once.
	maxOpenStreams = 128

	// packetQueue bounds the packets that wait for memberlist; the transport drops what comes in meanwhile.
	packetQueue = 512

	firstByteTimeout = 5 * time.Second
)

// carrier lets memberlist use a Transport and sorts incoming streams into memberlist's and ours.
type carrier struct {
	net       Transport
	advertise netip.AddrPort
	serve     func(net.Conn)                  // one of our streams; closed by the carrier afterwards
	opinion   func(node []byte, suspect bool) // memberlist tells others this
	count     *counters
	log       *quietLog

	ctx     context.Context
	stop    context.CancelFunc
	tasks   sync.WaitGroup
	packets chan *memberlist.Packet
	streams chan net.Conn
	slots   chan struct{}

	mu   sync.Mutex
	open map[*stream]struct{}
}

func (m *Mesh) newCarrier() *carrier {
	c := &carrier{
		net: m.cfg.Transport, advertise: m.advertise, serve: m.serve, opinion: m.opinion, count: &m.count, log: m.quiet,
		packets: make(chan *memberlist.Packet, packetQueue), streams: make(chan net.Conn),
		slots: make(chan struct{}, maxOpenStreams), open: make(map[*stream]struct{}),
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// start begins to read; until then memberlist may write but hears nothing.
func (c *carrier) start() {
	c.tasks.Add(2)
	go c.readPackets()
	go c.acceptStreams()
}

func (c *carrier) readPackets() {
	defer c.tasks.Done()
	for {
		b, from, err := c.net.ReadPacket(c.ctx)
		if err != nil {
			if !c.pause("read packet", err) {
				return
			}
			continue
		}
		c.count.packetsIn.Add(1)
		c.count.packetBytesIn.Add(uint64(len(b)))
		if len(b) == 0 || len(b) > 64<<10 || !membershipKind(b[0]) {
			c.count.packetsRefused.Add(1)
			c.log.warn("packet refused", "from", from.String(), "bytes", len(b))
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: from, Timestamp: time.Now()}
		select {
		case c.packets <- p:
		case <-c.ctx.Done():
			return
		}
	}
}

// membershipKind says whether a packet may begin with kind: memberlist's messages but for compressed and encrypted
// ones, which this mesh does not send, and push/pull and errors, which belong on streams.
func membershipKind(kind byte) bool {
	const pushPull, compressed, encrypted, hasCRC = 6, 9, 10, 12
	return kind <= hasCRC && kind != pushPull && kind != compressed && kind != encrypted
}

// pause keeps a failing transport from being asked in a tight loop; false means that it is time to end.
func (c *carrier) pause(what string, err error) bool {
	if c.ctx.Err() != nil {
		return false
	}
	c.log.warn(what, "error", err)
	select {
	case <-time.After(100 * time.Millisecond):
		return true
	case <-c.ctx.Done():
		return false
	}
}

func (c *carrier) acceptStreams() {
	defer c.tasks.Done()
	for {
		conn, err := c.net.AcceptStream(c.ctx)
		if err != nil {
			if !c.pause("accept stream", err) {
				return
			}
			continue
		}
		select {
		case c.slots <- struct{}{}:
		default:
			c.count.streamsRefused.Add(1)
			c.log.warn("stream refused: too many are open", "from", conn.RemoteAddr().String(), "limit", maxOpenStreams)
			_ = conn.Close() // nothing was written to it
			continue
		}
		c.tasks.Add(1)
		go c.sort(conn)
	}
}

// sort reads the first byte of a peer's stream and hands the stream on.
func (c *carrier) sort(conn net.Conn) {
	defer c.tasks.Done()
	defer func() { <-c.slots }()
	s := c.adopt(conn)
	if s == nil {
		return
	}
	var kind [1]byte
	_ = s.SetReadDeadline(time.Now().Add(firstByteTimeout)) // a conn without deadlines ends with the peer or the carrier
	if _, err := io.ReadFull(conn, kind[:]); err != nil {
		_ = s.Close() // the peer gave up
		return
	}
	_ = s.SetReadDeadline(time.Time{})
	switch kind[0] {
	case streamMembership:
		s.claim(c, kind[0])
		select {
		case c.streams <- s:
		case <-c.ctx.Done():
			_ = s.Close()
		}
	case streamCatalog:
		s.claim(c, kind[0])
		c.serve(s)
		_ = s.Close() // serve has answered or given up
	default:
		c.count.streamsRefused.Add(1)
		c.log.warn("stream refused: unknown kind", "from", conn.RemoteAddr().String(), "kind", kind[0])
		_ = s.Close()
	}
}

// dial opens a stream of the given kind to a peer.
func (c *carrier) dial(ctx context.Context, kind byte, to netip.AddrPort, timeout time.Duration) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	conn, err := c.net.DialStream(ctx, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil, fmt.Errorf("stream to %v: %w", to, err)
	}
	s := c.adopt(conn)
	if s == nil {
		return nil, fmt.Errorf("stream to %v: %w", to, ukai.ErrClosed)
	}
	s.claim(c, kind)
	s.first = true
	return s, nil
}

// adopt makes sure that conn is closed when the carrier ends; nil if it already has.
func (c *carrier) adopt(conn net.Conn) *stream {
	s := &stream{Conn: conn, owner: c, left: maxMembershipStream}
	c.mu.Lock()
	ended := c.open == nil
	if !ended {
		c.open[s] = struct{}{}
	}
	c.mu.Unlock()
	if ended {
		_ = conn.Close()
		return nil
	}
	return s
}

// The methods below are memberlist.NodeAwareTransport.

// FinalAdvertiseAddr tells memberlist which address to give to others.
func (c *carrier) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return c.advertise.Addr().AsSlice(), int(c.advertise.Port()), nil
}

// WriteTo sends a packet to "ip:port".
func (c *carrier) WriteTo(b []byte, addr string) (time.Time, error) {
	return c.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a packet to a node.
func (c *carrier) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr.Addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("packet to %q: %w", addr.Addr, err)
	}
	if c.ctx.Err() != nil {
		return time.Time{}, ukai.ErrClosed
	}
	c.count.packetsOut.Add(1)
	c.count.packetBytesOut.Add(uint64(len(b)))
	opinions(b, c.opinion)
	now := time.Now()
	return now, c.net.WritePacket(b, net.UDPAddrFromAddrPort(to))
}

// PacketCh is where memberlist reads packets.
func (c *carrier) PacketCh() <-chan *memberlist.Packet { return c.packets }

// DialTimeout opens one of memberlist's streams to "ip:port".
func (c *carrier) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return c.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens one of memberlist's streams to a node.
func (c *carrier) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr.Addr)
	if err != nil {
		return nil, fmt.Errorf("stream to %q: %w", addr.Addr, err)
	}
	s, err := c.dial(context.Background(), streamMembership, to, timeout)
	if err != nil {
		return nil, err // not s: a nil *stream would be a non-nil net.Conn
	}
	return s, nil
}

// StreamCh is where memberlist accepts streams.
func (c *carrier) StreamCh() <-chan net.Conn { return c.streams }

// Shutdown ends all reading, closes every stream and waits for the carrier's goroutines.
func (c *carrier) Shutdown() error {
	c.stop()
	c.mu.Lock()
	open := c.open
	c.open = nil
	c.mu.Unlock()
	for s := range open {
		_ = s.Conn.Close() // whoever uses it gets the error
	}
	c.tasks.Wait()
	return nil
}

// stream is a net.Conn that counts, that ends with the carrier, and that has a bound on what is read from it.
type stream struct {
	net.Conn
	owner   *carrier
	kind    byte
	first   bool // the kind has yet to be written, together with the first bytes
	left    int  // bytes that may still be read
	in, out *atomic.Uint64
}

func (s *stream) claim(c *carrier, kind byte) {
	s.kind = kind
	s.in, s.out = &c.count.membershipBytesIn, &c.count.membershipBytesOut
	if kind == streamCatalog {
		s.in, s.out = &c.count.catalogBytesIn, &c.count.catalogBytesOut
		s.left = int(^uint(0) >> 1) // each frame has a bound of its own
	}
}

func (s *stream) Read(p []byte) (int, error) {
	if s.left <= 0 {
		return 0, fmt.Errorf("stream from %v: %w: more than %d bytes", s.RemoteAddr(), ukai.ErrInvalid, maxMembershipStream)
	}
	n, err := s.Conn.Read(p[:min(len(p), s.left)])
	s.left -= n
	s.in.Add(uint64(n))
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	if !s.first {
		n, err := s.Conn.Write(p)
		s.out.Add(uint64(n))
		return n, err
	}
	s.first = false
	n, err := s.Conn.Write(append([]byte{s.kind}, p...))
	s.out.Add(uint64(n))
	return max(n-1, 0), err
}

func (s *stream) Close() error {
	s.owner.mu.Lock()
	delete(s.owner.open, s) // of a nil map: nothing to do
	s.owner.mu.Unlock()
	return s.Conn.Close()
}
