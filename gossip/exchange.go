package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
)

const (
	digestBytes = 8 * crdt.Buckets

	dialTime = 10 * time.Second
	// exchangeTime bounds a whole exchange: the catalog of 100,000 disks over 10 Mbit/s takes a minute.
	exchangeTime = 10 * time.Minute
	// bucketsAtOnce is how many differing buckets are compared in one round trip.
	bucketsAtOnce = 256
	// maxVersionsHeld bounds the versions taken from a peer in one such round; a larger catalog than that is not plausible.
	maxVersionsHeld = 1 << 19
)

// exchange is the asking side of one catalog stream.
type exchange struct {
	m        *Mesh
	conn     net.Conn
	expire   *time.Timer
	peer     ukai.NodeID
	root     uint64
	outdated bool       // the peer is
	began    time.Time  // by our wall clock
	partial  bool       // some of what the peer sent was refused
	changed  []crdt.Key // here, so far
}

// greet opens a catalog stream and says hello. Before a node publishes anything to a mesh it has greeted a member and learned
// what that remembers of it.
func (m *Mesh) greet(ctx context.Context, addr netip.AddrPort) (*exchange, error) {
	conn, err := m.carrier.dial(ctx, streamCatalog, addr, dialTime)
	if err != nil {
		return nil, err
	}
	x, err := m.greetOn(conn)
	if err != nil {
		return nil, fmt.Errorf("greet %v: %w", addr, err)
	}
	return x, nil
}

func (m *Mesh) greetOn(conn net.Conn) (*exchange, error) {
	x := &exchange{m: m, conn: conn, began: m.cfg.Now()}
	x.expire = time.AfterFunc(exchangeTime, func() { _ = conn.Close() })
	m.mu.Lock()
	root := m.roots.now
	m.mu.Unlock()
	sent := time.Now()
	var w welcome
	err := x.send(frameHello, hello{Protocol: protocol, From: m.id, Wall: m.cfg.Now().UnixMilli(), Root: root, Own: m.report()})
	if err == nil {
		err = x.receive(frameWelcome, &w)
	}
	if err != nil {
		x.close()
		return nil, err
	}
	x.peer, x.root = w.From, w.Root
	if x.peer == m.id {
		return x, nil
	}
	m.noteClock(w.From, w.Wall, time.Since(sent))
	if w.Boot == m.boot && !m.shown.Load() {
		m.setTwin("known to node " + w.From.Short())
	}
	m.recall(w.From, w.Boot, w.Seq)
	x.outdated = m.outdated(w.From, w.Own)
	m.seenAt(w.From, w.Seen)
	return x, nil
}

func (x *exchange) close() {
	x.expire.Stop()
	_ = x.conn.Close() // what had to arrive was answered
}

func (x *exchange) send(kind frameKind, body any) error {
	_ = x.conn.SetWriteDeadline(time.Now().Add(frameTimeout)) // without deadlines expire ends it
	return writeFrame(x.conn, kind, body)
}

func (x *exchange) receive(want frameKind, into any) error {
	_ = x.conn.SetReadDeadline(time.Now().Add(frameTimeout))
	kind, body, err := readFrame(x.conn)
	if err != nil {
		return err
	}
	if kind != want {
		return fmt.Errorf("frame of kind %d: %w: expected %d", kind, ukai.ErrCorrupt, want)
	}
	return decodeFrame(body, into)
}

// reconcile makes both catalogs equal as far as they go now, moving only what differs.
func (x *exchange) reconcile() error {
	x.m.forget()
	x.m.mu.Lock()
	digest, same := x.m.catalog.Digest(), x.m.roots.now == x.root
	x.m.mu.Unlock()
	if same {
		x.wasEqual()
		return x.bye(false)
	}
	data, err := digest.MarshalBinary()
	if err != nil {
		return err
	}
	x.m.count.digestsCompared.Add(1)
	if err := x.send(frameDigest, digestFrame{Digest: data}); err != nil {
		return err
	}
	var differ bucketsFrame
	if err := x.receive(frameDiffering, &differ); err != nil {
		return err
	}
	x.m.count.bucketsDiffered.Add(uint64(len(differ.Numbers)))
	for numbers := range slices.Chunk(differ.Numbers, bucketsAtOnce) {
		theirs, err := x.list(numbers)
		if err != nil {
			return err
		}
		want, push := x.m.compare(numbers, theirs)
		if err := x.pull(want); err != nil {
			return err
		}
		if err := x.push(push); err != nil {
			return err
		}
	}
	if err := x.bye(true); err != nil {
		return err
	}
	x.wasEqual()
	return nil
}

