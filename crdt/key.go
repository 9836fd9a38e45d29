package crdt

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"ukai"
)

// Kind says what a Key names.
type Kind uint8

// Kinds of entries of the catalog.
const (
	KindNode Kind = iota + 1
	KindDisk
	KindSetting
)

// Key names one entry of the catalog: the unit that digests compare and that journals store.
type Key struct {
	Kind Kind     `cbor:"1,keyasint"`
	ID   [16]byte `cbor:"2,keyasint,omitzero"`  // of a node or disk
	Name string   `cbor:"3,keyasint,omitempty"` // of a setting
}

// NodeKey returns the key of a node's entry.
func NodeKey(id ukai.NodeID) Key { return Key{Kind: KindNode, ID: id} }

// DiskKey returns the key of a disk's entry.
func DiskKey(id ukai.DiskID) Key { return Key{Kind: KindDisk, ID: id} }

// SettingKey returns the key of a setting of the mesh.
func SettingKey(name string) Key { return Key{Kind: KindSetting, Name: name} }

// Compare orders keys by kind, then id, then name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), bytes.Compare(k.ID[:], o.ID[:]), strings.Compare(k.Name, o.Name))
}

// String returns "n/ID", "d/ID" or "s/NAME". Different keys have different strings, which ParseKey reads.
func (k Key) String() string {
	switch k.Kind {
	case KindNode:
		return "n/" + hex.EncodeToString(k.ID[:])
	case KindDisk:
		return "d/" + hex.EncodeToString(k.ID[:])
	case KindSetting:
		return "s/" + k.Name
	}
	return fmt.Sprintf("%d/%x/%s", k.Kind, k.ID, k.Name)
}

// ParseKey reads what String made.
func ParseKey(s string) (Key, error) {
	kind, rest, _ := strings.Cut(s, "/")
	switch kind {
	case "n":
		id, err := ukai.ParseNodeID(rest)
		return NodeKey(id), err
	case "d":
		id, err := ukai.ParseDiskID(rest)
		return DiskKey(id), err
	case "s":
		return SettingKey(rest), ukai.CheckName("setting", rest)
	}
	return Key{}, fmt.Errorf("catalog key %q: %w: want n/ID, d/ID or s/NAME", s, ukai.ErrInvalid)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
