package gossip

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/serf/coordinate"

	"ukai"
)

// Vivaldi coordinates (Dabek et al. 2004, as in serf): every node places itself in a space of 8 dimensions and a height
// so that distances predict round trips. From the coordinates of any two nodes any third can estimate the round trip between them.
const (
	coordinateDims = 8
	placeVersion   = 1
	placeShort     = 2
	placeSize      = placeShort + 4*(coordinateDims+3)

	// maxCoordinate is the largest component that can mean something, in seconds.
	maxCoordinate = 10
	// maxCoordinateError is the error of a node that has not measured anything.
	maxCoordinateError = 1.5
	// usableError is the error above which a coordinate says nothing yet.
	usableError = 0.9
)

func newVivaldi() (*coordinate.Client, error) {
	c := coordinate.DefaultConfig()
	c.Dimensionality = coordinateDims
	c.VivaldiErrorMax = maxCoordinateError
	return coordinate.NewClient(c)
}

// appendPlace adds what the mesh keeps in the opaque bytes of a node's info, and in answers to pings: version, whether the node has left in
// good order, and the coordinate unless it is nil.
func appendPlace(b []byte, left bool, c *coordinate.Coordinate) []byte {
	flags := byte(0)
	if left {
		flags = 1
	}
	b = append(b, placeVersion, flags)
	if c == nil {
		return b
	}
	put := func(f float64) { b = binary.BigEndian.AppendUint32(b, math.Float32bits(float32(f))) }
	for _, f := range c.Vec {
		put(f)
	}
	put(c.Error)
	put(c.Adjustment)
	put(c.Height)
	return b
}

// parsePlace refuses what cannot be the place of a node, so that no peer can push this one out of the space. The coordinate is nil if
// there is none.
func parsePlace(b []byte) (left bool, c *coordinate.Coordinate, err error) {
	if len(b) == 0 {
		return false, nil, nil
	}
	if len(b) != placeShort && len(b) != placeSize || b[0] != placeVersion {
		return false, nil, fmt.Errorf("place of %d bytes: %w: want %d or %d, version %d first", len(b), ukai.ErrInvalid, placeShort, placeSize, placeVersion)
	}
	left = b[1]&1 != 0
	if len(b) == placeSize {
		c, err = parseCoordinate(b[placeShort:])
	}
	return left, c, err
}

func parseCoordinate(b []byte) (*coordinate.Coordinate, error) {
	at := 0
	get := func(low, high float64) (float64, error) {
		f := float64(math.Float32frombits(binary.BigEndian.Uint32(b[at:])))
		at += 4
		if !(f >= low && f <= high) { // false for NaN too
			return 0, fmt.Errorf("coordinate component %g: %w: must be from %g to %g", f, ukai.ErrInvalid, low, high)
		}
		return f, nil
	}
	c := &coordinate.Coordinate{Vec: make([]float64, coordinateDims)}
	var err error
	for i := range c.Vec {
		if c.Vec[i], err = get(-maxCoordinate, maxCoordinate); err != nil {
			return nil, err
		}
	}
	if c.Error, err = get(0, 2*maxCoordinateError); err != nil {
		return nil, err
	}
	if c.Adjustment, err = get(-maxCoordinate, maxCoordinate); err != nil {
		return nil, err
	}
	if c.Height, err = get(0, maxCoordinate); err != nil {
		return nil, err
	}
	return c, nil
}

// Estimate predicts the round trip between any two nodes: measured if this node is one of them and has measured it, otherwise from
// their coordinates. It is false if one of the nodes has not found its place yet.
func (m *Mesh) Estimate(a, b ukai.NodeID) (time.Duration, bool) {
	if a == b {
		return 0, true
	}
	if b == m.id {
		a, b = b, a
	}
	if a == m.id {
		if rtt, _, ok := m.RTT(b); ok {
			return rtt, true
		}
	}
	ca, cb := m.coordinateOf(a), m.coordinateOf(b)
	if ca == nil || cb == nil || ca.Error > usableError || cb.Error > usableError {
		return 0, false
	}
	return ca.DistanceTo(cb), true
}

// coordinateOf returns the newest coordinate known of a node, or nil. Nobody changes what it returns.
func (m *Mesh) coordinateOf(id ukai.NodeID) *coordinate.Coordinate {
	if id == m.id {
		return m.vivaldi.GetCoordinate()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.members[id]; p != nil && p.place != nil {
		return p.place
	}
	if n, ok := m.catalogNode(id); ok {
		if _, c, err := parsePlace(n.Info.Coordinate); err == nil {
			return c
		}
	}
	return nil
}
