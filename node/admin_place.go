package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/pace"
	"ukai/node/place"
	"ukai/node/volume"
)

// Placement implements admin.Backend.
func (n *Node) Placement(ctx context.Context, disk string) (admin.Placement, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Placement{}, err
	}
	p := n.people()
	n.hear(ctx, &p, d)
	return n.placementOf(ctx, p, d, true), nil
}

// Placements implements admin.Backend.
func (n *Node) Placements(ctx context.Context) ([]admin.Placement, error) {
	p := n.people()
	var disks []*crdt.Disk
	n.eachLive(func(d *crdt.Disk, _ crdt.Record) { disks = append(disks, d) })
	n.hear(ctx, &p, disks...)
	list := []admin.Placement{}
	for _, d := range disks {
		list = append(list, n.placementOf(ctx, p, d, false))
	}
	slices.SortFunc(list, func(a, b admin.Placement) int { return strings.Compare(a.Disk.Name, b.Disk.Name) })
	return list, nil
}

// placementOf tells of one disk, with steps also what leads to its rule.
func (n *Node) placementOf(ctx context.Context, p people, d *crdt.Disk, steps bool) admin.Placement {
	var rec *crdt.Record
	if r, ok := d.Record(); ok {
		rec = &r
	}
	want := wishOf(d)
	out := n.placement(p, admin.DiskRef{ID: d.ID, Name: d.Name.Value}, want, rec)
	if steps && rec != nil && want.text != "" {
		if want.err == nil { // one that cannot be read is told of already
			if plan, costs, err := n.costed(ctx, p, want, *rec, want.rule); err == nil {
				n.addSteps(p, &out, plan, costs, rec)
			}
		}
		if paused(d) {
			out.Doing = "nothing: " + pausedText(d)
		}
	}
	return out
}

func pausedText(d *crdt.Disk) string {
	return "its job is paused; go on with: ukai-node jobs resume " + d.Name.Value
}

// costed plans a disk's relocation and estimates what it takes. Nodes with a replica are asked how much of it is allocated: holes are not
// copied. The node that carries out the plan has a replica and knows that by itself. The plan's reasons are about one of the rules.
func (n *Node) costed(ctx context.Context, p people, want wish, rec crdt.Record, about place.Rule) (place.Plan, place.Costs, error) {
	in, _ := n.planned(want, rec, p.candidates())
	for _, r := range n.reports(ctx, p, rec.Disk, nodesOf(&rec)) {
		in.Allocated = max(in.Allocated, r.Allocated)
	}
	in.About = about
	plan, err := place.Relocate(in)
	if err != nil {
		return plan, place.Costs{}, err
	}
	c := place.Copying{Rec: rec, Nodes: in.Nodes, Near: in.Near, Window: volume.CopyWindow, Pause: tendEvery, Limit: n.linkLimit}
	if rec.Phase == crdt.PhaseActive {
		c.Holder = rec.Holder
	}
	costs := plan.Costs(c)
	if in.Allocated == 0 && plan.Bytes() > 0 {
		costs.Assumed = append(costs.Assumed, "how much of the disk is allocated is not known: all of it")
	}
	return plan, costs, nil
}

// linkLimit returns the bytes per second that all copies between two datacenters together may take now; negative: any.
func (n *Node) linkLimit(from, to string) int64 {
	s := n.lookAtLinks() // what was set this very moment counts
	if s == nil {
		return int64(pace.Unlimited)
	}
	limit, ok := s.limits[pace.NewPair(from, to)]
	if !ok {
		return int64(pace.Unlimited)
	}
	return int64(limit.At(time.Now()))
}

// addSteps adds what leads to the rule, what it takes, and who does it.
func (n *Node) addSteps(p people, out *admin.Placement, plan place.Plan, costs place.Costs, rec *crdt.Record) {
	out.Steps = n.steps(p, plan, &costs)
	if len(plan.Steps) > 0 {
		out.Costs = costsOf(p, plan, costs)
	}
	if plan.Unmet != "" {
		out.Differences = append(out.Differences, plan.Unmet)
	}
	out.Doing = n.doing(p, rec, len(out.Steps))
}

