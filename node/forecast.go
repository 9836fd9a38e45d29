package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
	"ukai/node/volume"
)

// maxForecastNodes bounds the nodes for which one request forecasts, by name.
const maxForecastNodes = 16

// Forecast implements admin.Backend.
func (n *Node) Forecast(ctx context.Context, disk, at string, terms []string) (admin.Forecast, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Forecast{}, err
	}
	selector, err := place.ParseSelector(at)
	if err != nil {
		return admin.Forecast{}, err
	}
	rec, err := n.known(d.ID)
	if err != nil {
		return admin.Forecast{}, err
	}
	p := n.people()
	nodes := p.candidates()
	var hosts []place.Node
	for _, node := range nodes {
		if node.Alive && selector.Matches(node) {
			hosts = append(hosts, node)
		}
	}
	if len(hosts) == 0 {
		return admin.Forecast{}, fmt.Errorf("forecast %s: no node that is alive is %s: %w; ukai-node status lists the nodes", d.Name.Value, selector, ukai.ErrNotFound)
	}
	slices.SortFunc(hosts, func(a, b place.Node) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), slices.Compare(a.ID[:], b.ID[:]))
	})
	hosts = hosts[:min(len(hosts), maxForecastNodes)]

	want := wishOf(d)
	err = want.err
	if len(terms) > 0 {
		want = wish{ranges: want.ranges}
		want.rule, err = place.ParseRule(terms, place.Options{})
	}
	var plan place.Plan
	if err == nil {
		plan, _, err = n.costed(ctx, p, want, rec, want.rule)
	}
	if err != nil && (len(terms) > 0 || d.Rule.Value != "") {
		return admin.Forecast{}, fmt.Errorf("forecast %s: %w", d.Name.Value, err)
	}
	out := n.forecasts(ctx, p, rec, plan, hosts)
	out.Disk = admin.DiskRef{ID: d.ID, Name: d.Name.Value}
	return out, nil
}

// forecasts asks all nodes concerned for what they have measured, and forecasts what a VM would feel on each of some nodes.
func (n *Node) forecasts(ctx context.Context, p people, rec crdt.Record, plan place.Plan, hosts []place.Node) admin.Forecast {
	asked := nodesOf(&rec)
	for _, s := range plan.Steps {
		if s.Kind == place.AddReplica {
			asked = append(asked, s.Node)
		}
	}
	var at []ukai.NodeID
	for _, h := range hosts {
		at = append(at, h.ID)
	}
	asked = append(asked, at...)
	if !rec.Holder.IsZero() { // also the last one: its guest's I/O is what is known
		asked = append(asked, rec.Holder)
	}
	slices.SortFunc(asked, func(a, b ukai.NodeID) int { return slices.Compare(a[:], b[:]) })
	reports := n.reports(ctx, p, rec.Disk, slices.Compact(asked), at...)

	mix := mixOf(rec.Holder, reports)
	out := admin.Forecast{Recorded: recorded(mix)}
	for _, h := range hosts {
		v := place.Viewpoint{
			Host: h.ID, Nodes: p.candidates(), IO: ioOf(mix), Large: volume.SmallIO + 1,
			Trip:  func(to ukai.NodeID) place.Trip { return n.trip(reports, h.ID, to) },
			Store: func(id ukai.NodeID) place.Store { return storeOf(reports[id].Store) },
		}
		out.At = append(out.At, n.feltAt(p, plan, plan.Forecast(rec, v), h.ID))
	}
	return out
}

// trip returns the round trip between two nodes: as either has measured it, else as their coordinates say.
func (n *Node) trip(reports map[ukai.NodeID]report, from, to ukai.NodeID) place.Trip {
	for _, pair := range [][2]ukai.NodeID{{from, to}, {to, from}} {
		for _, t := range reports[pair[0]].Peers {
			if t.Node == pair[1] {
				return place.Trip{P50: t.P50, P99: t.P99, Measured: true}
			}
		}
	}
	if rtt, ok := n.mesh.Estimate(from, to); ok {
		return place.Trip{P50: rtt, P99: 2 * rtt}
	}
	return place.Trip{P50: unknownTrip, P99: 2 * unknownTrip}
}

// unknownTrip stands for a round trip of which nothing is known.
const unknownTrip = 50 * time.Millisecond

