package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/cell"
	"ukai/node/place"
)

// SetQuorum implements admin.Backend: it says who decides about a disk, by beginning another instance of its quorum record.
func (n *Node) SetQuorum(ctx context.Context, disk string, q admin.SetQuorum) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	name := d.Name.Value
	rec, err := n.cells.Read(ctx, d.ID)
	if err != nil {
		return admin.Disk{}, fmt.Errorf("quorum of disk %s: %w", name, err)
	}
	change := cell.Rearb{Instance: rec.Instance}
	p := n.people()
	switch q.Mode {
	case admin.QuorumMajority:
		change.Arbiters, _ = place.Arbiters(nodesOf(&rec), p.candidates(), n.mesh.Estimate)
	case admin.QuorumUnsafe:
		if q.AcceptSplitBrain != name {
			return admin.Disk{}, fmt.Errorf("quorum of disk %s: %w: in mode unsafe both sides of a cut may go on, and one side's writes are lost: say --accept-split-brain %s if that is meant", name, ukai.ErrPermission, name)
		}
		change.Arbiters, change.Quorum = rec.Arbiters, crdt.UnsafeSurvivor
		if rec.Quorum == crdt.PreferredNode {
			change.Arbiters, _ = place.Arbiters(nodesOf(&rec), p.candidates(), n.mesh.Estimate)
		}
	case admin.QuorumPreferred:
		preferred, err := n.nodeID(q.Node)
		if err != nil {
			return admin.Disk{}, fmt.Errorf("quorum of disk %s: %w", name, err)
		}
		if !p.alive(preferred) {
			return admin.Disk{}, fmt.Errorf("quorum of disk %s: %w: node %s does not answer, and nothing can be decided without the preferred node", name, ukai.ErrUnreachable, q.Node)
		}
		change.Arbiters, change.Quorum, change.Preferred = []ukai.NodeID{preferred}, crdt.PreferredNode, preferred
	default:
		return admin.Disk{}, fmt.Errorf("quorum mode %q: %w: majority, preferred or unsafe", q.Mode, ukai.ErrInvalid)
	}
	if len(change.Arbiters) == 0 {
		return admin.Disk{}, fmt.Errorf("quorum of disk %s: %w: no node is alive that could keep its record", name, ukai.ErrNoQuorum)
	}
	if rec.Quorum == change.Quorum && rec.Preferred == change.Preferred && slices.Equal(rec.Arbiters, change.Arbiters) {
		return n.Disk(ctx, d.ID.String())
	}
	if _, err := n.cells.Propose(ctx, d.ID, change); err != nil {
		return admin.Disk{}, fmt.Errorf("quorum of disk %s: %w", name, err)
	}
	level := admin.Fine
	if change.Quorum == crdt.UnsafeSurvivor {
		level = admin.Warn
	}
	n.events.add(admin.Event{Level: level, Kind: "quorum-set", Disk: name,
		Text: fmt.Sprintf("disk %s: quorum mode %s, its record is kept by %s", name, q.Mode, strings.Join(refs(p, change.Arbiters), ", "))})
	return n.Disk(ctx, d.ID.String())
}

// quorumText says who decides about a disk: majority, preferred NODE or unsafe.
func quorumText(p people, rec *crdt.Record) string {
	if rec.Quorum == crdt.PreferredNode {
		return "preferred " + p.ref(rec.Preferred).String()
	}
	return rec.Quorum.String()
}

// forceAskTime bounds the search for the newest record among the arbiters that are left.
const forceAskTime = 3 * time.Second

// ForceDisk implements admin.Backend: the way out when a majority of a disk's arbiters is gone for good. It begins a new lineage of the quorum
// record on nodes that are alive, from the newest record that can be found.
func (n *Node) ForceDisk(ctx context.Context, disk string, f admin.ForceDisk) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	n.wanted.add(d.ID) // so that it is known what a failure leaves behind
	if err := n.forceDisk(ctx, d, f.Gone, n.wanted.begin(d.ID)); err != nil {
		return admin.Disk{}, err
	}
	n.wanted.done(d.ID)
	return n.Disk(ctx, d.ID.String())
}

