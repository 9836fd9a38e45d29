package cell

import (
	"bytes"
	"cmp"
	"fmt"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
)

// Limits on what a peer may send.
const (
	// MaxMessageBytes bounds an encoded Request or Reply: the largest record and what stands around it.
	MaxMessageBytes = crdt.MaxRecordBytes + 1<<10
	// maxCounter leaves room above any ballot that a peer may name, so that it can be outbid for ever.
	maxCounter = 1 << 62
	// maxDetail bounds the text that explains a reply; longer ones are cut.
	maxDetail = 256
)

// Ballot orders attempts to change a record: by Counter, then by Node. The zero Ballot is that of INIT and lies below
// all others.
type Ballot struct {
	Counter uint64      `cbor:"1,keyasint"`
	Node    ukai.NodeID `cbor:"2,keyasint"`
}

// Compare returns -1, 0 or 1 as b is below, equal to or above c.
func (b Ballot) Compare(c Ballot) int {
	if d := cmp.Compare(b.Counter, c.Counter); d != 0 {
		return d
	}
	return bytes.Compare(b.Node[:], c.Node[:])
}

// IsZero says whether b is the ballot of INIT.
func (b Ballot) IsZero() bool { return b == Ballot{} }

// String returns "counter@node".
func (b Ballot) String() string { return fmt.Sprintf("%d@%s", b.Counter, b.Node.Short()) }

// Kind says what a Request asks.
type Kind uint8

// Kinds of requests.
const (
	_       Kind = iota
	Prepare      // promise the ballot, and tell what was accepted
	Accept       // accept the record under the ballot
	Init         // begin to be an arbiter of an instance, with a record that is chosen
	Close        // the instance's FINAL is chosen and its successor can be used: redirect from now on
)