// steps puts the steps of a plan into words, with what they take where that is known.
func (n *Node) steps(p people, plan place.Plan, costs *place.Costs) (list []admin.Step) {
	for i, step := range plan.Steps {
		s := admin.Step{
			Kind: step.Kind.String(), Node: p.ref(step.Node), From: p.ref(step.From), Bytes: step.Bytes, ReusesBytes: step.Reuses, InSync: step.InSync, Text: n.told(p, step),
		}
		if costs != nil {
			cost := &costs.Steps[i]
			s.Bytes, s.Seconds = cost.Bytes, cost.Took.Seconds()
			for _, id := range cost.Path {
				s.Path = append(s.Path, p.ref(id))
			}
			if len(cost.Path) > 0 {
				s.From = s.Path[0]
			}
			for _, c := range cost.Copies {
				s.Copies = append(s.Copies, admin.Copies{Blocks: place.Ranges(c.Blocks), InSync: c.InSync})
			}
		}
		list = append(list, s)
	}
	return list
}

func costsOf(p people, plan place.Plan, costs place.Costs) *admin.Costs {
	links := func(list []place.LinkBytes) (out []admin.LinkBytes) {
		for _, l := range list {
			out = append(out, admin.LinkBytes(l))
		}
		return out
	}
	c := &admin.Costs{
		Bytes: plan.Bytes(), Seconds: costs.Took.Seconds(), LeastInSync: costs.Least, Links: links(costs.Links), Pairs: links(costs.Pairs), Assumed: costs.Assumed,
	}
	for _, s := range costs.Space {
		c.Space = append(c.Space, admin.NodeSpace{Node: p.ref(s.Node), PeakBytes: s.PeakBytes, FreedBytes: s.FreedBytes, LeftBytes: s.LeftBytes})
	}
	return c
}

// placement compares a rule with a record.
func (n *Node) placement(p people, disk admin.DiskRef, want wish, rec *crdt.Record) admin.Placement {
	out := admin.Placement{Disk: disk, Rule: want.text, Here: showHere(p, want), AllowFewer: want.fewer, Wanted: []admin.Want{}, Replicas: []admin.Replica{}}
	if rec == nil {
		out.Differences = []string{"what is true of this disk is not known here"}
		return out
	}
	described := n.describe(p, disk.Name, *rec, want)
	out.Replicas, out.Arbiters, out.KeepStale, out.Kept = described.Replicas, described.Arbiters, described.KeepStale, described.Kept
	for _, w := range described.Warnings {
		if w.Code == codeArbiters {
			out.Warnings = append(out.Warnings, w)
		}
	}
	if want.text == "" {
		out.Met = true
		return out
	}
	if want.err != nil {
		out.Differences = []string{want.err.Error()}
		return out
	}
	s := place.CheckRanges(want.rule, want.ranges, *rec, p.candidates())
	out.Met, out.Differences = s.Met, s.Differences
	for _, part := range s.Parts {
		if !part.Own {
			out.Wanted = fewest(out.Wanted, wants(part))
		}
	}
	for _, x := range want.ranges {
		r := admin.Range{
			Blocks: x.Blocks.String(), Bytes: max(0, min(int64(x.Blocks.End())*int64(rec.BlockSize), rec.Size)-int64(x.Blocks.First)*int64(rec.BlockSize)), Rule: x.Rule.String(), Met: true, Wanted: []admin.Want{},
		}
		var now []string
		for _, part := range s.Parts {
			if !slices.ContainsFunc(part.Blocks, func(b ukai.Range) bool { return b.First < x.Blocks.End() && x.Blocks.First < b.End() }) {
				continue
			}
			r.Wanted = fewest(r.Wanted, wants(part))
			if !slices.Contains(now, part.Now) {
				now = append(now, part.Now)
			}
			for _, d := range part.Differences {
				if !slices.Contains(r.Differences, d) {
					r.Differences = append(r.Differences, d)
				}
			}
		}
		r.Now, r.Met = strings.Join(now, "; "), len(r.Differences) == 0
		out.Ranges = append(out.Ranges, r)
	}
	return out
}

func wants(part place.PartStatus) (list []admin.Want) {
	for _, t := range part.Terms {
		list = append(list, admin.Want{Term: t.Term, Count: t.Want, Have: t.Have, Nodes: t.Nodes})
	}
	return list
}

// fewest returns of each term of one rule the want that has less, in two parts of the disk.
func fewest(a, b []admin.Want) []admin.Want {
	if len(a) == 0 {
		return b
	}
	for i := range a {
		if i < len(b) && b[i].Have < a[i].Have {
			a[i] = b[i]
		}
	}
	return a
}

// doing says what is being done about a disk that is not where its rule wants it, by whom, or why nothing is.
func (n *Node) doing(p people, rec *crdt.Record, steps int) string {
	if text := n.relocations.doing(rec.Disk); text != "" {
		return text
	}
	if steps == 0 {
		return ""
	}
	if (rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering) && !p.abandoned(*rec) {
		switch {
		case p.alive(rec.Holder):
			return "by " + p.ref(rec.Holder).String()
		case p.repair > 0:
			return fmt.Sprintf("nothing yet: %s has the disk attached and does not answer; others go on without it when it has been down for %v", p.ref(rec.Holder), p.repair)
		}
		return fmt.Sprintf("nothing: %s has the disk attached and does not answer", p.ref(rec.Holder))
	}
	return "by a node with an in-sync replica"
}

