package crdt

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"

	"ukai"
)

// Buckets is the number of buckets that a Digest divides the entries into.
const Buckets = 1024

// Digest sums up a catalog: per bucket the XOR of the versions of its entries. Catalogs with equal digests are equal.
type Digest [Buckets]uint64

// KeyVersion is the key of an entry together with its version, a hash of all that the entry says. Versions tell whether
// two entries are equal, not which is newer: entries merge both ways.
type KeyVersion struct {
	Key     Key    `cbor:"1,keyasint"`
	Version uint64 `cbor:"2,keyasint"`
}

// Bucket returns the bucket that an entry belongs to.
func (k Key) Bucket() int {
	h := fnv.New32a()
	_, _ = h.Write([]byte{byte(k.Kind)}) // a hash never fails
	_, _ = h.Write(k.ID[:])
	_, _ = h.Write([]byte(k.Name))
	return int(h.Sum32() % Buckets)
}

// MarshalBinary returns the 8 KiB that stand for the catalog in a push/pull.
func (d Digest) MarshalBinary() ([]byte, error) {
	data := make([]byte, 0, 8*Buckets)
	for _, sum := range d {
		data = binary.BigEndian.AppendUint64(data, sum)
	}
	return data, nil
}

// UnmarshalBinary reads what MarshalBinary made. Errors match ukai.ErrCorrupt.
func (d *Digest) UnmarshalBinary(data []byte) error {
	if len(data) != 8*Buckets {
		return fmt.Errorf("digest: %w: %d bytes, want %d", ukai.ErrCorrupt, len(data), 8*Buckets)
	}
	for i := range d {
		d[i] = binary.BigEndian.Uint64(data[8*i:])
	}
	return nil
}

// Differing returns the buckets in which the two catalogs are not equal.
func (d Digest) Differing(other Digest) []int {
	var buckets []int
	for i := range d {
		if d[i] != other[i] {
			buckets = append(buckets, i)
		}
	}
	return buckets
}

// Digest returns the catalog's digest. It is kept up to date by each change, so this only copies it.
func (c *Catalog) Digest() Digest { return c.digest }

// Bucket returns the entries of one bucket, sorted by key. For more than one, Buckets is faster.
func (c *Catalog) Bucket(i int) []KeyVersion { return c.Buckets([]int{i}) }

// Buckets returns the entries of these buckets, sorted by key, in one walk over the catalog.
func (c *Catalog) Buckets(buckets []int) []KeyVersion {
	var wanted [Buckets]bool
	for _, i := range buckets {
		if i >= 0 && i < Buckets {
			wanted[i] = true
		}
	}
	var list []KeyVersion
	c.versions(func(kv KeyVersion) {
		if wanted[kv.Key.Bucket()] {
			list = append(list, kv)
		}
	})
	slices.SortFunc(list, func(x, y KeyVersion) int { return x.Key.Compare(y.Key) })
	return list
}

// Missing returns the keys of theirs of which this catalog has no entry or another version: what to ask them for.
func (c *Catalog) Missing(theirs []KeyVersion) []Key {
	var keys []Key
	for _, kv := range theirs {
		if version, ok := c.version(kv.Key); !ok || version != kv.Version {
			keys = append(keys, kv.Key)
		}
	}
	return keys
}

// versions calls f for every entry, in no order.
func (c *Catalog) versions(f func(KeyVersion)) {
	for id, e := range c.nodes {
		f(KeyVersion{NodeKey(id), e.version})
	}
	for id, e := range c.disks {
		f(KeyVersion{DiskKey(id), e.version})
	}
	for name, e := range c.settings {
		f(KeyVersion{SettingKey(name), e.version})
	}
}

func (c *Catalog) version(k Key) (version uint64, ok bool) {
	switch k.Kind {
	case KindNode:
		if e, ok := c.nodes[k.ID]; ok {
			return e.version, true
		}
	case KindDisk:
		if e, ok := c.disks[k.ID]; ok {
			return e.version, true
		}
	case KindSetting:
		if e, ok := c.settings[k.Name]; ok {
			return e.version, true
		}
	}
	return 0, false
}

func (c *Catalog) keys() []Key {
	keys := make([]Key, 0, len(c.nodes)+len(c.disks)+len(c.settings))
	c.versions(func(kv KeyVersion) { keys = append(keys, kv.Key) })
	slices.SortFunc(keys, Key.Compare)
	return keys
}
