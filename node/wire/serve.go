package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"ukai"
)

// protoRequests is the first byte of a stream of requests; the second one is the lane.
const protoRequests byte = 'R'

// firstByteTimeout bounds how long a new stream may keep to itself what it is for.
const firstByteTimeout = 5 * time.Second

// Request is a message from a peer that waits for Reply.
type Request struct {
	Message // Payload is valid until Reply
	From    ukai.NodeID
	// Conn numbers the connection that the request came on. Requests with the same number came from one life of
	// the peer. The lanes of a peer use different connections.
	Conn uint64

	s       *server
	id      uint64
	payload *buffer
	out     *buffer // from Buffer
	owed    int
	replied atomic.Bool
}

// Buffer returns n bytes, at most MaxPayload, of any content for the payload of the reply. The wire sends them from
// where they are and takes them back; they must not be touched after Reply. Only the latest Buffer is valid.
func (r *Request) Buffer(n int) []byte {
	r.s.c.e.pool.put(r.out)
	r.out = r.s.c.e.pool.get(headerSize + n)
	return r.out.b[headerSize:]
}

// Reply answers the request with a reply, or with an error and the numbers of the reply. It must be called exactly
// once, from any goroutine, and returns without waiting for the network. A payload that does not come from Buffer
// is copied. If the connection is gone the reply is dropped; the peer knows the call as lost.
func (r *Request) Reply(reply Reply, err error) {
	e := r.s.c.e
	if r.replied.Swap(true) {
		e.log.Error("a request was answered twice", "kind", r.Kind.String(), "peer", r.From.Short())
		return
	}
	if err == nil {
		err = checkFields(r.Kind, reply.Offset, len(reply.Payload))
	} else if checkFields(r.Kind, reply.Offset, 0) != nil {
		reply.Offset = 0
	}
	f := r.frame(&reply, err)
	f.owed, f.cost = r.s.budget, r.owed
	if more := len(f.b) - r.owed; more > 0 { // nobody could know; the reader waits until it is sent
		f.borrowed = more
		r.s.budget.borrow(more)
	}
	e.pool.put(r.payload)
	e.pool.put(r.out)
	r.payload, r.out, r.Payload = nil, nil, nil
	e.counts.served.Add(1)
	if err != nil {
		e.counts.servedErrors.Add(1)
	}
	r.s.w.send(f, r.s.crowded.Load())
}

func (r *Request) frame(reply *Reply, err error) *buffer {
	pool := &r.s.c.e.pool
	if err != nil {
		status := statusOf(err)
		var space [maxDetail]byte
		detail := appendDetail(space[:0], err)
		f := pool.get(headerSize + len(detail))
		copy(f.b[headerSize:], detail)
		numbers := *reply
		if numbers.Offset < 0 || numbers.Offset > ukai.MaxDiskSize {
			numbers.Offset = 0
		}
		h := replyHeader(r.id, r.Kind, status, &numbers)
		h.put(f.b, f.b[headerSize:])
		return f
	}
	n := len(reply.Payload)
	f := r.out
	if n > 0 && f != nil && len(f.b) >= headerSize+n && &f.b[headerSize] == &reply.Payload[0] {
		r.out = nil
		f.b = f.b[:headerSize+n]
	} else {
		f = pool.get(headerSize + n)
		copy(f.b[headerSize:], reply.Payload)
	}
	h := replyHeader(r.id, r.Kind, 0, reply)
	h.put(f.b, f.b[headerSize:])
	return f
}

// served is what one node may have under way here.
type served struct {
	conns   []*conn // oldest first
	budgets [numLanes]*budget
}

// accept takes connections until the endpoint closes.
func (e *Endpoint) accept() {
	for {
		q, err := e.listener.Accept(e.ctx)
		if err != nil {
			if e.ctx.Err() == nil {
				e.log.Error("the socket cannot be read any more, restart the node", "address", e.LocalAddr().String(), "error", err.Error())
				e.counts.socketFailed.Store(1)
			}
			return
		}
		e.spawn(func() { e.welcome(q) })
	}
}

// welcome serves one accepted connection until it is lost.
func (e *Endpoint) welcome(q *quic.Conn) {
	c, err := e.adopt(q, q.RemoteAddr(), nil)
	if err != nil {
		return
	}
	s, oldest := e.host(c)
	if s == nil {
		e.refuse(&e.counts.connsRefused, q.RemoteAddr(), "connection", fmt.Errorf("%w: %d connections are open", ukai.ErrOverloaded, maxConns))
		c.close(codeOverloaded, "")
		return
	}
	if oldest != nil {
		oldest.close(codeOverloaded, "")
	}
	e.counts.accepted.Add(1)
	e.heard(c.peer)
	defer e.unhost(c)
	for {
		stream, err := q.AcceptStream(e.ctx)
		if err != nil {
			c.close(codeClosing, "")
			return
		}
		if !e.spawn(func() { e.serveStream(c, s, stream) }) {
			return
		}
	}
}

