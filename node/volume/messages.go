package volume

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/wire"
)

// What the payloads of this package's requests hold. Small, rare ones are CBOR; lists of blocks and hashes have a form
// of their own because they can be long.

// sealRequest is the payload of wire.Seal; the epoch is in the header.
type sealRequest struct {
	Nonce   ukai.Nonce `cbor:"1,keyasint"` // of the claim
	Version uint64     `cbor:"2,keyasint"` // of the record the claim committed, or of a newer one of the same epoch
	Size    int64      `cbor:"3,keyasint"` // of the disk: a replica that missed a growth catches up
	// Forks are the forced takeovers that the record descends from, oldest first, for nodes that do not know Lineage.
	Forks []ukai.Nonce `cbor:"4,keyasint,omitempty"`
	// Lineage is the same, with the record that each left from.
	Lineage []crdt.Fork `cbor:"5,keyasint,omitempty"`
}

// lineage returns the forced takeovers that the holder's record descends from. Where an old release does not say which record one left from, that
// is the last there can be.
func (r *sealRequest) lineage() []crdt.Fork {
	if len(r.Lineage) == len(r.Forks) {
		return r.Lineage
	}
	list := make([]crdt.Fork, len(r.Forks))
	for i, id := range r.Forks {
		list[i] = crdt.Fork{ID: id, Instance: math.MaxUint32, Version: math.MaxUint64}
	}
	return list
}

// newSeal returns the request to seal a replica for the holder that a record names.
func newSeal(nonce ukai.Nonce, rec *crdt.Record) sealRequest {
	req := sealRequest{Nonce: nonce, Version: rec.Version, Size: rec.Size, Lineage: rec.Lineage}
	for _, f := range rec.Lineage {
		req.Forks = append(req.Forks, f.ID)
	}
	return req
}

// sealReply says what the next holder must know about a replica.
type sealReply struct {
	Incarnation ukai.Incarnation `cbor:"1,keyasint"`
	Unclean     bool             `cbor:"2,keyasint,omitempty"`
	Stable      ukai.BlockStamp  `cbor:"3,keyasint"`
	Free        int64            `cbor:"4,keyasint"` // bytes on the node's file system
	Session     uint32           `cbor:"5,keyasint"` // 0: the process restarted since it was sealed, say hello
	// Quiet is for how long no holder had the replica's confirmation before this seal.
	Quiet time.Duration `cbor:"6,keyasint,omitempty"` // ns
	// Counts says that the replica counts by batches, from none on, what it applies in the session, see holding.flushBehind. Older nodes do not; those that
	// count without batches say so as 7.
	Counts bool `cbor:"8,keyasint,omitempty"`
}

// helloCounts in the answer to a hello is what sealReply.Counts says, of the session that it begins.
const helloCounts = 2 // 1 was said by nodes that knew no batches

// hashStamped in the answer to a request for hashes says that it tells the newest stamp of what was hashed. Older nodes do not.
const hashStamped = 1

// helloRequest is the payload of wire.Hello; epoch and session are in the header.
type helloRequest struct {
	Incarnation ukai.Incarnation `cbor:"1,keyasint"` // that answered the seal
}

// createRequest is the payload of wire.CreateReplica.
type createRequest struct {
	Size      int64 `cbor:"1,keyasint"`
	BlockSize int   `cbor:"2,keyasint"`
	Reuse     bool  `cbor:"3,keyasint,omitempty"` // begin with an old copy, if the node has kept one
}

// heartbeat is the payload of wire.Heartbeat: what one node holds that has replicas on the other.
type heartbeat struct {
	Beats []beat `cbor:"1,keyasint"`
}

// maxBeats bounds one heartbeat; a node with more replicas of ours gets several.
const maxBeats = 2048

type beat struct {
	Disk    ukai.DiskID     `cbor:"1,keyasint"`
	Replica ukai.ReplicaID  `cbor:"2,keyasint"`
	Epoch   ukai.Epoch      `cbor:"3,keyasint"`
	Session uint32          `cbor:"4,keyasint"`
	Stable  ukai.BlockStamp `cbor:"5,keyasint"` // zero: nothing is announced
}

// heartbeatReply lists the exceptions: every other replica named in the heartbeat confirms its epoch.
type heartbeatReply struct {
	Exceptions []exception `cbor:"1,keyasint,omitempty"`
}

type exception struct {
	At   int        `cbor:"1,keyasint"` // position in the heartbeat
	Code uint16     `cbor:"2,keyasint"`
	Now  ukai.Epoch `cbor:"3,keyasint,omitempty"` // for ErrFenced: the epoch that owns the replica
}

func encode(v any) []byte {
	b, err := codec.Marshal(v)
	if err != nil {
		panic(err) // only for types CBOR cannot express, and these are all above
	}
	return b
}

func decodeHeartbeat(b []byte) (hb heartbeat, err error) {
	if err := codec.Unmarshal(b, &hb); err != nil {
		return hb, err
	}
	if len(hb.Beats) > maxBeats {
		return hb, fmt.Errorf("heartbeat of %d replicas: %w: at most %d", len(hb.Beats), ukai.ErrInvalid, maxBeats)
	}
	return hb, nil
}

// suspectBytes is one block in a reply to wire.Stamps: index, epoch, check.
const suspectBytes = 8 + 8 + 4

// maxSuspects is how many blocks one reply to wire.Stamps lists.
const maxSuspects = 16 << 10

func appendSuspect(b []byte, s suspect) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(s.index))
	b = binary.BigEndian.AppendUint64(b, uint64(s.stamp.Epoch))
	return binary.BigEndian.AppendUint32(b, s.stamp.Check)
}

func decodeSuspects(b []byte) ([]suspect, error) {
	if len(b)%suspectBytes != 0 {
		return nil, fmt.Errorf("list of stamps of %d bytes: %w: not a multiple of %d", len(b), ukai.ErrCorrupt, suspectBytes)
	}
	list := make([]suspect, 0, len(b)/suspectBytes)
	for ; len(b) > 0; b = b[suspectBytes:] {
		s := suspect{
			index: ukai.Index(binary.BigEndian.Uint64(b)),
			stamp: ukai.BlockStamp{Epoch: ukai.Epoch(binary.BigEndian.Uint64(b[8:])), Check: binary.BigEndian.Uint32(b[16:])},
		}
		if n := len(list); n > 0 && list[n-1].index >= s.index {
			return nil, fmt.Errorf("list of stamps: %w: block %d after block %d", ukai.ErrCorrupt, s.index, list[n-1].index)
		}
		list = append(list, s)
	}
	return list, nil
}

// source is the payload of a Read or Hash whose answer others are to be made equal to: data that has rotted must not be spread.
func source() []byte { return []byte{1} }

func asSource(m *wire.Message) bool { return len(m.Payload) > 0 }

// chunkHash identifies the content of a chunk: the first half of its SHA-256, or zero for a chunk of zeros, which need
// not be sent to be copied.
type chunkHash [16]byte

func hashChunk(p []byte) (h chunkHash) {
	if allZero(p) {
		return h
	}
	sum := sha256.Sum256(p)
	copy(h[:], sum[:])
	return h
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.NativeEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

func decodeHeartbeatReply(b []byte, beats int) (out heartbeatReply, err error) {
	if err := codec.Unmarshal(b, &out); err != nil {
		return out, err
	}
	for _, e := range out.Exceptions {
		if e.At < 0 || e.At >= beats {
			return out, fmt.Errorf("reply to a heartbeat: %w: exception for replica %d of %d", ukai.ErrCorrupt, e.At, beats)
		}
	}
	return out, nil
}
