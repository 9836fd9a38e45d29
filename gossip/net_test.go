package gossip

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

// network is packets and streams in memory, in the time of a synctest bubble.
type network struct {
	t *testing.T

	mu    sync.Mutex
	at    map[netip.AddrPort]*endpoint
	delay func(from, to netip.AddrPort) time.Duration // one way
	loss  float64                                     // of packets
	drop  func(b []byte) bool                         // these packets are lost
	cut   func(from, to netip.AddrPort) bool
	stuck netip.AddrPort // it cannot dial streams
	nodes []*testNode
}

func newNetwork(t *testing.T) *network {
	return &network{
		t: t, at: map[netip.AddrPort]*endpoint{},
		delay: func(netip.AddrPort, netip.AddrPort) time.Duration { return time.Millisecond },
		cut:   func(netip.AddrPort, netip.AddrPort) bool { return false },
	}
}

// set changes the network while it runs.
func (n *network) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

// path returns the delay from one address to another, and whether a packet gets there.
func (n *network) path(from, to netip.AddrPort) (e *endpoint, delay time.Duration, packet, stream bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e = n.at[to]
	stream = e != nil && !n.cut(from, to)
	return e, n.delay(from, to), stream && rand.Float64() >= n.loss, stream
}

// endpoint is one node's Transport.
type endpoint struct {
	net     *network
	addr    netip.AddrPort
	packets chan packet
	streams chan net.Conn
}

type packet struct {
	b    []byte
	from net.Addr
}

