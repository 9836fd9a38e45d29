package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"ukai"
)

// What raw streams are for: the first byte on each. Numbers are never reused.
const (
	ProtoGossip byte = 'G'
	ProtoAdmin  byte = 'A'
)

const (
	// maxAccepting bounds the streams of one proto that AcceptStream has not taken; more are refused.
	maxAccepting = 64
	// rawLinger is for how long a connection without raw streams is kept.
	rawLinger = 30 * time.Second
)

// Raw streams have connections of their own: a reader of one that sleeps must not hold up requests, as it would by
// using up the window of the connection. They are kept by address, since gossip has to reach nodes whose id it does
// not know yet.
type rawKey struct {
	addr string
	node ukai.NodeID // zero if any will do
}

// rawLink is the connection for one key.
type rawLink struct {
	ready chan struct{} // closed when conn and err are final
	conn  *conn
	err   error
}

// DialStream opens a stream to whichever node of the mesh listens at addr.
func (e *Endpoint) DialStream(ctx context.Context, addr net.Addr, proto byte) (net.Conn, error) {
	return e.dialRaw(ctx, addr, ukai.NodeID{}, proto)
}

// DialNode opens a stream to the node id, at the address that Config.Addr gives for it.
func (e *Endpoint) DialNode(ctx context.Context, id ukai.NodeID, proto byte) (net.Conn, error) {
	addr, ok := e.cfg.Addr(id)
	if !ok {
		return nil, fmt.Errorf("%w: no address is known for node %v", ukai.ErrUnreachable, id.Short())
	}
	return e.dialRaw(ctx, addr, id, proto)
}

func (e *Endpoint) dialRaw(ctx context.Context, addr net.Addr, node ukai.NodeID, proto byte) (net.Conn, error) {
	if err := e.checkProto(proto); err != nil {
		return nil, err
	}
	if addr == nil {
		return nil, fmt.Errorf("dial a stream: %w: no address given", ukai.ErrInvalid)
	}
	for {
		c, fresh, err := e.rawConn(ctx, addr, node)
		if err != nil {
			return nil, err
		}
		if !c.enter() {
			continue // it was idle for too long just now
		}
		stream, err := c.q.OpenStreamSync(ctx)
		if err == nil {
			stream.SetPriority(rawUrgency, true)
			if err = stream.TryWriteAll([]byte{proto}); err == nil {
				e.counts.rawDialed.Add(1)
				return newRawStream(c, stream, c.leave), nil
			}
		}
		c.leave()
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("open a stream to %v: %w", addr, contextError(ctx))
		case fresh:
			return nil, lost(c.q, err)
		}
		// It was lost and this had not been noticed yet, or streams that nobody reads have used up its window; try
		// once with a fresh one.
		e.dropRaw(rawKey{addr.String(), node}, c)
		c.retire(codeIdle)
	}
}

// rawConn returns the connection for raw streams to addr, dialed by whoever asks first. fresh says that it was
// dialed for this call.
func (e *Endpoint) rawConn(ctx context.Context, addr net.Addr, node ukai.NodeID) (c *conn, fresh bool, err error) {
	key := rawKey{addr.String(), node}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, false, errClosing
	}
	l := e.raw[key]
	if l == nil {
		fresh = true
		l = &rawLink{ready: make(chan struct{})}
		e.raw[key] = l
		e.wg.Go(func() {
			ctx, cancel := context.WithTimeout(e.ctx, e.cfg.DialTimeout)
			defer cancel()
			l.conn, l.err = e.dial(ctx, addr, node, nil)
			if l.err != nil {
				e.mu.Lock()
				delete(e.raw, key)
				e.mu.Unlock()
			}
			close(l.ready)
		})
	}
	e.mu.Unlock()
	select {
	case <-l.ready:
		return l.conn, fresh, l.err
	case <-ctx.Done():
		return nil, false, fmt.Errorf("dial %v: %w", addr, contextError(ctx))
	}
}

// dropRaw forgets c if it is the connection of key.
func (e *Endpoint) dropRaw(key rawKey, c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.raw[key]; l != nil && l.settled() && l.conn == c {
		delete(e.raw, key)
	}
}

func (l *rawLink) settled() bool {
	select {
	case <-l.ready:
		return true
	default:
		return false
	}
}

// tidyRaw closes connections without raw streams and forgets those that are gone.
func (e *Endpoint) tidyRaw() {
	e.mu.RLock()
	settled := make(map[rawKey]*conn)
	for key, l := range e.raw {
		if l.settled() && l.conn != nil {
			settled[key] = l.conn
		}
	}
	e.mu.RUnlock()
	for key, c := range settled {
		if c.q.Context().Err() != nil || c.idle() > rawLinger {
			e.dropRaw(key, c)
			c.retire(codeIdle)
		}
	}
}

