package gossip

import (
	"math"
	"time"

	"github.com/hashicorp/serf/coordinate"

	"ukai/crdt"
)

const (
	measureEvery = 10 * time.Second
	// placeEvery is the least time between two publications of this node's coordinate.
	placeEvery = time.Minute
	// placeMoved is by how many seconds the coordinate has to move to be worth telling everybody.
	placeMoved = 2e-3
	// placeError is the error below which a coordinate is published for the first time.
	placeError = 0.5
)

// keepMeasured asks the transport for round trips, and publishes this node's coordinate when it has moved.
func (m *Mesh) keepMeasured() {
	defer m.loops.Done()
	for m.sleep(jitter(measureEvery)) {
		for _, id := range m.alivePeers() {
			if rtt, ok := m.cfg.Transport.RTT(id); ok {
				m.Observe(id, rtt)
			}
		}
		m.publishPlace()
	}
}

func (m *Mesh) publishPlace() {
	place := m.vivaldi.GetCoordinate()
	if place.Error > placeError || m.isLeaving() || m.Quarantined() != nil {
		return
	}
	if m.placed != nil && (time.Since(m.placedAt) < placeEvery || distance(m.placed, place) < placeMoved) {
		return
	}
	err := m.Publish(m.ctx, func(i *crdt.NodeInfo) { i.Coordinate = appendPlace(nil, false, place) })
	if err != nil {
		if m.ctx.Err() == nil {
			m.quiet.warn("coordinate not published", "error", err.Error())
		}
		return
	}
	m.placed, m.placedAt = place, time.Now()
}

// distance is how far a coordinate has moved, in seconds.
func distance(a, b *coordinate.Coordinate) float64 {
	sum := 0.0
	for i := range a.Vec {
		sum += (a.Vec[i] - b.Vec[i]) * (a.Vec[i] - b.Vec[i])
	}
	return math.Sqrt(sum) + math.Abs(a.Height-b.Height) + math.Abs(a.Adjustment-b.Adjustment)
}
