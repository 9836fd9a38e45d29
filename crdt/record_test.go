package crdt

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt/codec"
)

func nodeID(n int) ukai.NodeID { return ukai.NodeID{0: byte(n >> 8), 1: byte(n), 15: 1} }
func diskID(n int) ukai.DiskID {
	return ukai.DiskID{0: byte(n >> 16), 1: byte(n >> 8), 2: byte(n), 15: 1}
}

// usualRecord is what most disks have: three replicas, three arbiters, one run.
func usualRecord(disk ukai.DiskID) Record {
	r := Record{
		Disk: disk, Arbiters: []ukai.NodeID{nodeID(1), nodeID(2), nodeID(3)}, Version: 7, Epoch: 3,
		Holder: nodeID(1), Nonce: ukai.Nonce{9}, Phase: PhaseActive, Size: 20 << 30, BlockSize: ukai.DefaultBlockSize,
		MinSync: 1,
		Groups: []Group{{Generation: 2, Members: []Member{
			{Replica: 0x1111111111111111, Node: nodeID(1)}, {Replica: 0x2222222222222222, Node: nodeID(2)},
			{Replica: 0x3333333333333333, Node: nodeID(3), Role: Syncing},
		}}},
	}
	r.Runs = []Run{{Count: r.Blocks()}}
	return r
}

// largestRecord has as much of everything as the limits allow, and every number at its longest.
func largestRecord(members int) Record {
	r := usualRecord(diskID(1))
	r.Size, r.BlockSize = ukai.MaxDiskSize, ukai.MinBlockSize
	r.Instance, r.Version, r.Epoch = math.MaxUint32, math.MaxUint64, math.MaxUint64
	r.Quorum, r.Ack, r.OnLoss, r.Clean = PreferredNode, AckLocal, Error, true
	r.Arbiters = []ukai.NodeID{nodeID(1), nodeID(2), nodeID(3), nodeID(4), nodeID(5)}
	r.Preferred = nodeID(5)
	r.Groups, r.Runs = nil, nil
	for g := range uint8(MaxGroups) {
		group := Group{ID: g, Generation: math.MaxUint32}
		for m := range members {
			id := ukai.ReplicaID(math.MaxUint64 - uint64(members-m) - uint64(g)*100)
			group.Members = append(group.Members, Member{Replica: id, Node: nodeID(int(g)*100 + m + 1)})
		}
		r.Groups = append(r.Groups, group)
	}
	for i := range MaxRuns {
		r.Runs = append(r.Runs, Run{Count: r.Blocks() / MaxRuns, Group: uint8(i % MaxGroups)})
	}
	return r
}

func TestUsualRecordIsSmall(t *testing.T) {
	r := usualRecord(diskID(1))
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 400 {
		t.Errorf("usual record takes %d bytes, more than the 400 that gossip counts on", len(data))
	}
	got, err := DecodeRecord(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := got.Encode()
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("decoded record encodes to other bytes (error %v)", err)
	}
}

func TestLargestRecordFits(t *testing.T) {
	r := largestRecord(4)
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("256 runs over 16 groups of 4 members: %d bytes", len(data))

	// Everything at its limit at once still fits, so the byte limit never surprises anyone.
	r = largestRecord(MaxMembers)
	for i := range MaxForks {
		r.Lineage = append(r.Lineage, Fork{ID: ukai.Nonce{byte(i + 1)}, Instance: math.MaxUint32 - 1, Version: math.MaxUint64 - MaxForks + uint64(i)})
	}
	r.Ahead = r.Groups[0].Members[0].Replica
	for i := range MaxPins {
		r.Pins = append(r.Pins, diskID(i+2))
	}
	for i := range MaxLayers {
		r.Layers = append(r.Layers, Layer{ID: uint16(1000 + i), Name: strings.Repeat("s", ukai.MaxNameLen)})
		if i > 0 {
			r.Layers[i].Parent = uint16(999 + i)
		}
	}
	if data, err = r.Encode(); err != nil {
		t.Fatal(err)
	}
	t.Logf("everything at its limit: %d of %d bytes", len(data), MaxRecordBytes)
	if _, err := DecodeRecord(data); err != nil {
		t.Error(err)
	}
}

