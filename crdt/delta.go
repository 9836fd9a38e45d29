package crdt

import (
	"fmt"

	"ukai"
	"ukai/crdt/codec"
)

// MaxDeltaBytes is the size of the largest delta that is sent or read in one piece; Split larger ones.
const MaxDeltaBytes = 4 << 20

// Delta is a set of entries of the catalog, whole or only those fields that changed. Merging deltas in any order, any
// number of times, gives the same catalog. Deltas are immutable, and come from a Catalog or from UnmarshalDelta, so that
// what they say has been checked. The zero Delta says nothing.
type Delta struct {
	nodes    []Node       // sorted by id, distinct
	disks    []diskFields // sorted by id, distinct
	settings []setting    // sorted by name, distinct
}

// setting is one mesh-wide setting; a nil value means that it was taken back.
type setting struct {
	Name  string            `cbor:"1,keyasint"`
	Value Register[*string] `cbor:"2,keyasint"`
}

func (s *setting) check() error {
	if err := ukai.CheckName("setting", s.Name); err != nil {
		return err
	}
	if s.Value.Value != nil {
		if err := checkText("setting "+s.Name, *s.Value.Value, maxValueLen); err != nil {
			return err
		}
	}
	return checkWritten("setting "+s.Name, s.Value.Stamp)
}

// wireDelta is Delta on the wire.
type wireDelta struct {
	Nodes    []Node     `cbor:"1,keyasint,omitempty"`
	Disks    []wireDisk `cbor:"2,keyasint,omitempty"`
	Settings []setting  `cbor:"3,keyasint,omitempty"`
}

// IsEmpty says whether d says nothing.
func (d Delta) IsEmpty() bool { return d.Len() == 0 }

// Len returns the number of entries.
func (d Delta) Len() int { return len(d.nodes) + len(d.disks) + len(d.settings) }

// Keys returns the keys of the entries that d says something of, sorted.
func (d Delta) Keys() []Key {
	keys := make([]Key, 0, d.Len())
	for i := range d.nodes {
		keys = append(keys, NodeKey(d.nodes[i].ID))
	}
	for i := range d.disks {
		keys = append(keys, DiskKey(d.disks[i].id))
	}
	for i := range d.settings {
		keys = append(keys, SettingKey(d.settings[i].Name))
	}
	return keys
}

// Join returns a delta that says what both say.
func (d Delta) Join(other Delta) Delta {
	switch {
	case other.IsEmpty():
		return d
	case d.IsEmpty():
		return other
	}
	c := NewCatalog()
	c.mergeChecked(d)
	c.mergeChecked(other)
	return c.Extract(c.keys())
}

// MarshalBinary returns the bytes of d, the same for equal deltas. It refuses more than MaxDeltaBytes.
func (d Delta) MarshalBinary() ([]byte, error) {
	w := wireDelta{Nodes: d.nodes, Settings: d.settings, Disks: make([]wireDisk, 0, len(d.disks))}
	for i := range d.disks {
		w.Disks = append(w.Disks, d.disks[i].wire())
	}
	data, err := codec.Marshal(w)
	if err != nil {
		return nil, err
	}
	if len(data) > MaxDeltaBytes {
		return nil, fmt.Errorf("delta of %d entries: %w: takes %d bytes, at most %d: split it", d.Len(), ukai.ErrInvalid, len(data), MaxDeltaBytes)
	}
	return data, nil
}

