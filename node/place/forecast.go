package place

import (
	"fmt"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
)

// IO is what a guest does with a disk, as it was recorded. The zero IO is not known: then small requests all over the disk are assumed.
type IO struct {
	Reads, Writes Requests
	Flushes       float64
}

// Requests is one kind of request.
type Requests struct {
	Sizes map[int64]float64 // requests by size in bytes
	Heat  []float64         // requests by equal parts of the disk
}

func (r Requests) count() (n float64) {
	for _, c := range r.Sizes {
		n += c
	}
	return n
}

// Store is how long a node's store takes; nil where that was not measured.
type Store struct {
	Read, Write, LargeRead, LargeWrite, Flush Spread
}

// Trip is the round trip between two nodes.
type Trip struct {
	P50, P99 time.Duration
	Measured bool // else estimated
}

// Viewpoint is what a forecast for one host is made from.
type Viewpoint struct {
	Host  ukai.NodeID
	Nodes []Node
	Trip  func(to ukai.NodeID) Trip // from the host, to another node
	Store func(node ukai.NodeID) Store
	IO    IO
	Large int64 // bytes of the smallest request that is large to a store
}

// Felt is how long requests of a guest take.
type Felt struct{ Read, Write, Flush Latency }

// Latency is a distribution in two numbers.
type Latency struct{ P50, P99 time.Duration }

func latency(s Spread) Latency { return Latency{s.P(0.5), s.P(0.99)} }

// Forecast is what a VM on one host would feel.
type Forecast struct {
	Now    Felt
	Steps  []Felt // when each step of the plan is done; the last is after the plan
	Inputs []ForecastInput
	// Within is by how much, in percent, measured medians may differ: 25 if all inputs were measured, 50 if some were estimated, 100 if some
	// were assumed. Why says which.
	Within int
	Why    []string
}

// ForecastInput is what the forecast knows of one replica's node.
type ForecastInput struct {
	Node ukai.NodeID
	Trip Trip
	Store
}

// What is assumed of a store that has measured nothing: local flash.
const (
	assumedIO, assumedIO99       = 100 * time.Microsecond, time.Millisecond
	assumedFlush, assumedFlush99 = time.Millisecond, 10 * time.Millisecond
	// linkRate is how fast the bytes of one large request travel.
	linkRate = AssumedRate
)

// Forecast tells what a VM on a host would feel of a disk: now, and after each step of a plan.
//
// A read is answered by the host's own replica, else by the nearest in sync. A write waits for the last of the replicas in sync, or with ack=local
// for the host's own, if it has one; a flush waits for the last of all in any case, with those writes that travel beside it. Each answer takes a round
// trip and the replica's store.
//
// Left out is that requests for the same sectors wait for one another, that a request across blocks asks for one after the other, and that the first large
// requests over a connection take more round trips.
func (p Plan) Forecast(rec crdt.Record, v Viewpoint) Forecast {
	f := forecasting{Viewpoint: v, alive: map[ukai.NodeID]Node{}, inputs: map[ukai.NodeID]ForecastInput{}}
	f.out.Within = 25
	for _, n := range v.Nodes {
		if n.Alive {
			f.alive[n.ID] = n
		}
	}
	if v.IO.Reads.count()+v.IO.Writes.count() == 0 {
		f.doubt(50, "no I/O of the disk was recorded: requests of 4 KiB all over it are assumed")
		f.IO = IO{Reads: Requests{Sizes: map[int64]float64{4096: 1}}, Writes: Requests{Sizes: map[int64]float64{4096: 1}}}
	}
	rec = rec.Clone()
	f.out.Now = f.felt(&rec)
	for _, s := range p.Steps {
		s.apply(&rec)
		f.out.Steps = append(f.out.Steps, f.felt(&rec))
	}
	return f.out
}

// forecasting is the making of a Forecast.
type forecasting struct {
	Viewpoint
	alive  map[ukai.NodeID]Node
	inputs map[ukai.NodeID]ForecastInput
	out    Forecast
}

func (f *forecasting) doubt(within int, format string, args ...any) {
	f.out.Within = max(f.out.Within, within)
	if why := fmt.Sprintf(format, args...); !slices.Contains(f.out.Why, why) {
		f.out.Why = append(f.out.Why, why)
	}
}

