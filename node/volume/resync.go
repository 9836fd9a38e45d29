package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/cell"
	"ukai/node/wire"
)

// Bounds of a resync.
const (
	resyncWidth = 8         // blocks of one replica compared at once
	copyBytes   = 256 << 10 // copied under one range lock: what a write of the guest may have to wait for
	echoWorkers = 16        // writes under way to a replica that is not waited for
	// fewBlocks is how few dirty blocks are left when writes begin to wait for the replica, so that no new ones arise;
	// maxSweeps is after how many sweeps they do in any case: a guest that rewrites the same blocks all the time would
	// keep the replica behind for ever.
	fewBlocks = 16
	maxSweeps = 3
	maxGrows  = 5 // proposals of one grow, where other changes of the record get in between
)

// following brings one replica up to date: J2 to J8 of the protocol, 3.8. It exists from before the replica's dirty
// blocks are listed until it is in sync or given up; while it is installed in the holding, no mutation of its groups
// ends without it knowing whether the replica has it.
type following struct {
	h      *holding
	m      *member
	groups []uint8 // in which it is to become in sync
	began  time.Duration

	mu    sync.Mutex
	state follow
	news  chan struct{} // closed and replaced when the replica owes less

	echoes chan *echo // sent, not waited for; room for all that follow admits

	listed ukai.Incarnation // whose dirty blocks are in state

	total atomic.Int64 // bytes that were found dirty at first
	moved atomic.Int64 // bytes copied
	steps atomic.Int64 // blocks done, and other signs of progress
}

// echo is a write to a replica that is not waited for. The guest's buffer is its own again, so p is a copy.
type echo struct {
	kind  wire.Kind
	index ukai.Index
	off   int64
	n     int64
	stamp ukai.BlockStamp
	p     []byte
}

func newFollowing(h *holding, m *member, groups []uint8, rec *crdt.Record) *following {
	f := &following{
		h: h, m: m, groups: groups, began: h.host.cfg.Clock(), news: make(chan struct{}), echoes: make(chan *echo, maxOwed),
	}
	f.state.blockSize = int64(rec.BlockSize)
	return f
}

// admit decides what becomes of a mutation at the replica; see follow.admit. The mutation holds its range.
func (f *following) admit(op *mutation) verdict {
	end := op.off + op.n
	f.mu.Lock()
	v := f.state.admit(op.claim.index, op.off, end)
	f.mu.Unlock()
	if v != send {
		return v
	}
	e := &echo{kind: op.kind, index: op.claim.index, off: op.off, n: op.n, stamp: op.stamp}
	if op.p != nil {
		e.p = append([]byte(nil), op.p...)
	}
	f.echoes <- e // has room: what is in it is owed, and no more than maxOwed is
	return v
}

// missed notes that a mutation ended without the replica having it for certain.
func (f *following) missed(op *mutation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.missed(op.claim.index, op.off, op.off+op.n)
}

// suspend lets all writes pass the replica by from now on, unless it may be in sync already. The caller holds h.mu and
// rebuilds the view.
func (f *following) suspend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.mode != admitted {
		f.state.mode = passedBy
	}
}

// waitedFor says whether the replica belongs to the ack set though no record may name it in sync.
func (f *following) waitedFor() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.mode >= awaited
}

func (f *following) complete() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.complete()
}

func (f *following) left() (bytes int64, blocks int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.left(), f.state.dirty.count + len(f.state.work)
}

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
	req := sealRequest{Nonce: h.nonce, Version: rec.Version, Size: rec.Size}
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
	f.mu.Lock()
	f.state.size = max(f.state.size, rec.Size)
	f.mu.Unlock()
	if all, _ := memberships(&rec, m.Replica); all > 1 {
		// The stamp speaks of all groups of the replica together, and it may never have been in sync in one of them.
		return ukai.BlockStamp{}, nil
	}
	return reply.Stable, nil
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
		linked, needed, size := f.m.link.Load() != nil, f.h.needs(f.m.Replica), f.h.size
		f.h.mu.Unlock()
		switch {
		case linked:
			f.mu.Lock()
			f.state.size = max(f.state.size, size)
			f.mu.Unlock()
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
	f.h.mu.Lock()
	incarnation := f.m.incarnation
	f.h.mu.Unlock()
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
	v := f.h.view.Load()
	own, err := f.m.suspects(ctx, stable)
	if err != nil {
		return fmt.Errorf("listing its blocks: %w", err)
	}
	lists := [][]suspect{own}
	for _, g := range f.groups {
		for {
			src, _, _ := v.group(g).choose(nil)
			if src == nil {
				return fmt.Errorf("group %d: %w", g, ukai.ErrUnavailable)
			}
			theirs, err := src.suspects(ctx, stable)
			if err != nil {
				return fmt.Errorf("listing the blocks of its source: %w", err)
			}
			if v = f.h.view.Load(); containsMember(v.group(g).read, src) {
				lists = append(lists, theirs)
				break
			}
		}
	}
	layout := &v.layout
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, list := range lists {
		for _, s := range list {
			if int64(s.index)*layout.blockSize < f.state.size && f.in(layout, s.index) {
				f.state.dirty.add(s.index)
			}
		}
	}
	f.total.Store(f.state.left())
	return nil
}

