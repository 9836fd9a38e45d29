package volume

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"ukai"
	"ukai/node/cell"
	"ukai/node/wire"
)

// Disk is a virtual disk as this node sees it. It becomes this node's to write by Attach, or by itself at the first use;
// in the second case it is let go again when it has not been used for a while, or when another node wants it and nothing
// was written lately. Reads on a node that does not hold the disk go through the holder. All methods may be called
// concurrently.
//
// The context of a read or write bounds the wait for the disk, for room and for lost replicas. If it ends while a write
// is under way, the write's outcome is open, and later requests for its range wait until it is settled.
type Disk struct {
	host     *Host
	id       ukai.DiskID
	name     atomic.Pointer[string]
	inflight *semaphore.Weighted

	holding atomic.Pointer[holding]
	mix     atomic.Pointer[ioMix]
	turn    chan struct{} // lock of 1 around attaching and releasing
	quiet   atomic.Bool   // nothing was written for writerLinger
	// unvouched says why acknowledged writes that were not flushed cannot be vouched for any more, until a flush has told.
	unvouched atomic.Pointer[error]

	mu       sync.Mutex
	attached int   // Attach without Detach
	tries    tries // to bring replicas back
	pausing  pausing
	detached chan struct{} // closed and replaced when attached falls to 0
}

// writerLinger is how long after its last write a disk used without Attach still counts as being written, so that two
// nodes that write it at once do not hand it to and fro with each request.
const writerLinger = time.Second

func newDisk(h *Host, id ukai.DiskID) *Disk {
	d := &Disk{
		host: h, id: id, inflight: semaphore.NewWeighted(h.cfg.MaxInflight), turn: make(chan struct{}, 1), detached: make(chan struct{}), pausing: newPausing(),
	}
	name := id.String()
	d.name.Store(&name)
	d.quiet.Store(true)
	return d
}

// ID returns the disk's id.
func (d *Disk) ID() ukai.DiskID { return d.id }

// Name returns the disk's name, or its id if no name is known here.
func (d *Disk) Name() string { return *d.name.Load() }

// Size returns the disk's size in bytes, 0 if nothing is known about it yet.
func (d *Disk) Size() int64 {
	if h := d.holding.Load(); h != nil {
		return h.view.Load().layout.size
	}
	rec, _ := d.host.cfg.Mesh.Record(d.id)
	return rec.Size
}

// BlockSize returns the size of the disk's blocks in bytes, 0 if nothing is known about it yet.
func (d *Disk) BlockSize() int {
	if h := d.holding.Load(); h != nil {
		return int(h.view.Load().layout.blockSize)
	}
	rec, _ := d.host.cfg.Mesh.Record(d.id)
	return rec.BlockSize
}

// minReserve is what the smallest request counts as against Config.MaxInflight.
const minReserve = 4096

// reserve waits for room among the requests that run on the disk.
func (d *Disk) reserve(ctx context.Context, n int64) (reserved int64, err error) {
	reserved = min(max(n, minReserve), d.host.cfg.MaxInflight)
	if d.inflight.TryAcquire(reserved) {
		return reserved, nil
	}
	return reserved, d.inflight.Acquire(ctx, reserved)
}

// enter returns the holding of the disk, claimed if this node does not hold it yet. h.ops.leave must follow.
func (d *Disk) enter(ctx context.Context, how claiming) (*holding, error) {
	for {
		if h := d.holding.Load(); h != nil && h.ops.enter() {
			err := h.err()
			if err == nil {
				if !h.used.Load() {
					h.used.Store(true)
				}
				return h, nil
			}
			h.ops.leave()
			if d.owed(h) {
				return nil, err
			}
		}
		if err := d.open(ctx, how); err != nil {
			return nil, err
		}
	}
}

// owed says whether a holding that is over must go on failing its requests: somebody has attached the disk by it, or wrote what may be
// lost. Otherwise the disk may be held anew as if it had never been.
func (d *Disk) owed(over *holding) bool { return d.users() > 0 || over.dirty.Load() }

