package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ukai"
)

func TestStreamsCarryBytesBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a, b := m.node("a", nil), m.node("b", nil)
		var serving sync.WaitGroup
		defer serving.Wait()
		for _, proto := range []byte{ProtoGossip, ProtoAdmin} {
			serving.Go(func() {
				s, from, err := b.AcceptStream(context.Background(), proto)
				if err != nil || from != a.ID() {
					t.Errorf("accepted from %v: %v", from, err)
					return
				}
				all, err := io.ReadAll(s)
				if err != nil {
					t.Error(err)
				}
				if _, err := s.Write(append([]byte{proto}, all...)); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			s, err := a.DialNode(within(t, time.Second), b.ID(), proto)
			if err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte("x"), 300<<10)
			if _, err := s.Write(want); err != nil {
				t.Fatal(err)
			}
			if err := s.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, append([]byte{proto}, want...)) {
				t.Fatalf("%d bytes: %v", len(got), err)
			}
			if s.RemoteAddr().String() != "b" || s.LocalAddr().String() != "a" {
				t.Errorf("from %v to %v", s.LocalAddr(), s.RemoteAddr())
			}
			if err := errors.Join(s.Close(), s.Close()); err != nil {
				t.Error(err)
			}
			if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write after close: %v", err)
			}
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
				t.Errorf("read after close: %v", err)
			}
		}
		if n := a.Counters()["ukai_wire_dials_total"]; n != 1 {
			t.Errorf("%d dials for two streams to one address", n)
		}
	})
}

func TestStreamDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a, b := m.node("a", nil), m.node("b", nil)
		s, err := a.DialStream(within(t, time.Second), b.LocalAddr(), ProtoGossip)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_ = s.SetDeadline(start.Add(time.Second))
		_, err = s.Read(make([]byte, 1))
		if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("read after %v: %v", time.Since(start), err)
		}
		start = time.Now()
		_ = s.SetWriteDeadline(start.Add(time.Second))
		if _, err := s.Write(make([]byte, 2*maxStreamWindow)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %v", err) // nobody reads at b
		}
		// Close cuts a Write short.
		_ = s.SetWriteDeadline(time.Time{})
		var writing sync.WaitGroup
		writing.Go(func() {
			if _, err := s.Write(make([]byte, 2*maxStreamWindow)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write under close: %v", err)
			}
		})
		synctest.Wait()
		_ = s.Close()
		writing.Wait()
	})
}

func TestStreamsNobodyTakesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a, b := m.node("a", nil), m.node("b", nil)
		var last net.Conn
		for range maxAccepting + 1 {
			s, err := a.DialStream(within(t, time.Second), b.LocalAddr(), ProtoGossip)
			if err != nil {
				t.Fatal(err)
			}
			last = s
			time.Sleep(10 * time.Millisecond)
		}
		if _, err := last.Read(make([]byte, 1)); !errors.Is(err, ukai.ErrOverloaded) {
			t.Errorf("one stream too many: %v", err)
		}
		if n := b.Counters()["ukai_wire_streams_refused_total"]; n != 1 {
			t.Errorf("%d streams refused", n)
		}
		// Requests go on meanwhile.
		if _, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); !errors.Is(err, ukai.ErrUnsupported) {
			t.Errorf("ping: %v", err)
		}
		if _, err := a.DialStream(within(t, time.Second), b.LocalAddr(), 'X'); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("unknown protocol: %v", err)
		}
		if _, _, err := a.AcceptStream(within(t, time.Second), protoRequests); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("accept requests: %v", err)
		}
		if _, err := a.DialStream(within(t, time.Second), nil, ProtoGossip); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("no address: %v", err)
		}
	})
}

func TestStreamsSurviveALostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a, b := m.node("a", nil), m.node("b", nil)
		first, err := a.DialStream(within(t, time.Second), b.LocalAddr(), ProtoGossip)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		for _, c := range b.open() {
			c.close(codeReset, "")
		}
		time.Sleep(10 * time.Millisecond)
		if _, err := first.Read(make([]byte, 1)); !errors.Is(err, ukai.ErrUnreachable) {
			t.Errorf("stream of the lost connection: %v", err)
		}
		second, err := a.DialStream(within(t, time.Second), b.LocalAddr(), ProtoGossip)
		if err != nil {
			t.Fatalf("after the loss: %v", err)
		}
		// A connection lives as long as a stream on it does, and not much longer.
		time.Sleep(10 * rawLinger)
		if n := a.Gauges()["ukai_wire_connections"]; n != 1 {
			t.Errorf("%d connections with an open stream", n)
		}
		_ = first.Close()
		_ = second.Close()
		time.Sleep(rawLinger + 2*tidyPeriod)
		if n := a.Gauges()["ukai_wire_connections"]; n != 0 {
			t.Errorf("%d connections without streams", n)
		}
	})
}

func TestDialingAStreamObeysItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a := m.node("a", nil)
		start := time.Now()
		if _, err := a.DialStream(within(t, time.Second), memAddr("nobody"), ProtoGossip); !errors.Is(err, ukai.ErrTimeout) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		start = time.Now()
		if _, err := a.DialStream(context.Background(), memAddr("nobody"), ProtoGossip); !errors.Is(err, ukai.ErrUnreachable) || time.Since(start) > a.cfg.DialTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestNothingIsLeftRunning(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Run("traffic", func(t *testing.T) {
		m := newMesh(t, nil)
		a, b := m.node("a", nil), m.node("b", echo)
		for _, size := range []int{10, 4096, 1 << 20} {
			if _, err := a.Call(within(t, 10*time.Second), b.ID(), &Message{Kind: KindWrite, Payload: make([]byte, size)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.DialNode(within(t, 10*time.Second), b.ID(), ProtoAdmin); err != nil {
			t.Fatal(err)
		}
	})
	// QUIC keeps timers of closed connections for a moment; goleak tries again until they are gone.
	goleak.VerifyNone(t, before)
}

func TestSocketsAreClosedOnce(t *testing.T) {
	m := newMesh(t, nil)
	identity, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []Config{
		{},
		{Conn: m.socket("x"), Keys: []MeshKey{m.key}, Identity: identity},
		{Conn: m.socket("x"), Addr: m.addr, Identity: identity},
		{Conn: m.socket("x"), Addr: m.addr, Keys: []MeshKey{m.key}},
		{Conn: m.socket("x"), Addr: m.addr, Keys: []MeshKey{{}}, Identity: identity},
		{Conn: m.socket("x"), Addr: m.addr, Keys: []MeshKey{m.key}, Identity: identity, BulkConns: 99},
		{Conn: m.socket("x"), Addr: m.addr, Keys: []MeshKey{m.key}, Identity: identity, KeepAlive: time.Minute},
		{Conn: m.socket("x"), Addr: m.addr, Keys: []MeshKey{m.key}, Identity: identity, MaxInflight: -1},
	} {
		if _, err := Open(cfg); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%+v: %v", cfg, err)
		}
		if cfg.Conn != nil {
			if err := cfg.Conn.Close(); err != nil {
				t.Errorf("Open closed a socket that it refused: %v", err)
			}
		}
	}
}
