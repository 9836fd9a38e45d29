package crdt

import (
	"fmt"
	"slices"

	"ukai"
)

// Blocks returns how many blocks the disk has.
func (r *Record) Blocks() uint64 { return ukai.Blocks(r.Size, r.BlockSize) }

// Group returns the group with this id, as a pointer into r, or nil.
func (r *Record) Group(id uint8) *Group {
	for i := range r.Groups {
		if r.Groups[i].ID == id {
			return &r.Groups[i]
		}
	}
	return nil
}

// GroupOf returns the group that block index belongs to, as a pointer into r, or nil beyond the end of the disk. It walks
// the runs; the data path asks a Map instead.
func (r *Record) GroupOf(index ukai.Index) *Group {
	first := ukai.Index(0)
	for _, run := range r.Runs {
		if index-first < ukai.Index(run.Count) {
			return r.Group(run.Group)
		}
		first += ukai.Index(run.Count)
	}
	return nil
}

// RangesOf returns the ranges of blocks that belong to a group, in order, neighbours joined.
func (r *Record) RangesOf(group uint8) []ukai.Range {
	var ranges []ukai.Range
	first := ukai.Index(0)
	for _, run := range r.Runs {
		if run.Group == group {
			if n := len(ranges); n > 0 && ranges[n-1].End() == first {
				ranges[n-1].Count += run.Count
			} else {
				ranges = append(ranges, ukai.Range{First: first, Count: run.Count})
			}
		}
		first += ukai.Index(run.Count)
	}
	return ranges
}

// BytesOf returns how many bytes the blocks of a group have, about: the last block of the disk may be partly used.
func (r *Record) BytesOf(group uint8) (bytes int64) {
	for _, run := range r.Runs {
		if run.Group == group {
			bytes += int64(run.Count) * int64(r.BlockSize)
		}
	}
	return min(bytes, r.Size)
}

// Locations returns the members that the map names for a block, whatever their role; nil beyond the end of the disk.
// The slice belongs to r.
func (r *Record) Locations(index ukai.Index) []Member {
	if g := r.GroupOf(index); g != nil {
		return g.Members
	}
	return nil
}

// InSync returns the in-sync members of the group with this id.
func (r *Record) InSync(group uint8) []Member {
	if g := r.Group(group); g != nil {
		return g.InSync()
	}
	return nil
}

// InSyncAnywhere says whether a replica is in sync in some group.
func (r *Record) InSyncAnywhere(replica ukai.ReplicaID) bool {
	return slices.ContainsFunc(r.Groups, func(g Group) bool { m := g.Member(replica); return m != nil && m.Role == InSync })
}

// NodeOf returns the node of a replica, whichever groups it serves.
func (r *Record) NodeOf(replica ukai.ReplicaID) (ukai.NodeID, bool) {
	for i := range r.Groups {
		if m := r.Groups[i].Member(replica); m != nil {
			return m.Node, true
		}
	}
	return ukai.NodeID{}, false
}

// ReplicasOn returns the replicas that a node has of this disk, sorted: normally one or none.
func (r *Record) ReplicasOn(node ukai.NodeID) []ukai.ReplicaID {
	var ids []ukai.ReplicaID
	for i := range r.Groups {
		for _, m := range r.Groups[i].Members {
			if m.Node == node && !slices.Contains(ids, m.Replica) {
				ids = append(ids, m.Replica)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// InSync returns the members that are in sync, in order.
func (g *Group) InSync() []Member {
	var in []Member
	for _, m := range g.Members {
		if m.Role == InSync {
			in = append(in, m)
		}
	}
	return in
}

// Count returns how many members have a role.
func (g *Group) Count(role Role) int {
	n := 0
	for _, m := range g.Members {
		if m.Role == role {
			n++
		}
	}
	return n
}

// Member returns the member with this replica id, as a pointer into g, or nil.
func (g *Group) Member(replica ukai.ReplicaID) *Member {
	for i := range g.Members {
		if g.Members[i].Replica == replica {
			return &g.Members[i]
		}
	}
	return nil
}

// SetRange gives the blocks of rg to a group, splits runs at its ends and joins neighbours that now have the same
// group. r is unchanged if it returns an error, which matches ukai.ErrInvalid.
func (r *Record) SetRange(rg ukai.Range, group uint8) error {
	if blocks := r.Blocks(); rg.Count == 0 || rg.Count > blocks || uint64(rg.First) > blocks-rg.Count {
		return fmt.Errorf("blocks %v: %w: the disk has blocks 0-%d", rg, ukai.ErrInvalid, blocks-1)
	}
	if r.Group(group) == nil {
		return fmt.Errorf("group %d: %w: the record has no such group", group, ukai.ErrInvalid)
	}
	var runs []Run
	add := func(count uint64, group uint8) {
		if n := len(runs); n > 0 && runs[n-1].Group == group {
			runs[n-1].Count += count
		} else if count > 0 {
			runs = append(runs, Run{Count: count, Group: group})
		}
	}
	at := uint64(0) // the first block of the run that is looked at
	from, to := uint64(rg.First), uint64(rg.End())
	for _, run := range r.Runs {
		end := at + run.Count
		add(min(end, max(at, from))-at, run.Group) // what lies before rg
		if at <= from && from < end {
			add(rg.Count, group)
		}
		add(end-max(at, min(end, to)), run.Group) // what lies after it
		at = end
	}
	if len(runs) > MaxRuns {
		return fmt.Errorf("blocks %v: %w: the map of disk %v would have %d runs, at most %d: give neighbouring ranges the same rule to join them", rg, ukai.ErrInvalid, r.Disk, len(runs), MaxRuns)
	}
	r.Runs = runs
	return nil
}

// Resize sets the size of the disk in bytes and lets the last run grow, or cuts the runs beyond the new end. Groups
// that lose their last block stay. r is unchanged if it returns an error, which matches ukai.ErrInvalid.
func (r *Record) Resize(size int64) error {
	if err := ukai.CheckDiskSize(size); err != nil {
		return err
	}
	left := ukai.Blocks(size, r.BlockSize)
	runs := make([]Run, 0, len(r.Runs))
	for _, run := range r.Runs {
		if left == 0 {
			break
		}
		run.Count = min(run.Count, left)
		left -= run.Count
		runs = append(runs, run)
	}
	if n := len(runs); n > 0 {
		runs[n-1].Count += left
	}
	r.Size, r.Runs = size, runs
	return nil
}

// FreeGroup returns the lowest group id that is not taken, or an error that matches ukai.ErrInvalid if MaxGroups are.
func (r *Record) FreeGroup() (uint8, error) {
	for id := range uint8(MaxGroups) {
		if r.Group(id) == nil {
			return id, nil
		}
	}
	return 0, fmt.Errorf("disk %v: %w: has %d groups of replicas already: use the same rule for more ranges", r.Disk, ukai.ErrInvalid, len(r.Groups))
}
