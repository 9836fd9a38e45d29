package node

import (
	"context"
	"fmt"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/gossip"
	"ukai/node/wire"
)

// serveTime bounds how long a request of a peer may be worked on here before its asker has surely given up.
const serveTime = 30 * time.Second

// serve takes one request of a peer. It runs on the connection's reader and does not block.
func (n *Node) serve(r *wire.Request) {
	select {
	case <-n.open:
	default:
		r.Reply(wire.Reply{}, fmt.Errorf("node %s: %w: still starting", n.cfg.Name, ukai.ErrUnreachable))
		return
	}
	switch r.Kind {
	case wire.KindPing:
		r.Reply(wire.Reply{}, nil)
	case wire.KindPrepare, wire.KindAccept, wire.KindInit:
		n.answer(r, func(ctx context.Context) ([]byte, error) { return n.cells.serve(ctx, r) })
	case wire.KindForward, wire.KindYield:
		n.host.Serve(r)
	case wire.KindRetireReplica:
		n.answer(r, func(ctx context.Context) ([]byte, error) { return nil, n.dropNewReplica(ctx, r.Disk, r.Replica) })
	case wire.KindPull:
		n.answer(r, func(ctx context.Context) ([]byte, error) { return n.opinion(ctx, r.Payload) })
	case wire.KindStatus:
		if r.Replica != 0 {
			n.replicas.Serve(r)
			return
		}
		n.answer(r, func(ctx context.Context) ([]byte, error) {
			var to []ukai.NodeID
			if err := codec.Unmarshal(r.Payload, &to); err != nil {
				return nil, err
			}
			return codec.Marshal(n.report(ctx, r.Disk, to))
		})
	case wire.KindCreateReplica:
		if err := n.takesReplicas(); err != nil {
			r.Reply(wire.Reply{}, err)
			return
		}
		n.replicas.Serve(r)
	default:
		if err := n.fit(); err != nil {
			r.Reply(wire.Reply{}, err)
			return
		}
		n.replicas.Serve(r)
	}
}

// answer runs f for a request in a goroutine; the wire bounds how many requests of a peer are unanswered.
func (n *Node) answer(r *wire.Request, f func(context.Context) ([]byte, error)) {
	if !n.spawn(func() {
		ctx, cancel := context.WithTimeout(n.ctx, serveTime)
		defer cancel()
		payload, err := f(ctx)
		r.Reply(wire.Reply{Payload: payload}, err)
	}) {
		r.Reply(wire.Reply{}, fmt.Errorf("node %s: %w", n.cfg.Name, ukai.ErrClosed))
	}
}

// question asks a node whether it holds another one for dead, or the grace time of a disk's removal for over, or the removal for undone, or what it has to tell of disks,
// or tells it that a disk is wanted; the answer has the same form.
type question struct {
	Node    ukai.NodeID `cbor:"1,keyasint"`
	Dead    bool        `cbor:"2,keyasint,omitempty"`
	Disk    ukai.DiskID `cbor:"3,keyasint"`
	Removed crdt.Stamp  `cbor:"4,keyasint"`
	Expired bool        `cbor:"5,keyasint,omitempty"`
	Silent  bool        `cbor:"6,keyasint,omitempty"`

	Accounts bool      `cbor:"7,keyasint,omitempty"`
	Told     []account `cbor:"8,keyasint,omitempty"`
	Wanted   bool      `cbor:"9,keyasint,omitempty"`
	Undone   bool      `cbor:"10,keyasint,omitempty"`
}

// opinion answers a question from what membership and the catalog say here.
func (n *Node) opinion(ctx context.Context, payload []byte) ([]byte, error) {
	var q question
	if err := codec.Unmarshal(payload, &q); err != nil {
		return nil, err
	}
	switch {
	case q.Accounts:
		q.Told = n.accounts()
	case q.Wanted:
		n.wanted.add(q.Disk)
	case q.Undone:
		q.Undone = n.holdsUndone(q.Disk, q.Removed)
	case q.Disk.IsZero():
		q.Dead = n.holdsDead(ctx, q.Node, q.Silent)
	default:
		q.Expired = n.holdsExpired(q.Disk, q.Removed)
	}
	return codec.Marshal(q)
}

// holdsDead says whether membership here has given up on a node, or, if silent, suspects it and it does not answer. This only allows an
// attempt to take over; what makes that safe is the quorum record and the fence.
func (n *Node) holdsDead(ctx context.Context, id ukai.NodeID, silent bool) bool {
	if id == n.id {
		return false
	}
	for _, m := range n.mesh.Members() {
		if m.ID != id {
			continue
		}
		if silent && m.State == gossip.Suspect {
			ctx, cancel := context.WithTimeout(ctx, silentTime)
			defer cancel()
			_, err := n.call(ctx, id, &wire.Message{Kind: wire.KindPing})
			return err != nil
		}
		return m.State == gossip.Dead || m.State == gossip.Left
	}
	return true
}
