package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ukai"
	"ukai/node/store"
	"ukai/node/wire"
)

// A scrub looks for data that cannot be read, or are not what was written, and writes them anew from another in-sync replica. Replicas are
// compared without keeping the guest out; what seems wrong is looked at again, and repaired, under the range lock.
//
// A repair does not raise the block's stamp. After a crash half-way the block would otherwise be a suspect for its bad copy alone, which might then
// be the one that recovery copies from. As it is, a crash leaves a copy that is no worse than before.

// Bounds of a scrub.
const (
	// scrubStep is how long a step lasts; a disk is not let go of while a part is being repaired.
	scrubStep = 2 * time.Second
	// scrubList is how many blocks a replica lists for a step.
	scrubList = 1024
	// scrubEvents is how many repairs a step tells as events; the rest is only counted.
	scrubEvents = 16
	// maxMends bounds the blocks that are mended at once because a read found them bad, maxMended those that are remembered as tried.
	maxMends  = 4
	maxMended = 1024
)

// ScrubStep says what one step of a scrub is to do.
type ScrubStep struct {
	From       ukai.Index // the first block to look at
	VerifyOnly bool       // change nothing
	// Pace waits until so many bytes of each replica may be read. Default: does not wait.
	Pace func(ctx context.Context, bytes int64) error
}

// ScrubResult is what a step found. It counts parts of store.SumBytes of the disk, each once however many replicas there are.
type ScrubResult struct {
	Next       ukai.Index // where the next step begins
	Done       bool       // there is nothing after Next
	Verified   int64
	Corrupt    int64 // of these, with a copy that is wrong or cannot be read
	Repaired   int64 // of these
	Unrepaired int64 // of these, the rest

	told int // events
}

// Scrub does one step of a scrub: it looks at blocks that were ever written, in order, for scrubStep at most, and longer if it waits for Pace or
// Config.Budget. The disk is claimed for that if nobody holds it, and only its holder can do it: ukai.HeldError. It ends early, with an error that
// matches ukai.ErrNotAttached, when the disk is let go of, and with another when it is paused. After an error the result says what was done before it.
func (d *Disk) Scrub(ctx context.Context, s ScrubStep) (r ScrubResult, err error) {
	r.Next = s.From
	if d.holding.Load() == nil && d.users() == 0 {
		d.quiet.Store(true) // whoever wants it is not to wait because somebody has just written it
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	going := d.pauses().going
	defer context.AfterFunc(going, func() { cancel(fmt.Errorf("disk %s is paused: %w", d.Name(), ukai.ErrSuspended)) })()
	h, err := d.enter(ctx, claimIfFree)
	if err != nil {
		return r, fmt.Errorf("scrub %s: %w", d.Name(), err)
	}
	defer h.ops.leave()
	defer context.AfterFunc(h.returning, func() { cancel(fmt.Errorf("disk %s: %w", d.Name(), ukai.ErrNotAttached)) })()
	if err = h.scrub(ctx, s, &r); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return r, fmt.Errorf("scrub %s: %w", d.Name(), err)
	}
	return r, nil
}

func (h *holding) scrub(ctx context.Context, s ScrubStep, r *ScrubResult) error {
	began := h.host.cfg.Clock()
	blocks, next, more, err := h.written(ctx, s.From)
	if err != nil {
		return err
	}
	for _, i := range blocks {
		now := h.host.cfg.Clock()
		if now-began >= scrubStep {
			return nil
		}
		l := &h.view.Load().layout
		if s.Pace != nil {
			if err := s.Pace(ctx, min(l.blockSize, l.size-int64(i)*l.blockSize)); err != nil {
				return err
			}
			now = h.host.cfg.Clock()
		}
		if err := h.scrubBlock(ctx, i, s.VerifyOnly, h.host.cfg.Budget, r); err != nil {
			return err
		}
		r.Next = i + 1
		// The guest comes first: while it has requests under way, a scrub rests as long as it works.
		if took := h.host.cfg.Clock() - now; h.ops.inside() > 1 && took > 0 && !sleep(ctx, took) {
			return ctx.Err()
		}
	}
	r.Next, r.Done = next, !more
	return nil
}

