package admintest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ukai"
	"ukai/node/admin"
)

// PlaceDisk records a rule; the data stays where it is.
func (f *Fake) PlaceDisk(_ context.Context, disk string, p admin.PlaceDisk) (admin.Placement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.disk(disk)
	if err != nil {
		return admin.Placement{}, err
	}
	if p.Blocks != "" {
		return f.placeBlocks(d, p)
	}
	_, reasons, err := f.choose(p.Rule)
	if err != nil {
		return admin.Placement{}, err
	}
	if p.KeepStale != nil && !p.DryRun {
		d.KeepStale, d.Kept = *p.KeepStale, nil
		if d.KeepStale {
			d.Kept = []admin.OldCopy{{Node: admin.NodeRef{Name: "o1"}, Bytes: 3 << 29, Since: Epoch.Add(-2 * time.Hour)}}
		}
	}
	pl := f.placement(d, p.Rule)
	pl.AllowFewer = p.AllowFewer
	pl.DryRun, pl.Reasons = p.DryRun, reasons
	if !pl.Met {
		pl.Notice = "the rule is recorded; the data stays where it is"
	}
	if p.DryRun {
		pl.Steps, pl.Costs = steps(d)
	}
	if !p.DryRun {
		f.rules[d.ID] = p.Rule
		d.Rule, d.RuleMet = pl.Rule, pl.Met
	}
	return pl, nil
}

// placeBlocks records the rule of a range, in place of one that was given for the same blocks.
func (f *Fake) placeBlocks(d *admin.Disk, p admin.PlaceDisk) (admin.Placement, error) {
	list := slices.DeleteFunc(slices.Clone(f.ranges[d.ID]), func(r admin.Range) bool { return r.Blocks == p.Blocks })
	switch {
	case !p.Remove:
		if _, _, err := f.choose(p.Rule); err != nil {
			return admin.Placement{}, err
		}
		list = append(list, admin.Range{Blocks: p.Blocks, Bytes: 1 << 30, Rule: text(p.Rule), Wanted: []admin.Want{{Term: p.Rule.Terms[0], Count: 1}}, Now: "t1 in sync"})
	case len(list) == len(f.ranges[d.ID]):
		return admin.Placement{}, fmt.Errorf("blocks %s: %w: they have no rule of their own", p.Blocks, ukai.ErrNotFound)
	}
	before := f.ranges[d.ID]
	f.ranges[d.ID] = list
	pl := f.placement(d, f.rules[d.ID])
	if pl.DryRun = p.DryRun; p.DryRun {
		f.ranges[d.ID] = before
	}
	return pl, nil
}

// Placement compares a disk's rule with its replicas.
func (f *Fake) Placement(_ context.Context, disk string) (admin.Placement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.disk(disk)
	if err != nil {
		return admin.Placement{}, err
	}
	return f.placement(d, f.rules[d.ID]), nil
}

// Placements does so for all disks.
func (f *Fake) Placements(context.Context) (list []admin.Placement, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.disks {
		if d := &f.disks[i]; d.Removed == nil {
			list = append(list, f.placement(d, f.rules[d.ID]))
		}
	}
	return list, nil
}

// choose picks the first nodes that meet each term key=value:count.
func (f *Fake) choose(r admin.Rule) (chosen []*admin.Node, reasons []admin.Reason, err error) {
	for _, term := range r.Terms {
		key, value, count, err := parse(term)
		if err != nil {
			return nil, nil, err
		}
		var unfit []admin.Reason
		have := 0
		for i := range f.nodes {
			n := &f.nodes[i]
			var why string
			switch {
			case slices.Contains(chosen, n):
				continue
			case n.Labels[key] != value:
				why = fmt.Sprintf("has %s=%s", key, n.Labels[key])
			case n.Witness:
				why = "is a witness"
			case n.Drain:
				why = "is being drained"
			case n.State != admin.NodeAlive:
				why = "is " + string(n.State)
			case have < count:
				have++
				chosen = append(chosen, n)
				reasons = append(reasons, admin.Reason{Node: admin.NodeRef{ID: n.ID, Name: n.Name}, Labels: n.Labels, Chosen: true, Why: "meets " + term})
				continue
			default:
				why = "not needed"
			}
			unfit = append(unfit, admin.Reason{Node: admin.NodeRef{ID: n.ID, Name: n.Name}, Labels: n.Labels, Why: why})
		}
		if have < count && !r.Prefer {
			return nil, nil, &admin.Refusal{
				Err:     fmt.Errorf("rule %s: %w: %d of %d nodes for %s", text(r), ukai.ErrUnmet, have, count, term),
				Reasons: unfit, Remedy: fmt.Sprintf("label another node with `ukai-node place node NAME %s=%s`", key, value),
			}
		}
		reasons = append(reasons, unfit...)
	}
	return chosen, reasons, nil
}

func (f *Fake) placement(d *admin.Disk, r admin.Rule) admin.Placement {
	p := admin.Placement{Disk: admin.DiskRef{ID: d.ID, Name: d.Name}, Rule: text(r), Met: len(f.ranges[d.ID]) == 0, Replicas: d.Replicas, Arbiters: d.Arbiters, Ranges: f.ranges[d.ID], KeepStale: d.KeepStale, Kept: d.Kept}
	if r.FollowSeconds > 0 {
		follow := time.Duration(r.FollowSeconds) * time.Second
		p.Rule += " --follow " + follow.String()
		p.Here = &admin.Here{
			Values: ukai.Labels{"dc": here}, Node: &d.Replicas[0].Node, Since: Epoch.Add(-2 * time.Hour), FollowSeconds: r.FollowSeconds,
			Next: &admin.HereNext{Values: ukai.Labels{"dc": "osaka"}, Node: admin.NodeRef{Name: "o1"}, Since: Epoch.Add(-3 * time.Minute), At: Epoch.Add(follow - 3*time.Minute)},
		}
	}
	for _, term := range r.Terms {
		key, value, count, _ := parse(term) // was checked when the rule was set
		w := admin.Want{Term: term, Count: count}
		for _, rep := range d.Replicas {
			if rep.Labels[key] == value && rep.Role == admin.InSync {
				w.Have++
				w.Nodes = append(w.Nodes, rep.Node.Name)
			}
		}
		if w.Have < count {
			p.Met = false
			p.Differences = append(p.Differences, fmt.Sprintf("%s: %d of %d replicas are in sync there", term, w.Have, count))
		}
		p.Wanted = append(p.Wanted, w)
	}
	return p
}

