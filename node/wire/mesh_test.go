package wire

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"ukai"
)

func TestMain(m *testing.M) {
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	os.Exit(m.Run())
}

// mesh is a few endpoints that know each other's addresses.
type mesh struct {
	t   testing.TB
	key MeshKey
	mem *memNet // nil: loopback UDP

	mu    sync.Mutex
	addrs map[ukai.NodeID]net.Addr
}

func newMesh(t testing.TB, mem *memNet) *mesh {
	return &mesh{t: t, key: NewMeshKey(), mem: mem, addrs: map[ukai.NodeID]net.Addr{}}
}

func (m *mesh) addr(id ukai.NodeID) (net.Addr, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.addrs[id]
	return a, ok
}

func (m *mesh) setAddr(id ukai.NodeID, a net.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addrs[id] = a
}

func (m *mesh) socket(name string) net.PacketConn {
	if m.mem != nil {
		return m.mem.listen(name)
	}
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// node opens an endpoint that is closed at the end of the test.
func (m *mesh) node(name string, serve func(*Request), with ...func(*Config)) *Endpoint {
	m.t.Helper()
	id, err := NewIdentity()
	if err != nil {
		m.t.Fatal(err)
	}
	cfg := Config{Conn: m.socket(name), Keys: []MeshKey{m.key}, Identity: id, Addr: m.addr, Serve: serve}
	for _, f := range with {
		f(&cfg)
	}
	e, err := Open(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.setAddr(e.ID(), e.LocalAddr())
	m.t.Cleanup(func() {
		if err := e.Close(); err != nil {
			m.t.Errorf("close %s: %v", name, err)
		}
	})
	return e
}

// echo answers with what it got.
func echo(r *Request) {
	if r.Kind == KindRead {
		b := r.Buffer(int(r.Count))
		fillPattern(b, r.Offset)
		r.Reply(Reply{Offset: r.Offset, Count: r.Count, Payload: b}, nil)
		return
	}
	r.Reply(Reply{Epoch: r.Epoch, Stamp: r.Stamp, Offset: r.Offset, Count: uint32(len(r.Payload)), Payload: r.Payload}, nil)
}

func fillPattern(b []byte, off int64) {
	for i := range b {
		b[i] = byte(off) + byte(i*7)
	}
}

func isPattern(b []byte, off int64) bool {
	for i := range b {
		if b[i] != byte(off)+byte(i*7) {
			return false
		}
	}
	return true
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
