package volume

import (
	"math/bits"
	"sync/atomic"
	"time"

	"ukai"
)

// HeatParts is into how many parts a disk is divided to tell which of it are used most.
const HeatParts = 256

// SizeClasses is how many classes of request sizes are told apart: up to 4 KiB, 16 KiB, 64 KiB, 256 KiB, 1 MiB, and more.
const SizeClasses = 6

// SizeClass returns the class of a request of n bytes.
func SizeClass(n int64) int {
	return min(max(bits.Len64(uint64(max(n, 1)-1))-11, 0)/2, SizeClasses-1)
}

// mixMemory is about how many requests the counts of a mix remember: at that many all are halved.
const mixMemory = 1 << 20

// ioMix records what the guest of this node does with a disk. It lives as long as the process; counting takes no lock.
type ioMix struct {
	reads, writes counted
	flushes       atomic.Uint32
	flush         Histogram
	total         atomic.Uint32
	halving       atomic.Bool
	felt          felt
}

// counted is what is recorded of reads, or of writes.
type counted struct {
	sizes [SizeClasses]atomic.Uint32
	heat  [HeatParts]atomic.Uint32
	took  Histogram // as the guest feels it
}

// count takes in one request.
func (m *ioMix) count(c *counted, off, n, size int64, took time.Duration) {
	c.sizes[SizeClass(n)].Add(1)
	c.heat[heatPart(off, size)].Add(1)
	c.took.Observe(took)
	m.one()
}

func heatPart(off, size int64) int {
	part := max(1, (size+HeatParts-1)/HeatParts)
	return int(min(off/part, HeatParts-1))
}

// one counts a request of any kind, and makes old ones count less.
func (m *ioMix) one() {
	if m.total.Add(1) < mixMemory || !m.halving.CompareAndSwap(false, true) {
		return
	}
	halve := func(c *atomic.Uint32) { old := c.Load(); c.Add(-(old - old/2)) }
	for _, c := range []*counted{&m.reads, &m.writes} {
		for i := range c.sizes {
			halve(&c.sizes[i])
		}
		for i := range c.heat {
			halve(&c.heat[i])
		}
	}
	halve(&m.flushes)
	m.total.Store(mixMemory / 2)
	m.halving.Store(false)
}

// record returns the disk's record of its guest's I/O, made at the first use.
func (d *Disk) record() *ioMix {
	if m := d.mix.Load(); m != nil {
		return m
	}
	d.mix.CompareAndSwap(nil, new(ioMix))
	return d.mix.Load()
}

// IOMix is what the guest of this node did with a disk, of late.
type IOMix struct {
	Reads, Writes IOCount
	Flushes       uint32
	Flush         Summary
}

// IOCount is what was counted of one kind of request.
type IOCount struct {
	Count uint32
	Sizes [SizeClasses]uint32 // requests by SizeClass
	Heat  [HeatParts]uint32   // requests by where in the disk they begin
	Took  Summary             // as the guest felt it
}

// IOMix returns what was recorded of the guest's I/O on this node; false if there was none since the process started.
func (d *Disk) IOMix() (mix IOMix, ok bool) {
	m := d.mix.Load()
	if m == nil {
		return mix, false
	}
	mix = IOMix{Reads: m.reads.load(), Writes: m.writes.load(), Flushes: m.flushes.Load(), Flush: m.flush.Summary()}
	return mix, mix.Reads.Count+mix.Writes.Count+mix.Flushes > 0
}

// IOMix is Disk.IOMix of a disk, if this node has used it.
func (h *Host) IOMix(id ukai.DiskID) (IOMix, bool) {
	h.mu.Lock()
	d := h.disks[id]
	h.mu.Unlock()
	if d == nil {
		return IOMix{}, false
	}
	return d.IOMix()
}

func (c *counted) load() (out IOCount) {
	for i := range c.sizes {
		out.Sizes[i] = c.sizes[i].Load()
		out.Count += out.Sizes[i]
	}
	for i := range c.heat {
		out.Heat[i] = c.heat[i].Load()
	}
	out.Took = c.took.Summary()
	return out
}

// Service is how long this node's own store takes, for guests anywhere: reads and writes of up to SmallIO and of more, and flushes.
type Service struct {
	Reads, Writes, LargeReads, LargeWrites, Flushes Histogram
}

// SmallIO is the size in bytes of the largest request that counts as small.
const SmallIO = ukai.ChunkSize

func (s *Service) read(n int, began time.Time) {
	if n > SmallIO {
		s.LargeReads.Observe(time.Since(began))
		return
	}
	s.Reads.Observe(time.Since(began))
}

func (s *Service) write(n int, began time.Time) {
	if n > SmallIO {
		s.LargeWrites.Observe(time.Since(began))
		return
	}
	s.Writes.Observe(time.Since(began))
}
