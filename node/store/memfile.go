package store

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"syscall"

	"ukai"
)

const (
	memPageBytes      = 4096
	memSectorsPerPage = memPageBytes / ukai.SectorSize
)

// memData is the content of an imagined file: pages by number, those without data left out.
type memData struct {
	size  int64
	pages map[int64]*memPage
	dirty map[int64]bool // pages with a dirty sector
}

// memPage is a page as the machine sees it and as the disk would have it after a power cut; nil is a hole.
type memPage struct {
	live, durable *[memPageBytes]byte
	dirty         uint8 // bit per sector that may differ
}

// change calls f for the part of each page that [off, off+n) covers, and marks its sectors dirty. It returns by how
// much the space taken grew.
func (d *memData) change(off, n int64, f func(p *memPage, from, to int)) (grown int64) {
	for end := off + n; off < end; {
		number, from := off/memPageBytes, int(off%memPageBytes)
		to := int(min(memPageBytes, int64(from)+end-off))
		grown += d.changePage(number, from, to, f)
		off += int64(to - from)
	}
	return grown
}

func (d *memData) changePage(number int64, from, to int, f func(p *memPage, from, to int)) (grown int64) {
	p := d.pages[number]
	if p == nil {
		p = new(memPage)
		d.pages[number] = p
	}
	had := p.live != nil
	f(p, from, to)
	for s := from / ukai.SectorSize; s <= (to-1)/ukai.SectorSize; s++ {
		p.dirty |= 1 << s
	}
	d.dirty[number] = true
	return taken(had, p.live != nil)
}

func taken(before, after bool) int64 {
	switch {
	case after && !before:
		return memPageBytes
	case before && !after:
		return -memPageBytes
	}
	return 0
}

// settle ends the dirtiness of a page: of each dirty sector, what keep says becomes durable and live.
func (d *memData) settle(number int64, keep func() bool) (grown int64) {
	p := d.pages[number]
	had := p.live != nil
	for s := range memSectorsPerPage {
		if p.dirty&(1<<s) == 0 {
			continue
		}
		from, to := p.live, &p.durable
		if !keep() {
			from, to = p.durable, &p.live
		}
		copySector(to, from, s)
	}
	p.dirty = 0
	if p.live == nil && p.durable == nil {
		delete(d.pages, number)
	}
	delete(d.dirty, number)
	return taken(had, p.live != nil)
}

// copySector copies a sector; a page that becomes all zeros by losing its only counterpart goes back to being a hole.
func copySector(to **[memPageBytes]byte, from *[memPageBytes]byte, s int) {
	at := s * ukai.SectorSize
	switch {
	case from != nil:
		if *to == nil {
			*to = new([memPageBytes]byte)
		}
		copy((*to)[at:at+ukai.SectorSize], from[at:])
	case *to != nil:
		clear((*to)[at : at+ukai.SectorSize])
		if **to == [memPageBytes]byte{} {
			*to = nil
		}
	}
}

// revert is a power cut.
func (d *memData) revert(keep func() bool) (grown int64) {
	for _, number := range slices.Sorted(maps.Keys(d.dirty)) {
		grown += d.settle(number, keep)
	}
	return grown
}

// memFiles are the files on a memDisk.
type memFiles struct{ memAccess }

func (m memFiles) root() string { return "memory" }

func (m memFiles) path(k replicaKey, layer uint16) string {
	return fmt.Sprintf("memory/%v/%v/%d.img", k.disk, k.rid, layer)
}

func (m memFiles) create(k replicaKey, layer uint16, size int64) error {
	return m.do(Op{Kind: OpCreate, Disk: k.disk, Replica: k.rid}, func(d *memDisk) error {
		key := memFileKey{k, layer}
		if d.data[key] != nil {
			return fs.ErrExist
		}
		d.data[key] = &memData{size: size, pages: map[int64]*memPage{}, dirty: map[int64]bool{}}
		return nil
	})
}

func (m memFiles) exists(k replicaKey) (there bool, err error) {
	err = m.do(Op{}, func(d *memDisk) error {
		for key := range d.data {
			there = there || key.replicaKey == k
		}
		return nil
	})
	return there, err
}

func (m memFiles) open(k replicaKey, layer uint16) (file, error) {
	f := &memFile{memAccess: m.memAccess, key: memFileKey{k, layer}}
	return f, m.do(Op{}, func(d *memDisk) error {
		if f.data = d.data[f.key]; f.data == nil {
			return fs.ErrNotExist
		}
		return nil
	})
}

func (m memFiles) remove(k replicaKey) error {
	return m.do(Op{Kind: OpRemove, Disk: k.disk, Replica: k.rid}, func(d *memDisk) error {
		for key, data := range d.data {
			if key.replicaKey == k {
				for _, p := range data.pages {
					d.used += taken(p.live != nil, false)
				}
				delete(d.data, key)
			}
		}
		return nil
	})
}

func (m memFiles) rename(from, to replicaKey) error {
	return m.do(Op{Kind: OpRename, Disk: to.disk, Replica: to.rid}, func(d *memDisk) error {
		for key, data := range d.data {
			if key.replicaKey == from {
				delete(d.data, key)
				d.data[memFileKey{to, key.layer}] = data
			}
		}
		return nil
	})
}

func (m memFiles) strays(known func(replicaKey) bool) (strays []string, err error) {
	err = m.do(Op{}, func(d *memDisk) error {
		for key := range d.data {
			if !known(key.replicaKey) {
				strays = append(strays, m.path(key.replicaKey, key.layer))
			}
		}
		return nil
	})
	slices.Sort(strays)
	return strays, err
}

