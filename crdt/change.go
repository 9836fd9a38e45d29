package crdt

import (
	"fmt"
	"slices"
	"time"

	"ukai"
)

// The methods in this file are how a node changes the catalog. Each checks what it is asked to write, merges it and
// returns what to tell the others: an empty Delta if nothing changed, because it was so already or because a later write
// is known. Stamps must come from this node's Clock, after it has observed Newest.

// PutNode records what a node says of itself. Only that node calls it, with a Seq larger than ever before.
func (c *Catalog) PutNode(id ukai.NodeID, info NodeInfo) (Delta, error) {
	if info.Seq == 0 {
		return Delta{}, fmt.Errorf("node %v: %w: the first Seq is 1", id, ukai.ErrInvalid)
	}
	if e, ok := c.nodes[id]; ok && (info.Seq < e.Info.Seq || info.Seq == e.Info.Seq && hashEntry(KindNode, info) != hashEntry(KindNode, e.Info)) {
		return Delta{}, fmt.Errorf("node %s: %w: Seq %d, but %d was published before", info.Name, ukai.ErrInvalid, info.Seq, e.Info.Seq)
	}
	return c.putNode(Node{ID: id, Info: info})
}

// SetLabel sets a label of any node, or removes it if value is nil. The error matches ukai.ErrNotFound if the catalog
// does not know the node.
func (c *Catalog) SetLabel(id ukai.NodeID, key string, value *string, stamp Stamp) (Delta, error) {
	e, err := c.node(id)
	if err != nil {
		return Delta{}, err
	}
	reg, had := e.Labels[key]
	switch live := len(e.LabelSet()); {
	case !had && value == nil:
		return Delta{}, nil
	case value != nil && reg.Value == nil && live >= ukai.MaxLabels:
		return Delta{}, fmt.Errorf("label %s: %w: node %s has %d labels, at most %d: remove one first", key, ukai.ErrInvalid, e.Info.Name, live, ukai.MaxLabels)
	case !had && len(e.Labels) >= maxLabelsEver:
		return Delta{}, fmt.Errorf("label %s: %w: node %s had %d different label keys in its life, at most %d: use one of those", key, ukai.ErrInvalid, e.Info.Name, len(e.Labels), maxLabelsEver)
	}
	if value != nil {
		own := *value // the caller keeps its variable
		value = &own
	}
	return c.putNode(Node{ID: id, Labels: map[string]Register[*string]{key: {Stamp: stamp, Value: value}}})
}

// SetRole gives a role to any node, or takes it away. The error matches ukai.ErrNotFound if the catalog does not know
// the node.
func (c *Catalog) SetRole(id ukai.NodeID, role NodeRole, on bool, stamp Stamp) (Delta, error) {
	if _, err := c.node(id); err != nil {
		return Delta{}, err
	}
	n := Node{ID: id}
	reg := n.role(role)
	if reg == nil {
		return Delta{}, checkWord("role", nodeRoleWords, role)
	}
	*reg = Register[bool]{Stamp: stamp, Value: on}
	return c.putNode(n)
}

// Retire marks a node as gone for good: it holds no replica and no arbiter's seat any more, and its id never comes back.
// The error matches ukai.ErrNotFound if the catalog does not know the node.
func (c *Catalog) Retire(id ukai.NodeID) (Delta, error) {
	if _, err := c.node(id); err != nil {
		return Delta{}, err
	}
	return c.putNode(Node{ID: id, Retired: true})
}

func (c *Catalog) putNode(n Node) (Delta, error) {
	if err := n.check(); err != nil {
		return Delta{}, err
	}
	return c.put(Delta{nodes: []Node{n}})
}

// CreateDisk makes a new disk known, after its arbiters have stored rec. The error matches ukai.ErrExists if a live disk
// has the name, as far as this node knows; other nodes may give it away at the same moment.
func (c *Catalog) CreateDisk(born Born, rule string, rec Record) (Delta, error) {
	if err := c.checkFree(born.Name, rec.Disk); err != nil {
		return Delta{}, err
	}
	data, err := rec.Encode()
	if err != nil {
		return Delta{}, err
	}
	return c.putDisk(diskFields{
		id: rec.Disk, born: born, name: Register[string]{Stamp: born.Stamp, Value: born.Name},
		rule: Register[string]{Stamp: born.Stamp, Value: rule}, view: []packed{packed(data)},
	})
}

