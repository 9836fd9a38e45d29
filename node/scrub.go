package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/volume"
)

// A scrub is asked for, and its state kept, in two settings of the disk, which every node has: whoever looks after the disk begins it, and
// whoever does so after that goes on with it. There is no other trace of a scrub, so none can be forgotten with a node.
const (
	policyScrub       = "scrub"        // scrubState, written by the node that scrubs
	policyScrubWanted = "scrub-wanted" // scrubWanted, written by the node that was asked
)

const (
	scrubEveryDefault = 30 * 24 * time.Hour
	scrubRateDefault  = 20 << 20 // bytes a second
	scrubBurst        = 1 << 20  // bytes that may be read at once after a rest
	// maxScrubs bounds the scrubs that run on a node because they were asked for; beside them there is one that was due.
	maxScrubs = 4
	// scrubSaveEvery is how often the state of a scrub is told to the mesh: what is lost with a node is done again.
	scrubSaveEvery = 5 * time.Second
	// scrubPause is the pause after a step that failed, scrubPatience how long steps fail before the scrub is left for a while.
	scrubPause    = time.Second
	scrubPatience = time.Minute
)

// scrubWanted is what an administrator asked for last.
type scrubWanted struct {
	Request    string `json:"request"`
	VerifyOnly bool   `json:"verifyOnly,omitempty"`
	// Cancelled says when what was asked for before was called off, and that nothing is asked for now.
	Cancelled time.Time `json:"cancelled,omitzero"`
}

// scrubState is how far the scrubs of a disk are.
type scrubState struct {
	Taken string         `json:"taken,omitempty"` // the request that was begun last
	Now   admin.ScrubRun `json:"now,omitzero"`    // zero if none runs
	Next  ukai.Index     `json:"next,omitempty"`  // where it goes on
	Last  admin.ScrubRun `json:"last,omitzero"`   // that came to its end
	Full  time.Time      `json:"full,omitzero"`   // when the last one did that changed what was wrong
}

// readScrub returns what a disk's settings say. What a newer release wrote in another form counts as nothing.
func readScrub(d *crdt.Disk) (s scrubState, w scrubWanted) {
	if json.Unmarshal([]byte(d.Policy[policyScrub].Value), &s) != nil {
		s = scrubState{}
	}
	if json.Unmarshal([]byte(d.Policy[policyScrubWanted].Value), &w) != nil {
		w = scrubWanted{}
	}
	return s.heed(w), w
}

// heed returns the state without what was called off. What that found and did not repair is still wrong.
func (s scrubState) heed(w scrubWanted) scrubState {
	if w.Cancelled.IsZero() || w.Request == s.Taken {
		return s
	}
	if s.Now.Unrepaired > s.Last.Unrepaired {
		s.Last = s.Now
		s.Last.Ended = w.Cancelled
	}
	s.Taken, s.Now, s.Next = w.Request, admin.ScrubRun{}, 0
	return s
}

// due returns the state with the run that is to be done now, and whether somebody asked for that run: a new request, or what has begun, or what
// is due since the disk was last scrubbed, or made.
func (s scrubState) due(w scrubWanted, born, now time.Time, every time.Duration) (next scrubState, asked, due bool) {
	begin := func(run admin.ScrubRun) scrubState {
		s.Now, s.Next = run, 0
		s.Now.Began = now
		return s
	}
	switch {
	case w.Request != "" && w.Request != s.Taken:
		s.Taken = w.Request
		return begin(admin.ScrubRun{Request: w.Request, VerifyOnly: w.VerifyOnly}), true, true
	case s.Now.Request != "":
		return s, true, true
	case every <= 0:
	case !s.Now.Began.IsZero():
		return s, false, true
	case now.Sub(s.since(born)) >= every:
		return begin(admin.ScrubRun{}), false, true
	}
	return s, false, false
}

// since returns since when all is known to be well.
func (s scrubState) since(born time.Time) time.Time {
	if s.Full.After(born) {
		return s.Full
	}
	return born
}

