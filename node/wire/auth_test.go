package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"ukai"
)

// logLines is a log that tests can read.
type logLines struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(b)
}

func (l *logLines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.out.String(), text)
}

func (l *logLines) logTo(c *Config) { c.Log = slog.New(slog.NewTextHandler(l, nil)) }

func TestAnotherMeshKeyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		var log logLines
		b := m.node("b", echo, log.logTo)
		m.key = NewMeshKey()
		stranger := m.node("stranger", echo)
		for range 20 {
			_, err := stranger.Call(within(t, 30*time.Second), b.ID(), &Message{Kind: KindPing}, nil)
			if !errors.Is(err, ukai.ErrUnreachable) {
				t.Fatalf("call with the wrong key: %v, want %v", err, ukai.ErrUnreachable)
			}
			if !strings.Contains(err.Error(), "mesh key") {
				t.Errorf("the error does not name the remedy: %v", err)
			}
			if _, err := b.Call(within(t, 30*time.Second), stranger.ID(), &Message{Kind: KindPing}, nil); !errors.Is(err, ukai.ErrUnreachable) {
				t.Fatalf("call to a stranger: %v", err)
			}
			time.Sleep(time.Second)
		}
		if _, err := stranger.DialStream(within(t, 5*time.Second), b.LocalAddr(), ProtoGossip); err == nil {
			t.Error("a stranger opened a stream")
		}
		if n := b.Counters()["ukai_wire_handshakes_refused_total"]; n < 5 {
			t.Errorf("%d refusals counted", n)
		}
		if n := b.Counters()["ukai_wire_served_total"]; n != 0 {
			t.Errorf("%d requests of a stranger served", n)
		}
		if n := log.count("refused connection"); n < 1 || n > 2 {
			t.Errorf("refusals of 20 s logged %d times:\n%s", n, &log.out)
		}
	})
}

func TestNoCertificateIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet(time.Millisecond)
		m := newMesh(t, n)
		b := m.node("b", echo)
		socket := n.listen("anonymous")
		tr := &quic.Transport{Conn: socket}
		defer func() { _ = tr.Close(); _ = socket.Close() }()
		c, err := tr.Dial(within(t, time.Second), b.LocalAddr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}}, nil)
		if err == nil {
			<-c.Context().Done()
			err = context.Cause(c.Context())
		}
		if transport, ok := errors.AsType[*quic.TransportError](err); !ok || !transport.ErrorCode.IsCryptoError() || !transport.Remote {
			t.Errorf("refused with %v", err)
		}
		if n := b.Counters()["ukai_wire_handshakes_refused_total"]; n != 1 {
			t.Errorf("%d refusals counted", n)
		}
		if _, err = tr.Dial(within(t, time.Second), b.LocalAddr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, nil); err == nil {
			t.Error("another protocol was accepted")
		}
	})
}

// Refusing must not be left to the stranger, who may not mind what the other end shows.
func TestACertificateMadeWithAnotherKeyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet(time.Millisecond)
		m := newMesh(t, n)
		b := m.node("b", echo)
		identity, err := NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		ring, err := newKeyring([]MeshKey{NewMeshKey()}, identity)
		if err != nil {
			t.Fatal(err)
		}
		socket := n.listen("forger")
		tr := &quic.Transport{Conn: socket}
		defer func() { _ = tr.Close(); _ = socket.Close() }()
		c, err := tr.Dial(within(t, time.Second), b.LocalAddr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, Certificates: []tls.Certificate{ring.cert}}, nil)
		if err == nil {
			<-c.Context().Done()
			err = context.Cause(c.Context())
		}
		if transport, ok := errors.AsType[*quic.TransportError](err); !ok || !transport.ErrorCode.IsCryptoError() || !transport.Remote {
			t.Errorf("refused with %v", err)
		}
		if n := b.Counters()["ukai_wire_handshakes_refused_total"]; n != 1 {
			t.Errorf("%d refusals counted", n)
		}
		if n := b.Gauges()["ukai_wire_connections"]; n != 0 {
			t.Errorf("%d connections", n)
		}
	})
}

// Both ends refuse, but the one that dials does so first; the other has to tell its administrator all the same.
func TestAStrangerThatGivesUpIsCountedAndLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		var log logLines
		b := m.node("b", echo, log.logTo)
		friend := m.node("friend", nil)
		if _, err := friend.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := b.Counters()["ukai_wire_handshakes_refused_total"]; n != 0 {
			t.Errorf("%d refusals counted before", n)
		}
		m.key = NewMeshKey()
		stranger := m.node("stranger", nil)
		for range 3 {
			if _, err := stranger.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); !errors.Is(err, ukai.ErrUnreachable) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := b.Counters()["ukai_wire_handshakes_refused_total"]; n != 3 {
			t.Errorf("%d refusals counted, want 3", n)
		}
		if n := log.count("refused connection"); n != 1 {
			t.Errorf("refusals logged %d times:\n%s", n, &log.out)
		}
	})
}

func TestAnotherNodeAtTheAddressIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a, b, c := m.node("a", nil), m.node("b", echo), m.node("c", echo)
		m.setAddr(b.ID(), c.LocalAddr())
		_, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil)
		if !errors.Is(err, ukai.ErrUnreachable) || !strings.Contains(err.Error(), "another node") {
			t.Errorf("call to b reached c: %v", err)
		}
		if _, err := a.DialNode(within(t, time.Second), b.ID(), ProtoAdmin); !errors.Is(err, ukai.ErrUnreachable) {
			t.Errorf("stream to b reached c: %v", err)
		}
		if n := c.Counters()["ukai_wire_served_total"]; n != 0 {
			t.Errorf("c served %d requests meant for b", n)
		}
	})
}

// A mesh gets a new key in three rounds over its nodes; at every moment all of them can talk.
func TestKeysRotateWithoutAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		nodes := []*Endpoint{m.node("a", echo), m.node("b", echo), m.node("c", echo)}
		old, fresh := m.key, NewMeshKey()
		talk := func() {
			t.Helper()
			for _, from := range nodes {
				for _, to := range nodes {
					if from == to {
						continue
					}
					from.Drop(to.ID()) // so that the handshake is tried, not only the connection
					if _, err := from.Call(within(t, time.Second), to.ID(), &Message{Kind: KindPing}, nil); err != nil {
						t.Fatal(err)
					}
					if err := from.WritePacket([]byte("hi"), to.LocalAddr()); err != nil {
						t.Fatal(err)
					}
					if _, _, err := to.ReadPacket(within(t, time.Second)); err != nil {
						t.Fatalf("packet: %v", err)
					}
				}
			}
		}
		talk()
		for _, keys := range [][]MeshKey{{old, fresh}, {fresh, old}, {fresh}} {
			for _, e := range nodes {
				if err := e.SetKeys(keys); err != nil {
					t.Fatal(err)
				}
				talk()
			}
		}
		stale := m.node("stale", echo)
		if _, err := stale.Call(within(t, time.Second), nodes[0].ID(), &Message{Kind: KindPing}, nil); !errors.Is(err, ukai.ErrUnreachable) {
			t.Errorf("the retired key still opens connections: %v", err)
		}
	})
}

func TestRetiringAKeyClosesWhatItVouchedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a, b := m.node("a", nil), m.node("b", echo)
		if _, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.SetKeys([]MeshKey{NewMeshKey()}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); !errors.Is(err, ukai.ErrUnreachable) {
			t.Errorf("call after the key was retired: %v", err)
		}
		if err := b.SetKeys(nil); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("no keys at all: %v", err)
		}
	})
}
