package cell

import (
	"bytes"
	"fmt"
	"slices"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
)

// NotBegun is the detail of an UNKNOWN of an arbiter that has had no INIT, and would take one.
const NotBegun = "has no record of this disk"

// acceptorFormat is the version of Marshal's bytes.
const acceptorFormat = 1

// Acceptor is one arbiter's part in one instance of one disk's record. It is not safe for concurrent use.
//
// All of it must be durable before a reply leaves the node; see Step.
type Acceptor struct {
	self ukai.NodeID
	s    acceptorState
}

type acceptorState struct {
	Format     uint         `cbor:"1,keyasint"`
	Disk       ukai.DiskID  `cbor:"2,keyasint"`
	Instance   uint32       `cbor:"3,keyasint"`
	Promised   Ballot       `cbor:"4,keyasint"`
	AcceptedAt Ballot       `cbor:"5,keyasint"`
	Accepted   *crdt.Record `cbor:"6,keyasint,omitempty"` // nil until INIT
	Closed     bool         `cbor:"7,keyasint,omitempty"` // Accepted is the chosen FINAL
}

// NewAcceptor returns the acceptor of node self for an instance of a disk's record, before INIT: it answers UNKNOWN.
func NewAcceptor(self ukai.NodeID, disk ukai.DiskID, instance uint32) *Acceptor {
	return &Acceptor{self, acceptorState{Format: acceptorFormat, Disk: disk, Instance: instance}}
}

// Disk returns the disk whose record this is about.
func (a *Acceptor) Disk() ukai.DiskID { return a.s.Disk }

// Instance returns the instance in which this acceptor takes part.
func (a *Acceptor) Instance() uint32 { return a.s.Instance }

// Record returns the record accepted last, false before INIT. It may never have been chosen, so it permits nothing; it
// is for looking at and for finding acceptors that are no longer needed.
func (a *Acceptor) Record() (crdt.Record, bool) {
	if a.s.Accepted == nil {
		return crdt.Record{}, false
	}
	return a.s.Accepted.Clone(), true
}

// Closed says whether the instance is known to have ended. A closed acceptor only redirects; it may be forgotten when
// no node can still believe in its instance.
func (a *Acceptor) Closed() bool { return a.s.Closed }

// Step answers one request. If persist is true, what Marshal returns now must be durable before the reply leaves; if
// that write goes wrong, the caller must drop both the reply and this Acceptor and Unmarshal what is durable.
// The request's record must not be changed afterwards.
func (a *Acceptor) Step(req Request) (rep Reply, persist bool) {
	rep = Reply{To: req.Kind, Disk: req.Disk, Instance: req.Instance, Ballot: req.Ballot}
	if err := a.refuses(req); err != nil {
		rep.Answer, rep.Detail = Unknown, cut(err.Error())
		return rep, false
	}
	s := &a.s
	if req.Kind == Init {
		return a.init(req, rep)
	}
	if s.Accepted == nil {
		rep.Answer, rep.Detail = Unknown, NotBegun
		return rep, false
	}
	if fork(s.Accepted) != req.Fork {
		rep.Answer, rep.Detail = Unknown, "has a record of another lineage: the disk was taken over by force"
		return rep, false
	}
	if s.Closed {
		rep.Answer, rep.Record = Final, s.Accepted
		return rep, false
	}
	switch req.Kind {
	case Prepare:
		// Equal is not enough: two attempts of one node may carry the same ballot, and only one of them may win a
		// majority. A repeated PREPARE is refused too; its sender already has, or has lost, the promise.
		if req.Ballot.Compare(s.Promised) <= 0 {
			rep.Answer, rep.Outbid = Nacked, s.Promised
			return rep, false
		}
		s.Promised = req.Ballot
		rep.Answer, rep.AcceptedAt, rep.Record = Promised, s.AcceptedAt, s.Accepted
	case Accept:
		switch {
		case req.Ballot.Compare(s.Promised) < 0:
			rep.Answer, rep.Outbid = Nacked, s.Promised
			return rep, false
		case req.Ballot == s.AcceptedAt:
			rep.Answer = Accepted
			if !same(req.Record, s.Accepted) {
				rep.Answer, rep.Outbid, rep.Detail = Nacked, s.Promised, "another record was accepted under this very ballot"
			}
			return rep, false
		}
		s.Promised, s.AcceptedAt, s.Accepted = req.Ballot, req.Ballot, req.Record
		rep.Answer = Accepted
	case Close:
		s.Accepted, s.Closed = req.Record, true
		rep.Answer = Accepted
	}
	return rep, true
}

