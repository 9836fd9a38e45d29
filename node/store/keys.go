package store

import (
	"encoding/binary"
	"fmt"

	"ukai"
	"ukai/crdt/codec"
)

// Key spaces of the database: the first byte of every key. The store's own keys are binary, since there is one per
// written block: 27 bytes of prefix that neighbours share, and the index in big-endian so that they sort.
const (
	spaceUser    = 'k'
	spaceHeader  = 'r'
	spaceStamp   = 'b'
	spaceStore   = 's'
	idLen        = 16 + 8
	headerKeyLen = 1 + idLen
	stampKeyLen  = 1 + idLen + 2 + 8
)

// storeIDKey holds 16 random bytes that name this store.
const storeIDKey = string(spaceStore) + "id"

// replicaKey identifies a replica within the store.
type replicaKey struct {
	disk ukai.DiskID
	rid  ukai.ReplicaID
}

func (k replicaKey) String() string { return fmt.Sprintf("disk %v replica %v", k.disk, k.rid) }

func (k replicaKey) append(b []byte) []byte {
	b = append(b, k.disk[:]...)
	return binary.BigEndian.AppendUint64(b, uint64(k.rid))
}

func (k replicaKey) headerKey() string {
	return string(k.append(append(make([]byte, 0, headerKeyLen), spaceHeader)))
}

// stampPrefix begins the keys of all stamps of one layer, stampsPrefix those of all layers.
func (k replicaKey) stampsPrefix() string {
	return string(k.append(append(make([]byte, 0, stampKeyLen), spaceStamp)))
}

func (k replicaKey) stampPrefix(layer uint16) string {
	b := append(make([]byte, 0, stampKeyLen), k.stampsPrefix()...)
	return string(binary.BigEndian.AppendUint16(b, layer))
}

func (k replicaKey) stampKey(layer uint16, index ukai.Index) string {
	b := append(make([]byte, 0, stampKeyLen), k.stampPrefix(layer)...)
	return string(binary.BigEndian.AppendUint64(b, uint64(index)))
}

// parseHeaderKey is the inverse of headerKey.
func parseHeaderKey(key string) (k replicaKey, err error) {
	if len(key) != headerKeyLen || key[0] != spaceHeader {
		return k, corruptKey(key, "is not a replica's header key")
	}
	copy(k.disk[:], key[1:])
	k.rid = ukai.ReplicaID(binary.BigEndian.Uint64([]byte(key[17:])))
	return k, nil
}

// parseStampIndex returns the block whose stamp a key holds.
func parseStampIndex(key string) (ukai.Index, error) {
	if len(key) != stampKeyLen || key[0] != spaceStamp {
		return 0, corruptKey(key, "is not the key of a block's stamp")
	}
	return ukai.Index(binary.BigEndian.Uint64([]byte(key[stampKeyLen-8:]))), nil
}

// A stamp is 13 bytes: the form, the epoch and the checkpoint. In the form with checksums these follow.
const (
	stampForm  = 1
	summedForm = 2
	stampLen   = 1 + 8 + 4
)

func encodeStamp(s ukai.BlockStamp, sums []Sum) []byte {
	b := append(make([]byte, 0, stampLen+len(sums)*len(Sum{})), stampForm)
	if len(sums) > 0 {
		b[0] = summedForm
	}
	b = binary.BigEndian.AppendUint64(b, uint64(s.Epoch))
	b = binary.BigEndian.AppendUint32(b, s.Check)
	for i := range sums {
		b = append(b, sums[i][:]...)
	}
	return b
}

func decodeStamp(key string, v []byte) (s ukai.BlockStamp, sums []Sum, err error) {
	const each = len(Sum{})
	switch {
	case len(v) == stampLen && v[0] == stampForm:
	case len(v) > stampLen && v[0] == summedForm && (len(v)-stampLen)%each == 0:
		for rest := v[stampLen:]; len(rest) > 0; rest = rest[each:] {
			sums = append(sums, Sum(rest[:each]))
		}
	default:
		return s, nil, corruptKey(key, fmt.Sprintf("holds %x, which is no stamp of form %d or %d", clip(v), stampForm, summedForm))
	}
	s.Epoch = ukai.Epoch(binary.BigEndian.Uint64(v[1:]))
	s.Check = binary.BigEndian.Uint32(v[9:])
	return s, sums, nil
}

// headerForm is the newest form of a header that this release reads.
const headerForm = 1

// header is what is kept of a replica under its header key.
type header struct {
	Form        uint8            `cbor:"1,keyasint"`
	Size        int64            `cbor:"2,keyasint"`
	BlockSize   int              `cbor:"3,keyasint"`
	Fence       ukai.Epoch       `cbor:"4,keyasint"`
	Stable      ukai.BlockStamp  `cbor:"5,keyasint"`
	Unclean     bool             `cbor:"6,keyasint,omitempty"`
	Dirty       bool             `cbor:"7,keyasint,omitempty"` // may have been written in Incarnation since it was last clean
	Incarnation ukai.Incarnation `cbor:"8,keyasint"`
	Version     uint64           `cbor:"9,keyasint"`
	State       State            `cbor:"10,keyasint"`
	Head        uint16           `cbor:"11,keyasint,omitempty"` // the layer that takes writes
	Broken      string           `cbor:"12,keyasint,omitempty"` // the failure that broke the replica
	From        ukai.ReplicaID   `cbor:"13,keyasint,omitempty"` // whose files and stamps it is about to have, in stateAdopting
	Adopted     bool             `cbor:"14,keyasint,omitempty"` // it began with what another one had
}

func (h header) public() Header {
	return Header{Fence: h.Fence, Stable: h.Stable, Unclean: h.Unclean, Incarnation: h.Incarnation, Version: h.Version, State: h.State, Adopted: h.Adopted}
}

func encodeHeader(h header) ([]byte, error) {
	h.Form = headerForm
	return codec.Marshal(h)
}

func decodeHeader(key string, v []byte) (h header, err error) {
	if err := codec.Unmarshal(v, &h); err != nil {
		return header{}, corruptKey(key, err.Error())
	}
	if h.Form > headerForm {
		return header{}, fmt.Errorf("database key %q: %w: header of form %d, this release reads up to %d: upgrade ukai-node",
			key, ukai.ErrVersion, h.Form, headerForm)
	}
	switch {
	case h.Form == 0:
		return header{}, corruptKey(key, "is a header without a form")
	case ukai.CheckDiskSize(h.Size) != nil:
		return header{}, corruptKey(key, ukai.CheckDiskSize(h.Size).Error())
	case ukai.CheckBlockSize(h.BlockSize) != nil:
		return header{}, corruptKey(key, ukai.CheckBlockSize(h.BlockSize).Error())
	case h.State > stateAdopting:
		return header{}, corruptKey(key, fmt.Sprintf("has state %d", h.State))
	}
	return h, nil
}

// corruptKey says what is wrong with a key and what to do about it. No part of the store repairs such a key by
// itself: what it said about the replica may be the only thing that kept a stale copy from being used.
func corruptKey(key, what string) error {
	return fmt.Errorf("database key %q: %w: %s: the replica cannot be used; remove it and let its disk be resynced from another", clip([]byte(key)), ukai.ErrCorrupt, what)
}

// clip bounds what an error quotes.
func clip(b []byte) []byte { return b[:min(len(b), 64)] }
