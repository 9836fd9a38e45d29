package gossip

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
)

// A catalog stream carries frames: length of the rest (uint32, big endian), kind (one byte), body (package codec). The
// node that opened the stream asks, the other answers; at no time do both write, so neither can wait for the other
// with full buffers.
const (
	maxFrame     = 512 << 10        // bytes of kind and body; a longer frame ends the stream
	frameTimeout = 15 * time.Second // for one frame to be written, or the next to come in
	protocol     = 1                // version of these frames

	maxKeysAsked = 1024      // keys in one want
	maxVersions  = 2048      // versions in one frame
	maxBuckets   = 1024      // numbers in one list
	deltaPiece   = 128 << 10 // bytes of deltas sent in one frame, about
)

type frameKind byte

const (
	frameHello     frameKind = iota + 1 // -> who asks; <- welcome
	frameWelcome                        // <- who answers and what it remembers of the asker
	frameDigest                         // -> the asker's digest; <- differing
	frameDiffering                      // <- numbers of the buckets that differ
	frameList                           // -> numbers of buckets; <- versions, one or more frames
	frameVersions                       // <- keys and versions in them
	frameWant                           // -> keys; <- deltas, one or more frames
	frameDelta                          // <- an answer to want, or -> entries the asker has; no answer to that
	frameBye                            // -> all is said; <- bye
)

// hello opens every catalog stream.
type hello struct {
	Protocol uint8       `cbor:"1,keyasint"`
	From     ukai.NodeID `cbor:"2,keyasint"`
	Wall     int64       `cbor:"3,keyasint"` // the sender's clock, Unix milliseconds
	Root     uint64      `cbor:"4,keyasint"` // of the sender's catalog
	Own      report      `cbor:"5,keyasint"`
}

// welcome answers it.
type welcome struct {
	Protocol uint8       `cbor:"1,keyasint"`
	From     ukai.NodeID `cbor:"2,keyasint"`
	Wall     int64       `cbor:"3,keyasint"`
	Root     uint64      `cbor:"4,keyasint"`
	Boot     uint64      `cbor:"5,keyasint"` // what the answering node remembers of the asking one; 0 if nothing
	Seq      uint64      `cbor:"6,keyasint"`
	Seen     string      `cbor:"7,keyasint"` // the address the asker is seen at
	Own      report      `cbor:"8,keyasint"`
}

type digestFrame struct {
	Digest []byte `cbor:"1,keyasint"`
}

type bucketsFrame struct { // differing, list
	Numbers []uint16 `cbor:"1,keyasint"`
}

type versionsFrame struct {
	Items []crdt.KeyVersion `cbor:"1,keyasint"`
	More  bool              `cbor:"2,keyasint"`
}

type wantFrame struct {
	Keys []crdt.Key `cbor:"1,keyasint"`
}

type deltaFrame struct {
	Delta []byte `cbor:"1,keyasint"`
	More  bool   `cbor:"2,keyasint"`
}

type byeFrame struct {
	Changed uint32 `cbor:"1,keyasint"` // entries that changed at the sender during this exchange
}

func writeFrame(w io.Writer, kind frameKind, body any) error {
	b, err := codec.Marshal(body)
	if err != nil {
		return err
	}
	if len(b)+1 > maxFrame {
		return fmt.Errorf("frame of %d bytes: %w: the limit is %d", len(b)+1, ukai.ErrInvalid, maxFrame)
	}
	frame := make([]byte, 0, 5+len(b))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(b)+1))
	frame = append(frame, byte(kind))
	_, err = w.Write(append(frame, b...))
	return err
}

// readFrame returns the kind and the undecoded body of the next frame.
func readFrame(r io.Reader) (frameKind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes: %w: must be 1 to %d", n, ukai.ErrCorrupt, maxFrame)
	}
	body := make([]byte, n-1)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	return frameKind(head[4]), body, nil
}

// decodeFrame decodes a body and holds it against the limits of its kind.
func decodeFrame(body []byte, into any) error {
	if err := codec.Unmarshal(body, into); err != nil {
		return err
	}
	n, limit, what := 0, 1, ""
	switch f := into.(type) {
	case *hello:
		if f.Protocol != protocol || f.From.IsZero() {
			return fmt.Errorf("hello of %v in protocol %d: %w: this node speaks %d", f.From, f.Protocol, ukai.ErrVersion, protocol)
		}
	case *welcome:
		if f.Protocol != protocol || f.From.IsZero() {
			return fmt.Errorf("welcome of %v in protocol %d: %w: this node speaks %d", f.From, f.Protocol, ukai.ErrVersion, protocol)
		}
		n, limit, what = len(f.Seen), 64, "address"
	case *digestFrame:
		if len(f.Digest) != digestBytes {
			return fmt.Errorf("digest of %d bytes: %w: want %d", len(f.Digest), ukai.ErrCorrupt, digestBytes)
		}
	case *bucketsFrame:
		for _, i := range f.Numbers {
			if int(i) >= digestBytes/8 {
				return fmt.Errorf("bucket %d: %w: there are %d", i, ukai.ErrCorrupt, digestBytes/8)
			}
		}
		n, limit, what = len(f.Numbers), maxBuckets, "buckets"
	case *versionsFrame:
		n, limit, what = len(f.Items), maxVersions, "versions"
	case *wantFrame:
		n, limit, what = len(f.Keys), maxKeysAsked, "keys"
	case *deltaFrame, *byeFrame:
	default:
		return fmt.Errorf("frame %T: %w", into, ukai.ErrUnsupported)
	}
	if n > limit {
		return fmt.Errorf("%s: %w: %d where %d is the limit", what, ukai.ErrCorrupt, n, limit)
	}
	return nil
}
