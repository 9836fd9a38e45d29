package node

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
)

// A job is what is being done to bring a disk to where its rule wants it. What there is to do follows from the rule and the record; what people
// must know beside that, and what they ordered, is in policies of the disk, so that it outlives whoever does the work.
const (
	policyJob        = "job"         // a job, as JSON, written by the node that does it
	policyOrder      = "job-order"   // orderPause or orderRun; a newer one ends the pauses between attempts
	policyRuleBefore = "rule-before" // what cancelling a relocation goes back to
	// likewise, the policyRanges of before; absent: the disk never had any
	policyRangesBefore = "ranges-before"

	orderPause = "pause"
	orderRun   = "run"

	// jobShare is the part of a job, one in so many, whose completion is worth telling the mesh.
	jobShare = 20
	// jobKept is how long a job that ended is listed.
	jobKept = time.Hour
)

// job is the record of a planned move.
type job struct {
	Kind   string         `json:"kind"`
	Rule   string         `json:"rule"`
	Since  int64          `json:"since"` // milliseconds since 1970
	Ended  int64          `json:"ended,omitempty"`
	Result admin.JobState `json:"result,omitempty"`
	Total  int64          `json:"total"` // bytes
	Done   int64          `json:"done"`
}

// jobOf returns the last job of a disk that was recorded; open says whether it goes on, for what is wanted of the disk now.
func jobOf(d *crdt.Disk, want wish) (j job, open bool) {
	p, ok := d.Policy[policyJob]
	if !ok || json.Unmarshal([]byte(p.Value), &j) != nil {
		return job{}, false
	}
	return j, j.Ended == 0 && j.Rule == want.all()
}

// paused says whether an administrator has the disk's job paused.
func paused(d *crdt.Disk) bool { return d.Policy[policyOrder].Value == orderPause }

// pausedWhy is why a job stands still that is paused.
const pausedWhy = "paused by an administrator"

// setPolicies writes policies of a disk, those of kvs in turn: key, value.
func (n *Node) setPolicies(disk ukai.DiskID, kvs ...string) error {
	return n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (all crdt.Delta, err error) {
		for i := 0; i < len(kvs) && err == nil; i += 2 {
			var d crdt.Delta
			d, err = c.SetPolicy(disk, kvs[i], kvs[i+1], stamp())
			all = all.Join(d)
		}
		return all, err
	})
}

// recordJob writes a job down. It is for people only, so a failure is only logged.
func (n *Node) recordJob(d *crdt.Disk, j job) {
	text, err := json.Marshal(j)
	if err == nil {
		err = n.setPolicies(d.ID, policyJob, string(text))
	}
	if err != nil && n.ctx.Err() == nil {
		n.log.Warn("the state of a job could not be told to the mesh", "disk", d.Name.Value, "err", err)
	}
}

// forgetRuleBefore notes that a disk is where its rule wants it: what moves it later is something else, and to cancel that is not to go back to the rule
// before. A rule that was set meanwhile has one.
func (n *Node) forgetRuleBefore(d *crdt.Disk) {
	err := n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		now, ok := c.Disk(d.ID)
		if !ok || now.Policy[policyRuleBefore].Value == "" || now.Rule != d.Rule || now.Policy[policyRanges] != d.Policy[policyRanges] {
			return crdt.Delta{}, nil
		}
		return c.SetPolicy(d.ID, policyRuleBefore, "", stamp())
	})
	if err != nil && n.ctx.Err() == nil {
		n.log.Warn("that a job cannot be cancelled any more could not be told to the mesh", "disk", d.Name.Value, "err", err)
	}
}

// beginJob records that what a plan says begins, unless it is a part of what has begun already.
func (n *Node) beginJob(d tended, want wish, plan place.Plan) {
	if _, open := jobOf(d.Disk, want); open {
		return
	}
	left, _ := n.bytesLeft(d.rec, plan)
	n.recordJob(d.Disk, job{Kind: n.kindOf(n.people(), d.rec, plan), Rule: want.all(), Since: time.Now().UnixMilli(), Total: left})
}

// followJob records how far a job has come, where that is worth it, and its end.
func (n *Node) followJob(d tended, want wish, plan place.Plan) {
	j, open := jobOf(d.Disk, want)
	if !open && !want.fewer {
		return
	}
	left, lacking := n.bytesLeft(d.rec, plan)
	there := len(plan.Steps) == 0 && plan.Unmet == "" && !lacking
	if there && want.fewer {
		if err := n.setPolicies(d.ID, policyFewer, ""); err != nil && n.ctx.Err() == nil {
			n.log.Warn("that fewer copies are allowed could not be ended", "disk", d.Name.Value, "err", err)
		}
	}
	if !open {
		return
	}
	if there {
		j.Done, j.Ended, j.Result = j.Total, time.Now().UnixMilli(), admin.JobDone
		n.recordJob(d.Disk, j)
		n.forgetRuleBefore(d.Disk)
		n.events.add(admin.Event{Level: admin.Fine, Kind: "job-done", Disk: d.Name.Value, Text: fmt.Sprintf("disk %s is where its rule wants it: the %s is done", d.Name.Value, j.Kind)})
		return
	}
	if done := j.Total - left; done-j.Done >= max(j.Total/jobShare, 1) {
		j.Done = done
		n.recordJob(d.Disk, j)
	}
}

