package cell

import (
	"fmt"
	"slices"

	"ukai"
	"ukai/crdt"
)

// Change is a pure function from the committed record to the next one.
type Change interface {
	// Apply returns what the change makes of rec, or an error that matches ukai.ErrRejected and says which guard does
	// not hold. The result's Version is one higher and its structure has been checked. rec belongs to Apply.
	Apply(rec crdt.Record) (crdt.Record, error)
	// Done says whether the change's effect is already part of rec, so that applying it again is not needed. It is how
	// an attempt with an unknown outcome is recognised afterwards.
	Done(rec crdt.Record) bool
	// String names the change for errors, as "claim by 0123abcd".
	String() string
}

// apply runs c on a copy of rec and holds its result to what every change must keep.
func apply(c Change, rec *crdt.Record) (crdt.Record, error) {
	next, err := c.Apply(rec.Clone())
	if err != nil {
		return crdt.Record{}, err
	}
	if next.Disk != rec.Disk || next.Version != rec.Version+1 || fork(&next) != fork(rec) || next.Epoch < rec.Epoch ||
		next.Instance < rec.Instance {
		return crdt.Record{}, reject(c, "its result does not follow version %d of the record", rec.Version)
	}
	return next, nil
}

// reject returns the refusal of a change: what was found, and what the guard wants.
func reject(c Change, format string, args ...any) error {
	return fmt.Errorf("%v: %w: %w", c, ukai.ErrRejected, fmt.Errorf(format, args...))
}

// finish makes rec the next version and checks it. A replica that is in sync no more is not ahead of any that is: its
// holder has seen to that before.
func finish(c Change, rec crdt.Record) (crdt.Record, error) {
	rec.Version++
	if !rec.InSyncAnywhere(rec.Ahead) {
		rec.Ahead = 0
	}
	if _, err := rec.Encode(); err != nil {
		return crdt.Record{}, reject(c, "%w", err)
	}
	return rec, nil
}

// Guards that several changes share. Each returns nil or the refusal.

func wantAlive(c Change, rec *crdt.Record) error {
	if rec.Phase == crdt.PhaseDeleted {
		return reject(c, "the disk is deleted")
	}
	return nil
}

func wantVersion(c Change, rec *crdt.Record, version uint64) error {
	if rec.Version != version {
		return reject(c, "the record is at version %d, the change was made for %d: read it again", rec.Version, version)
	}
	return nil
}

// wantEpoch holds a change of the holder to its own epoch. A holder that has lost it is told who has it.
func wantEpoch(c Change, rec *crdt.Record, epoch ukai.Epoch) error {
	if rec.Epoch != epoch {
		return reject(c, "epoch %v is over: %w", epoch, &ukai.FencedError{Epoch: rec.Epoch})
	}
	return nil
}

func wantPhase(c Change, rec *crdt.Record, phase crdt.Phase) error {
	if rec.Phase != phase {
		return reject(c, "the disk is %v, must be %v", rec.Phase, phase)
	}
	return nil
}

// wantHolding is the guard of most changes of a holder: its epoch, serving, and the version it has seen.
func wantHolding(c Change, rec *crdt.Record, epoch ukai.Epoch, version uint64) error {
	for _, err := range []error{wantEpoch(c, rec, epoch), wantPhase(c, rec, crdt.PhaseActive), wantVersion(c, rec, version)} {
		if err != nil {
			return err
		}
	}
	return nil
}

// Identity changes nothing: it is the linearizable read. The record that Propose returns for it was the committed one
// at some moment between call and return.
type Identity struct{}

// Apply is never needed; see Done.
func (c Identity) Apply(rec crdt.Record) (crdt.Record, error) { return finish(c, rec) }

// Done is always true.
func (Identity) Done(crdt.Record) bool { return true }

func (Identity) String() string { return "read" }

// Claim makes a node the holder of a new epoch. The in-sync sets stay as they are, and so does the replica that may be ahead;
// until Activate the holder serves nothing. From its commit on the holder before can change no set.
type Claim struct {
	Node  ukai.NodeID
	Nonce ukai.Nonce // fresh for each claim
	After ukai.Epoch // the epoch to be succeeded, as read before: two nodes that both want the disk cannot both win
}

// Apply implements Change. Record.Clean tells whether the epoch before was released.
func (c Claim) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantAlive(c, &rec); err != nil {
		return rec, err
	}
	if rec.Epoch != c.After {
		return rec, reject(c, "epoch is %v, the claim was to succeed %v: %w", rec.Epoch, c.After, &ukai.HeldError{Node: rec.Holder})
	}
	if rec.Epoch+1 >= lastEpoch(rec.Epoch) {
		return rec, reject(c, "epoch %v is the last one", rec.Epoch)
	}
	if c.Node.IsZero() {
		return rec, reject(c, "node id must not be zero")
	}
	rec.Epoch++
	rec.Holder, rec.Nonce = c.Node, c.Nonce
	rec.Clean = rec.Phase == crdt.PhaseReleased
	rec.Phase = crdt.PhaseRecovering
	return finish(c, rec)
}