// ReadAt fills p from off and returns len(p), or 0 and an error.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, d.story("read", off, len(p), err)
	}
	err := d.anywhere(ctx, func(h *holding) error {
		began := time.Now()
		if err := h.read(ctx, p, off); err != nil {
			return err
		}
		m := d.record()
		m.count(&m.reads, off, int64(len(p)), d.Size(), time.Since(began))
		return nil
	}, func(ctx context.Context, holder ukai.NodeID) error {
		return d.forwardRead(ctx, holder, p, off)
	})
	if err != nil {
		return 0, d.story("read", off, len(p), err)
	}
	return len(p), nil
}

// WriteAt writes p at off and returns len(p) after every replica that may be in sync has it - with ack=local that of this node,
// while the others lack little - and as many are in sync as the disk demands. After an error any of the sectors may have been written.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := d.mutate(ctx, wire.KindWrite, p, off, int64(len(p))); err != nil {
		return 0, d.story("write", off, len(p), err)
	}
	return len(p), nil
}

// Zero makes n bytes from off read as zeros.
func (d *Disk) Zero(ctx context.Context, off, n int64) error {
	if err := d.mutate(ctx, wire.KindZero, nil, off, n); err != nil {
		return d.story("zero", off, int(n), err)
	}
	return nil
}

// Discard does what Zero does and gives the space back.
func (d *Disk) Discard(ctx context.Context, off, n int64) error {
	if err := d.mutate(ctx, wire.KindDiscard, nil, off, n); err != nil {
		return d.story("discard", off, int(n), err)
	}
	return nil
}

func (d *Disk) mutate(ctx context.Context, kind wire.Kind, p []byte, off, n int64) error {
	if n == 0 {
		return d.check(off, n)
	}
	if d.quiet.Load() {
		d.quiet.Store(false)
	}
	h, err := d.enter(ctx, claimAsking)
	if err != nil {
		return err
	}
	defer h.ops.leave()
	if err := d.check(off, n); err != nil {
		return err
	}
	began := time.Now()
	if err := h.mutate(ctx, kind, p, off, n); err != nil || kind != wire.KindWrite {
		return err
	}
	m := d.record()
	m.count(&m.writes, off, n, d.Size(), time.Since(began))
	return nil
}

// Flush returns after all writes completed before it are on stable storage on every replica that may be in sync. On a
// node that does not hold the disk there is nothing to flush; but if it has lost the disk since it wrote, the first Flush says so, as
// fsync(2) does of writes that failed in the background. An Attach that is the first begins anew.
func (d *Disk) Flush(ctx context.Context) error {
	if why := d.unvouched.Swap(nil); why != nil {
		return fmt.Errorf("flush %s: what was written before cannot be vouched for: %w", d.Name(), *why)
	}
	h := d.holding.Load()
	if h == nil || !h.ops.enter() {
		return nil
	}
	defer h.ops.leave()
	began, idle := time.Now(), !h.dirty.Load()
	err := h.flush(ctx)
	if err == nil {
		err = h.vouched(ctx)
	}
	if err != nil {
		return fmt.Errorf("flush %s: %w", d.Name(), err)
	}
	if !idle {
		m := d.record()
		m.flushes.Add(1)
		m.flush.Observe(time.Since(began))
		m.one()
	}
	return nil
}

// NextData returns the first offset at or after off that may hold data, or the size of the disk.
func (d *Disk) NextData(ctx context.Context, off int64) (int64, error) {
	return d.seek(ctx, off, seekData)
}

// NextHole returns the first offset at or after off that reads as zeros because nothing is stored, or the size of the
// disk.
func (d *Disk) NextHole(ctx context.Context, off int64) (int64, error) {
	return d.seek(ctx, off, seekHole)
}

func (d *Disk) seek(ctx context.Context, off int64, what uint32) (found int64, err error) {
	if err := d.check(off, 0); err != nil {
		return 0, d.story("seek", off, 0, err)
	}
	err = d.anywhere(ctx, func(h *holding) error {
		found, err = h.seek(ctx, off, what)
		return err
	}, func(ctx context.Context, holder ukai.NodeID) error {
		found, err = d.forwardSeek(ctx, holder, off, what)
		return err
	})
	if err != nil {
		return 0, d.story("seek", off, 0, err)
	}
	return found, nil
}

