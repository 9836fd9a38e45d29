package crdt

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ukai"
)

// state returns all that c knows, as bytes that are equal for equal catalogs.
func state(t interface{ Fatal(...any) }, c *Catalog) string {
	data, err := c.Extract(c.keys()).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func merged(deltas ...Delta) *Catalog {
	c := NewCatalog()
	for _, d := range deltas {
		c.mergeChecked(d)
	}
	return c
}

// drawStamp draws from few stamps, so that equal ones and all orders occur.
func drawStamp(t *rapid.T) Stamp {
	return Stamp{Wall: int64(rapid.IntRange(1, 3).Draw(t, "wall")), Logical: uint32(rapid.IntRange(0, 1).Draw(t, "logical")), Node: nodeID(rapid.IntRange(1, 2).Draw(t, "writer"))}
}

// drawRecord draws from a tree of lineages with forks at several points, several commits in each, deletions, and
// contradicting contents of one commit.
func drawRecord(t *rapid.T, disk ukai.DiskID) Record {
	r := usualRecord(disk)
	r.Instance = uint32(rapid.IntRange(0, 1).Draw(t, "instance"))
	for range rapid.IntRange(0, 2).Draw(t, "forks") {
		f := Fork{ID: ukai.Nonce{byte(rapid.IntRange(1, 2).Draw(t, "fork")) + byte(10*len(r.Lineage))}, Version: uint64(rapid.IntRange(1, 2).Draw(t, "fork at"))}
		if n := len(r.Lineage); n > 0 {
			f.Version += r.Lineage[n-1].Version
		}
		r.Lineage = append(r.Lineage, f)
	}
	r.Version = uint64(rapid.IntRange(1, 3).Draw(t, "version"))
	if n := len(r.Lineage); n > 0 {
		r.Version += r.Lineage[n-1].Version
	}
	r.Epoch = ukai.NewEpoch(uint64(len(r.Lineage)), 3)
	if rapid.IntRange(0, 5).Draw(t, "delete") == 0 {
		r.Phase = PhaseDeleted
	}
	r.MinSync = rapid.IntRange(1, 2).Draw(t, "content")
	return r
}

// drawDelta draws a delta of one field of one entry of a small mesh.
func drawDelta(t *rapid.T) Delta {
	node := Node{ID: nodeID(rapid.IntRange(1, 2).Draw(t, "node"))}
	disk := diskFields{id: diskID(rapid.IntRange(1, 2).Draw(t, "disk"))}
	text := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "text")
	optional := &text
	if rapid.Bool().Draw(t, "nil") {
		optional = nil
	}
	flag := rapid.Bool().Draw(t, "flag")
	switch rapid.IntRange(0, 13).Draw(t, "field") {
	case 0:
		node.Info = NodeInfo{Seq: uint64(rapid.IntRange(1, 3).Draw(t, "seq")), Boot: uint64(rapid.IntRange(1, 3).Draw(t, "boot")), Name: text}
	case 1:
		node.Labels = map[string]Register[*string]{rapid.SampledFrom([]string{"dc", "rack"}).Draw(t, "label"): {drawStamp(t), optional}}
	case 2:
		node.Retired = true
	case 3:
		node.Drain = Register[bool]{drawStamp(t), flag}
	case 4:
		node.NoNew = Register[bool]{drawStamp(t), flag}
	case 5:
		node.Witness = Register[bool]{drawStamp(t), flag}
	case 6:
		disk.born = Born{Creator: nodeID(1), Stamp: drawStamp(t), Name: text}
	case 7:
		disk.name = Register[string]{drawStamp(t), text}
	case 8:
		disk.rule = Register[string]{drawStamp(t), text}
	case 9:
		disk.removed = Register[bool]{drawStamp(t), flag}
	case 10:
		disk.policy = []policyField{{rapid.SampledFrom([]string{"p", "q"}).Draw(t, "policy"), Register[string]{drawStamp(t), text}}}
	case 11:
		disk.buried = drawStamp(t)
	case 12:
		return Delta{settings: []setting{{rapid.SampledFrom([]string{"s", "t"}).Draw(t, "setting"), Register[*string]{drawStamp(t), optional}}}}
	default:
		rec := drawRecord(t, disk.id)
		data, err := rec.Encode()
		if err != nil {
			t.Fatal(err)
		}
		disk.view = []packed{packed(data)}
	}
	if !node.isBottom() {
		return Delta{nodes: []Node{node}}
	}
	return Delta{disks: []diskFields{disk}}
}

