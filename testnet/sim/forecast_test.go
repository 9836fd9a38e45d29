package sim

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"ukai"
	"ukai/node/admin"
	"ukai/node/store"
	"ukai/testnet/memnet"
)

// A forecast is held against what a guest then feels, in virtual time, where latency is that of the links and nothing else: medians within a
// quarter, 99th percentiles within a factor of two.
func TestForecastIsWhatAGuestThenFeels(t *testing.T) {
	for _, test := range []struct {
		name, rule, at, ack string
		then                []string // the rule that it gets
	}{
		{name: "both replicas far", rule: "dc=tokyo:2", at: "o1"},
		{name: "the host has one, the other is far", rule: "dc=tokyo:1 dc=osaka:1", at: "o1"},
		{name: "three places", rule: "dc=tokyo:1 dc=osaka:1 dc=fukuoka:1", at: "o1"},
		{name: "three places, from one without a replica", rule: "dc=tokyo:1 dc=osaka:1 dc=fukuoka:1", at: "w1"},
		{name: "far, with ack=local", rule: "dc=tokyo:1 dc=fukuoka:1", at: "t1", ack: "local"},
		{name: "after a move", rule: "dc=tokyo:1 dc=fukuoka:1", at: "o1", then: []string{"dc=osaka:1", "dc=tokyo:1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo o1:osaka f1:fukuoka w1:sendai:witness", func(t *testing.T, m *Mesh) {
				// Round trips of 5, 20 and 80 ms.
				for pair, rtt := range map[[2]string]time.Duration{
					{"tokyo", "osaka"}: 20 * time.Millisecond, {"tokyo", "fukuoka"}: 80 * time.Millisecond, {"osaka", "fukuoka"}: 80 * time.Millisecond,
					{"sendai", "tokyo"}: 5 * time.Millisecond, {"sendai", "osaka"}: 20 * time.Millisecond, {"sendai", "fukuoka"}: 80 * time.Millisecond,
				} {
					l := memnet.Link{Delay: rtt / 2, Jitter: rtt / 20}
					m.Net.SetLink(pair[0], pair[1], l)
					m.Net.SetLink(pair[1], pair[0], l)
				}
				ctx := context.Background()
				m.Create("vm1", 16<<20, test.rule)
				host := m.Nodes[test.at]
				if _, err := host.SetDisk(ctx, "vm1", admin.SetDisk{Ack: cmp.Or(test.ack, "all")}); err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"t1", "t2", "o1", "f1"} { // some I/O, so that stores have measured
					m.Create("on-"+name, 16<<20, "node="+name+":1")
					timed(t, m.Nodes[name], "on-"+name, 60)
				}
				timed(t, m.Nodes["t1"], "vm1", 60)
				time.Sleep(time.Minute) // pings find out how far the nodes are
				f, err := m.Nodes["t2"].Forecast(ctx, "vm1", "node="+test.at, test.then)
				if err != nil {
					t.Fatal(err)
				}
				felt := f.At[0].Felt[len(f.At[0].Felt)-1]
				if test.then != nil {
					if _, err := host.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: test.then}}); err != nil {
						t.Fatal(err)
					}
					m.Await("the disk is where its rule wants it", func() error {
						p, err := host.Placement(ctx, "vm1")
						if err == nil && (!p.Met || len(p.Steps) > 0) {
							err = fmt.Errorf("%v, steps %v", p.Differences, p.Steps)
						}
						return err
					})
				}
				got := timed(t, host, "vm1", 400)
				holds(t, felt, got)
				if f.At[0].WithinPercent != 25 || f.Recorded == nil {
					t.Errorf("within %d %%: %q, recorded %+v", f.At[0].WithinPercent, f.At[0].Why, f.Recorded)
				}
			})
		})
	}
}

