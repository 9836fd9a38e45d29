package node

import (
	"context"
	"time"

	"ukai"
	"ukai/crdt/codec"
	"ukai/node/wire"
)

// reportTime bounds how long nodes are asked for their reports. One that does not answer in time is done without.
const reportTime = 2 * time.Second

// report is what a node knows about one disk, and of itself, that the others need for plans and forecasts.
type report struct {
	Allocated int64 `cbor:"1,keyasint"` // bytes, of its fullest replica of the disk; 0: it has none, or that is not known
}

// report tells what this node knows about a disk.
func (n *Node) report(disk ukai.DiskID) (r report) {
	for _, bytes := range n.replicas.Allocated(disk) {
		r.Allocated = max(r.Allocated, bytes)
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
