package cell

import (
	"cmp"
	"fmt"
	"slices"

	"ukai"
	"ukai/crdt"
)

// The changes of a group's members. All are the holder's. A replica is one node's copy of the disk and may serve
// several groups; In names the groups that a change is about, nil all of those that the replica is a member of.

// groupsOf returns pointers to the members that a replica has in the chosen groups.
func groupsOf(c Change, rec *crdt.Record, id ukai.ReplicaID, in []uint8) ([]*crdt.Group, error) {
	for _, g := range in {
		if group := rec.Group(g); group == nil || group.Member(id) == nil {
			return nil, reject(c, "replica %v is not in group %d", id, g)
		}
	}
	var groups []*crdt.Group
	for i := range rec.Groups {
		g := &rec.Groups[i]
		if g.Member(id) != nil && (in == nil || slices.Contains(in, g.ID)) {
			groups = append(groups, g)
		}
	}
	if groups == nil {
		return nil, reject(c, "replica %v is not in the record", id)
	}
	return groups, nil
}

// rolesAre says whether replica id has role in all the chosen groups, and is in at least one.
func rolesAre(rec *crdt.Record, id ukai.ReplicaID, in []uint8, role crdt.Role) bool {
	n := 0
	for i := range rec.Groups {
		g := &rec.Groups[i]
		if in != nil && !slices.Contains(in, g.ID) {
			continue
		}
		if m := g.Member(id); m != nil {
			if m.Role != role {
				return false
			}
			n++
		}
	}
	return n > 0 && n >= len(in)
}

// Shrink takes a replica that failed, or is not wanted any more, out of the in-sync set, or gives up its resync.
type Shrink struct {
	Epoch   ukai.Epoch
	Version uint64
	Replica ukai.ReplicaID
	In      []uint8
	// Keep is how many must stay in sync. 0: one, for a replica that failed: with fewer than MinSync the holder acknowledges
	// nothing, but only without this one may others become in sync.
	Keep int
}

// Apply implements Change. Where a replica works, repair is Join, Grow, then Shrink.
func (c Shrink) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantHolding(c, &rec, c.Epoch, c.Version); err != nil {
		return rec, err
	}
	groups, err := groupsOf(c, &rec, c.Replica, c.In)
	if err != nil {
		return rec, err
	}
	changed := false
	for _, g := range groups {
		m := g.Member(c.Replica)
		switch m.Role {
		case crdt.Async:
			return rec, reject(c, "replica %v is async in group %d", c.Replica, g.ID)
		case crdt.Syncing:
			m.Role, changed = crdt.Out, true
		case crdt.InSync:
			left := g.Count(crdt.InSync) - 1
			if left == 0 {
				return rec, reject(c, "replica %v is the last one in sync in group %d", c.Replica, g.ID)
			}
			if left < c.Keep {
				return rec, reject(c, "group %d would have %d replicas in sync, %d must stay", g.ID, left, c.Keep)
			}
			m.Role, changed = crdt.Out, true
			g.Generation++
		}
	}
	if !changed {
		return rec, reject(c, "replica %v is already out", c.Replica)
	}
	return finish(c, rec)
}

// Done implements Change.
func (c Shrink) Done(rec crdt.Record) bool {
	return rec.Epoch == c.Epoch && rec.Phase == crdt.PhaseActive && rolesAre(&rec, c.Replica, c.In, crdt.Out)
}

func (c Shrink) String() string { return fmt.Sprintf("shrink by replica %v", c.Replica) }

// Join lets a replica follow writes while it is brought up to date: a new one, or one that was out.
type Join struct {
	Epoch   ukai.Epoch
	Version uint64
	Group   uint8
	Replica ukai.ReplicaID // never one that was retired
	Node    ukai.NodeID
}

// Apply implements Change.
func (c Join) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantHolding(c, &rec, c.Epoch, c.Version); err != nil {
		return rec, err
	}
	g := rec.Group(c.Group)
	if g == nil {
		return rec, reject(c, "group %d does not exist", c.Group)
	}
	if m := g.Member(c.Replica); m != nil {
		if m.Node != c.Node {
			return rec, reject(c, "replica %v is on node %s", c.Replica, m.Node.Short())
		}
		if m.Role != crdt.Out {
			return rec, reject(c, "replica %v is %v, must be out", c.Replica, m.Role)
		}
		m.Role = crdt.Syncing
		return finish(c, rec)
	}
	for _, m := range g.Members {
		if m.Node == c.Node {
			return rec, reject(c, "node %s already has replica %v of group %d, which is %v: retire it first", c.Node.Short(), m.Replica, c.Group, m.Role)
		}
	}
	for _, id := range rec.ReplicasOn(c.Node) {
		if id != c.Replica {
			return rec, reject(c, "node %s has replica %v of other blocks of the disk, which can serve these, too", c.Node.Short(), id)
		}
	}
	_, elsewhere := rec.NodeOf(c.Replica)
	g.Members = append(g.Members, crdt.Member{Replica: c.Replica, Node: c.Node, Role: crdt.Syncing, Fresh: elsewhere})
	slices.SortFunc(g.Members, func(a, b crdt.Member) int { return cmp.Compare(a.Replica, b.Replica) })
	return finish(c, rec)
}

