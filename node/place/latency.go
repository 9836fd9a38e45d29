package place

import (
	"math"
	"slices"
	"time"
)

// spreadPoints is how many durations stand for a distribution.
const spreadPoints = 500

// Spread is a distribution of durations: spreadPoints equally probable ones, sorted. The zero Spread takes no time.
type Spread []time.Duration

// Quantiles makes a spread from the durations at equal steps of a distribution, from 0 to 100 %.
func Quantiles(at []time.Duration) Spread {
	s := make(Spread, spreadPoints)
	for i := range s {
		x := (float64(i) + 0.5) / spreadPoints * float64(len(at)-1)
		k := min(int(x), len(at)-2)
		s[i] = at[k] + time.Duration((x-float64(k))*float64(at[k+1]-at[k]))
	}
	return s
}

// LogNormal makes a spread with this median and 99th percentile, the shape that service and network times have.
func LogNormal(p50, p99 time.Duration) Spread {
	if p50 <= 0 {
		return nil
	}
	sigma := math.Log(float64(max(p99, p50))/float64(p50)) / 2.326
	s := make(Spread, spreadPoints)
	for i := range s {
		p := (float64(i) + 0.5) / spreadPoints
		s[i] = time.Duration(float64(p50) * math.Exp(sigma*math.Sqrt2*math.Erfinv(2*p-1)))
	}
	return s
}

// P returns the duration that a share of p does not exceed.
func (s Spread) P(p float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	return s[min(int(p*float64(len(s))), len(s)-1)]
}

// at returns the i-th duration.
func (s Spread) at(i int) time.Duration {
	if len(s) == 0 {
		return 0
	}
	return s[i]
}

// strides pair the points of two spreads as if at random: none has a factor in common with spreadPoints.
var strides = []int{309, 191, 233, 347, 123, 411, 77, 289}

// combine pairs the points of independent spreads. salt tells apart pairings that are combined further.
func combine(a, b Spread, salt int, f func(a, b time.Duration) time.Duration) Spread {
	s := make(Spread, spreadPoints)
	stride := strides[salt%len(strides)]
	for i := range s {
		s[i] = f(a.at(i), b.at((i*stride+salt*37)%spreadPoints))
	}
	slices.Sort(s)
	return s
}

// plus is the spread of two times one after the other.
func (s Spread) plus(t Spread, salt int) Spread {
	if len(s) == 0 {
		return t
	}
	if len(t) == 0 {
		return s
	}
	return combine(s, t, salt, func(a, b time.Duration) time.Duration { return a + b })
}

// later is the spread of two times side by side: of the one that takes longer.
func (s Spread) later(t Spread, salt int) Spread {
	return combine(s, t, salt, func(a, b time.Duration) time.Duration { return max(a, b) })
}

// delayed is the spread of a time and a fixed one after it.
func (s Spread) delayed(d time.Duration) Spread {
	if d == 0 {
		return s
	}
	t := make(Spread, spreadPoints)
	for i := range t {
		t[i] = s.at(i) + d
	}
	return t
}

// blend is a mixture of spreads.
type blend struct {
	points []weighted
}

type weighted struct {
	d      time.Duration
	weight float64
}

func (b *blend) add(s Spread, weight float64) {
	if weight <= 0 {
		return
	}
	for i := range spreadPoints {
		b.points = append(b.points, weighted{s.at(i), weight / spreadPoints})
	}
}

func (b *blend) spread() Spread {
	slices.SortFunc(b.points, func(x, y weighted) int { return int(x.d - y.d) })
	total := 0.0
	for _, p := range b.points {
		total += p.weight
	}
	if total == 0 {
		return nil
	}
	s := make(Spread, spreadPoints)
	i, before := 0, 0.0
	for k := range s {
		rank := (float64(k) + 0.5) / spreadPoints * total
		for i < len(b.points)-1 && before+b.points[i].weight < rank {
			before += b.points[i].weight
			i++
		}
		s[k] = b.points[i].d
	}
	return s
}
