package node

import (
	"time"

	"ukai"
	"ukai/crdt"
)

// How much of a disk is allocated its replicas in sync tell: that is what copies of it take. A node that relocates a disk mostly has one of them; where a VM has
// moved before its data it has none, or one that is being filled, and asks.

// allocatedFor is how long it is good what other nodes have said.
const allocatedFor = time.Minute

// allocation is what other nodes have said of a disk.
type allocation struct {
	bytes  int64     // 0: nobody said
	at     time.Time // of the last answers; zero: none yet
	asking bool
}

// allocated returns how many bytes a full replica of a disk takes, at least 1; 0: that is not known here.
func (n *Node) allocated(rec *crdt.Record) int64 {
	if bytes := n.allocatedHere(rec); bytes > 0 {
		return bytes
	}
	n.relocations.mu.Lock()
	defer n.relocations.mu.Unlock()
	return n.relocations.told[rec.Disk].bytes
}

func (n *Node) allocatedHere(rec *crdt.Record) int64 {
	return fullest(rec, n.replicas.Allocated(n.ctx, rec.Disk))
}

// fullest returns how many bytes the fullest replica in sync takes, at least 1, of those whose bytes are given; 0: none of them is in sync.
func fullest(rec *crdt.Record, given map[ukai.ReplicaID]int64) (bytes int64) {
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].InSync() {
			if b, ok := given[m.Replica]; ok {
				bytes = max(bytes, b, 1)
			}
		}
	}
	return bytes
}

// askAllocated asks how much of a disk is allocated, if no replica here tells, and says whether that has been answered, or not been answered in time.
func (n *Node) askAllocated(p people, rec crdt.Record) (answered bool) {
	if n.allocatedHere(&rec) > 0 {
		return true
	}
	r := &n.relocations
	r.mu.Lock()
	a := r.told[rec.Disk]
	ask := !a.asking && time.Since(a.at) >= allocatedFor
	if ask {
		a.asking = true
		r.told[rec.Disk] = a
	}
	r.mu.Unlock()
	if ask {
		n.spawn(func() {
			given := map[ukai.ReplicaID]int64{}
			for _, report := range n.reports(n.ctx, p, rec.Disk, nodesOf(&rec)) {
				for _, s := range report.Replicas {
					given[s.Replica] = s.Bytes
				}
			}
			bytes := fullest(&rec, given)
			r.mu.Lock()
			defer r.mu.Unlock()
			if bytes == 0 {
				bytes = a.bytes
			}
			r.told[rec.Disk] = allocation{bytes: bytes, at: time.Now()}
		})
	}
	return !a.at.IsZero()
}
