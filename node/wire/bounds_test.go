package wire

import (
	"errors"
	"github.com/quic-go/quic-go"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"ukai"
)

// What a peer that has the mesh key may cost, however it behaves.

func TestAPeerThatNeverReadsIsServedUpToTheBound(t *testing.T) {
	const bound = 8 << 20
	for kind, most := range map[Kind]int64{
		KindRead:   10, // the bound, and what fits into the peer's window for the stream
		KindStatus: 12, // does not announce the size of its reply
	} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, newMemNet(time.Millisecond))
				var served atomic.Int64
				b := m.node("b", func(r *Request) {
					served.Add(1)
					r.Reply(Reply{Payload: r.Buffer(1 << 20)}, nil)
				}, func(c *Config) { c.MaxInflightBytes = bound })
				c := member(t, m, b)
				s, err := c.q.OpenStream()
				if err != nil {
					t.Fatal(err)
				}
				frames := []byte{protoRequests, byte(laneRead)}
				for id := range uint64(200) {
					frames = append(frames, frameOf(header{kind: kind, id: id + 1, count: 1 << 20}, nil)...)
				}
				if _, err := s.Write(frames); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if n := served.Load(); n > most {
					t.Errorf("%d requests of 1 MiB served to a peer that reads nothing, bound %d MiB", n, bound>>20)
				}
				c.close(codeReset, "")
				time.Sleep(time.Second)
				if n := b.Gauges()["ukai_wire_serving_requests"]; n != 0 {
					t.Errorf("%d requests under way after the connection", n)
				}
				b.mu.Lock()
				defer b.mu.Unlock()
				for id, p := range b.served {
					if _, left, _ := p.budgets[laneRead].used(b.cfg.MaxInflight); left != 0 {
						t.Errorf("node %v still owes %d bytes", id.Short(), left)
					}
				}
			})
		})
	}
}

func TestConnectionsOfANodeAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		b := m.node("b", echo)
		stormy := m.node("stormy", nil)
		var conns []*conn
		for range 3 * maxConnsPerPeer {
			c, err := stormy.dial(within(t, time.Second), b.LocalAddr(), b.ID(), nil)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		time.Sleep(time.Second)
		if n := b.Gauges()["ukai_wire_connections_accepted"]; n != maxConnsPerPeer {
			t.Errorf("%d connections of one node, want %d", n, maxConnsPerPeer)
		}
		for i, c := range conns {
			if open, want := c.q.Context().Err() == nil, i >= 2*maxConnsPerPeer; open != want {
				t.Errorf("connection %d of %d: open %v", i, len(conns), open)
			}
		}
		other := m.node("other", nil)
		if _, err := other.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); err != nil {
			t.Errorf("another node: %v", err)
		}
	})
}

func TestConnectionsOfAllNodesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		b := m.node("b", echo)
		a := m.node("a", nil)
		b.mu.Lock()
		b.accepted = maxConns
		b.mu.Unlock()
		_, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil)
		if !errors.Is(err, ukai.ErrUnreachable) || !strings.Contains(err.Error(), "too many connections") {
			t.Errorf("call to a node with all connections taken: %v", err)
		}
		if n := b.Counters()["ukai_wire_connections_refused_total"]; n != 1 {
			t.Errorf("%d refusals counted", n)
		}
		b.mu.Lock()
		b.accepted = 0
		b.mu.Unlock()
		time.Sleep(maxBackoff)
		if _, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); err != nil {
			t.Errorf("when there is room again: %v", err)
		}
	})
}

func TestStreamsThatDoNotSayWhatTheyAreForEnd(t *testing.T) {
	for name, said := range map[string][]byte{"half of it": {protoRequests}, "all but the frame": {protoRequests, byte(laneRead)}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, newMemNet(time.Millisecond))
				b := m.node("b", echo)
				c := member(t, m, b)
				s, err := c.q.OpenStream()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Write(said); err != nil {
					t.Fatal(err)
				}
				time.Sleep(firstByteTimeout + time.Second)
				_, err = s.Write([]byte{0})
				if _, refused := errors.AsType[*quic.StreamError](err); refused != (len(said) == 1) {
					t.Errorf("after the time is over: %v", err)
				}
			})
		})
	}
}

// A stream that cannot even say what it is for, because others have used up the window of the connection, goes to a new
// connection. The old one must not stay open for ever then: nobody looks after it any more.
func TestACloggedConnectionForStreamsIsClosedAfterItsLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a, b := m.node("a", nil), m.node("b", nil)
		var clogged []net.Conn
		for range 8 { // as nobody reads, windows do not grow
			s, err := a.DialStream(within(t, time.Second), b.LocalAddr(), ProtoGossip)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.SetWriteDeadline(time.Now().Add(time.Second))
			if _, err := s.Write(make([]byte, initialStreamWindow)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			clogged = append(clogged, s)
		}
		s, err := a.DialStream(within(t, time.Second), b.LocalAddr(), ProtoGossip)
		if err != nil {
			t.Fatalf("a stream more: %v", err)
		}
		if n := a.Gauges()["ukai_wire_connections"]; n < 2 {
			t.Fatalf("%d connections: the first has room, so this shows nothing", n)
		}
		for _, c := range append(clogged, s) {
			_ = c.Close()
		}
		time.Sleep(rawLinger + 3*tidyPeriod)
		if n := a.Gauges()["ukai_wire_connections"]; n != 0 {
			t.Errorf("%d connections without streams", n)
		}
	})
}
