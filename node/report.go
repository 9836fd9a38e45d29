package node

import (
	"context"
	"slices"
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
	Replicas  []space       `cbor:"5,keyasint,omitempty"` // that it has of the disk
}

// space is what a replica takes, in bytes.
type space struct {
	Replica ukai.ReplicaID `cbor:"1,keyasint"`
	Bytes   int64          `cbor:"2,keyasint"`
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
	P50  time.Duration `cbor:"2,keyasint"`
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

// report tells what this node knows about a disk, and how far some nodes are.
func (n *Node) report(ctx context.Context, disk ukai.DiskID, to []ukai.NodeID) (r report) {
	for id, bytes := range n.replicas.Allocated(ctx, disk) {
		r.Allocated = max(r.Allocated, bytes)
		r.Replicas = append(r.Replicas, space{id, bytes})
	}
	if mix, ok := n.host.IOMix(disk); ok {
		r.Mix = &mix
	}
	r.Store = timesOf(n.replicas.Service())
	r.Peers = n.ping(ctx, to)
	return r
}

// pings is how many round trips tell how far a node is, pingTime how long they may take.
const (
	pings    = 16
	minPings = 3
	pingTime = reportTime / 2
	// maxPinged bounds the nodes that are pinged for one report.
	maxPinged = 64
)

// ping measures how far nodes are, all at the same time. What membership has smoothed over idle links is no measure for requests: it
// includes time that both ends were asleep.
func (n *Node) ping(ctx context.Context, to []ukai.NodeID) (all []peerTrip) {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	trips := make(chan peerTrip, maxPinged)
	asked := 0
	for _, id := range to[:min(len(to), maxPinged)] {
		if id != n.id && n.spawn(func() { trips <- n.pingOne(ctx, id) }) {
			asked++
		}
	}
	for range asked {
		if t := <-trips; t.P50 > 0 {
			all = append(all, t)
		}
	}
	return all
}

// pingOne measures how far a node is; the first round trip only wakes both ends.
func (n *Node) pingOne(ctx context.Context, id ukai.NodeID) peerTrip {
	var took []time.Duration
	for i := range pings + 1 {
		began := time.Now()
		if _, err := n.call(ctx, id, &wire.Message{Kind: wire.KindPing}); err != nil {
			break
		}
		if i > 0 {
			took = append(took, time.Since(began))
		}
	}
	if len(took) < minPings {
		return peerTrip{}
	}
	slices.Sort(took)
	return peerTrip{id, max(took[len(took)/2], 1), max(took[len(took)-1], 1)}
}

// reports asks nodes, all at the same time, what they know about a disk, and some of them how far all are.
func (n *Node) reports(ctx context.Context, p people, disk ukai.DiskID, nodes []ukai.NodeID, hosts ...ukai.NodeID) map[ukai.NodeID]report {
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
		var to []ukai.NodeID
		if slices.Contains(hosts, id) {
			to = nodes
		}
		if n.spawn(func() {
			a := answer{from: id, ok: true}
			if id == n.id {
				a.report = n.report(ctx, disk, to)
			} else {
				payload, err := codec.Marshal(to)
				reply := wire.Reply{}
				if err == nil {
					reply, err = n.call(ctx, id, &wire.Message{Kind: wire.KindStatus, Disk: disk, Payload: payload})
				}
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

// heat asks the other nodes with replicas of a disk how often their guests used its parts, of late.
func (n *Node) heat(ctx context.Context, disk ukai.DiskID) (sum [volume.HeatParts]uint32) {
	rec, err := n.known(disk)
	if err != nil {
		return sum
	}
	others := slices.DeleteFunc(nodesOf(&rec), func(id ukai.NodeID) bool { return id == n.id })
	for _, r := range n.reports(ctx, n.people(), disk, others) {
		for i := range sum {
			if r.Mix != nil {
				sum[i] += r.Mix.Reads.Heat[i] + r.Mix.Writes.Heat[i]
			}
		}
	}
	return sum
}