// RenameDisk gives a disk another name. Errors match ukai.ErrNotFound or ukai.ErrExists.
func (c *Catalog) RenameDisk(id ukai.DiskID, name string, stamp Stamp) (Delta, error) {
	e, err := c.disk(id)
	if err != nil {
		return Delta{}, err
	}
	if !e.removed.Value {
		if err := c.checkFree(name, id); err != nil {
			return Delta{}, err
		}
	}
	return c.putDisk(diskFields{id: id, name: Register[string]{Stamp: stamp, Value: name}})
}

// SetRule sets the text of a disk's placement rule, which the caller has parsed. Errors match ukai.ErrNotFound.
func (c *Catalog) SetRule(id ukai.DiskID, rule string, stamp Stamp) (Delta, error) {
	if _, err := c.disk(id); err != nil {
		return Delta{}, err
	}
	return c.putDisk(diskFields{id: id, rule: Register[string]{Stamp: stamp, Value: rule}})
}

// SetPolicy sets one of a disk's policies, which the caller has checked. Errors match ukai.ErrNotFound.
func (c *Catalog) SetPolicy(id ukai.DiskID, key, value string, stamp Stamp) (Delta, error) {
	e, err := c.disk(id)
	if err != nil {
		return Delta{}, err
	}
	if len(e.policy) >= maxPolicies && !slices.ContainsFunc(e.policy, func(p policyField) bool { return p.Key == key }) {
		return Delta{}, fmt.Errorf("policy %s: %w: disk %s has %d different ones, at most %d", key, ukai.ErrInvalid, e.name.Value, len(e.policy), maxPolicies)
	}
	return c.putDisk(diskFields{id: id, policy: []policyField{{key, Register[string]{Stamp: stamp, Value: value}}}})
}

// SetRemoved hides a disk from users, or restores it. Errors match ukai.ErrNotFound, or ukai.ErrExists if the name of a
// disk that is to be restored has been given to another.
func (c *Catalog) SetRemoved(id ukai.DiskID, removed bool, stamp Stamp) (Delta, error) {
	e, err := c.disk(id)
	if err != nil {
		return Delta{}, err
	}
	if !removed {
		if err := c.checkFree(e.name.Value, id); err != nil {
			return Delta{}, err
		}
	}
	return c.putDisk(diskFields{id: id, removed: Register[bool]{Stamp: stamp, Value: removed}})
}

// PutRecord records what a disk's arbiters committed. The error matches ukai.ErrCorrupt if the catalog knows the same
// commit with other content.
func (c *Catalog) PutRecord(rec Record) (Delta, error) {
	data, err := rec.Encode()
	if err != nil {
		return Delta{}, err
	}
	return c.putDisk(diskFields{id: rec.Disk, view: []packed{packed(data)}})
}

func (c *Catalog) putDisk(f diskFields) (Delta, error) {
	if err := f.check(); err != nil {
		return Delta{}, err
	}
	return c.put(Delta{disks: []diskFields{f}})
}

// checkFree says whether a live disk other than id has this name.
func (c *Catalog) checkFree(name string, id ukai.DiskID) error {
	for e := c.byName[name]; e != nil; e = e.next {
		if e.id != id && !e.removed.Value {
			return fmt.Errorf("disk %s: %w: disk %v has this name: choose another", name, ukai.ErrExists, e.id)
		}
	}
	return nil
}

// SetSetting sets a mesh-wide setting, or takes it back if value is nil.
func (c *Catalog) SetSetting(name string, value *string, stamp Stamp) (Delta, error) {
	if value != nil {
		own := *value // the caller keeps its variable
		value = &own
	}
	s := setting{name, Register[*string]{Stamp: stamp, Value: value}}
	if err := s.check(); err != nil {
		return Delta{}, err
	}
	return c.put(Delta{settings: []setting{s}})
}

// put merges a delta of one checked entry and returns it, or an empty one if that changed nothing.
func (c *Catalog) put(d Delta) (Delta, error) {
	changed, err := c.Merge(d, time.Time{})
	if len(changed) == 0 {
		return Delta{}, err
	}
	return d, err
}
