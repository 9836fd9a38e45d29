package crdt

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"slices"

	"ukai"
)

// Catalog is one node's copy of what all nodes know: nodes, disks, and the settings of the mesh. It changes only by
// merging deltas. It is not safe for concurrent use; package gossip guards it.
type Catalog struct {
	nodes          map[ukai.NodeID]*nodeEntry
	disks          map[ukai.DiskID]*diskEntry
	settings       map[string]*settingEntry
	byName         map[string]*diskEntry // the first of the disks with this name that are not deleted; the others follow by next
	digest         Digest
	newest         Stamp
	contradictions uint64
}

type nodeEntry struct {
	Node
	version uint64
}

type diskEntry struct {
	diskFields
	version uint64
	next    *diskEntry // with the same name
	deleted bool
}

type settingEntry struct {
	value   Register[*string]
	version uint64
}

// NewCatalog returns an empty catalog.
func NewCatalog() *Catalog {
	return &Catalog{
		nodes: map[ukai.NodeID]*nodeEntry{}, disks: map[ukai.DiskID]*diskEntry{},
		settings: map[string]*settingEntry{}, byName: map[string]*diskEntry{},
	}
}

// Node returns what is known of a node. The copy belongs to the caller; the bytes that its slices and pointers lead to
// are to be read only.
func (c *Catalog) Node(id ukai.NodeID) (*Node, bool) {
	e, ok := c.nodes[id]
	if !ok {
		return nil, false
	}
	n := e.clone()
	return &n, true
}

// Nodes walks over all nodes, retired ones too, ordered by id. The catalog must not change meanwhile.
func (c *Catalog) Nodes() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		ids := slices.SortedFunc(maps.Keys(c.nodes), func(x, y ukai.NodeID) int { return bytes.Compare(x[:], y[:]) })
		for _, id := range ids {
			if n, _ := c.Node(id); !yield(n) {
				return
			}
		}
	}
}

// NodesByName returns the nodes with this name that are not retired, ordered by id. Names should be unique, but nothing
// can prevent two machines from being given the same one.
func (c *Catalog) NodesByName(name string) []*Node {
	var nodes []*Node
	for n := range c.Nodes() {
		if n.Info.Name == name && !n.Retired {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Disk returns what is known of a disk, deleted or not. The copy belongs to the caller. Its records are decoded anew by
// each call; keep a Map for the data path.
func (c *Catalog) Disk(id ukai.DiskID) (*Disk, bool) {
	e, ok := c.disks[id]
	if !ok {
		return nil, false
	}
	return e.disk(), true
}

// Disks walks over all disks, removed and deleted ones too, ordered by id. The catalog must not change meanwhile.
func (c *Catalog) Disks() iter.Seq[*Disk] {
	return func(yield func(*Disk) bool) {
		ids := slices.SortedFunc(maps.Keys(c.disks), func(x, y ukai.DiskID) int { return bytes.Compare(x[:], y[:]) })
		for _, id := range ids {
			if !yield(c.disks[id].disk()) {
				return
			}
		}
	}
}

// DisksByName returns the live disks with this name, ordered by id: normally one or none. With two the name is
// ambiguous, and opening it must fail until an administrator has renamed one.
func (c *Catalog) DisksByName(name string) []*Disk {
	return c.named(name, func(e *diskEntry) bool { return !e.removed.Value })
}

// RemovedByName returns the removed disks that had this name when they were removed and that can still be restored,
// ordered by id.
func (c *Catalog) RemovedByName(name string) []*Disk {
	return c.named(name, func(e *diskEntry) bool { return e.removed.Value })
}

func (c *Catalog) named(name string, want func(*diskEntry) bool) []*Disk {
	var disks []*Disk
	for e := c.byName[name]; e != nil; e = e.next {
		if want(e) {
			disks = append(disks, e.disk())
		}
	}
	slices.SortFunc(disks, func(x, y *Disk) int { return bytes.Compare(x.ID[:], y.ID[:]) })
	return disks
}

// DiskNames walks over the names of all live disks, ordered by name and then id, without decoding any record.
func (c *Catalog) DiskNames() iter.Seq2[string, ukai.DiskID] {
	return func(yield func(string, ukai.DiskID) bool) {
		for _, name := range sortedKeys(c.byName) {
			var ids []ukai.DiskID
			for e := c.byName[name]; e != nil; e = e.next {
				if !e.removed.Value {
					ids = append(ids, e.id)
				}
			}
			slices.SortFunc(ids, func(x, y ukai.DiskID) int { return bytes.Compare(x[:], y[:]) })
			for _, id := range ids {
				if !yield(name, id) {
					return
				}
			}
		}
	}
}

// Setting returns a mesh-wide setting, and whether it is set.
func (c *Catalog) Setting(name string) (string, bool) {
	if e, ok := c.settings[name]; ok && e.value.Value != nil {
		return *e.value.Value, true
	}
	return "", false
}

// Settings walks over the mesh-wide settings that are set, ordered by name.
func (c *Catalog) Settings() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, name := range sortedKeys(c.settings) {
			if v := c.settings[name].value.Value; v != nil && !yield(name, *v) {
				return
			}
		}
	}
}

// Newest returns the largest stamp in the catalog. A clock that observes it makes stamps that win over all that this
// node has seen.
func (c *Catalog) Newest() Stamp { return c.newest }

// Contradictions returns how often a record was merged that is the same commit as a known one but differs in content. It
// is never anything but the sign of a fault.
func (c *Catalog) Contradictions() uint64 { return c.contradictions }

// Extract returns the whole entries with these keys, without those that the catalog does not have.
func (c *Catalog) Extract(keys []Key) Delta {
	keys = slices.Clone(keys)
	slices.SortFunc(keys, Key.Compare)
	var d Delta
	for _, k := range slices.Compact(keys) {
		switch k.Kind {
		case KindNode:
			if e, ok := c.nodes[k.ID]; ok {
				d.nodes = append(d.nodes, e.clone())
			}
		case KindDisk:
			if e, ok := c.disks[k.ID]; ok {
				d.disks = append(d.disks, e.diskFields)
			}
		case KindSetting:
			if e, ok := c.settings[k.Name]; ok {
				d.settings = append(d.settings, setting{k.Name, e.value})
			}
		}
	}
	return d
}

// nameOf returns how to call a node in errors, "" if its name is not known.
func (c *Catalog) nameOf(id ukai.NodeID) string {
	if e, ok := c.nodes[id]; ok {
		return e.Info.Name
	}
	return ""
}

func (c *Catalog) node(id ukai.NodeID) (*nodeEntry, error) {
	if e, ok := c.nodes[id]; ok {
		return e, nil
	}
	return nil, fmt.Errorf("node %v: %w: the mesh knows no node with this id", id, ukai.ErrNotFound)
}

// disk returns the entry of a disk that administrators can still do something with.
func (c *Catalog) disk(id ukai.DiskID) (*diskEntry, error) {
	e, ok := c.disks[id]
	switch {
	case !ok:
		return nil, fmt.Errorf("disk %v: %w: the mesh knows no disk with this id", id, ukai.ErrNotFound)
	case e.deleted:
		return nil, fmt.Errorf("disk %s: %w: it was deleted for good", e.name.Value, ukai.ErrNotFound)
	}
	return e, nil
}
