package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"ukai"
)

// A frame is a header of fixed size and up to MaxPayload bytes. Numbers are big-endian.
//
//	 0  4  size      bytes that follow the header
//	 4  1  version   frameVersion
//	 5  1  kind
//	 6  2  status    reply: ukai.Code of the error, 0 if none. Request: 0
//	 8  1  flags     1: this is a reply
//	 9  1  zero
//	10  2  layer     zero in a reply
//	12  4  session   zero in a reply
//	16  8  id        of the request, not zero; its reply has the same
//	24 16  disk      zero in a reply
//	40  8  replica   zero in a reply
//	48  8  epoch
//	56  8  stamp, epoch
//	64  4  stamp, check
//	68  4  count
//	72  8  offset    0 to ukai.MaxDiskSize
//	80  4  CRC-32C of what follows the header
//	84  4  CRC-32C of the header up to here
//
// The header has a checksum of its own so that its size and id can be believed before the payload is there: a reply
// is read straight into the buffer that its id stands for. What follows the header of a reply with a status is not a
// payload but a detail, see detail.go.
const (
	headerSize   = 88
	frameVersion = 1

	flagReply = 1
)

// header is a decoded frame header.
type header struct {
	size    int
	kind    Kind
	status  uint16
	reply   bool
	layer   uint16
	session uint32
	id      uint64
	disk    ukai.DiskID
	replica ukai.ReplicaID
	epoch   ukai.Epoch
	stamp   ukai.BlockStamp
	count   uint32
	offset  int64
	crc     uint32 // of what follows
}

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// put writes h into b, checksums included; rest is what follows the header in the frame.
func (h *header) put(b, rest []byte) {
	_ = b[headerSize-1]
	binary.BigEndian.PutUint32(b[0:], uint32(len(rest)))
	b[4] = frameVersion
	b[5] = byte(h.kind)
	binary.BigEndian.PutUint16(b[6:], h.status)
	b[8], b[9] = 0, 0
	if h.reply {
		b[8] = flagReply
	}
	binary.BigEndian.PutUint16(b[10:], h.layer)
	binary.BigEndian.PutUint32(b[12:], h.session)
	binary.BigEndian.PutUint64(b[16:], h.id)
	copy(b[24:40], h.disk[:])
	binary.BigEndian.PutUint64(b[40:], uint64(h.replica))
	binary.BigEndian.PutUint64(b[48:], uint64(h.epoch))
	binary.BigEndian.PutUint64(b[56:], uint64(h.stamp.Epoch))
	binary.BigEndian.PutUint32(b[64:], h.stamp.Check)
	binary.BigEndian.PutUint32(b[68:], h.count)
	binary.BigEndian.PutUint64(b[72:], uint64(h.offset))
	binary.BigEndian.PutUint32(b[80:], castagnoli(rest))
	binary.BigEndian.PutUint32(b[84:], castagnoli(b[:84]))
}

// parse reads b into h. Its error says what rule b breaks; the caller then gives the connection up. A kind that is
// not known is no such error: a newer release may have sent it.
func (h *header) parse(b []byte) error {
	_ = b[headerSize-1]
	if got, want := castagnoli(b[:84]), binary.BigEndian.Uint32(b[84:]); got != want {
		return fmt.Errorf("frame header: %w: checksum %08x, computed %08x", ukai.ErrCorrupt, want, got)
	}
	if b[4] != frameVersion {
		return fmt.Errorf("frame: %w: version %d, this release speaks %d", ukai.ErrVersion, b[4], frameVersion)
	}
	h.kind = Kind(b[5])
	h.status = binary.BigEndian.Uint16(b[6:])
	h.reply = b[8]&flagReply != 0
	h.layer = binary.BigEndian.Uint16(b[10:])
	h.session = binary.BigEndian.Uint32(b[12:])
	h.id = binary.BigEndian.Uint64(b[16:])
	h.disk = ukai.DiskID(b[24:40])
	h.replica = ukai.ReplicaID(binary.BigEndian.Uint64(b[40:]))
	h.epoch = ukai.Epoch(binary.BigEndian.Uint64(b[48:]))
	h.stamp = ukai.BlockStamp{Epoch: ukai.Epoch(binary.BigEndian.Uint64(b[56:])), Check: binary.BigEndian.Uint32(b[64:])}
	h.count = binary.BigEndian.Uint32(b[68:])
	h.offset = int64(binary.BigEndian.Uint64(b[72:]))
	h.crc = binary.BigEndian.Uint32(b[80:])
	size := binary.BigEndian.Uint32(b[0:])

	limit := uint32(MaxPayload)
	if h.status != 0 {
		limit = maxDetail
	}
	switch {
	case size > limit:
		return fmt.Errorf("frame of %v: %w: %d bytes follow the header, at most %d may", h.kind, ukai.ErrInvalid, size, limit)
	case b[8]&^flagReply != 0 || b[9] != 0:
		return fmt.Errorf("frame of %v: %w: unknown flags %02x%02x", h.kind, ukai.ErrInvalid, b[8], b[9])
	case h.kind == 0:
		return fmt.Errorf("frame: %w: kind 0", ukai.ErrInvalid)
	case h.id == 0:
		return fmt.Errorf("frame of %v: %w: id 0", h.kind, ukai.ErrInvalid)
	case h.offset < 0 || h.offset > ukai.MaxDiskSize:
		return fmt.Errorf("frame of %v: offset %d: %w: want 0 to %d", h.kind, h.offset, ukai.ErrInvalid, int64(ukai.MaxDiskSize))
	case !h.reply && h.status != 0:
		return fmt.Errorf("request of %v: %w: status %d", h.kind, ukai.ErrInvalid, h.status)
	case h.reply && (h.layer != 0 || h.session != 0 || !h.disk.IsZero() || h.replica != 0):
		return fmt.Errorf("reply to %v: %w: has fields of a request", h.kind, ukai.ErrInvalid)
	}
	h.size = int(size)
	return nil
}

// verify compares the bytes after the header with the header's checksum.
func (h *header) verify(rest []byte) error {
	if got := castagnoli(rest); got != h.crc {
		return fmt.Errorf("frame of %v, %d bytes: %w: checksum %08x, computed %08x", h.kind, len(rest), ukai.ErrCorrupt, h.crc, got)
	}
	return nil
}

func (h *header) message(payload []byte) Message {
	return Message{Kind: h.kind, Disk: h.disk, Replica: h.replica, Epoch: h.epoch, Session: h.session, Layer: h.layer,
		Stamp: h.stamp, Offset: h.offset, Count: h.count, Payload: payload}
}

func (h *header) answer(payload []byte) Reply {
	return Reply{Epoch: h.epoch, Stamp: h.stamp, Offset: h.offset, Count: h.count, Payload: payload}
}

func requestHeader(id uint64, m *Message) header {
	return header{kind: m.Kind, id: id, layer: m.Layer, session: m.Session, disk: m.Disk, replica: m.Replica,
		epoch: m.Epoch, stamp: m.Stamp, count: m.Count, offset: m.Offset}
}

func replyHeader(id uint64, kind Kind, status uint16, r *Reply) header {
	return header{reply: true, kind: kind, id: id, status: status, epoch: r.Epoch, stamp: r.Stamp, count: r.Count, offset: r.Offset}
}
