package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/gossip"
	"ukai/node/cell"
)

// Quorum mode unsafe: a survivor goes on without the arbiters. Only when the disk is wanted and cannot be had, for a disk that is held and has
// its replicas needs no arbiters, and a second history is made for nothing.

const (
	// unsafeAfter is how long a majority of a disk's arbiters must have been dead for membership before a survivor forces it. It leaves a node time
	// to restart, and a link to flap.
	unsafeAfter = 30 * time.Second
	// wantedFor is how long a disk counts as wanted after somebody could not have it.
	wantedFor = 2 * time.Minute
	// survivorPause is the pause after a forced takeover that failed.
	survivorPause = 10 * time.Second
)

// wanted are the disks that could not be had for want of a quorum.
type wanted struct {
	mu    sync.Mutex
	disks map[ukai.DiskID]want
}

type want struct {
	at    time.Time // when it was wanted last
	tries uint32    // forced takeovers that failed
	pause time.Time // not before
}

// maxWanted bounds the disks that are remembered; more are noted when they are wanted again.
const maxWanted = 4096

func (w *wanted) add(disk ukai.DiskID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.disks == nil {
		w.disks = map[ukai.DiskID]want{}
	}
	if e, known := w.disks[disk]; known || len(w.disks) < maxWanted {
		e.at = time.Now()
		w.disks[disk] = e
	}
}

// due returns the disks that are wanted now, and forgets those that are not any more.
func (w *wanted) due() (list []ukai.DiskID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, e := range w.disks {
		if time.Since(e.at) > wantedFor {
			delete(w.disks, id)
		} else if !time.Now().Before(e.pause) {
			list = append(list, id)
		}
	}
	return list
}

// begin notes that something is done about a disk, and returns how often that failed before.
func (w *wanted) begin(disk ukai.DiskID) (tries uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.disks[disk]
	e.pause = time.Now().Add(survivorPause)
	tries = e.tries
	e.tries++
	w.disks[disk] = e
	return tries
}

func (w *wanted) done(disk ukai.DiskID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.disks, disk)
}

// wantingCells are the quorum records as volumes change them: what a volume cannot have is noted.
type wantingCells struct{ *Node }

func (c wantingCells) Propose(ctx context.Context, disk ukai.DiskID, change cell.Change) (crdt.Record, error) {
	rec, err := c.cells.Propose(ctx, disk, change)
	if errors.Is(err, ukai.ErrNoQuorum) || errors.Is(err, ukai.ErrInDoubt) {
		c.wanted.add(disk)
	}
	return rec, err
}

// outlive looks for disks to be forced until the node stops.
func (n *Node) outlive() {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		if n.fit() == nil {
			n.survive(n.ctx)
		}
	}
}

// survive forces the disks in quorum mode unsafe that are wanted and whose arbiters are gone.
func (n *Node) survive(ctx context.Context) {
	due := n.wanted.due()
	if len(due) == 0 {
		return
	}
	p := n.people()
	for _, id := range due {
		d, err := n.findByID(id)
		if err != nil {
			continue
		}
		rec, ok := d.Record()
		if !ok || !d.Live() || rec.Quorum != crdt.UnsafeSurvivor || !orphaned(p, rec) {
			continue
		}
		survivor, ok := survivorOf(p, rec)
		if !ok {
			continue
		}
		tries := n.wanted.begin(id)
		if survivor != n.id {
			if payload, err := codec.Marshal(question{Disk: id, Wanted: true}); err == nil {
				n.ask(ctx, survivor, payload) // it is wanted still, and asked again
			}
			continue
		}
		if err := n.forceDisk(ctx, d, nil, tries); err != nil {
			n.log.Warn("a disk in quorum mode unsafe cannot be forced; this is tried again", "disk", d.Name.Value, "err", err)
			continue
		}
		n.wanted.done(id)
	}
}

// orphaned says whether a majority of a disk's arbiters has been dead for long enough.
func orphaned(p people, rec crdt.Record) bool {
	dead := 0
	for _, id := range rec.Arbiters {
		if m, ok := p.members[id]; !ok || (m.State == gossip.Dead || m.State == gossip.Left) && time.Since(p.missed(id)) >= unsafeAfter {
			dead++
		}
	}
	return len(rec.Arbiters)-dead <= len(rec.Arbiters)/2
}

// survivorOf returns the one node of those that are left that may force a disk, or they would make a history each: its holder, or if that is
// not among them the first, by id, with an in-sync replica.
func survivorOf(p people, rec crdt.Record) (ukai.NodeID, bool) {
	if (rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering) && p.alive(rec.Holder) {
		return rec.Holder, true
	}
	return caretaker(p, rec)
}
