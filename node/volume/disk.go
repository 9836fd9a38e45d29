package volume

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"ukai"
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
	strays   strays
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
func (d *Disk) owed(over *holding) bool { return d.users() > 0 || over.unflushed.any() }

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
		m, took := d.record(), time.Since(began)
		m.count(&m.reads, off, int64(len(p)), d.Size(), took)
		d.felt(feltRead, int64(len(p)), began, took)
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
	m, took := d.record(), time.Since(began)
	m.count(&m.writes, off, n, d.Size(), took)
	d.felt(feltWrite, n, began, took)
	return nil
}

// Flush returns after all writes completed before it are on stable storage on every replica that may be in sync. On a
// node that does not hold the disk there is nothing to flush; but if it has lost the disk since it wrote, the first Flush says so, as
// fsync(2) does of writes that failed in the background. An Attach that is the first begins anew.
func (d *Disk) Flush(ctx context.Context) error {
	h := d.holding.Load()
	if h == nil || !h.ops.enter() {
		return d.flushReleased(ctx, h)
	}
	defer h.ops.leave()
	if err := d.unvouchedFor(); err != nil {
		return err
	}
	began, idle := time.Now(), !h.unflushed.isDirty()
	err := h.flush(ctx)
	if err == nil {
		err = h.vouched(ctx)
	}
	if err != nil {
		return fmt.Errorf("flush %s: %w", d.Name(), err)
	}
	if !idle {
		m, took := d.record(), time.Since(began)
		m.flushes.Add(1)
		m.flush.Observe(took)
		m.one()
		d.felt(feltFlush, 0, began, took)
	}
	return nil
}

// flushReleased is Flush of a disk that has been let go, or with a holding is just being: that flushes, and is waited for.
func (d *Disk) flushReleased(ctx context.Context, going *holding) error {
	if going != nil {
		if err := d.lock(ctx); err != nil {
			return fmt.Errorf("flush %s: %w", d.Name(), err)
		}
		d.unlock()
	}
	if err := d.unvouchedFor(); err != nil || going == nil || !going.unflushed.any() {
		return err
	}
	return fmt.Errorf("flush %s: %w", d.Name(), going.err()) // whoever attached the disk in between has begun anew
}

// unvouchedFor tells once why writes that were acknowledged, and are out of this node's hands, cannot be vouched for.
func (d *Disk) unvouchedFor() error {
	if why := d.unvouched.Swap(nil); why != nil {
		return fmt.Errorf("flush %s: what was written before cannot be vouched for: %w", d.Name(), *why)
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
		if rec, known := d.host.cfg.Mesh.Record(d.id); known {
			d.host.Observe(rec) // what ends a holding may be known before this host has been told
		}
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
