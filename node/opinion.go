package node

import (
	"context"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/wire"
)

const (
	// opinionTime bounds how long arbiters are asked for their opinion.
	opinionTime = 2 * time.Second
	// silentTime is how long a node that is suspected to be dead is given to answer. An arbiter that is asked for its opinion must be able to
	// find that out within opinionTime.
	silentTime = time.Second
)

// majorityHoldsDead says whether a majority of a record's arbiters holds the record's holder for dead; if silent, whether it at least suspects
// that and gets no answer from it.
func (n *Node) majorityHoldsDead(rec crdt.Record, silent bool) bool {
	payload, err := codec.Marshal(question{Node: rec.Holder, Silent: silent})
	if err != nil {
		n.log.Error("encode a question", "err", err)
		return false
	}
	return n.majority(n.ctx, rec.Arbiters, func(ctx context.Context, id ukai.NodeID) bool {
		switch id {
		case n.id:
			return n.holdsDead(ctx, rec.Holder, silent)
		case rec.Holder:
			return n.unreachable(ctx, id)
		}
		q, ok := n.ask(ctx, id, payload)
		return ok && q.Dead
	})
}

// majority says whether a majority of nodes, all asked at the same time, says yes before opinionTime is over.
func (n *Node) majority(ctx context.Context, nodes []ukai.NodeID, vote func(context.Context, ukai.NodeID) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, opinionTime)
	defer cancel()
	votes := make(chan bool, len(nodes))
	for _, id := range nodes {
		if !n.spawn(func() { votes <- vote(ctx, id) }) {
			return false
		}
	}
	yes, need := 0, len(nodes)/2+1
	for range nodes {
		if <-votes {
			if yes++; yes >= need {
				return true
			}
		}
	}
	return false
}

// ask returns a node's opinion; ok is false if it has none.
func (n *Node) ask(ctx context.Context, id ukai.NodeID, payload []byte) (q question, ok bool) {
	reply, err := n.call(ctx, id, &wire.Message{Kind: wire.KindPull, Payload: payload})
	if err != nil {
		return q, false
	}
	return q, codec.Unmarshal(reply.Payload, &q) == nil
}

// unreachable says whether a node that membership has given up does not answer either. It is the holder's own vote: with two nodes, both
// arbiters, the survivor would otherwise never have a majority - but neither would its quorum record, so this only saves an attempt.
func (n *Node) unreachable(ctx context.Context, id ukai.NodeID) bool {
	if !n.holdsDead(ctx, id, false) {
		return false
	}
	_, err := n.call(ctx, id, &wire.Message{Kind: wire.KindPing})
	return err != nil
}
