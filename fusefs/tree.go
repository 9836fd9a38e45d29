package fusefs

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"ukai"
)

// file is one disk as the kernel knows it: an inode. It is found by its disk's id, so that it stays the same when the
// disk is renamed.
type file struct {
	node uint64 // the kernel's number for it, never used again
	id   ukai.DiskID

	locks locks
	info  atomic.Pointer[Info] // what was last seen of the disk

	// With tree.mu.
	lookups uint64 // how often the kernel has been told of it and has not forgotten
	handles map[uint64]*handle
}

// label names the disk in messages.
func (f *file) label() string { return f.info.Load().Name }

// tree is what the kernel knows: files by node number and open handles. Nothing is kept of disks it does not know.
type tree struct {
	mu      sync.RWMutex
	byNode  map[uint64]*file
	byID    map[ukai.DiskID]*file
	handles map[uint64]*handle
	dirs    map[uint64]*directory
	last    uint64 // last node or handle number given out
}

func (t *tree) init() {
	t.byNode = make(map[uint64]*file)
	t.byID = make(map[ukai.DiskID]*file)
	t.handles = make(map[uint64]*handle)
	t.dirs = make(map[uint64]*directory)
	t.last = fuse.FUSE_ROOT_ID
}

// remember returns the file of a disk that the kernel is about to be told of.
func (t *tree) remember(info Info) *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byID[info.ID]
	if f == nil {
		t.last++
		f = &file{node: t.last, id: info.ID, handles: make(map[uint64]*handle)}
		t.byNode[f.node], t.byID[f.id] = f, f
	}
	f.info.Store(&info)
	f.lookups++
	return f
}

// forget takes back n of the times the kernel was told of a file.
func (t *tree) forget(node, n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.byNode[node]; f != nil {
		f.lookups -= min(n, f.lookups)
		t.drop(f)
	}
}

func (t *tree) drop(f *file) {
	if f.lookups == 0 && len(f.handles) == 0 {
		delete(t.byNode, f.node)
		delete(t.byID, f.id)
	}
}

// file returns the file of a node number, or ukai.ErrNotFound.
func (t *tree) file(node uint64) (*file, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if f := t.byNode[node]; f != nil {
		return f, nil
	}
	return nil, ukai.ErrNotFound
}

// named returns the file that was last seen under name, or nil.
func (t *tree) named(name string) *file {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, f := range t.byNode {
		if f.info.Load().Name == name {
			return f
		}
	}
	return nil
}

// handle returns an open handle; the kernel only names those.
func (t *tree) handle(fh uint64) (*handle, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if h := t.handles[fh]; h != nil {
		return h, nil
	}
	return nil, errBadHandle
}

// add numbers a new handle.
func (t *tree) add(h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	h.fh = t.last
	t.handles[h.fh] = h
	h.file.handles[h.fh] = h
}

// remove returns the handle, which is known no more, or nil.
func (t *tree) remove(fh uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[fh]
	if h == nil {
		return nil
	}
	delete(t.handles, fh)
	delete(h.file.handles, fh)
	t.drop(h.file)
	return h
}

// opened returns the open handles of f, or all if f is nil.
func (t *tree) opened(f *file) []*handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if f == nil {
		return slices.Collect(maps.Values(t.handles))
	}
	return slices.Collect(maps.Values(f.handles))
}

// filesystem is the core behind the kernel's requests.
type filesystem struct {
	cfg  Config
	born time.Time
	life context.Context // ends when the mount does
	tree
	background sync.WaitGroup // releases that nobody waits for any more
	quiet      quiet
	news       *news
}

// lookup finds a disk by name and counts that the kernel knows it.
func (fs *filesystem) lookup(ctx context.Context, name string) (*file, error) {
	if len(name) <= ukai.MaxNameLen && ukai.CheckName("disk", name) != nil {
		return nil, ukai.ErrNotFound // programs look for all sorts of names; longer than a disk's is that of one of its histories
	}
	info, err := fs.cfg.Disks.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	return fs.remember(info), nil
}

// stat returns what is true of a file now. One that is open is still there when its disk has been renamed or removed.
func (fs *filesystem) stat(ctx context.Context, f *file) (Info, error) {
	seen := *f.info.Load()
	open := fs.opened(f)
	info, err := fs.cfg.Disks.Stat(ctx, seen.Name)
	switch {
	case err == nil && info.ID == f.id:
		f.info.Store(&info)
	case len(open) > 0:
		info = seen
	case err == nil:
		return Info{}, errStale // another disk has the name now
	default:
		return Info{}, gone(err)
	}
	if len(open) > 0 {
		info.Size = open[0].disk.Size() // the catalog may tell later of a resize than the disk
	}
	return info, nil
}

