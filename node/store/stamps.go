package store

import (
	"sync"
	"sync/atomic"

	"ukai"
)

// stampPage is how many blocks share a page of the index: 32 KiB of pointers, taken when the first of them is written.
const stampPage = 4096

// stamps is the stamp of every written block, in memory. Reading takes no lock. A block costs a pointer; blocks that
// were first touched after the same checkpoint share what it points to, so that 1 TiB in blocks of 4 MiB takes 2 MiB.
type stamps struct {
	pages atomic.Pointer[[]atomic.Pointer[page]]

	changing sync.Mutex
	last     *ukai.BlockStamp // shared with the next block that gets an equal one
}

type page [stampPage]atomic.Pointer[ukai.BlockStamp]

func newStamps(blocks uint64) *stamps {
	s := &stamps{last: new(ukai.BlockStamp)}
	s.resize(blocks)
	return s
}

// resize makes room for a number of blocks; stamps beyond are forgotten.
func (s *stamps) resize(blocks uint64) {
	s.changing.Lock()
	defer s.changing.Unlock()
	pages := make([]atomic.Pointer[page], (blocks+stampPage-1)/stampPage)
	if old := s.pages.Load(); old != nil {
		for i := range min(len(pages), len(*old)) {
			pages[i].Store((*old)[i].Load())
		}
	}
	s.pages.Store(&pages)
	if rest := blocks % stampPage; rest != 0 {
		if p := pages[len(pages)-1].Load(); p != nil {
			for i := rest; i < stampPage; i++ {
				p[i].Store(nil)
			}
		}
	}
}

// get returns nil for a block without a stamp.
func (s *stamps) get(i ukai.Index) *ukai.BlockStamp {
	pages := *s.pages.Load()
	if n := uint64(i) / stampPage; n < uint64(len(pages)) {
		if p := pages[n].Load(); p != nil {
			return p[i%stampPage].Load()
		}
	}
	return nil
}

// cover says whether the stamps of all blocks from through to are at least t.
func (s *stamps) cover(from, to ukai.Index, t ukai.BlockStamp) bool {
	for i := from; i <= to; i++ {
		if p := s.get(i); p == nil || p.Less(t) {
			return false
		}
	}
	return true
}

// raise sets the stamp of a block unless it has a newer one.
func (s *stamps) raise(i ukai.Index, t ukai.BlockStamp) {
	s.changing.Lock()
	defer s.changing.Unlock()
	pages := *s.pages.Load()
	n := uint64(i) / stampPage
	if n >= uint64(len(pages)) {
		return // cut off by a Shrink meanwhile
	}
	p := pages[n].Load()
	if p == nil {
		p = new(page)
		pages[n].Store(p)
	}
	if old := p[i%stampPage].Load(); old != nil && !old.Less(t) {
		return
	}
	if *s.last != t {
		s.last = &t
	}
	p[i%stampPage].Store(s.last)
}

func (s *stamps) drop(i ukai.Index) {
	s.changing.Lock()
	defer s.changing.Unlock()
	pages := *s.pages.Load()
	if n := uint64(i) / stampPage; n < uint64(len(pages)) {
		if p := pages[n].Load(); p != nil {
			p[i%stampPage].Store(nil)
		}
	}
}

// newer lists the blocks with a stamp newer than t, in order. The zero t lists every block that has one.
func (s *stamps) newer(t ukai.BlockStamp) []BlockInfo {
	var blocks []BlockInfo
	for n, pages := 0, *s.pages.Load(); n < len(pages); n++ {
		p := pages[n].Load()
		if p == nil {
			continue
		}
		for i := range p {
			if q := p[i].Load(); q != nil && (t.Less(*q) || t == ukai.BlockStamp{}) {
				blocks = append(blocks, BlockInfo{ukai.Index(n*stampPage + i), *q})
			}
		}
	}
	return blocks
}
