package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
)

// node is a node's disks in memory: what Disks and Disk promise, with places to hold a request or let it fail.
type node struct {
	mu    sync.Mutex
	disks map[string]*memDisk
	space Space
}

func newNode() *node {
	return &node{disks: make(map[string]*memDisk), space: Space{Total: 100 << 30, Free: 60 << 30, Avail: 50 << 30}}
}

func (n *node) create(name string, size int64) *memDisk {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := &memDisk{name: name, id: ukai.NewDiskID(), size: size, pages: make(map[int64][]byte), mtime: time.Unix(1234567890, 0)}
	n.disks[name] = d
	return d
}

func (n *node) rename(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.disks[from]
	d.mu.Lock()
	d.name = to
	d.mu.Unlock()
	delete(n.disks, from)
	n.disks[to] = d
}

func (n *node) remove(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.disks, name)
}

func (n *node) List(context.Context) (infos []Info, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range n.disks {
		infos = append(infos, d.info())
	}
	return infos, nil
}

func (n *node) Stat(_ context.Context, name string) (Info, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.disks[name]
	if d == nil {
		return Info{}, fmt.Errorf("disk %s: %w", name, ukai.ErrNotFound)
	}
	return d.info(), nil
}

func (n *node) Open(_ context.Context, name string) (Disk, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.disks[name]
	if d == nil {
		return nil, fmt.Errorf("disk %s: %w", name, ukai.ErrNotFound)
	}
	if d.doubled {
		return nil, fmt.Errorf("disk %s: %w: two disks have this name", name, ukai.ErrExists)
	}
	d.opens.Add(1)
	return &memHandle{memDisk: d}, nil
}

func (n *node) Space(context.Context) (Space, error) { return n.space, nil }

// memDisk is a disk, of which all that is not zero is kept in pages.
type memDisk struct {
	id      ukai.DiskID
	doubled bool
	fixed   bool // it can only be read
	mtime   time.Time

	mu       sync.Mutex
	name     string
	size     int64
	pages    map[int64][]byte
	attached int
	held     bool // by another node

	opens, attaches, detaches, flushes, discards, zeroes atomic.Int64
	inFlight, mostInFlight                               atomic.Int64
	largest                                              atomic.Int64

	// before, if set, is called at the beginning of each operation, and its error returned.
	before atomic.Pointer[func(ctx context.Context, op string) error]
}

const memPage = 4096

func (d *memDisk) on(f func(ctx context.Context, op string) error) {
	if f == nil {
		d.before.Store(nil)
		return
	}
	d.before.Store(&f)
}

func (d *memDisk) begin(ctx context.Context, op string) error {
	if f := d.before.Load(); f != nil {
		return (*f)(ctx, op)
	}
	return nil
}

func (d *memDisk) info() Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Info{Name: d.name, ID: d.id, Size: d.size, ModTime: d.mtime, Allocated: max(1, int64(len(d.pages))) * memPage, ReadOnly: d.fixed}
}

func (d *memDisk) isAttached() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attached > 0
}

// hold makes another node have the disk, or not any more.
func (d *memDisk) hold(held bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = held
}

type memHandle struct {
	*memDisk
	mine   atomic.Int64
	closed atomic.Bool
}

func (h *memHandle) ID() ukai.DiskID { return h.id }
func (h *memHandle) BlockSize() int  { return ukai.DefaultBlockSize }
func (h *memHandle) Size() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.size
}

func (h *memHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := h.begin(ctx, "read"); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if off+int64(len(p)) > h.size {
		return 0, fmt.Errorf("read %d+%d: %w", off, len(p), ukai.ErrInvalid)
	}
	h.each(p, off, func(p []byte, page, at int64) {
		if data := h.pages[page]; data != nil {
			copy(p, data[at:])
		} else {
			clear(p)
		}
	})
	return len(p), nil
}

// each calls f for each page that p touches.
func (h *memHandle) each(p []byte, off int64, f func(p []byte, page, at int64)) {
	for len(p) > 0 {
		at := off % memPage
		n := min(int64(len(p)), memPage-at)
		f(p[:n], off/memPage, at)
		p, off = p[n:], off+n
	}
}