// add adds what a step found.
func (s *scrubState) add(r volume.ScrubResult) {
	s.Next = r.Next
	s.Now.Verified += r.Verified
	s.Now.Corrupt += r.Corrupt
	s.Now.Repaired += r.Repaired
	s.Now.Unrepaired += r.Unrepaired
}

// finish ends the run.
func (s *scrubState) finish(now time.Time) {
	s.Last, s.Now, s.Next = s.Now, admin.ScrubRun{}, 0
	s.Last.Ended = now
	if !s.Last.VerifyOnly {
		s.Full = now
	}
}

// scrubs is what this node scrubs now.
type scrubs struct {
	pace *rate.Limiter

	mu      sync.Mutex
	running map[ukai.DiskID]bool // whether it was asked for
	rest    map[ukai.DiskID]time.Time
}

func newScrubs(bytesPerSecond int64) scrubs {
	return scrubs{
		pace:    rate.NewLimiter(rate.Limit(bytesPerSecond), scrubBurst),
		running: map[ukai.DiskID]bool{}, rest: map[ukai.DiskID]time.Time{},
	}
}

// begin notes that the scrub of a disk begins, if there is room.
func (s *scrubs) begin(disk ukai.DiskID, asked bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	alike := 0
	for _, a := range s.running {
		if a == asked {
			alike++
		}
	}
	_, runs := s.running[disk]
	if runs || time.Now().Before(s.rest[disk]) || alike >= map[bool]int{true: maxScrubs, false: 1}[asked] {
		return false
	}
	s.running[disk] = asked
	return true
}

// runs says whether a disk is scrubbed here now.
func (s *scrubs) runs(disk ukai.DiskID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, runs := s.running[disk]
	return runs
}

// end notes that it has ended, and leaves the disk alone for a while unless its end was reached.
func (s *scrubs) end(disk ukai.DiskID, done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, disk)
	delete(s.rest, disk)
	if !done {
		s.rest[disk] = time.Now().Add(maintainPause)
	}
}