func drawDeltas(t *rapid.T) []Delta {
	return rapid.SliceOfN(rapid.Custom(drawDelta), 0, 12).Draw(t, "deltas")
}

func TestMergeIsCommutativeAndIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		deltas := drawDeltas(t)
		want := merged(deltas...)
		again := append(slices.Clone(deltas), deltas...)
		order := rapid.Permutation(again).Draw(t, "order")
		got := merged(order...)
		if state(t, got) != state(t, want) || got.Digest() != want.Digest() || got.Newest() != want.Newest() {
			t.Fatal("the order of deltas or their repetition changed the outcome")
		}
		checkIndexes(t, got)
		for _, d := range deltas {
			if changed, _ := got.Merge(d, time.Time{}); len(changed) != 0 {
				t.Fatalf("merging a delta again changed %v", changed)
			}
		}
	})
}

func TestMergeIsAssociative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var joined [3]Delta
		var all []Delta
		for i := range joined {
			for _, d := range drawDeltas(t) {
				joined[i] = joined[i].Join(d)
				all = append(all, d)
			}
		}
		left := joined[0].Join(joined[1]).Join(joined[2])
		right := joined[0].Join(joined[1].Join(joined[2]))
		want := state(t, merged(all...))
		if state(t, merged(left)) != want || state(t, merged(right)) != want {
			t.Fatal("grouping of deltas changed the outcome")
		}
		if state(t, merged(joined[2], joined[0], joined[1])) != want {
			t.Fatal("merging joined deltas differs from merging single ones")
		}
	})
}

// TestMergeIsMonotone: what a catalog knew before a merge it knows after, so merging the old state changes nothing.
func TestMergeIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCatalog()
		for _, d := range drawDeltas(t) {
			before := c.Extract(c.keys())
			changed, _ := c.Merge(d, time.Time{})
			if lost, _ := c.Merge(before, time.Time{}); len(lost) != 0 {
				t.Fatalf("%v went back", lost)
			}
			if fresh := merged(before); (len(changed) == 0) != (state(t, fresh) == state(t, c)) {
				t.Fatalf("changed %v reported, but that is not so", changed)
			}
		}
	})
}

// TestDigestsAreEqualIffCatalogsAre also holds the incremental digest against one of a fresh copy.
func TestDigestsAreEqualIffCatalogsAre(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := merged(drawDeltas(t)...), merged(drawDeltas(t)...)
		if (a.Digest() == b.Digest()) != (state(t, a) == state(t, b)) {
			t.Fatal("digests do not say whether the catalogs are equal")
		}
		if fresh := merged(a.Extract(a.keys())); fresh.Digest() != a.Digest() {
			t.Fatal("the incremental digest differs from that of a copy")
		}
		// The buckets say which keys differ, and pulling those in both directions makes the two equal.
		buckets := a.Digest().Differing(b.Digest())
		fromB, fromA := a.Missing(b.Buckets(buckets)), b.Missing(a.Buckets(buckets))
		for _, k := range append(slices.Clone(fromA), fromB...) {
			va, ina := a.version(k)
			vb, inb := b.version(k)
			if ina && inb && va == vb {
				t.Fatalf("%v would be transferred, but is equal", k)
			}
		}
		toA, toB := b.Extract(fromB), a.Extract(fromA)
		a.mergeChecked(toA)
		b.mergeChecked(toB)
		if a.Digest() != b.Digest() || state(t, a) != state(t, b) {
			t.Fatal("reconciliation left a difference")
		}
	})
}