func (h *memHandle) mutation(ctx context.Context, op string) error {
	now := h.inFlight.Add(1)
	defer h.inFlight.Add(-1)
	for most := h.mostInFlight.Load(); now > most && !h.mostInFlight.CompareAndSwap(most, now); most = h.mostInFlight.Load() {
	}
	if err := h.begin(ctx, op); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.attached == 0 || h.mine.Load() == 0 {
		return fmt.Errorf("%s %s: %w", op, h.name, ukai.ErrNotAttached)
	}
	return nil
}

func (h *memHandle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	for most := h.largest.Load(); int64(len(p)) > most && !h.largest.CompareAndSwap(most, int64(len(p))); most = h.largest.Load() {
	}
	if err := h.mutation(ctx, "write"); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if off+int64(len(p)) > h.size {
		return 0, fmt.Errorf("write %d+%d: %w", off, len(p), ukai.ErrInvalid)
	}
	h.each(p, off, func(p []byte, page, at int64) {
		if h.pages[page] == nil {
			h.pages[page] = make([]byte, memPage)
		}
		copy(h.pages[page][at:], p)
	})
	return len(p), nil
}

func (h *memHandle) Flush(ctx context.Context) error {
	if err := h.begin(ctx, "flush"); err != nil {
		return err
	}
	h.flushes.Add(1)
	return nil
}

func (h *memHandle) clear(ctx context.Context, op string, off, n int64) error {
	if err := h.mutation(ctx, op); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for page, data := range h.pages {
		from, to := max(off, page*memPage), min(off+n, (page+1)*memPage)
		switch {
		case to-from == memPage:
			delete(h.pages, page)
		case from < to:
			clear(data[from-page*memPage : to-page*memPage])
		}
	}
	return nil
}

func (h *memHandle) Discard(ctx context.Context, off, n int64) error {
	h.discards.Add(1)
	return h.clear(ctx, "discard", off, n)
}

func (h *memHandle) Zero(ctx context.Context, off, n int64) error {
	h.zeroes.Add(1)
	return h.clear(ctx, "zero", off, n)
}

func (h *memHandle) NextData(_ context.Context, off int64) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, page := range slices.Sorted(maps.Keys(h.pages)) {
		if (page+1)*memPage > off {
			return max(page*memPage, off), nil
		}
	}
	return 0, io.EOF
}

func (h *memHandle) NextHole(_ context.Context, off int64) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for off < h.size && h.pages[off/memPage] != nil {
		off = (off/memPage + 1) * memPage
	}
	return min(off, h.size), nil
}

func (h *memHandle) Resize(ctx context.Context, size int64) error {
	if err := h.mutation(ctx, "resize"); err != nil {
		return err
	}
	if err := ukai.CheckDiskSize(size); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.size = size
	return nil
}

func (h *memHandle) Attach(ctx context.Context) error {
	if err := h.begin(ctx, "attach"); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held {
		return fmt.Errorf("attach %s: %w", h.name, &ukai.HeldError{Name: "o1"})
	}
	h.attached++
	h.mine.Add(1)
	h.attaches.Add(1)
	return nil
}

func (h *memHandle) Detach(ctx context.Context) error {
	err := h.begin(ctx, "detach")
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mine.Add(-1) < 0 {
		panic("detached more often than attached")
	}
	h.attached--
	h.detaches.Add(1)
	return err
}

func (h *memHandle) Facts(context.Context) map[string]string {
	return map[string]string{"id": h.id.String(), "rule": "dc=tokyo:2", "epoch": "7"}
}

func (h *memHandle) HeldElsewhere(context.Context) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held
}

func (h *memHandle) Close() error {
	if h.mine.Load() != 0 {
		panic("closed while attached")
	}
	if h.closed.Swap(true) {
		panic("closed twice")
	}
	h.opens.Add(-1)
	return nil
}

// read returns what is on the disk, for comparison.
func (d *memDisk) read(off, n int64) []byte {
	p := make([]byte, n)
	_, err := (&memHandle{memDisk: d}).ReadAt(context.Background(), p, off)
	if err != nil {
		panic(err)
	}
	return p
}

var errInjected = errors.New("injected")