func (n *network) listen(addr netip.AddrPort) *endpoint {
	e := &endpoint{net: n, addr: addr, packets: make(chan packet, 4096), streams: make(chan net.Conn, 256)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.at[addr] != nil {
		n.t.Fatalf("%v is taken", addr)
	}
	n.at[addr] = e
	return e
}

func (e *endpoint) close() {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	delete(e.net.at, e.addr)
}

func (e *endpoint) WritePacket(b []byte, to net.Addr) error {
	if len(b) > 1250 {
		e.net.t.Errorf("packet of %d bytes", len(b))
	}
	dst, delay, ok, _ := e.net.path(e.addr, to.(*net.UDPAddr).AddrPort())
	e.net.mu.Lock()
	drop := e.net.drop
	e.net.mu.Unlock()
	if !ok || drop != nil && drop(b) {
		return nil
	}
	p := packet{append([]byte(nil), b...), net.UDPAddrFromAddrPort(e.addr)}
	time.AfterFunc(delay, func() {
		select {
		case dst.packets <- p:
		default:
		}
	})
	return nil
}

func (e *endpoint) ReadPacket(ctx context.Context) ([]byte, net.Addr, error) {
	select {
	case p := <-e.packets:
		return p.b, p.from, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

func (e *endpoint) DialStream(ctx context.Context, to net.Addr) (net.Conn, error) {
	addr := to.(*net.UDPAddr).AddrPort()
	dst, delay, _, ok := e.net.path(e.addr, addr)
	e.net.mu.Lock()
	ok = ok && e.net.stuck != e.addr
	e.net.mu.Unlock()
	if !ok {
		<-ctx.Done()
		return nil, fmt.Errorf("dial %v: %w", addr, ukai.ErrUnreachable)
	}
	select {
	case <-time.After(2 * delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	there, back := newPipe(e.net, e.addr, addr), newPipe(e.net, addr, e.addr)
	select {
	case dst.streams <- &conn{in: there, out: back, local: addr, remote: e.addr}:
	default:
		return nil, fmt.Errorf("dial %v: %w", addr, ukai.ErrOverloaded)
	}
	return &conn{in: back, out: there, local: e.addr, remote: addr}, nil
}

func (e *endpoint) AcceptStream(ctx context.Context) (net.Conn, error) {
	select {
	case c := <-e.streams:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (e *endpoint) LocalAddr() net.Addr                   { return net.UDPAddrFromAddrPort(e.addr) }
func (e *endpoint) RTT(ukai.NodeID) (time.Duration, bool) { return 0, false }

// pipe is one direction of a stream: unbounded, delayed, silent once the path is cut.
type pipe struct {
	net      *network
	from, to netip.AddrPort

	mu       sync.Mutex
	change   *sync.Cond
	segments []segment
	closed   bool // by the writer
	dead     bool // by the reader
	deadline time.Time
}

type segment struct {
	b    []byte
	when time.Time
}

func newPipe(n *network, from, to netip.AddrPort) *pipe {
	p := &pipe{net: n, from: from, to: to}
	p.change = sync.NewCond(&p.mu)
	return p
}

func (p *pipe) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.change.Broadcast()
}

func (p *pipe) write(b []byte) (int, error) {
	_, delay, _, ok := p.net.path(p.from, p.to)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.dead {
		return 0, io.ErrClosedPipe
	}
	if ok {
		p.segments = append(p.segments, segment{append([]byte(nil), b...), time.Now().Add(delay)})
		time.AfterFunc(delay, p.wake)
	}
	return len(b), nil
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case p.dead:
			return 0, io.ErrClosedPipe
		case len(p.segments) > 0 && !p.segments[0].when.After(now):
			n := copy(b, p.segments[0].b)
			if p.segments[0].b = p.segments[0].b[n:]; len(p.segments[0].b) == 0 {
				p.segments = p.segments[1:]
			}
			return n, nil
		case !p.deadline.IsZero() && !p.deadline.After(now):
			return 0, os.ErrDeadlineExceeded
		case p.closed && len(p.segments) == 0:
			return 0, io.EOF
		}
		p.change.Wait()
	}
}

// conn is one end of a stream.
type conn struct {
	in, out       *pipe
	local, remote netip.AddrPort
}

func (c *conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.write(b) }
func (c *conn) LocalAddr() net.Addr         { return net.UDPAddrFromAddrPort(c.local) }
func (c *conn) RemoteAddr() net.Addr        { return net.UDPAddrFromAddrPort(c.remote) }
func (c *conn) SetDeadline(t time.Time) error {
	return c.SetReadDeadline(t)
}
func (c *conn) SetWriteDeadline(time.Time) error { return nil } // writes do not block
func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	c.in.deadline = t
	c.in.change.Broadcast()
	c.in.mu.Unlock()
	if !t.IsZero() {
		time.AfterFunc(time.Until(t), c.in.wake)
	}
	return nil
}

func (c *conn) Close() error {
	c.out.mu.Lock()
	c.out.closed = true
	c.out.change.Broadcast()
	c.out.mu.Unlock()
	c.in.mu.Lock()
	c.in.dead = true
	c.in.change.Broadcast()
	c.in.mu.Unlock()
	return nil
}

// memJournal is a Journal that can be copied, as a backup is.
type memJournal struct {
	mu  sync.Mutex
	m   map[string][]byte
	err error // of each Put
}

func (j *memJournal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err = err
}

func newJournal() *memJournal { return &memJournal{m: map[string][]byte{}} }

func (j *memJournal) Put(_ context.Context, _ bool, kvs ...KV) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	for _, kv := range kvs {
		if kv.Value == nil {
			delete(j.m, kv.Key)
		} else {
			j.m[kv.Key] = append([]byte(nil), kv.Value...)
		}
	}
	return nil
}

func (j *memJournal) Scan(prefix string, f func(string, []byte) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(j.m)) {
		if strings.HasPrefix(k, prefix) {
			if err := f(k, j.m[k]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *memJournal) copy() *memJournal {
	j.mu.Lock()
	defer j.mu.Unlock()
	return &memJournal{m: maps.Clone(j.m)}
}

// testNode is a node of the network that can be stopped and started again.
type testNode struct {
	*Mesh
	net     *network
	cfg     Config
	addr    netip.AddrPort
	journal *memJournal
}

// addrOf puts node i of site s at 10.0.s.i.
func addrOf(s, i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(s), byte(i)}), 7946)
}

func site(a netip.AddrPort) int { return int(a.Addr().As4()[2]) }

// add starts a node; change may change its configuration first.
func (n *network) add(addr netip.AddrPort, seeds ...string) *testNode {
	return n.addWith(addr, nil, seeds...)
}

func (n *network) addWith(addr netip.AddrPort, change func(*Config), seeds ...string) *testNode {
	n.t.Helper()
	ip := addr.Addr().As4()
	node := &testNode{net: n, addr: addr, journal: newJournal()}
	node.cfg = Config{
		ID: ukai.NodeID{1, ip[2], ip[3]}, Seeds: seeds, Journal: node.journal,
		Info: crdt.NodeInfo{Name: fmt.Sprintf("n%d-%d", ip[2], ip[3]), CapacityBytes: 1 << 40, FreeBytes: 1 << 39},
	}
	if testing.Verbose() && os.Getenv("GOSSIP_LOG") != "" {
		node.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", node.cfg.Info.Name)
	}
	if change != nil {
		change(&node.cfg)
	}
	node.start()
	n.nodes = append(n.nodes, node)
	return node
}

func (n *testNode) start() {
	n.net.t.Helper()
	n.cfg.Transport = n.net.listen(n.addr)
	n.cfg.Journal = n.journal
	m, err := Open(n.cfg)
	if err != nil {
		n.net.t.Fatal(err)
	}
	n.Mesh = m
}

// stop ends the node without a word.
func (n *testNode) stop() {
	n.net.t.Helper()
	if n.Mesh == nil {
		return
	}
	if err := n.Close(); err != nil {
		n.net.t.Error(err)
	}
	n.cfg.Transport.(*endpoint).close()
	n.Mesh = nil
}

// end stops all nodes and lets memberlist's last goroutines end.
func (n *network) end() {
	parallel(len(n.nodes), func(i int) { n.nodes[i].stop() })
	time.Sleep(Linger + time.Second)
}

// await waits for a condition, at most d of virtual time, and returns how long it took. For long waits it looks less often: looking
// is what they cost.
func await(t *testing.T, d time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	pause := max(50*time.Millisecond, d/1000)
	start := time.Now()
	for !ok() {
		if time.Since(start) > d {
			t.Fatalf("after %v: still not %s", d, what)
		}
		time.Sleep(pause)
	}
	return time.Since(start)
}

// sees says whether n has exactly this many peers in a state.
func (n *testNode) sees(s State, count int) bool {
	for _, m := range n.Members() {
		if m.State == s && !m.Self {
			count--
		}
	}
	return count == 0
}

func allSee(nodes []*testNode, s State, count int) func() bool {
	return func() bool {
		for _, n := range nodes {
			if n.Mesh != nil && !n.sees(s, count) {
				return false
			}
		}
		return true
	}
}

// label sets a label of a node in the catalog of n.
func (n *testNode) label(id ukai.NodeID, key, value string) error {
	return n.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		return c.SetLabel(id, key, &value, stamp())
	})
}

// labelOf reads it in the catalog of n.
func (n *testNode) labelOf(id ukai.NodeID, key string) (value string) {
	n.View(func(c *crdt.Catalog) {
		if e, ok := c.Node(id); ok {
			value = e.LabelSet()[key]
		}
	})
	return value
}

// set writes a mesh-wide setting.
func (n *testNode) setting(name, value string) error {
	return n.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		return c.SetSetting(name, &value, stamp())
	})
}

func (n *testNode) has(name, value string) (ok bool) {
	n.View(func(c *crdt.Catalog) {
		v, set := c.Setting(name)
		ok = set && v == value
	})
	return ok
}

func (n *testNode) counter(name string) uint64 {
	v, ok := n.Counters()["ukai_gossip_"+name]
	if !ok {
		n.net.t.Fatalf("no counter %s", name)
	}
	return v
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