// TestDeltaSurvivesTheWireAndSplitting in parts of many sizes.
func TestDeltaSurvivesTheWireAndSplitting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := merged(drawDeltas(t)...)
		whole := c.Extract(c.keys())
		limit := rapid.IntRange(0, 900).Draw(t, "limit")
		back := NewCatalog()
		parts := whole.Split(limit)
		if rapid.Bool().Draw(t, "reverse") {
			slices.Reverse(parts)
		}
		for _, part := range parts {
			data, err := part.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if len(data) > limit && part.Len() > 1 {
				t.Fatalf("part of %d entries takes %d bytes, more than %d", part.Len(), len(data), limit)
			}
			read, err := UnmarshalDelta(data)
			if err != nil {
				t.Fatal(err)
			}
			if again, _ := read.MarshalBinary(); !bytes.Equal(again, data) {
				t.Fatal("a delta's bytes changed on the way")
			}
			back.mergeChecked(read)
		}
		if state(t, back) != state(t, c) {
			t.Fatal("parts do not say what the whole says")
		}
	})
}

// TestRecordOrderIsAPartialOrder holds the three laws that merging views rests on.
func TestRecordOrderIsAPartialOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawRecord(t, diskID(1)), drawRecord(t, diskID(1)), drawRecord(t, diskID(1))
		if !a.Dominates(a) {
			t.Fatal("a record does not dominate itself")
		}
		if a.Dominates(b) && b.Dominates(a) && !a.head().sameCommit(b.head()) {
			t.Fatal("two different commits dominate each other")
		}
		if a.Dominates(b) && b.Dominates(c) && !a.Dominates(c) {
			t.Fatal("dominance is not transitive")
		}
		view := MergeViews([]Record{a, b}, []Record{c})
		for i := range view {
			for j := range view {
				if i != j && view[i].Dominates(view[j]) {
					t.Fatal("a view keeps a dominated record")
				}
			}
		}
		for _, r := range []Record{a, b, c} {
			if !slices.ContainsFunc(view, func(top Record) bool { return top.Dominates(r) }) {
				t.Fatal("a view lost a record that nothing dominates")
			}
		}
		other := MergeViews([]Record{c}, MergeViews([]Record{b}, []Record{a, a}))
		if fmt.Sprintf("%+v", view) != fmt.Sprintf("%+v", other) {
			t.Fatal("views depend on the order of merging")
		}
	})
}

// checkIndexes holds what a catalog keeps beside its entries against the entries.
func checkIndexes(t interface{ Fatalf(string, ...any) }, c *Catalog) {
	byName := map[string]int{}
	for d := range c.Disks() {
		if d.Live() && d.Name.Value != "" {
			byName[d.Name.Value]++
		}
	}
	listed := 0
	for name, id := range c.DiskNames() {
		listed++
		if !slices.ContainsFunc(c.DisksByName(name), func(d *Disk) bool { return d.ID == id && d.Live() }) {
			t.Fatalf("disk %v is listed as %s but cannot be found by name", id, name)
		}
	}
	want := 0
	for name, n := range byName {
		if got := len(c.DisksByName(name)); got != n {
			t.Fatalf("%d disks called %s, want %d", got, name, n)
		}
		want += n
	}
	if listed != want {
		t.Fatalf("%d names are listed, want %d", listed, want)
	}
	newest := func(s Stamp) error {
		if c.Newest().Less(s) {
			t.Fatalf("stamp %v is newer than the newest %v", s, c.Newest())
		}
		return nil
	}
	for _, k := range c.keys() {
		d := c.Extract([]Key{k})
		for i := range d.nodes {
			_ = d.nodes[i].stamps(newest)
		}
		for i := range d.disks {
			_ = d.disks[i].stamps(newest)
		}
		for i := range d.settings {
			_ = d.settings[i].stamps(newest)
		}
	}
	var digest Digest
	c.versions(func(kv KeyVersion) { digest[kv.Key.Bucket()] ^= kv.Version })
	if digest != c.Digest() {
		t.Fatalf("the digest does not sum up the versions")
	}
}