func TestTooManyRunsAreRefusedWithTheReason(t *testing.T) {
	r := largestRecord(4)
	r.Runs[0].Count--
	r.Runs = append(r.Runs, Run{Count: 1, Group: 3})
	_, err := r.Encode()
	if !errors.Is(err, ukai.ErrInvalid) || !strings.Contains(err.Error(), "257 runs") || !strings.Contains(err.Error(), "256") {
		t.Errorf("257 runs: error %v", err)
	}

	r = largestRecord(4)
	before := slices.Clone(r.Runs)
	err = r.SetRange(ukai.Range{First: 5, Count: 1}, 9)
	if !errors.Is(err, ukai.ErrInvalid) || !strings.Contains(err.Error(), "258 runs") {
		t.Errorf("split of the fullest map: error %v", err)
	}
	if !slices.Equal(before, r.Runs) {
		t.Error("a refused SetRange changed the map")
	}
}

// TestCheckFindsEachFault breaks a good record in one way at a time.
func TestCheckFindsEachFault(t *testing.T) {
	for _, c := range []struct {
		name, want string
		do         func(r *Record)
	}{
		{"no disk", "disk id", func(r *Record) { r.Disk = ukai.DiskID{} }},
		{"version 0", "version 0", func(r *Record) { r.Version = 0 }},
		{"odd size", "disk size", func(r *Record) { r.Size++ }},
		{"odd block size", "block size", func(r *Record) { r.BlockSize = 3 << 20 }},
		{"min-sync 0", "min-sync 0", func(r *Record) { r.MinSync = 0 }},
		{"min-sync too high", "min-sync 9", func(r *Record) { r.MinSync = MaxMembers + 1 }},
		{"unknown phase", "phase 4", func(r *Record) { r.Phase = 4 }},
		{"unknown on-loss", "on-loss 2", func(r *Record) { r.OnLoss = 2 }},
		{"unknown quorum", "quorum 3", func(r *Record) { r.Quorum = 3 }},
		{"unknown ack", "ack 2", func(r *Record) { r.Ack = 2 }},
		{"no arbiters", "0 arbiters", func(r *Record) { r.Arbiters = nil }},
		{"4 arbiters", "4 arbiters", func(r *Record) { r.Arbiters = append(r.Arbiters, nodeID(4)) }},
		{"arbiters unsorted", "sorted", func(r *Record) { slices.Reverse(r.Arbiters) }},
		{"arbiter twice", "distinct", func(r *Record) { r.Arbiters[1] = r.Arbiters[0] }},
		{"zero arbiter", "zero", func(r *Record) { r.Arbiters[0] = ukai.NodeID{} }},
		{"preferred is no arbiter", "preferred", func(r *Record) { r.Quorum, r.Preferred = PreferredNode, nodeID(9) }},
		{"preferred without the mode", "preferred", func(r *Record) { r.Preferred = nodeID(1) }},
		{"no holder", "holder", func(r *Record) { r.Holder = ukai.NodeID{} }},
		{"epoch 0", "epoch 0", func(r *Record) { r.Epoch = 0 }},
		{"no groups", "0 groups", func(r *Record) { r.Groups = nil }},
		{"group twice", "distinct", func(r *Record) { r.Groups = append(r.Groups, r.Groups[0]) }},
		{"nothing in sync", "in sync", func(r *Record) { r.Groups[0].Members[0].Role, r.Groups[0].Members[1].Role = Out, Out }},
		{"empty group", "in sync", func(r *Record) { r.Groups[0].Members = nil }},
		{"too many members", "members", func(r *Record) { r.Groups[0].Members = make([]Member, MaxMembers+1) }},
		{"members unsorted", "sorted", func(r *Record) { slices.Reverse(r.Groups[0].Members) }},
		{"replica zero", "zero", func(r *Record) { r.Groups[0].Members[0].Replica = 0 }},
		{"replica without node", "node", func(r *Record) { r.Groups[0].Members[0].Node = ukai.NodeID{} }},
		{"unknown role", "role 4", func(r *Record) { r.Groups[0].Members[2].Role = 4 }},
		{"replica on two nodes", "group 0", func(r *Record) {
			r.Groups = append(r.Groups, Group{ID: 1, Members: []Member{{Replica: r.Groups[0].Members[0].Replica, Node: nodeID(7)}}})
		}},
		{"ahead, but out", "only one that is in sync", func(r *Record) { r.Ahead = r.Groups[0].Members[0].Replica; r.Groups[0].Members[0].Role = Out }},
		{"ahead, but no replica", "only one that is in sync", func(r *Record) { r.Ahead = 999 }},
		{"no runs", "0 runs", func(r *Record) { r.Runs = nil }},
		{"empty run", "run 1 of 0", func(r *Record) { r.Runs = append(r.Runs, Run{}) }},
		{"runs too short", "cover", func(r *Record) { r.Runs[0].Count-- }},
		{"runs too long", "run 0", func(r *Record) { r.Runs[0].Count++ }},
		{"runs overflow", "run 1", func(r *Record) { r.Runs[0].Count--; r.Runs = append(r.Runs, Run{Count: math.MaxUint64}) }},
		{"run without group", "group 5", func(r *Record) { r.Runs[0].Group = 5 }},
		{"layer twice", "layer 3", func(r *Record) { r.Layers = []Layer{{ID: 3}, {ID: 3}} }},
		{"layer without parent", "parent 2", func(r *Record) { r.Layers = []Layer{{ID: 3, Parent: 2}} }},
		{"bad snapshot name", "snapshot", func(r *Record) { r.Layers = []Layer{{ID: 1, Name: "a/b"}} }},
		{"pins unsorted", "sorted", func(r *Record) { r.Pins = []ukai.DiskID{diskID(3), diskID(2)} }},
		{"pinned by itself", "another disk", func(r *Record) { r.Pins = []ukai.DiskID{r.Disk} }},
		{"fork without id", "fork 0", func(r *Record) { r.Lineage = []Fork{{Version: 1}} }},
		{"fork in the future", "before", func(r *Record) { r.Lineage = []Fork{{ID: ukai.Nonce{1}, Version: 7}} }},
		{"forks out of order", "before", func(r *Record) {
			r.Lineage = []Fork{{ID: ukai.Nonce{1}, Version: 3}, {ID: ukai.Nonce{2}, Version: 3}}
		}},
		{"fork id twice", "taken", func(r *Record) {
			r.Lineage = []Fork{{ID: ukai.Nonce{1}, Version: 3}, {ID: ukai.Nonce{1}, Version: 4}}
		}},
		{"force not counted", "epoch", func(r *Record) { r.Lineage = []Fork{{ID: ukai.Nonce{1}, Version: 3}} }},
	} {
		r := usualRecord(diskID(1))
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
		c.do(&r)
		err := r.Check()
		if !errors.Is(err, ukai.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one that says %q", c.name, err, c.want)
		}
	}
}