// mixOf returns the record of a disk's I/O: the holder's if it has seen enough, else the fullest.
func mixOf(holder ukai.NodeID, reports map[ukai.NodeID]report) (best *volume.IOMix) {
	count := func(m *volume.IOMix) uint64 { return uint64(m.Reads.Count) + uint64(m.Writes.Count) }
	if m := reports[holder].Mix; m != nil && count(m) >= minRecorded {
		return m
	}
	for _, r := range reports {
		if r.Mix != nil && (best == nil || count(r.Mix) > count(best)) {
			best = r.Mix
		}
	}
	return best
}

// minRecorded is how many requests tell what a guest does with its disk.
const minRecorded = 1000

// sizeOf is the size that stands for a class of requests.
func sizeOf(class int) int64 { return 4096 << (2 * class) }

func ioOf(m *volume.IOMix) (io place.IO) {
	if m == nil {
		return io
	}
	requests := func(c *volume.IOCount) (r place.Requests) {
		r.Sizes = map[int64]float64{}
		for i, count := range c.Sizes {
			if count > 0 {
				r.Sizes[sizeOf(i)] = float64(count)
			}
		}
		for _, h := range c.Heat {
			r.Heat = append(r.Heat, float64(h))
		}
		return r
	}
	return place.IO{Reads: requests(&m.Reads), Writes: requests(&m.Writes), Flushes: float64(m.Flushes)}
}

func storeOf(t times) (s place.Store) {
	for _, m := range []struct {
		from []time.Duration
		to   *place.Spread
	}{{t.Read, &s.Read}, {t.Write, &s.Write}, {t.LargeRead, &s.LargeRead}, {t.LargeWrite, &s.LargeWrite}, {t.Flush, &s.Flush}} {
		if len(m.from) > 1 {
			*m.to = place.Quantiles(m.from)
		}
	}
	return s
}

// recorded tells what a guest does with a disk, and what it felt.
func recorded(m *volume.IOMix) *admin.RecordedIO {
	if m == nil {
		return nil
	}
	requests := func(c *volume.IOCount) admin.RecordedRequests {
		r := admin.RecordedRequests{Count: c.Count, HotPercent: hot(c.Heat[:]), Felt: micros(c.Took.Quantiles[50], c.Took.Quantiles[99])}
		for i, count := range c.Sizes {
			if count > 0 {
				r.Sizes = append(r.Sizes, admin.SizeCount{UpToBytes: sizeOf(i), Count: count})
			}
		}
		return r
	}
	return &admin.RecordedIO{
		Reads: requests(&m.Reads), Writes: requests(&m.Writes), Flushes: m.Flushes, FlushFelt: micros(m.Flush.Quantiles[50], m.Flush.Quantiles[99]),
	}
}

// hot returns how many percent of the requests go to the hottest tenth of the disk.
func hot(heat []uint32) int {
	sorted := slices.Clone(heat)
	slices.Sort(sorted)
	total, top := uint64(0), uint64(0)
	for i, h := range sorted {
		total += uint64(h)
		if i >= len(sorted)-len(sorted)/10 {
			top += uint64(h)
		}
	}
	return int(100 * top / max(total, 1))
}

func micros(p50, p99 time.Duration) admin.Latency {
	return admin.Latency{P50Micros: p50.Microseconds(), P99Micros: p99.Microseconds()}
}

// feltAt puts one node's forecast into the words of the API.
func (n *Node) feltAt(p people, plan place.Plan, f place.Forecast, host ukai.NodeID) admin.ForecastAt {
	felt := func(when string, x place.Felt) admin.Felt {
		return admin.Felt{
			When: when, Read: micros(x.Read.P50, x.Read.P99), Write: micros(x.Write.P50, x.Write.P99), Flush: micros(x.Flush.P50, x.Flush.P99),
		}
	}
	out := admin.ForecastAt{Node: p.ref(host), WithinPercent: f.Within, Why: f.Why, Felt: []admin.Felt{felt("now", f.Now)}}
	for i, s := range plan.Steps {
		out.Felt = append(out.Felt, felt("then "+n.told(p, s), f.Steps[i]))
	}
	for _, in := range f.Inputs {
		out.Inputs = append(out.Inputs, admin.ForecastInput{
			Node: p.ref(in.Node), RTT: micros(in.Trip.P50, in.Trip.P99), Measured: in.Trip.Measured,
			Read: micros(in.Read.P(0.5), in.Read.P(0.99)), Write: micros(in.Write.P(0.5), in.Write.P(0.99)), Flush: micros(in.Flush.P(0.5), in.Flush.P(0.99)),
		})
	}
	slices.SortFunc(out.Inputs, func(a, b admin.ForecastInput) int { return strings.Compare(a.Node.Name, b.Node.Name) })
	return out
}