// AcceptStream returns the next stream that a peer has opened for proto, and which node the peer is.
func (e *Endpoint) AcceptStream(ctx context.Context, proto byte) (net.Conn, ukai.NodeID, error) {
	if err := e.checkProto(proto); err != nil {
		return nil, ukai.NodeID{}, err
	}
	select {
	case s := <-e.accepting[proto]:
		return s, s.c.peer, nil
	case <-ctx.Done():
		return nil, ukai.NodeID{}, contextError(ctx)
	case <-e.ctx.Done():
		return nil, ukai.NodeID{}, errClosing
	}
}

func (e *Endpoint) checkProto(proto byte) error {
	if _, ok := e.accepting[proto]; !ok {
		return fmt.Errorf("stream for %q: %w: want %q or %q", proto, ukai.ErrInvalid, ProtoGossip, ProtoAdmin)
	}
	return nil
}

// offer queues an accepted stream for AcceptStream, or refuses it.
func (e *Endpoint) offer(queue chan *rawStream, c *conn, stream *quic.Stream, proto byte) {
	stream.SetPriority(rawUrgency, true)
	select {
	case queue <- newRawStream(c, stream, func() {}):
		e.counts.rawAccepted.Add(1)
	default:
		e.refuse(&e.counts.rawRefused, c.q.RemoteAddr(), "stream",
			fmt.Errorf("%w: %d streams for %q wait to be taken", ukai.ErrOverloaded, maxAccepting, proto))
		stream.CancelRead(codeOverloaded)
		stream.CancelWrite(codeOverloaded)
	}
}

func (e *Endpoint) drainAccepting() {
	for _, queue := range e.accepting {
		for len(queue) > 0 {
			_ = (<-queue).Close()
		}
	}
}

// rawStream is a QUIC stream as a net.Conn. Its errors are of package ukai, except io.EOF and expired deadlines.
type rawStream struct {
	c       *conn
	s       *quic.Stream
	writing chan struct{} // of size 1: held while writing, which may wait for the network
	closed  sync.Once
	release func()
}

func newRawStream(c *conn, s *quic.Stream, release func()) *rawStream {
	return &rawStream{c: c, s: s, writing: make(chan struct{}, 1), release: release}
}

func (r *rawStream) Read(b []byte) (int, error) {
	n, err := r.s.Read(b)
	return n, r.wrap(err)
}

func (r *rawStream) Write(b []byte) (int, error) {
	r.writing <- struct{}{}
	defer func() { <-r.writing }()
	n, err := r.s.Write(b)
	return n, r.wrap(err)
}

// CloseWrite tells the peer that nothing more will come; it still may send.
func (r *rawStream) CloseWrite() error {
	r.writing <- struct{}{}
	defer func() { <-r.writing }()
	return r.wrap(r.s.Close())
}

// Close sends what was written, in the background, and reads no more. A Write that is waiting is cut short.
func (r *rawStream) Close() error {
	r.closed.Do(func() {
		r.s.CancelRead(codeDone)
		select {
		case r.writing <- struct{}{}:
			_ = r.s.Close() // fails only if the peer does not want to read, which does not matter any more
			<-r.writing
		default:
			r.s.CancelWrite(codeDone)
		}
		r.release()
	})
	return nil
}

func (r *rawStream) LocalAddr() net.Addr                { return r.c.q.LocalAddr() }
func (r *rawStream) RemoteAddr() net.Addr               { return r.c.q.RemoteAddr() }
func (r *rawStream) SetDeadline(t time.Time) error      { return r.s.SetDeadline(t) }
func (r *rawStream) SetReadDeadline(t time.Time) error  { return r.s.SetReadDeadline(t) }
func (r *rawStream) SetWriteDeadline(t time.Time) error { return r.s.SetWriteDeadline(t) }

// wrap turns QUIC's errors into ours and leaves the rest alone.
func (r *rawStream) wrap(err error) error {
	if err == nil {
		return nil
	}
	if stream, ok := errors.AsType[*quic.StreamError](err); ok {
		switch {
		case !stream.Remote:
			return net.ErrClosed
		case stream.ErrorCode == codeOverloaded:
			return fmt.Errorf("%w: %v accepts no more streams now", ukai.ErrOverloaded, r.RemoteAddr())
		}
		return fmt.Errorf("%w: %v has closed the stream", ukai.ErrClosed, r.RemoteAddr())
	}
	if errors.Is(err, quic.ErrStreamClosed) {
		return net.ErrClosed
	}
	if r.c.q.Context().Err() != nil {
		return lost(r.c.q, err)
	}
	return err
}