func (m memFiles) space() (total, free int64, err error) {
	err = m.do(Op{}, func(d *memDisk) error {
		total, free = d.capacity, max(0, d.capacity-d.used)
		return nil
	})
	return total, free, err
}

// memFile is an open file on a memDisk.
type memFile struct {
	memAccess
	key  memFileKey
	data *memData
}

func (f *memFile) op(kind OpKind, off, n int64) Op {
	return Op{Kind: kind, Disk: f.key.disk, Replica: f.key.rid, Off: off, Bytes: n}
}

func (f *memFile) ReadAt(b []byte, off int64) (n int, err error) {
	err = f.do(f.op(OpRead, off, int64(len(b))), func(*memDisk) error {
		for n < len(b) && off < f.data.size {
			from := int(off % memPageBytes)
			part := b[n:min(len(b), n+memPageBytes-from, n+int(min(f.data.size-off, memPageBytes)))]
			if p := f.data.pages[off/memPageBytes]; p != nil && p.live != nil {
				copy(part, p.live[from:])
			} else {
				clear(part)
			}
			n += len(part)
			off += int64(len(part))
		}
		if n < len(b) {
			return io.EOF
		}
		return nil
	})
	return n, err
}

func (f *memFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.do(f.op(OpWrite, off, int64(len(b))), func(d *memDisk) error {
		if need := f.holes(off, int64(len(b))); d.used+need > d.capacity && need > 0 {
			return syscall.ENOSPC
		}
		d.used += f.data.change(off, int64(len(b)), func(p *memPage, from, to int) {
			if p.live == nil {
				p.live = new([memPageBytes]byte)
			}
			n += copy(p.live[from:to], b[n:])
		})
		return nil
	})
	return n, err
}

// holes returns how many bytes of pages a write would have to allocate.
func (f *memFile) holes(off, n int64) (bytes int64) {
	for number := off / memPageBytes; number*memPageBytes < off+n; number++ {
		if p := f.data.pages[number]; p == nil || p.live == nil {
			bytes += memPageBytes
		}
	}
	return bytes
}

func (f *memFile) punch(off, n int64) error {
	return f.do(f.op(OpPunch, off, n), func(d *memDisk) error {
		for _, number := range f.pagesIn(off, n) {
			from := int(max(0, off-number*memPageBytes))
			to := int(min(memPageBytes, off+n-number*memPageBytes))
			d.used += f.data.changePage(number, from, to, func(p *memPage, from, to int) {
				if to-from == memPageBytes {
					p.live = nil
				} else if p.live != nil {
					clear(p.live[from:to])
				}
			})
		}
		return nil
	})
}

// pagesIn returns the numbers of the pages with data in a range, which may be far larger than all that was written.
func (f *memFile) pagesIn(off, n int64) (numbers []int64) {
	first, last := off/memPageBytes, (off+n-1)/memPageBytes
	if last-first < int64(len(f.data.pages)) {
		for number := first; number <= last; number++ {
			if f.data.pages[number] != nil {
				numbers = append(numbers, number)
			}
		}
		return numbers
	}
	for number := range f.data.pages {
		if number >= first && number <= last {
			numbers = append(numbers, number)
		}
	}
	return numbers
}

func (f *memFile) datasync() error {
	return f.do(f.op(OpSync, 0, 0), func(d *memDisk) error {
		for number := range f.data.dirty {
			d.used += f.data.settle(number, func() bool { return true })
		}
		return nil
	})
}

func (f *memFile) truncate(size int64) error {
	return f.do(f.op(OpTruncate, size, 0), func(d *memDisk) error {
		for _, number := range f.pagesIn(size, max(1, f.data.size-size)) {
			p := f.data.pages[number]
			for _, b := range []**[memPageBytes]byte{&p.live, &p.durable} {
				if keep := size - number*memPageBytes; *b != nil && keep > 0 {
					clear((*b)[keep:])
				} else {
					if b == &p.live {
						d.used += taken(p.live != nil, false)
					}
					*b = nil
				}
			}
			if p.live == nil && p.durable == nil {
				delete(f.data.pages, number)
				delete(f.data.dirty, number)
			}
		}
		f.data.size = size
		return nil
	})
}

func (f *memFile) size() (size int64, err error) {
	err = f.do(Op{}, func(*memDisk) error { size = f.data.size; return nil })
	return size, err
}

func (f *memFile) allocated() (bytes int64, err error) {
	err = f.do(Op{}, func(*memDisk) error {
		for _, p := range f.data.pages {
			bytes += taken(false, p.live != nil)
		}
		return nil
	})
	return bytes, err
}

// seekNear is how many pages are looked at one by one before all are.
const seekNear = 256

func (f *memFile) nextData(off int64) (pos int64, err error) {
	err = f.do(f.op(OpSeek, off, 0), func(*memDisk) error {
		pos = f.data.size
		first := off / memPageBytes
		for number := first; number < first+seekNear; number++ {
			if p := f.data.pages[number]; p != nil && p.live != nil {
				pos = min(pos, max(off, number*memPageBytes))
				return nil
			}
		}
		for number, p := range f.data.pages {
			if number >= first && p.live != nil {
				pos = min(pos, number*memPageBytes)
			}
		}
		return nil
	})
	return pos, err
}

func (f *memFile) nextHole(off int64) (pos int64, err error) {
	err = f.do(f.op(OpSeek, off, 0), func(*memDisk) error {
		for pos = off; pos < f.data.size; pos = (pos/memPageBytes + 1) * memPageBytes {
			if p := f.data.pages[pos/memPageBytes]; p == nil || p.live == nil {
				return nil
			}
		}
		pos = f.data.size
		return nil
	})
	return pos, err
}

func (f *memFile) fd() (uintptr, bool) { return 0, false }

func (f *memFile) Close() error { return nil }
