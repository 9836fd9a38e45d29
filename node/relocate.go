package node

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/cell"
	"ukai/node/place"
)

const (
	// tendEvery is how often a node looks at most for disks that are not as they should be: when something has changed in the mesh. Looking at
	// all disks costs milliseconds where there are thousands, so without news it waits for tendAtLeast.
	tendEvery   = time.Second
	tendAtLeast = 10 * time.Second
	// maxRelocations bounds the disks that a node relocates at the same time; more wait.
	maxRelocations = 2
	// Pauses after a step that failed.
	minRelocatePause = 2 * time.Second
	maxRelocatePause = 2 * time.Minute
	// makeTime bounds the making of a replica. A node whose medium hangs does not answer, though it is alive.
	makeTime = time.Minute
	// unmetPause is how long a rule that cannot be met is left alone: space that became free is no news of the mesh.
	unmetPause = time.Minute
)

// relocations is what this node does to bring disks to where their rules want them. The state of a relocation is the disk's record and its
// rule, which the mesh keeps: whoever looks next goes on with the step that is next.
type relocations struct {
	mu      sync.Mutex
	running map[ukai.DiskID]string // what is being done
	failed  map[ukai.DiskID]relocateFailure
	settled map[ukai.DiskID]settledFor
	made    map[diskNode]made
	orders  map[ukai.DiskID]crdt.Stamp // the last that was obeyed
	told    map[ukai.DiskID]allocation
}

// diskNode is the place of a replica.
type diskNode struct {
	disk ukai.DiskID
	node ukai.NodeID
}

// made is when a replica was last made in a place, or was not because the node's store failed or hangs.
type made struct {
	at     time.Time
	failed bool
}

// remakeAfter is how long a node gets no other replica of a disk after one that was lost there: a disk that fails fails again.
const remakeAfter = 10 * time.Minute

func newRelocations() relocations {
	return relocations{
		running: map[ukai.DiskID]string{}, failed: map[ukai.DiskID]relocateFailure{}, settled: map[ukai.DiskID]settledFor{}, made: map[diskNode]made{},
		orders: map[ukai.DiskID]crdt.Stamp{}, told: map[ukai.DiskID]allocation{},
	}
}

// settledFor is what a disk was planned for when nothing was to be done. As long as it is all the same there is nothing to plan.
type settledFor struct {
	version uint64
	rule    string
	fewer   bool
	nodes   uint64
	lost    int // replicas that are to be replaced
}

// relocateFailure is why a disk's next step was not done, and when to try again.
type relocateFailure struct {
	err   error
	pause time.Duration
	until time.Time
}

// tend has the disks relocated and scrubbed, and the replicas brought back, that are this node's to look after, until the node stops.
func (n *Node) tend() {
	changed, cancel := n.mesh.Subscribe()
	defer cancel()
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	maintained, unused := map[ukai.DiskID]time.Time{}, map[ukai.DiskID]time.Time{}
	var looked time.Time
	open := false // jobs whose progress is to be told
	for news := true; ; {
		select {
		case <-n.ctx.Done():
			return
		case <-changed:
			news = true
			continue
		case <-tick.C:
		}
		if !news && !open && time.Since(looked) < tendAtLeast || n.fit() != nil {
			continue
		}
		news, looked = false, time.Now()
		p := n.people()
		var disks []tended
		n.eachLive(func(d *crdt.Disk, rec crdt.Record) { disks = append(disks, tended{d, rec}) })
		open = n.relocate(p, disks, unused)
		n.maintain(p, disks, maintained)
		n.scrub(p, disks)
	}
}

// tended is a disk that a node looks at.
type tended struct {
	*crdt.Disk
	rec crdt.Record
}

