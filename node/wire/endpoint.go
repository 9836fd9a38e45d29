package wire

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"ukai"
)

// Config says how an endpoint works. Zero values stand for the defaults.
type Config struct {
	// Conn is the socket. An endpoint that was opened owns it and closes it. Hand a *net.UDPConn over as it is: a
	// wrapper would cost most of the throughput. Others must support SetReadDeadline.
	Conn net.PacketConn
	// Keys are the mesh keys: the first vouches for this node and seals its packets, all of them are accepted.
	Keys []MeshKey
	// Identity says which node this is.
	Identity Identity
	// Addr says where a node listens now. It is called when a connection is dialed and every few seconds as long
	// as one exists; a changed address moves new requests to a new connection.
	Addr func(ukai.NodeID) (net.Addr, bool)
	// Serve is called with each request, in the order of arrival in its lane, on the goroutine that reads the
	// lane: the next request waits until it returns. Do quick work there, and start a goroutine for anything that
	// may wait. Without it all requests are answered with ukai.ErrUnsupported.
	Serve func(*Request)
	// Log takes what administrators should know. Default: nothing is logged.
	Log *slog.Logger

	// DialTimeout bounds the wait for a new connection. Default 4 s.
	DialTimeout time.Duration
	// IdleTimeout is after how long a silent peer counts as gone. Default 10 s.
	IdleTimeout time.Duration
	// KeepAlive is how often something is sent on a connection without traffic. Default 3 s.
	KeepAlive time.Duration
	// Linger is for how long a connection without calls and streams is kept. Default 2 min.
	Linger time.Duration
	// BulkConns is how many connections per peer share transfers of more than 64 KiB. Default 2, at most 8.
	BulkConns int
	// MaxInflight bounds the un-answered requests per peer and lane, and on the serving side the requests of one
	// peer and lane that Serve was called with and that are not answered. At the bound Start waits, and a server
	// stops reading. Default 1024.
	MaxInflight int
	// MaxInflightBytes bounds likewise the bytes in these requests and their replies. Default 64 MiB.
	MaxInflightBytes int
}

const (
	maxBulkConns = 8

	// Windows of flow control: what a peer may send before it was read. They have to cover bandwidth times RTT:
	// 16 MiB is 80 MB/s over 200 ms, for one stream.
	initialStreamWindow = 2 << 20
	initialConnWindow   = 4 << 20
	maxStreamWindow     = 16 << 20
	maxConnWindow       = 64 << 20

	// maxStreams bounds the streams that a peer has open on one connection.
	maxStreams = 256
	// maxConnsPerPeer bounds the connections accepted from one node; a new one replaces the oldest.
	maxConnsPerPeer = 16
	// maxConns bounds the connections accepted from all nodes; more are turned away.
	maxConns = 8192
	// More new connections per second than handshakeRate must first prove their address, which costs them a
	// round trip and keeps forged addresses from costing us a handshake each.
	handshakeRate  = 100
	handshakeBurst = 200

	// tidyPeriod is how often idle connections and changed addresses are looked for.
	tidyPeriod = 2 * time.Second
	// peerMemory is how long a peer without calls and connections is remembered.
	peerMemory = 10 * time.Minute
)

func (c Config) withDefaults() Config {
	c.DialTimeout = cmp.Or(c.DialTimeout, 4*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 10*time.Second)
	c.KeepAlive = cmp.Or(c.KeepAlive, 3*time.Second)
	c.Linger = cmp.Or(c.Linger, 2*time.Minute)
	c.BulkConns = cmp.Or(c.BulkConns, 2)
	c.MaxInflight = cmp.Or(c.MaxInflight, 1024)
	c.MaxInflightBytes = cmp.Or(c.MaxInflightBytes, 64<<20)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) check() error {
	bad := func(what string, value any, rule string) error {
		return fmt.Errorf("%s %v: %w: %s", what, value, ukai.ErrInvalid, rule)
	}
	switch {
	case c.Conn == nil:
		return bad("socket", c.Conn, "none given")
	case c.Identity.IsZero():
		return bad("node identity", "", "none given")
	case c.Addr == nil:
		return bad("function Addr", "nil", "none given")
	case c.DialTimeout < 0:
		return bad("dial timeout", c.DialTimeout, "must be more than 0")
	case c.KeepAlive < 0 || c.IdleTimeout < 0 || c.KeepAlive*2 > c.IdleTimeout:
		return bad("keep-alive period", c.KeepAlive, fmt.Sprintf("must be more than 0 and at most half the idle timeout of %v", c.IdleTimeout))
	case c.Linger < 0:
		return bad("linger time", c.Linger, "must be more than 0")
	case c.BulkConns < 1 || c.BulkConns > maxBulkConns:
		return bad("bulk connections", c.BulkConns, fmt.Sprintf("want 1 to %d", maxBulkConns))
	case c.MaxInflight < 1 || c.MaxInflightBytes < 1:
		return bad("bound of un-answered requests", fmt.Sprintf("%d of %d bytes", c.MaxInflight, c.MaxInflightBytes), "must be more than 0")
	}
	return nil
}

