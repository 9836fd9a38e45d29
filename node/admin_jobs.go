package node

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
)

const (
	// jobsEvery is how often jobs that are watched are looked at.
	jobsEvery = time.Second
	// askJobs bounds how long the nodes that do jobs are asked how far they have come.
	askJobs = 2 * time.Second
)

// Jobs implements admin.Backend.
func (n *Node) Jobs(ctx context.Context, q admin.JobQuery) ([]admin.Job, error) {
	p := n.people()
	nodes := p.candidates()
	list := []admin.Job{}
	planning := n.planning(nodes)
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) {
		if j, ok := n.job(p, tended{d, rec}, planning, q); ok {
			list = append(list, j)
		}
	})
	if !q.Local {
		n.askWhoDoes(ctx, list)
		for i := range list {
			// What the mesh has been told of a job is older than what its doer last said here, which may be dead now.
			if j := &list[i]; !j.State.Ended() {
				j.DoneBytes, _ = n.progress.note(j.Disk.ID, j.Since, time.Now(), j.DoneBytes)
				j.Percent = min(percent(j.DoneBytes, j.TotalBytes), 99)
			}
		}
	}
	slices.SortFunc(list, func(a, b admin.Job) int {
		return cmp.Or(strings.Compare(a.Disk.Name, b.Disk.Name), slices.Compare(a.Disk.ID[:], b.Disk.ID[:]))
	})
	return list, nil
}

// job returns the job of a disk, if it has one that is asked for.
func (n *Node) job(p people, d tended, l *planning, q admin.JobQuery) (admin.Job, bool) {
	want := wishOf(d.Disk)
	stored, open := jobOf(d.Disk, want)
	out := admin.Job{Disk: admin.DiskRef{ID: d.ID, Name: d.Name.Value}, Kind: stored.Kind, Node: p.ref(n.doer(p, d.rec))}
	if stored.Since != 0 {
		out.Since = time.UnixMilli(stored.Since)
	}
	var plan place.Plan
	if want.text != "" && n.mayHaveSteps(p, d, want, l.nodes) {
		plan, _ = l.plan(want, d.rec) // a rule that cannot be read is told of by place show
	}
	left, lacking := n.bytesLeft(d.rec, plan)
	if !open && len(plan.Steps) == 0 && !lacking {
		if out, ok := n.scrubJob(p, d, out); ok {
			return out, !q.Local || out.Node.ID == n.id
		}
	}
	if !open && len(plan.Steps) == 0 && !lacking && !paused(d.Disk) {
		ended := time.UnixMilli(stored.Ended)
		if !q.Ended || q.Local || stored.Ended == 0 || time.Since(ended) > jobKept {
			return out, false
		}
		out.State, out.Ended, out.Node = stored.Result, ended, admin.NodeRef{}
		out.TotalBytes, out.DoneBytes, out.Percent = stored.Total, stored.Done, 100
		if stored.Result != admin.JobDone {
			out.Percent = percent(stored.Done, stored.Total)
		}
		return out, true
	}
	here := out.Node.ID == n.id
	if q.Local && !here {
		return out, false
	}
	if !open {
		out.Kind, out.Since, stored = n.kindOf(p, d.rec, plan), time.Time{}, job{Total: left}
	}
	out.StepsLeft = len(plan.Steps)
	out.TotalBytes, out.DoneBytes = stored.Total, max(stored.Done, stored.Total-left, 0)
	if len(plan.Steps) > 0 {
		out.Doing = n.told(p, plan.Steps[0])
	}
	out.State, out.Why = admin.JobWaiting, plan.Unmet
	if here {
		n.stateOfJob(p, d, &out)
		if !open {
			n.resyncOf(d.ID, &out)
		}
		var rate int64
		if out.DoneBytes, rate = n.progress.note(d.ID, out.Since, time.Now(), out.DoneBytes); out.State == admin.JobRunning && rate > 0 {
			out.BytesPerSecond = rate
			out.ETASeconds = (max(out.TotalBytes-out.DoneBytes, 0) + rate - 1) / rate
		}
	}
	if paused(d.Disk) {
		out.State, out.Why = admin.JobPaused, pausedWhy
	}
	out.Percent = min(percent(out.DoneBytes, out.TotalBytes), 99) // it is not done before all its steps are
	return out, true
}

func percent(done, total int64) int {
	if total <= 0 {
		return 0
	}
	return int(100 * float64(min(done, total)) / float64(total))
}