// input returns what is known of a replica's node.
func (f *forecasting) input(id ukai.NodeID) ForecastInput {
	if in, ok := f.inputs[id]; ok {
		return in
	}
	n := f.alive[id]
	in := ForecastInput{Node: id, Store: f.Store(id)}
	if id != f.Host {
		if in.Trip = f.Trip(id); !in.Trip.Measured {
			f.doubt(50, "the round trip to %s is estimated, not measured", n.name())
		}
	} else {
		in.Trip.Measured = true
	}
	for _, s := range []struct {
		of       *Spread
		from     *Spread
		p50, p99 time.Duration
		what     string
	}{
		{&in.Read, &in.LargeRead, assumedIO, assumedIO99, "reads"}, {&in.Write, &in.LargeWrite, assumedIO, assumedIO99, "writes"},
		{&in.LargeRead, &in.Read, assumedIO, assumedIO99, "reads"}, {&in.LargeWrite, &in.Write, assumedIO, assumedIO99, "writes"},
		{&in.Flush, &in.Flush, assumedFlush, assumedFlush99, "flushes"},
	} {
		if *s.of == nil {
			*s.of = *s.from
		}
		if *s.of == nil {
			*s.of = LogNormal(s.p50, s.p99)
			// Where the way there is long, it hardly matters.
			within := 100
			if in.Trip.P50 > 4*s.p50 {
				within = 25
			}
			f.doubt(within, "the store of %s has measured no %s lately: %v is assumed", n.name(), s.what, s.p50)
		}
	}
	f.inputs[id] = in
	f.out.Inputs = append(f.out.Inputs, in)
	return in
}

// felt is what the guest feels of a disk with this record.
func (f *forecasting) felt(rec *crdt.Record) Felt {
	var reads, writes blend
	var flush Spread
	for i := range rec.Groups {
		g := &rec.Groups[i]
		var in []ForecastInput
		for _, m := range g.InSync() {
			if _, alive := f.alive[m.Node]; alive {
				in = append(in, f.input(m.Node))
			} else {
				f.doubt(25, "a replica in sync is on a node that is down: until it is dropped, writes wait")
			}
		}
		if len(in) == 0 {
			f.doubt(100, "blocks %s have no replica in sync on a node that is alive: their I/O waits", Ranges(rec.RangesOf(g.ID)))
			continue
		}
		nearest := f.nearest(in)
		f.mix(&reads, f.IO.Reads, rec, g.ID, func(size int64) Spread {
			return f.answer(in[nearest], size, in[nearest].Read, in[nearest].LargeRead, 0)
		})
		f.mix(&writes, f.IO.Writes, rec, g.ID, func(size int64) Spread {
			if rec.Ack == crdt.AckLocal && in[nearest].Node == f.Host {
				return f.answer(in[nearest], size, in[nearest].Write, in[nearest].LargeWrite, 0)
			}
			return f.last(in, func(r ForecastInput, salt int) Spread { return f.answer(r, size, r.Write, r.LargeWrite, salt) })
		})
		flush = flush.later(f.last(in, func(r ForecastInput, salt int) Spread { return f.answer(r, 0, r.Flush, r.Flush, salt) }), i+2)
	}
	return Felt{latency(reads.spread()), latency(writes.spread()), latency(flush)}
}

// nearest returns the replica that reads go to.
func (f *forecasting) nearest(in []ForecastInput) int {
	best := 0
	cost := func(r ForecastInput) time.Duration {
		if r.Node == f.Host {
			return -1
		}
		return r.Trip.P50 + r.Read.P(0.5)
	}
	for i := range in {
		if cost(in[i]) < cost(in[best]) {
			best = i
		}
	}
	return best
}

// answer is how long a replica takes to answer a request.
func (f *forecasting) answer(r ForecastInput, size int64, small, large Spread, salt int) Spread {
	s := small
	if f.Large > 0 && size >= f.Large {
		s = large
	}
	if r.Node == f.Host {
		return s
	}
	return LogNormal(r.Trip.P50, r.Trip.P99).plus(s, salt).delayed(time.Duration(float64(size) / linkRate * float64(time.Second)))
}

// last is how long the last of all replicas takes.
func (f *forecasting) last(in []ForecastInput, answer func(ForecastInput, int) Spread) Spread {
	s := answer(in[0], 0)
	for i, r := range in[1:] {
		s = s.later(answer(r, i+1), i+4)
	}
	return s
}

// mix adds the requests that a group gets: as many as its share of the heat, of all sizes.
func (f *forecasting) mix(b *blend, r Requests, rec *crdt.Record, group uint8, answer func(size int64) Spread) {
	share := heat(r, rec, group)
	total := r.count()
	if total == 0 { // none of this kind was recorded: small ones are assumed
		b.add(answer(4096), share)
		return
	}
	for size, n := range r.Sizes {
		b.add(answer(size), share*n/total)
	}
}

// heat returns which share of the requests goes to a group's blocks.
func heat(r Requests, rec *crdt.Record, group uint8) float64 {
	total, mine := 0.0, 0.0
	for _, h := range r.Heat {
		total += h
	}
	blocks := float64(rec.Blocks())
	first := 0.0
	for _, run := range rec.Runs {
		end := first + float64(run.Count)
		if run.Group == group && total == 0 {
			mine += (end - first) / blocks
		}
		for i, h := range r.Heat {
			if run.Group != group || h == 0 {
				continue
			}
			// What of the part lies in the run.
			from, to := blocks*float64(i)/float64(len(r.Heat)), blocks*float64(i+1)/float64(len(r.Heat))
			if overlap := min(to, end) - max(from, first); overlap > 0 {
				mine += h / total * overlap / (to - from)
			}
		}
		first = end
	}
	return mine
}
