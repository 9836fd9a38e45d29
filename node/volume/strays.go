package volume

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/wire"
)

// Strays are blocks that a replica has and does not serve any more: they have moved elsewhere, and it serves others. The holder gives their space back, for only it
// can say that no one makes the replica serve them again meanwhile: that is a change of the record, which it holds off. Should it be deposed, what it has sent is
// refused or done before any later holder's resync looks at the replica, as all that an older epoch or session has sent is.

const (
	// strayBatch is how many blocks are given back while the record stands still.
	strayBatch = 16
	// strayPause is how long it is waited after an error.
	strayPause = 10 * time.Minute
)

// strays is what is known of the strays of a disk.
type strays struct {
	what  string        // the replicas, and which blocks they do not serve; "" if there are none
	since time.Duration // when that became so, or when they were last tried
	gone  bool
}

// strayText says which replicas in sync do not serve which blocks: while that is the same, what was given back stays gone. A disk that was ever forced keeps all
// its strays, for another history may need them. Pure.
func strayText(rec *crdt.Record) string {
	if len(rec.Groups) == 1 || rec.Epoch.Forced() > 0 || rec.Phase == crdt.PhaseDeleted {
		return ""
	}
	var text []string
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].InSync() {
			if list := strayRanges(rec, m.Replica); len(list) > 0 {
				text = append(text, fmt.Sprint(m.Replica, list))
			}
		}
	}
	slices.Sort(text)
	return strings.Join(slices.Compact(text), " ")
}

// strayRanges returns the blocks that a replica does not serve.
func strayRanges(rec *crdt.Record, r ukai.ReplicaID) (list []ukai.Range) {
	for i := range rec.Groups {
		if rec.Groups[i].Member(r) == nil {
			list = append(list, rec.RangesOf(rec.Groups[i].ID)...)
		}
	}
	return list
}

// StraysDue says whether replicas of the disk have had blocks for long enough that they do not serve by a record, and what they take is to be given back.
func (d *Disk) StraysDue(rec *crdt.Record) bool { return d.straysDue(strayText(rec)) }

func (d *Disk) straysDue(what string) bool {
	now := d.host.cfg.Clock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := &d.strays; s.what != what {
		*s = strays{what: what, since: now}
	}
	return what != "" && !d.strays.gone && now-d.strays.since >= d.host.cfg.StrayGrace
}

// giveBack gives the space of strays back.
func (h *holding) giveBack(ctx context.Context) {
	rec := h.record()
	what := strayText(rec)
	var err error
	var bytes int64
	done := map[ukai.ReplicaID]bool{}
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].InSync() {
			if !done[m.Replica] && err == nil {
				done[m.Replica] = true
				err = h.giveBackOf(ctx, m.Replica, &bytes)
			}
		}
	}
	h.d.mu.Lock()
	if s := &h.d.strays; s.what == what {
		s.since, s.gone = h.host.cfg.Clock()-h.host.cfg.StrayGrace+strayPause, err == nil
	}
	h.d.mu.Unlock()
	if err != nil && h.err() == nil && ctx.Err() == nil {
		h.host.cfg.Log.Warn("the space of blocks that have moved elsewhere was not given back; this is tried again", "disk", h.d.Name(), "err", err)
	} else if bytes > 0 {
		h.host.cfg.Log.Info("the space of blocks that have moved elsewhere was given back", "disk", h.d.Name(), "bytes", bytes)
	}
}

// giveBackOf does so at one replica.
func (h *holding) giveBackOf(ctx context.Context, r ukai.ReplicaID, bytes *int64) error {
	for from := int64(0); from >= 0; {
		next, err := h.giveBackSome(ctx, r, from, bytes)
		if err != nil {
			return err
		}
		from = next
	}
	return nil
}

// giveBackSome gives back some strays of a replica from an offset on, while the record stands still. It returns where to go on, or -1.
func (h *holding) giveBackSome(ctx context.Context, r ukai.ReplicaID, from int64, bytes *int64) (next int64, err error) {
	select {
	case h.reconfiguring <- struct{}{}:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	defer func() { <-h.reconfiguring }()
	if err := h.settleSets(); err != nil {
		return 0, err
	}
	h.mu.Lock()
	rec, m, v := h.sets.known, h.members[r], h.view.Load()
	h.mu.Unlock()
	if m == nil || !rec.InSyncAnywhere(r) {
		return -1, nil // dropped meanwhile
	}
	ctx, cancel := context.WithTimeout(ctx, sealWait+rttFactor*h.host.rtt(m.Node))
	defer cancel()
	list := strayRanges(&rec, r)
	slices.SortFunc(list, func(a, b ukai.Range) int { return int(a.First) - int(b.First) })
	left := strayBatch
	for _, blocks := range list {
		end := min(int64(blocks.End())*v.layout.blockSize, v.layout.size)
		for off := max(from, int64(blocks.First)*v.layout.blockSize); off < end; {
			reply, err := m.command(ctx, wire.Message{Kind: wire.KindStatus, Offset: off, Count: seekData}, nil)
			if err != nil {
				return 0, err
			}
			off = max(off, reply.Offset/v.layout.blockSize*v.layout.blockSize)
			if off >= end {
				break
			}
			if left--; left < 0 {
				return off, nil
			}
			n := min(v.layout.blockSize, end-off)
			if err := m.zero(ctx, off, n, h.check.Load().stamp); err != nil {
				return 0, err
			}
			*bytes += n
			off += n
		}
	}
	return -1, nil
}
