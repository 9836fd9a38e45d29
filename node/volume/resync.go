package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"ukai"
	"ukai/crdt/codec"
	"ukai/node/cell"
	"ukai/node/wire"
)

// Bounds of a resync.
const (
	// fewBlocks is how few dirty blocks are left when writes begin to wait for the replica, so that no new ones arise;
	// maxSweeps is after how many sweeps they do in any case: a guest that rewrites the same blocks all the time would
	// keep the replica behind for ever.
	fewBlocks = 16
	maxSweeps = 3
	maxGrows  = 5 // proposals of one grow, where other changes of the record get in between
)

// What is done for a replica that is brought up to date, in this order: J2 to J8 of the protocol, 3.8.

// setMode changes the mode, unless the session has been lost meanwhile.
func (f *following) setMode(l *link, mode followMode) error {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	if f.m.link.Load() != l || f.h.stopped {
		return f.lostWhy()
	}
	f.mu.Lock()
	f.state.mode = mode
	f.mu.Unlock()
	f.h.rebuild()
	return nil
}

// lostWhy says why there is no session any more. The caller holds h.mu.
func (f *following) lostWhy() error {
	switch {
	case f.h.stopped:
		return context.Canceled
	case f.m.failure != nil:
		return f.m.failure
	}
	return f.m.named(ukai.ErrUnreachable)
}

// attempt carries the replica from wherever it is to the in-sync set. After an error it is passed by again, unless it may
// be in sync; another attempt goes on with what is known to be dirty.
func (f *following) attempt(ctx context.Context) error {
	h := f.h
	// What began before writes were noted here has ended after this: its stamps are at the source.
	if err := h.checkpointNow(ctx); err != nil {
		return fmt.Errorf("waiting for the writes under way: %w", err)
	}
	stable, err := f.connect(ctx)
	if err != nil {
		return err
	}
	l := f.m.link.Load()
	if l == nil {
		return f.m.named(ukai.ErrUnreachable)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	err = f.follow(ctx, l, stable)
	if err != nil {
		cancel()
		h.mu.Lock()
		f.suspend()
		h.rebuild()
		if l.ctx.Err() != nil && h.ctx.Err() == nil {
			err = f.lostWhy()
		}
		h.mu.Unlock()
	}
	return err
}

// connect seals the replica for this epoch and begins a new session: writes of older ones, by whomever, have been applied
// or are refused when it returns. It returns up to which stamp the replica is known to have everything.
func (f *following) connect(ctx context.Context) (stable ukai.BlockStamp, err error) {
	h, m := f.h, f.m
	h.mu.Lock()
	needed, l, rec := h.needs(m.Replica), m.link.Load(), h.sets.known
	req := newSeal(h.nonce, &rec)
	h.mu.Unlock()
	if needed {
		// In sync in another group: its session is in use, and is renewed as if it had failed.
		if l != nil {
			m.lost(l, fmt.Errorf("a new session for a resync: %w", ukai.ErrUnreachable))
		}
		return ukai.BlockStamp{}, f.awaitLink(ctx)
	}
	h.mu.Lock()
	if l != nil {
		m.link.Store(nil)
		l.cancel()
	}
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, sealWait+rttFactor*h.host.rtt(m.Node))
	defer cancel()
	answer, err := m.ask(ctx, 0, wire.Message{Kind: wire.KindSeal, Payload: encode(req)}, nil)
	if err != nil {
		return stable, f.fenced(err)
	}
	var reply sealReply
	if err := codec.Unmarshal(answer.Payload, &reply); err != nil {
		return stable, m.named(err)
	}
	h.mu.Lock()
	m.incarnation, m.session = reply.Incarnation, max(m.session, reply.Session)
	h.mu.Unlock()
	if err := m.greet(ctx); err != nil {
		return stable, f.fenced(err)
	}
	f.sized = max(f.sized, rec.Size)
	return reply.Stable, nil // of the groups in which it has been in sync, see list
}

// fenced ends the holding if an error says that it is deposed.
func (f *following) fenced(err error) error {
	if fenced := (*ukai.FencedError)(nil); errors.As(err, &fenced) && fenced.Epoch > f.h.epoch {
		f.h.fenced(fenced.Epoch)
	}
	return err
}