// holds holds a forecast against what was felt: medians within a quarter, 99th percentiles within a factor of two.
func holds(t *testing.T, felt admin.Felt, got [3][]time.Duration) {
	t.Helper()
	for i, what := range []string{"read", "write", "flush"} {
		want := []admin.Latency{felt.Read, felt.Write, felt.Flush}[i]
		p50, p99 := float64(got[i][len(got[i])/2].Microseconds()), float64(got[i][len(got[i])*99/100].Microseconds())
		t.Logf("%s: forecast %d / %d us, felt %.0f / %.0f us", what, want.P50Micros, want.P99Micros, p50, p99)
		// Below a tenth of a millisecond there is nothing to be right about.
		const least = 100
		if w := float64(want.P50Micros); p50 > 1.25*max(w, least) || p50 < 0.75*w && w > least {
			t.Errorf("%s: median %.0f us, the forecast was %.0f us", what, p50, w)
		}
		if w := float64(want.P99Micros); p99 > 2*max(w, least) || p99 < w/2 && w > least {
			t.Errorf("%s: p99 %.0f us, the forecast was %.0f us", what, p99, w)
		}
	}
}

// timed uses a disk on a node, one request after the other, and returns how long reads, writes and flushes took, sorted.
func timed(t *testing.T, at *Node, disk string, requests int) (took [3][]time.Duration) {
	t.Helper()
	ctx := context.Background()
	d := at.Volume(disk)
	if err := d.Attach(ctx); err != nil {
		t.Fatal(err)
	}
	p := pattern(1, 4096)
	for i := range requests {
		off := int64(i*37%4096) * 4096
		for kind, do := range []func() error{
			func() error { _, err := d.ReadAt(ctx, p, off); return err },
			func() error { _, err := d.WriteAt(ctx, p, off); return err },
			func() error { return d.Flush(ctx) },
		} {
			began := time.Now()
			if err := do(); err != nil {
				t.Fatal(fmt.Errorf("request %d: %w", i, err))
			}
			took[kind] = append(took[kind], time.Since(began))
		}
	}
	for i := range took {
		slices.Sort(took[i])
	}
	if err := d.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	return took
}

// The same for a guest that does several things at once, in requests of all sizes, most of them to a few places, on stores that take their time, at each
// distance: the forecast is made from what was recorded where the guest ran before.
func TestForecastIsWhatABusyGuestThenFeels(t *testing.T) {
	long(t)
	const allFar, oneHere, allHere = "dc=tokyo:2", "dc=tokyo:1 dc=osaka:1", "dc=osaka:2"
	for _, test := range []struct {
		ms        int // of the round trip between the datacenters
		rule, ack string
	}{
		{5, allFar, "all"}, {5, oneHere, "local"},
		{20, allFar, "local"}, {20, oneHere, "all"}, {20, allHere, "all"},
		{80, allFar, "all"}, {80, oneHere, "local"},
	} {
		t.Run(fmt.Sprintf("%d ms, %s, ack=%s", test.ms, test.rule, test.ack), func(t *testing.T) {
			rtt := time.Duration(test.ms) * time.Millisecond
			bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka w1:sendai:witness", func(t *testing.T, m *Mesh) {
				const rate = 100 << 20 // bytes per second, as cards of 1 Gbit/s have it
				m.Net.SetDefault(memnet.Link{Delay: 100 * time.Microsecond, Rate: rate})
				l := memnet.Link{Delay: rtt / 2, Jitter: rtt / 20, Rate: rate}
				m.Net.SetLink("tokyo", "osaka", l)
				m.Net.SetLink("osaka", "tokyo", l)
				for i, n := range m.Order {
					n.Fault = takesTime(uint64(i))
				}
				ctx := context.Background()
				rule := &admin.Rule{Terms: strings.Fields(test.rule)}
				if _, err := m.Nodes["t1"].CreateDisk(ctx, admin.NewDisk{Name: "vm1", SizeBytes: 2 << 30, BlockSizeBytes: ukai.DefaultBlockSize, Rule: rule, Ack: test.ack}); err != nil {
					t.Fatal(err)
				}
				for _, n := range m.Order {
					m.Await("the disk at "+n.Name, func() error { _, err := n.StatDisk("vm1"); return err })
				}
				for _, name := range []string{"o1", "o2"} { // so that their stores have measured
					m.Create("on-"+name, 16<<20, "node="+name+":1")
					busy(t, m.Nodes[name], "on-"+name, 40)
				}
				busy(t, m.Nodes["t1"], "vm1", 200)
				time.Sleep(time.Minute)
				f, err := m.Nodes["t2"].Forecast(ctx, "vm1", "node=o1", nil)
				if err != nil {
					t.Fatal(err)
				}
				busy(t, m.Nodes["o1"], "vm1", 60) // until the windows of the connections have opened
				holds(t, f.At[0].Felt[0], busy(t, m.Nodes["o1"], "vm1", 200))
				if r := f.Recorded; f.At[0].WithinPercent != 25 || r == nil || len(r.Reads.Sizes) < 3 || r.Reads.HotPercent < 60 {
					t.Errorf("within %d %%: %q, recorded %+v", f.At[0].WithinPercent, f.At[0].Why, r)
				}
			})
		})
	}
}

