package crdt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"ukai"
	"ukai/crdt/codec"
)

// Limits on what the catalog keeps of a node.
const (
	maxAddrLen       = 255
	maxVersionLen    = 64
	maxPublicKeyLen  = 128
	maxCoordinateLen = 512
	maxPullLen       = 2*ukai.MaxLabelLen + 1
	// maxLabelsEver bounds the label keys that a node has or had: a removed label leaves a small entry behind.
	maxLabelsEver = 256
	// maxLabelsDecoded is looser, because nodes that do not see each other may add labels to the same node.
	maxLabelsDecoded = 4096
)

// MaxPulls bounds the links with a budget that a node copies over at a time.
const MaxPulls = 64

// NodeInfo is what a node says of itself. It has one writer, the node; the larger Seq wins.
type NodeInfo struct {
	Seq           uint64 `cbor:"1,keyasint" json:"seq"`  // +1 per publication, durable; 0 means that nothing is known
	Boot          uint64 `cbor:"2,keyasint" json:"boot"` // +1 per start of the node, durable
	Name          string `cbor:"3,keyasint" json:"name"`
	Addr          string `cbor:"4,keyasint,omitempty" json:"addr"` // host:port
	Version       string `cbor:"5,keyasint,omitempty" json:"version"`
	PublicKey     []byte `cbor:"6,keyasint,omitempty" json:"publicKey,omitempty"`
	CapacityBytes int64  `cbor:"7,keyasint" json:"capacityBytes"`
	FreeBytes     int64  `cbor:"8,keyasint" json:"freeBytes"`
	ReserveBytes  int64  `cbor:"9,keyasint" json:"reserveBytes"`
	Witness       bool   `cbor:"10,keyasint,omitempty" json:"witness"`              // the node was started to store no blocks
	Coordinate    []byte `cbor:"11,keyasint,omitempty" json:"coordinate,omitempty"` // network coordinate, opaque here
	Started       int64  `cbor:"12,keyasint,omitempty" json:"started"`              // milliseconds since 1970
	// CaughtUp says that this node has every change that any node had in its catalog at this time (milliseconds since
	// 1970): since then it has compared catalogs with each node that is not retired. Tombstones wait for it, see Sweep.
	CaughtUp int64 `cbor:"13,keyasint,omitempty" json:"caughtUp,omitempty"`
	// Pulls names the links with a budget over which this node copies now; nodes that name the same one share it.
	Pulls []string `cbor:"14,keyasint,omitempty" json:"pulls,omitempty"`
}

// IsZero says whether nothing is known.
func (i NodeInfo) IsZero() bool { return reflect.ValueOf(i).IsZero() }

// Node is what the catalog knows of a node.
type Node struct {
	ID      ukai.NodeID                  `cbor:"1,keyasint" json:"id"`
	Info    NodeInfo                     `cbor:"2,keyasint,omitzero" json:"info"`
	Labels  map[string]Register[*string] `cbor:"3,keyasint,omitempty" json:"labels,omitempty"` // nil value: removed
	Retired bool                         `cbor:"4,keyasint,omitempty" json:"retired"`          // for good
	Boot    uint64                       `cbor:"5,keyasint,omitempty" json:"boot"`             // the largest ever seen
	Drain   Register[bool]               `cbor:"6,keyasint,omitzero" json:"drain,omitzero"`    // move all data off
	NoNew   Register[bool]               `cbor:"7,keyasint,omitzero" json:"noNew,omitzero"`    // place nothing new here
	Witness Register[bool]               `cbor:"8,keyasint,omitzero" json:"witness,omitzero"`  // store no blocks, only vote
}

// NodeRole is one of the roles that an operator gives to a node.
type NodeRole uint8

// Roles of a node.
const (
	RoleDrain NodeRole = iota
	RoleNoNew
	RoleWitness
)

var nodeRoleWords = []string{"drain", "no-new", "witness"}

// String returns "drain", "no-new" or "witness".
func (r NodeRole) String() string { return word("role", nodeRoleWords, r) }

// MarshalText makes roles readable in JSON and YAML.
func (r NodeRole) MarshalText() ([]byte, error) { return marshalWord("role", nodeRoleWords, r) }

// UnmarshalText accepts what MarshalText made, which is also what the command line takes.
func (r *NodeRole) UnmarshalText(text []byte) error {
	return unmarshalWord("role", nodeRoleWords, text, r)
}

// LabelSet returns the labels that n has now.
func (n *Node) LabelSet() ukai.Labels {
	labels := make(ukai.Labels, len(n.Labels))
	for key, r := range n.Labels {
		if r.Value != nil {
			labels[key] = *r.Value
		}
	}
	return labels
}

// IsWitness says whether n stores no blocks, because it was started so or because an operator said so.
func (n *Node) IsWitness() bool { return n.Info.Witness || n.Witness.Value }

// role returns the register of a role, or nil if there is no such role.
func (n *Node) role(r NodeRole) *Register[bool] {
	switch r {
	case RoleDrain:
		return &n.Drain
	case RoleNoNew:
		return &n.NoNew
	case RoleWitness:
		return &n.Witness
	}
	return nil
}

// clone returns a copy that shares only what nobody changes: the bytes of keys, coordinates and label values.
func (n *Node) clone() Node {
	c := *n
	c.Labels = maps.Clone(n.Labels)
	return c
}

