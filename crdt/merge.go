package crdt

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"ukai"
)

// Merge joins d into the catalog and returns the keys of the entries that changed, sorted.
//
// An entry with a stamp more than MaxSkew ahead of wall is refused as a whole, and so is not part of the catalog until
// somebody sends it again; the zero wall refuses nothing. The error then matches ukai.ErrClockSkew and holds an
// *ukai.NodeError per node that made such stamps. If d has another record for a commit that the catalog knows, the one
// with the smaller encoding is kept and the error matches ukai.ErrCorrupt. With either error the rest of d is merged.
func (c *Catalog) Merge(d Delta, wall time.Time) (changed []Key, err error) {
	var faults mergeFaults
	for i := range d.nodes {
		n := &d.nodes[i]
		if c.refused(n.stamps, wall, &faults) {
			continue
		}
		if c.mergeNode(n) {
			changed = append(changed, NodeKey(n.ID))
		}
	}
	for i := range d.disks {
		f := &d.disks[i]
		if c.refused(f.stamps, wall, &faults) {
			continue
		}
		diskChanged, differing := c.mergeDisk(f)
		if diskChanged {
			changed = append(changed, DiskKey(f.id))
		}
		for _, p := range differing {
			faults.others = append(faults.others, fmt.Errorf("disk %v: %w: two records of commit %v differ", f.id, ukai.ErrCorrupt, p.head().point()))
		}
	}
	for i := range d.settings {
		s := &d.settings[i]
		if c.refused(s.stamps, wall, &faults) {
			continue
		}
		if c.mergeSetting(s) {
			changed = append(changed, SettingKey(s.Name))
		}
	}
	return changed, faults.join(c)
}

// mergeChecked is Merge for a delta that was in a catalog already.
func (c *Catalog) mergeChecked(d Delta) { _, _ = c.Merge(d, time.Time{}) }

func (s *setting) stamps(f func(Stamp) error) error { return f(s.Value.Stamp) }

// mergeFaults gathers what was wrong with a delta: one line per node with a fast clock, however many entries it wrote.
type mergeFaults struct {
	fast   []*ukai.NodeError
	others []error
}

// skew keeps the first complaint about each node.
func (m *mergeFaults) skew(err error) {
	var peer *ukai.NodeError
	if !errors.As(err, &peer) || slices.ContainsFunc(m.fast, func(known *ukai.NodeError) bool { return known.Node == peer.Node }) {
		return
	}
	m.fast = append(m.fast, peer)
}

func (m *mergeFaults) join(c *Catalog) error {
	errs := m.others
	for _, peer := range m.fast {
		peer.Name = c.nameOf(peer.Node)
		errs = append(errs, peer)
	}
	return errors.Join(errs...)
}

func (c *Catalog) mergeNode(d *Node) bool {
	e, known := c.nodes[d.ID]
	if !known {
		e = &nodeEntry{Node: Node{ID: d.ID}}
	}
	if !e.merge(d) {
		return false
	}
	c.nodes[d.ID] = e
	c.setVersion(NodeKey(d.ID), &e.version, hashEntry(KindNode, &e.Node))
	return true
}

func (c *Catalog) mergeDisk(d *diskFields) (changed bool, differing []packed) {
	e, known := c.disks[d.id]
	if !known {
		e = &diskEntry{diskFields: diskFields{id: d.id}}
	}
	name, listed := e.name.Value, known && !e.deleted
	changed, differing = e.merge(d)
	c.contradictions += uint64(len(differing))
	if !changed {
		return false, differing
	}
	c.disks[d.id] = e
	e.deleted = e.isDeleted()
	if list := !e.deleted; list != listed || e.name.Value != name {
		if listed {
			c.unlist(e, name)
		}
		if list {
			c.list(e)
		}
	}
	c.setVersion(DiskKey(d.id), &e.version, hashEntry(KindDisk, e.wire()))
	return true, differing
}

func (c *Catalog) mergeSetting(d *setting) bool {
	e, known := c.settings[d.Name]
	if !known {
		e = &settingEntry{}
	}
	if !e.value.Merge(d.Value) {
		return false
	}
	c.settings[d.Name] = e
	c.setVersion(SettingKey(d.Name), &e.version, hashEntry(KindSetting, &setting{d.Name, e.value}))
	return true
}

// refused says whether an entry has a stamp that is too far ahead of wall, and notes why. If not, it keeps the newest.
func (c *Catalog) refused(stamps func(func(Stamp) error) error, wall time.Time, faults *mergeFaults) bool {
	newest := c.newest
	err := stamps(func(s Stamp) error {
		if newest.Less(s) {
			newest = s
		}
		return s.checkSkew(wall)
	})
	if err != nil {
		faults.skew(err)
		return true
	}
	c.newest = newest
	return false
}

// setVersion replaces the version of an entry, 0 for one that was not there, in the digest too.
func (c *Catalog) setVersion(k Key, version *uint64, now uint64) {
	c.digest[k.Bucket()] ^= *version ^ now
	*version = now
}

// list makes the disk known under its name; a disk whose name has not arrived yet has none.
func (c *Catalog) list(e *diskEntry) {
	if e.name.IsZero() {
		return
	}
	e.next = c.byName[e.name.Value]
	c.byName[e.name.Value] = e
}

// unlist takes the disk out of those with a name, if it is among them.
func (c *Catalog) unlist(e *diskEntry, name string) {
	first := c.byName[name]
	if first == e {
		if e.next == nil {
			delete(c.byName, name)
		} else {
			c.byName[name] = e.next
		}
	}
	for ; first != nil; first = first.next {
		if first.next == e {
			first.next = e.next
			break
		}
	}
	e.next = nil
}