// interleave merges deltas in every order in which each of them occurs once or twice, and calls f with each outcome.
func interleave(deltas []Delta, f func(order []int, c *Catalog)) {
	count := make([]int, len(deltas))
	var step func(order []int, c *Catalog)
	step = func(order []int, c *Catalog) {
		if !slices.Contains(count, 0) {
			f(order, c)
		}
		for i, d := range deltas {
			if count[i] == 2 {
				continue
			}
			count[i]++
			next := fork(c)
			next.mergeChecked(d)
			step(append(order, i), next)
			count[i]--
		}
	}
	step(nil, NewCatalog())
}

// fork returns a catalog that goes its own way from where c is, indexes included.
func fork(c *Catalog) *Catalog {
	f := *c
	f.nodes, f.disks, f.settings, f.byName = maps.Clone(c.nodes), maps.Clone(c.disks), maps.Clone(c.settings), maps.Clone(c.byName)
	for id, e := range f.nodes {
		f.nodes[id] = &nodeEntry{Node: e.clone(), version: e.version}
	}
	for name, e := range f.settings {
		own := *e
		f.settings[name] = &own
	}
	for id, e := range f.disks {
		own := *e
		f.disks[id] = &own
	}
	for _, e := range f.disks {
		if e.next != nil {
			e.next = f.disks[e.next.id]
		}
	}
	for name, e := range f.byName {
		f.byName[name] = f.disks[e.id]
	}
	return &f
}

// TestAllInterleavingsConverge delivers deltas in all orders with all duplications, for each set of four that has a
// history worth telling.
func TestAllInterleavingsConverge(t *testing.T) {
	at := func(ms int64, node int) Stamp { return Stamp{Wall: ms, Node: nodeID(node)} }
	rec := func(do func(*Record)) Delta {
		r := usualRecord(diskID(1))
		do(&r)
		data, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return Delta{disks: []diskFields{{id: r.Disk, view: []packed{packed(data)}}}}
	}
	name := func(disk int, s Stamp, name string) Delta {
		return Delta{disks: []diskFields{{id: diskID(disk), name: Register[string]{s, name}}}}
	}
	label := func(s Stamp, value *string) Delta {
		return Delta{nodes: []Node{{ID: nodeID(1), Labels: map[string]Register[*string]{"dc": {s, value}}}}}
	}
	tokyo, osaka := "tokyo", "osaka"
	fork := []Fork{{ID: ukai.Nonce{1}, Version: 8}}
	forced := func(r *Record) { r.Version, r.Lineage, r.Epoch = 9, fork, ukai.NewEpoch(1, 4) }
	for title, deltas := range map[string][]Delta{
		"commits of one lineage": {
			rec(func(r *Record) { r.Version = 7 }), rec(func(r *Record) { r.Version = 8 }),
			rec(func(r *Record) { r.Version, r.Instance = 8, 1 }), rec(func(r *Record) { r.Version = 9 }),
		},
		"split brain that goes on": {
			rec(func(r *Record) { r.Version = 8 }), rec(forced),
			rec(func(r *Record) { r.Version = 9 }), rec(func(r *Record) { r.Version = 10 }),
		},
		"deletion of one history": {
			rec(func(r *Record) { r.Version, r.Phase = 8, PhaseDeleted }), rec(forced),
			rec(func(r *Record) { r.Version = 9 }), name(1, at(2, 1), "vm1"),
		},
		"contradicting records": {
			rec(func(r *Record) { r.MinSync = 2 }), rec(func(r *Record) { r.MinSync = 1 }),
			rec(func(r *Record) { r.MinSync = 3 }), name(1, at(2, 1), "vm1"),
		},
		"renames and removal": {
			name(1, at(1, 1), "vm1"), name(1, at(2, 2), "vm2"), name(2, at(1, 1), "vm2"),
			{disks: []diskFields{{id: diskID(1), removed: Register[bool]{at(3, 1), true}}}},
		},
		"labels of a retired node": {
			label(at(1, 1), &tokyo), label(at(1, 2), &osaka), label(at(2, 1), nil), {nodes: []Node{{ID: nodeID(1), Retired: true}}},
		},
		"a node's own words": {
			{nodes: []Node{{ID: nodeID(1), Info: NodeInfo{Seq: 1, Boot: 1, Name: "t1"}}}},
			{nodes: []Node{{ID: nodeID(1), Info: NodeInfo{Seq: 2, Boot: 2, Name: "t1"}}}},
			{nodes: []Node{{ID: nodeID(1), Info: NodeInfo{Seq: 2, Boot: 3, Name: "t2"}}}},
			{nodes: []Node{{ID: nodeID(1), Info: NodeInfo{Seq: 3, Boot: 1, Name: "t1"}}}},
		},
	} {
		t.Run(title, func(t *testing.T) {
			want := merged(deltas...)
			wantState, runs := state(t, want), 0
			interleave(deltas, func(order []int, c *Catalog) {
				runs++
				if c.Digest() != want.Digest() {
					t.Fatalf("order %v ends elsewhere", order)
				}
				if len(order) == len(deltas) { // those without duplicates, in full
					if state(t, c) != wantState {
						t.Fatalf("order %v ends elsewhere, with the same digest", order)
					}
					checkIndexes(t, c)
				}
			})
			t.Logf("%d interleavings", runs)
		})
	}
}

