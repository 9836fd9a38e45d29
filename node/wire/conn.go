package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"ukai"
)

// readAhead is how much is taken out of a stream of requests at a time to save calls of QUIC; larger pieces are read
// straight to where they belong.
const readAhead = 4 << 10

// Application error codes of connections and streams. Numbers are never reused.
const (
	codeClosing    = 1 // the endpoint closes
	codeProtocol   = 2 // the other end broke the format
	codeOverloaded = 3 // a bound was reached
	codeIdle       = 4 // not needed any more
	codeKey        = 5 // the mesh key that vouched for the other end was retired
	codeReset      = 6 // given up by the one who dialed it
	codeDone       = 7 // stream: the reader wants no more
)

var errClosing = fmt.Errorf("%w: this node is shutting down", ukai.ErrClosed)

// protocolError is what the other end did wrong. It costs it the connection.
type protocolError struct{ err error }

func (e *protocolError) Error() string { return e.err.Error() }
func (e *protocolError) Unwrap() error { return e.err }

// conn is one QUIC connection to a peer, of either direction.
type conn struct {
	e    *Endpoint
	id   uint64 // unique in this endpoint's life
	q    *quic.Conn
	peer ukai.NodeID
	key  keyID  // vouches for the peer
	addr string // where the peer was when the connection began
	link *link  // whose connection it is, nil for raw streams and for accepted connections

	proven atomic.Bool // a reply came through it

	mu      sync.Mutex
	lanes   [numLanes]*requestLane
	users   int           // calls and raw streams under way
	used    time.Duration // when users last changed, since the endpoint was opened
	retired bool          // takes no new users, is closed when it has none
}

var errRetired = errors.New("connection not needed any more")

// enter counts one more user; false if the connection takes no more.
func (c *conn) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired {
		return false
	}
	c.users++
	c.used = c.e.sinceOpen()
	return true
}

func (c *conn) leave() {
	c.mu.Lock()
	c.users--
	c.used = c.e.sinceOpen()
	last := c.retired && c.users == 0
	c.mu.Unlock()
	if last {
		c.e.spawn(func() { c.close(codeIdle, "") })
	}
}

// retire turns away new users, and closes the connection when it has none.
func (c *conn) retire(code quic.ApplicationErrorCode) {
	c.mu.Lock()
	c.retired = true
	idle := c.users == 0
	c.mu.Unlock()
	if idle {
		c.close(code, "")
	}
}

// idle returns for how long the connection has had no users.
func (c *conn) idle() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users > 0 {
		return 0
	}
	return c.e.sinceOpen() - c.used
}

// close is idempotent. It waits for QUIC's own goroutine, so it must not be called with a lock held.
func (c *conn) close(code quic.ApplicationErrorCode, text string) { _ = c.q.CloseWithError(code, text) }

// violated answers a breach of the format.
func (c *conn) violated(err error) {
	c.e.refuse(&c.e.counts.protocolErrors, c.q.RemoteAddr(), "frame", err)
	c.close(codeProtocol, clip(err.Error(), 200))
}

// lane returns the stream for requests of one lane, opened when the first one needs it.
func (c *conn) lane(n lane) (*requestLane, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.lanes[n]; l != nil {
		return l, nil
	}
	s, err := c.q.OpenStream()
	if err != nil {
		return nil, err
	}
	s.SetPriority(n.urgency(), true)
	// Two bytes fit into the first packet: this neither waits nor sends.
	if err := s.TryWriteAll([]byte{protoRequests, byte(n)}); err != nil {
		return nil, err
	}
	l := &requestLane{c: c, s: s, r: bufio.NewReaderSize(s, readAhead), calls: make(map[uint64]*Call)}
	l.w = writer{stream: s, pool: &c.e.pool, spawn: c.e.spawn, broken: func(error) { c.close(codeReset, "") }}
	if !c.e.spawn(l.read) {
		return nil, errClosing
	}
	c.lanes[n] = l
	return l, nil
}