func TestDeletedRecordNeedsNoReplicas(t *testing.T) {
	r := usualRecord(diskID(1))
	r.Phase, r.Groups, r.Runs, r.Epoch = PhaseDeleted, nil, nil, math.MaxUint64
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}

func TestDecodeRefusesOtherFormsOfTheSameRecord(t *testing.T) {
	r := usualRecord(diskID(1))
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	// The same map with an explicit empty list of pins.
	var fields map[int]any
	if err := codec.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	fields[21] = []any{}
	longer, err := codec.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeRecord(longer); !errors.Is(err, ukai.ErrCorrupt) {
		t.Errorf("explicit empty field: error %v", err)
	}
	for n := range data {
		if _, err := DecodeRecord(data[:n]); !errors.Is(err, ukai.ErrCorrupt) {
			t.Fatalf("first %d bytes: error %v", n, err)
		}
	}
	if _, err := DecodeRecord(append(data, 0)); !errors.Is(err, ukai.ErrCorrupt) {
		t.Errorf("trailing byte: error %v", err)
	}
}

func TestDecodeSkipsFieldsOfNewerReleases(t *testing.T) {
	r := usualRecord(diskID(1))
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var fields map[int]any
	if err := codec.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	fields[99] = "from the future"
	newer, err := codec.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRecord(newer)
	if err != nil {
		t.Fatal(err)
	}
	if got.Version != r.Version || got.Disk != r.Disk {
		t.Errorf("got %+v", got)
	}
}