// Done implements Change.
func (c Join) Done(rec crdt.Record) bool {
	g := rec.Group(c.Group)
	if rec.Epoch != c.Epoch || rec.Phase != crdt.PhaseActive || g == nil {
		return false
	}
	m := g.Member(c.Replica)
	return m != nil && m.Node == c.Node && m.Role == crdt.Syncing
}

func (c Join) String() string {
	return fmt.Sprintf("join of replica %v on node %s", c.Replica, c.Node.Short())
}

// Grow makes a syncing replica a member of the in-sync set. Every write has waited for it since before this was
// proposed, and it has flushed.
type Grow struct {
	Epoch   ukai.Epoch
	Version uint64
	Replica ukai.ReplicaID
	In      []uint8
}

// Apply implements Change.
func (c Grow) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantHolding(c, &rec, c.Epoch, c.Version); err != nil {
		return rec, err
	}
	groups, err := groupsOf(c, &rec, c.Replica, c.In)
	if err != nil {
		return rec, err
	}
	changed := false
	for _, g := range groups {
		m := g.Member(c.Replica)
		switch {
		case m.Role == crdt.Syncing:
			m.Role, m.Fresh, changed = crdt.InSync, false, true
			g.Generation++
		case c.In != nil:
			return rec, reject(c, "replica %v is %v in group %d, must be syncing", c.Replica, m.Role, g.ID)
		}
	}
	if !changed {
		return rec, reject(c, "replica %v is %v, must be syncing", c.Replica, groups[0].Member(c.Replica).Role)
	}
	return finish(c, rec)
}

// Done implements Change.
func (c Grow) Done(rec crdt.Record) bool {
	if rec.Epoch != c.Epoch || rec.Phase != crdt.PhaseActive {
		return false
	}
	if c.In != nil {
		return rolesAre(&rec, c.Replica, c.In, crdt.InSync)
	}
	in := false
	for i := range rec.Groups {
		if m := rec.Groups[i].Member(c.Replica); m != nil {
			if m.Role == crdt.Syncing {
				return false
			}
			in = in || m.Role == crdt.InSync
		}
	}
	return in
}

func (c Grow) String() string { return fmt.Sprintf("grow by replica %v", c.Replica) }

// Lead names the in-sync replica that the holder lets be ahead of the others from the commit on, or none. Of the one named
// before, all others have everything when this is proposed.
type Lead struct {
	Epoch   ukai.Epoch
	Version uint64
	Replica ukai.ReplicaID // 0: none
}

// Apply implements Change.
func (c Lead) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantHolding(c, &rec, c.Epoch, c.Version); err != nil {
		return rec, err
	}
	if c.Replica != 0 && !rec.InSyncAnywhere(c.Replica) {
		return rec, reject(c, "it is not in sync in any group")
	}
	rec.Ahead = c.Replica
	return finish(c, rec)
}

// Done implements Change.
func (c Lead) Done(rec crdt.Record) bool {
	return rec.Epoch == c.Epoch && rec.Phase == crdt.PhaseActive && rec.Ahead == c.Replica
}

func (c Lead) String() string { return fmt.Sprintf("let replica %v be ahead", c.Replica) }

// Retire removes a replica that is not in sync from the record, for good.
type Retire struct {
	Epoch   ukai.Epoch
	Version uint64
	Replica ukai.ReplicaID
	In      []uint8
}

// Apply implements Change.
func (c Retire) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantHolding(c, &rec, c.Epoch, c.Version); err != nil {
		return rec, err
	}
	groups, err := groupsOf(c, &rec, c.Replica, c.In)
	if err != nil {
		return rec, err
	}
	for _, g := range groups {
		if g.Member(c.Replica).Role == crdt.InSync {
			return rec, reject(c, "replica %v is in sync in group %d: shrink first", c.Replica, g.ID)
		}
		g.Members = slices.DeleteFunc(g.Members, func(m crdt.Member) bool { return m.Replica == c.Replica })
	}
	return finish(c, rec)
}

// Done implements Change.
func (c Retire) Done(rec crdt.Record) bool {
	if rec.Epoch != c.Epoch || rec.Phase != crdt.PhaseActive || rec.Version == c.Version {
		return false
	}
	for i := range rec.Groups {
		if g := &rec.Groups[i]; (c.In == nil || slices.Contains(c.In, g.ID)) && g.Member(c.Replica) != nil {
			return false
		}
	}
	return true
}

func (c Retire) String() string { return fmt.Sprintf("retire replica %v", c.Replica) }