// host enters an accepted connection into the books of its node. It returns nil if there are too many in all, and
// the connection that has to go if the node has too many.
func (e *Endpoint) host(c *conn) (s *served, oldest *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.accepted >= maxConns {
		return nil, nil
	}
	s = e.served[c.peer]
	if s == nil {
		s = &served{}
		for n := range s.budgets {
			s.budgets[n] = newBudget(e.cfg.MaxInflight, e.cfg.MaxInflightBytes)
		}
		e.served[c.peer] = s
	}
	s.conns = append(s.conns, c)
	e.accepted++
	if len(s.conns) > maxConnsPerPeer {
		oldest = s.conns[0]
	}
	return s, oldest
}

func (e *Endpoint) unhost(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.served[c.peer]
	for i, other := range s.conns {
		if other == c {
			s.conns = append(s.conns[:i], s.conns[i+1:]...)
			e.accepted--
			break
		}
	}
}

// tidyServed forgets nodes without connections and without requests under way: a node that has left requests
// behind must not get a fresh budget by dialing again.
func (e *Endpoint) tidyServed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, s := range e.served {
		if len(s.conns) == 0 && s.idle(e.cfg.MaxInflight) {
			delete(e.served, id)
		}
	}
}

func (s *served) idle(maxRequests int) bool {
	for _, b := range s.budgets {
		if requests, _, _ := b.used(maxRequests); requests > 0 {
			return false
		}
	}
	return true
}

// serveStream finds out what a new stream is for.
func (e *Endpoint) serveStream(c *conn, peer *served, stream *quic.Stream) {
	var first [2]byte
	_ = stream.SetReadDeadline(time.Now().Add(firstByteTimeout)) // never fails
	if _, err := io.ReadFull(stream, first[:1]); err != nil {
		stream.CancelRead(codeDone)
		stream.CancelWrite(codeDone)
		return
	}
	proto := first[0]
	if queue, ok := e.accepting[proto]; ok {
		_ = stream.SetReadDeadline(time.Time{})
		e.offer(queue, c, stream, proto)
		return
	}
	if proto != protoRequests {
		c.violated(fmt.Errorf("stream for %q: %w: no such protocol", proto, ukai.ErrInvalid))
		return
	}
	if _, err := io.ReadFull(stream, first[1:]); err != nil {
		stream.CancelRead(codeDone)
		stream.CancelWrite(codeDone)
		return
	}
	_ = stream.SetReadDeadline(time.Time{})
	n := lane(first[1])
	if n >= numLanes {
		c.violated(fmt.Errorf("stream of requests: %w: no lane %d", ukai.ErrInvalid, first[1]))
		return
	}
	stream.SetPriority(n.urgency(), true)
	s := &server{c: c, r: bufio.NewReaderSize(stream, readAhead), budget: peer.budgets[n]}
	s.w = writer{stream: stream, pool: &e.pool, spawn: e.spawn, broken: func(error) { c.close(codeReset, "") }}
	if broken, ok := errors.AsType[*protocolError](s.run()); ok {
		c.violated(broken)
		return
	}
	// A stream of requests lives as long as its connection.
	c.close(codeReset, "")
}

// server is the serving side of one stream of requests.
type server struct {
	c      *conn
	r      *bufio.Reader
	budget *budget
	w      writer
	// crowded says that the next request is here already.
	crowded atomic.Bool
}

// run reads requests until the stream ends, and returns why it did.
func (s *server) run() error {
	e := s.c.e
	var head [headerSize]byte
	var h header
	for {
		if _, err := io.ReadFull(s.r, head[:]); err != nil {
			return err
		}
		if err := h.parse(head[:]); err != nil {
			return &protocolError{err}
		}
		if h.reply {
			return &protocolError{fmt.Errorf("reply to %v where a request belongs: %w", h.kind, ukai.ErrInvalid)}
		}
		cost := headerSize + h.size
		if h.kind == KindRead || h.kind == KindForward || h.kind == KindReadPast {
			cost += min(int(h.count), MaxPayload)
		}
		// Here the reader stops when the peer has too much under way. QUIC's flow control then stops the peer.
		if err := s.budget.acquire(s.c.q.Context(), cost); err != nil {
			return err
		}
		var payload *buffer
		var body []byte
		if h.size > 0 {
			payload = e.pool.get(h.size)
			body = payload.b
			if _, err := io.ReadFull(s.r, body); err != nil {
				e.pool.put(payload)
				s.budget.release(cost)
				return err
			}
		}
		if err := h.verify(body); err != nil {
			e.counts.corrupt.Add(1)
			e.pool.put(payload)
			s.budget.release(cost)
			return &protocolError{err}
		}
		s.crowded.Store(s.r.Buffered() > 0)
		r := &Request{Message: h.message(body), From: s.c.peer, Conn: s.c.id, s: s, id: h.id, payload: payload, owed: cost}
		switch {
		case !h.kind.known():
			err := fmt.Errorf("%v: %w: this node does not know it; update it", h.kind, ukai.ErrUnsupported)
			e.refuse(&e.counts.unknownKinds, s.addr(), "request", err)
			r.Reply(Reply{}, err)
		case e.cfg.Serve == nil:
			r.Reply(Reply{}, fmt.Errorf("%v: %w: this node serves no requests", h.kind, ukai.ErrUnsupported))
		default:
			e.cfg.Serve(r)
		}
	}
}

func (s *server) addr() net.Addr { return s.c.q.RemoteAddr() }