// requestLane is the calling side of one stream of requests.
type requestLane struct {
	c *conn
	s *quic.Stream
	r *bufio.Reader // of s
	w writer

	mu    sync.Mutex
	calls map[uint64]*Call // sent or queued, and not answered
	dead  bool
}

// send registers c and sends its frame. An error means that nothing was sent, and the frame is still the caller's.
func (l *requestLane) send(c *Call, f *buffer) error {
	if !l.c.enter() {
		return errRetired
	}
	c.sentOn.Store(l)
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		l.c.leave()
		return errStreamGone
	}
	l.calls[c.id] = c
	crowded := len(l.calls) > 1
	l.mu.Unlock()
	l.w.send(f, crowded)
	return nil
}

var errStreamGone = errors.New("stream is gone")

// read takes replies until the stream ends. It alone touches the buffers of calls that were sent, and it alone ends
// those calls when the connection is lost: when Wait returns, nobody writes to the caller's buffer any more.
func (l *requestLane) read() {
	var head [headerSize]byte
	var h header
	var err error
	for err == nil {
		if _, err = l.readFull(head[:], nil); err == nil {
			err = l.reply(&h, head[:])
		}
	}
	var broken *protocolError
	if errors.As(err, &broken) {
		l.c.violated(err)
	} else {
		l.c.close(codeReset, "")
	}
	reason := lost(l.c.q, err)
	if l.c.link != nil {
		l.c.link.lost(l.c, reason)
	}

	l.mu.Lock()
	l.dead = true
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	for _, c := range calls {
		c.finish(Reply{}, reason)
		c.retire()
		l.c.leave()
	}
	l.c.e.counts.lost.Add(uint64(len(calls)))
}

// reply reads what follows a header and ends the call it belongs to.
func (l *requestLane) reply(h *header, head []byte) error {
	if err := h.parse(head); err != nil {
		return &protocolError{err}
	}
	l.mu.Lock()
	c := l.calls[h.id]
	l.mu.Unlock()
	switch {
	case !h.reply:
		return &protocolError{fmt.Errorf("request where a reply belongs: %w", ukai.ErrInvalid)}
	case c == nil:
		return &protocolError{fmt.Errorf("reply to %v: %w: nothing was asked with id %d", h.kind, ukai.ErrInvalid, h.id)}
	case c.kind != h.kind:
		return &protocolError{fmt.Errorf("reply to %v: %w: asked was %v", h.kind, ukai.ErrInvalid, c.kind)}
	}
	var err error
	if h.status != 0 {
		err = l.readError(h, c)
	} else {
		err = l.readPayload(h, c)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	delete(l.calls, h.id)
	l.mu.Unlock()
	c.retire()
	l.c.leave()
	if !l.c.proven.Load() {
		l.c.proven.Store(true)
		c.p.reached()
	}
	l.c.e.counts.replies.Add(1)
	l.c.e.counts.replyBytes.Add(uint64(headerSize + h.size))
	return nil
}

func (l *requestLane) readPayload(h *header, c *Call) error {
	dst := []byte(nil)
	if h.size > 0 {
		if dst = c.fill(h.size); dst == nil {
			return l.discard(h.size)
		}
		n, err := l.readFull(dst, c)
		if errors.Is(err, errGaveUp) {
			return l.discard(h.size - n)
		}
		if err != nil {
			return err // read ends c with all others
		}
	}
	if err := h.verify(dst); err != nil {
		l.c.e.counts.corrupt.Add(1)
		c.finish(Reply{}, fmt.Errorf("reply: %w", err))
		return &protocolError{err}
	}
	c.finish(h.answer(dst), nil)
	return nil
}

func (l *requestLane) readError(h *header, c *Call) error {
	detail := make([]byte, h.size)
	if _, err := l.readFull(detail, nil); err != nil {
		return err
	}
	if err := h.verify(detail); err != nil {
		l.c.e.counts.corrupt.Add(1)
		return &protocolError{err}
	}
	remote, bad := parseDetail(h.status, detail)
	if bad != nil {
		return &protocolError{bad}
	}
	l.c.e.counts.remoteErrors.Add(1)
	c.finish(h.answer(nil), remote)
	return nil
}

var errGaveUp = errors.New("the caller gave up")

// readFull fills b. If the caller of c gives up meanwhile it lets go of b, ends c, and returns errGaveUp and how much
// of b it had read.
func (l *requestLane) readFull(b []byte, c *Call) (int, error) {
	n := 0
	for n < len(b) {
		m, err := l.r.Read(b[n:])
		n += m
		if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			// interrupt, perhaps on behalf of an earlier call. First clear the deadline, then look at gaveUp:
			// a caller that sets gaveUp after our look sets the deadline after we have cleared it.
			_ = l.s.SetReadDeadline(time.Time{}) // never fails
			err = nil
		}
		if c != nil {
			if why := c.gaveUp.Load(); why != nil {
				c.finish(Reply{}, *why)
				return n, errGaveUp
			}
		}
		if err != nil && n < len(b) {
			return n, err
		}
	}
	return n, nil
}

