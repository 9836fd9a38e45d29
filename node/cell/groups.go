package cell

import (
	"fmt"
	"slices"

	"ukai"
	"ukai/crdt"
)

// The changes of which blocks belong to which group. All are the holder's. None of them changes which replicas of a block are in sync, and so nothing that
// is under way for it: that is for the changes of members, once the blocks have a group of their own.

// Split gives ranges of blocks of a group a group of their own, with the same replicas.
type Split struct {
	Epoch   ukai.Epoch
	Version uint64
	Group   uint8
	Blocks  []ukai.Range // sorted, apart, all of the group, not all of its blocks
	Into    uint8        // a free id
}

// Apply implements Change. A replica that is being brought up to date is so in the group that stays, and out in the new one.
func (c Split) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantHolding(c, &rec, c.Epoch, c.Version); err != nil {
		return rec, err
	}
	g := rec.Group(c.Group)
	switch {
	case g == nil:
		return rec, reject(c, "group %d does not exist", c.Group)
	case rec.Group(c.Into) != nil:
		return rec, reject(c, "group %d exists already", c.Into)
	case len(rec.Groups) == crdt.MaxGroups:
		return rec, reject(c, "the disk has %d groups of replicas, the most there can be: use the same rule for more ranges", len(rec.Groups))
	case len(c.Blocks) == 0:
		return rec, reject(c, "no blocks")
	}
	has := rec.RangesOf(c.Group)
	for i, r := range c.Blocks {
		if i > 0 && c.Blocks[i-1].End() > r.First || r.Count == 0 {
			return rec, reject(c, "blocks %v are not sorted and apart", c.Blocks)
		}
		if !slices.ContainsFunc(has, func(h ukai.Range) bool { return h.First <= r.First && r.End() <= h.End() }) {
			return rec, reject(c, "blocks %v are not all of group %d", r, c.Group)
		}
	}
	next := crdt.Group{ID: c.Into, Generation: g.Generation, Members: slices.Clone(g.Members)}
	for i := range next.Members {
		if m := &next.Members[i]; m.Role == crdt.Syncing {
			m.Role = crdt.Out
		}
	}
	at, _ := slices.BinarySearchFunc(rec.Groups, c.Into, func(g crdt.Group, id uint8) int { return int(g.ID) - int(id) })
	rec.Groups = slices.Insert(rec.Groups, at, next)
	for _, r := range c.Blocks {
		if err := rec.SetRange(r, c.Into); err != nil {
			return rec, reject(c, "%w", err)
		}
	}
	if len(rec.RangesOf(c.Group)) == 0 {
		return rec, reject(c, "nothing would be left of group %d", c.Group)
	}
	return finish(c, rec)
}

// Done implements Change.
func (c Split) Done(rec crdt.Record) bool {
	return rec.Epoch == c.Epoch && rec.Phase == crdt.PhaseActive && rec.Version > c.Version && rec.Group(c.Into) != nil && slices.Equal(rec.RangesOf(c.Into), ukai.JoinRanges(c.Blocks))
}

func (c Split) String() string { return fmt.Sprintf("split of group %d into %d", c.Group, c.Into) }

// Merge gives all blocks of a group to another that has the same replicas, all in sync in both. The group is no more.
type Merge struct {
	Epoch   ukai.Epoch
	Version uint64
	Group   uint8
	Into    uint8
}

// Apply implements Change. A replica that were in sync in one group only would be taken for one that has the blocks of the other.
func (c Merge) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantHolding(c, &rec, c.Epoch, c.Version); err != nil {
		return rec, err
	}
	g, into := rec.Group(c.Group), rec.Group(c.Into)
	switch {
	case g == nil:
		return rec, reject(c, "group %d does not exist", c.Group)
	case into == nil:
		return rec, reject(c, "group %d does not exist", c.Into)
	case c.Group == c.Into:
		return rec, reject(c, "it is the same group")
	case !slices.Equal(g.Members, into.Members) || g.Count(crdt.InSync) != len(g.Members):
		return rec, reject(c, "their replicas are not the same, all of them in sync")
	}
	for _, r := range rec.RangesOf(c.Group) {
		if err := rec.SetRange(r, c.Into); err != nil {
			return rec, reject(c, "%w", err)
		}
	}
	rec.Groups = slices.DeleteFunc(rec.Groups, func(g crdt.Group) bool { return g.ID == c.Group })
	return finish(c, rec)
}

// Done implements Change.
func (c Merge) Done(rec crdt.Record) bool {
	return rec.Epoch == c.Epoch && rec.Phase == crdt.PhaseActive && rec.Version > c.Version && rec.Group(c.Group) == nil
}

func (c Merge) String() string { return fmt.Sprintf("merge of group %d into %d", c.Group, c.Into) }
