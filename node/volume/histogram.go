package volume

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Histogram counts how long operations took, in classes whose bounds differ by an eighth at most. To observe costs nanoseconds, allocates nothing and
// takes no lock. It remembers about the last histogramMemory operations: at that many all counts are halved.
type Histogram struct {
	counts  [histogramClasses]atomic.Uint32
	total   atomic.Uint32
	halving atomic.Bool
}

const (
	histogramMemory  = 1 << 16
	histogramClasses = 8 * 27 // from half a microsecond to a minute; the first and the last take what is beyond
)

// class returns the class of a duration: eight per power of two.
func class(d time.Duration) int {
	n := uint64(max(d, 0)) >> 6
	if n < 8 {
		return 0
	}
	exponent := bits.Len64(n) - 4
	return min(8*exponent+int(n>>exponent&7), histogramClasses-1)
}

// bounds returns the durations between which a class lies.
func bounds(class int) (from, to time.Duration) {
	exponent, eighth := class/8, class%8
	from, to = time.Duration(8+eighth)<<exponent<<6, time.Duration(9+eighth)<<exponent<<6
	if class == 0 {
		from = 0
	}
	return from, to
}

// Observe counts one operation.
func (h *Histogram) Observe(d time.Duration) {
	h.counts[class(d)].Add(1)
	if h.total.Add(1) >= histogramMemory {
		h.halve()
	}
}

// halve makes what was counted so far count half as much.
func (h *Histogram) halve() {
	if !h.halving.CompareAndSwap(false, true) {
		return
	}
	total := uint32(0)
	for i := range h.counts {
		c := &h.counts[i]
		old := c.Load()
		c.Add(-(old - old/2)) // what is counted meanwhile stays counted
		total += old / 2
	}
	h.total.Store(total)
	h.halving.Store(false)
}

// Summary returns how long the operations took: durations at equal steps of the distribution, 0 to 100 %, and how many there were.
func (h *Histogram) Summary() Summary {
	var counts [histogramClasses]uint32
	s := Summary{}
	for i := range h.counts {
		counts[i] = h.counts[i].Load()
		s.Count += uint64(counts[i])
	}
	if s.Count == 0 {
		return s
	}
	i, before := 0, uint64(0)
	for q := range s.Quantiles {
		rank := float64(s.Count) * float64(q) / (SummaryPoints - 1)
		for i < histogramClasses-1 && float64(before+uint64(counts[i])) < rank || counts[i] == 0 {
			before += uint64(counts[i])
			i++
		}
		from, to := bounds(i)
		share := (rank - float64(before)) / float64(counts[i])
		s.Quantiles[q] = from + time.Duration(float64(to-from)*share)
	}
	return s
}

// SummaryPoints is how many durations a Summary has: one for each percent, and the shortest.
const SummaryPoints = 101

// Summary is a distribution of durations.
type Summary struct {
	Count     uint64 // about as many as are remembered
	Quantiles [SummaryPoints]time.Duration
}