// forceDisk begins a new lineage of a disk's record without its arbiters. All of those that do not answer must be named in gone, unless the quorum mode
// is unsafe. tries is how often that failed before.
func (n *Node) forceDisk(ctx context.Context, d *crdt.Disk, names []string, tries uint32) error {
	name := d.Name.Value
	fail := func(err error) error { return fmt.Errorf("force disk %s: %w", name, err) }
	if err := n.fit(); err != nil {
		return fail(err)
	}
	rec, err := n.known(d.ID)
	if err != nil {
		return fail(err)
	}
	p := n.people()
	rec, silent, decide := n.newestRecord(ctx, rec)
	if decide {
		return fail(fmt.Errorf("%w: a majority of its arbiters answers: nothing needs to be forced; attach it", ukai.ErrRejected))
	}
	missing := refs(p, silent)
	gone := slices.Clone(names)
	slices.Sort(gone)
	if rec.Quorum != crdt.UnsafeSurvivor && !slices.Equal(slices.Compact(gone), missing) {
		return fail(fmt.Errorf("%w: its arbiters %s do not answer; if they are only cut off, or come back later, there will be two disks, and one side's writes are lost. "+
			"Make sure that they are gone for good, then name them all: --gone %s", ukai.ErrPermission, strings.Join(missing, ", "), strings.Join(missing, ",")))
	}
	var replicas []ukai.NodeID
	for i := range rec.Groups {
		alive := 0
		for _, m := range rec.Groups[i].InSync() {
			if p.alive(m.Node) && !slices.Contains(silent, m.Node) {
				alive++
				replicas = append(replicas, m.Node)
			}
		}
		if alive == 0 {
			return fail(fmt.Errorf("blocks %s: %w: no node with an in-sync replica answers; there is nothing to go on with", place.Ranges(rec.RangesOf(rec.Groups[i].ID)), ukai.ErrUnavailable))
		}
	}
	candidates := slices.DeleteFunc(p.candidates(), func(c place.Node) bool { return slices.Contains(silent, c.ID) }) // membership may not know yet
	arbiters, _ := place.Arbiters(replicas, candidates, n.mesh.Estimate)
	next, err := cell.Takeover{Fork: ukai.NewNonce(), Node: n.id, Nonce: ukai.NewNonce(), Arbiters: arbiters, Tries: tries}.From(rec)
	if err != nil {
		return fail(err)
	}
	if _, err := n.cells.Force(ctx, next); err != nil {
		return fail(err)
	}
	n.events.add(admin.Event{Level: admin.Critical, Kind: "disk-forced", Disk: name,
		Text: fmt.Sprintf("disk %s was taken over by force without its arbiters %s; should they come back, there are two histories of it", name, strings.Join(missing, ", "))})
	return nil
}

// newestRecord asks the arbiters of a record for a newer one, accepted or committed, and returns the newest, the arbiters that have no vote, as they
// do not answer or know nothing of it, and whether those that are left can decide. A record that was accepted but never committed is as good as a
// committed one: whoever it counts as in sync has every acknowledged write that its arbiters know of.
//
// One that names other arbiters may be accepted here and there only. Then these have not begun, and are not missed; but those before them are who do not answer.
func (n *Node) newestRecord(ctx context.Context, rec crdt.Record) (newest crdt.Record, silent []ukai.NodeID, decide bool) {
	ctx, cancel := context.WithTimeout(ctx, forceAskTime)
	defer cancel()
	for begun, finish := true, false; ; {
		replies := n.askArbiters(ctx, rec)
		newest = rec
		votes, waiting, ended := 0, 0, false
		for i, id := range rec.Arbiters {
			switch r := replies[i]; {
			case r.Record != nil:
				votes++
				ended = ended || r.Answer == cell.Final
				if r.Record.Version > newest.Version {
					newest = r.Record.Clone()
				}
			case !begun && r.Answer == cell.Unknown && r.Detail == cell.NotBegun:
				waiting++
			case !slices.Contains(silent, id):
				silent = append(silent, id)
			}
		}
		majority := len(rec.Arbiters)/2 + 1
		if newest.Instance == rec.Instance {
			return newest, silent, votes >= majority || finish && votes+waiting >= majority
		}
		if ended {
			silent = nil // of no account any more
		}
		begun, finish, rec = ended, votes >= majority, newest // kept by others by now: ask them
	}
}

// askArbiters has every arbiter of a record tell what it accepted last. Where one does not, the reply has no record.
func (n *Node) askArbiters(ctx context.Context, rec crdt.Record) []cell.Reply {
	where := cell.Where(rec)
	replies := make([]cell.Reply, len(rec.Arbiters))
	var all sync.WaitGroup
	for i, id := range rec.Arbiters {
		all.Go(func() {
			ballot := cell.Ballot{Counter: uint64(time.Now().UnixMilli()), Node: n.id}
			for ctx.Err() == nil {
				r, err := n.cells.Send(ctx, id, cell.Request{Kind: cell.Prepare, Disk: rec.Disk, Instance: where.Instance, Fork: where.Fork, Ballot: ballot})
				if err != nil {
					return
				}
				replies[i] = r
				if r.Answer != cell.Nacked {
					return
				}
				ballot.Counter = r.Outbid.Counter + 1
			}
		})
	}
	all.Wait()
	return replies
}
