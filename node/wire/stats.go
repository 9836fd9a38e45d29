package wire

import (
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"

	"ukai"
)

// counts is what has happened since the endpoint was opened.
type counts struct {
	requests, requestBytes, replies, replyBytes, remoteErrors     atomic.Uint64
	lost, unreachable, abandoned, overloaded                      atomic.Uint64
	served, servedErrors, unknownKinds                            atomic.Uint64
	dials, dialsFailed, accepted, connsRefused, handshakesRefused atomic.Uint64
	protocolErrors, corrupt                                       atomic.Uint64
	rawDialed, rawAccepted, rawRefused                            atomic.Uint64
	packetsSent, packetsReceived, packetsDropped                  atomic.Uint64
	packetsGarbage, packetsOtherKey, packetsReplayed              atomic.Uint64
	socketFailed                                                  atomic.Uint64
}

// Counters returns what has happened since the endpoint was opened, by the names under which it is exported.
func (e *Endpoint) Counters() map[string]uint64 {
	c := &e.counts
	e.mu.RLock()
	total := e.past
	for conn := range e.conns {
		total.add(conn.q.ConnectionStats())
	}
	e.mu.RUnlock()
	return map[string]uint64{
		"ukai_wire_requests_total":              c.requests.Load(),
		"ukai_wire_request_bytes_total":         c.requestBytes.Load(),
		"ukai_wire_replies_total":               c.replies.Load(),
		"ukai_wire_reply_bytes_total":           c.replyBytes.Load(),
		"ukai_wire_remote_errors_total":         c.remoteErrors.Load(),
		"ukai_wire_calls_lost_total":            c.lost.Load(),
		"ukai_wire_calls_unreachable_total":     c.unreachable.Load(),
		"ukai_wire_replies_abandoned_total":     c.abandoned.Load(),
		"ukai_wire_calls_overloaded_total":      c.overloaded.Load(),
		"ukai_wire_served_total":                c.served.Load(),
		"ukai_wire_served_errors_total":         c.servedErrors.Load(),
		"ukai_wire_unknown_kinds_total":         c.unknownKinds.Load(),
		"ukai_wire_dials_total":                 c.dials.Load(),
		"ukai_wire_dials_failed_total":          c.dialsFailed.Load(),
		"ukai_wire_connections_accepted_total":  c.accepted.Load(),
		"ukai_wire_connections_refused_total":   c.connsRefused.Load(),
		"ukai_wire_handshakes_refused_total":    c.handshakesRefused.Load(),
		"ukai_wire_protocol_errors_total":       c.protocolErrors.Load(),
		"ukai_wire_corrupt_frames_total":        c.corrupt.Load(),
		"ukai_wire_streams_dialed_total":        c.rawDialed.Load(),
		"ukai_wire_streams_accepted_total":      c.rawAccepted.Load(),
		"ukai_wire_streams_refused_total":       c.rawRefused.Load(),
		"ukai_wire_packets_sent_total":          c.packetsSent.Load(),
		"ukai_wire_packets_received_total":      c.packetsReceived.Load(),
		"ukai_wire_packets_dropped_total":       c.packetsDropped.Load(),
		"ukai_wire_packets_garbage_total":       c.packetsGarbage.Load(),
		"ukai_wire_packets_other_key_total":     c.packetsOtherKey.Load(),
		"ukai_wire_packets_replayed_total":      c.packetsReplayed.Load(),
		"ukai_wire_quic_sent_bytes_total":       total.sentBytes,
		"ukai_wire_quic_received_bytes_total":   total.receivedBytes,
		"ukai_wire_quic_sent_packets_total":     total.sentPackets,
		"ukai_wire_quic_received_packets_total": total.receivedPackets,
	}
}

