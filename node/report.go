package node

import (
	"context"
	"time"

	"ukai"
	"ukai/crdt/codec"
	"ukai/node/volume"
	"ukai/node/wire"
)

// reportTime bounds how long nodes are asked for their reports. One that does not answer in time is done without.
const reportTime = 2 * time.Second

// report is what a node knows about one disk, and of itself, that the others need for plans and forecasts.
type report struct {
	Allocated int64         `cbor:"1,keyasint"`           // bytes, of its fullest replica of the disk; 0: it has none, or that is not known
	Mix       *volume.IOMix `cbor:"2,keyasint,omitempty"` // what its guest did with the disk; nil: nothing of late
	Store     times         `cbor:"3,keyasint"`           // of its store, whatever the disk
	Peers     []peerTrip    `cbor:"4,keyasint,omitempty"`
}

// times is how long a node's store takes, with volume.SummaryPoints durations each; none where nothing was measured.
type times struct {
	Read       []time.Duration `cbor:"1,keyasint,omitempty"`
	Write      []time.Duration `cbor:"2,keyasint,omitempty"`
	LargeRead  []time.Duration `cbor:"3,keyasint,omitempty"`
	LargeWrite []time.Duration `cbor:"4,keyasint,omitempty"`
	Flush      []time.Duration `cbor:"5,keyasint,omitempty"`
}

// peerTrip is a round trip that a node has measured.
type peerTrip struct {
	Node ukai.NodeID   `cbor:"1,keyasint"`
	EWMA time.Duration `cbor:"2,keyasint"`
	P99  time.Duration `cbor:"3,keyasint"`
}

// minMeasured is how many operations a store must have done for what they took to tell anything.
const minMeasured = 20

func timesOf(s *volume.Service) (t times) {
	for _, m := range []struct {
		from *volume.Histogram
		to   *[]time.Duration
	}{{&s.Reads, &t.Read}, {&s.Writes, &t.Write}, {&s.LargeReads, &t.LargeRead}, {&s.LargeWrites, &t.LargeWrite}, {&s.Flushes, &t.Flush}} {
		if sum := m.from.Summary(); sum.Count >= minMeasured {
			*m.to = sum.Quantiles[:]
		}
	}
	return t
}

// report tells what this node knows about a disk.
func (n *Node) report(disk ukai.DiskID) (r report) {
	for _, bytes := range n.replicas.Allocated(disk) {
		r.Allocated = max(r.Allocated, bytes)
	}
	if mix, ok := n.host.IOMix(disk); ok {
		r.Mix = &mix
	}
	r.Store = timesOf(n.replicas.Service())
	for _, m := range n.mesh.Members() {
		if rtt, p99, ok := n.mesh.RTT(m.ID); ok && !m.Self {
			r.Peers = append(r.Peers, peerTrip{m.ID, rtt, p99})
		}
	}
	return r
}

// reports asks nodes, all at the same time, what they know about a disk.
func (n *Node) reports(ctx context.Context, p people, disk ukai.DiskID, nodes []ukai.NodeID) map[ukai.NodeID]report {
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	type answer struct {
		from ukai.NodeID
		report
		ok bool
	}
	answers := make(chan answer, len(nodes))
	asked := 0
	for _, id := range nodes {
		if !p.alive(id) {
			continue
		}
		if n.spawn(func() {
			a := answer{from: id, ok: true}
			if id == n.id {
				a.report = n.report(disk)
			} else {
				reply, err := n.call(ctx, id, &wire.Message{Kind: wire.KindStatus, Disk: disk})
				a.ok = err == nil && codec.Unmarshal(reply.Payload, &a.report) == nil
			}
			answers <- a
		}) {
			asked++
		}
	}
	all := map[ukai.NodeID]report{}
	for range asked {
		if a := <-answers; a.ok {
			all[a.from] = a.report
		}
	}
	return all
}
