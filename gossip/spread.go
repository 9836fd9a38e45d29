package gossip

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hashicorp/memberlist"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
)

// What rides on memberlist's packets: one byte of kind and the message.
const (
	packetDelta    = 'D' // one entry, as crdt encodes it
	packetAnnounce = 'A' // the key and version of an entry too large for packets
	packetRoot     = 'R' // the root of a catalog: node id, 8 bytes

	// maxDeltaPacket is the largest entry that is sent whole: memberlist adds a few bytes to it.
	maxDeltaPacket = 1024
	// maxQueued bounds the entries waiting to be spread by packet; those sent most often give way, and digests bring what is missed.
	maxQueued = 1024
	// maxRespread is how many entries learned in one exchange are passed on by packet; more are left to further exchanges.
	maxRespread = 32
)

// announcement is the body of packetAnnounce.
type announcement struct {
	From    ukai.NodeID     `cbor:"1,keyasint"`
	Version crdt.KeyVersion `cbor:"2,keyasint"`
}

// broadcast is one message in the queue. A newer one about the same key takes its place, and says what both said.
type broadcast struct {
	m     *Mesh
	key   crdt.Key
	delta crdt.Delta
	msg   []byte
}

// Name is the identity in the queue.
func (b *broadcast) Name() string { return b.key.String() }

// Invalidates says whether b takes the place of other.
func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*broadcast)
	return ok && o.key == b.key
}

// Message is what is sent.
func (b *broadcast) Message() []byte { return b.msg }

// Finished is called when the message has been sent often enough or was replaced.
func (b *broadcast) Finished() {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if b.m.queued[b.key] == b {
		delete(b.m.queued, b.key)
	}
}

// spread queues what is new in d, one message per entry.
func (m *Mesh) spread(d crdt.Delta) {
	for _, e := range entries(d) {
		if err := m.enqueue(e); err != nil {
			m.quiet.warn("entry not spread by packet", "key", e.Keys()[0].String(), "error", err)
		}
	}
}

// respread passes on what was learned by stream.
func (m *Mesh) respread(keys []crdt.Key) {
	if len(keys) == 0 || len(keys) > maxRespread {
		return
	}
	m.mu.Lock()
	d := m.catalog.Extract(keys)
	m.mu.Unlock()
	m.spread(d)
}

// enqueue queues a delta of one entry: as it is if it fits a packet, else as an announcement.
func (m *Mesh) enqueue(e crdt.Delta) error {
	key := e.Keys()[0]
	m.mu.Lock()
	if old := m.queued[key]; old != nil {
		e = old.delta.Join(e) // which has not been sent often enough
	}
	m.mu.Unlock()
	data, err := e.MarshalBinary()
	if err != nil {
		return err
	}
	msg := append([]byte{packetDelta}, data...)
	if len(msg) > maxDeltaPacket {
		m.mu.Lock()
		version := versionOf(m.catalog, key)
		m.mu.Unlock()
		b, err := codec.Marshal(announcement{From: m.id, Version: crdt.KeyVersion{Key: key, Version: version}})
		if err != nil {
			return err
		}
		msg = append([]byte{packetAnnounce}, b...)
	}
	b := &broadcast{m: m, key: key, delta: e, msg: msg}
	m.mu.Lock()
	m.queued[key] = b
	m.mu.Unlock()
	m.count.deltasQueued.Add(1)
	m.queue.QueueBroadcast(b)
	m.queue.Prune(maxQueued)
	return nil
}

// versionOf returns the version of an entry, 0 if there is none.
func versionOf(c *crdt.Catalog, key crdt.Key) uint64 {
	for _, kv := range c.Bucket(key.Bucket()) {
		if kv.Key == key {
			return kv.Version
		}
	}
	return 0
}

// delegate is what memberlist calls to move our messages.
type delegate struct{ m *Mesh }

// NodeMeta is what memberlist tells others of this node.
func (d delegate) NodeMeta(int) []byte { return appendMeta(nil, d.m.boot) }

// NotifyMsg takes in a message; memberlist owns b.
func (d delegate) NotifyMsg(b []byte) {
	if err := d.m.take(b); err != nil {
		d.m.count.messagesRefused.Add(1)
		d.m.quiet.warn("gossip message refused", "error", err)
	}
}

