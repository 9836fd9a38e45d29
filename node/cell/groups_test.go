package cell

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt"
)

// lay returns a record of an active disk with some groups, whose replicas are on up to five nodes.
func lay(t *rapid.T) crdt.Record {
	const blocks = 12
	rec := crdt.Record{
		Disk: testDisk, Arbiters: nodes(1, 2, 3), Version: 7, Epoch: 1, Holder: node(1), Phase: crdt.PhaseActive, Size: blocks << 20, BlockSize: 1 << 20, MinSync: 1,
	}
	groups := rapid.IntRange(1, 4).Draw(t, "groups")
	for g := range groups {
		group := crdt.Group{ID: uint8(g)}
		for r := 1; r <= 5; r++ {
			m := crdt.Member{Replica: ukai.ReplicaID(r), Node: node(r)}
			switch k := rapid.IntRange(0, 7).Draw(t, "member"); {
			case k < 3 || r == 5 && len(group.InSync()) == 0:
			case k == 3:
				m.Role, m.Fresh = crdt.Syncing, rapid.Bool().Draw(t, "fresh")
			case k == 4:
				m.Role, m.Fresh = crdt.Out, rapid.Bool().Draw(t, "fresh")
			default:
				continue
			}
			group.Members = append(group.Members, m)
		}
		if g > 0 && rapid.Bool().Draw(t, "same") {
			group.Members = slices.Clone(rec.Groups[g-1].Members)
		}
		rec.Groups = append(rec.Groups, group)
	}
	for range blocks {
		rec.Runs = append(rec.Runs, crdt.Run{Count: 1, Group: uint8(rapid.IntRange(0, groups-1).Draw(t, "group"))})
	}
	if err := rec.Check(); err != nil {
		t.Fatal(err)
	}
	return rec
}

// of returns which replicas a block has in a role.
func of(rec *crdt.Record, block ukai.Index, role crdt.Role) (list []ukai.ReplicaID) {
	for _, m := range rec.Locations(block) {
		if m.Role == role {
			list = append(list, m.Replica)
		}
	}
	return list
}

func TestSplitAndMergeChangeNoBlocksReplicasInSync(t *testing.T) {
	split, merged := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		rec := lay(t)
		var list []ukai.Range
		for at := ukai.Index(0); ; {
			r := ukai.Range{First: at + ukai.Index(rapid.IntRange(0, 4).Draw(t, "gap")), Count: uint64(rapid.IntRange(1, 3).Draw(t, "count"))}
			if uint64(r.End()) > rec.Blocks() {
				break
			}
			list = append(list, r)
			at = r.End()
		}
		last := len(rec.Groups) - 1
		group := uint8(rapid.IntRange(0, last+1).Draw(t, "of"))
		if rapid.Bool().Draw(t, "whole runs") {
			list = rec.RangesOf(group)
			list = list[:len(list)/2]
		}
		var c Change = Split{Epoch: 1, Version: 7, Group: group, Blocks: list, Into: uint8(rapid.IntRange(last, 5).Draw(t, "into"))}
		if rapid.Bool().Draw(t, "merge") {
			into := rec.Group(uint8(rapid.IntRange(0, last).Draw(t, "into")))
			c = Merge{Epoch: 1, Version: 7, Group: group, Into: into.ID}
			if g := rec.Group(group); g != nil && rapid.Bool().Draw(t, "alike") {
				into.Members = slices.DeleteFunc(into.Members, func(m crdt.Member) bool { return m.Role != crdt.InSync })
				g.Members = slices.Clone(into.Members)
			}
		}
		next, err := apply(c, &rec)
		if err != nil {
			if !errors.Is(err, ukai.ErrRejected) || c.Done(rec) {
				t.Fatalf("%v: %v", c, err)
			}
			return
		}
		if !c.Done(next) {
			t.Fatalf("%v: not done in %+v", c, next)
		}
		for b := range ukai.Index(rec.Blocks()) {
			if before, after := of(&rec, b, crdt.InSync), of(&next, b, crdt.InSync); !slices.Equal(before, after) {
				t.Fatalf("%v: block %d was in sync on %v, is on %v", c, b, before, after)
			}
			for _, r := range of(&next, b, crdt.Syncing) {
				if !slices.Contains(of(&rec, b, crdt.Syncing), r) {
					t.Fatalf("%v: replica %v is syncing for block %d, which nobody has begun", c, r, b)
				}
			}
			for _, m := range rec.Locations(b) {
				i := slices.IndexFunc(next.Locations(b), func(n crdt.Member) bool { return n.Replica == m.Replica })
				if i < 0 || next.Locations(b)[i].Fresh != m.Fresh {
					t.Fatalf("%v: replica %v of block %d is forgotten, or was fresh and is not", c, m.Replica, b)
				}
			}
		}
		if _, isSplit := c.(Split); isSplit {
			split++
		} else {
			merged++
		}
	})
	if split == 0 || merged == 0 {
		t.Errorf("%d splits, %d merges: this shows nothing", split, merged)
	}
}