// open returns a new handle of f.
func (fs *filesystem) open(ctx context.Context, f *file, readOnly bool) (*handle, error) {
	if !readOnly && f.info.Load().ReadOnly {
		return nil, errReadOnly
	}
	d, err := fs.cfg.Disks.Open(ctx, f.label())
	if err != nil {
		return nil, gone(err)
	}
	if d.ID() != f.id {
		_ = d.Close() // it is another disk that took the name; nothing was done with it
		return nil, errStale
	}
	h := newHandle(fs, f, d)
	h.readOnly = readOnly
	fs.add(h)
	return h, nil
}

// gone turns a disk that is not to be found under the name it had into errStale.
func gone(err error) error {
	if errors.Is(err, ukai.ErrNotFound) {
		return errStale
	}
	return err
}

// borrow runs op with a disk handle of f for a request that comes without a handle.
func (fs *filesystem) borrow(ctx context.Context, f *file, op func(*handle) error) error {
	h, err := fs.open(ctx, f, false)
	if err != nil {
		return err
	}
	err = op(h)
	fs.release(h.fh)
	return err
}

// release ends a handle.
func (fs *filesystem) release(fh uint64) {
	if h := fs.remove(fh); h != nil {
		h.release()
	}
}

// settle detaches the handles of f that lost the lock for which they were attached.
func (f *file) settle(fs *filesystem) {
	for _, h := range fs.opened(f) {
		if h.gate.isOpen() && !f.locks.attaching(h.fh) {
			h.lock()
			_ = h.settle() // it logs
			h.give()
		}
	}
}

// setLock takes l through h, and attaches the disk if l says so.
//
// QEMU first locks what it wants on a handle that is only open for reading, and then asks whether anybody is in the way: that
// question has the better message ("Failed to get "write" lock") than a lock that is refused. So a shared lock through
// such a handle, with which nothing can be written, is granted also while another node has the disk, without attaching it.
func (h *handle) setLock(ctx context.Context, l lock, whole, wait bool) error {
	replaced, err := h.file.locks.acquire(ctx, l, whole, wait)
	if err != nil || whole {
		return err
	}
	if l.attaches() {
		err := h.attachByLock(ctx)
		if errors.Is(err, ukai.ErrHeld) && h.readOnly && !l.write {
			h.refused.Store(true)
			return nil
		}
		if err != nil {
			h.file.locks.restore(l, replaced)
			if !errors.Is(err, context.Canceled) {
				h.fs.warn("attach", h.file, err)
				err = errConflict
			}
			return err
		}
	}
	if slices.ContainsFunc(replaced, func(old lock) bool { return old.fh != l.fh && old.attaches() }) {
		h.file.settle(h.fs)
	}
	return nil
}

// unlock lets a range go, and the disk with it if this was the last lock that said to attach it.
func (h *handle) unlock(r request, l lock, whole bool) error {
	h.file.locks.release(l.owner, l.start, l.end, whole)
	if whole || !l.attaches() {
		return nil
	}
	return h.fs.aside(r, func() error { h.file.settle(h.fs); return nil })
}

// query returns what is in the way of l, here or, as far as QEMU's question goes, on another node.
func (h *handle) query(ctx context.Context, l lock, whole bool) (*lock, error) {
	other, err := h.file.locks.query(ctx, l, whole)
	if other != nil || err != nil || whole || !l.asksForWriters() {
		return other, err
	}
	if d, ok := h.disk.(Elsewhere); h.refused.Load() || ok && d.HeldElsewhere(ctx) {
		return &lock{start: l.start, end: l.end, write: true}, nil
	}
	return nil, nil
}

// aside runs op on a goroutine of its own, and waits for it unless the kernel gives up waiting.
func (fs *filesystem) aside(r request, op func() error) error {
	done := make(chan error, 1)
	fs.background.Go(func() {
		err := errPanic
		defer func() { done <- err }()
		defer fs.recover()
		err = op()
	})
	select {
	case err := <-done:
		return err
	case <-r:
		return context.Canceled
	}
}

// recover keeps a panic from ending the daemon, which has other disks to serve.
func (fs *filesystem) recover() {
	if what := recover(); what != nil {
		fs.cfg.Log.Error("panic in a file operation", "panic", what, "stack", string(debug.Stack()))
	}
}

// shutdown ends what the kernel left open when the mount was aborted.
func (fs *filesystem) shutdown() {
	for _, h := range fs.opened(nil) {
		fs.background.Go(func() {
			defer fs.recover()
			fs.release(h.fh)
		})
	}
	fs.background.Wait()
}

// inode numbers are made of the disk's id, so that they are the same on every node and after a restart.
func inode(id ukai.DiskID) uint64 {
	n := binary.BigEndian.Uint64(id[:8])
	if n <= fuse.FUSE_ROOT_ID || n >= 1<<64-2 {
		n = 1 << 32 // these mean something to the kernel or to go-fuse
	}
	return n
}
