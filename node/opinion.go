package node

import (
	"context"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/wire"
)

// opinionTime bounds how long arbiters are asked what they think of a holder's health.
const opinionTime = 2 * time.Second

// majorityHoldsDead says whether a majority of a record's arbiters holds the record's holder for dead.
func (n *Node) majorityHoldsDead(rec crdt.Record) bool {
	ctx, cancel := context.WithTimeout(n.ctx, opinionTime)
	defer cancel()
	payload, err := codec.Marshal(question{Node: rec.Holder})
	if err != nil {
		n.log.Error("encode a question", "err", err)
		return false
	}
	votes := make(chan bool, len(rec.Arbiters))
	for _, id := range rec.Arbiters {
		vote := func() { votes <- n.ask(ctx, id, payload) }
		switch id {
		case n.id:
			vote = func() { votes <- n.holdsDead(rec.Holder) }
		case rec.Holder:
			vote = func() { votes <- n.unreachable(ctx, id) }
		}
		if !n.spawn(vote) {
			return false
		}
	}
	dead, need := 0, len(rec.Arbiters)/2+1
	for range rec.Arbiters {
		if <-votes {
			if dead++; dead >= need {
				return true
			}
		}
	}
	return false
}

// ask returns a node's opinion; false if it has none.
func (n *Node) ask(ctx context.Context, id ukai.NodeID, payload []byte) bool {
	reply, err := n.call(ctx, id, &wire.Message{Kind: wire.KindPull, Payload: payload})
	if err != nil {
		return false
	}
	var q question
	return codec.Unmarshal(reply.Payload, &q) == nil && q.Dead
}

// unreachable says whether a node that membership has given up does not answer either. It is the holder's own vote: with two nodes, both
// arbiters, the survivor would otherwise never have a majority - but neither would its quorum record, so this only saves an attempt.
func (n *Node) unreachable(ctx context.Context, id ukai.NodeID) bool {
	if !n.holdsDead(id) {
		return false
	}
	_, err := n.call(ctx, id, &wire.Message{Kind: wire.KindPing})
	return err != nil
}
