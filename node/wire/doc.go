// Package wire joins nodes: one UDP socket carries QUIC connections with mutual TLS 1.3 for requests and raw
// streams, and sealed packets for gossip.
//
// Having the mesh key means being in the mesh. The key never crosses the network: a CA key and a packet key are
// derived from it, each node mints its own certificate for its own ed25519 identity with the CA key, and both ends
// of every connection verify that the other could do the same. A NodeID is the hash of the identity's public key, so
// a caller that names a NodeID reaches that node or nothing.
//
// # Requests
//
// A request is a [Message] with up to MaxPayload bytes; its answer is a [Reply] or an error. Requests travel in
// lanes, one long-lived QUIC stream each: control, small writes and small reads share one connection, transfers of
// more than 64 KiB have connections of their own, so that they do not delay the rest. Requests of one lane reach
// the peer in the order in which Start was called, as long as the connection lives; nothing is promised between
// lanes, nor among transfers of more than 64 KiB, which take turns on their connections. Connections are dialed when a request needs one and closed when none has for a while. A connection that is
// lost fails all its un-answered calls with ukai.ErrUnreachable; whether the peer acted on them is unknown. Nothing
// is ever sent twice.
//
// # Memory
//
// Start copies the payload once, into a pooled buffer; a reply is read straight into the caller's buffer. On the
// serving side the payload is read into a pooled buffer that lives until Reply, and a reply built in
// Request.Buffer is sent from where it is. All that can wait is bounded: see Config.
//
// # Refusals
//
// What does not prove knowledge of the mesh key, or breaks the format, has no effect: it is dropped, counted (see
// Counters) and logged at most once a minute per address. A peer that breaks the format on a stream loses the
// connection.
package wire
