package volume

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"ukai"
	"ukai/node/store"
	"ukai/node/wire"
)

// hosted is one open replica of this node behind its fence. The holder on this node calls it directly; others through
// Replicas.Serve.
type hosted struct {
	rs   *Replicas
	key  replicaKey
	data store.Replica

	admitted atomic.Pointer[admission]
	control  chan struct{} // lock of 1 around seal, hello and shut, which wait and do I/O

	// confirmed is the time, on the node's clock, after which no heartbeat was confirmed and no seal answered. The holder of the next
	// epoch needs not wait for a lease that nobody has renewed.
	confirmed atomic.Int64
}

// admission is the fence in force and the operations that run under it.
type admission struct {
	fence
	ops     *gate
	applied applied
}

func newAdmission(f fence) *admission {
	a := &admission{fence: f, ops: newGate()}
	a.applied.init()
	return a
}

func (a *admission) leave() { a.ops.leave() }

func newHosted(rs *Replicas, key replicaKey, data store.Replica) *hosted {
	h := &hosted{rs: rs, key: key, data: data, control: make(chan struct{}, 1)}
	h.admitted.Store(newAdmission(fence{epoch: data.Header().Fence}))
	h.confirmed.Store(int64(rs.cfg.Clock())) // at the latest, by the process before
	return h
}

// enter admits one operation. If it returns no error, leave of what it returns must follow.
func (h *hosted) enter(epoch ukai.Epoch, session uint32) (*admission, error) {
	a := h.admitted.Load()
	if err := a.admits(epoch, session); err != nil {
		return nil, err
	}
	if !a.ops.enter() {
		// Drained for a newer fence since we looked.
		return nil, &ukai.FencedError{Epoch: h.admitted.Load().epoch}
	}
	return a, nil
}

// advance puts another fence in force: until drained and ready has returned, nothing is admitted at all, then what the
// new fence says. If ready fails the old one is back, since nobody has been told of the new. The caller holds control.
func (h *hosted) advance(next fence, ready func() error) error {
	old := h.admitted.Load()
	// No session: operations of the old fence are refused from here on, and none of the new one has begun.
	h.admitted.Store(newAdmission(fence{epoch: next.epoch}))
	old.applied.giveUp()
	<-old.ops.close()
	if err := ready(); err != nil {
		h.admitted.Store(newAdmission(old.fence))
		return err
	}
	h.admitted.Store(newAdmission(next))
	return nil
}

