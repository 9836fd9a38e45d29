package volume

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestHistogramTellsDurationsToAnEighth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(int64(time.Microsecond), int64(30*time.Second)).Draw(t, "duration"))
		if from, to := bounds(class(d)); d < from || d >= to || float64(to-from) > float64(d)/7.9 {
			t.Fatalf("%v is in class %d from %v to %v", d, class(d), from, to)
		}
		var h Histogram
		for range 1000 {
			h.Observe(d)
		}
		for range 20 {
			h.Observe(100 * d)
		}
		s := h.Summary()
		if off := math.Abs(float64(s.Quantiles[50]-d)) / float64(d); off > 0.125 || s.Count != 1020 {
			t.Fatalf("median of %v is %v, of %d", d, s.Quantiles[50], s.Count)
		}
		if most := 100 * d; most < 30*time.Second && (s.Quantiles[99] < most*7/8 || s.Quantiles[98] > 2*d) {
			t.Fatalf("2 %% took %v, p98 is %v, p99 %v", most, s.Quantiles[98], s.Quantiles[99])
		}
	})
}

func TestHistogramForgets(t *testing.T) {
	var h Histogram
	if s := h.Summary(); s.Count != 0 {
		t.Errorf("empty: %+v", s)
	}
	for range 2 * histogramMemory {
		h.Observe(time.Second)
	}
	for range 2 * histogramMemory {
		h.Observe(time.Millisecond)
	}
	if s := h.Summary(); s.Count > histogramMemory || s.Quantiles[75] > 2*time.Millisecond {
		t.Errorf("%d remembered, three quarters within %v", s.Count, s.Quantiles[75])
	}
}

func TestRequestsAreCountedBySizeAndPlace(t *testing.T) {
	var m ioMix
	const size = 1 << 30
	for _, n := range []int64{1, 512, 4096, 4097, 16 << 10, 64 << 10, 256<<10 + 1, 1 << 20, 8 << 20} {
		m.count(&m.reads, size-n, n, size, time.Millisecond)
	}
	m.count(&m.writes, 0, 4096, size, time.Millisecond)
	r, w := m.reads.load(), m.writes.load()
	if r.Sizes != [SizeClasses]uint32{3, 2, 1, 0, 2, 1} || r.Count != 9 || r.Heat[HeatParts-1] != 8 || w.Heat[0] != 1 || w.Took.Count != 1 {
		t.Errorf("sizes %v, heat %v, writes %v", r.Sizes, r.Heat, w.Heat[0])
	}
	for range mixMemory {
		m.count(&m.writes, size/2, 4096, size, time.Millisecond)
	}
	if w := m.writes.load(); w.Count > mixMemory*3/4 || w.Heat[0] != 0 || w.Heat[HeatParts/2] < mixMemory/3 {
		t.Errorf("of %d requests %d are remembered, %d of the first", mixMemory, w.Count, w.Heat[0])
	}
}

func TestCountingARequestAllocatesNothing(t *testing.T) {
	var m ioMix
	if n := testing.AllocsPerRun(1000, func() { m.count(&m.reads, 4096, 4096, 1<<40, time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTheHolderRecordsWhatItsGuestDoesAndEachNodeWhatItsStoreTakes(t *testing.T) {
	bubble(t, setup{nodes: 3, replicas: 2}, func(w *world) {
		if _, ok := w.d(0).IOMix(); ok {
			t.Error("there is a record before the first request")
		}
		w.attach(0)
		w.write(0, 0, fill(4096, 1))
		w.write(0, testBlock, fill(128<<10, 2))
		w.wantRead(0, 0, fill(4096, 1))
		w.flush(0)
		w.flush(0) // there is nothing to flush
		mix, ok := w.d(0).IOMix()
		if !ok || mix.Reads.Count != 1 || mix.Writes.Count != 2 || mix.Flushes != 1 || mix.Writes.Sizes[0] != 1 || mix.Writes.Sizes[3] != 1 || mix.Flush.Count != 1 {
			t.Errorf("recorded %d reads, %d writes %v, %d flushes", mix.Reads.Count, mix.Writes.Count, mix.Writes.Sizes, mix.Flushes)
		}
		for n := range 2 {
			s := w.nodes[n].replicas.Load().Service()
			if small, large, flushes := s.Writes.Summary().Count, s.LargeWrites.Summary().Count, s.Flushes.Summary().Count; small != 1 || large != 1 || flushes != 1 {
				t.Errorf("n%d: %d small writes, %d large ones, %d flushes", n, small, large, flushes)
			}
		}
	})
}