func TestSplitBrainIsShownUntilOneSideStandsForBoth(t *testing.T) {
	old := usualRecord(diskID(1))
	forced := usualRecord(diskID(1))
	forced.Version, forced.Epoch = 8, ukai.NewEpoch(1, 4)
	forced.Lineage = []Fork{{ID: ukai.Nonce{1}, Version: 7}}
	other := forced
	other.Lineage = []Fork{{ID: ukai.Nonce{2}, Version: 7}}

	if view := MergeViews([]Record{old}, []Record{forced}); len(view) != 1 || len(view[0].Lineage) != 1 {
		t.Errorf("the forced record does not stand for what it was forced from: %v", view)
	}
	old.Version = 8
	if view := MergeViews([]Record{old}, []Record{forced}); len(view) != 2 {
		t.Errorf("the old history went on past the fork, but is not shown: %v", view)
	}
	if view := MergeViews([]Record{other}, []Record{forced}); len(view) != 2 {
		t.Errorf("both sides were forced, but one is not shown: %v", view)
	}
	d := Disk{View: MergeViews([]Record{other}, []Record{forced})}
	if _, ok := d.Record(); ok || !d.Conflict() {
		t.Error("a disk with two histories has no single record, and is in conflict")
	}
	deleted := old
	deleted.Version, deleted.Phase = 1, PhaseDeleted
	if view := MergeViews([]Record{old}, []Record{deleted}); len(view) != 1 || view[0].Phase != PhaseDeleted {
		t.Errorf("a deletion is not the end of its lineage: %v", view)
	}
}

func TestContradictionIsReportedAndSettled(t *testing.T) {
	c := NewCatalog()
	rec := usualRecord(diskID(1))
	if _, err := c.PutRecord(rec); err != nil {
		t.Fatal(err)
	}
	rec.MinSync = 2
	_, err := c.PutRecord(rec)
	if !errors.Is(err, ukai.ErrCorrupt) || !strings.Contains(err.Error(), "0/7") || c.Contradictions() != 1 {
		t.Errorf("two records of one commit: error %v, counted %d", err, c.Contradictions())
	}
	d, _ := c.Disk(rec.Disk)
	if got, ok := d.Record(); !ok || got.MinSync != 1 {
		t.Errorf("kept %+v, want the one with the smaller bytes", got)
	}
}

