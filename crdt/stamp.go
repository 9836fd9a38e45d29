package crdt

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"time"

	"ukai"
	"ukai/crdt/codec"
)

// MaxSkew is how far ahead of this node's wall clock a peer's stamps may be. What is stamped later than that is
// refused: otherwise one clock that runs a year ahead would win every conflict for a year.
const MaxSkew = time.Minute

// Stamp is a time of a hybrid logical clock: stamps follow wall time, and one that was made after another was seen is
// larger than it, whatever the clocks of the two nodes say. The zero Stamp is before all others.
//
// Kulkarni, Demirbas, Madappa, Avva, Leone: "Logical Physical Clocks", OPODIS 2014.
type Stamp struct {
	Wall    int64       `cbor:"1,keyasint" json:"wall"` // milliseconds since 1970, UTC
	Logical uint32      `cbor:"2,keyasint,omitempty" json:"logical,omitempty"`
	Node    ukai.NodeID `cbor:"3,keyasint" json:"node"`
}

// Compare returns -1, 0 or 1 as s is before, equal to or after t.
func (s Stamp) Compare(t Stamp) int {
	return cmp.Or(cmp.Compare(s.Wall, t.Wall), cmp.Compare(s.Logical, t.Logical), bytes.Compare(s.Node[:], t.Node[:]))
}

// Less says whether s is before t.
func (s Stamp) Less(t Stamp) bool { return s.Compare(t) < 0 }

// IsZero says whether s is the zero Stamp, which no clock makes.
func (s Stamp) IsZero() bool { return s == Stamp{} }

// Time returns the wall clock part of s.
func (s Stamp) Time() time.Time { return time.UnixMilli(s.Wall).UTC() }

// String returns "time+logical@node".
func (s Stamp) String() string {
	return fmt.Sprintf("%s+%d@%s", s.Time().Format("2006-01-02T15:04:05.000Z"), s.Logical, s.Node.Short())
}

// checkSkew says whether s is more than MaxSkew ahead of wall; the error is an *ukai.NodeError around
// ukai.ErrClockSkew. The zero wall means that nobody knows the time, and passes everything.
func (s Stamp) checkSkew(wall time.Time) error {
	if wall.IsZero() {
		return nil
	}
	now := wall.UnixMilli()
	if s.Wall <= now || s.Wall-MaxSkew.Milliseconds() <= now {
		return nil
	}
	ahead := "centuries"
	if ms := s.Wall - now; ms > 0 && ms < math.MaxInt64/int64(time.Millisecond) {
		ahead = (time.Duration(ms) * time.Millisecond).String()
	}
	return &ukai.NodeError{Node: s.Node, Err: fmt.Errorf("%w: %s ahead of this node, at most %v: check NTP on both", ukai.ErrClockSkew, ahead, MaxSkew)}
}

// Clock makes Stamps. It is pure: wall time is handed in. It is not safe for concurrent use.
type Clock struct {
	node ukai.NodeID
	last Stamp
}

// NewClock returns the clock of a node.
func NewClock(node ukai.NodeID) *Clock { return &Clock{node: node} }

// Now returns a stamp that is larger than all that the clock made or observed, and not before wall.
func (c *Clock) Now(wall time.Time) Stamp {
	if now := wall.UnixMilli(); now > c.last.Wall {
		c.last = Stamp{Wall: now}
	} else if c.last.Logical < math.MaxUint32 {
		c.last.Logical++
	} else {
		c.last = Stamp{Wall: c.last.Wall + 1}
	}
	c.last.Node = c.node
	return c.last
}

// Observe makes all later stamps larger than s. A stamp more than MaxSkew ahead of wall is not taken over; the error
// matches ukai.ErrClockSkew and names the node that made it.
func (c *Clock) Observe(s Stamp, wall time.Time) error {
	if err := s.checkSkew(wall); err != nil {
		return err
	}
	if c.last.Less(s) {
		c.last = s
	}
	return nil
}

// Register is a value of which the write with the largest Stamp wins. The zero Stamp means never written.
type Register[T any] struct {
	Stamp Stamp `cbor:"1,keyasint" json:"stamp"`
	Value T     `cbor:"2,keyasint" json:"value"`
}

// IsZero says whether nobody has written the register.
func (r Register[T]) IsZero() bool { return r.Stamp.IsZero() }

// Merge takes over other if it is later, and says whether that changed r. Two values under one stamp, which only a
// fault can bring about, are settled by their encoded bytes, so that all nodes settle alike: the larger wins.
func (r *Register[T]) Merge(other Register[T]) (changed bool) {
	switch r.Stamp.Compare(other.Stamp) {
	case 1:
		return false
	case 0:
		if r.IsZero() {
			return false
		}
		p, errP := codec.Marshal(r.Value)
		q, errQ := codec.Marshal(other.Value)
		if errP != nil || errQ != nil || bytes.Compare(p, q) >= 0 {
			return false
		}
	}
	*r = other
	return true
}