// Endpoint is this node's end of the wire.
type Endpoint struct {
	cfg       Config
	log       *slog.Logger
	self      ukai.NodeID
	udp       bool // Conn takes only *net.UDPAddr
	transport *quic.Transport
	listener  *quic.Listener
	ring      atomic.Pointer[keyring]
	pool      buffers
	counts    counts
	opened    time.Time

	sender  senderID
	sent    atomic.Uint64 // packets
	packets chan packet
	nextID  atomic.Uint64 // of requests
	connID  atomic.Uint64

	complaints complaints
	accepting  map[byte]chan *rawStream // by proto; never changes

	ctx   context.Context // ends when Close begins
	close context.CancelFunc
	wg    sync.WaitGroup // all goroutines of the endpoint

	mu       sync.RWMutex
	closed   bool
	peers    map[ukai.NodeID]*peer
	conns    map[*conn]struct{} // all that are open
	served   map[ukai.NodeID]*served
	accepted int // conns that were accepted
	raw      map[rawKey]*rawLink
	past     traffic // of connections that are gone
}

// Open starts an endpoint on cfg.Conn.
func Open(cfg Config) (*Endpoint, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	ring, err := newKeyring(cfg.Keys, cfg.Identity)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &Endpoint{
		cfg: cfg, log: cfg.Log, self: cfg.Identity.ID(), opened: time.Now(), ctx: ctx, close: cancel,
		packets:   make(chan packet, maxQueuedPackets),
		peers:     make(map[ukai.NodeID]*peer),
		conns:     make(map[*conn]struct{}),
		served:    make(map[ukai.NodeID]*served),
		raw:       make(map[rawKey]*rawLink),
		accepting: map[byte]chan *rawStream{ProtoGossip: make(chan *rawStream, maxAccepting), ProtoAdmin: make(chan *rawStream, maxAccepting)},
	}
	_, e.udp = cfg.Conn.(quic.OOBCapablePacketConn)
	_, _ = rand.Read(e.sender[:]) // never fails: it ends the program instead
	e.ring.Store(ring)

	handshakes := rate.NewLimiter(handshakeRate, handshakeBurst)
	reset := quic.StatelessResetKey(derive(cfg.Identity.private.Seed(), "stateless reset", len(quic.StatelessResetKey{})))
	e.transport = &quic.Transport{
		Conn:                             coalesced(cfg.Conn),
		StatelessResetKey:                &reset, // lets peers know at once that this node has restarted
		DisableVersionNegotiationPackets: true,   // nothing is sent to those who do not know the protocol
		VerifySourceAddress:              func(net.Addr) bool { return !handshakes.Allow() },
		Tracer:                           dropRecorder{&e.counts.packetsGarbage},
	}
	e.listener, err = e.transport.Listen(&tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			return e.ring.Load().serverTLS(e.judge(hello)), nil
		},
	}, e.quicConfig(0))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("listen on %v: %w", cfg.Conn.LocalAddr(), err)
	}
	// QUIC drops other packets until it is asked for one; from now on it queues them.
	done, cancelNow := context.WithCancel(ctx)
	cancelNow()
	_, _, _ = e.transport.ReadNonQUICPacket(done, nil)
	e.spawn(e.accept)
	e.spawn(e.receivePackets)
	e.spawn(e.tidy)
	return e, nil
}

// judge returns what is to be told of a client that was believed, or why it was not. A client that is told nothing of
// until its handshake is over has given it up, as one does that does not believe this node.
func (e *Endpoint) judge(hello *tls.ClientHelloInfo) func(error) {
	from := hello.Conn.RemoteAddr()
	var judged atomic.Bool
	context.AfterFunc(hello.Context(), func() {
		if !judged.Load() && e.ctx.Err() == nil {
			e.refuse(&e.counts.handshakesRefused, from, "connection", errGivenUp)
		}
	})
	return func(err error) {
		judged.Store(true)
		if err != nil {
			e.refuse(&e.counts.handshakesRefused, from, "connection", err)
		}
	}
}

// ID returns the node this endpoint belongs to.
func (e *Endpoint) ID() ukai.NodeID { return e.self }

// LocalAddr returns the address of the socket.
func (e *Endpoint) LocalAddr() net.Addr { return e.cfg.Conn.LocalAddr() }

// SetKeys replaces the mesh keys: the first vouches for this node and seals its packets from now on, all of them are
// accepted. Connections for which a key vouched that is not among them are closed.
//
// A key is rotated in three rounds over all nodes: (old, new), then (new, old), then (new).
func (e *Endpoint) SetKeys(keys []MeshKey) error {
	ring, err := newKeyring(keys, e.cfg.Identity)
	if err != nil {
		return err
	}
	e.ring.Store(ring)
	for _, c := range e.open() {
		if !ring.accepts(c.key) {
			c.close(codeKey, "mesh key retired")
		}
	}
	return nil
}