// init makes this node an arbiter of the instance, once. INIT carries a record that is chosen: the FINAL of the
// instance before, or a later one for an arbiter that was away. The latter is safe under the zero ballot because any
// majority then holds a member that accepted a record under a higher one.
func (a *Acceptor) init(req Request, rep Reply) (Reply, bool) {
	s := &a.s
	if s.Accepted == nil {
		s.Accepted = req.Record
		rep.Answer = Accepted
		return rep, true
	}
	rep.Answer = Accepted
	if fork(s.Accepted) != req.Fork {
		rep.Answer, rep.Detail = Nacked, "has a record of another lineage: the disk was taken over by force"
	} else if s.AcceptedAt.IsZero() && s.Accepted.Version == req.Record.Version && !same(s.Accepted, req.Record) {
		rep.Answer, rep.Detail = Nacked, "has another record of this disk"
	}
	return rep, false
}

// refuses says why this acceptor has nothing to do with a request.
func (a *Acceptor) refuses(req Request) error {
	switch {
	case req.Disk != a.s.Disk:
		return fmt.Errorf("arbiter of disk %v was asked about disk %v", a.s.Disk, req.Disk)
	case req.Instance != a.s.Instance:
		return fmt.Errorf("arbiter of instance %d was asked about instance %d", a.s.Instance, req.Instance)
	}
	if err := req.Check(); err != nil {
		return err
	}
	if req.Kind == Init && !slices.Contains(req.Record.Arbiters, a.self) {
		return fmt.Errorf("node %s is not among the arbiters of instance %d", a.self.Short(), req.Instance)
	}
	return nil
}

// Marshal returns the state that must be durable.
func (a *Acceptor) Marshal() ([]byte, error) { return encode("arbiter's state", a.s, nil) }

// UnmarshalAcceptor reads what Marshal made on node self. A state written by a newer release matches ukai.ErrVersion,
// a damaged one ukai.ErrCorrupt; in both cases the node must not answer for this record.
func UnmarshalAcceptor(self ukai.NodeID, data []byte) (*Acceptor, error) {
	a := &Acceptor{self: self}
	if err := decode("arbiter's state", data, &a.s); err != nil {
		return nil, err
	}
	s := &a.s
	switch {
	case s.Format > acceptorFormat:
		return nil, fmt.Errorf("arbiter's state of disk %v: format %d: %w: this release reads up to %d", s.Disk, s.Format, ukai.ErrVersion, acceptorFormat)
	case s.Format == 0, s.Accepted == nil && (s.Closed || !s.Promised.IsZero() || !s.AcceptedAt.IsZero()),
		s.AcceptedAt.Compare(s.Promised) > 0, s.Promised.Counter > maxCounter:
		return nil, fmt.Errorf("arbiter's state of disk %v: %w: ballots and record do not fit together", s.Disk, ukai.ErrCorrupt)
	}
	if rec := s.Accepted; rec != nil {
		if err := fits(rec, s.Disk, fork(rec)); err != nil {
			return nil, fmt.Errorf("arbiter's state: %w: %w", ukai.ErrCorrupt, err)
		}
		if final := rec.Instance > s.Instance; !final && (s.Closed || rec.Instance != s.Instance) {
			return nil, fmt.Errorf("arbiter's state of disk %v: %w: instance %d holds a record of instance %d", s.Disk, ukai.ErrCorrupt, s.Instance, rec.Instance)
		}
	}
	return a, nil
}

// same says whether two records have equal bytes.
func same(a, b *crdt.Record) bool {
	if a == b {
		return true
	}
	x, errX := codec.Marshal(a)
	y, errY := codec.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func cut(s string) string { return s[:min(len(s), maxDetail)] }