// mayHaveSteps says whether it is worth planning for a disk: planning costs more than this.
func (n *Node) mayHaveSteps(p people, d tended, want wish, nodes []place.Node) bool {
	for _, id := range append(nodesOf(&d.rec), d.rec.Arbiters...) {
		if node := p.nodes[id]; node == nil || node.Retired || node.Drain.Value || !p.alive(id) {
			return true
		}
	}
	if want.err != nil {
		return false
	}
	_, open := jobOf(d.Disk, want)
	return open || want.ranges.InSync(want.rule) != d.rec.MinSync || len(d.rec.Groups) > 1 || !place.CheckRanges(want.rule, want.ranges, d.rec, nodes).Met
}

// doer returns the node whose job a disk is: its holder, or if nobody holds it, or its holder is long gone, the first node, by id, with an in-sync
// replica. Zero: nobody's now.
func (n *Node) doer(p people, rec crdt.Record) (doer ukai.NodeID) {
	switch {
	case rec.Phase == crdt.PhaseDeleted:
	case rec.Phase == crdt.PhaseReleased, p.abandoned(rec):
		doer, _ = caretaker(p, rec)
	default:
		doer = rec.Holder
	}
	return doer
}

// stateOfJob adds what the node that does a job knows of it.
func (n *Node) stateOfJob(p people, d tended, out *admin.Job) {
	doing, err := n.relocations.state(d.ID)
	if doing != "" {
		out.State, out.Doing, out.Why = admin.JobRunning, doing, ""
		return
	}
	held, _ := n.host.Held(d.ID)
	for _, r := range held.Replicas {
		switch {
		case r.Resync != nil:
			out.State, out.Doing = admin.JobRunning, fmt.Sprintf("the replica on %s is brought up to date", p.ref(r.Node))
			out.Why = n.links.why(d.ID, n.id, r.Node)
			for _, src := range held.Replicas {
				if out.Why == "" && src.Role == crdt.InSync {
					out.Why = n.links.why(d.ID, src.Node, n.id)
				}
			}
			return
		case r.Role != crdt.InSync && r.Trouble != "":
			out.State, out.Why = admin.JobFailing, fmt.Sprintf("the replica on %s: %s", p.ref(r.Node), r.Trouble)
		}
	}
	switch {
	case err != nil:
		out.State, out.Why = admin.JobFailing, err.Error()
	case out.Why == "" && out.StepsLeft > 0:
		out.Why = fmt.Sprintf("its turn has not come: a node takes a step for %d disks at a time", maxRelocations)
	case out.Why == "":
		out.Why = "the replica that is not in sync has not been asked yet"
	}
}

// resyncOf adds how far the replica of a disk that is being brought up to date has come. No plan stands behind it, so nothing is recorded.
func (n *Node) resyncOf(disk ukai.DiskID, out *admin.Job) {
	held, _ := n.host.Held(disk)
	for _, r := range held.Replicas {
		if p := r.Resync; p != nil && p.Total > 0 {
			out.Since = time.Now().Add(-p.Took)
			out.TotalBytes, out.DoneBytes = p.Total, max(p.Total-p.Left, 0)
		}
	}
}

// askWhoDoes replaces what this node knows of jobs by what the nodes that do them say.
func (n *Node) askWhoDoes(ctx context.Context, list []admin.Job) {
	ctx, cancel := context.WithTimeout(ctx, askJobs)
	defer cancel()
	mine := map[ukai.NodeID][]int{}
	for i := range list {
		if id := list[i].Node.ID; id != n.id && !id.IsZero() && !list[i].State.Ended() {
			mine[id] = append(mine[id], i)
		}
	}
	var all sync.WaitGroup
	for id, indexes := range mine {
		all.Go(func() {
			client := admin.NewClient(admin.ClientConfig{Dial: func(ctx context.Context) (net.Conn, error) { return n.DialAdmin(ctx, id.String()) }})
			defer client.Close()
			theirs, err := client.Jobs(ctx, admin.JobQuery{Local: true})
			for _, i := range indexes {
				j := &list[i]
				at := slices.IndexFunc(theirs, func(t admin.Job) bool { return t.Disk.ID == j.Disk.ID })
				switch {
				case err != nil && j.State != admin.JobPaused:
					j.State, j.Why = admin.JobWaiting, fmt.Sprintf("%s, whose it is, cannot be asked: %v", j.Node, err)
				case at >= 0:
					*j = theirs[at]
				}
			}
		})
	}
	all.Wait()
}