func (h *hosted) lock(ctx context.Context) error {
	select {
	case h.control <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// seal gives the replica to the holder of an epoch. Operations of older epochs have finished, and the fence is durable,
// when it returns.
func (h *hosted) seal(ctx context.Context, epoch ukai.Epoch, req sealRequest) (sealReply, error) {
	if err := h.lock(ctx); err != nil {
		return sealReply{}, err
	}
	defer func() { <-h.control }()
	if h.data.Header().State == store.StateRetired {
		return sealReply{}, fmt.Errorf("replica %v is retired: %w", h.key.replica, ukai.ErrNotFound)
	}
	f := h.admitted.Load().fence
	step := f.onSeal(epoch)
	if step == sealRefuse {
		return sealReply{}, &ukai.FencedError{Epoch: f.epoch}
	}
	if admit := h.rs.cfg.Lineage; admit != nil {
		if err := admit(ctx, h.key.disk, h.key.replica, req.lineage()); err != nil {
			return sealReply{}, err
		}
	}
	if step == sealAdvance {
		if err := h.advance(fence{epoch, 1}, func() error { return h.data.SetFence(ctx, epoch) }); err != nil {
			return sealReply{}, err
		}
	}
	// Only now: a heartbeat that finds the old fence has noted its time before it looked.
	now := h.rs.cfg.Clock()
	quiet := now - time.Duration(h.confirmed.Load())
	h.confirms(now)
	if req.Size > h.data.Size() {
		if err := h.data.Resize(ctx, req.Size); err != nil {
			return sealReply{}, err
		}
	}
	if err := h.data.SetVersion(req.Version); err != nil {
		return sealReply{}, err
	}
	header := h.data.Header()
	reply := sealReply{
		Incarnation: h.rs.cfg.Store.Incarnation(), Unclean: header.Unclean, Stable: header.Stable,
		Session: h.admitted.Load().session, Quiet: quiet, Counts: step == sealAdvance,
	}
	if space, err := h.rs.cfg.Store.Space(); err == nil { // only for display: a seal does not fail for want of it
		reply.Free = space.Free
	}
	return reply, nil
}

// hello begins a new session of the epoch that owns the replica. Operations of older sessions have finished when it
// returns, so that what the holder sends again cannot be overtaken by its first sending.
func (h *hosted) hello(ctx context.Context, epoch ukai.Epoch, session uint32, sealed ukai.Incarnation) error {
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer func() { <-h.control }()
	if err := h.admitted.Load().onHello(epoch, session, sealed, h.rs.cfg.Store.Incarnation()); err != nil {
		return err
	}
	return h.advance(fence{epoch, session}, func() error { return nil })
}

// shut admits nothing more, waits for what runs, and closes the replica.
func (h *hosted) shut(ctx context.Context) error {
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer func() { <-h.control }()
	return h.advance(fence{epoch: h.admitted.Load().epoch}, h.data.Close)
}

// beat confirms a holder's epoch and takes over its stable stamp.
func (h *hosted) beat(b beat) error {
	// Before the fence is looked at, so that a seal which that look misses does not miss this.
	h.confirms(h.rs.cfg.Clock())
	return h.settle(b)
}

// confirms notes that a heartbeat may be confirmed at a time. Of two that run at once the later one counts, whoever comes to note it last.
func (h *hosted) confirms(at time.Duration) {
	for was := h.confirmed.Load(); int64(at) > was && !h.confirmed.CompareAndSwap(was, int64(at)); was = h.confirmed.Load() {
	}
}

// settle takes over the stable stamp of a holder whose epoch is in force.
func (h *hosted) settle(b beat) error {
	a := h.admitted.Load()
	confirm, stable := a.onHeartbeat(b.Epoch, b.Session)
	if !confirm {
		return &ukai.FencedError{Epoch: a.epoch}
	}
	if err := h.data.Failed(); err != nil {
		return err
	}
	if b.Stable == (ukai.BlockStamp{}) || !stable {
		return nil
	}
	if header := h.data.Header(); !header.Stable.Less(b.Stable) && !header.Unclean {
		return nil
	}
	if !a.ops.enter() {
		return nil // being sealed or greeted: the next heartbeat tells
	}
	defer a.ops.leave()
	return h.data.SetStable(b.Stable, true)
}

// raised says whether a write needs no stamp raised, so that it will not wait for stable storage.
func (h *hosted) raised(m *wire.Message) bool {
	s, ok := h.data.Stamp(ukai.Index(m.Offset / int64(h.data.BlockSize())))
	return ok && !s.Less(m.Stamp) && m.Offset/int64(h.data.BlockSize()) == (m.Offset+max(int64(len(m.Payload)), 1)-1)/int64(h.data.BlockSize())
}

// raise makes the stamps of all blocks of a range at least s, durably. It comes before the data may change: after a
// power cut a block without the newer stamp would be taken as equal on all replicas.
func (h *hosted) raise(ctx context.Context, off, n int64, s ukai.BlockStamp) error {
	size := int64(h.data.BlockSize())
	return h.data.Raise(ctx, ukai.Index(off/size), ukai.Index((off+max(n, 1)-1)/size), s)
}

func (h *hosted) check(what string, off, n int64) error {
	if off < 0 || n < 0 || off > h.data.Size()-n {
		return fmt.Errorf("%s of %d bytes at %d: %w: the replica has %d bytes", what, n, off, ukai.ErrInvalid, h.data.Size())
	}
	return nil
}

// read fills p from off. With source it fails where a checksum says that the data has rotted.
func (h *hosted) read(epoch ukai.Epoch, session uint32, p []byte, off int64, source bool) error {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return err
	}
	defer ops.leave()
	if err := h.check("read", off, int64(len(p))); err != nil {
		return err
	}
	if source {
		if err := h.sound(off, int64(len(p))); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := h.data.ReadAt(p, off); err != nil {
		return err
	}
	h.rs.service.read(len(p), began)
	return nil
}

// write applies p at off after the stamps have been raised. An empty p only raises the stamp of the block at off.
func (h *hosted) write(ctx context.Context, epoch ukai.Epoch, session uint32, batch uint16, p []byte, off int64, s ukai.BlockStamp) error {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return err
	}
	defer ops.leave()
	if err := h.check("write", off, int64(len(p))); err != nil {
		return err
	}
	began := time.Now()
	if err := h.raise(ctx, off, int64(len(p)), s); err != nil {
		return err
	}
	if len(p) > 0 {
		if err := h.data.WriteAt(p, off); err != nil {
			return err
		}
		h.rs.service.write(len(p), began)
	}
	ops.applied.add(batch)
	return nil
}

// clear makes a range read as zeros: a write that leaves a stamp and, with discard, a hole.
func (h *hosted) clear(ctx context.Context, epoch ukai.Epoch, session uint32, batch uint16, off, n int64, s ukai.BlockStamp, discard bool) error {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return err
	}
	defer ops.leave()
	if err := h.check("clear", off, n); err != nil {
		return err
	}
	if err := h.raise(ctx, off, n, s); err != nil {
		return err
	}
	if discard {
		err = h.data.Discard(off, n)
	} else {
		err = h.data.Zero(off, n)
	}
	if err == nil {
		ops.applied.add(batch)
	}
	return err
}