// keep forgets what is known of disks that are not this node's to scrub any more.
func (s *scrubs) keep(mine map[ukai.DiskID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.rest {
		if !mine[id] {
			delete(s.rest, id)
		}
	}
}

// scrub begins the scrubs that are due of the disks that are this node's to look after: what was asked for, then what was left alone for longest.
func (n *Node) scrub(p people, disks []tended) {
	type candidate struct {
		*crdt.Disk
		asked bool
		since time.Time
	}
	var list []candidate
	mine := map[ukai.DiskID]bool{}
	for _, d := range disks {
		if !n.relocates(p, d.rec) || p.abandoned(d.rec) { // a scrub is no reason to take a disk from anybody
			continue
		}
		mine[d.ID] = true
		if paused(d.Disk) {
			continue
		}
		state, wanted := readScrub(d.Disk)
		if next, asked, due := state.due(wanted, d.Born.Stamp.Time(), time.Now(), n.cfg.ScrubEvery); due {
			list = append(list, candidate{d.Disk, asked, next.since(d.Born.Stamp.Time())})
		}
	}
	n.scrubs.keep(mine)
	slices.SortFunc(list, func(a, b candidate) int {
		if a.asked != b.asked {
			if a.asked {
				return -1
			}
			return 1
		}
		return a.since.Compare(b.since)
	})
	for _, c := range list {
		if n.scrubs.begin(c.ID, c.asked) && !n.spawn(func() { n.scrubs.end(c.ID, n.runScrub(c.ID)) }) {
			n.scrubs.end(c.ID, true)
		}
	}
}

// runScrub scrubs a disk until that is done, or another node is to go on, or it is paused. It returns whether nothing is left to do for a while.
func (n *Node) runScrub(id ukai.DiskID) (done bool) {
	d, err := n.findByID(id)
	if err != nil {
		return true
	}
	read, wanted := readScrub(d) // anew: an earlier run may have ended since the disk was looked at
	state, asked, due := read.due(wanted, d.Born.Stamp.Time(), time.Now(), n.cfg.ScrubEvery)
	if !due {
		return true
	}
	disk := n.host.Disk(id, d.Name.Value)
	n.saveScrub(d, state)
	saved, good := time.Now(), time.Now()
	for {
		step := volume.ScrubStep{From: state.Next, VerifyOnly: state.Now.VerifyOnly}
		if !asked {
			step.Pace = n.scrubs.wait
		}
		r, err := disk.Scrub(n.ctx, step)
		if r.Next > state.Next {
			good = time.Now()
		}
		state.add(r)
		if err == nil && r.Done {
			state.finish(time.Now())
			n.saveScrub(d, state)
			n.scrubEvent(d.Name.Value, state.Last)
			return true
		}
		now, gone := n.findByID(id)
		if gone == nil && paused(now) {
			n.saveScrub(d, state)
			return true // it is begun anew, from there on, when that is over
		}
		if err != nil && (n.ctx.Err() != nil || errors.Is(err, ukai.ErrHeld) || errors.Is(err, ukai.ErrNotAttached) || time.Since(good) > scrubPatience) {
			n.saveScrub(d, state)
			n.log.Info("scrub, later or by another node", "disk", d.Name.Value, "at", state.Next, "why", err)
			return false
		}
		if err != nil {
			select {
			case <-time.After(scrubPause):
			case <-n.ctx.Done():
			}
			continue
		}
		if gone == nil {
			if _, wanted := readScrub(now); wanted.Request != state.Taken {
				n.saveScrub(d, state)
				return true // something else has been asked for meanwhile, or nothing any more
			}
		}
		if time.Since(saved) >= scrubSaveEvery {
			n.saveScrub(d, state)
			saved = time.Now()
		}
	}
}

// wait waits until so many bytes may be read by a scrub that nobody waits for.
func (s *scrubs) wait(ctx context.Context, bytes int64) error {
	for ; bytes > 0; bytes -= scrubBurst {
		if err := s.pace.WaitN(ctx, int(min(bytes, scrubBurst))); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) saveScrub(d *crdt.Disk, s scrubState) {
	if err := n.setPolicy(d.ID, policyScrub, s); err != nil {
		n.log.Warn("how far a scrub is cannot be told to the mesh", "disk", d.Name.Value, "err", err)
	}
}

func (n *Node) setPolicy(disk ukai.DiskID, key string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return n.setPolicies(disk, key, string(text))
}

func (n *Node) scrubEvent(name string, run admin.ScrubRun) {
	level := admin.Fine
	switch {
	case run.Unrepaired > 0 && !run.VerifyOnly:
		level = admin.Critical
	case run.Corrupt > 0:
		level = admin.Warn
	}
	n.events.add(admin.Event{Level: level, Kind: "scrub-done", Disk: name, Text: fmt.Sprintf("disk %s was scrubbed in %v: %s", name, run.Ended.Sub(run.Began).Round(time.Second), run)})
}

// ScrubDisk implements admin.Backend.
func (n *Node) ScrubDisk(ctx context.Context, disk string, s admin.ScrubDisk) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	wanted := scrubWanted{Request: ukai.NewReplicaID().String(), VerifyOnly: s.VerifyOnly}
	if err := n.setPolicy(d.ID, policyScrubWanted, wanted); err != nil {
		return admin.Disk{}, fmt.Errorf("scrub disk %s: %w", d.Name.Value, err)
	}
	return n.Disk(ctx, d.ID.String())
}

// scrubJob returns the scrub of a disk as a job: one that runs, or that somebody asked for.
func (n *Node) scrubJob(p people, d tended, out admin.Job) (admin.Job, bool) {
	state, wanted := readScrub(d.Disk)
	next, asked, due := state.due(wanted, d.Born.Stamp.Time(), time.Now(), n.cfg.ScrubEvery)
	if !due || !asked && state.Now.Began.IsZero() {
		return out, false
	}
	out.Kind, out.Since, out.TotalBytes = "scrub", time.Time{}, d.rec.Size
	if begun := next.Now.Began.Equal(state.Now.Began); begun {
		out.Since, out.DoneBytes = state.Now.Began, min(int64(next.Next)*int64(d.rec.BlockSize), d.rec.Size)
	}
	out.State, out.Doing, out.Why = admin.JobWaiting, "what its replicas have is compared", "the node that looks after it has not begun"
	if out.Node.ID == n.id {
		out.Why = fmt.Sprintf("its turn has not come: a node scrubs %d disks at a time that were asked for, and one that was due", maxScrubs)
		if n.scrubs.runs(d.ID) {
			out.State, out.Why = admin.JobRunning, ""
			for _, to := range nodesOf(&d.rec) {
				if out.Why == "" {
					out.Why = n.links.why(d.ID, to, n.id)
				}
			}
		}
	}
	if paused(d.Disk) {
		out.State, out.Why = admin.JobPaused, pausedWhy
	}
	out.Percent = min(percent(out.DoneBytes, out.TotalBytes), 99)
	return out, true
}

// cancelScrub calls off the scrub that was asked for last.
func (n *Node) cancelScrub(d *crdt.Disk) error {
	if state, wanted := readScrub(d); wanted.Request == "" || !wanted.Cancelled.IsZero() || wanted.Request == state.Taken && state.Now.Request == "" {
		return fmt.Errorf("%w: nobody asked for it, it was due, and would be at once again; pause it, or start the nodes with a longer --scrub-every", ukai.ErrRejected)
	}
	return n.setPolicy(d.ID, policyScrubWanted, scrubWanted{Request: ukai.NewReplicaID().String(), Cancelled: time.Now().UTC()})
}

// showScrub tells of the scrubs of a disk, nil if there were none.
func showScrub(d *crdt.Disk, rec *crdt.Record) *admin.Scrub {
	state, wanted := readScrub(d)
	out := admin.Scrub{Asked: wanted.Request, Waiting: wanted.Request != state.Taken, Cancelled: !wanted.Cancelled.IsZero()}
	out.Paused = paused(d) && (out.Waiting || !state.Now.Began.IsZero())
	if !state.Now.Began.IsZero() {
		state.Now.Percent = int(100 * uint64(state.Next) / max(1, rec.Blocks()))
		out.Running = &state.Now
	}
	if !state.Last.Began.IsZero() {
		out.Last = &state.Last
	}
	if out == (admin.Scrub{}) {
		return nil
	}
	return &out
}

// unrepaired returns the scrub that found what is not repaired, if there is anything.
func unrepaired(d *crdt.Disk) (run admin.ScrubRun, rotten bool) {
	state, _ := readScrub(d)
	if run = state.Last; state.Now.Unrepaired > run.Unrepaired {
		run = state.Now
	}
	return run, run.Unrepaired > 0
}

// rottenDisk warns of what scrubs of a disk found and did not repair.
func rottenDisk(d *crdt.Disk) []admin.Warning {
	run, rotten := unrepaired(d)
	if !rotten {
		return nil
	}
	w := admin.Warning{Level: admin.Critical, Code: "corruption", Disk: d.Name.Value,
		Text:   fmt.Sprintf("disk %s: a scrub could not repair all: %s", d.Name.Value, run),
		Remedy: "see which: grep corruption-unrepaired in the logs of the nodes; restore them in the guest, and scrub again"}
	if run.VerifyOnly {
		w.Level, w.Text = admin.Warn, fmt.Sprintf("disk %s: a scrub that changes nothing found corruption: %s", d.Name.Value, run)
		w.Remedy = "ukai-node scrub " + d.Name.Value
	}
	return []admin.Warning{w}
}