// relocate begins the next step of each disk that is this node's to relocate, and says whether one of them has a job that was begun, or waits to be planned.
// unused is what follow keeps.
func (n *Node) relocate(p people, disks []tended, unused map[ukai.DiskID]time.Time) (begun bool) {
	nodes := p.candidates()
	facts := fingerprint(nodes, n.repairAfter())
	mine := map[ukai.DiskID]bool{}
	var planning *planning
	for _, d := range disks {
		if !n.relocates(p, d.rec) {
			continue
		}
		mine[d.ID] = true
		want := n.follow(p, d, unused)
		if n.obey(d) || want.text == "" {
			continue
		}
		if _, open := jobOf(d.Disk, want); open {
			begun = true
		}
		seen := settledFor{d.rec.Version, want.all(), want.fewer, facts, n.lost(d.ID)}
		if due, settled := n.relocations.due(d.ID, seen); !due {
			if settled {
				n.followJob(d, want, place.Plan{})
			}
			continue
		}
		if !n.askAllocated(p, d.rec) {
			begun = true // it is looked at again soon
			continue
		}
		if planning == nil {
			planning = n.planning(nodes)
		}
		plan, err := planning.plan(want, d.rec)
		if err != nil {
			continue
		}
		n.followJob(d, want, plan)
		switch {
		case len(plan.Steps) == 0 || plan.Steps[0].Waits:
			n.relocations.rest(d.ID, seen, plan.Unmet == "")
		case n.relocations.begin(d.ID, n.told(p, plan.Steps[0])):
			if !n.spawn(func() { n.beginJob(d, want, plan); n.carryOut(d.Disk, d.rec, plan.Steps[0]) }) {
				n.relocations.end(d.ID, nil)
			}
		}
	}
	n.relocations.keep(mine)
	maps.DeleteFunc(unused, func(id ukai.DiskID, _ time.Time) bool { return !mine[id] })
	return begun
}

// fingerprint tells apart what plans depend on about nodes, but for their free space, which changes all the time and alone is no reason
// to move anything.
func fingerprint(nodes []place.Node, repairAfter time.Duration) uint64 {
	var h maphash.Hash
	h.SetSeed(fingerprintSeed)
	slices.SortFunc(nodes, func(a, b place.Node) int { return slices.Compare(a.ID[:], b.ID[:]) })
	for _, x := range nodes {
		long := !x.Alive && repairAfter > 0 && time.Since(x.DownSince) >= repairAfter
		fmt.Fprintf(&h, "%s %q %s %t %t %t %t %t\n", x.ID, x.Name, x.Labels, x.Witness, x.Drain, x.NoNew, x.Alive, long)
	}
	return h.Sum64()
}

var fingerprintSeed = maphash.MakeSeed()

// relocates says whether a disk's relocation is this node's to do: the holder's, or if nobody holds it, or its holder is long gone, that of the first
// node, by id, with an in-sync replica.
func (n *Node) relocates(p people, rec crdt.Record) bool {
	return (rec.Phase != crdt.PhaseRecovering || p.abandoned(rec)) && n.doer(p, rec) == n.id
}

// lost counts the replicas of a disk that are to be replaced.
func (n *Node) lost(disk ukai.DiskID) (count int) {
	for _, age := range n.host.Lost(disk) {
		if age >= place.LostAfter {
			count++
		}
	}
	return count
}

// caretaker returns the node that looks after a disk which nobody holds: the first, by id, with an in-sync replica.
func caretaker(p people, rec crdt.Record) (first ukai.NodeID, ok bool) {
	for i := range rec.Groups {
		for _, m := range rec.Groups[i].InSync() {
			if p.alive(m.Node) && (!ok || slices.Compare(m.Node[:], first[:]) < 0) {
				first, ok = m.Node, true
			}
		}
	}
	return first, ok
}

// planning plans for many disks at one look at the mesh.
type planning struct {
	n       *Node
	nodes   []place.Node
	planner *place.Planner
}

func (n *Node) planning(nodes []place.Node) *planning {
	return &planning{n, nodes, place.NewPlanner(nodes, n.mesh.Estimate, time.Now(), n.repairAfter())}
}

// plan plans a disk's relocation. The plan has no reasons.
func (l *planning) plan(want wish, rec crdt.Record) (place.Plan, error) {
	if want.err != nil {
		return place.Plan{}, want.err
	}
	in, others := l.n.planned(want, rec, l.nodes)
	in.Allocated = l.n.allocated(&rec)
	if others {
		return place.Relocate(in)
	}
	l.planner.Lost, l.planner.Fewer, l.planner.Ranges, l.planner.Kept = in.Lost, in.Fewer, in.Ranges, in.Kept
	return l.planner.Plan(want.rule, rec, in.Allocated)
}

// planned is what a plan is made from, but for what is allocated. others says that it has other nodes than those given: some take no new
// replica of this disk.
func (n *Node) planned(want wish, rec crdt.Record, nodes []place.Node) (in place.Input, others bool) {
	in = place.Input{
		Rule: want.rule, Ranges: want.ranges, Fewer: want.fewer, Rec: rec, Nodes: nodes, Near: n.mesh.Estimate, Now: time.Now(), RepairAfter: n.repairAfter(), Lost: map[ukai.ReplicaID]time.Time{},
	}
	if want.keep {
		in.Kept = want.kept.bytes()
	}
	for r, age := range n.host.Lost(rec.Disk) {
		in.Lost[r] = in.Now.Add(-age)
	}
	in.Nodes, others = n.relocations.without(in)
	return in, others
}

