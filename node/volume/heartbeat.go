package volume

import (
	"context"
	"slices"
	"time"

	"ukai"
	"ukai/node/wire"
)

// peer is what the disks held here know together about a node with replicas of theirs.
type peer struct {
	unanswered []time.Duration // when the heartbeats were sent that have not been answered, oldest first
}

// maxUnanswered bounds the heartbeats under way to one node.
const maxUnanswered = 8

// silence returns for how long the oldest unanswered heartbeat has been waiting, 0 if there is none.
func (h *Host) silence(node ukai.NodeID, now time.Duration) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.peers[node]; p != nil && len(p.unanswered) > 0 {
		return max(now-p.unanswered[0], 1)
	}
	return 0
}

// heartbeat sends one heartbeat to each node with replicas of the given disks.
func (h *Host) heartbeat(all []*holding) {
	beats := make(map[ukai.NodeID][]pendingBeat)
	for _, held := range all {
		if held.err() != nil {
			continue
		}
		for _, m := range held.view.Load().watched {
			if m.local == nil {
				beats[m.Node] = append(beats[m.Node], m.beat())
			}
		}
	}
	for node, list := range beats {
		for part := range slices.Chunk(list, maxBeats) {
			h.send(node, part)
		}
	}
}

// pendingBeat is one replica's part of a heartbeat under way.
type pendingBeat struct {
	m *member
	beat
}

// probe makes sure that a heartbeat to a node is under way.
func (h *Host) probe(node ukai.NodeID, m *member) {
	if h.silence(node, h.cfg.Clock()) == 0 {
		h.send(node, []pendingBeat{m.beat()})
	}
}

func (h *Host) send(node ukai.NodeID, list []pendingBeat) {
	sent := h.cfg.Clock()
	h.mu.Lock()
	p := h.peers[node]
	if p == nil {
		p = new(peer)
		h.peers[node] = p
	}
	if len(p.unanswered) >= maxUnanswered {
		h.mu.Unlock()
		return
	}
	p.unanswered = append(p.unanswered, sent)
	h.mu.Unlock()
	if !h.spawn(func() { h.carry(node, sent, list) }) {
		h.answered(node, sent)
	}
}

// carry sends one heartbeat and takes in the answer.
func (h *Host) carry(node ukai.NodeID, sent time.Duration, list []pendingBeat) {
	ctx, cancel := context.WithTimeout(h.ctx, leaseTime)
	defer cancel()
	hb := heartbeat{Beats: make([]beat, len(list))}
	for i := range list {
		hb.Beats[i] = list[i].beat
	}
	m := wire.Message{Kind: wire.KindHeartbeat, Payload: encode(hb)}
	reply, err := h.cfg.Peers.Start(ctx, node, &m, nil).Wait(ctx)
	var out heartbeatReply
	if err == nil {
		out, err = decodeHeartbeatReply(reply.Payload, len(list))
	}
	if err != nil {
		h.unanswered(node, sent)
		return
	}
	h.answered(node, sent)
	exceptions := make(map[int]exception, len(out.Exceptions))
	for _, e := range out.Exceptions {
		exceptions[e.At] = e
	}
	for i, b := range list {
		if e, ok := exceptions[i]; ok {
			b.m.refused(b.beat, e)
		} else {
			b.m.confirmed(sent)
		}
	}
}

// answered notes that a node answered a heartbeat, or something else, and thereby all heartbeats that were sent before it.
func (h *Host) answered(node ukai.NodeID, sent time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.peers[node]; p != nil {
		p.unanswered = slices.DeleteFunc(p.unanswered, func(s time.Duration) bool { return s <= sent })
	}
}

// unanswered ends a heartbeat that failed. The oldest one stays noted: the node has been silent since.
func (h *Host) unanswered(node ukai.NodeID, sent time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[node]
	if i := slices.Index(p.unanswered, sent); i > 0 {
		p.unanswered = slices.Delete(p.unanswered, i, i+1)
	}
}
