package crdt

import (
	"bytes"
	"fmt"
	"slices"

	"ukai"
	"ukai/crdt/codec"
)

// Encode checks r and returns its bytes: the same for equal records, at most MaxRecordBytes.
func (r *Record) Encode() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	data, err := r.encode()
	if err != nil {
		return nil, err
	}
	if len(data) > MaxRecordBytes {
		return nil, fmt.Errorf("record of disk %v: %w: takes %d bytes, at most %d: join ranges, or remove snapshots", r.Disk, ukai.ErrInvalid, len(data), MaxRecordBytes)
	}
	return data, nil
}

func (r *Record) encode() ([]byte, error) { return codec.Marshal(r) }

// DecodeRecord reads what Encode made and checks it. It refuses bytes that say the same in another form, so that
// comparing bytes is comparing records; fields that this release does not know are skipped. Errors match
// ukai.ErrCorrupt.
func DecodeRecord(data []byte) (Record, error) {
	if len(data) > MaxRecordBytes {
		return Record{}, fmt.Errorf("record: %w: %d bytes, at most %d", ukai.ErrCorrupt, len(data), MaxRecordBytes)
	}
	var r Record
	if err := codec.Unmarshal(data, &r); err != nil {
		return Record{}, err
	}
	if err := r.Check(); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ukai.ErrCorrupt, err)
	}
	again, err := r.encode()
	if err != nil {
		return Record{}, err
	}
	if !bytes.Equal(again, data) {
		if err := checkNewer(data); err != nil {
			return Record{}, fmt.Errorf("record of disk %v: %w", r.Disk, err)
		}
	}
	return r, nil
}

// checkNewer accepts data, a record that does not encode to the same bytes again, only if the reason is a field that
// this release does not know.
func checkNewer(data []byte) error {
	if err := codec.UnmarshalKnown(data, new(Record)); err == nil {
		return fmt.Errorf("%w: not in canonical form", ukai.ErrCorrupt)
	}
	return codec.CheckCanonical(data)
}

// Clone returns a copy of r that shares nothing with it.
func (r *Record) Clone() Record {
	c := *r
	c.Lineage = slices.Clone(r.Lineage)
	c.Arbiters = slices.Clone(r.Arbiters)
	c.Groups = slices.Clone(r.Groups)
	for i := range c.Groups {
		c.Groups[i].Members = slices.Clone(c.Groups[i].Members)
	}
	c.Runs = slices.Clone(r.Runs)
	c.Layers = slices.Clone(r.Layers)
	c.Pins = slices.Clone(r.Pins)
	return c
}