// TestWhatDominatesWhat spells out the order of records, newest first in each line.
func TestWhatDominatesWhat(t *testing.T) {
	rec := func(instance uint32, version uint64, phase Phase, forks ...Fork) Record {
		r := usualRecord(diskID(1))
		r.Instance, r.Version, r.Phase, r.Lineage, r.Epoch = instance, version, phase, forks, ukai.NewEpoch(uint64(len(forks)), 3)
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
		return r
	}
	f1, f2 := Fork{ukai.Nonce{1}, 1, 7}, Fork{ukai.Nonce{2}, 1, 9}
	sibling := Fork{ukai.Nonce{3}, 1, 7}
	for _, c := range []struct {
		name       string
		newer, old Record
		both       bool // neither dominates
	}{
		{"later version", rec(1, 8, PhaseActive), rec(1, 7, PhaseActive), false},
		{"later instance, whatever the version", rec(2, 3, PhaseActive), rec(1, 7, PhaseActive), false},
		{"deletion, whatever the version", rec(1, 3, PhaseDeleted), rec(2, 9, PhaseActive), false},
		{"fork and the commit it left from", rec(1, 8, PhaseActive, f1), rec(1, 7, PhaseActive), false},
		{"fork and an older commit", rec(1, 8, PhaseActive, f1), rec(0, 9, PhaseActive), false},
		{"fork and what the old side did later", rec(1, 9, PhaseActive, f1), rec(1, 8, PhaseActive), true},
		{"fork and a deletion of the old side", rec(1, 9, PhaseActive, f1), rec(1, 7, PhaseDeleted), true},
		{"fork of a fork and the first lineage", rec(1, 10, PhaseActive, f1, f2), rec(1, 7, PhaseActive), false},
		{"fork of a fork and the first fork", rec(1, 10, PhaseActive, f1, f2), rec(1, 9, PhaseActive, f1), false},
		{"fork of a fork and the first lineage later on", rec(1, 10, PhaseActive, f1, f2), rec(1, 8, PhaseActive), true},
		{"two forks of one commit", rec(1, 9, PhaseActive, f1), rec(1, 8, PhaseActive, sibling), true},
		{"deleted fork and what the old side did later", rec(1, 9, PhaseDeleted, f1), rec(1, 8, PhaseActive), true},
	} {
		if got := c.newer.Dominates(c.old); got == c.both {
			t.Errorf("%s: the newer dominates the old: %v", c.name, got)
		}
		if c.old.Dominates(c.newer) {
			t.Errorf("%s: the old dominates the newer", c.name)
		}
	}
}

// TestBigEntriesAreDividedForPackets: a node with many labels and a disk with a rule travel in packets; only the big
// record is left for a stream.
func TestBigEntriesAreDividedForPackets(t *testing.T) {
	const packet = 1200
	stamp := Stamp{Wall: 1, Node: nodeID(1)}
	n := Node{ID: nodeID(1), Info: NodeInfo{Seq: 1, Name: "t1"}, Labels: map[string]Register[*string]{}}
	for i := range ukai.MaxLabels {
		value := strings.Repeat("v", ukai.MaxLabelLen)
		n.Labels[fmt.Sprintf("key%d", i)] = Register[*string]{stamp, &value}
	}
	rec := largestRecord(4)
	data, err := rec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	disk := diskFields{id: rec.Disk, name: Register[string]{stamp, "vm1"}, rule: Register[string]{stamp, strings.Repeat("r", 500)}, view: []packed{packed(data)}}
	whole := Delta{nodes: []Node{n}, disks: []diskFields{disk}}
	parts := whole.Split(packet)
	big := 0
	for _, part := range parts {
		data, err := part.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > packet {
			big++
			if part.Len() != 1 || part.disks[0].isBottom() || !part.disks[0].name.IsZero() || !part.disks[0].rule.IsZero() {
				t.Errorf("a part of %d bytes holds more than the big record: %v", len(data), part.Keys())
			}
		}
	}
	if big != 1 {
		t.Errorf("%d parts are too big, want only the record", big)
	}
	if len(parts) > 8 {
		t.Errorf("%d parts: fields of one entry do not share packets", len(parts))
	}
	if state(t, merged(parts...)) != state(t, merged(whole)) {
		t.Error("parts do not say what the whole says")
	}
}
