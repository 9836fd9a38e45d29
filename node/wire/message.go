package wire

import (
	"fmt"

	"ukai"
)

// Kind says what a message asks for. The wire gives kinds no meaning, apart from the lane they travel in.
type Kind uint8

// Kinds of messages. Numbers are never reused.
const (
	KindPing          Kind = 1  // answers at once
	KindRead          Kind = 2  // read from a replica
	KindWrite         Kind = 3  // write to a replica
	KindZero          Kind = 4  // write zeros to a replica
	KindDiscard       Kind = 5  // punch a hole into a replica
	KindFlush         Kind = 6  // make a replica's writes durable
	KindSeal          Kind = 7  // fence a replica at an epoch
	KindHello         Kind = 8  // begin a session at a replica
	KindHeartbeat     Kind = 9  // keep leases alive, announce stable stamps
	KindStamps        Kind = 10 // list a replica's blocks newer than a stamp
	KindHash          Kind = 11 // hash chunks of a replica
	KindCreateReplica Kind = 12
	KindRetireReplica Kind = 13
	KindForward       Kind = 14 // read through the holder
	KindYield         Kind = 15 // ask the holder to let go
	KindPrepare       Kind = 16 // cell, phase 1
	KindAccept        Kind = 17 // cell, phase 2
	KindInit          Kind = 18 // first record of a cell's instance
	KindPull          Kind = 19 // fetch gossip records
	KindCopy          Kind = 20 // let a replica fetch chunks from another one
	KindResize        Kind = 21 // change the size of a replica
	KindStatus        Kind = 22 // ask a node or a replica about itself
	KindVerify        Kind = 23 // hold a replica's data against its checksums
	KindChecksum      Kind = 24 // note the checksums of a block of a replica
	KindRestore       Kind = 25 // write back what a replica had and has lost
	KindReadPast      Kind = 26 // read a replica of a history that its disk does not go on with

	lastKind = KindReadPast
)

func kindNames() []string {
	return []string{"", "ping", "read", "write", "zero", "discard", "flush", "seal", "hello", "heartbeat", "stamps", "hash", "create replica",
		"retire replica", "forward", "yield", "prepare", "accept", "init", "pull", "copy", "resize", "status", "verify", "checksum", "restore", "read past"}
}

// String returns the kind in words.
func (k Kind) String() string {
	if k.known() {
		return kindNames()[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

func (k Kind) known() bool { return k >= KindPing && k <= lastKind }

// Message is one request. Fields a kind does not need are zero.
type Message struct {
	Kind    Kind
	Disk    ukai.DiskID
	Replica ukai.ReplicaID
	Epoch   ukai.Epoch
	Session uint32
	Layer   uint16
	Stamp   ukai.BlockStamp
	Offset  int64  // bytes, 0 to ukai.MaxDiskSize
	Count   uint32 // bytes to read, zero or discard, or what the kind says
	Payload []byte // at most MaxPayload
}

// Reply is the answer to a request. Together with an error only the numbers cross the wire, not the payload.
type Reply struct {
	Epoch   ukai.Epoch
	Stamp   ukai.BlockStamp
	Offset  int64
	Count   uint32
	Payload []byte
}

// MaxPayload is the most a message or reply may carry: the largest I/O, and room for what goes with it.
const MaxPayload = ukai.MaxIO + 64<<10

// smallTransfer separates what shares a connection with other small requests from what has its own.
const smallTransfer = 64 << 10

// lane is a stream of its own, with bounds of its own. Numbers cross the wire.
type lane uint8

const (
	laneControl lane = iota // little data; must not wait behind any: heartbeats, cells, fences, flushes
	laneWrite               // small writes
	laneRead                // small reads
	laneBulk                // everything above smallTransfer
	numLanes
)

func (l lane) String() string { return [...]string{"control", "write", "read", "bulk"}[l] }

// urgency orders the lanes that share a connection (RFC 9218: lower goes first).
func (l lane) urgency() int8 { return int8(l) + 1 }

const rawUrgency = 6

// lane returns where m travels when the caller expects a reply of up to into bytes.
func (m *Message) lane(into int) lane {
	switch {
	case len(m.Payload) > smallTransfer || into > smallTransfer:
		return laneBulk
	case m.Kind == KindRead || m.Kind == KindForward || m.Kind == KindReadPast:
		return laneRead
	case m.Kind == KindWrite || m.Kind == KindZero || m.Kind == KindDiscard:
		return laneWrite
	}
	return laneControl
}

// check says what is wrong with a message, or nil.
func (m *Message) check() error {
	if !m.Kind.known() {
		return fmt.Errorf("message of %v: %w: no such kind", m.Kind, ukai.ErrInvalid)
	}
	return checkFields(m.Kind, m.Offset, len(m.Payload))
}

func checkFields(kind Kind, offset int64, payload int) error {
	if offset < 0 || offset > ukai.MaxDiskSize {
		return fmt.Errorf("%v: offset %d: %w: want 0 to %d", kind, offset, ukai.ErrInvalid, int64(ukai.MaxDiskSize))
	}
	if payload > MaxPayload {
		return fmt.Errorf("%v: payload of %d bytes: %w: at most %d", kind, payload, ukai.ErrInvalid, MaxPayload)
	}
	return nil
}
