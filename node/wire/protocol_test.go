package wire

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"ukai"
)

// member opens a connection to e as a node of the mesh would that does not keep to the protocol.
func member(t *testing.T, m *mesh, e *Endpoint) *conn {
	t.Helper()
	liar := m.node("liar", nil)
	c, err := liar.dial(within(t, time.Second), e.LocalAddr(), e.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func frameOf(h header, rest []byte) []byte {
	b := append(make([]byte, headerSize), rest...)
	h.put(b, rest)
	return b
}

func TestWhoBreaksTheFormatLosesTheConnection(t *testing.T) {
	ping := header{kind: KindPing, id: 1}
	flipped := frameOf(header{kind: KindWrite, id: 1}, []byte("payload"))
	flipped[headerSize] ^= 1
	oversized := frameOf(ping, nil)
	oversized[0] = 1
	version := frameOf(ping, nil)
	version[4] = 9
	for name, bytes := range map[string][]byte{
		"unknown protocol":       {'?', 0},
		"unknown lane":           {protoRequests, byte(numLanes)},
		"noise":                  append([]byte{protoRequests, 1}, make([]byte, 200)...),
		"flipped payload bit":    append([]byte{protoRequests, 1}, flipped...),
		"oversized frame":        append([]byte{protoRequests, 1}, reseal(oversized)...),
		"another version":        append([]byte{protoRequests, 1}, reseal(version)...),
		"reply as request":       append([]byte{protoRequests, 1}, frameOf(header{kind: KindPing, id: 1, reply: true}, nil)...),
		"negative offset":        append([]byte{protoRequests, 1}, frameOf(header{kind: KindPing, id: 1, offset: -1}, nil)...),
		"good then broken frame": append(append([]byte{protoRequests, 1}, frameOf(ping, nil)...), flipped...),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, newMemNet(time.Millisecond))
				var log logLines
				served := 0
				b := m.node("b", func(r *Request) { served++; echo(r) }, log.logTo)
				c := member(t, m, b)
				s, err := c.q.OpenStream()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Write(bytes); err != nil {
					t.Fatal(err)
				}
				<-c.q.Context().Done()
				app, ok := errors.AsType[*quic.ApplicationError](context.Cause(c.q.Context()))
				if !ok || !app.Remote || app.ErrorCode != codeProtocol {
					t.Errorf("closed with %v", context.Cause(c.q.Context()))
				}
				synctest.Wait()
				if n := b.Counters()["ukai_wire_protocol_errors_total"]; n != 1 {
					t.Errorf("%d protocol errors counted", n)
				}
				if log.count("refused frame") != 1 {
					t.Errorf("log: %s", &log.out)
				}
				if want := map[bool]int{true: 1}[name == "good then broken frame"]; served != want {
					t.Errorf("%d requests served, want %d", served, want)
				}
			})
		})
	}
}

func TestUnknownKindsAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		b := m.node("b", func(*Request) { t.Error("an unknown kind was served") })
		c := member(t, m, b)
		s, err := c.q.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		h := header{kind: 200, id: 5}
		if _, err := s.Write(append([]byte{protoRequests, 0}, frameOf(h, []byte("from the future"))...)); err != nil {
			t.Fatal(err)
		}
		var head [headerSize]byte
		if _, err := s.Read(head[:]); err != nil {
			t.Fatal(err)
		}
		if err := h.parse(head[:]); err != nil || !h.reply || h.id != 5 || !errors.Is(ukai.Sentinel(h.status), ukai.ErrUnsupported) {
			t.Errorf("answered with %+v: %v", h, err)
		}
		if n := b.Counters()["ukai_wire_unknown_kinds_total"]; n != 1 {
			t.Errorf("%d unknown kinds counted", n)
		}
	})
}

// A server that answers nonsense hurts the calls on that connection, and nothing else.
func TestNonsenseFromAServerEndsTheCall(t *testing.T) {
	good := func(h *header) []byte { return frameOf(header{reply: true, kind: h.kind, id: h.id}, []byte("answer")) }
	for name, c := range map[string]struct {
		reply func(h *header) []byte
		want  error
	}{
		"right":        {good, nil},
		"unknown id":   {func(h *header) []byte { h.id++; return good(h) }, ukai.ErrUnreachable},
		"another kind": {func(h *header) []byte { h.kind = KindFlush; return good(h) }, ukai.ErrUnreachable},
		"a request":    {func(h *header) []byte { return frameOf(header{kind: h.kind, id: h.id}, nil) }, ukai.ErrUnreachable},
		"flipped bit":  {func(h *header) []byte { b := good(h); b[headerSize+2] ^= 4; return b }, ukai.ErrCorrupt},
		"noise":        {func(*header) []byte { return make([]byte, headerSize) }, ukai.ErrUnreachable},
		"bad detail": {func(h *header) []byte {
			return frameOf(header{reply: true, kind: h.kind, id: h.id, status: 4}, []byte{255})
		}, ukai.ErrUnreachable},
		"unknown status": {func(h *header) []byte {
			return frameOf(header{reply: true, kind: h.kind, id: h.id, status: 999}, []byte("\x00odd"))
		}, errAny},
		"ends the stream": {func(*header) []byte { return nil }, ukai.ErrUnreachable},
		"twice":           {func(h *header) []byte { return append(good(h), good(h)...) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, newMemNet(time.Millisecond))
				a, b := m.node("a", nil), m.node("b", nil)
				b.accepting[protoRequests] = make(chan *rawStream, 1) // b hands us its streams of requests raw
				go func() {
					s, _, err := b.AcceptStream(context.Background(), protoRequests)
					if err != nil {
						return
					}
					var in [1 + headerSize]byte
					var h header
					if _, err := s.Read(in[:]); err != nil || h.parse(in[1:]) != nil {
						t.Errorf("request: %v", err)
					}
					if out := c.reply(&h); out != nil {
						_, _ = s.Write(out)
					} else {
						_ = s.Close()
					}
				}()
				into := make([]byte, 16)
				r, err := a.Call(within(t, 5*time.Second), b.ID(), &Message{Kind: KindPing}, into)
				switch {
				case c.want == nil && (err != nil || string(r.Payload) != "answer"):
					t.Errorf("got %q: %v", r.Payload, err)
				case errors.Is(c.want, errAny) && (err == nil || ukai.Code(err) != ukai.CodeUnknown):
					t.Errorf("got %v, want an error of no kind", err)
				case c.want != nil && !errors.Is(c.want, errAny) && !errors.Is(err, c.want):
					t.Errorf("got %v, want %v", err, c.want)
				}
				synctest.Wait()
				if g := a.Gauges(); g["ukai_wire_inflight_requests"] != 0 || g["ukai_wire_inflight_bytes"] != 0 {
					t.Errorf("still in the books: %v", g)
				}
			})
		})
	}
}

var errAny = errors.New("any")