// String returns the request's name.
func (k Kind) String() string {
	switch k {
	case Prepare:
		return "PREPARE"
	case Accept:
		return "ACCEPT"
	case Init:
		return "INIT"
	case Close:
		return "CLOSE"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Request goes from a proposer to one arbiter of one instance of a disk's record.
type Request struct {
	Kind     Kind         `cbor:"1,keyasint"`
	Disk     ukai.DiskID  `cbor:"2,keyasint"`
	Instance uint32       `cbor:"3,keyasint"`
	Fork     ukai.Nonce   `cbor:"4,keyasint"`           // the lineage: id of its last forced takeover, zero if there was none
	Ballot   Ballot       `cbor:"5,keyasint"`           // of PREPARE and ACCEPT
	Record   *crdt.Record `cbor:"6,keyasint,omitempty"` // of ACCEPT, INIT and CLOSE; never changed once sent
}

// Check says what is wrong with r, or nil.
func (r Request) Check() error {
	switch r.Kind {
	case Prepare, Accept:
		if r.Ballot.Counter == 0 || r.Ballot.Counter > maxCounter {
			return fmt.Errorf("%v: ballot %v: %w: its counter must be from 1 to %d", r.Kind, r.Ballot, ukai.ErrInvalid, uint64(maxCounter))
		}
	case Init, Close:
		if !r.Ballot.IsZero() {
			return fmt.Errorf("%v: ballot %v: %w: must be zero", r.Kind, r.Ballot, ukai.ErrInvalid)
		}
	default:
		return fmt.Errorf("request to arbiter: %v: %w: unknown", r.Kind, ukai.ErrInvalid)
	}
	if r.Kind == Prepare {
		if r.Record != nil {
			return fmt.Errorf("%v: %w: carries a record", r.Kind, ukai.ErrInvalid)
		}
		return nil
	}
	if r.Record == nil {
		return fmt.Errorf("%v: %w: carries no record", r.Kind, ukai.ErrInvalid)
	}
	if err := fits(r.Record, r.Disk, r.Fork); err != nil {
		return fmt.Errorf("%v: %w", r.Kind, err)
	}
	switch in := r.Record.Instance; {
	case r.Kind == Accept && in >= r.Instance, r.Kind == Init && in == r.Instance, r.Kind == Close && in > r.Instance:
		return nil
	}
	return fmt.Errorf("%v of instance %d: %w: carries a record of instance %d", r.Kind, r.Instance, ukai.ErrInvalid, r.Record.Instance)
}

// Answer says what an arbiter replied.
type Answer uint8

// Answers of an arbiter.
const (
	_        Answer = iota
	Promised        // to PREPARE: the ballot is promised; AcceptedAt and Record tell what was accepted before
	Nacked          // the ballot is too low: Outbid must be exceeded. To INIT: another record is already there
	Accepted        // to ACCEPT, INIT, CLOSE: done and durable
	Final           // the instance is closed; Record is the chosen first record of the next one
	Unknown         // this node is no arbiter of this instance (yet)
)

// String returns the answer's name.
func (a Answer) String() string {
	switch a {
	case Promised:
		return "PROMISE"
	case Nacked:
		return "NACK"
	case Accepted:
		return "ACCEPTED"
	case Final:
		return "FINAL"
	case Unknown:
		return "UNKNOWN"
	}
	return fmt.Sprintf("answer %d", uint8(a))
}

// Reply is an arbiter's answer to one Request; To, Disk, Instance and Ballot repeat the request's.
type Reply struct {
	Answer     Answer       `cbor:"1,keyasint"`
	To         Kind         `cbor:"2,keyasint"`
	Disk       ukai.DiskID  `cbor:"3,keyasint"`
	Instance   uint32       `cbor:"4,keyasint"`
	Ballot     Ballot       `cbor:"5,keyasint"`
	Outbid     Ballot       `cbor:"6,keyasint"`
	AcceptedAt Ballot       `cbor:"7,keyasint"`
	Record     *crdt.Record `cbor:"8,keyasint,omitempty"` // never changed once sent
	Detail     string       `cbor:"9,keyasint,omitempty"` // why, for people
}

// Check says what is wrong with r, or nil.
func (r Reply) Check() error {
	if r.Answer < Promised || r.Answer > Unknown || r.To < Prepare || r.To > Close {
		return fmt.Errorf("%v to %v: %w: unknown reply", r.Answer, r.To, ukai.ErrInvalid)
	}
	if r.Outbid.Counter > maxCounter || r.AcceptedAt.Counter > maxCounter || len(r.Detail) > maxDetail {
		return fmt.Errorf("%v to %v: %w: beyond the limits", r.Answer, r.To, ukai.ErrInvalid)
	}
	if r.Answer != Promised && r.Answer != Final {
		if r.Record != nil {
			return fmt.Errorf("%v: %w: carries a record", r.Answer, ukai.ErrInvalid)
		}
		return nil
	}
	if r.Record == nil {
		return fmt.Errorf("%v: %w: carries no record", r.Answer, ukai.ErrInvalid)
	}
	if err := fits(r.Record, r.Disk, fork(r.Record)); err != nil {
		return fmt.Errorf("%v: %w", r.Answer, err)
	}
	if in := r.Record.Instance; in < r.Instance || r.Answer == Final && in == r.Instance {
		return fmt.Errorf("%v of instance %d: %w: carries a record of instance %d", r.Answer, r.Instance, ukai.ErrInvalid, in)
	}
	return nil
}

// fits says what is wrong with a record for this disk and lineage.
func fits(rec *crdt.Record, disk ukai.DiskID, lineage ukai.Nonce) error {
	switch {
	case rec.Disk != disk:
		return fmt.Errorf("disk %v: %w: carries a record of disk %v", disk, ukai.ErrInvalid, rec.Disk)
	case fork(rec) != lineage:
		return fmt.Errorf("disk %v: %w: carries a record of another lineage", disk, ukai.ErrInvalid)
	}
	return rec.Check()
}

// EncodeRequest returns the bytes that DecodeRequest reads.
func EncodeRequest(r Request) ([]byte, error) { return encode("request to arbiter", r, r.Check()) }

// EncodeReply returns the bytes that DecodeReply reads.
func EncodeReply(r Reply) ([]byte, error) { return encode("reply of arbiter", r, r.Check()) }

func encode(what string, v any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	data, err := codec.Marshal(v)
	if err == nil && len(data) > MaxMessageBytes {
		err = fmt.Errorf("%d bytes: %w: at most %d", len(data), ukai.ErrInvalid, MaxMessageBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", what, err)
	}
	return data, nil
}

// DecodeRequest reads and checks a request. Errors match ukai.ErrCorrupt or ukai.ErrInvalid.
func DecodeRequest(data []byte) (r Request, err error) {
	if err := decode("request to arbiter", data, &r); err != nil {
		return Request{}, err
	}
	if err := r.Check(); err != nil {
		return Request{}, err
	}
	return r, nil
}

// DecodeReply reads and checks a reply. Errors match ukai.ErrCorrupt or ukai.ErrInvalid.
func DecodeReply(data []byte) (r Reply, err error) {
	if err := decode("reply of arbiter", data, &r); err != nil {
		return Reply{}, err
	}
	if err := r.Check(); err != nil {
		return Reply{}, err
	}
	return r, nil
}

func decode(what string, data []byte, v any) error {
	if len(data) > MaxMessageBytes {
		return fmt.Errorf("%s: %d bytes: %w: at most %d", what, len(data), ukai.ErrInvalid, MaxMessageBytes)
	}
	if err := codec.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