// Gauges returns how things are now, by the names under which they are exported.
func (e *Endpoint) Gauges() map[string]int64 {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var requests, bytes, waiting, serving int64
	for _, p := range e.peers {
		for _, b := range p.budgets {
			r, n, w := b.used(e.cfg.MaxInflight)
			requests, bytes, waiting = requests+int64(r), bytes+int64(n), waiting+int64(w)
		}
	}
	for _, s := range e.served {
		for _, b := range s.budgets {
			r, _, _ := b.used(e.cfg.MaxInflight)
			serving += int64(r)
		}
	}
	return map[string]int64{
		"ukai_wire_peers":                int64(len(e.peers)),
		"ukai_wire_connections":          int64(len(e.conns)),
		"ukai_wire_connections_accepted": int64(e.accepted),
		"ukai_wire_inflight_requests":    requests,
		"ukai_wire_inflight_bytes":       bytes,
		"ukai_wire_waiting_requests":     waiting,
		"ukai_wire_serving_requests":     serving,
		"ukai_wire_socket_failed":        int64(e.counts.socketFailed.Load()),
	}
}

// traffic adds up connections.
type traffic struct {
	sentBytes, receivedBytes, lostBytes, sentPackets, receivedPackets, lostPackets uint64
}

func (t *traffic) add(s quic.ConnectionStats) {
	t.sentBytes += s.BytesSent
	t.receivedBytes += s.BytesReceived
	t.lostBytes += s.BytesLost
	t.sentPackets += s.PacketsSent
	t.receivedPackets += s.PacketsReceived
	t.lostPackets += s.PacketsLost
}

// PeerStats is how the way to one node is. Times are zero and bytes none if there is no connection.
type PeerStats struct {
	// Connected says that a connection for requests to the node exists.
	Connected bool
	// Connections counts the open ones, in both directions.
	Connections int
	// RTT is QUIC's smoothed round-trip time, Deviation how much it varies: RTT + 4 Deviation is a good time to
	// wait before hedging. MinRTT is the better measure of distance: on idle links RTT includes time asleep.
	RTT, MinRTT, LatestRTT, Deviation time.Duration
	// Bytes and packets on all open connections. Lost ones may turn out to have been late.
	BytesSent, BytesReceived, BytesLost       uint64
	PacketsSent, PacketsReceived, PacketsLost uint64
	// CongestionWindow is how many bytes may be on the way on the connection for small requests.
	CongestionWindow uint64
	// Inflight counts the un-answered requests to the node, Waiting those that Start holds back.
	Inflight, Waiting int
	// InflightBytes adds up the un-answered requests and the room for their replies.
	InflightBytes int
}

// Stats returns how the way to a node is. Times come from the connection for small requests if there is one, else
// from the oldest open connection with that node.
func (e *Endpoint) Stats(to ukai.NodeID) PeerStats {
	var out PeerStats
	e.mu.RLock()
	p := e.peers[to]
	e.mu.RUnlock()
	var fast *conn
	if p != nil {
		p.fast.mu.Lock()
		fast = p.fast.conn
		p.fast.mu.Unlock()
		for _, b := range p.budgets {
			r, n, w := b.used(e.cfg.MaxInflight)
			out.Inflight, out.InflightBytes, out.Waiting = out.Inflight+r, out.InflightBytes+n, out.Waiting+w
		}
	}
	var total traffic
	for _, c := range e.open() {
		if c.peer != to {
			continue
		}
		s := c.q.ConnectionStats()
		total.add(s)
		if out.Connections == 0 || c == fast {
			out.RTT, out.MinRTT, out.LatestRTT, out.Deviation = s.SmoothedRTT, s.MinRTT, s.LatestRTT, s.MeanDeviation
			out.CongestionWindow = s.CongestionWindow
		}
		out.Connections++
		out.Connected = out.Connected || c.link != nil
	}
	out.BytesSent, out.BytesReceived, out.BytesLost = total.sentBytes, total.receivedBytes, total.lostBytes
	out.PacketsSent, out.PacketsReceived, out.PacketsLost = total.sentPackets, total.receivedPackets, total.lostPackets
	return out
}

// dropRecorder counts packets that QUIC drops before they belong to any connection.
type dropRecorder struct{ dropped *atomic.Uint64 }

func (r dropRecorder) RecordEvent(event qlogwriter.Event) {
	if _, ok := event.(qlog.PacketDropped); ok {
		r.dropped.Add(1)
	}
}

func (r dropRecorder) Close() error { return nil }
