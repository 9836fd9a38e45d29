package ukai

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"slices"
)

// Sizes of the parts of a disk, in bytes. A sector is the unit of atomicity a guest may rely on; a chunk is the
// unit of hashing and of what resync copies; a block is the unit of placement.
const (
	SectorSize = 512
	ChunkSize  = 64 << 10

	DefaultBlockSize = 4 << 20
	MinBlockSize     = 1 << 20
	MaxBlockSize     = 64 << 20

	// MaxDiskSize bounds the size of a disk: 64 TiB.
	MaxDiskSize = 64 << 40
	// MaxIO is the largest single read or write, as the kernel sends them: 1 MiB.
	MaxIO = 1 << 20
)

// NodeID names a node: the first 16 bytes of the SHA-256 of its public key. The zero NodeID names no node.
type NodeID [16]byte

// DiskID names a disk: 16 random bytes, never reused. The zero DiskID names no disk.
type DiskID [16]byte

// ReplicaID names one incarnation of one node's copy of a disk: random, never zero and never used again after the
// replica has been retired, so that a delayed message about an old copy cannot hurt a new one.
type ReplicaID uint64

// Incarnation identifies an unbroken life of a node's volatile memory: the kernel's boot id together with the
// store's identity. It survives a restart of the daemon and changes when the machine reboots.
type Incarnation [16]byte

// Nonce tells apart two claims by the same node.
type Nonce [16]byte

// NewDiskID returns a random DiskID.
func NewDiskID() (id DiskID) { mustRandom(id[:]); return id }

// NewNonce returns a random Nonce.
func NewNonce() (n Nonce) { mustRandom(n[:]); return n }

// NewReplicaID returns a random ReplicaID that is not zero.
func NewReplicaID() ReplicaID {
	var b [8]byte
	for {
		mustRandom(b[:])
		if id := ReplicaID(binary.BigEndian.Uint64(b[:])); id != 0 {
			return id
		}
	}
}

// mustRandom fills b. crypto/rand.Read never fails on the systems UKAI runs on: it ends the program instead.
func mustRandom(b []byte) { _, _ = rand.Read(b) }