// PlaceDisk implements admin.Backend.
func (n *Node) PlaceDisk(ctx context.Context, disk string, change admin.PlaceDisk) (admin.Placement, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Placement{}, err
	}
	rec, err := n.known(d.ID)
	if err != nil {
		return admin.Placement{}, err
	}
	p := n.people()
	var want wish
	var asked place.Rule // of the disk, or of blocks of it; without terms if theirs is removed
	if change.Blocks == "" {
		want, asked, err = n.wishOfDisk(ctx, &p, d, rec, change)
	} else {
		want, asked, err = wishOfBlocks(d, rec, change)
	}
	if err != nil {
		return admin.Placement{}, fmt.Errorf("place disk %s: %w", d.Name.Value, err)
	}
	before := wishOf(d)
	if want.keep, want.kept = before.keep, before.kept; change.KeepStale != nil {
		want.keep = *change.KeepStale
	}
	plan, costs, err := n.costed(ctx, p, want, rec, asked)
	if err != nil {
		return admin.Placement{}, fmt.Errorf("place disk %s: %w", d.Name.Value, err)
	}
	if len(asked.Terms) > 0 && asked.Mode == place.Strict && slices.Contains(plan.Short, asked.String()) {
		return admin.Placement{}, &admin.Refusal{
			Err: fmt.Errorf("rule %q: %w: %s", asked, ukai.ErrUnmet, plan.Missing), Reasons: p.reasons(plan.Reasons), Remedy: plan.Help,
		}
	}
	if !change.DryRun {
		if err := n.keepWish(d, want, plan); err != nil {
			return admin.Placement{}, fmt.Errorf("place disk %s: %w", d.Name.Value, err)
		}
		text := fmt.Sprintf("the rule of disk %s is now %s", d.Name.Value, want.text)
		switch {
		case change.Remove:
			text = fmt.Sprintf("blocks %s of disk %s have no rule of their own any more", change.Blocks, d.Name.Value)
		case change.Blocks != "":
			text = fmt.Sprintf("the rule of blocks %s of disk %s is now %s", change.Blocks, d.Name.Value, asked)
		}
		n.events.add(admin.Event{Level: admin.Fine, Kind: "rule-set", Disk: d.Name.Value, Text: text})
	}
	out := n.placement(p, admin.DiskRef{ID: d.ID, Name: d.Name.Value}, want, &rec)
	n.addSteps(p, &out, plan, costs, &rec)
	if change.DryRun && len(plan.Steps) > 0 && rec.Phase == crdt.PhaseActive && p.alive(rec.Holder) {
		f := n.forecasts(ctx, p, rec, plan, []place.Node{{ID: rec.Holder}})
		f.Disk = out.Disk
		out.Forecast = &f
	}
	out.DryRun, out.Reasons = change.DryRun, p.reasons(plan.Reasons)
	if change.DryRun {
		out.Doing = ""
	} else if paused(d) && len(out.Steps) > 0 {
		out.Doing, out.Notice = "", pausedText(d)
	}
	return out, nil
}

// wishOfDisk returns what is wanted of a disk that gets a rule, and that rule with what $here stands for. Its ranges keep theirs.
func (n *Node) wishOfDisk(ctx context.Context, p *people, d *crdt.Disk, rec crdt.Record, change admin.PlaceDisk) (want wish, asked place.Rule, err error) {
	if change.Remove {
		return want, asked, fmt.Errorf("%w: a disk always has a rule: give it another, or say the blocks that shall have none of their own", ukai.ErrInvalid)
	}
	if asked, err = parseRule(change.Rule); err != nil {
		return want, asked, err
	}
	if asked.Follow != 0 {
		n.hear(ctx, p, d)
	}
	here, err := n.hereFor(*p, d, rec, asked)
	if err != nil {
		return want, asked, err
	}
	if want = wishFor(asked, here); want.err != nil {
		return want, asked, want.err
	}
	want.ranges, want.fewer = wishOf(d).ranges, change.AllowFewer
	for _, x := range want.ranges {
		if copies := x.Rule.Replicas(); want.rule.InSync() > copies {
			return want, asked, fmt.Errorf("rule %q: %w: blocks %v are to have %d in sync at most, so that writes to them would wait for ever: give them more copies, or say --min-sync %d", asked, ukai.ErrInvalid, x.Blocks, copies, copies)
		}
	}
	return want, want.rule, nil
}