// merge joins what d says into n, and says whether that changed n.
func (n *Node) merge(d *Node) (changed bool) {
	if n.Info.olderThan(d.Info) {
		n.Info, changed = d.Info, true
	}
	if boot := max(d.Boot, d.Info.Boot); boot > n.Boot {
		n.Boot, changed = boot, true
	}
	if d.Retired && !n.Retired {
		n.Retired, changed = true, true
	}
	for key, theirs := range d.Labels {
		if ours := n.Labels[key]; ours.Merge(theirs) {
			if n.Labels == nil {
				n.Labels = map[string]Register[*string]{}
			}
			n.Labels[key], changed = ours, true
		}
	}
	changed = n.Drain.Merge(d.Drain) || changed
	changed = n.NoNew.Merge(d.NoNew) || changed
	return n.Witness.Merge(d.Witness) || changed
}

// olderThan orders by Seq. Two infos of one Seq, which only a rolled-back database can bring about, are settled by their
// bytes, so that all nodes settle alike.
func (i NodeInfo) olderThan(o NodeInfo) bool {
	if i.Seq != o.Seq || o.Seq == 0 {
		return i.Seq < o.Seq
	}
	p, errP := codec.Marshal(i)
	q, errQ := codec.Marshal(o)
	return errP == nil && errQ == nil && bytes.Compare(p, q) < 0
}

// stamps calls f with every stamp in n until f returns an error, and returns that.
func (n *Node) stamps(f func(Stamp) error) error {
	for _, s := range []Stamp{n.Drain.Stamp, n.NoNew.Stamp, n.Witness.Stamp} {
		if err := f(s); err != nil {
			return err
		}
	}
	for _, r := range n.Labels {
		if err := f(r.Stamp); err != nil {
			return err
		}
	}
	return nil
}

// check says what is wrong with n, a whole entry or a part of one, or nil.
func (n *Node) check() error {
	if n.ID.IsZero() {
		return invalid("node id", "must not be zero")
	}
	if err := n.Info.check(); err != nil {
		return fmt.Errorf("node %v: %w", n.ID, err)
	}
	if len(n.Labels) > maxLabelsDecoded {
		return invalid("node %v: %d labels", n.ID, len(n.Labels), fmt.Sprintf("at most %d", maxLabelsDecoded))
	}
	for key, r := range n.Labels {
		value := "removed"
		if r.Value != nil {
			value = *r.Value
		}
		if err := ukai.CheckLabel(key, value); err != nil {
			return fmt.Errorf("node %v: %w", n.ID, err)
		}
		if err := checkWritten("label "+key, r.Stamp); err != nil {
			return fmt.Errorf("node %v: %w", n.ID, err)
		}
	}
	for r := range NodeRole(len(nodeRoleWords)) {
		if reg := n.role(r); *reg != (Register[bool]{}) {
			if err := checkWritten("role "+r.String(), reg.Stamp); err != nil {
				return fmt.Errorf("node %v: %w", n.ID, err)
			}
		}
	}
	return nil
}

func (i *NodeInfo) check() error {
	if i.Seq == 0 {
		if !i.IsZero() {
			return invalid("Seq 0", "the first is 1")
		}
		return nil
	}
	if err := ukai.CheckName("node", i.Name); err != nil {
		return err
	}
	for _, f := range []struct {
		what     string
		len, max int
	}{
		{"address", len(i.Addr), maxAddrLen}, {"version", len(i.Version), maxVersionLen},
		{"public key", len(i.PublicKey), maxPublicKeyLen}, {"coordinate", len(i.Coordinate), maxCoordinateLen},
	} {
		if f.len > f.max {
			return invalid("%s of %d bytes", f.what, f.len, fmt.Sprintf("at most %d", f.max))
		}
	}
	if len(i.Pulls) > MaxPulls || slices.ContainsFunc(i.Pulls, func(p string) bool { return len(p) > maxPullLen }) {
		return invalid("%d links in use", len(i.Pulls), fmt.Sprintf("at most %d, of at most %d bytes", MaxPulls, maxPullLen))
	}
	if i.CapacityBytes < 0 || i.FreeBytes < 0 || i.ReserveBytes < 0 {
		return invalid("capacity %d, free %d, reserve %d", i.CapacityBytes, i.FreeBytes, i.ReserveBytes, "must not be negative")
	}
	return nil
}

// checkWritten refuses a value that no clock stamped: merging could not order it.
func checkWritten(what string, s Stamp) error {
	if s.IsZero() || s.Node.IsZero() {
		return invalid("%s, stamp %v", what, s, "must name a time and a node")
	}
	return nil
}

// fields returns the parts of n that merge independently, each as an entry of its own.
func (n *Node) fields() []Node {
	var parts []Node
	if n.Info.Seq != 0 {
		parts = append(parts, Node{ID: n.ID, Info: n.Info})
	}
	if rest := (Node{ID: n.ID, Retired: n.Retired, Boot: n.Boot, Drain: n.Drain, NoNew: n.NoNew, Witness: n.Witness}); !rest.isBottom() {
		parts = append(parts, rest)
	}
	for _, key := range sortedKeys(n.Labels) {
		parts = append(parts, Node{ID: n.ID, Labels: map[string]Register[*string]{key: n.Labels[key]}})
	}
	return parts
}

func (n *Node) isBottom() bool {
	return n.Info.Seq == 0 && len(n.Labels) == 0 && !n.Retired && n.Boot == 0 && n.Drain.IsZero() && n.NoNew.IsZero() && n.Witness.IsZero()
}

// hashEntry returns the version of an entry: a digest of its deterministic encoding. Kinds do not collide.
func hashEntry(kind Kind, entry any) uint64 {
	data, err := codec.Marshal(entry)
	if err != nil {
		panic(err) // entries consist of numbers, bytes, strings, lists and maps
	}
	h := sha256.New()
	_, _ = h.Write([]byte{byte(kind)}) // a hash never fails
	_, _ = h.Write(data)
	var sum [sha256.Size]byte
	return binary.BigEndian.Uint64(h.Sum(sum[:0]))
}