func (x *exchange) wasEqual() {
	if x.partial {
		return
	}
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	x.m.wasEqual(x.m.members[x.peer], x.began)
}

// list asks what the peer has in some buckets.
func (x *exchange) list(numbers []uint16) ([]crdt.KeyVersion, error) {
	if err := x.send(frameList, bucketsFrame{Numbers: numbers}); err != nil {
		return nil, err
	}
	var items []crdt.KeyVersion
	for {
		var f versionsFrame
		if err := x.receive(frameVersions, &f); err != nil {
			return nil, err
		}
		if items = append(items, f.Items...); len(items) > maxVersionsHeld {
			return nil, fmt.Errorf("versions in %d buckets: %w: more than %d", len(numbers), ukai.ErrCorrupt, maxVersionsHeld)
		}
		if !f.More {
			return items, nil
		}
	}
}

// pull asks for entries and merges them.
func (x *exchange) pull(keys []crdt.Key) error {
	for part := range slices.Chunk(keys, maxKeysAsked) {
		x.m.count.pulls.Add(1)
		if err := x.send(frameWant, wantFrame{Keys: part}); err != nil {
			return err
		}
		for more := true; more; {
			var f deltaFrame
			if err := x.receive(frameDelta, &f); err != nil {
				return err
			}
			d, err := crdt.UnmarshalDelta(f.Delta)
			if err != nil {
				return err
			}
			changed, whole := x.m.absorb(d, x.outdated)
			x.partial = x.partial || !whole
			x.m.count.entriesPulled.Add(uint64(len(changed)))
			x.changed = append(x.changed, changed...)
			more = f.More
		}
	}
	return nil
}

// push sends entries that the peer lacks.
func (x *exchange) push(keys []crdt.Key) error {
	x.m.count.entriesPushed.Add(uint64(len(keys)))
	return x.m.eachPiece(keys, func(piece []byte, _ bool) error {
		return x.send(frameDelta, deltaFrame{Delta: piece})
	})
}

// bye waits until the peer has taken everything in. If catalogs differed it judges whether the exchange was worth it.
func (x *exchange) bye(differed bool) error {
	if err := x.send(frameBye, byeFrame{Changed: uint32(len(x.changed))}); err != nil {
		return err
	}
	var f byeFrame
	if err := x.receive(frameBye, &f); err != nil {
		return err
	}
	if differed {
		x.m.judge(x.peer, len(x.changed)+int(f.Changed))
	}
	return nil
}

// serve answers one catalog stream of a peer until that says bye, fails or breaks the protocol.
func (m *Mesh) serve(conn net.Conn) {
	expire := time.AfterFunc(exchangeTime, func() { _ = conn.Close() })
	defer expire.Stop()
	err := m.answer(conn)
	if err == nil || errors.Is(err, io.EOF) || m.ctx.Err() != nil {
		return
	}
	if errors.Is(err, ukai.ErrCorrupt) || errors.Is(err, ukai.ErrInvalid) || errors.Is(err, ukai.ErrVersion) {
		m.count.messagesRefused.Add(1)
		m.quiet.warn("catalog stream refused", "from", conn.RemoteAddr().String(), "error", err)
		return
	}
	m.log.Debug("catalog stream broke", "from", conn.RemoteAddr().String(), "error", err)
}

func (m *Mesh) answer(conn net.Conn) error {
	changed := 0
	greeted, outdated := false, false // outdated is the peer
	for {
		_ = conn.SetReadDeadline(time.Now().Add(frameTimeout)) // without deadlines expire ends it
		kind, body, err := readFrame(conn)
		if err != nil {
			return err
		}
		_ = conn.SetWriteDeadline(time.Now().Add(frameTimeout))
		if !greeted && kind != frameHello {
			return fmt.Errorf("frame of kind %d: %w: the first must be a hello", kind, ukai.ErrCorrupt)
		}
		switch kind {
		case frameHello:
			greeted = true
			outdated, err = m.answerHello(conn, body)
		case frameDigest:
			err = m.answerDigest(conn, body)
		case frameList:
			err = m.answerList(conn, body)
		case frameWant:
			err = m.answerWant(conn, body)
		case frameDelta:
			var n int
			n, err = m.takeDelta(body, outdated)
			changed += n
		case frameBye:
			return m.answerBye(conn, body, changed)
		default:
			err = fmt.Errorf("frame of kind %d: %w: not a question", kind, ukai.ErrCorrupt)
		}
		if err != nil {
			return err
		}
	}
}