// Done implements Change: the claim is the newest and still holds.
func (c Claim) Done(rec crdt.Record) bool {
	return rec.Holder == c.Node && rec.Nonce == c.Nonce && rec.Epoch > c.After &&
		(rec.Phase == crdt.PhaseRecovering || rec.Phase == crdt.PhaseActive)
}

func (c Claim) String() string { return "claim by node " + c.Node.Short() }

// lastEpoch returns the largest epoch of e's era of forced takeovers: that of a deleted disk.
func lastEpoch(e ukai.Epoch) ukai.Epoch { return ukai.NewEpoch(e.Forced(), ^uint64(0)) }

// Activate ends recovery: the members that were sealed and equalised are in sync, all others that must follow writes
// are out. It may leave fewer than MinSync: writes then wait for a Grow.
type Activate struct {
	Epoch   ukai.Epoch
	Nonce   ukai.Nonce
	Version uint64
	InSync  []ukai.ReplicaID // a non-empty part of each group's in-sync members
	Ahead   ukai.ReplicaID   // that of InSync which the holder will let be ahead of the others, 0 if none
}

// Apply implements Change.
func (c Activate) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantEpoch(c, &rec, c.Epoch); err != nil {
		return rec, err
	}
	if rec.Nonce != c.Nonce {
		return rec, reject(c, "epoch %v was claimed with another nonce", rec.Epoch)
	}
	if err := wantPhase(c, &rec, crdt.PhaseRecovering); err != nil {
		return rec, err
	}
	if err := wantVersion(c, &rec, c.Version); err != nil {
		return rec, err
	}
	for _, id := range c.InSync {
		if !rec.InSyncAnywhere(id) {
			return rec, reject(c, "replica %v is not in sync in any group", id)
		}
	}
	if c.Ahead != 0 && !slices.Contains(c.InSync, c.Ahead) {
		return rec, reject(c, "replica %v is to be ahead and would not be in sync", c.Ahead)
	}
	for i := range rec.Groups {
		g := &rec.Groups[i]
		left, changed := 0, false
		for j := range g.Members {
			m := &g.Members[j]
			switch keep := slices.Contains(c.InSync, m.Replica); {
			case m.Role == crdt.InSync && keep:
				left++
			case m.Role == crdt.InSync:
				m.Role, changed = crdt.Out, true
			case m.Role == crdt.Syncing:
				m.Role = crdt.Out // its resync began in an epoch that is over
			}
		}
		if left == 0 {
			return rec, reject(c, "group %d would have no replica in sync", g.ID)
		}
		if changed {
			g.Generation++
		}
	}
	rec.Phase, rec.Clean, rec.Ahead = crdt.PhaseActive, false, c.Ahead
	return finish(c, rec)
}

// Done implements Change: the epoch is active with exactly these members in sync. Which one is ahead only this holder
// changes.
func (c Activate) Done(rec crdt.Record) bool {
	if rec.Epoch != c.Epoch || rec.Nonce != c.Nonce || rec.Phase != crdt.PhaseActive && rec.Phase != crdt.PhaseReleased {
		return false
	}
	var in []ukai.ReplicaID
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].InSync() {
			if !slices.Contains(c.InSync, m.Replica) {
				return false
			}
			if !slices.Contains(in, m.Replica) {
				in = append(in, m.Replica)
			}
		}
	}
	return len(in) == len(c.InSync)
}

func (c Activate) String() string { return fmt.Sprintf("activate epoch %v", c.Epoch) }

// Release gives the disk up. The holder has stopped serving, and everything is flushed and stable on all in-sync
// members, so that the next claim need not recover.
type Release struct {
	Epoch ukai.Epoch
	Nonce ukai.Nonce
}

// Apply implements Change.
func (c Release) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantEpoch(c, &rec, c.Epoch); err != nil {
		return rec, err
	}
	if rec.Nonce != c.Nonce {
		return rec, reject(c, "epoch %v was claimed with another nonce", rec.Epoch)
	}
	if err := wantPhase(c, &rec, crdt.PhaseActive); err != nil {
		return rec, err
	}
	rec.Phase, rec.Ahead = crdt.PhaseReleased, 0
	return finish(c, rec)
}

// Done implements Change.
func (c Release) Done(rec crdt.Record) bool {
	return rec.Epoch == c.Epoch && rec.Nonce == c.Nonce && rec.Phase == crdt.PhaseReleased
}

func (c Release) String() string { return fmt.Sprintf("release epoch %v", c.Epoch) }