// in says whether a block belongs to one of the groups.
func (f *following) in(l *layout, i ukai.Index) bool {
	g, _ := l.groupAt(i)
	for _, mine := range f.groups {
		if mine == g {
			return true
		}
	}
	return false
}

// catchUp copies until little is left, while the guest's writes do not wait for the replica.
func (f *following) catchUp(ctx context.Context, l *link) error {
	for n := 1; ; n++ {
		if err := f.sweep(ctx, l); err != nil {
			return err
		}
		if _, blocks := f.left(); blocks <= fewBlocks || n >= maxSweeps {
			return nil
		}
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

// fit gives the replica the size of the disk, which may have grown since it was sealed.
func (f *following) fit(ctx context.Context, l *link) error {
	f.h.mu.Lock()
	size := f.h.sets.known.Size
	f.h.mu.Unlock()
	f.mu.Lock()
	has := f.state.size
	f.mu.Unlock()
	if size <= has {
		return nil
	}
	if _, err := f.m.command(ctx, wire.Message{Kind: wire.KindResize, Offset: size}, nil); err != nil {
		return f.blame(ctx, l, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.size = max(f.state.size, size)
	return nil
}

// blame gives up the session with the replica because of an error of it. It returns the error.
func (f *following) blame(ctx context.Context, l *link, err error) error {
	if ctx.Err() == nil {
		f.m.lost(l, err)
	}
	return err
}

// sweep compares and copies all blocks that are dirty now, each once.
func (f *following) sweep(ctx context.Context, l *link) error {
	if err := f.fit(ctx, l); err != nil {
		return err
	}
	work, ctx := errgroup.WithContext(ctx)
	for range resyncWidth {
		work.Go(func() error {
			for ctx.Err() == nil {
				f.mu.Lock()
				i, ok := f.state.take()
				f.mu.Unlock()
				if !ok {
					return nil
				}
				err := f.block(ctx, l, i)
				f.mu.Lock()
				f.state.leave(i)
				f.mu.Unlock()
				if err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	err := work.Wait()
	f.mu.Lock()
	f.state.cursor = 0
	f.mu.Unlock()
	return err
}

// block makes one block equal. Its chunks are compared without keeping the guest out, which is why those that were
// written meanwhile are copied whatever their hashes say; chunks are copied under the range lock, few at a time.
func (f *following) block(ctx context.Context, l *link, i ukai.Index) error {
	f.mu.Lock()
	off, end := f.state.blockOff(i), min(f.state.blockOff(i)+f.state.blockSize, f.state.size)
	f.mu.Unlock()
	// Writes that were let in before the comparison began have ended when this lock is granted. It is shared: reads go on.
	c := &claim{index: i, off: off, end: end}
	if err := f.h.locks.lock(ctx, c); err != nil {
		return err
	}
	f.h.locks.unlock(c)
	for at := off; at < end; at += maxHashed {
		if err := f.compare(ctx, l, i, at, min(maxHashed, end-at)); err != nil {
			return err
		}
	}
	copied := false
	for chunk := 0; ; {
		f.mu.Lock()
		from, to := f.state.lackingRun(i, chunk, copyBytes/ukai.ChunkSize)
		f.mu.Unlock()
		if from == to {
			break
		}
		if err := f.copy(ctx, l, i, from, to, end); err != nil {
			return err
		}
		copied, chunk = true, to
	}
	f.steps.Add(1)
	if copied {
		f.h.host.resynced.blocks.Add(1)
	}
	return nil
}

// compare asks the source and the replica for the hashes of a part of a block.
func (f *following) compare(ctx context.Context, l *link, i ukai.Index, off, n int64) error {
	var want, have []chunkHash
	both, part := errgroup.WithContext(ctx)
	both.Go(func() error {
		return f.fromSource(part, i, func(src *member) (err error) {
			want, err = src.hashes(part, off, n)
			return err
		})
	})
	both.Go(func() (err error) {
		if have, err = f.m.hashes(part, off, n); err != nil {
			return f.blame(part, l, err)
		}
		return nil
	})
	if err := both.Wait(); err != nil {
		return err
	}
	f.h.host.resynced.hashed.Add(n)
	f.mu.Lock()
	defer f.mu.Unlock()
	first := int((off - f.state.blockOff(i)) / ukai.ChunkSize)
	for k := range want {
		if want[k] == have[k] {
			f.state.same(i, first+k)
		}
	}
	return nil
}

// copy copies chunks [from, to) of a block, whose end on the disk is given, under their range lock.
func (f *following) copy(ctx context.Context, l *link, i ukai.Index, from, to int, end int64) error {
	f.mu.Lock()
	start := f.state.blockOff(i)
	f.mu.Unlock()
	off := start + int64(from)*ukai.ChunkSize
	end = min(end, start+int64(to)*ukai.ChunkSize)
	release, err := f.h.host.room(ctx, end-off)
	if err != nil {
		return err
	}
	defer release()
	c := &claim{index: i, off: off, end: end, exclusive: true}
	if err := f.lockPaid(ctx, c); err != nil {
		return err
	}
	defer f.h.locks.unlock(c)
	p := make([]byte, end-off)
	if err := f.fromSource(ctx, i, func(src *member) error { return src.get(ctx, p, off) }); err != nil {
		return err
	}
	// Not older than any write in the range, and newer than what the replica is known to have, so that an interrupted
	// resync finds the block again.
	stamp := f.h.check.Load().stamp
	for at := int64(0); at < int64(len(p)) && err == nil; at += ukai.ChunkSize {
		chunk := p[at:min(at+ukai.ChunkSize, int64(len(p)))]
		if allZero(chunk) {
			err = f.m.zero(ctx, off+at, int64(len(chunk)), stamp)
			continue
		}
		rest := at + int64(len(chunk))
		for rest < int64(len(p)) && !allZero(p[rest:min(rest+ukai.ChunkSize, int64(len(p)))]) {
			rest = min(rest+ukai.ChunkSize, int64(len(p)))
		}
		err = f.m.put(ctx, p[at:rest], off+at, stamp)
		f.moved.Add(rest - at)
		f.h.host.resynced.bytes.Add(rest - at)
		at = (rest - 1) / ukai.ChunkSize * ukai.ChunkSize
	}
	if err != nil {
		// It may still be applied, until the next session begins; nothing is sent for a lacking chunk before that.
		return f.blame(ctx, l, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.copied(i, from, to)
	return nil
}

// lockPaid locks a range of which the replica owes no acknowledgement (rule O). It does not keep the guest out while the
// replica pays.
func (f *following) lockPaid(ctx context.Context, c *claim) error {
	for {
		if err := f.h.locks.lock(ctx, c); err != nil {
			return err
		}
		f.mu.Lock()
		owes, news := f.state.owes(c.index, c.off, c.end), f.news
		f.mu.Unlock()
		if !owes {
			return nil
		}
		f.h.locks.unlock(c)
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fromSource lets get ask members of the read set, the nearest first, until one has answered.
func (f *following) fromSource(ctx context.Context, i ukai.Index, get func(src *member) error) error {
	var tried []*member
	last := ukai.ErrUnavailable
	for {
		v := f.h.view.Load()
		group, _ := v.layout.groupAt(i)
		src, l, _ := v.group(group).choose(tried)
		if src == nil {
			return &sourceError{fmt.Errorf("no source for block %d: %w", i, last)}
		}
		err := get(src)
		switch {
		case err == nil && containsMember(f.h.view.Load().group(group).read, src):
			return nil
		case err == nil:
			continue // it may have been dropped before it answered
		case ctx.Err() != nil:
			return err
		}
		f.h.readFailed(src, l, err)
		last, tried = err, append(tried, src)
	}
}

// sourceError is the failure of a resync for which the replica cannot be blamed.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

func containsMember(list []*member, m *member) bool {
	for _, other := range list {
		if other == m {
			return true
		}
	}
	return false
}

// echo sends writes that are not waited for, until ctx ends.
func (f *following) echo(ctx context.Context, l *link) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-f.echoes:
			msg := wire.Message{Kind: e.kind, Offset: e.off, Payload: e.p, Stamp: e.stamp}
			if e.kind != wire.KindWrite {
				msg.Count = uint32(e.n)
			}
			_, err := f.m.command(ctx, msg, nil)
			if err != nil {
				_ = f.blame(ctx, l, err) // told by the attempt
			}
			f.paid(e, err == nil)
		}
	}
}

// paid ends an echo.
func (f *following) paid(e *echo, done bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.sent(e.index, e.off, e.off+e.n, done)
	close(f.news)
	f.news = make(chan struct{})
}

// forget gives up the echoes that were not sent. Nothing is admitted to them any more.
func (f *following) forget() {
	for {
		select {
		case e := <-f.echoes:
			f.paid(e, false)
		default:
			return
		}
	}
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
		doubt, in := h.sets.inDoubt(), inSyncIn(&h.sets.known, f.m.Replica, f.groups)
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
	if err := f.fit(ctx, l); err != nil { // no growth is committed while reconfiguring is held
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