// written lists, in order, blocks from one on that some replica has a stamp for. If more is true the list goes on at next.
func (h *holding) written(ctx context.Context, from ukai.Index) (list []ukai.Index, next ukai.Index, more bool, err error) {
	v := h.view.Load()
	next = ukai.Index((v.layout.size + v.layout.blockSize - 1) / v.layout.blockSize)
	for i := range v.groups {
		for _, m := range v.groups[i].read {
			reply, err := m.command(ctx, wire.Message{Kind: wire.KindStamps, Offset: int64(from), Count: scrubList}, nil)
			if err != nil {
				return nil, 0, false, err
			}
			blocks, err := decodeSuspects(reply.Payload)
			if err != nil {
				return nil, 0, false, m.named(err)
			}
			for _, b := range blocks {
				list = append(list, b.index)
			}
			if goesOn := ukai.Index(reply.Offset); reply.Count != 0 && goesOn > from && goesOn < next {
				next, more = goesOn, true
			}
		}
	}
	slices.Sort(list)
	list = slices.DeleteFunc(slices.Compact(list), func(i ukai.Index) bool { return i < from || i >= next })
	return list, next, more, nil
}

// inspected is a replica and what it said.
type inspected struct {
	m *member
	inspection
}

// inspect has all replicas of a block that may be read look at a range of it. Those of nodes that do not know how are left out.
func (h *holding) inspect(ctx context.Context, i ukai.Index, off, n int64) ([]inspected, error) {
	v := h.view.Load()
	set := v.groupOf(i).read
	list := make([]inspected, len(set))
	var all errgroup.Group
	for k, m := range set {
		all.Go(func() error {
			reply, err := m.command(ctx, wire.Message{Kind: wire.KindVerify, Offset: off, Count: uint32(n)}, nil)
			switch {
			case errors.Is(err, ukai.ErrUnsupported):
				return nil
			case err != nil:
				return err
			}
			list[k].m, list[k].stamp, list[k].quiet = m, reply.Stamp, reply.Count != 0
			list[k].looks, err = decodeLooks(reply.Payload, n)
			return m.named(err)
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	if now := h.view.Load().groupOf(i).read; len(now) == 0 || !slices.Equal(now, set) {
		return nil, fmt.Errorf("the in-sync set of block %d has changed: %w", i, ukai.ErrUnavailable)
	}
	return slices.DeleteFunc(list, func(in inspected) bool { return in.m == nil }), nil
}

// at returns what the replicas said of one of the parts that were looked at.
func at(list []inspected, part int) []look {
	copies := make([]look, len(list))
	for k := range list {
		copies[k] = list[k].looks[part]
	}
	return copies
}

// A scrub pays to Config.Budget what goes to other nodes and comes from them, before any range is locked. inspectBytes is what a request to inspect
// and the answer take beside what it says of each part, which is as much once more when the checksums are noted.
const inspectBytes = 256

// budget is Config.Budget, or nil: nothing is paid.
type budget func(ctx context.Context, disk ukai.DiskID, from, to ukai.NodeID, bytes int64) error

// payInspect waits until the replicas of a block may be asked about n bytes of it.
func (h *holding) payInspect(ctx context.Context, pay budget, i ukai.Index, n int64) error {
	if pay == nil {
		return nil
	}
	v, here := h.view.Load(), h.host.cfg.Node
	group, _ := v.layout.groupAt(i)
	bytes := inspectBytes + (n+store.SumBytes-1)/store.SumBytes*int64(lookBytes+sumBytes)
	for _, m := range v.group(group).read {
		if m.Node == here {
			continue
		}
		if err := pay(ctx, h.d.id, m.Node, here, bytes); err != nil {
			return err
		}
	}
	return nil
}

// payRepair waits until a part may be looked at again, and repaired as far as what was said of it without a lock tells. What is found with it may be
// another copy; then the link is asked for a part more or less.
func (h *holding) payRepair(ctx context.Context, pay budget, i ukai.Index, list []inspected, copies []look, n int64, verifyOnly bool) error {
	if err := h.payInspect(ctx, pay, i, n); err != nil || pay == nil || verifyOnly {
		return err
	}
	ruled, here := judge(copies), h.host.cfg.Node
	if len(ruled.bad) == 0 || len(ruled.good) == 0 {
		return nil
	}
	if src := list[ruled.good[0]].m.Node; src != here {
		if err := pay(ctx, h.d.id, src, here, n); err != nil {
			return err
		}
	}
	for _, k := range ruled.bad {
		if to := list[k].m.Node; to != here {
			if err := pay(ctx, h.d.id, here, to, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// scrubBlock looks at one block, and notes its checksums at replicas that have none.
func (h *holding) scrubBlock(ctx context.Context, i ukai.Index, verifyOnly bool, pay budget, r *ScrubResult) error {
	l := &h.view.Load().layout
	off, end := int64(i)*l.blockSize, min(int64(i+1)*l.blockSize, l.size)
	if err := h.payInspect(ctx, pay, i, end-off); err != nil {
		return err
	}
	var sums []store.Sum
	var whole []inspected // as of the first range; those that cannot note checksums are taken out
	for start := off; start < end; start += maxHashed {
		list, err := h.inspect(ctx, i, start, min(maxHashed, end-start))
		if err != nil {
			return err
		}
		if start == off {
			whole = slices.Clone(list)
		}
		whole = slices.DeleteFunc(whole, func(w inspected) bool {
			return !slices.ContainsFunc(list, func(in inspected) bool {
				return in.m == w.m && in.quiet && in.stamp == w.stamp && !in.looks[0].known
			})
		})
		for part := 0; len(list) > 0 && part < len(list[0].looks); part++ {
			from := start + int64(part)*store.SumBytes
			copies, state := at(list, part), sound
			if suspicious(copies) {
				whole = nil
				if err := h.payRepair(ctx, pay, i, list, copies, min(store.SumBytes, end-from), verifyOnly); err != nil {
					return err
				}
				if state, err = h.scrubPart(ctx, i, from, min(store.SumBytes, end-from), verifyOnly, r); err != nil {
					return err
				}
			}
			h.tally(r, state)
			sums = append(sums, copies[0].sum)
		}
	}
	if verifyOnly {
		return nil
	}
	for _, in := range whole {
		msg := wire.Message{Kind: wire.KindChecksum, Offset: off, Stamp: in.stamp, Payload: encodeSums(sums)}
		if _, err := in.m.command(ctx, msg, nil); err != nil && ctx.Err() == nil {
			h.host.cfg.Log.Info("checksums not noted; the next scrub does", "disk", h.d.Name(), "block", i, "replica", in.m.Replica, "err", err)
		}
	}
	return nil
}

// partState is what became of a part.
type partState uint8

const (
	sound partState = iota
	mended
	rotten
)

func (h *holding) tally(r *ScrubResult, s partState) {
	r.Verified++
	h.host.scrubbed.verified.Add(1)
	switch s {
	case sound:
		return
	case mended:
		r.Repaired++
		h.host.scrubbed.repaired.Add(1)
	case rotten:
		r.Unrepaired++
		h.host.scrubbed.unrepaired.Add(1)
	}
	r.Corrupt++
	h.host.scrubbed.corrupt.Add(1)
}

// scrubPart looks at a part while nobody writes it, and repairs what is wrong.
func (h *holding) scrubPart(ctx context.Context, i ukai.Index, off, n int64, verifyOnly bool, r *ScrubResult) (partState, error) {
	c := &claim{index: i, off: off, end: off + n, exclusive: true}
	if err := h.locks.lock(ctx, c); err != nil {
		return sound, err
	}
	defer h.locks.unlock(c)
	list, err := h.inspect(ctx, i, off, n)
	if err != nil {
		return sound, err
	}
	ruled := judge(at(list, 0))
	if len(ruled.bad) == 0 {
		return sound, nil
	}
	tell := func(kind EventKind, in *inspected, why string) {
		if r.told++; r.told <= scrubEvents {
			h.tell(Event{Kind: kind, Replica: in.m.Replica, Node: in.m.Node, Off: off, Bytes: n, Why: why})
		}
	}
	var p []byte
	why := ruled.why
	switch {
	case verifyOnly:
	case ruled.sum == store.Sum{}:
	default:
		if p = h.goodCopy(list, ruled, off, n); p != nil {
			why = ""
		} else {
			why = cmp.Or(why, "the good copy could not be read again")
		}
	}
	state := mended
	for _, k := range ruled.bad {
		in := &list[k]
		failed := why
		if failed == "" && !verifyOnly {
			if err := h.repair(in, p, off); err != nil {
				failed = err.Error()
			}
		}
		switch {
		case failed != "":
			state = rotten
			tell(Rotten, in, failed)
		case verifyOnly:
			state = rotten
			tell(Found, in, "")
		default:
			tell(Mended, in, "")
		}
	}
	return state, nil
}

// goodCopy reads a part from a replica that has it right, nil if none does any more. Like a repair it is not called off: a disk that is to be let go
// of waits for it. The checksum is proof enough also for what a replica has that is being brought up to date: it may have been dropped just when the
// others turned out to be bad.
func (h *holding) goodCopy(list []inspected, ruled ruling, off, n int64) []byte {
	var from []*member
	for _, k := range ruled.good {
		from = append(from, list[k].m)
	}
	h.mu.Lock()
	if f := h.following; f != nil {
		from = append(from, f.m)
	}
	h.mu.Unlock()
	p := make([]byte, n)
	for _, m := range from {
		if err := m.get(h.ctx, p, off); err == nil && store.SumOf(p) == ruled.sum {
			return p
		}
	}
	return nil
}

// repair writes a part back to a replica, durably. The caller holds its range. If it cannot be told whether something of it is still to be applied, the
// session is given up before the range is unlocked.
func (h *holding) repair(in *inspected, p []byte, off int64) error {
	_, err := in.m.command(h.ctx, wire.Message{Kind: wire.KindRestore, Offset: off, Payload: p}, nil)
	if err == nil {
		err = in.m.sync(h.ctx)
	}
	if err == nil {
		return nil
	}
	// The one that stands now: that in which the replica was asked may have been given up before.
	if l := in.m.link.Load(); l != nil && !errors.Is(err, ukai.ErrOverloaded) && !errors.Is(err, ukai.ErrNoSpace) && !errors.Is(err, ukai.ErrUnsupported) {
		in.m.lost(l, err)
	}
	return err
}

// mendSoon has a block repaired that a replica could not read, or that it found to have rotted. A block that could not be repaired is
// not tried again by this holder: a scrub does.
func (h *holding) mendSoon(i ukai.Index) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mending >= maxMends || h.mended[i] || !h.serving || h.ended || !h.ops.enter() {
		return
	}
	if h.mended == nil || len(h.mended) >= maxMended {
		h.mended = make(map[ukai.Index]bool)
	}
	h.mended[i] = true
	h.mending++
	h.work.Go(func() {
		defer h.ops.leave()
		var r ScrubResult
		err := h.scrubBlock(h.returning, i, false, nil, &r) // a guest waits, or will: no budget holds for it
		h.mu.Lock()
		defer h.mu.Unlock()
		h.mending--
		if err != nil || r.Unrepaired == 0 {
			delete(h.mended, i)
		}
	})
}
