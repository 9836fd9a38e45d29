package cell

import (
	"bytes"
	"fmt"
	"slices"

	"ukai"
	"ukai/crdt"
)

// Resize changes the size of a disk, by its holder. For a smaller one the holder has discarded the tail.
type Resize struct {
	Epoch   ukai.Epoch
	Version uint64
	Size    int64 // bytes
	Shrink  bool  // permits a smaller size
}

// Apply implements Change.
func (c Resize) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantHolding(c, &rec, c.Epoch, c.Version); err != nil {
		return rec, err
	}
	if c.Size < rec.Size && !c.Shrink {
		return rec, reject(c, "the disk has %d bytes; making it smaller destroys what lies beyond the new end and must be asked for", rec.Size)
	}
	if c.Size < rec.Size {
		// What such a replica has beyond the new end would be there again when the disk grows.
		for i := range rec.Groups {
			for _, m := range rec.Groups[i].Members {
				if m.Role != crdt.InSync {
					return rec, reject(c, "replica %v of group %d is %v: it must be in sync or retired before the disk is made smaller", m.Replica, rec.Groups[i].ID, m.Role)
				}
			}
		}
	}
	if c.Size == rec.Size {
		return rec, reject(c, "the disk already has %d bytes", rec.Size)
	}
	if err := rec.Resize(c.Size); err != nil {
		return rec, reject(c, "%w", err)
	}
	return finish(c, rec)
}

// Done implements Change.
func (c Resize) Done(rec crdt.Record) bool {
	return rec.Epoch == c.Epoch && rec.Size == c.Size && rec.Phase == crdt.PhaseActive
}

func (c Resize) String() string { return fmt.Sprintf("resize to %d bytes", c.Size) }

// Safety sets what a disk does for safety. Any node may propose it; the holder obeys once it sees the record.
type Safety struct {
	Version uint64
	MinSync int
	OnLoss  crdt.OnLoss
	Ack     crdt.Ack
}

// Apply implements Change.
func (c Safety) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantAlive(c, &rec); err != nil {
		return rec, err
	}
	if err := wantVersion(c, &rec, c.Version); err != nil {
		return rec, err
	}
	for i := range rec.Groups {
		g := &rec.Groups[i]
		if n := len(g.Members) - g.Count(crdt.Async); c.MinSync > n {
			return rec, reject(c, "min-sync %d is more than the %d replicas of group %d: writes would wait for ever", c.MinSync, n, g.ID)
		}
	}
	rec.MinSync, rec.OnLoss, rec.Ack = c.MinSync, c.OnLoss, c.Ack
	return finish(c, rec)
}

// Done implements Change.
func (c Safety) Done(rec crdt.Record) bool {
	return rec.MinSync == c.MinSync && rec.OnLoss == c.OnLoss && rec.Ack == c.Ack
}

func (c Safety) String() string {
	return fmt.Sprintf("set min-sync %d, on-loss %v, ack %v", c.MinSync, c.OnLoss, c.Ack)
}

// Pin keeps a disk from being deleted while a clone of it needs its layers.
type Pin struct {
	Version uint64
	Clone   ukai.DiskID
}

// Apply implements Change.
func (c Pin) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantAlive(c, &rec); err != nil {
		return rec, err
	}
	if err := wantVersion(c, &rec, c.Version); err != nil {
		return rec, err
	}
	if slices.Contains(rec.Pins, c.Clone) {
		return rec, reject(c, "it is pinned already")
	}
	rec.Pins = append(rec.Pins, c.Clone)
	slices.SortFunc(rec.Pins, func(a, b ukai.DiskID) int { return bytes.Compare(a[:], b[:]) })
	return finish(c, rec)
}

// Done implements Change.
func (c Pin) Done(rec crdt.Record) bool { return slices.Contains(rec.Pins, c.Clone) }

func (c Pin) String() string { return fmt.Sprintf("pin for clone %v", c.Clone) }

// Unpin takes a Pin back, after the clone was deleted or has copied what it needed.
type Unpin struct {
	Version uint64
	Clone   ukai.DiskID
}

// Apply implements Change.
func (c Unpin) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantAlive(c, &rec); err != nil {
		return rec, err
	}
	if err := wantVersion(c, &rec, c.Version); err != nil {
		return rec, err
	}
	if !slices.Contains(rec.Pins, c.Clone) {
		return rec, reject(c, "it is not pinned")
	}
	rec.Pins = slices.DeleteFunc(rec.Pins, func(id ukai.DiskID) bool { return id == c.Clone })
	return finish(c, rec)
}

// Done implements Change.
func (c Unpin) Done(rec crdt.Record) bool { return !slices.Contains(rec.Pins, c.Clone) }

func (c Unpin) String() string { return fmt.Sprintf("unpin for clone %v", c.Clone) }

// Stay changes nothing but the version: what was made for an older one, such as a Delete that was allowed before the disk was restored, is refused from
// then on.
type Stay struct{ Version uint64 }

// Apply implements Change.
func (c Stay) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantAlive(c, &rec); err != nil {
		return rec, err
	}
	if err := wantVersion(c, &rec, c.Version); err != nil {
		return rec, err
	}
	return finish(c, rec)
}

// Done implements Change: any later version does.
func (c Stay) Done(rec crdt.Record) bool {
	return rec.Version > c.Version && rec.Phase != crdt.PhaseDeleted
}

func (c Stay) String() string { return "stay" }

// Delete ends a disk for good. Its epoch is the last one, so that no replica ever serves it again.
type Delete struct {
	Version uint64
}

// Apply implements Change.
func (c Delete) Apply(rec crdt.Record) (crdt.Record, error) {
	if err := wantAlive(c, &rec); err != nil {
		return rec, err
	}
	if rec.Phase != crdt.PhaseReleased {
		return rec, reject(c, "the disk is %v, must be released: detach it first: %w", rec.Phase, &ukai.HeldError{Node: rec.Holder})
	}
	if len(rec.Pins) > 0 {
		return rec, reject(c, "%d clones need it, the first is disk %v: delete them first", len(rec.Pins), rec.Pins[0])
	}
	if err := wantVersion(c, &rec, c.Version); err != nil {
		return rec, err
	}
	rec.Phase, rec.Epoch = crdt.PhaseDeleted, lastEpoch(rec.Epoch)
	return finish(c, rec)
}

// Done implements Change.
func (c Delete) Done(rec crdt.Record) bool { return rec.Phase == crdt.PhaseDeleted }

func (c Delete) String() string { return "delete" }