func TestEnumsAreReadableInJSON(t *testing.T) {
	r := usualRecord(diskID(1))
	r.Lineage = []Fork{{ID: ukai.Nonce{0xab}, Instance: 1, Version: 2}}
	text, err := json.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"phase":"active"`, `"role":"in sync"`, `"role":"syncing"`, `"onLoss":"wait"`, `"quorum":"majority"`, `"ack":"all"`, `"lineage":["ab000000000000000000000000000000@1/2"]`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
	var back Record
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Phase != r.Phase || !slices.Equal(back.Groups[0].Members, r.Groups[0].Members) || !slices.Equal(back.Lineage, r.Lineage) {
		t.Errorf("JSON came back as %+v", back)
	}
	if _, err := json.Marshal(Phase(9)); err == nil {
		t.Error("an unknown phase has no word, but was written")
	}
	var p Phase
	if err := p.UnmarshalText([]byte("open")); !errors.Is(err, ukai.ErrInvalid) || !strings.Contains(err.Error(), "recovering") {
		t.Errorf("unknown word: error %v", err)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	r := largestRecord(2)
	r.Layers, r.Pins = []Layer{{ID: 1}}, []ukai.DiskID{diskID(5)}
	r.Lineage = []Fork{{ID: ukai.Nonce{1}, Version: 1}}
	before, _ := r.encode()
	c := r.Clone()
	c.Lineage[0].Version, c.Arbiters[0], c.Groups[0].ID, c.Groups[1].Members[0].Role = 9, nodeID(99), 77, Out
	c.Runs[0].Count, c.Layers[0].ID, c.Pins[0] = 99, 9, diskID(9)
	if after, _ := r.encode(); !bytes.Equal(before, after) {
		t.Error("changing a clone changed the original")
	}
}

// TestMapAgreesWithPlainArray holds SetRange, GroupOf, RangesOf, Resize and Map against a plain array of group ids.
func TestMapAgreesWithPlainArray(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := usualRecord(diskID(1))
		r.Size = 200 * int64(r.BlockSize)
		r.Runs = []Run{{Count: r.Blocks()}}
		for id := range uint8(4) {
			g := Group{ID: id, Members: []Member{{Replica: ukai.ReplicaID(id + 1), Node: nodeID(int(id) + 1)}}}
			if id == 0 {
				r.Groups = nil
			}
			r.Groups = append(r.Groups, g)
		}
		plain := make([]uint8, r.Blocks())
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			if rapid.IntRange(0, 9).Draw(t, "op") == 0 {
				n := rapid.IntRange(1, 300).Draw(t, "blocks")
				if err := r.Resize(int64(n)*int64(r.BlockSize) - 4096); err != nil {
					t.Fatal(err)
				}
				for len(plain) < n {
					plain = append(plain, plain[len(plain)-1])
				}
				plain = plain[:n]
				continue
			}
			first := rapid.IntRange(0, len(plain)-1).Draw(t, "first")
			count := rapid.IntRange(1, len(plain)-first).Draw(t, "count")
			g := uint8(rapid.IntRange(0, 3).Draw(t, "group"))
			if err := r.SetRange(ukai.Range{First: ukai.Index(first), Count: uint64(count)}, g); err != nil {
				t.Fatal(err)
			}
			for i := first; i < first+count; i++ {
				plain[i] = g
			}
		}
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
		m := NewMap(&r)
		if m.Blocks() != uint64(len(plain)) {
			t.Fatalf("map has %d blocks, want %d", m.Blocks(), len(plain))
		}
		for i, want := range plain {
			index := ukai.Index(i)
			if got := r.GroupOf(index); got == nil || got.ID != want {
				t.Fatalf("block %d: group %v, want %d", i, got, want)
			}
			if got := m.GroupOf(index); got == nil || got.ID != want {
				t.Fatalf("block %d: map says group %v, want %d", i, got, want)
			}
			if got := r.Locations(index); len(got) != 1 || got[0].Node != nodeID(int(want)+1) {
				t.Fatalf("block %d: locations %v", i, got)
			}
			in := 0
			for g := range uint8(4) {
				for _, rg := range r.RangesOf(g) {
					if rg.Contains(index) {
						in++
						if g != want {
							t.Fatalf("block %d is in a range of group %d, want %d", i, g, want)
						}
					}
				}
			}
			if in != 1 {
				t.Fatalf("block %d is in %d ranges", i, in)
			}
		}
		end := ukai.Index(len(plain))
		if r.GroupOf(end) != nil || m.GroupOf(end) != nil || m.GroupOf(math.MaxUint64) != nil || r.Locations(end) != nil {
			t.Fatal("a block beyond the end has a group")
		}
		for i := 1; i < len(r.Runs); i++ {
			if r.Runs[i-1].Group == r.Runs[i].Group {
				t.Fatalf("runs %v: neighbours of one group were not joined", r.Runs)
			}
		}
	})
}

func TestSetRangeRefusesWhatIsNotThere(t *testing.T) {
	r := usualRecord(diskID(1))
	for _, rg := range []ukai.Range{{First: 0, Count: 0}, {First: 0, Count: r.Blocks() + 1}, {First: ukai.Index(r.Blocks()), Count: 1}, {First: math.MaxUint64, Count: 2}} {
		if err := r.SetRange(rg, 0); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("range %v: error %v", rg, err)
		}
	}
	if err := r.SetRange(ukai.Range{Count: 1}, 4); !errors.Is(err, ukai.ErrInvalid) {
		t.Errorf("unknown group: error %v", err)
	}
}

func TestMapLookupDoesNotAllocate(t *testing.T) {
	r := largestRecord(4)
	m := NewMap(&r)
	last := ukai.Index(r.Blocks() - 1)
	if n := testing.AllocsPerRun(100, func() { m.GroupOf(last); m.RunOf(7); r.GroupOf(last); r.Locations(3) }); n != 0 {
		t.Errorf("%v allocations per lookup", n)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, r := range []Record{usualRecord(diskID(1)), largestRecord(4)} {
		data, err := r.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRecord(data)
		if err != nil {
			if !errors.Is(err, ukai.ErrCorrupt) {
				t.Fatalf("error %v is not ErrCorrupt", err)
			}
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatalf("decoded record is refused: %v", err)
		}
		if back, err := DecodeRecord(again); err != nil || back.Version != r.Version {
			t.Fatalf("does not survive a round trip: %v", err)
		}
		if codec.UnmarshalKnown(data, new(Record)) == nil && !bytes.Equal(again, data) {
			t.Fatal("accepted a form that is not canonical")
		}
	})
}

func BenchmarkGroupOf(b *testing.B) {
	r := largestRecord(4)
	m := NewMap(&r)
	n := ukai.Index(r.Blocks())
	b.Run("map", func(b *testing.B) {
		b.ReportAllocs()
		for i := ukai.Index(0); b.Loop(); i += 1 << 20 {
			_ = m.GroupOf(i % n)
		}
	})
	b.Run("record", func(b *testing.B) {
		b.ReportAllocs()
		for i := ukai.Index(0); b.Loop(); i += 1 << 20 {
			_ = r.GroupOf(i % n)
		}
	})
}

func BenchmarkDecodeRecord(b *testing.B) {
	r := usualRecord(diskID(1))
	data, err := r.Encode()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeRecord(data); err != nil {
			b.Fatal(err)
		}
	}
}