// flush makes everything that was applied before stable, and if behind is not 0 so many mutations of the session's batches up to one, which may still be
// on their way.
func (h *hosted) flush(ctx context.Context, epoch ukai.Epoch, session uint32, batch uint16, behind uint64) error {
	if behind > 0 {
		a := h.admitted.Load()
		if err := a.admits(epoch, session); err != nil {
			return err
		}
		// Not yet admitted: a seal or a hello must not have to wait for it.
		if err := a.applied.reach(ctx, batch, behind); err != nil {
			return err
		}
	}
	ops, err := h.enter(epoch, session)
	if err != nil {
		return err
	}
	defer ops.leave()
	began := time.Now()
	if err := h.data.Sync(ctx); err != nil {
		return err
	}
	h.rs.service.Flushes.Observe(time.Since(began))
	return nil
}

// resize grows the replica. A smaller size is not this operation's: see the protocol, 5.5.
func (h *hosted) resize(ctx context.Context, epoch ukai.Epoch, session uint32, size int64) error {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return err
	}
	defer ops.leave()
	if size <= h.data.Size() {
		return nil
	}
	return h.data.Resize(ctx, size)
}

// What a status request about a replica asks for, in its Count.
const (
	seekData = 1
	seekHole = 2
)

func (h *hosted) next(epoch ukai.Epoch, session uint32, off int64, hole bool) (int64, error) {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return 0, err
	}
	defer ops.leave()
	if err := h.check("seek", off, 0); err != nil {
		return 0, err
	}
	if hole {
		return h.data.NextHole(off)
	}
	return h.data.NextData(off)
}

// suspects lists, encoded, the blocks from first on whose stamp is newer than a given one, at most so many; 0: as many as there is room for. If more
// is true the list goes on at next.
func (h *hosted) suspects(epoch ukai.Epoch, session uint32, than ukai.BlockStamp, first ukai.Index, most int) (list []byte, next ukai.Index, more bool, err error) {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return nil, 0, false, err
	}
	defer ops.leave()
	if most <= 0 || most > maxSuspects {
		most = maxSuspects
	}
	for _, b := range h.data.Newer(than) {
		if b.Index < first {
			continue
		}
		if len(list) == most*suspectBytes {
			return list, b.Index, true, nil
		}
		list = appendSuspect(list, suspect{index: b.Index, stamp: b.Stamp})
	}
	return list, 0, false, nil
}

// maxHashed is the longest range hashed for one request.
const maxHashed = 4 << 20

// hash returns the hashes of the chunks of a range that begins at a chunk's border, and the newest stamp of its blocks, which is not older than what is
// hashed. With source it fails like read.
func (h *hosted) hash(epoch ukai.Epoch, session uint32, off, n int64, source bool) (hashes []byte, newest ukai.BlockStamp, err error) {
	ops, err := h.enter(epoch, session)
	if err != nil {
		return nil, newest, err
	}
	defer ops.leave()
	if err := h.check("hash", off, n); err != nil {
		return nil, newest, err
	}
	if off%ukai.ChunkSize != 0 || n > maxHashed {
		return nil, newest, fmt.Errorf("hash of %d bytes at %d: %w: at most %d, from a multiple of %d", n, off, ukai.ErrInvalid, maxHashed, ukai.ChunkSize)
	}
	if source {
		if err := h.sound(off, n); err != nil {
			return nil, newest, err
		}
	}
	out := make([]byte, 0, (n+ukai.ChunkSize-1)/ukai.ChunkSize*int64(len(chunkHash{})))
	chunk := make([]byte, min(n, ukai.ChunkSize))
	first, end := off, off+n
	for ; off < end; off += ukai.ChunkSize {
		chunk = chunk[:min(ukai.ChunkSize, end-off)]
		if err := h.data.ReadAt(chunk, off); err != nil {
			return nil, newest, err
		}
		sum := hashChunk(chunk)
		out = append(out, sum[:]...)
	}
	size := int64(h.data.BlockSize()) // looked at last: a stamp is raised before the data changes
	for i := ukai.Index(first / size); int64(i)*size < end; i++ {
		if s, ok := h.data.Stamp(i); ok && newest.Less(s) {
			newest = s
		}
	}
	return out, newest, nil
}
