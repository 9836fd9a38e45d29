package crdt

import "ukai"

// Map is the block map of one Record, laid out for lookups: immutable, safe for concurrent use, no allocation per
// lookup, and time that grows with the logarithm of the number of runs. The data path keeps one per open disk.
type Map struct {
	ends   []ukai.Index // of run i, exclusive
	groups []*Group     // of run i, pointing into table
	table  []Group
}

// NewMap returns the map of a record that Check has passed. It shares nothing with rec.
func NewMap(rec *Record) *Map {
	c := rec.Clone()
	m := &Map{table: c.Groups, ends: make([]ukai.Index, len(c.Runs)), groups: make([]*Group, len(c.Runs))}
	end := ukai.Index(0)
	for i, run := range c.Runs {
		end += ukai.Index(run.Count)
		m.ends[i], m.groups[i] = end, c.Group(run.Group)
	}
	return m
}

// Blocks returns how many blocks the disk has.
func (m *Map) Blocks() uint64 {
	if len(m.ends) == 0 {
		return 0
	}
	return uint64(m.ends[len(m.ends)-1])
}

// GroupOf returns the group of a block, to be read only, or nil beyond the end of the disk.
func (m *Map) GroupOf(index ukai.Index) *Group {
	g, _ := m.RunOf(index)
	return g
}

// RunOf is GroupOf, and also returns the first index after the run: the blocks up to there have the same group.
func (m *Map) RunOf(index ukai.Index) (*Group, ukai.Index) {
	lo, hi := 0, len(m.ends)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if m.ends[mid] > index {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == len(m.ends) {
		return nil, 0
	}
	return m.groups[lo], m.ends[lo]
}
