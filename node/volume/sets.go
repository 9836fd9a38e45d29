package volume

import (
	"slices"

	"ukai"
	"ukai/crdt"
)

// While the outcome of a change to the quorum record is in doubt, more than one record may be the committed one.
// candidates keeps them all (P in the protocol), and answers which replicas must acknowledge a write, which may be read,
// and whose confirmation the lease needs. Pure.
type candidates struct {
	known    crdt.Record   // the last one known to be committed
	proposed []crdt.Record // proposals without a known outcome
}

// resolve replaces everything by a record that was read or committed after all proposals ended.
func (p *candidates) resolve(rec crdt.Record) { p.known, p.proposed = rec, nil }

// propose adds a record that may be committed from now on.
func (p *candidates) propose(rec crdt.Record) { p.proposed = append(p.proposed, rec) }

// inDoubt says whether more than one record may be the committed one.
func (p *candidates) inDoubt() bool { return len(p.proposed) > 0 }

// ackSet returns the replicas of a group that must acknowledge a write: every one that may be in sync.
func (p *candidates) ackSet(group uint8) []crdt.Member {
	set := p.known.InSync(group)
	for i := range p.proposed {
		for _, g := range p.counterparts(i, group) {
			for _, m := range p.proposed[i].InSync(g) {
				if !slices.ContainsFunc(set, func(s crdt.Member) bool { return s.Replica == m.Replica }) {
					set = append(set, m)
				}
			}
		}
	}
	return set
}

// counterparts returns the groups that blocks of a group of the known record have in a proposal: itself, unless that splits or merges groups.
func (p *candidates) counterparts(proposal int, group uint8) []uint8 {
	theirs := &p.proposed[proposal]
	if slices.Equal(theirs.Runs, p.known.Runs) {
		return []uint8{group}
	}
	var groups []uint8
	for _, ours := range p.known.RangesOf(group) {
		first := ukai.Index(0)
		for _, run := range theirs.Runs {
			end := first + ukai.Index(run.Count)
			if first < ours.End() && ours.First < end && !slices.Contains(groups, run.Group) {
				groups = append(groups, run.Group)
			}
			first = end
		}
	}
	return groups
}

// readSet returns the replicas of a group that may be read: those that are in sync whatever the outcome. One that may
// have been dropped may already miss writes.
func (p *candidates) readSet(group uint8) []crdt.Member {
	set := p.known.InSync(group)
	for i := range p.proposed {
		for _, g := range p.counterparts(i, group) {
			other := p.proposed[i].InSync(g)
			set = slices.DeleteFunc(set, func(s crdt.Member) bool {
				return !slices.ContainsFunc(other, func(m crdt.Member) bool { return s.Replica == m.Replica })
			})
		}
	}
	return set
}

// ahead returns the replica of a group that may have what others lack: the one that is named so, and in sync, whatever the
// outcome. 0: none.
func (p *candidates) ahead(group uint8) ukai.ReplicaID {
	named := p.known.Ahead
	differs := func(r *crdt.Record) bool { return r.Ack != crdt.AckLocal || r.Ahead != named }
	if named == 0 || differs(&p.known) {
		return 0
	}
	for i := range p.proposed {
		if differs(&p.proposed[i]) {
			return 0
		}
	}
	if !slices.ContainsFunc(p.readSet(group), func(m crdt.Member) bool { return m.Replica == named }) {
		return 0
	}
	return named
}

// leaseSet returns the replicas, over all groups, whose confirmation the holder's lease needs.
func (p *candidates) leaseSet() []crdt.Member {
	var set []crdt.Member
	for i := range p.known.Groups {
		for _, m := range p.ackSet(p.known.Groups[i].ID) {
			if !slices.ContainsFunc(set, func(s crdt.Member) bool { return s.Replica == m.Replica }) {
				set = append(set, m)
			}
		}
	}
	return set
}

// suspendedGroup returns the first group with fewer in-sync replicas, in some record that may be the committed one,
// than the disk demands for writing.
func (p *candidates) suspendedGroup() (group uint8, have int, suspended bool) {
	for i := range p.known.Groups {
		g := p.known.Groups[i].ID
		if n := len(p.known.InSync(g)); n < p.known.MinSync {
			return g, n, true
		}
	}
	return 0, 0, false
}

// inSyncIn says whether a replica is in sync in each of some groups.
func inSyncIn(rec *crdt.Record, replica ukai.ReplicaID, groups []uint8) bool {
	for _, g := range groups {
		if group := rec.Group(g); group == nil || group.Member(replica) == nil || group.Member(replica).Role != crdt.InSync {
			return false
		}
	}
	return true
}

// grown says whether a replica is in sync in those of some groups that there still are: one that is no more was merged into another, for which all its
// replicas were in sync.
func grown(rec *crdt.Record, replica ukai.ReplicaID, groups []uint8) bool {
	left := slices.DeleteFunc(slices.Clone(groups), func(id uint8) bool { return rec.Group(id) == nil })
	return inSyncIn(rec, replica, left)
}

// memberships returns in how many groups a replica is, and in how many of these it is in sync.
func memberships(rec *crdt.Record, replica ukai.ReplicaID) (all, inSync int) {
	for i := range rec.Groups {
		if m := rec.Groups[i].Member(replica); m != nil {
			all++
			if m.Role == crdt.InSync {
				inSync++
			}
		}
	}
	return all, inSync
}

// layout says which group each block of a disk belongs to. Pure, made once per record.
type layout struct {
	blockSize int64
	size      int64
	runs      []groupRun
}

type groupRun struct {
	end   ukai.Index // after the last block of the run
	group uint8
}

func newLayout(rec *crdt.Record) layout {
	l := layout{blockSize: int64(rec.BlockSize), size: rec.Size}
	var end ukai.Index
	for _, r := range rec.Runs {
		end += ukai.Index(r.Count)
		if n := len(l.runs); n > 0 && l.runs[n-1].group == r.Group {
			l.runs[n-1].end = end
			continue
		}
		l.runs = append(l.runs, groupRun{end: end, group: r.Group})
	}
	return l
}

// groupAt returns the group of a block, and the index after the last block of its run.
func (l *layout) groupAt(i ukai.Index) (group uint8, end ukai.Index) {
	if len(l.runs) == 1 {
		return l.runs[0].group, l.runs[0].end
	}
	at, _ := slices.BinarySearchFunc(l.runs, i, func(r groupRun, i ukai.Index) int {
		if r.end <= i {
			return -1
		}
		return 1
	})
	if at == len(l.runs) {
		at--
	}
	return l.runs[at].group, l.runs[at].end
}

// index returns the block that holds a byte.
func (l *layout) index(off int64) ukai.Index { return ukai.Index(off / l.blockSize) }

// partEnd returns where the part of [off, end) that begins at off ends: at the next block border or at end.
func (l *layout) partEnd(off, end int64) int64 {
	return min(end, (off/l.blockSize+1)*l.blockSize)
}
