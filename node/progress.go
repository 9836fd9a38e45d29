package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/volume"
)

// How far the replicas of a disk are that are not in sync, and why its I/O waits, only the node knows that holds the disk, or that looks after one
// that nobody holds. It is asked when an administrator asks, and not gossiped.

const (
	// progressTime bounds how long other nodes are asked how far they are; what does not come is not shown.
	progressTime = 2 * time.Second
	// maxAccounts bounds the disks that a node tells of in one answer.
	maxAccounts = 1024
	// maxWhy bounds the reasons in it; longer ones are cut.
	maxWhy = 256
)

// account is what a node tells of a disk that is not as it should be.
type account struct {
	Disk      ukai.DiskID      `cbor:"1,keyasint"`
	Here      bool             `cbor:"2,keyasint,omitempty"`
	Suspended string           `cbor:"3,keyasint,omitempty"`
	Ended     string           `cbor:"4,keyasint,omitempty"`
	Replicas  []replicaAccount `cbor:"5,keyasint,omitempty"`
}

// replicaAccount tells of a replica that is not in sync. Times are in nanoseconds.
type replicaAccount struct {
	Replica ukai.ReplicaID `cbor:"1,keyasint"`
	Group   uint8          `cbor:"2,keyasint"`
	Out     time.Duration  `cbor:"3,keyasint,omitempty"`
	Trouble string         `cbor:"4,keyasint,omitempty"`
	Behind  int64          `cbor:"5,keyasint,omitempty"`
	Resync  *resyncAccount `cbor:"6,keyasint,omitempty"`
}

type resyncAccount struct {
	Total  int64         `cbor:"1,keyasint"`
	Left   int64         `cbor:"2,keyasint"`
	Copied int64         `cbor:"3,keyasint"`
	Took   time.Duration `cbor:"4,keyasint"`
}

// accounts returns what this node has to tell.
func (n *Node) accounts() []account {
	var list []account
	for _, s := range n.host.Troubled() {
		a := account{Disk: s.Disk, Here: s.Here, Suspended: cutWhy(s.Suspended), Ended: cutWhy(s.Ended)}
		for _, r := range s.Replicas {
			if r.Role == crdt.InSync {
				continue
			}
			ra := replicaAccount{Replica: r.Replica, Group: r.Group, Out: r.Out, Trouble: cutWhy(r.Trouble), Behind: r.Behind}
			if p := r.Resync; p != nil {
				ra.Resync = &resyncAccount{Total: p.Total, Left: p.Left, Copied: p.Copied, Took: p.Took}
			}
			a.Replicas = append(a.Replicas, ra)
		}
		if list = append(list, a); len(list) == maxAccounts {
			break
		}
	}
	return list
}

func cutWhy(s string) string { return s[:min(len(s), maxWhy)] }

// status is the account as the node has it that gave it.
func (a account) status() volume.Status {
	s := volume.Status{Disk: a.Disk, Here: a.Here, Suspended: a.Suspended, Ended: a.Ended}
	for _, r := range a.Replicas {
		rs := volume.ReplicaStatus{Replica: r.Replica, Group: r.Group, Out: r.Out, Trouble: r.Trouble, Behind: r.Behind}
		if p := r.Resync; p != nil {
			rs.Resync = &volume.Progress{Total: p.Total, Left: p.Left, Copied: p.Copied, Took: p.Took}
		}
		s.Replicas = append(s.Replicas, rs)
	}
	return s
}

// hear asks those who hold or look after disks what there is to tell of them, and has p know it.
func (n *Node) hear(ctx context.Context, p *people, disks ...*crdt.Disk) {
	var whom []ukai.NodeID
	for _, d := range disks {
		rec, ok := d.Record()
		if !ok {
			continue
		}
		if id, ok := teller(*p, rec); ok && !slices.Contains(whom, id) {
			whom = append(whom, id)
		}
	}
	payload, err := codec.Marshal(question{Accounts: true})
	if err != nil {
		n.log.Error("encode a question", "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, progressTime)
	defer cancel()
	told := make([][]account, len(whom))
	room := make(chan struct{}, maxAsked)
	var all sync.WaitGroup
	for i, id := range whom {
		if id == n.id {
			told[i] = n.accounts()
			continue
		}
		all.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			q, _ := n.ask(ctx, id, payload) // nothing, if it does not answer
			told[i] = q.Told
		})
	}
	all.Wait()
	p.told = map[ukai.DiskID]volume.Status{}
	for _, list := range told {
		for _, a := range list {
			if was, known := p.told[a.Disk]; !known || !was.Here {
				p.told[a.Disk] = a.status()
			}
		}
	}
}

// teller returns the node that knows how far a disk's replicas are, if there is something to be told: its holder, or the one that brings
// replicas back which are out.
func teller(p people, rec crdt.Record) (ukai.NodeID, bool) {
	if (rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering) && !p.abandoned(rec) {
		return rec.Holder, p.alive(rec.Holder)
	}
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].Members {
			if m.Role != crdt.InSync {
				return caretaker(p, rec)
			}
		}
	}
	return ukai.NodeID{}, false
}