// WatchJobs implements admin.Backend.
func (n *Node) WatchJobs(ctx context.Context) (<-chan []admin.Job, error) {
	out := make(chan []admin.Job)
	watch := func() {
		defer close(out)
		tick := time.NewTicker(jobsEvery)
		defer tick.Stop()
		var last []admin.Job
		for first := true; ; first = false {
			list, err := n.Jobs(ctx, admin.JobQuery{Ended: true})
			if err == nil && (first || !reflect.DeepEqual(list, last)) {
				select {
				case out <- list:
					last = list
				case <-ctx.Done():
					return
				case <-n.ctx.Done():
					return
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			case <-n.ctx.Done():
				return
			}
		}
	}
	if !n.spawn(watch) {
		close(out)
	}
	return out, nil
}

// OrderJob implements admin.Backend.
func (n *Node) OrderJob(ctx context.Context, disk string, o admin.OrderJob) (admin.Job, error) {
	fail := func(err error) (admin.Job, error) {
		return admin.Job{}, fmt.Errorf("%s the job of disk %s: %w", o.Order, disk, err)
	}
	d, err := n.find(disk, false)
	if err != nil {
		return fail(err)
	}
	rec, err := n.known(d.ID)
	if err != nil {
		return fail(err)
	}
	p := n.people()
	j, any := n.job(p, tended{d, rec}, n.planning(p.candidates()), admin.JobQuery{})
	if !any {
		return fail(fmt.Errorf("%w: nothing is to be done for it", ukai.ErrNotFound))
	}
	switch o.Order {
	case admin.OrderPause:
		err = n.setPolicies(d.ID, policyOrder, orderPause)
	case admin.OrderResume, admin.OrderRetry:
		err = n.setPolicies(d.ID, policyOrder, orderRun)
	case admin.OrderCancel:
		err = n.cancelJob(d, j)
	default:
		err = fmt.Errorf("order %q: %w: pause, resume, retry or cancel", o.Order, ukai.ErrInvalid)
	}
	if err != nil {
		return fail(err)
	}
	n.events.add(admin.Event{Level: admin.Fine, Kind: "job-" + o.Order, Disk: d.Name.Value, Text: fmt.Sprintf("an administrator ordered: %s the %s of disk %s", o.Order, j.Kind, d.Name.Value)})
	if d, err = n.findByID(d.ID); err != nil {
		return fail(err)
	}
	after, any := n.job(p, tended{d, rec}, n.planning(p.candidates()), admin.JobQuery{Ended: true})
	if !any {
		after = j // it ended with the order
	}
	if o.Order == admin.OrderCancel {
		after.State = admin.JobCancelled
	}
	return after, nil
}

// cancelJob calls off a scrub, or gives a disk the rule that it had before. What was copied for the newer one is dropped like any replica that its rule does not want.
func (n *Node) cancelJob(d *crdt.Disk, j admin.Job) error {
	before, want := d.Policy[policyRuleBefore].Value, wishOf(d)
	ranges, had := d.Policy[policyRangesBefore]
	other := before != "" && (before != d.Rule.Value || had && ranges.Value != d.Policy[policyRanges].Value)
	switch {
	case j.Kind == "scrub":
		return n.cancelScrub(d)
	case j.Kind == "evacuation":
		return fmt.Errorf("%w: it goes on for as long as nodes are drained that have replicas of the disk; pause it, or end that: ukai-node evacuate NODE --cancel", ukai.ErrRejected)
	case j.Kind != "relocation":
		return fmt.Errorf("%w: the rule %s asks for these replicas; pause it, or give the disk another rule: ukai-node place disk %s", ukai.ErrRejected, d.Rule.Value, d.Name.Value)
	case want.asked.Follow != 0 && !other:
		return fmt.Errorf("%w: the disk follows its VM, its rule is %s; pause it, or give the disk a rule that says a place: ukai-node place disk %s", ukai.ErrRejected, d.Rule.Value, d.Name.Value)
	case !other:
		return fmt.Errorf("%w: no rule is known that it had before %s; pause it, or give the disk another rule: ukai-node place disk %s", ukai.ErrRejected, want.all(), d.Name.Value)
	}
	if stored, open := jobOf(d, want); open {
		stored.Ended, stored.Result = time.Now().UnixMilli(), admin.JobCancelled
		n.recordJob(d, stored)
	}
	return n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		rule, err := c.SetRule(d.ID, before, stamp())
		if err != nil {
			return rule, err
		}
		if had && ranges.Value != d.Policy[policyRanges].Value {
			back, err := c.SetPolicy(d.ID, policyRanges, ranges.Value, stamp())
			if err != nil {
				return rule, err
			}
			rule = rule.Join(back)
		}
		forget, err := c.SetPolicy(d.ID, policyRuleBefore, "", stamp())
		if err != nil {
			return rule.Join(forget), err
		}
		run, err := c.SetPolicy(d.ID, policyOrder, orderRun, stamp())
		return rule.Join(forget).Join(run), err
	})
}