// check says whether [off, off+n) lies within the disk.
func (d *Disk) check(off, n int64) error {
	if size := d.Size(); off < 0 || n < 0 || off > size-n {
		return fmt.Errorf("%w: the disk has %d bytes", ukai.ErrInvalid, size)
	}
	return nil
}

func (d *Disk) story(what string, off int64, n int, err error) error {
	return fmt.Errorf("%s %s, %d bytes at %d: %w", what, d.Name(), n, off, err)
}

// Attach makes this node the holder until as many calls of Detach. If another node has attached the disk, the error is a
// ukai.HeldError.
func (d *Disk) Attach(ctx context.Context) error {
	return d.attach(ctx, claimAsking)
}

// Takeover is Attach that deposes a live holder which does not let go. That is always safe, but fails the I/O of the
// holder's guest. fenced says that the holder's machine is certainly off or cut off from its users: then the end of its lease, in which it
// might still answer reads, is not waited for.
func (d *Disk) Takeover(ctx context.Context, fenced bool) error {
	if fenced {
		return d.attach(ctx, claimFenced)
	}
	return d.attach(ctx, claimForced)
}

func (d *Disk) attach(ctx context.Context, how claiming) error {
	d.mu.Lock()
	fresh := d.attached == 0
	d.attached++
	d.mu.Unlock()
	if fresh {
		if err := d.discardEnded(ctx); err != nil {
			d.unattach()
			return fmt.Errorf("attach %s: %w", d.Name(), err)
		}
	}
	if err := d.open(ctx, how); err != nil {
		d.unattach()
		return fmt.Errorf("attach %s: %w", d.Name(), err)
	}
	return nil
}

// unattach counts one Attach less and says whether it was the last.
func (d *Disk) unattach() (last bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.attached > 0 {
		d.attached--
	}
	if d.attached == 0 {
		close(d.detached)
		d.detached = make(chan struct{})
	}
	return d.attached == 0
}

// Detach undoes one Attach. The last one finishes what runs, flushes and lets the disk go. An error says that
// acknowledged writes may not be on stable storage everywhere, also if the disk was lost before, to another holder or
// with the memory of its last replica; it is let go all the same.
func (d *Disk) Detach(ctx context.Context) error {
	d.mu.Lock()
	attached := d.attached
	d.mu.Unlock()
	if attached == 0 {
		return fmt.Errorf("detach %s: %w", d.Name(), ukai.ErrNotAttached)
	}
	if !d.unattach() {
		return nil
	}
	ctx, cancel := d.host.bounded(ctx, "detached")
	defer cancel()
	if err := d.lock(ctx); err != nil {
		return fmt.Errorf("detach %s: %w", d.Name(), err)
	}
	defer d.unlock()
	if d.users() > 0 {
		return nil // attached anew meanwhile
	}
	h := d.holding.Load()
	err := d.release(ctx)
	if err == nil && h != nil && h.dirty.Load() { // it was over before it could be flushed
		err = fmt.Errorf("what was written cannot be vouched for: %w", h.err())
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", d.Name(), err)
	}
	return nil
}

// users returns how many Attach there are without Detach.
func (d *Disk) users() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attached
}

