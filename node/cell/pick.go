package cell

import (
	"slices"

	"ukai"
	"ukai/crdt"
)

// Pick makes a record that of a disk with several histories. Of its replicas only those that are in sync stay: what others hold may belong to
// another history. The node becomes the holder, recovering, in an epoch above those of all histories, so that no holder of before goes on.
type Pick struct {
	Version uint64     // that was read before
	Epoch   ukai.Epoch // the new one
	Node    ukai.NodeID
	Nonce   ukai.Nonce
	Foreign []ukai.ReplicaID // are dropped though they are in sync: another history has written to them
}

// Apply implements Change.
func (c Pick) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantAlive(c, &rec); err != nil {
		return rec, err
	}
	if err := wantVersion(c, &rec, c.Version); err != nil {
		return rec, err
	}
	if c.Epoch <= rec.Epoch || c.Node.IsZero() {
		return rec, reject(c, "epoch %v of node %s must be above %v", c.Epoch, c.Node.Short(), rec.Epoch)
	}
	for i := range rec.Groups {
		g := &rec.Groups[i]
		before := len(g.Members)
		g.Members = slices.DeleteFunc(g.Members, func(m crdt.Member) bool { return m.Role != crdt.InSync || slices.Contains(c.Foreign, m.Replica) })
		if len(g.Members) == 0 {
			return rec, reject(c, "group %d has no replica in sync that another history has not written to", g.ID)
		}
		if len(g.Members) < before {
			g.Generation++
		}
	}
	rec.Epoch, rec.Holder, rec.Nonce, rec.Phase, rec.Clean = c.Epoch, c.Node, c.Nonce, crdt.PhaseRecovering, false
	return finish(c, rec)
}

// Done implements Change.
func (c Pick) Done(rec crdt.Record) bool { return rec.Epoch == c.Epoch && rec.Nonce == c.Nonce }

func (c Pick) String() string { return "pick by node " + c.Node.Short() }

// Discard ends a history of a disk for good, whoever holds it, as Delete does a disk. It was given up when no more than so many takeovers
// had been forced in it; one that was picked or forced since has more, and goes on.
type Discard struct{ Forced uint64 }

// Apply implements Change.
func (c Discard) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantAlive(c, &rec); err != nil {
		return rec, err
	}
	if is := rec.Epoch.Forced(); is > c.Forced {
		return rec, reject(c, "the history was picked or forced since: %d takeovers were, up to %d were given up", is, c.Forced)
	}
	if len(rec.Pins) > 0 {
		return rec, reject(c, "%d clones need it, the first is disk %v: delete them first", len(rec.Pins), rec.Pins[0])
	}
	rec.Phase, rec.Epoch, rec.Ahead = crdt.PhaseDeleted, lastEpoch(rec.Epoch), 0
	return finish(c, rec)
}

// Done implements Change.
func (c Discard) Done(rec crdt.Record) bool { return rec.Phase == crdt.PhaseDeleted }

func (c Discard) String() string { return "discard" }