// told puts a step into words.
func (n *Node) told(p people, s place.Step) string {
	blocks, of := place.Ranges(s.Blocks), ""
	if len(s.Blocks) > 0 {
		of = " of blocks " + blocks
	}
	switch s.Kind {
	case place.AddReplica:
		if s.Replica != 0 {
			return fmt.Sprintf("the replica on %s gets blocks %s, too", p.ref(s.Node), blocks)
		}
		text := fmt.Sprintf("a replica%s is made on %s", of, p.ref(s.Node))
		if s.Reuses > 0 {
			text += " of the old copy there"
		}
		return text
	case place.DropReplica:
		return fmt.Sprintf("the replica%s on %s is dropped: %s", of, p.ref(s.Node), s.Why)
	case place.SetMinSync:
		return fmt.Sprintf("writes go on with %d replicas in sync", s.MinSync)
	case place.SplitGroup:
		return fmt.Sprintf("blocks %s are placed by themselves from now on", blocks)
	case place.MergeGroup:
		return fmt.Sprintf("blocks %s are placed together with those that have the same replicas", blocks)
	case place.MoveArbiters:
	}
	return fmt.Sprintf("the quorum record moves to %s: %s", strings.Join(refs(p, s.Arbiters), ", "), s.Why)
}

func refs(p people, ids []ukai.NodeID) []string {
	var list []string
	for _, id := range ids {
		list = append(list, p.ref(id).String())
	}
	slices.Sort(list)
	return list
}

// carryOut does one step.
func (n *Node) carryOut(d *crdt.Disk, rec crdt.Record, s place.Step) {
	what := n.told(n.people(), s)
	n.log.Info("relocation", "disk", d.Name.Value, "step", what)
	err := n.step(n.ctx, d, rec, s)
	pause := n.relocations.end(d.ID, err)
	switch {
	case n.ctx.Err() != nil:
	case err == nil:
		n.events.add(admin.Event{Level: admin.Fine, Kind: "relocation-step", Disk: d.Name.Value, Node: hearsay{n}.NodeName(s.Node), Text: fmt.Sprintf("disk %s: done: %s", d.Name.Value, what)})
	case errors.Is(err, ukai.ErrHeld), errors.Is(err, ukai.ErrRejected), errors.Is(err, ukai.ErrNotAttached):
		n.log.Info("relocation, once more", "disk", d.Name.Value, "step", what, "why", err) // somebody else holds the disk now, or changed its record
	default:
		n.events.add(admin.Event{Level: admin.Warn, Kind: "relocation-failed", Disk: d.Name.Value, Node: hearsay{n}.NodeName(s.Node),
			Text: fmt.Sprintf("disk %s: not done, tried again in %v: %s: %v", d.Name.Value, pause.Round(time.Second), what, err)})
	}
}

func (n *Node) step(ctx context.Context, d *crdt.Disk, rec crdt.Record, s place.Step) error {
	disk := n.host.Disk(d.ID, d.Name.Value)
	switch s.Kind {
	case place.AddReplica:
		if s.Replica != 0 { // it serves other blocks already
			return disk.AddReplica(ctx, s.Group, s.Replica, s.Node)
		}
		m := crdt.Member{Replica: ukai.NewReplicaID(), Node: s.Node}
		making, cancel := context.WithTimeout(ctx, makeTime)
		err := n.makeReplica(making, rec, m, wishOf(d).keep)
		hangs := err != nil && errors.Is(making.Err(), context.DeadlineExceeded)
		cancel()
		if err == nil || hangs || errors.Is(err, ukai.ErrMedia) {
			n.relocations.noteMade(d.ID, s.Node, err == nil)
		}
		if err != nil {
			return err
		}
		// It is filled by the disk's holder, like one that returns. If the outcome is not known the empty replica stays: the record may name it.
		err = disk.AddReplica(ctx, s.Group, m.Replica, m.Node)
		if errors.Is(err, ukai.ErrRejected) || errors.Is(err, ukai.ErrNoQuorum) || errors.Is(err, ukai.ErrHeld) {
			err = errors.Join(err, n.unmakeReplica(ctx, rec.Disk, m))
		}
		return err
	case place.DropReplica:
		return disk.Drop(ctx, s.Group, s.Replica, s.InSync)
	case place.SetMinSync:
		_, err := n.cells.Propose(ctx, d.ID, cell.Safety{Version: rec.Version, MinSync: s.MinSync, OnLoss: rec.OnLoss, Ack: rec.Ack})
		return err
	case place.SplitGroup:
		return disk.Split(ctx, s.Group, s.Blocks, s.Into)
	case place.MergeGroup:
		return disk.Merge(ctx, s.Group, s.Into)
	case place.MoveArbiters:
	}
	_, err := n.cells.Propose(ctx, d.ID, cell.Rearb{Instance: rec.Instance, Arbiters: s.Arbiters, Quorum: rec.Quorum, Preferred: rec.Preferred})
	return err
}