func (d *Disk) lock(ctx context.Context) error {
	select {
	case d.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *Disk) unlock() { <-d.turn }

// release lets the disk go. The caller has the turn.
func (d *Disk) release(ctx context.Context) error {
	h := d.holding.Load()
	if h == nil {
		return nil
	}
	defer d.drop(h)
	if h.err() != nil {
		return nil // fenced or poisoned: its guests have been told, or are by the next flush
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	h.endReturns()
	select {
	case <-h.ops.close():
	case <-h.ctx.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w while requests wait: %w", context.Cause(ctx), h.reason())
	}
	if c := h.check.Load(); c.stamp.Check > 1 || c.touched.count.Load() > 0 {
		h.dirty.Store(true) // also what was written without being acknowledged must be the same everywhere
	}
	if err := h.flush(ctx); err != nil {
		return err
	}
	h.announce(ctx)
	// From here on nothing is served: the next holder may rely on it as soon as the release is committed.
	d.holding.CompareAndSwap(h, nil)
	h.close()
	if _, err := d.host.cfg.Cells.Propose(ctx, d.id, cell.Release{Epoch: h.epoch, Nonce: h.nonce}); err != nil {
		d.host.cfg.Log.Warn("not released, the next attach will recover", "disk", d.Name(), "err", err)
	}
	return nil
}

// drop forgets a holding.
func (d *Disk) drop(h *holding) {
	if h.dirty.Load() {
		err := h.err()
		if err == nil {
			err = fmt.Errorf("let go without a flush: %w", ukai.ErrLost)
		}
		d.unvouched.Store(&err)
	}
	d.holding.CompareAndSwap(h, nil)
	h.close()
}

func (h *holding) reason() error {
	if err := h.why(); err != nil {
		return err
	}
	return ukai.ErrTimeout
}

// announce tells the replicas that everything is stable, for at most announceFor.
func (h *holding) announce(ctx context.Context) {
	h.mu.Lock()
	h.stable = h.check.Load().stamp
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, announceFor)
	defer cancel()
	var all sync.WaitGroup
	for _, m := range h.view.Load().all {
		all.Go(func() {
			b := m.beat()
			msg := wire.Message{Kind: wire.KindHeartbeat, Payload: encode(heartbeat{Beats: []beat{b.beat}})}
			_, _ = m.ask(ctx, b.Session, msg, nil) // may be lost: then a later recovery looks at more blocks
		})
	}
	all.Wait()
}

// discardEnded forgets a holding that is over, so that the disk can be attached anew.
func (d *Disk) discardEnded(ctx context.Context) error {
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.unlock()
	if h := d.holding.Load(); h != nil && h.err() != nil {
		d.drop(h)
	}
	d.unvouched.Store(nil) // of no concern to whoever attaches it now
	return nil
}

// lapse lets go of a disk that nobody has attached and that has not been used for a while.
func (d *Disk) lapse(h *holding) {
	if d.users() > 0 {
		return
	}
	select {
	case d.turn <- struct{}{}:
	default:
		return // something else happens to it
	}
	if !d.host.spawn(func() {
		defer d.unlock()
		if d.users() > 0 || d.holding.Load() != h || h.used.Load() {
			return
		}
		ctx, cancel := context.WithTimeout(d.host.ctx, d.host.cfg.AttachTimeout)
		defer cancel()
		if err := d.release(ctx); err != nil {
			d.host.cfg.Log.Warn("letting go of an idle disk", "disk", d.Name(), "err", err)
		}
	}) {
		d.unlock()
	}
}

// Yield lets go of a disk that this node holds for the time being, without Attach, if nothing was written lately. It
// waits for that until ctx ends; then the error is a ukai.HeldError. If this node does not hold the disk, the error
// matches ukai.ErrNotAttached.
func (d *Disk) Yield(ctx context.Context) error {
	for {
		d.mu.Lock()
		detached, attached := d.detached, d.attached
		d.mu.Unlock()
		if attached == 0 && d.holding.Load() == nil {
			break
		}
		if attached == 0 && d.quiet.Load() {
			break
		}
		t := time.NewTimer(tickEvery)
		select {
		case <-detached: // the kernel tells late that a file was closed
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return &ukai.HeldError{Node: d.host.cfg.Node, Name: d.host.cfg.Mesh.NodeName(d.host.cfg.Node)}
		}
		t.Stop()
	}
	if err := d.lock(d.host.ctx); err != nil {
		return err
	}
	defer d.unlock()
	if d.users() > 0 {
		return &ukai.HeldError{Node: d.host.cfg.Node, Name: d.host.cfg.Mesh.NodeName(d.host.cfg.Node)}
	}
	if d.holding.Load() == nil {
		return fmt.Errorf("disk %s: %w", d.Name(), ukai.ErrNotAttached)
	}
	ctx, cancel := context.WithTimeout(d.host.ctx, d.host.cfg.AttachTimeout)
	defer cancel()
	return d.release(ctx)
}

// shut releases the disk because the node stops.
func (d *Disk) shut(ctx context.Context) error {
	// Attaching has been called off, so the turn comes soon even if ctx has ended.
	if err := d.lock(d.host.ctx); err != nil {
		return nil // stopped by another Close
	}
	defer d.unlock()
	if err := d.release(ctx); err != nil {
		return fmt.Errorf("release %s: %w", d.Name(), err)
	}
	return nil
}