func TestGroupsAreRefusedWhatWouldBreakThem(t *testing.T) {
	base := firstRecord(1, 2, 3)
	base.Epoch, base.Holder, base.Phase, base.Version = 1, node(1), crdt.PhaseActive, 7
	base.Size, base.Runs[0].Count = 40<<20, 10
	block := func(first, count int) []ukai.Range {
		return []ukai.Range{{First: ukai.Index(first), Count: uint64(count)}}
	}
	two, err := apply(Split{Epoch: 1, Version: 7, Blocks: block(3, 2), Into: 1}, &base)
	if err != nil || fmt.Sprint(two.RangesOf(0), two.RangesOf(1)) != "[0-2 5-9] [3-4]" {
		t.Fatalf("%v: %v", err, two.Runs)
	}
	for _, c := range []Change{
		Split{Epoch: 1, Version: 8, Group: 2, Blocks: block(0, 1), Into: 3},                         // no such group
		Split{Epoch: 1, Version: 8, Group: 0, Blocks: block(0, 1), Into: 1},                         // taken
		Split{Epoch: 1, Version: 8, Group: 0, Blocks: block(2, 2), Into: 2},                         // of another group
		Split{Epoch: 1, Version: 8, Group: 0, Blocks: block(9, 2), Into: 2},                         // beyond the end
		Split{Epoch: 1, Version: 8, Group: 1, Blocks: block(3, 2), Into: 2},                         // all of it
		Split{Epoch: 1, Version: 8, Group: 0, Into: 2},                                              // nothing
		Split{Epoch: 1, Version: 8, Group: 0, Blocks: append(block(5, 2), block(0, 1)...), Into: 2}, // not sorted
		Split{Epoch: 1, Version: 7, Group: 0, Blocks: block(0, 1), Into: 2},                         // an old version
		Split{Epoch: 2, Version: 8, Group: 0, Blocks: block(0, 1), Into: 2},                         // another epoch
		Merge{Epoch: 1, Version: 8, Group: 1, Into: 1}, Merge{Epoch: 1, Version: 8, Group: 2, Into: 1}, Merge{Epoch: 1, Version: 8, Group: 1, Into: 2},
	} {
		if _, err := apply(c, &two); !errors.Is(err, ukai.ErrRejected) {
			t.Errorf("%v, %+v: %v", c, c, err)
		}
	}
	one, err := apply(Merge{Epoch: 1, Version: 8, Group: 1, Into: 0}, &two)
	if err != nil || len(one.Groups) != 1 || !slices.Equal(one.Runs, base.Runs) {
		t.Fatalf("%v: %v %v", err, one.Groups, one.Runs)
	}
	apart, err := apply(Shrink{Epoch: 1, Version: 8, Replica: 2, In: []uint8{1}}, &two)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apply(Merge{Epoch: 1, Version: 9, Group: 1, Into: 0}, &apart); !errors.Is(err, ukai.ErrRejected) {
		t.Errorf("merged though replica 2 lacks blocks: %v", err)
	}

	// The limits of the record: groups, then runs.
	rec := base
	for g := 1; g < crdt.MaxGroups; g++ {
		if rec.Runs[0].Count < 2 {
			rec.Runs[0].Count, rec.Size = 64, rec.Size+(64-int64(rec.Runs[0].Count))*int64(rec.BlockSize)
		}
		if rec, err = apply(Split{Epoch: 1, Version: rec.Version, Blocks: block(0, 1), Into: uint8(g)}, &rec); err != nil {
			rec = base
			rec.Size, rec.Runs = 4096<<20, []crdt.Run{{Count: 1024}}
			break
		}
	}
	rec = base
	rec.Size, rec.Runs = 4096<<20, []crdt.Run{{Count: 1024}}
	for g := 1; g < crdt.MaxGroups; g++ {
		if rec, err = apply(Split{Epoch: 1, Version: rec.Version, Blocks: block(2*g, 1), Into: uint8(g)}, &rec); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := apply(Split{Epoch: 1, Version: rec.Version, Blocks: block(100, 1), Into: crdt.MaxGroups}, &rec); !errors.Is(err, ukai.ErrRejected) {
		t.Errorf("group %d: %v", crdt.MaxGroups+1, err)
	}
	rec = base
	rec.Size, rec.Runs = 4096<<20, []crdt.Run{{Count: 1024}}
	var many []ukai.Range
	for i := range crdt.MaxRuns / 2 {
		many = append(many, block(2*i+1, 1)...)
	}
	if _, err := apply(Split{Epoch: 1, Version: 7, Blocks: many, Into: 1}, &rec); !errors.Is(err, ukai.ErrRejected) {
		t.Errorf("%d runs: %v", crdt.MaxRuns+1, err)
	}
	if _, err := apply(Split{Epoch: 1, Version: 7, Blocks: many[1:], Into: 1}, &rec); err != nil {
		t.Error(err)
	}
}
