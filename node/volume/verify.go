package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"ukai"
	"ukai/node/store"
)

// The replica's side of a scrub: it holds its data against its checksums, notes new ones, and writes back what it is told it had.

// partsOf says which parts of which block a range is; it lies in one block and begins at a part's border.
func (h *hosted) partsOf(what string, off, n int64) (index ukai.Index, first int, err error) {
	if err := h.check(what, off, n); err != nil {
		return 0, 0, err
	}
	size := int64(h.data.BlockSize())
	if n == 0 || n > maxHashed || off%store.SumBytes != 0 || off/size != (off+n-1)/size {
		return 0, 0, fmt.Errorf("%s of %d bytes at %d: %w: 1 to %d of one block, from a multiple of %d", what, n, off, ukai.ErrInvalid, maxHashed, store.SumBytes)
	}
	return ukai.Index(off / size), int(off % size / store.SumBytes), nil
}

// inspection is what a replica says of a range of one of its blocks.
type inspection struct {
	stamp ukai.BlockStamp
	quiet bool // see store.Replica.Quiet
	looks []look
}

// verify reads a range as it is stored, and tells what it found.
func (h *hosted) verify(epoch ukai.Epoch, session uint32, off, n int64) (in inspection, err error) {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return in, err
	}
	defer ops.leave()
	index, first, err := h.partsOf("verification", off, n)
	if err != nil {
		return in, err
	}
	in.stamp, in.quiet = h.data.Quiet(index)
	sums := h.checksums(index)
	buf := make([]byte, min(n, store.SumBytes))
	for at := off; at < off+n; at += store.SumBytes {
		p := buf[:min(store.SumBytes, off+n-at)]
		var l look
		switch err := h.data.ReadStored(p, at); {
		case errors.Is(err, ukai.ErrMedia), errors.Is(err, ukai.ErrCorrupt):
			l.unreadable = true
		case err != nil:
			return in, err
		default:
			l.sum = store.SumOf(p)
		}
		k := first + len(in.looks)
		// A replica that has grown already has a checksum of more than it is asked about.
		if sums != nil && int64(len(p)) == min(store.SumBytes, h.data.Size()-at) {
			l.known, l.want = true, sums[k]
		}
		if l.known && !l.unreadable && l.sum != l.want && !h.still(index, sums) {
			l.known, l.want, sums = false, store.Sum{}, nil // it was written meanwhile
		}
		in.looks = append(in.looks, l)
	}
	return in, nil
}

// checksums returns the checksums of a block, nil if it has none that can be read: then it is as if it had none.
func (h *hosted) checksums(index ukai.Index) []store.Sum {
	sums, err := h.data.Checksums(index)
	if err != nil {
		h.rs.cfg.Log.Warn("checksums cannot be read", "disk", h.key.disk, "replica", h.key.replica, "block", index, "err", err)
	}
	return sums
}

// still says whether a block has the same checksums as before. What is read before a write begins is what they are of: a write ends them first.
func (h *hosted) still(index ukai.Index, sums []store.Sum) bool {
	return slices.Equal(h.checksums(index), sums)
}

// note keeps the checksums of a block whose data they are of.
func (h *hosted) note(ctx context.Context, epoch ukai.Epoch, session uint32, off int64, s ukai.BlockStamp, payload []byte) error {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return err
	}
	defer ops.leave()
	sums, err := decodeSums(payload)
	if err != nil {
		return err
	}
	if err := h.check("checksums", off, 1); err != nil {
		return err
	}
	_, err = h.data.SetChecksums(ctx, ukai.Index(off/int64(h.data.BlockSize())), s, sums)
	return err // if it did not keep them, the block was written meanwhile
}

// restore writes back one part.
func (h *hosted) restore(epoch ukai.Epoch, session uint32, p []byte, off int64) error {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return err
	}
	defer ops.leave()
	if _, _, err := h.partsOf("restoration", off, int64(len(p))); err != nil {
		return err
	}
	return h.data.Restore(p, off)
}

// sound returns an error that matches ukai.ErrCorrupt if a checksum says that something in a range has rotted.
func (h *hosted) sound(off, n int64) error {
	if err := h.check("verification", off, n); err != nil {
		return err
	}
	size := int64(h.data.BlockSize())
	var buf []byte
	for at := off - off%store.SumBytes; at < off+n; at += store.SumBytes {
		index := ukai.Index(at / size)
		sums := h.checksums(index)
		if sums == nil {
			continue
		}
		if buf == nil {
			buf = make([]byte, store.SumBytes)
		}
		p := buf[:min(store.SumBytes, h.data.Size()-at)]
		if err := h.data.ReadAt(p, at); err != nil {
			return err
		}
		if sums[at%size/store.SumBytes] != store.SumOf(p) && h.still(index, sums) {
			return fmt.Errorf("replica %v, %d bytes at %d: %w: they are not what their checksum is of", h.key.replica, len(p), at, ukai.ErrCorrupt)
		}
	}
	return nil
}

// What crosses the wire of it has a form of its own, as there may be much.

const (
	sumBytes  = len(store.Sum{})
	lookBytes = 1 + 2*sumBytes // flags, sum, want

	lookUnreadable = 1
	lookKnown      = 2
)

func encodeLooks(looks []look) []byte {
	b := make([]byte, 0, len(looks)*lookBytes)
	for i := range looks {
		flags := byte(0)
		if looks[i].unreadable {
			flags |= lookUnreadable
		}
		if looks[i].known {
			flags |= lookKnown
		}
		b = append(b, flags)
		b = append(b, looks[i].sum[:]...)
		b = append(b, looks[i].want[:]...)
	}
	return b
}

// decodeLooks reads what a replica said of n bytes.
func decodeLooks(b []byte, n int64) ([]look, error) {
	if want := (n + store.SumBytes - 1) / store.SumBytes; int64(len(b)) != want*int64(lookBytes) {
		return nil, fmt.Errorf("%d bytes about %d parts of a block: %w", len(b), want, ukai.ErrCorrupt)
	}
	var looks []look
	for ; len(b) > 0; b = b[lookBytes:] {
		looks = append(looks, look{
			unreadable: b[0]&lookUnreadable != 0, known: b[0]&lookKnown != 0,
			sum: store.Sum(b[1 : 1+sumBytes]), want: store.Sum(b[1+sumBytes : lookBytes]),
		})
	}
	return looks, nil
}

func encodeSums(sums []store.Sum) []byte {
	b := make([]byte, 0, len(sums)*sumBytes)
	for i := range sums {
		b = append(b, sums[i][:]...)
	}
	return b
}

func decodeSums(b []byte) ([]store.Sum, error) {
	if len(b) == 0 || len(b)%sumBytes != 0 {
		return nil, fmt.Errorf("checksums of %d bytes: %w: not a multiple of %d", len(b), ukai.ErrInvalid, sumBytes)
	}
	var sums []store.Sum
	for ; len(b) > 0; b = b[sumBytes:] {
		sums = append(sums, store.Sum(b[:sumBytes]))
	}
	return sums, nil
}