// wishOfBlocks returns what is wanted of a disk of which some blocks get a rule or lose theirs, and the rule that they get.
func wishOfBlocks(d *crdt.Disk, rec crdt.Record, change admin.PlaceDisk) (want wish, asked place.Rule, err error) {
	if want = wishOf(d); want.text == "" || want.err != nil {
		return want, asked, fmt.Errorf("%w: the disk has no rule that can be read: give it one first, without --blocks", ukai.ErrInvalid)
	}
	blocks, err := place.ParseBlocks(change.Blocks)
	if err != nil {
		return want, asked, err
	}
	if last := ukai.Index(rec.Blocks() - 1); blocks.End()-1 > last {
		return want, asked, fmt.Errorf("blocks %v: %w: the disk ends with block %d; its blocks have %d KiB each: make it larger first, or say --blocks %d-%d", blocks, ukai.ErrInvalid, last, rec.BlockSize>>10, min(blocks.First, last), last)
	}
	if change.AllowFewer {
		return want, asked, fmt.Errorf("blocks %v: %w: --allow-fewer is about the whole disk: say it with its rule, without --blocks", blocks, ukai.ErrInvalid)
	}
	switch {
	case change.Remove && len(change.Rule.Terms) > 0:
		return want, asked, fmt.Errorf("blocks %v: %w: they get a rule, or have theirs removed; not both", blocks, ukai.ErrInvalid)
	case change.Remove:
		if !slices.ContainsFunc(want.ranges, func(x place.RangeRule) bool { return x.Blocks.First < blocks.End() && blocks.First < x.Blocks.End() }) {
			return want, asked, fmt.Errorf("blocks %v: %w: they have no rule of their own; ukai-node place show %s lists those that do", blocks, ukai.ErrNotFound, d.Name.Value)
		}
	default:
		if asked, err = parseRule(change.Rule); err != nil {
			return want, asked, err
		}
		if need, copies := want.rule.InSync(), asked.Replicas(); need > copies {
			return want, asked, fmt.Errorf("blocks %v: rule %q: %w: writes wait until %d replicas are in sync, and it asks for %d: ask for more copies, or give the disk a rule with --min-sync %d", blocks, asked, ukai.ErrInvalid, need, copies, copies)
		}
	}
	before := want.all()
	if want.ranges, err = want.ranges.Set(blocks, asked); err != nil {
		return want, asked, err
	}
	want.fewer = want.fewer && want.all() == before
	return want, asked, nil
}

// keepWish writes down what is wanted of a disk, and what was before.
func (n *Node) keepWish(d *crdt.Disk, want wish, plan place.Plan) error {
	return n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (set crdt.Delta, err error) {
		policy := func(key, value string) {
			if err == nil {
				var one crdt.Delta
				one, err = c.SetPolicy(d.ID, key, value, stamp())
				set = set.Join(one)
			}
		}
		ranges, had := d.Policy[policyRanges]
		if now, ok := c.Disk(d.ID); ok && now.Policy[policyRanges] != ranges {
			return set, fmt.Errorf("%w: somebody has changed its ranges just now: look at them with ukai-node place show %s, and try again", ukai.ErrRejected, d.Name.Value)
		}
		rule := want.text != d.Rule.Value
		other := want.ranges.String() != ranges.Value
		if !other { // else the rule is not what is asked for: another that was set on the other side of a cut holds
			set, err = c.SetRule(d.ID, want.text, stamp())
		}
		if d.Policy[policyFewer].Value != "" || want.fewer {
			allowed := ""
			if want.fewer && len(plan.Steps) > 0 {
				allowed = want.all()
			}
			policy(policyFewer, allowed)
		}
		if want.keep != (d.Policy[policyKeep].Value == keepOn) {
			value := ""
			if want.keep {
				value = keepOn
			}
			policy(policyKeep, value)
		}
		if rule && want.asked.Follow != 0 && err == nil {
			var at crdt.Delta
			at, err = setHere(c, d.ID, want.here, stamp())
			set = set.Join(at)
		}
		if other {
			policy(policyRanges, want.ranges.String())
		}
		if rule || other {
			before := d.Rule.Value
			if len(plan.Steps) == 0 && plan.Unmet == "" {
				before = "" // met as it is: what moves the disk later is not this rule, and cancelling that must not go back to the one before
			}
			policy(policyRuleBefore, before)
			if had || other {
				policy(policyRangesBefore, ranges.Value)
			}
		}
		return set, err
	})
}