// take acts on one message from a packet.
func (m *Mesh) take(b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("empty message: %w", ukai.ErrCorrupt)
	}
	kind, body := b[0], bytes.Clone(b[1:])
	switch kind {
	case packetDelta:
		d, err := crdt.UnmarshalDelta(body)
		if err != nil {
			return err
		}
		m.count.deltasMerged.Add(1)
		if changed, _ := m.absorb(d, false); len(changed) > 0 && d.Len() <= maxRespread {
			m.spread(d) // news here are probably news to others
		}
	case packetAnnounce:
		a, err := parseAnnouncement(body)
		if err != nil {
			return err
		}
		m.announced(a.From, a.Version)
	case packetRoot:
		from, root, err := parseRoot(body)
		if err != nil {
			return err
		}
		m.heardRoot(from, root)
	default:
		return fmt.Errorf("message of kind %d: %w", kind, ukai.ErrCorrupt)
	}
	return nil
}

func parseAnnouncement(b []byte) (announcement, error) {
	var a announcement
	if err := codec.Unmarshal(b, &a); err != nil {
		return a, err
	}
	if a.From.IsZero() {
		return a, fmt.Errorf("announcement: %w: it names no node", ukai.ErrCorrupt)
	}
	return a, nil
}

func parseRoot(b []byte) (from ukai.NodeID, root uint64, err error) {
	if len(b) != len(from)+8 {
		return from, 0, fmt.Errorf("root message of %d bytes: %w: want %d", len(b), ukai.ErrCorrupt, len(from)+8)
	}
	copy(from[:], b)
	if from.IsZero() {
		return from, 0, fmt.Errorf("root message: %w: it names no node", ukai.ErrCorrupt)
	}
	return from, binary.BigEndian.Uint64(b[len(from):]), nil
}

// sendRoot tells a peer the root of this catalog by packet.
func (m *Mesh) sendRoot(to ukai.NodeID) {
	addr, ok := m.addrPort(to)
	if !ok {
		return
	}
	if err := m.ml.SendToAddress(memberlist.Address{Addr: addr.String(), Name: to.String()}, m.rootMessage()); err != nil {
		m.log.Debug("root not sent", "peer", to.Short(), "error", err) // one of many, comes again
	}
}

func (m *Mesh) rootMessage() []byte {
	m.mu.Lock()
	root := m.roots.now
	m.mu.Unlock()
	return binary.BigEndian.AppendUint64(append([]byte{packetRoot}, m.id[:]...), root)
}

// GetBroadcasts gives memberlist what fits into a packet.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	d.m.shown.Store(true)                              // memberlist's part may say that this start is alive: it answers who suspects the one before
	msgs := d.m.queue.GetBroadcasts(overhead+1, limit) // memberlist puts a byte of its own before each
	d.m.count.deltasSent.Add(uint64(len(msgs)))
	return msgs
}

// LocalState is this node's part of a push/pull: just its id and root. Where roots differ the digests, and then no more than
// what differs, are exchanged by a stream of our own.
func (d delegate) LocalState(bool) []byte {
	d.m.shown.Store(true) // memberlist's part says which start this is
	return d.m.rootMessage()
}

// MergeRemoteState is the peer's part.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	if len(b) == 0 || b[0] != packetRoot {
		b = []byte{0}
	}
	d.NotifyMsg(b)
}

// pings measures round trips and compares roots.
type pings struct{ m *Mesh }

// AckPayload is what answers to pings carry: clock, root, coordinate.
func (p pings) AckPayload() []byte {
	m := p.m
	m.mu.Lock()
	root := m.roots.now
	m.mu.Unlock()
	b := make([]byte, 0, ackSize)
	b = append(b, metaVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(m.cfg.Now().UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, root)
	return appendPlace(b, false, m.vivaldi.GetCoordinate())
}

const ackSize = 1 + 8 + 8 + placeSize

// NotifyPingComplete is told of each ping that was answered directly.
func (p pings) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, payload []byte) {
	m := p.m
	id, err := ukai.ParseNodeID(n.Name)
	if err != nil {
		return // parseNode has refused such nodes
	}
	m.Observe(id, rtt)
	if len(payload) != ackSize || payload[0] != metaVersion {
		m.count.messagesRefused.Add(1)
		m.quiet.warn("ack payload refused", "peer", id.Short(), "bytes", len(payload))
		return
	}
	m.noteClock(id, int64(binary.BigEndian.Uint64(payload[1:])), rtt)
	m.heardRoot(id, binary.BigEndian.Uint64(payload[9:]))
	_, place, err := parsePlace(payload[17:])
	if err == nil {
		_, err = m.vivaldi.Update(n.Name, place, rtt)
	}
	if err != nil {
		m.count.coordinatesRefused.Add(1)
		m.quiet.warn("coordinate refused", "peer", id.Short(), "error", err)
		return
	}
	m.mu.Lock()
	if p := m.members[id]; p != nil {
		p.place, p.suspect = place, false
	}
	m.mu.Unlock()
}