func (m *Mesh) answerHello(conn net.Conn, body []byte) (outdated bool, err error) {
	var h hello
	if err := decodeFrame(body, &h); err != nil {
		return false, err
	}
	w := welcome{Protocol: protocol, From: m.id, Wall: m.cfg.Now().UnixMilli(), Seen: conn.RemoteAddr().String(), Own: m.report()}
	w.Seen = w.Seen[:min(len(w.Seen), 64)]
	m.mu.Lock()
	w.Root = m.roots.now
	if h.From != m.id {
		w.Boot, w.Seq = m.remembered(h.From)
	}
	m.mu.Unlock()
	if h.From != m.id {
		m.shown.Store(true)
		m.noteClock(h.From, h.Wall, 0)
		outdated = m.outdated(h.From, h.Own)
	}
	return outdated, writeFrame(conn, frameWelcome, w)
}

func (m *Mesh) answerDigest(conn net.Conn, body []byte) error {
	var f digestFrame
	if err := decodeFrame(body, &f); err != nil {
		return err
	}
	m.count.digestsCompared.Add(1)
	m.forget()
	m.mu.Lock()
	own := m.catalog.Digest()
	m.mu.Unlock()
	var theirs crdt.Digest
	if err := theirs.UnmarshalBinary(f.Digest); err != nil {
		return err
	}
	differ := bucketsFrame{}
	for _, i := range own.Differing(theirs) {
		differ.Numbers = append(differ.Numbers, uint16(i))
	}
	m.count.bucketsDiffered.Add(uint64(len(differ.Numbers)))
	return writeFrame(conn, frameDiffering, differ)
}

func (m *Mesh) answerList(conn net.Conn, body []byte) error {
	var f bucketsFrame
	if err := decodeFrame(body, &f); err != nil {
		return err
	}
	items := m.bucketVersions(f.Numbers)
	for {
		n := min(len(items), maxVersions)
		part := versionsFrame{Items: items[:n], More: n < len(items)}
		if err := writeFrame(conn, frameVersions, part); err != nil || !part.More {
			return err
		}
		items = items[n:]
	}
}

func (m *Mesh) answerWant(conn net.Conn, body []byte) error {
	var f wantFrame
	if err := decodeFrame(body, &f); err != nil {
		return err
	}
	return m.eachPiece(f.Keys, func(piece []byte, more bool) error {
		_ = conn.SetWriteDeadline(time.Now().Add(frameTimeout))
		return writeFrame(conn, frameDelta, deltaFrame{Delta: piece, More: more})
	})
}

func (m *Mesh) takeDelta(body []byte, outdated bool) (int, error) {
	var f deltaFrame
	if err := decodeFrame(body, &f); err != nil {
		return 0, err
	}
	d, err := crdt.UnmarshalDelta(f.Delta)
	if err != nil {
		return 0, err
	}
	changed, _ := m.absorb(d, outdated)
	m.respread(changed)
	return len(changed), nil
}

func (m *Mesh) answerBye(conn net.Conn, body []byte, changed int) error {
	var f byeFrame
	if err := decodeFrame(body, &f); err != nil {
		return err
	}
	return writeFrame(conn, frameBye, byeFrame{Changed: uint32(changed)})
}

// compare looks at what a peer has in some buckets: want is what differs or is missing here, push what differs or is missing there.
// Versions are hashes and have no order, so what differs goes both ways.
func (m *Mesh) compare(numbers []uint16, theirs []crdt.KeyVersion) (want, push []crdt.Key) {
	have := make(map[crdt.Key]uint64, len(theirs))
	for _, kv := range theirs {
		have[kv.Key] = kv.Version
	}
	for _, kv := range m.bucketVersions(numbers) {
		v, ok := have[kv.Key]
		if !ok {
			push = append(push, kv.Key)
		} else if v != kv.Version {
			push = append(push, kv.Key)
			want = append(want, kv.Key)
		}
		delete(have, kv.Key)
	}
	for k := range have {
		want = append(want, k)
	}
	return want, push
}

func (m *Mesh) bucketVersions(numbers []uint16) []crdt.KeyVersion {
	buckets := make([]int, len(numbers))
	for i, n := range numbers {
		buckets[i] = int(n)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.catalog.Buckets(buckets)
}