// discard reads n bytes that nobody wants any more.
func (l *requestLane) discard(n int) error {
	l.c.e.counts.abandoned.Add(1)
	trash := l.c.e.pool.get(min(n, 64<<10))
	defer l.c.e.pool.put(trash)
	for n > 0 {
		m, err := l.readFull(trash.b[:min(n, len(trash.b))], nil)
		if err != nil {
			return err
		}
		n -= m
	}
	return nil
}

// interrupt gets the reader out of a read that waits for the network.
func (l *requestLane) interrupt() { _ = l.s.SetReadDeadline(time.Unix(0, 0)) } // never fails

// lost says why a connection is gone, as an error of this package's vocabulary.
func lost(q *quic.Conn, err error) error {
	if cause := context.Cause(q.Context()); cause != nil {
		err = cause
	}
	if errors.Is(err, errClosing) {
		return errClosing
	}
	if app, ok := errors.AsType[*quic.ApplicationError](err); ok && !app.Remote && app.ErrorCode == codeClosing {
		return errClosing
	}
	return fmt.Errorf("%w: connection to %v lost: %s", ukai.ErrUnreachable, q.RemoteAddr(), reason(err))
}

// reason says in words what QUIC says in codes.
func reason(err error) string {
	if app, ok := errors.AsType[*quic.ApplicationError](err); ok {
		by := "by this node"
		if app.Remote {
			by = "by the peer"
		}
		text := ""
		if app.ErrorMessage != "" {
			text = ": " + clip(app.ErrorMessage, 200)
		}
		switch app.ErrorCode {
		case codeClosing:
			return "closed " + by + ", which is shutting down"
		case codeProtocol:
			return "closed " + by + " after a protocol error" + text
		case codeOverloaded:
			return "closed " + by + ": too many connections"
		case codeIdle:
			return "closed " + by + " when idle"
		case codeKey:
			return "closed " + by + ": the mesh key was retired"
		case codeReset:
			return "given up " + by
		}
		return fmt.Sprintf("closed %s with code %d%s", by, app.ErrorCode, text)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the peer: " + errWrongKey.Error()
	}
	if errors.Is(err, errWrongNode) {
		return errWrongNode.Error()
	}
	if transport, ok := errors.AsType[*quic.TransportError](err); ok && transport.ErrorCode.IsCryptoError() {
		// TLS alerts, RFC 8446 6.2: what a peer answers when it does not believe our certificate.
		switch alert := uint8(transport.ErrorCode); {
		case transport.Remote && (alert == 42 || alert == 48 || alert == 116):
			return "the peer refuses this node's certificate; give both nodes the same mesh key"
		case transport.Remote && alert == 120:
			return "the peer speaks another version of the protocol, not " + alpn
		}
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return "nothing heard from the peer"
	}
	if _, ok := errors.AsType[*quic.HandshakeTimeoutError](err); ok {
		return "the peer does not answer"
	}
	if _, ok := errors.AsType[*quic.StatelessResetError](err); ok {
		return "the peer has restarted"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "the peer does not answer"
	}
	return clip(err.Error(), 300)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n-3] + "..."
	}
	return s
}