// kindOf says what a plan is for.
func (n *Node) kindOf(p people, rec crdt.Record, plan place.Plan) string {
	kind := "resync"
	switch {
	case len(plan.Steps) > 0 && n.lost(rec.Disk) > 0:
		kind = "repair"
	case len(plan.Steps) > 0:
		kind = "relocation"
	}
	for _, id := range append(nodesOf(&rec), rec.Arbiters...) {
		node := p.nodes[id]
		switch {
		case node != nil && node.Drain.Value && len(plan.Steps) > 0:
			return "evacuation"
		case len(plan.Steps) > 0 && (node == nil || node.Retired || !p.alive(id)):
			kind = "repair"
		}
	}
	return kind
}

// bytesLeft returns how many bytes are still to be compared or copied, at most, until a plan is carried out; lacking says whether a replica that
// stays is not in sync.
func (n *Node) bytesLeft(rec crdt.Record, plan place.Plan) (left int64, lacking bool) {
	type seat struct {
		group   uint8
		replica ukai.ReplicaID
	}
	dropped, counted := map[seat]bool{}, map[ukai.ReplicaID]bool{}
	for _, s := range plan.Steps {
		left += s.Bytes
		if s.Kind == place.DropReplica {
			dropped[seat{s.Group, s.Replica}] = true
		}
	}
	full := rec.Size
	if bytes := n.allocated(&rec); bytes > 0 {
		full = min(bytes, full)
	}
	held, _ := n.host.Held(rec.Disk)
	for i := range rec.Groups {
		g := &rec.Groups[i]
		for _, m := range g.Members {
			if m.Role != crdt.Syncing && m.Role != crdt.Out || dropped[seat{g.ID, m.Replica}] {
				continue
			}
			lacking = true
			if counted[m.Replica] {
				continue // of all its groups at once
			}
			behind := min(full, rec.BytesOf(g.ID))
			for _, r := range held.Replicas {
				if r.Replica == m.Replica && r.Resync != nil && r.Resync.Total > 0 { // else it is being found out
					behind = min(r.Resync.Left, full)
					counted[m.Replica] = true
				}
			}
			left += behind
		}
	}
	return left, lacking
}

// obey has a disk's job paused, or go on at once, as was ordered, and says whether it is paused.
func (n *Node) obey(d tended) bool {
	order, any := d.Policy[policyOrder]
	if !any {
		return false
	}
	disk := n.host.Disk(d.ID, d.Name.Value)
	disk.Pause(order.Value == orderPause)
	if n.relocations.ordered(d.ID, order.Stamp) && order.Value != orderPause {
		disk.Hurry()
	}
	return order.Value == orderPause
}

// progress remembers how far jobs had come when they were last looked at, for their rates.
type progress struct {
	mu    sync.Mutex
	disks map[ukai.DiskID]*sample
}

// maxSamples bounds the disks that progress remembers; then all are forgotten.
const maxSamples = 1024

// sampleSpan is over which time a rate is the mean.
const sampleSpan = 5 * time.Second

// sameJob is how far apart two times may be at which a job is said to have begun: that of a resync is reckoned back.
const sameJob = time.Second

type sample struct {
	since time.Time // of the job
	done  int64     // most ever seen
	marks []mark    // of the last sampleSpan
}

type mark struct {
	at   time.Time
	done int64
}

// note takes in how many bytes of the job that began at since are done, and returns the most that ever were and the rate, 0 if it is not known.
func (p *progress) note(disk ukai.DiskID, since, now time.Time, done int64) (most int64, rate int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disks == nil || len(p.disks) >= maxSamples {
		p.disks = map[ukai.DiskID]*sample{}
	}
	s := p.disks[disk]
	if s == nil || s.since.Sub(since).Abs() >= sameJob {
		s = &sample{since: since}
		p.disks[disk] = s
	}
	s.done = max(s.done, done)
	for len(s.marks) > 1 && now.Sub(s.marks[1].at) >= sampleSpan {
		s.marks = s.marks[1:]
	}
	if len(s.marks) > 0 && now.Sub(s.marks[0].at) > 3*sampleSpan {
		s.marks = nil // nobody looked for long
	}
	if len(s.marks) == 0 || now.Sub(s.marks[len(s.marks)-1].at) >= sampleSpan/10 {
		s.marks = append(s.marks, mark{now, s.done})
	}
	if span := now.Sub(s.marks[0].at); span > 0 {
		rate = int64(float64(s.done-s.marks[0].done) / span.Seconds())
	}
	return s.done, rate
}
