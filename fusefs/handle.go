package fusefs

import (
	"context"
	"errors"
	"io"
	"math"
	"sync/atomic"
	"time"

	"ukai"
)

// detachTimeout bounds how long letting a disk go may take, which includes flushing it. After it the disk serves no
// more I/O here all the same; that is Detach's business.
const detachTimeout = time.Minute

// handle is one open file.
type handle struct {
	fs   *filesystem
	file *file
	disk Disk
	fh   uint64

	readOnly bool        // opened for reading only
	refused  atomic.Bool // it has a lock that says to attach, and another node had the disk; see setLock

	gate gate          // open while attached: mutations pass it without looking at anything else
	turn chan struct{} // of size 1; whoever has put something in may attach and detach

	// With turn.
	attached bool
	implicit bool   // because it wrote, not because of a lock
	writer   caller // the one that wrote first
}

// caller is who made a request: by the kernel's name for the table of open files of a process if the request tells it,
// else by thread.
type caller struct {
	owner uint64
	tid   uint32
}

// same says whether a close by other is one by c.
func (c caller) same(other caller) bool {
	if c.owner != 0 {
		return c.owner == other.owner
	}
	return c.tid != 0 && c.tid == other.tid
}

func newHandle(fs *filesystem, f *file, d Disk) *handle {
	h := &handle{fs: fs, file: f, disk: d, turn: make(chan struct{}, 1)}
	h.gate.init()
	return h
}

// read fills p from off as far as the disk goes.
func (h *handle) read(r request, tid uint32, p []byte, off int64) (int, error) {
	p, err := h.within(p, off)
	if err != nil || len(p) == 0 {
		return 0, nil //nolint:nilerr // what lies past the end of a file reads as nothing
	}
	n, err := h.disk.ReadAt(r, p, off)
	if err != nil && !(errors.Is(err, io.EOF) && n > 0) {
		return h.readAgain(err, r, tid, p, off)
	}
	return n, nil
}

func (h *handle) readAgain(err error, r request, tid uint32, p []byte, off int64) (n int, _ error) {
	err = h.fs.again(err, r, tid, func(ctx context.Context) (err error) {
		n, err = h.disk.ReadAt(ctx, p, off)
		return err
	})
	return n, err
}

// write writes p at off as far as the disk goes, and attaches it before if need be.
func (h *handle) write(r request, c caller, p []byte, off int64) (int, error) {
	p, err := h.within(p, off)
	if err != nil {
		return 0, err
	}
	if err := h.enter(r, c); err != nil {
		return 0, err
	}
	defer h.gate.leave()
	n, err := h.disk.WriteAt(r, p, off)
	if err != nil {
		return h.writeAgain(err, r, c.tid, p, off)
	}
	return n, nil
}

func (h *handle) writeAgain(err error, r request, tid uint32, p []byte, off int64) (n int, _ error) {
	err = h.fs.again(err, r, tid, func(ctx context.Context) (err error) {
		n, err = h.disk.WriteAt(ctx, p, off)
		return err
	})
	return n, err
}

// within returns the part of p that is inside the disk, or errPastEnd if none is.
func (h *handle) within(p []byte, off int64) ([]byte, error) {
	size := h.disk.Size()
	if off < 0 || off >= size {
		return nil, errPastEnd
	}
	return p[:min(int64(len(p)), size-off)], nil
}

// sync makes durable what was written. A disk that is not attached has nothing to flush.
func (h *handle) sync(r request, tid uint32) error {
	err := h.disk.Flush(r)
	if err == nil {
		return nil
	}
	err = h.fs.again(err, r, tid, h.disk.Flush)
	if errors.Is(err, ukai.ErrNotAttached) && !h.gate.isOpen() {
		return nil
	}
	return err
}

// mutate runs op, one of the rarer changes, while attached.
func (h *handle) mutate(r request, c caller, op func(ctx context.Context) error) error {
	if err := h.enter(r, c); err != nil {
		return err
	}
	defer h.gate.leave()
	return h.fs.again(op(r), r, c.tid, op)
}

// resize grows the disk to size.
func (h *handle) resize(r request, c caller, size int64) error {
	return h.mutate(r, c, func(ctx context.Context) error { return h.disk.Resize(ctx, size) })
}

// enter lets a mutation in, which has to leave the gate afterwards. The first through a handle that is not attached by
// a lock attaches the disk.
func (h *handle) enter(r request, c caller) error {
	if h.gate.enter() {
		return nil
	}
	err := h.attachImplicitly(r, c)
	return h.fs.again(err, r, c.tid, func(ctx context.Context) error { return h.attachImplicitly(ctx, c) })
}