// UnmarshalDelta reads what MarshalBinary made, and checks all of it. Errors match ukai.ErrCorrupt.
func UnmarshalDelta(data []byte) (Delta, error) {
	if len(data) > MaxDeltaBytes {
		return Delta{}, fmt.Errorf("delta: %w: %d bytes, at most %d", ukai.ErrCorrupt, len(data), MaxDeltaBytes)
	}
	var w wireDelta
	if err := codec.Unmarshal(data, &w); err != nil {
		return Delta{}, err
	}
	d := Delta{nodes: w.Nodes, settings: w.Settings}
	for i := range d.nodes {
		if err := d.nodes[i].check(); err != nil {
			return Delta{}, fmt.Errorf("delta: %w: %w", ukai.ErrCorrupt, err)
		}
	}
	for i := range w.Disks {
		f, err := w.Disks[i].fields()
		if err != nil {
			return Delta{}, fmt.Errorf("delta: %w: %w", ukai.ErrCorrupt, err)
		}
		d.disks = append(d.disks, f)
	}
	for i := range d.settings {
		if err := d.settings[i].check(); err != nil {
			return Delta{}, fmt.Errorf("delta: %w: %w", ukai.ErrCorrupt, err)
		}
	}
	keys := d.Keys()
	for i := 1; i < len(keys); i++ {
		if keys[i-1].Compare(keys[i]) >= 0 {
			return Delta{}, fmt.Errorf("delta: %w: entries %v and %v are not sorted and distinct", ukai.ErrCorrupt, keys[i-1], keys[i])
		}
	}
	return d, nil
}

// deltaOverhead bounds the bytes of a Delta beside those of its entries: one map and three list headers.
const deltaOverhead = 1 + 3*(1+5)

// Split returns deltas of at most maxBytes each that together say what d says. An entry that is too large is divided
// into its fields; a single field that is too large, such as a big record, is alone in a part, which then exceeds
// maxBytes.
func (d Delta) Split(maxBytes int) []Delta {
	s := splitter{max: maxBytes - deltaOverhead}
	for i := range d.nodes {
		if n := &d.nodes[i]; !s.add(Delta{nodes: d.nodes[i : i+1]}, encodedLen(n), false) {
			for _, part := range n.fields() {
				s.add(Delta{nodes: []Node{part}}, encodedLen(&part), true)
			}
		}
	}
	for i := range d.disks {
		if f := &d.disks[i]; !s.add(Delta{disks: d.disks[i : i+1]}, encodedLen(f.wire()), false) {
			for _, part := range f.parts() {
				s.add(Delta{disks: []diskFields{part}}, encodedLen(part.wire()), true)
			}
		}
	}
	for i := range d.settings {
		s.add(Delta{settings: d.settings[i : i+1]}, encodedLen(&d.settings[i]), true)
	}
	return s.done()
}

// splitter fills parts with entries, in order.
type splitter struct {
	max   int
	parts []Delta
	part  Delta
	size  int
}

// add puts an entry of size bytes into the current part, or into a new one. It says no to one that fits into no part,
// unless it must.
func (s *splitter) add(entry Delta, size int, must bool) bool {
	if size > s.max && !must {
		return false
	}
	if !s.part.IsEmpty() && s.size+size > s.max {
		s.parts = append(s.parts, s.part)
		s.part, s.size = Delta{}, 0
	}
	s.part = s.part.push(entry)
	s.size += size
	return true
}

func (s *splitter) done() []Delta {
	if !s.part.IsEmpty() {
		s.parts = append(s.parts, s.part)
	}
	return s.parts
}

// push returns d with one more entry, the largest, or with more fields of the entry that was largest.
func (d Delta) push(entry Delta) Delta {
	if len(entry.nodes) == 1 {
		if last := len(d.nodes) - 1; last >= 0 && d.nodes[last].ID == entry.nodes[0].ID {
			joined := d.nodes[last].clone()
			joined.merge(&entry.nodes[0])
			d.nodes[last] = joined
		} else {
			d.nodes = append(d.nodes, entry.nodes[0])
		}
	}
	if len(entry.disks) == 1 {
		if last := len(d.disks) - 1; last >= 0 && d.disks[last].id == entry.disks[0].id {
			d.disks[last].merge(&entry.disks[0])
		} else {
			d.disks = append(d.disks, entry.disks[0])
		}
	}
	d.settings = append(d.settings, entry.settings...)
	return d
}

func encodedLen(v any) int {
	data, err := codec.Marshal(v)
	if err != nil {
		panic(err) // entries consist of numbers, bytes, strings, lists and maps
	}
	return len(data)
}
