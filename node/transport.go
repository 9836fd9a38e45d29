package node

import (
	"context"
	"net"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/gossip"
	"ukai/node/store"
	"ukai/node/volume"
	"ukai/node/wire"
)

// The adapters by which rooms that do not know each other meet.

// transport lets gossip use the wire.
type transport struct{ *wire.Endpoint }

func (t transport) ReadPacket(ctx context.Context) ([]byte, net.Addr, error) {
	return t.Endpoint.ReadPacket(ctx)
}

func (t transport) DialStream(ctx context.Context, to net.Addr) (net.Conn, error) {
	return t.Endpoint.DialStream(ctx, to, wire.ProtoGossip)
}

func (t transport) AcceptStream(ctx context.Context) (net.Conn, error) {
	conn, _, err := t.Endpoint.AcceptStream(ctx, wire.ProtoGossip)
	return conn, err
}

func (t transport) RTT(id ukai.NodeID) (time.Duration, bool) {
	s := t.Stats(id)
	return s.RTT, s.Connected && s.RTT > 0
}

// journal lets gossip keep its memory in the store.
type journal struct{ store store.Backend }

func (j journal) Put(ctx context.Context, sync bool, kvs ...gossip.KV) error {
	batch := make([]store.KV, len(kvs))
	for i, kv := range kvs {
		batch[i] = store.KV{K: kv.Key, V: kv.Value}
	}
	return j.store.Put(ctx, sync, batch...)
}

func (j journal) Scan(prefix string, f func(k string, v []byte) error) error {
	return j.store.Scan(prefix, f)
}

// peers lets volumes reach other nodes, and gossip learn from it how far they are.
type peers struct{ *Node }

func (p peers) Start(ctx context.Context, to ukai.NodeID, m *wire.Message, into []byte) volume.Call {
	return p.wire.Start(ctx, to, m, into)
}

func (p peers) RTT(to ukai.NodeID) (time.Duration, bool) {
	if to == p.id {
		return 0, true
	}
	rtt, _, ok := p.mesh.RTT(to)
	return rtt, ok
}

// hearsay is what volumes may know from gossip.
type hearsay struct{ *Node }

func (h hearsay) Record(disk ukai.DiskID) (crdt.Record, bool) {
	rec, err := h.known(disk)
	return rec, err == nil
}

// Dead asks a majority of the record's arbiters what membership thinks of the holder's node. A node that cannot be asked has no opinion.
func (h hearsay) Dead(rec crdt.Record, silent bool) bool { return h.majorityHoldsDead(rec, silent) }

func (h hearsay) NodeName(id ukai.NodeID) (name string) {
	if id == h.id {
		return h.cfg.Name
	}
	h.mesh.View(func(c *crdt.Catalog) {
		if n, ok := c.Node(id); ok {
			name = n.Info.Name
		}
	})
	return name
}

// diskName returns what people call a disk.
func (h hearsay) diskName(id ukai.DiskID) string {
	if d, err := h.findByID(id); err == nil && d.Name.Value != "" {
		return d.Name.Value
	}
	return id.String()
}

func (n *Node) addr(id ukai.NodeID) (net.Addr, bool) {
	select {
	case <-n.open:
		return n.mesh.Addr(id)
	default:
		return nil, false
	}
}

// call sends a request and waits for the answer.
func (n *Node) call(ctx context.Context, to ukai.NodeID, m *wire.Message) (wire.Reply, error) {
	reply, err := n.wire.Call(ctx, to, m, nil)
	if err != nil {
		return reply, &ukai.NodeError{Node: to, Name: hearsay{n}.NodeName(to), Err: err}
	}
	return reply, nil
}
