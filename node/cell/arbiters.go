package cell

import (
	"bytes"
	"fmt"
	"slices"

	"ukai"
	"ukai/crdt"
)

// Rearb replaces the arbiters, and with them how many decide: it writes the FINAL of an instance.
type Rearb struct {
	Instance uint32        // the one to be ended, as read before
	Arbiters []ukai.NodeID // of the next one: 1, 2, 3 or 5; those of before may be among them or not
	Quorum   crdt.Quorum
	// Preferred is the node that decides alone, with Quorum PreferredNode: then it is the only arbiter.
	Preferred ukai.NodeID
	// Beyond is an instance that the next one's number must be above: an arbiter of that may have one of another history of the disk. 0: that of
	// this one is enough.
	Beyond uint32
}

func (c Rearb) next() uint32 { return max(c.Instance, c.Beyond) + 1 }

// Apply implements Change.
func (c Rearb) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantAlive(c, &rec); err != nil {
		return rec, err
	}
	if rec.Instance != c.Instance {
		return rec, reject(c, "arbiters are of instance %d, the change was made for %d: read the record again", rec.Instance, c.Instance)
	}
	if err := wantPreferred(c, c.Arbiters, c.Quorum, c.Preferred); err != nil {
		return rec, err
	}
	if max(rec.Instance, c.Beyond) == ^uint32(0) {
		return rec, reject(c, "instance %d is the last one", ^uint32(0))
	}
	rec.Instance = c.next()
	rec.Arbiters, rec.Quorum, rec.Preferred = sorted(c.Arbiters), c.Quorum, c.Preferred
	return finish(c, rec)
}

// Done implements Change.
func (c Rearb) Done(rec crdt.Record) bool {
	return rec.Instance == c.next() && slices.Equal(rec.Arbiters, sorted(c.Arbiters)) && rec.Quorum == c.Quorum && rec.Preferred == c.Preferred
}

func (c Rearb) String() string {
	return fmt.Sprintf("replace arbiters of instance %d by %s", c.Instance, short(c.Arbiters))
}

// Takeover is the forced takeover of a disk whose majority of arbiters is gone for good, or which accepted the risk of
// two survivors. It does not ask the old arbiters, so it is no Change: what it returns begins a new lineage, by INIT on
// the new arbiters (see Force). If the old ones are alive after all there are two disks from here on.
type Takeover struct {
	Fork     ukai.Nonce // fresh: the new lineage's id
	Node     ukai.NodeID
	Nonce    ukai.Nonce
	Arbiters []ukai.NodeID
	// Tries is how often this was tried and failed: what that left behind at some arbiters must not be in the way.
	Tries uint32
}

// From returns the first record of the new lineage, which leaves from rec, the newest record that can be found. Node
// holds it, recovering, in an epoch above all that the old lineage can reach.
func (t Takeover) From(rec crdt.Record) (crdt.Record, error) {
	what := fmt.Sprintf("forced takeover by node %s", t.Node.Short())
	refuse := func(format string, args ...any) (crdt.Record, error) {
		return crdt.Record{}, fmt.Errorf("%s: %w: %s", what, ukai.ErrRejected, fmt.Sprintf(format, args...))
	}
	if rec.Phase == crdt.PhaseDeleted {
		return refuse("the disk is deleted")
	}
	if t.Fork == (ukai.Nonce{}) || t.Node.IsZero() {
		return refuse("the new lineage's id and node must not be zero")
	}
	rec = rec.Clone()
	rec.Lineage = append(rec.Lineage, crdt.Fork{ID: t.Fork, Instance: rec.Instance, Version: rec.Version})
	// Within the old era the count goes on, so that epochs of one disk never repeat.
	rec.Epoch = ukai.NewEpoch(rec.Epoch.Forced()+1, uint64(rec.Epoch)+1)
	rec.Instance += 1 + t.Tries
	rec.Version++
	rec.Arbiters = sorted(t.Arbiters)
	rec.Holder, rec.Nonce, rec.Phase, rec.Clean = t.Node, t.Nonce, crdt.PhaseRecovering, false
	if rec.Quorum == crdt.PreferredNode && !slices.Equal(rec.Arbiters, []ukai.NodeID{rec.Preferred}) {
		rec.Quorum, rec.Preferred = crdt.Majority, ukai.NodeID{}
	}
	if _, err := rec.Encode(); err != nil {
		return crdt.Record{}, fmt.Errorf("%s: %w: %w", what, ukai.ErrRejected, err)
	}
	return rec, nil
}

// CheckNew says what is wrong with rec as the first record of a new disk, or nil. Errors match ukai.ErrInvalid.
func CheckNew(rec crdt.Record) error {
	wrong := ""
	switch {
	case rec.Version != 1 || rec.Instance != 0 || len(rec.Lineage) > 0:
		wrong = "its version must be 1, its instance 0, its lineage empty"
	case rec.Phase != crdt.PhaseReleased || rec.Epoch != 0 || rec.Clean:
		wrong = "it must be released, in epoch 0"
	case rec.Quorum == crdt.PreferredNode && !slices.Equal(rec.Arbiters, []ukai.NodeID{rec.Preferred}):
		wrong = "its only arbiter must be the preferred node"
	}
	if wrong != "" {
		return fmt.Errorf("create disk %v: %w: %s", rec.Disk, ukai.ErrInvalid, wrong)
	}
	if _, err := rec.Encode(); err != nil {
		return fmt.Errorf("create disk %v: %w", rec.Disk, err)
	}
	return nil
}

// wantPreferred holds the arbiters to the quorum mode: a preferred node decides alone, so it is the only one.
func wantPreferred(c Change, arbiters []ukai.NodeID, mode crdt.Quorum, preferred ukai.NodeID) error {
	alone := slices.Equal(arbiters, []ukai.NodeID{preferred})
	switch {
	case mode == crdt.PreferredNode && !alone:
		return reject(c, "with quorum mode preferred node %s must be the only arbiter", preferred.Short())
	case mode != crdt.PreferredNode && !preferred.IsZero():
		return reject(c, "a preferred node needs quorum mode preferred, not %v", mode)
	}
	return nil
}

func sorted(ids []ukai.NodeID) []ukai.NodeID {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b ukai.NodeID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

func short(ids []ukai.NodeID) []string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.Short()
	}
	return names
}