// takesTime makes a store as slow as a disk: reads take 0.2 to 0.5 ms, writes 0.1 to 0.2 ms, flushes 2 to 4 ms.
func takesTime(seed uint64) func(store.Op) error {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 0x74696d65))
	return func(op store.Op) error {
		var from, to time.Duration
		switch op.Kind {
		case store.OpRead:
			from, to = 200*time.Microsecond, 500*time.Microsecond
		case store.OpWrite:
			from, to = 100*time.Microsecond, 200*time.Microsecond
		case store.OpSync:
			from, to = 2*time.Millisecond, 4*time.Millisecond
		default:
			return nil
		}
		mu.Lock()
		d := from + time.Duration(rng.Int64N(int64(to-from)))
		mu.Unlock()
		time.Sleep(d)
		return nil
	}
}

// busy uses a disk on a node by four threads and returns how long reads, writes and flushes took, sorted: seven reads to three writes, two of them with a
// flush; most requests are of 4 KiB, some of 64 and of 256 KiB, aligned to their size; each thread is in a quarter of the disk, nine of ten requests in a
// tenth of that.
func busy(t *testing.T, at *Node, disk string, requests int) (took [3][]time.Duration) {
	t.Helper()
	ctx := context.Background()
	d := at.Volume(disk)
	if err := d.Attach(ctx); err != nil {
		t.Fatal(err)
	}
	info, err := at.Disk(ctx, disk)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var threads errgroup.Group
	for thread := range uint64(4) {
		threads.Go(func() error {
			rng := rand.New(rand.NewPCG(thread, 0x62757379))
			buf := pattern(thread, 256<<10)
			for range requests {
				size := []int64{4096, 4096, 4096, 4096, 4096, 4096, 4096, 65536, 65536, 262144}[rng.IntN(10)]
				from, room := int64(thread)*info.SizeBytes/4, info.SizeBytes/4
				if rng.IntN(10) > 0 {
					room /= 10
				}
				p, off := buf[:size], from+rng.Int64N(room/size)*size
				kinds := [][]int{{0}, {0}, {0}, {0}, {0}, {0}, {0}, {1}, {1, 2}, {1, 2}}[rng.IntN(10)] // a flush comes after a write
				for _, kind := range kinds {
					began := time.Now()
					err := error(nil)
					switch kind {
					case 0:
						_, err = d.ReadAt(ctx, p, off)
					case 1:
						_, err = d.WriteAt(ctx, p, off)
					case 2:
						err = d.Flush(ctx)
					}
					if err != nil {
						return err
					}
					mu.Lock()
					took[kind] = append(took[kind], time.Since(began))
					mu.Unlock()
				}
				time.Sleep(time.Duration(rng.IntN(8000)) * time.Microsecond)
			}
			return nil
		})
	}
	if err := threads.Wait(); err != nil {
		t.Fatal(err)
	}
	for i := range took {
		slices.Sort(took[i])
	}
	if err := d.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	return took
}
