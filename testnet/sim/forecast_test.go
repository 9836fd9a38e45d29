package sim

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"ukai/node/admin"
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
				if f.At[0].WithinPercent != 25 || f.Recorded == nil {
					t.Errorf("within %d %%: %q, recorded %+v", f.At[0].WithinPercent, f.At[0].Why, f.Recorded)
				}
			})
		})
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