// awaitLink waits until the replica has been mended.
func (f *following) awaitLink(ctx context.Context) error {
	for {
		changed := f.h.change()
		f.h.mu.Lock()
		linked, needed := f.m.link.Load() != nil, f.h.needs(f.m.Replica)
		f.h.mu.Unlock()
		switch {
		case linked:
			return nil
		case !needed:
			return f.m.named(ukai.ErrUnreachable)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// follow is attempt in one session.
func (f *following) follow(ctx context.Context, l *link, stable ukai.BlockStamp) error {
	if err := f.fit(ctx, l, 0); err != nil {
		return err
	}
	f.h.mu.Lock()
	incarnation := f.m.incarnation
	f.h.mu.Unlock()
	if heat := f.h.host.cfg.Heat; heat != nil && f.m.local != nil && f.listed != incarnation {
		f.heat = heat(ctx, f.h.d.id)
	}
	if f.listed != incarnation {
		if err := f.list(ctx, stable); err != nil {
			return err
		}
		f.listed = incarnation
	}
	if err := f.setMode(l, informed); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var echoing sync.WaitGroup
	for range echoWorkers {
		echoing.Go(func() { f.echo(ctx, l) })
	}
	defer func() {
		cancel()
		f.h.mu.Lock()
		f.suspend()
		f.h.mu.Unlock()
		echoing.Wait()
		f.forget()
	}()
	if err := f.catchUp(ctx, l); err != nil {
		return err
	}
	return f.join(ctx, l)
}

// list finds the blocks in which the replica may differ (J3): those that it or the source has touched since it was last
// known to be equal. Both halves are needed: a deposed holder may have written to this replica alone.
func (f *following) list(ctx context.Context, stable ukai.BlockStamp) error {
	v, rec := f.h.view.Load(), f.h.record()
	than := map[uint8]ukai.BlockStamp{} // of each group
	for _, g := range f.groups {
		than[g] = stable
		if group := rec.Group(g); group == nil || group.Member(f.m.Replica) == nil || group.Member(f.m.Replica).Fresh {
			than[g] = ukai.BlockStamp{}
		}
	}
	var lists [][]suspect
	for _, from := range slices.Compact([]ukai.BlockStamp{{}, stable}) {
		if !slices.ContainsFunc(f.groups, func(g uint8) bool { return than[g] == from }) {
			continue
		}
		own, err := f.m.suspects(ctx, from)
		if err != nil {
			return fmt.Errorf("listing its blocks: %w", err)
		}
		lists = append(lists, slices.DeleteFunc(own, func(s suspect) bool {
			g, _ := v.layout.groupAt(s.index)
			return slices.Contains(f.groups, g) && than[g] != from
		}))
	}
	for _, g := range f.groups {
		for {
			group := v.group(g)
			if group == nil {
				return fmt.Errorf("group %d is no more: %w", g, ukai.ErrUnavailable)
			}
			src, l, _ := group.choose(nil, false)
			if src == nil {
				return fmt.Errorf("group %d: %w", g, ukai.ErrUnavailable)
			}
			theirs, err := src.suspects(ctx, than[g])
			if err != nil {
				if ctx.Err() == nil {
					f.h.readFailed(src, l, err) // or the next attempt asks it in the same dead session
				}
				return fmt.Errorf("listing the blocks of its source: %w", err)
			}
			if v = f.h.view.Load(); v.group(g) != nil && slices.Contains(v.group(g).read, src) {
				lists = append(lists, theirs)
				break
			}
		}
	}
	layout := &v.layout
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.state.have)
	for _, list := range lists {
		for _, s := range list {
			if g, _ := layout.groupAt(s.index); int64(s.index)*layout.blockSize < f.state.size && slices.Contains(f.groups, g) {
				f.state.dirty.add(s.index)
			}
		}
	}
	f.total.Store(f.state.left())
	return nil
}

// catchUp copies until little is left, while the guest's writes do not wait for the replica.
func (f *following) catchUp(ctx context.Context, l *link) error {
	_, before := f.left()
	for n := 1; ; n++ {
		if err := f.sweep(ctx, l); err != nil {
			return err
		}
		_, blocks := f.left()
		if blocks <= fewBlocks || n >= maxSweeps || blocks > before/2 { // else the guest writes faster than the replica follows, and would for ever
			return nil
		}
		before = blocks
	}
}

// join makes the replica one that every write waits for (J6), copies what was left, makes it durable (J7), and asks the
// arbiters to take it into the in-sync set (J8).
func (f *following) join(ctx context.Context, l *link) error {
	// From now on the lease needs its confirmation: a fresh one first, so that no read waits for it.
	sent := f.h.host.cfg.Clock()
	b := f.m.beat()
	msg := wire.Message{Kind: wire.KindHeartbeat, Payload: encode(heartbeat{Beats: []beat{b.beat}})}
	reply, err := f.m.ask(ctx, l.session, msg, nil)
	if err != nil {
		return f.blame(ctx, l, err)
	}
	if out, err := decodeHeartbeatReply(reply.Payload, 1); err != nil || len(out.Exceptions) > 0 {
		return f.m.named(fmt.Errorf("heartbeat refused: %w", ukai.ErrUnreachable))
	}
	f.m.confirmed(sent)
	if err := f.setMode(l, awaited); err != nil {
		return err
	}
	for {
		for !f.complete() {
			changed := f.changed()
			if err := f.sweep(ctx, l); err != nil {
				return err
			}
			if _, blocks := f.left(); blocks > 0 || f.complete() {
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		// What began before it was waited for, and may have passed it by, has ended after this.
		if err := f.h.checkpointNow(ctx); err != nil {
			return err
		}
		if f.complete() {
			break
		}
	}
	if err := f.m.sync(ctx); err != nil {
		return f.blame(ctx, l, err)
	}
	return f.grow(ctx, l)
}

// changed returns a channel that is closed when the replica owes less.
func (f *following) changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.news
}

// fit gives the replica the size that the disk is served with, or the larger one of a growth that is committed and under
// way.
func (f *following) fit(ctx context.Context, l *link, larger int64) error {
	f.h.mu.Lock()
	served := f.h.size
	f.h.mu.Unlock()
	if size := max(served, larger); size > f.sized {
		if _, err := f.m.command(ctx, wire.Message{Kind: wire.KindResize, Offset: size}, nil); err != nil {
			return f.blame(ctx, l, err)
		}
		f.sized = size
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.grow(served)
	return nil
}

// blame gives up the session with the replica because of an error of it. It returns the error.
func (f *following) blame(ctx context.Context, l *link, err error) error {
	if ctx.Err() == nil {
		f.m.lost(l, err)
	}
	return err
}

// grow asks the arbiters to take the replica into the in-sync set. From the proposal on the replica must have every write
// whatever becomes of it, until the outcome is known.
func (f *following) grow(ctx context.Context, l *link) error {
	h := f.h
	select {
	case h.reconfiguring <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := f.propose(ctx, l)
	for again := 0; errors.Is(err, ukai.ErrRejected) && again < maxGrows; again++ {
		err = f.propose(ctx, l) // somebody changed something else of the record meanwhile
	}
	<-h.reconfiguring
	for {
		h.mu.Lock()
		doubt, in := h.sets.inDoubt(), grown(&h.sets.known, f.m.Replica, f.groups)
		if !doubt {
			f.mu.Lock()
			if !in {
				f.state.mode = passedBy
			}
			f.mu.Unlock()
			h.rebuild()
		}
		h.mu.Unlock()
		switch {
		case in && !doubt:
			return nil
		case !doubt && err == nil:
			return fmt.Errorf("dropped again at once: %w", ukai.ErrRejected)
		case !doubt:
			return err
		}
		if !h.sleep(minMendPause) {
			return h.err()
		}
		select {
		case h.reconfiguring <- struct{}{}:
		case <-h.ctx.Done():
			return h.err()
		}
		if again := h.settleSets(); again != nil {
			err = again
		}
		<-h.reconfiguring
	}
}

// propose is grow up to the first answer of the arbiters. The caller holds reconfiguring.
func (f *following) propose(ctx context.Context, l *link) error {
	h := f.h
	if err := h.settleSets(); err != nil {
		return err
	}
	// No growth is committed while reconfiguring is held; one that is has perhaps not been sent to this replica.
	if err := f.fit(ctx, l, h.record().Size); err != nil {
		return err
	}
	h.mu.Lock()
	known := h.sets.known
	change := cell.Grow{Epoch: h.epoch, Version: known.Version, Replica: f.m.Replica, In: f.groups}
	next, err := change.Apply(known.Clone())
	if err == nil && (f.m.link.Load() != l || h.stopped) {
		err = f.lostWhy()
	}
	f.mu.Lock()
	if err == nil && (f.state.mode < awaited || !f.state.complete()) {
		err = f.m.named(ukai.ErrUnreachable)
	}
	if err == nil {
		f.state.mode = admitted
	}
	f.mu.Unlock()
	if err == nil {
		h.sets.propose(next)
		h.rebuild()
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	return h.commit(change)
}
