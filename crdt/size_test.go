package crdt

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"ukai"
)

// usualDisk is the delta that creates disk i of a large mesh.
func usualDisk(tb testing.TB, i int) Delta {
	rec := usualRecord(diskID(i))
	for m := range rec.Groups[0].Members {
		rec.Groups[0].Members[m].Node = nodeID(1 + (i+m)%100)
	}
	data, err := rec.Encode()
	if err != nil {
		tb.Fatal(err)
	}
	stamp := Stamp{Wall: noon.UnixMilli() + int64(i), Node: nodeID(1)}
	name := fmt.Sprintf("vm-%06d", i)
	return Delta{disks: []diskFields{{
		id: rec.Disk, born: Born{Creator: nodeID(1), Stamp: stamp, Name: name}, name: Register[string]{stamp, name},
		rule: Register[string]{stamp, fmt.Sprintf("dc=tokyo:2 dc=osaka:%d", 1)}, view: []packed{packed(data)},
	}}}
}

// fillFromWire merges n disks as they come from peers: every string is a piece of memory of its own.
func fillFromWire(tb testing.TB, n int) *Catalog {
	c := NewCatalog()
	for i := range n {
		data, err := usualDisk(tb, i).MarshalBinary()
		if err != nil {
			tb.Fatal(err)
		}
		d, err := UnmarshalDelta(data)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := c.Merge(d, time.Time{}); err != nil {
			tb.Fatal(err)
		}
	}
	return c
}

func TestTenThousandDisksTakeLessThanTenMegabytes(t *testing.T) {
	const disks, limit = 10_000, 10 << 20
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	c := fillFromWire(t, disks)
	used := heap() - before
	t.Logf("%d disks: %.1f MB, %d bytes each", disks, float64(used)/(1<<20), used/disks)
	if used > limit {
		t.Errorf("%d disks take %d bytes, more than %d", disks, used, limit)
	}
	if got := c.DisksByName("vm-000777"); len(got) != 1 || got[0].ID != diskID(777) {
		t.Errorf("vm-000777 is %v", got)
	}
}

func TestReconciliationTransfersOnlyWhatDiffers(t *testing.T) {
	const disks, changed = 3000, 20
	a, b := NewCatalog(), NewCatalog()
	for i := range disks {
		d := usualDisk(t, i)
		a.mergeChecked(d)
		b.mergeChecked(d)
	}
	var want []Key
	for i := range changed {
		rec := usualRecord(diskID(i * 100))
		rec.Version++
		if _, err := a.PutRecord(rec); err != nil {
			t.Fatal(err)
		}
		want = append(want, DiskKey(rec.Disk))
	}
	buckets := b.Digest().Differing(a.Digest())
	if len(buckets) == 0 || len(buckets) > changed {
		t.Fatalf("%d changes are in %d buckets", changed, len(buckets))
	}
	list := a.Buckets(buckets)
	if len(list) > changed*4*disks/Buckets {
		t.Errorf("%d buckets list %d entries, far more than their share of %d", len(buckets), len(list), disks)
	}
	for _, i := range buckets {
		for _, kv := range a.Bucket(i) {
			if !slices.Contains(list, kv) {
				t.Errorf("bucket %d has %v, Buckets has not", i, kv.Key)
			}
		}
	}
	if got := b.Missing(list); !slices.Equal(got, want) {
		t.Fatalf("missing %v, want %v", got, want)
	}
	b.mergeChecked(a.Extract(want))
	if a.Digest() != b.Digest() {
		t.Error("the catalogs differ after the transfer")
	}
}

// TestHundredThousandDisks: lookups by name and by bucket stay what they are with few.
func TestHundredThousandDisks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second or two")
	}
	const disks = 100_000
	c := NewCatalog()
	for i := range disks {
		c.mergeChecked(usualDisk(t, i))
	}
	before := c.Digest()
	rec := usualRecord(diskID(4711))
	rec.Version++
	if _, err := c.PutRecord(rec); err != nil {
		t.Fatal(err)
	}
	buckets := before.Differing(c.Digest())
	if len(buckets) != 1 || buckets[0] != DiskKey(rec.Disk).Bucket() {
		t.Fatalf("one change is in buckets %v", buckets)
	}
	if n := len(c.Buckets(buckets)); n > 3*disks/Buckets {
		t.Errorf("the bucket has %d entries, far more than the average of %d", n, disks/Buckets)
	}
	if got := c.DisksByName("vm-099999"); len(got) != 1 || got[0].ID != diskID(99999) {
		t.Errorf("vm-099999 is %v", got)
	}
	names := 0
	for range c.DiskNames() {
		names++
	}
	if names != disks {
		t.Errorf("%d names", names)
	}
}

func FuzzUnmarshalDelta(f *testing.F) {
	dc := "tokyo"
	s := Stamp{Wall: 1, Logical: 2, Node: nodeID(1)}
	node := Node{
		ID: nodeID(1), Info: NodeInfo{Seq: 1, Boot: 2, Name: "t1", Addr: "[::1]:7946", PublicKey: []byte{1}, Coordinate: []byte{2}},
		Labels: map[string]Register[*string]{"dc": {s, &dc}, "rack": {s, nil}}, Retired: true, Boot: 3, Drain: Register[bool]{s, true},
	}
	disk := usualDisk(f, 1).disks[0]
	disk.policy, disk.removed, disk.buried = []policyField{{"rpo", Register[string]{s, "60s"}}}, Register[bool]{s, true}, s
	whole := Delta{nodes: []Node{node}, disks: []diskFields{disk}, settings: []setting{{"default-rule", Register[*string]{s, &dc}}}}
	for _, d := range append(whole.Split(0), whole, Delta{}) {
		data, err := d.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := UnmarshalDelta(data)
		if err != nil {
			if !errors.Is(err, ukai.ErrCorrupt) {
				t.Fatalf("error %v is not ErrCorrupt", err)
			}
			return
		}
		out, err := d.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		back, err := UnmarshalDelta(out)
		if err != nil {
			t.Fatalf("does not survive a round trip: %v", err)
		}
		if again, _ := back.MarshalBinary(); !bytes.Equal(again, out) {
			t.Fatal("the bytes of a delta are not stable")
		}
		c := NewCatalog()
		_, _ = c.Merge(d, noon) // stamps may be ahead; what is merged must be sound all the same
		checkIndexes(t, c)
		want := merged(d)
		if split := merged(back.Split(100)...); state(t, split) != state(t, want) {
			t.Fatal("parts do not say what the whole says")
		}
	})
}

func BenchmarkMerge(b *testing.B) {
	c := fillFromWire(b, 10_000)
	rec := usualRecord(diskID(4711))
	b.Run("new commit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			rec.Version++
			data, err := rec.encode()
			if err != nil {
				b.Fatal(err)
			}
			c.mergeChecked(Delta{disks: []diskFields{{id: rec.Disk, view: []packed{packed(data)}}}})
		}
	})
	b.Run("known", func(b *testing.B) {
		d := c.Extract([]Key{DiskKey(rec.Disk)})
		b.ReportAllocs()
		for b.Loop() {
			c.mergeChecked(d)
		}
	})
}

func BenchmarkUnmarshalDelta(b *testing.B) {
	data, err := usualDisk(b, 1).MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := UnmarshalDelta(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDisksByName(b *testing.B) {
	c := fillFromWire(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		if len(c.DisksByName("vm-000777")) != 1 {
			b.Fatal("not found")
		}
	}
}