// noteMade notes that a replica of a disk was made on a node, or that the node's store failed to.
func (r *relocations) noteMade(disk ukai.DiskID, node ukai.NodeID, works bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made[diskNode{disk, node}] = made{time.Now(), !works}
}

// without returns the nodes of a plan, and whether they are others than they were: those whose store has failed lately take no new replica of its
// disk.
func (r *relocations) without(in place.Input) (nodes []place.Node, others bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	nodes = in.Nodes
	for i := range nodes {
		m, ok := r.made[diskNode{in.Rec.Disk, nodes[i].ID}]
		if !ok || in.Now.Sub(m.at) >= remakeAfter || !m.failed && !lostOn(&in, nodes[i].ID) {
			continue
		}
		if !others {
			nodes, others = slices.Clone(nodes), true
		}
		nodes[i].NoNew = true
	}
	return nodes, others
}

// lostOn says whether a replica on a node has been lost.
func lostOn(in *place.Input, node ukai.NodeID) bool {
	for i := range in.Rec.Groups {
		for _, m := range in.Rec.Groups[i].Members {
			if _, lost := in.Lost[m.Replica]; lost && m.Node == node {
				return true
			}
		}
	}
	return false
}

// due says whether it is to be looked what a disk's next step is; settled, that there is none.
func (r *relocations) due(disk ukai.DiskID, seen settledFor) (due, settled bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	settled = r.settled[disk] == seen
	return r.running[disk] == "" && !settled && !time.Now().Before(r.failed[disk].until), settled
}

// ordered notes an administrator's order about a disk, and says whether it is a new one: what failed is tried again at once then.
func (r *relocations) ordered(disk ukai.DiskID, at crdt.Stamp) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.orders[disk] == at {
		return false
	}
	r.orders[disk] = at
	delete(r.failed, disk)
	return true
}

// state returns what is being done for a disk here now, or else how that failed the last time.
func (r *relocations) state(disk ukai.DiskID) (doing string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running[disk], r.failed[disk].err
}

// rest notes that there is nothing to be done: until something changes, or if the rule is not met, for a while.
func (r *relocations) rest(disk ukai.DiskID, seen settledFor, met bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !met {
		r.failed[disk] = relocateFailure{until: time.Now().Add(unmetPause)}
		return
	}
	r.settled[disk] = seen
	delete(r.failed, disk)
}

// begin notes that a step begins, if there is room.
func (r *relocations) begin(disk ukai.DiskID, doing string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[disk] != "" || len(r.running) >= maxRelocations {
		return false
	}
	r.running[disk] = doing
	return true
}

// end notes the outcome of a step, and returns how long the next is put off.
func (r *relocations) end(disk ukai.DiskID, err error) (pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, disk)
	if err == nil {
		delete(r.failed, disk)
		return 0
	}
	pause = min(max(2*r.failed[disk].pause, minRelocatePause), maxRelocatePause)
	r.failed[disk] = relocateFailure{err: err, pause: pause, until: time.Now().Add(pause/2 + rand.N(pause/2))}
	return pause
}

// keep forgets what is known of disks that are not this node's to relocate any more.
func (r *relocations) keep(mine map[ukai.DiskID]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.failed, func(id ukai.DiskID, _ relocateFailure) bool { return !mine[id] })
	maps.DeleteFunc(r.settled, func(id ukai.DiskID, _ settledFor) bool { return !mine[id] })
	maps.DeleteFunc(r.made, func(at diskNode, m made) bool { return !mine[at.disk] || time.Since(m.at) >= remakeAfter })
	maps.DeleteFunc(r.orders, func(id ukai.DiskID, _ crdt.Stamp) bool { return !mine[id] })
	maps.DeleteFunc(r.told, func(id ukai.DiskID, _ allocation) bool { return !mine[id] })
}

// doing says what is done about a disk here now, or why nothing is.
func (r *relocations) doing(disk ukai.DiskID) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if doing := r.running[disk]; doing != "" {
		return doing
	}
	if f := r.failed[disk]; f.err != nil {
		return fmt.Sprintf("tried again at %s, the last try: %v", f.until.UTC().Format(time.TimeOnly), f.err)
	}
	return ""
}