// String returns the id as 32 hexadecimal digits.
func (id NodeID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first 8 digits, for logs that also name the node.
func (id NodeID) Short() string { return hex.EncodeToString(id[:4]) }

// IsZero says whether id names no node.
func (id NodeID) IsZero() bool { return id == NodeID{} }

// MarshalText makes ids readable in JSON and YAML.
func (id NodeID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText accepts what MarshalText made.
func (id *NodeID) UnmarshalText(text []byte) error { return unhex("node id", id[:], text) }

// ParseNodeID reads 32 hexadecimal digits.
func ParseNodeID(s string) (id NodeID, err error) { return id, id.UnmarshalText([]byte(s)) }

// String returns the id as 32 hexadecimal digits.
func (id DiskID) String() string { return hex.EncodeToString(id[:]) }

// IsZero says whether id names no disk.
func (id DiskID) IsZero() bool { return id == DiskID{} }

// MarshalText makes ids readable in JSON and YAML.
func (id DiskID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText accepts what MarshalText made.
func (id *DiskID) UnmarshalText(text []byte) error { return unhex("disk id", id[:], text) }

// ParseDiskID reads 32 hexadecimal digits.
func ParseDiskID(s string) (id DiskID, err error) { return id, id.UnmarshalText([]byte(s)) }

// String returns the id as 16 hexadecimal digits.
func (id ReplicaID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// MarshalText makes ids readable in JSON and YAML, where a 64-bit number would lose digits.
func (id ReplicaID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText accepts what MarshalText made.
func (id *ReplicaID) UnmarshalText(text []byte) error {
	var b [8]byte
	if err := unhex("replica id", b[:], text); err != nil {
		return err
	}
	*id = ReplicaID(binary.BigEndian.Uint64(b[:]))
	return nil
}

// String returns the incarnation as hexadecimal digits.
func (i Incarnation) String() string { return hex.EncodeToString(i[:]) }

func unhex(what string, dst, text []byte) error {
	if hex.DecodedLen(len(text)) != len(dst) || len(text)%2 != 0 {
		return fmt.Errorf("%s %q: %w: want %d hexadecimal digits", what, text, ErrInvalid, 2*len(dst))
	}
	if _, err := hex.Decode(dst, text); err != nil {
		return fmt.Errorf("%s %q: %w: want %d hexadecimal digits", what, text, ErrInvalid, 2*len(dst))
	}
	return nil
}

// Index counts blocks from the beginning of a disk. Byte offsets are plain int64 and called off; the two never add.
type Index uint64

// Range is Count blocks beginning with First.
type Range struct {
	First Index  `json:"first"`
	Count uint64 `json:"count"`
}

// End returns the index after the last block of r.
func (r Range) End() Index { return r.First + Index(r.Count) }

// Contains says whether block i is in r.
func (r Range) Contains(i Index) bool { return i >= r.First && i < r.End() }

// String returns "first-last", the form the command line takes.
func (r Range) String() string {
	if r.Count == 0 {
		return "none"
	}
	return fmt.Sprintf("%d-%d", r.First, r.End()-1)
}

// JoinRanges returns ranges that do not overlap in order, neighbours made one.
func JoinRanges(list []Range) (out []Range) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Range) int { return cmp.Compare(a.First, b.First) })
	for _, r := range list {
		if n := len(out); n > 0 && out[n-1].End() == r.First {
			out[n-1].Count += r.Count
			continue
		}
		out = append(out, r)
	}
	return out
}

// Blocks returns how many blocks of blockSize bytes a disk of size bytes has; the last may be partly used.
func Blocks(size int64, blockSize int) uint64 {
	return uint64((size + int64(blockSize) - 1) / int64(blockSize))
}

// CheckBlockSize says what is wrong with a block size in bytes, or nil.
func CheckBlockSize(n int) error {
	if n < MinBlockSize || n > MaxBlockSize || bits.OnesCount(uint(n)) != 1 {
		return fmt.Errorf("block size %d: %w: must be a power of two from 1 MiB to 64 MiB", n, ErrInvalid)
	}
	return nil
}

// CheckDiskSize says what is wrong with the size of a disk in bytes, or nil.
func CheckDiskSize(n int64) error {
	if n <= 0 || n > MaxDiskSize || n%4096 != 0 {
		return fmt.Errorf("disk size %d: %w: must be a multiple of 4096 bytes, more than 0 and at most 64 TiB", n, ErrInvalid)
	}
	return nil
}

// Epoch numbers the holders of a disk: each claim takes the next. The upper 24 bits count forced takeovers
// (lineages), the lower 40 claims, so that a forced record is newer than anything its ancestors can commit.
type Epoch uint64

const epochBits = 40

// NewEpoch joins the count of forced takeovers and the count of claims.
func NewEpoch(forced, n uint64) Epoch { return Epoch(forced<<epochBits | n&(1<<epochBits-1)) }

// Forced returns how many forced takeovers led to e.
func (e Epoch) Forced() uint64 { return uint64(e) >> epochBits }

// String returns the claim count, preceded by the count of forced takeovers if there were any.
func (e Epoch) String() string {
	n := uint64(e) & (1<<epochBits - 1)
	if f := e.Forced(); f != 0 {
		return fmt.Sprintf("%d.%d", f, n)
	}
	return fmt.Sprint(n)
}

// BlockStamp says when a block was last written: in which epoch, and after which checkpoint of that epoch.
// Stamps order as (Epoch, Check). The zero BlockStamp is older than any write.
type BlockStamp struct {
	Epoch Epoch  `json:"epoch" cbor:"1,keyasint"`
	Check uint32 `json:"check" cbor:"2,keyasint"`
}

// Compare returns -1, 0 or 1 as s is older than, equal to or newer than t.
func (s BlockStamp) Compare(t BlockStamp) int {
	switch {
	case s.Epoch < t.Epoch, s.Epoch == t.Epoch && s.Check < t.Check:
		return -1
	case s == t:
		return 0
	}
	return 1
}

// Less says whether s is older than t.
func (s BlockStamp) Less(t BlockStamp) bool { return s.Compare(t) < 0 }

// String returns "epoch/check".
func (s BlockStamp) String() string { return fmt.Sprintf("%v/%d", s.Epoch, s.Check) }
