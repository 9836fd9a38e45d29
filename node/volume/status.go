package volume

import (
	"time"

	"ukai"
	"ukai/crdt"
)

// Status is what this node can say about a disk. On the holder's node it is exact; elsewhere it is what gossip brought.
type Status struct {
	Disk     ukai.DiskID
	Name     string
	Size     int64 // bytes
	Phase    crdt.Phase
	Epoch    ukai.Epoch
	Holder   ukai.NodeID // zero if nobody holds it
	Here     bool        // this node holds it
	Attached int         // Attach without Detach on this node; 0 and Here: held for the time being, let go when idle
	// Suspended says why writes wait, "" if they do not.
	Suspended string
	// Ended says why I/O fails until the disk is attached anew, "" if it does not.
	Ended string
	// InDoubt: a change of the quorum record is under way or its outcome is unknown.
	InDoubt      bool
	Inflight     int64         // requests of the guest that run or wait
	Lease        time.Duration // how long reads may still be answered without a heartbeat; negative: they wait. Never 0 if Here.
	LeaseForever bool          // all in-sync replicas are on this node
	Stable       ukai.BlockStamp
	Touched      int64 // blocks written since the last checkpoint
	Replicas     []ReplicaStatus
}

// ReplicaStatus is one replica of a disk.
type ReplicaStatus struct {
	Replica ukai.ReplicaID
	Node    ukai.NodeID
	Group   uint8
	Role    crdt.Role
	Linked  bool          // on the holder's node: it answers
	Why     string        // why it does not
	Since   time.Duration // for how long it has not
	Latency time.Duration // mean of its reads, 0 if there were none

	// Of a replica that is not in sync, on the node of the holder or of who looked after the disk:
	Out     time.Duration // for how long it has been out, 0 if not known
	Trouble string        // why it is out, or why its last resync failed
	Behind  int64         // bytes to compare and copy, at most; 0 if not known
	Resync  *Progress     // of the resync that runs, nil if none does
}

// Progress is how far the resync of a replica has come.
type Progress struct {
	Total  int64         // bytes that were found to differ, perhaps
	Left   int64         // of these, and of what was missed since
	Copied int64         // bytes that did differ
	Took   time.Duration // so far
}

// Remaining estimates how long the resync still takes, 0 if that cannot be told.
func (p Progress) Remaining() time.Duration {
	done := p.Total - p.Left
	if done <= 0 || p.Left <= 0 {
		return 0
	}
	return time.Duration(float64(p.Took) / float64(done) * float64(p.Left))
}

// Status returns what this node knows about the disk now.
func (d *Disk) Status() Status {
	s := Status{Disk: d.id, Name: d.Name(), Attached: d.users()}
	now := d.host.cfg.Clock()
	h := d.holding.Load()
	if h == nil {
		rec, _ := d.host.cfg.Mesh.Record(d.id)
		s.fill(&rec)
		for i := range s.Replicas {
			if r := &s.Replicas[i]; r.Role == crdt.Out || r.Role == crdt.Syncing {
				d.tried(r, now)
			}
		}
		return s
	}
	local := h.describe(&s, now)
	for i := range s.Replicas {
		if r := &s.Replicas[i]; r.Role == crdt.Out && r.Behind == 0 {
			r.Behind = d.written(r.Replica, local)
		}
	}
	return s
}

// describe puts the state of a disk that is held here into s, and returns its replicas on this node.
func (h *holding) describe(s *Status, now time.Duration) (local []*hosted) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.fill(&h.sets.known)
	s.Here, s.Holder, s.Size = true, h.host.cfg.Node, h.size
	s.InDoubt, s.Stable = h.sets.inDoubt(), h.stable
	s.Inflight = h.ops.inside()
	s.Touched = h.check.Load().touched.count.Load()
	if err := h.err(); err != nil {
		s.Ended = err.Error()
	} else if err := h.whyLocked(); err != nil {
		s.Suspended = err.Error()
	}
	if until := time.Duration(h.leaseUntil.Load()); until == never {
		s.LeaseForever = true
	} else {
		s.Lease = until - now
	}
	for i := range s.Replicas {
		r := &s.Replicas[i]
		if r.Role == crdt.Out || r.Role == crdt.Syncing {
			h.absence(r, now)
		}
		m := h.members[r.Replica]
		if m == nil {
			continue
		}
		if m.local != nil && r.Role == crdt.InSync {
			local = append(local, m.local)
		}
		r.Latency = time.Duration(m.latency.mean.Load())
		r.Linked = m.link.Load() != nil
		if m.failure != nil {
			r.Why, r.Since = m.failure.Error(), now-m.since
		}
	}
	return local
}

// written returns how many bytes the blocks have that were written since a replica was dropped, as replicas on this node tell; 0 if that is not
// known.
func (d *Disk) written(out ukai.ReplicaID, local []*hosted) (bytes int64) {
	var since ukai.BlockStamp
	d.noteTries(func(t *tries) {
		if e := (*t)[out]; e != nil {
			since = e.stable
		}
	})
	if since == (ukai.BlockStamp{}) {
		return 0
	}
	for _, r := range local {
		bytes = max(bytes, int64(len(r.data.Newer(since)))*int64(r.data.BlockSize()))
	}
	return bytes
}

// Lost returns the replicas that are not in sync and cannot come back as they are, and for how long that is known: the node of each is
// alive, and says that it has it no more or that its disk has failed.
func (h *Host) Lost(id ukai.DiskID) map[ukai.ReplicaID]time.Duration {
	h.mu.Lock()
	d := h.disks[id]
	h.mu.Unlock()
	if d == nil {
		return nil
	}
	now := h.cfg.Clock()
	var lost map[ukai.ReplicaID]time.Duration
	d.noteTries(func(t *tries) {
		for r, e := range *t {
			if e.lost > 0 {
				if lost == nil {
					lost = make(map[ukai.ReplicaID]time.Duration)
				}
				lost[r] = max(now-e.lost, 1)
			}
		}
	})
	return lost
}

// absence tells what is known of a replica that is not in sync. The caller holds h.mu.
func (h *holding) absence(r *ReplicaStatus, now time.Duration) {
	if f := h.following; f != nil && f.m.Replica == r.Replica {
		left, _ := f.left()
		r.Behind = left
		r.Resync = &Progress{Total: max(f.total.Load(), left), Left: left, Copied: f.moved.Load(), Took: now - f.began}
	}
	h.d.tried(r, now)
}

// tried tells what is remembered of bringing a replica back.
func (d *Disk) tried(r *ReplicaStatus, now time.Duration) {
	d.noteTries(func(t *tries) {
		e := (*t)[r.Replica]
		if e == nil {
			return
		}
		r.Trouble = e.why
		if e.since > 0 {
			r.Out = now - e.since
		}
		if r.Resync == nil {
			r.Behind = e.lacks
		}
	})
}

// fill takes over what a record says.
func (s *Status) fill(rec *crdt.Record) {
	s.Size, s.Phase, s.Epoch = rec.Size, rec.Phase, rec.Epoch
	if rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering {
		s.Holder = rec.Holder
	}
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].Members {
			s.Replicas = append(s.Replicas, ReplicaStatus{Replica: m.Replica, Node: m.Node, Group: rec.Groups[i].ID, Role: m.Role})
		}
	}
}