func (h *handle) attachImplicitly(ctx context.Context, c caller) error {
	if err := h.take(ctx); err != nil {
		return err
	}
	defer h.give()
	if h.gate.enter() {
		return nil // somebody else did it meanwhile
	}
	if h.fs.cfg.RequireLocks {
		h.fs.refuse("write to "+h.file.label()+" without a lock", c.tid, "this node requires QEMU's image locks (file.locking=on)")
		return errRefused
	}
	if err := h.disk.Attach(ctx); err != nil {
		return err
	}
	h.attached, h.implicit, h.writer = true, true, c
	h.gate.open()
	h.gate.enter()
	return nil
}

// attachByLock attaches the disk because a lock through h was granted that says so, or takes over what h attached by
// writing.
func (h *handle) attachByLock(ctx context.Context) error {
	if err := h.take(ctx); err != nil {
		return err
	}
	defer h.give()
	if !h.attached {
		if err := h.disk.Attach(ctx); err != nil {
			return err
		}
		h.attached = true
		h.refused.Store(false)
		h.gate.open()
	}
	h.implicit = false
	return h.settle() // the lock may have been let go meanwhile
}

// settle detaches the disk if neither a lock nor writing keeps it attached, once the mutations in flight have ended.
// It belongs to whoever has the turn.
func (h *handle) settle() error {
	if !h.attached || h.implicit || h.file.locks.attaching(h.fh) {
		return nil
	}
	h.gate.shut()
	h.attached = false
	ctx, stop := context.WithTimeout(context.Background(), detachTimeout)
	defer stop()
	err := h.disk.Detach(ctx)
	if err != nil {
		h.fs.warn("detach", h.file, err)
	}
	// Pages that are mapped may not outlive the right to write: others can from now on.
	h.fs.news.add(h.file.label(), staleData)
	return err
}

// flush is told of each close(2) of one of the descriptors of h.
//
// Its process's POSIX locks are gone. And if h is attached because that process wrote, it is detached now, not when
// the kernel releases the handle: release comes some time after close(2) returned, while this is waited for, so that
// another host can attach the disk the moment dd or cp ends, and a flush that fails on the way makes close fail. If
// the process has a duplicate and writes on, the next write attaches again. A close by another process, such as a
// child that inherited the descriptor, changes nothing, or any fork of a writer could lose it the disk. A kernel user
// of the file has no descriptor to close: losetup -d gives us the release alone. Opening and closing a file often
// costs an attach and a detach only if it was written to in between, which is when it has to be flushed anyway.
func (h *handle) flush(r request, c caller) error {
	if !h.file.locks.closed(c.owner, h.fh) && !h.gate.isOpen() {
		return nil
	}
	return h.fs.aside(r, func() error {
		h.file.settle(h.fs)
		h.lock()
		defer h.give()
		if h.implicit && h.writer.same(c) {
			h.implicit = false
		}
		return h.settle()
	})
}

// release is told that h has ended: all its locks are gone, the disk is detached if h was the last to attach it.
func (h *handle) release() {
	h.file.locks.released(h.fh)
	h.lock()
	defer h.give()
	h.implicit = false
	_ = h.settle() // it logs, and nobody else waits for it
	if err := h.disk.Close(); err != nil {
		h.fs.warn("close", h.file, err)
	}
}

// take waits for the turn.
func (h *handle) take(ctx context.Context) error {
	select {
	case h.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *handle) lock() { h.turn <- struct{}{} }
func (h *handle) give() { <-h.turn }

// gate counts the mutations in flight through a handle and can be shut: then none gets in, and those that are in are
// waited for. Entering an open gate is one atomic operation.
type gate struct {
	state   atomic.Int64 // how many are in; less by shutGate while shut
	drained chan struct{}
}

const shutGate = math.MinInt64 / 2

func (g *gate) init() {
	g.state.Store(shutGate)
	g.drained = make(chan struct{}, 1)
}

// enter says whether the gate was open; whoever got in has to leave.
func (g *gate) enter() bool {
	for {
		n := g.state.Load()
		if n < 0 {
			return false
		}
		if g.state.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (g *gate) leave() {
	if g.state.Add(-1) == shutGate {
		g.drained <- struct{}{}
	}
}

func (g *gate) isOpen() bool { return g.state.Load() >= 0 }

// open lets them in again. The gate is shut and empty.
func (g *gate) open() { g.state.Store(0) }

// shut keeps everyone out and returns when those that were in have left. The gate is open.
func (g *gate) shut() {
	if g.state.Add(shutGate) > shutGate {
		<-g.drained
	}
}
