package crdt

import (
	"bytes"
	"fmt"
	"slices"

	"ukai"
)

// Check says what is wrong with the structure of r, or nil. It holds for every record that arbiters accept and that
// gossip carries. Errors match ukai.ErrInvalid.
func (r *Record) Check() error {
	for _, part := range []func() error{
		r.checkIdentity, r.checkLineage, r.checkArbiters, r.checkHolder, r.checkGroups, r.checkAhead, r.checkRuns, r.checkLayers, r.checkPins,
	} {
		if err := part(); err != nil {
			return fmt.Errorf("record of disk %v: %w", r.Disk, err)
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w: %s", append(args[:len(args)-1:len(args)-1], ukai.ErrInvalid, args[len(args)-1])...)
}

func (r *Record) checkIdentity() error {
	if r.Disk.IsZero() {
		return invalid("disk id", "must not be zero")
	}
	if r.Version == 0 {
		return invalid("version 0", "the first committed version is 1")
	}
	if err := ukai.CheckDiskSize(r.Size); err != nil {
		return err
	}
	if err := ukai.CheckBlockSize(r.BlockSize); err != nil {
		return err
	}
	if r.MinSync < 1 || r.MinSync > MaxMembers {
		return invalid("min-sync %d", r.MinSync, fmt.Sprintf("must be 1 to %d", MaxMembers))
	}
	for _, err := range []error{
		checkWord("phase", phaseWords, r.Phase), checkWord("on-loss", onLossWords, r.OnLoss),
		checkWord("quorum", quorumWords, r.Quorum), checkWord("ack", ackWords, r.Ack),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkLineage holds the forks to the order in which forced takeovers can happen: each leaves from a record that its
// lineage had already committed. Dominates relies on it.
func (r *Record) checkLineage() error {
	if len(r.Lineage) > MaxForks {
		return invalid("%d forced takeovers", len(r.Lineage), fmt.Sprintf("at most %d; export the disk to a new one", MaxForks))
	}
	for i, f := range r.Lineage {
		next := point{r.Instance, r.Version}
		if i+1 < len(r.Lineage) {
			next = point{r.Lineage[i+1].Instance, r.Lineage[i+1].Version}
		}
		if f.ID == (ukai.Nonce{}) {
			return invalid("fork %d", i, "its id must not be zero")
		}
		if (point{f.Instance, f.Version}).compare(next) >= 0 {
			return invalid("fork %v", f, fmt.Sprintf("must be before %v, which follows it", next))
		}
		for _, g := range r.Lineage[:i] {
			if f.ID == g.ID {
				return invalid("fork %v", f, "its id is already taken by an older fork")
			}
		}
	}
	if n := uint64(len(r.Lineage)); r.Epoch.Forced() < n {
		return invalid("epoch %v", r.Epoch, fmt.Sprintf("must count the %d forced takeovers of the lineage", n))
	}
	return nil
}

func (r *Record) checkArbiters() error {
	switch len(r.Arbiters) {
	case 1, 2, 3, 5:
	default:
		return invalid("%d arbiters", len(r.Arbiters), "must be 1, 2, 3 or 5")
	}
	for i, a := range r.Arbiters {
		if a.IsZero() {
			return invalid("arbiter %d", i, "must not be zero")
		}
		if i > 0 && bytes.Compare(r.Arbiters[i-1][:], a[:]) >= 0 {
			return invalid("arbiter %v", a, "arbiters must be sorted and distinct")
		}
	}
	switch {
	case r.Quorum == PreferredNode && !slices.Contains(r.Arbiters, r.Preferred):
		return invalid("preferred node %v", r.Preferred, "must be one of the arbiters")
	case r.Quorum != PreferredNode && !r.Preferred.IsZero():
		return invalid("preferred node %v", r.Preferred, "only with quorum mode preferred")
	}
	return nil
}

func (r *Record) checkHolder() error {
	if r.Phase != PhaseRecovering && r.Phase != PhaseActive {
		return nil
	}
	if r.Holder.IsZero() {
		return invalid("phase %v", r.Phase, "must name its holder")
	}
	if r.Epoch == 0 {
		return invalid("epoch 0", "a disk that is held has a claimed epoch")
	}
	return nil
}

func (r *Record) checkGroups() error {
	if len(r.Groups) == 0 && r.Phase != PhaseDeleted || len(r.Groups) > MaxGroups {
		return invalid("%d groups of replicas", len(r.Groups), fmt.Sprintf("must be 1 to %d; use the same rule for more ranges", MaxGroups))
	}
	for i := range r.Groups {
		g := &r.Groups[i]
		if i > 0 && r.Groups[i-1].ID >= g.ID {
			return invalid("group %d", g.ID, "groups must be sorted by id and distinct")
		}
		if err := r.checkGroup(g); err != nil {
			return fmt.Errorf("group %d: %w", g.ID, err)
		}
	}
	return nil
}

func (r *Record) checkGroup(g *Group) error {
	if len(g.Members) > MaxMembers {
		return invalid("%d members", len(g.Members), fmt.Sprintf("at most %d", MaxMembers))
	}
	inSync := 0
	for i, m := range g.Members {
		switch {
		case m.Replica == 0:
			return invalid("member %d", i, "its replica id must not be zero")
		case m.Node.IsZero():
			return invalid("replica %v", m.Replica, "must name its node")
		case i > 0 && g.Members[i-1].Replica >= m.Replica:
			return invalid("replica %v", m.Replica, "members must be sorted by replica id and distinct")
		}
		if err := checkWord("role", roleWords, m.Role); err != nil {
			return fmt.Errorf("replica %v: %w", m.Replica, err)
		}
		// One replica may serve several groups, since a replica is one node's copy of a disk; but it never moves.
		for j := range r.Groups {
			if r.Groups[j].ID == g.ID {
				break
			}
			if other := r.Groups[j].Member(m.Replica); other != nil && other.Node != m.Node {
				return invalid("replica %v", m.Replica, fmt.Sprintf("is on node %v here and on node %v in group %d", m.Node.Short(), other.Node.Short(), r.Groups[j].ID))
			}
		}
		if m.Role == InSync {
			inSync++
			if m.Fresh {
				return invalid("replica %v", m.Replica, "one that is in sync is not fresh")
			}
		}
	}
	if inSync == 0 && r.Phase != PhaseDeleted {
		return invalid("%d members", len(g.Members), "at least one must be in sync")
	}
	return nil
}

func (r *Record) checkAhead() error {
	if r.Ahead != 0 && !r.InSyncAnywhere(r.Ahead) {
		return invalid("replica %v", r.Ahead, "only one that is in sync can be ahead of the others")
	}
	return nil
}

func (r *Record) checkRuns() error {
	if len(r.Runs) == 0 && r.Phase == PhaseDeleted {
		return nil
	}
	if len(r.Runs) == 0 || len(r.Runs) > MaxRuns {
		return invalid("%d runs of blocks", len(r.Runs), fmt.Sprintf("must be 1 to %d; give neighbouring ranges the same rule to join them", MaxRuns))
	}
	want, sum := ukai.Blocks(r.Size, r.BlockSize), uint64(0)
	for i, run := range r.Runs {
		if run.Count == 0 || run.Count > want-sum {
			return invalid("run %d of %d blocks", i, run.Count, fmt.Sprintf("must be 1 to %d, what is left of the disk's %d blocks", want-sum, want))
		}
		if r.Group(run.Group) == nil {
			return invalid("run %d", i, fmt.Sprintf("names group %d, which does not exist", run.Group))
		}
		sum += run.Count
	}
	if sum != want {
		return invalid("runs of %d blocks", sum, fmt.Sprintf("must cover the disk's %d blocks", want))
	}
	return nil
}

func (r *Record) checkLayers() error {
	if len(r.Layers) > MaxLayers {
		return invalid("%d layers", len(r.Layers), fmt.Sprintf("at most %d; remove a snapshot first", MaxLayers))
	}
	for i, l := range r.Layers {
		if i > 0 && r.Layers[i-1].ID >= l.ID {
			return invalid("layer %d", l.ID, "layers must be sorted by id and distinct")
		}
		if l.Parent != 0 && !slices.ContainsFunc(r.Layers[:i], func(p Layer) bool { return p.ID == l.Parent }) {
			return invalid("layer %d", l.ID, fmt.Sprintf("its parent %d is not an older layer", l.Parent))
		}
		if l.Name != "" {
			if err := ukai.CheckName("snapshot", l.Name); err != nil {
				return fmt.Errorf("layer %d: %w", l.ID, err)
			}
		}
	}
	return nil
}

func (r *Record) checkPins() error {
	if len(r.Pins) > MaxPins {
		return invalid("%d clones", len(r.Pins), fmt.Sprintf("at most %d; clone a clone instead", MaxPins))
	}
	for i, p := range r.Pins {
		if p.IsZero() || p == r.Disk {
			return invalid("pin %v", p, "must name another disk")
		}
		if i > 0 && bytes.Compare(r.Pins[i-1][:], p[:]) >= 0 {
			return invalid("pin %v", p, "pins must be sorted and distinct")
		}
	}
	return nil
}