// steps makes one more replica of a disk, on o1.
func steps(d *admin.Disk) ([]admin.Step, *admin.Costs) {
	const copied = 3 << 29
	from, to := d.Replicas[0].Node, admin.NodeRef{Name: "o1"}
	step := admin.Step{
		Kind: "add", Node: to, From: from, Path: []admin.NodeRef{from, to}, Bytes: copied, InSync: 3, Seconds: 31.4, Text: "a replica is made on o1",
		Copies: []admin.Copies{{Blocks: "0-5119", InSync: 3}},
	}
	return []admin.Step{step}, &admin.Costs{
		Bytes: copied, Seconds: 31.4, LeastInSync: 2, Links: []admin.LinkBytes{{From: "tokyo", To: "osaka", Bytes: copied}},
		Pairs: []admin.LinkBytes{{From: from.Name, To: to.Name, Bytes: copied}}, Space: []admin.NodeSpace{{Node: to, PeakBytes: copied, LeftBytes: 20 << 30}},
		Assumed: []string{"copies run at 100 MiB/s"},
	}
}

func parse(term string) (key, value string, count int, err error) {
	selector, n, ok := strings.Cut(term, ":")
	key, value, ok2 := strings.Cut(selector, "=")
	if value == "$here" {
		value = here
	}
	count, err = strconv.Atoi(n)
	if !ok || !ok2 || err != nil {
		return "", "", 0, fmt.Errorf("rule term %q: %w: write SELECTOR:COUNT, for example dc=tokyo:2", term, ukai.ErrInvalid)
	}
	return key, value, count, nil
}

// here is what $here stands for.
const here = "tokyo"

func text(r admin.Rule) string { return strings.Join(r.Terms, " ") }

// Defaults tells what SetDefaults has set; disks are created as it always was.
func (f *Fake) Defaults(context.Context) (admin.Defaults, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.defaults, nil
}

// SetDefaults takes anything.
func (f *Fake) SetDefaults(_ context.Context, s admin.SetDefaults) (admin.Defaults, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.Rule != nil {
		f.defaults.Rule = text(*s.Rule)
	}
	if s.RepairAfterSeconds != nil {
		f.defaults.RepairAfterSeconds = *s.RepairAfterSeconds
	}
	return f.defaults, nil
}

// Forecast has a disk of Tokyo felt as 8 ms away.
func (f *Fake) Forecast(_ context.Context, disk, at string, terms []string) (admin.Forecast, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.disk(disk)
	if err != nil {
		return admin.Forecast{}, err
	}
	if at != "dc=osaka" {
		return admin.Forecast{}, fmt.Errorf("forecast %s: no node that is alive is %s: %w", disk, at, ukai.ErrNotFound)
	}
	far, near := admin.Latency{P50Micros: 8200, P99Micros: 16400}, admin.Latency{P50Micros: 110, P99Micros: 950}
	out := admin.Forecast{Disk: admin.DiskRef{ID: d.ID, Name: d.Name}, At: []admin.ForecastAt{{
		Node: admin.NodeRef{Name: "o1"}, WithinPercent: 50, Why: []string{"the round trip to t1 is estimated, not measured"},
		Felt:   []admin.Felt{{When: "now", Read: far, Write: far, Flush: far}},
		Inputs: []admin.ForecastInput{{Node: admin.NodeRef{Name: "t1"}, RTT: far, Read: near, Write: near, Flush: near}},
	}}}
	if len(terms) > 0 {
		out.At[0].Felt = append(out.At[0].Felt, admin.Felt{When: "then a replica is made on o1", Read: near, Write: far, Flush: far})
		out.Recorded = &admin.RecordedIO{
			Reads:   admin.RecordedRequests{Count: 700, HotPercent: 80, Felt: near, Sizes: []admin.SizeCount{{UpToBytes: 4096, Count: 600}, {UpToBytes: 65536, Count: 100}}},
			Writes:  admin.RecordedRequests{Count: 300, HotPercent: 60, Felt: near, Sizes: []admin.SizeCount{{UpToBytes: 4096, Count: 300}}},
			Flushes: 30, FlushFelt: near,
		}
	}
	return out, nil
}

// Survive has every disk lose redundancy with the nodes that have a replica of it, and data with the last of them.
func (f *Fake) Survive(_ context.Context, without string) (admin.Survival, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := admin.SurvivalCase{Without: cmp.Or(without, "dc=tokyo"), Nodes: 2}
	for _, d := range f.disks {
		c.LoseData++
		c.Disks = append(c.Disks, admin.DiskFate{
			Disk: admin.DiskRef{ID: d.ID, Name: d.Name}, Fate: "loses data", Why: []string{"every copy in sync is there: t1, t2"},
			Remedy: "ukai-node place disk " + d.Name + " dc=tokyo:2 dc!=tokyo:1",
		})
	}
	return admin.Survival{Cases: []admin.SurvivalCase{c}}, nil
}