// Close ends all calls with ukai.ErrClosed, closes all connections and the socket, and returns when every goroutine
// of the endpoint has ended, Serve's callers included.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		e.wg.Wait()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	e.close()
	err := e.listener.Close()
	var closing sync.WaitGroup
	for _, c := range e.open() {
		closing.Go(func() { c.close(codeClosing, "") })
	}
	closing.Wait()
	e.wg.Wait()
	e.drainAccepting()
	return errors.Join(err, e.transport.Close(), e.cfg.Conn.Close())
}

// spawn runs f on a goroutine that Close waits for; false if the endpoint is closed.
func (e *Endpoint) spawn(f func()) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return false
	}
	e.wg.Go(f)
	return true
}

func (e *Endpoint) sinceOpen() time.Duration { return time.Since(e.opened) }

// open returns all open connections.
func (e *Endpoint) open() []*conn {
	e.mu.RLock()
	defer e.mu.RUnlock()
	all := make([]*conn, 0, len(e.conns))
	for c := range e.conns {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *conn) int { return cmp.Compare(a.id, b.id) })
	return all
}

// quicConfig is the same for both ends, except that only the end that dialed keeps the connection alive.
func (e *Endpoint) quicConfig(keepAlive time.Duration) *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           e.cfg.DialTimeout,
		MaxIdleTimeout:                 e.cfg.IdleTimeout,
		KeepAlivePeriod:                keepAlive,
		InitialStreamReceiveWindow:     initialStreamWindow,
		MaxStreamReceiveWindow:         maxStreamWindow,
		InitialConnectionReceiveWindow: initialConnWindow,
		MaxConnectionReceiveWindow:     maxConnWindow,
		MaxIncomingStreams:             maxStreams,
		MaxIncomingUniStreams:          -1,
	}
}

// dial connects to the node want at addr, or to any node of the mesh if want is zero.
func (e *Endpoint) dial(ctx context.Context, addr net.Addr, want ukai.NodeID, l *link) (*conn, error) {
	to, err := e.resolved(addr)
	if err != nil {
		return nil, err
	}
	e.counts.dials.Add(1)
	config := e.quicConfig(e.cfg.KeepAlive)
	config.MaxIncomingStreams = -1 // the one who dials asks
	q, err := e.transport.Dial(ctx, to, e.ring.Load().clientTLS(want), config)
	if err != nil {
		if e.ctx.Err() != nil {
			return nil, errClosing
		}
		e.counts.dialsFailed.Add(1)
		if _, ok := errors.AsType[*quic.TransportError](err); ok {
			e.refuse(&e.counts.handshakesRefused, to, "connection", errors.New(reason(err)))
		}
		return nil, fmt.Errorf("%w: dial %v: %s", ukai.ErrUnreachable, addr, reason(err))
	}
	return e.adopt(q, to, l)
}

// adopt takes a new connection into the books, until it is closed.
func (e *Endpoint) adopt(q *quic.Conn, addr net.Addr, l *link) (*conn, error) {
	peer, key, err := e.ring.Load().identify(q.ConnectionState().TLS.PeerCertificates)
	if err != nil { // the keys changed since the handshake
		_ = q.CloseWithError(codeKey, "mesh key retired")
		return nil, fmt.Errorf("%w: %v: %w", ukai.ErrUnreachable, addr, err)
	}
	c := &conn{e: e, id: e.connID.Add(1), q: q, peer: peer, key: key, addr: addr.String(), link: l, used: e.sinceOpen()}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		_ = q.CloseWithError(codeClosing, "")
		return nil, errClosing
	}
	e.conns[c] = struct{}{}
	e.wg.Add(1)
	e.mu.Unlock()
	context.AfterFunc(q.Context(), func() {
		defer e.wg.Done()
		e.forget(c)
	})
	return c, nil
}

// forget strikes a connection that is gone off the books.
func (e *Endpoint) forget(c *conn) {
	stats := c.q.ConnectionStats()
	e.mu.Lock()
	delete(e.conns, c)
	e.past.add(stats)
	e.mu.Unlock()
	if c.link != nil {
		c.link.lost(c, lost(c.q, nil))
	}
}

// tidy closes what is not used any more.
func (e *Endpoint) tidy() {
	tick := time.NewTicker(tidyPeriod)
	defer tick.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-tick.C:
		}
		for _, c := range e.open() {
			if c.link == nil {
				continue // see tidyRaw; those accepted are for the other end to close
			}
			addr, ok := e.cfg.Addr(c.peer)
			if moved := ok && addr.String() != c.addr; moved || c.idle() > e.cfg.Linger {
				c.link.lost(c, errRetired)
				c.retire(codeIdle)
			}
		}
		e.tidyRaw()
		e.tidyPeers()
		e.tidyServed()
	}
}

func (e *Endpoint) tidyPeers() {
	e.mu.Lock()
	defer e.mu.Unlock()
	busy := make(map[ukai.NodeID]bool)
	for c := range e.conns {
		busy[c.peer] = true
	}
	for id, p := range e.peers {
		// calls is raised with e.mu held, so nobody can begin to use p here.
		if p.calls.Load() == 0 && !busy[id] && e.sinceOpen()-time.Duration(p.used.Load()) > peerMemory {
			delete(e.peers, id)
		}
	}
}
