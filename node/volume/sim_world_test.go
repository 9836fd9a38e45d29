package volume

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// One run of the simulator: a seed decides about the mesh, the workload and which faults come how often.

type sWorld struct {
	*sim
	cfg   sConfig
	root  *sScope
	nodes []*sNode
	net   [][]sNet
	disk  ukai.DiskID
	first *crdt.Record

	healed bool
	nonces int
	rids   ukai.ReplicaID

	// What an observer of everything knows.
	votes       map[sBallot]uint
	sets        map[uint32][]ukai.NodeID
	byVersion   map[uint64]string
	holders     map[ukai.Epoch]ukai.Nonce
	lossy       map[ukai.Epoch]bool
	latest      crdt.Record
	activations []sActivation
	ops         []*sOp
	time        int64 // of the histories: every call and return has its own
	ids         sVal
	failed      int // replicas whose disk failed for ever
	regrouped   int // splits and merges
}

// sConfig is what a seed decides.
type sConfig struct {
	mutation string
	nodes    int
	replicas int
	hosts    int
	workers  int // per host
	think    time.Duration
	near     float64 // odds of reading from the holder's own replica
	hot      float64 // of using the first block
	writes   float64 // of an operation to be a write
	zeros    float64 // of a write to be of what there was in the beginning
	minSync  int
	safety   time.Duration

	delay      time.Duration
	loss       float64
	late       float64
	lateBy     time.Duration
	twice      float64
	hiccup     float64 // odds of an access to a disk to take long
	doubt      float64 // of the holder being cut off when a change of the record is decided
	checkEvery time.Duration
	amnesiac   int

	faults []sFault // those of this seed
	admin  []sFault
}

// sFault is something that happens at random times.
type sFault struct {
	name string
	mean time.Duration
	do   func(w *sWorld)
}

func (w *sWorld) broken(mutation string) bool { return w.cfg.mutation == mutation }

func (w *sWorld) tick() int64 { w.time++; return w.time }

func (w *sWorld) node(id ukai.NodeID) *sNode { return w.nodes[int(id[0])-1] }

func (w *sWorld) any() *sNode { return w.nodes[w.rnd.IntN(len(w.nodes))] }

// mayFail says whether the disk of a replica may fail for ever: one does per run, and not the last one in sync.
func (w *sWorld) mayFail(r *sReplica) bool {
	if w.failed > 0 || slices.ContainsFunc(w.latest.Groups, func(g crdt.Group) bool { return g.Count(crdt.InSync) < 2 }) {
		return false
	}
	w.failed++
	return true
}

// sFaults are the faults that there are. Each seed takes some, and decides how often they come.
var sFaults = []sFault{
	{"crash", 6 * time.Second, func(w *sWorld) { w.down(w.any(), false) }},
	{"power", 8 * time.Second, func(w *sWorld) { w.down(w.any(), true) }},
	{"blackout", 20 * time.Second, func(w *sWorld) { // all at once
		for _, n := range w.nodes {
			if w.chance(0.8) {
				w.down(n, true)
			}
		}
	}},
	{"freeze", 8 * time.Second, func(w *sWorld) {
		if n := w.any(); n.up {
			n.frozen = w.now + w.around(3*time.Second)
			w.note("n%d is frozen until %v", n.n, n.frozen)
		}
	}},
	{"isolate", 8 * time.Second, func(w *sWorld) { w.isolate(w.any(), w.around(4*time.Second)) }},
	{"split", 10 * time.Second, func(w *sWorld) {
		until, side := w.now+w.around(5*time.Second), w.rnd.Uint32()
		for i := range w.nodes {
			for j := range w.nodes {
				if side>>i&1 != side>>j&1 {
					w.net[i][j].cut = until
				}
			}
		}
		w.note("split until %v: %b", until, side&(1<<len(w.nodes)-1))
	}},
	{"oneway", 4 * time.Second, func(w *sWorld) {
		a, b := w.any(), w.any()
		w.net[a.n][b.n].cut = w.now + w.around(3*time.Second)
		w.note("n%d does not reach n%d until %v", a.n, b.n, w.net[a.n][b.n].cut)
	}},
	{"flap", 6 * time.Second, func(w *sWorld) {
		a, b := w.any(), w.any()
		for k := range 1 + w.rnd.IntN(8) {
			w.after(time.Duration(k)*w.between(100*time.Millisecond, time.Second), func() {
				w.net[a.n][b.n].cut = w.now + w.between(0, 700*time.Millisecond)
				w.net[b.n][a.n].cut = w.net[a.n][b.n].cut
			})
		}
	}},
	{"lag", 5 * time.Second, func(w *sWorld) {
		a, b := w.any(), w.any()
		w.net[a.n][b.n].extra, w.net[a.n][b.n].late = w.now+w.around(4*time.Second), w.around(300*time.Millisecond)
	}},
	{"slow", 6 * time.Second, func(w *sWorld) {
		n := w.any()
		n.slow = w.around(20 * time.Millisecond)
		w.after(w.around(4*time.Second), func() { n.slow = 0 })
	}},
	{"clock", 5 * time.Second, func(w *sWorld) { w.any().wall = w.around(time.Hour) - 30*time.Minute }},
	{"full", 12 * time.Second, func(w *sWorld) {
		n := w.any()
		n.full = true
		w.note("n%d is full", n.n)
		w.after(w.around(3*time.Second), func() { n.full = false })
	}},
	{"media", 15 * time.Second, func(w *sWorld) { w.any().failing = true }},
}

// sAdmin is what operators do.
var sAdmin = []sFault{
	{"move", 4 * time.Second, func(w *sWorld) { w.move(w.any(), claimAsking, true) }},
	{"takeover", 6 * time.Second, func(w *sWorld) { w.move(w.any(), claimForced, false) }},
	{"coup", 10 * time.Second, func(w *sWorld) { w.coup() }},
	{"relocate", 8 * time.Second, func(w *sWorld) { w.relocate() }},
	{"rearb", 8 * time.Second, func(w *sWorld) { w.rearb() }},
	{"ranges", 3 * time.Second, func(w *sWorld) { w.ranges() }},
}

func newSWorld(seed uint64, mutation string, traced bool) *sWorld {
	rnd := rand.New(rand.NewPCG(seed, 0x5eed))
	w := &sWorld{
		sim: &sim{rnd: rnd, hash: seed}, root: &sScope{}, disk: ukai.DiskID{1}, votes: map[sBallot]uint{}, sets: map[uint32][]ukai.NodeID{},
		byVersion: map[uint64]string{}, holders: map[ukai.Epoch]ukai.Nonce{}, lossy: map[ukai.Epoch]bool{},
	}
	if traced {
		w.trace = &strings.Builder{}
	}
	pick := func(list ...time.Duration) time.Duration { return list[rnd.IntN(len(list))] }
	odds := func(list ...float64) float64 { return list[rnd.IntN(len(list))] }
	c := &w.cfg
	*c = sConfig{
		mutation: mutation, nodes: 3 + rnd.IntN(3), replicas: 2 + rnd.IntN(2), hosts: 2 + rnd.IntN(2), workers: 2 + rnd.IntN(3),
		think: pick(20*time.Millisecond, 60*time.Millisecond, 200*time.Millisecond), near: odds(0, 0.5, 0.9), hot: odds(0, 0.5, 0.9), writes: odds(0.2, 0.5, 0.8), minSync: 1,
		safety: pick(8*time.Second, 15*time.Second, 25*time.Second), delay: pick(100*time.Microsecond, 2*time.Millisecond, 20*time.Millisecond),
		loss: odds(0, 0, 0.001, 0.01), late: odds(0, 0.002, 0.02, 0.1), lateBy: pick(50*time.Millisecond, 500*time.Millisecond, 2*time.Second), twice: odds(0, 0.02),
		hiccup: odds(0, 0.01, 0.05), doubt: odds(0, 0, 0.2, 0.5),
		checkEvery: pick(2*time.Second, 10*time.Second, 60*time.Second),
	}
	if rnd.IntN(4) == 0 {
		c.minSync = 2
	}
	c.amnesiac = rnd.IntN(c.nodes)
	if seed%4 == 3 {
		c.zeros = 0.5
	}
	swarm := func(all []sFault) (some []sFault) {
		for _, f := range all {
			if rnd.IntN(3) == 0 {
				f.mean = time.Duration(float64(f.mean) * odds(0.4, 1, 2))
				some = append(some, f)
			}
		}
		return some
	}
	c.faults, c.admin = swarm(sFaults), swarm(sAdmin)

	rec := crdt.Record{
		Disk: w.disk, Version: 1, MinSync: c.minSync, BlockSize: sBlockSize, Size: sBlocks * sBlockSize, Runs: []crdt.Run{{Count: sBlocks}}, Groups: []crdt.Group{{}},
	}
	for i := range c.nodes {
		n := &sNode{w: w, n: i, id: ukai.NodeID{byte(i + 1)}, rate: 0.99 + 0.02*rnd.Float64()}
		w.nodes = append(w.nodes, n)
		w.net = append(w.net, make([]sNet, c.nodes))
		if i < c.replicas {
			w.rids++
			n.create(w.rids)
			rec.Groups[0].Members = append(rec.Groups[0].Members, crdt.Member{Replica: w.rids, Node: n.id, Role: crdt.InSync})
		}
	}
	rec.Arbiters = w.someArbiters()
	w.first = &rec
	w.latest = rec.Clone()
	w.sets[0] = rec.Arbiters
	w.byVersion[1] = w.encoded(&rec)
	for _, id := range rec.Arbiters {
		n := w.node(id)
		n.arbiters = append(n.arbiters, &sArbiter{*cell.NewAcceptor(n.id, w.disk, 0)})
		n.arbiters[0].dur.Step(cell.Request{Kind: cell.Init, Disk: w.disk, Record: &rec})
	}
	for _, n := range w.nodes {
		n.view = rec
		n.boot()
	}
	return w
}

func (w *sWorld) encoded(rec *crdt.Record) string {
	data, err := rec.Encode()
	if err != nil {
		w.fail("%v", err)
	}
	return string(data)
}

// someArbiters picks three or five machines.
func (w *sWorld) someArbiters() []ukai.NodeID {
	ids := make([]ukai.NodeID, len(w.nodes))
	for i := range ids {
		ids[i] = ukai.NodeID{byte(i + 1)}
	}
	w.rnd.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	if len(ids) < 5 || w.rnd.IntN(2) == 0 {
		ids = ids[:3]
	}
	slices.SortFunc(ids, func(a, b ukai.NodeID) int { return int(a[0]) - int(b[0]) })
	return ids
}

// down ends a machine's process or its power, and boots it again after a while.
func (w *sWorld) down(n *sNode, power bool) {
	if !n.up {
		return
	}
	n.crash(power)
	w.after(w.between(20*time.Millisecond, 200*time.Millisecond)+w.around(2*time.Second), func() {
		if !n.up {
			n.boot()
		}
	})
}

// move brings the virtual machine to another host, with or without the consent of the one before.
func (w *sWorld) move(to *sNode, how claiming, handover bool) {
	if !to.up || to.attaching || to.n >= w.cfg.hosts {
		return
	}
	to.attaching = true
	w.spawn(to.scope, func() {
		defer func() { to.attaching = false }()
		if handover {
			for _, n := range w.nodes {
				if n != to && n.up && n.wanted {
					n.wanted = false
					_, _ = w.wait(w.call(to, n, false, func() (any, error) {
						w.lock(&n.turn)
						defer w.unlock(&n.turn)
						return nil, n.release()
					}), w.now+12*time.Second)
				}
			}
		}
		to.wanted = true
		if err := to.become(how); err != nil {
			to.wanted = false
			w.note("n%d does not get the disk: %v", to.n, err)
		}
	})
}

// isolate cuts all links of a machine for a while.
func (w *sWorld) isolate(n *sNode, d time.Duration) {
	until := w.now + d
	for i := range w.nodes {
		w.net[n.n][i].cut, w.net[i][n.n].cut = until, until
	}
	w.note("n%d is isolated until %v", n.n, until)
}

// coup isolates the holder and has another host take the disk over meanwhile.
func (w *sWorld) coup() {
	n := w.serving()
	if n == nil || w.healed {
		return
	}
	w.isolate(n, w.between(time.Second, 10*time.Second))
	w.after(w.around(500*time.Millisecond), func() { w.move(w.nodes[w.rnd.IntN(w.cfg.hosts)], claimForced, false) })
}

// serving returns the machine that serves the newest epoch, or nil.
func (w *sWorld) serving() *sNode {
	for _, n := range w.nodes {
		if n.up && n.hold != nil && n.hold.over == nil && n.hold.epoch == w.latest.Epoch && w.latest.Phase == crdt.PhaseActive {
			return n
		}
	}
	return nil
}

// relocate has the holder bring one replica of some blocks to a machine that has none of them.
func (w *sWorld) relocate() {
	n := w.serving()
	if n == nil {
		return
	}
	g := &w.latest.Groups[w.rnd.IntN(len(w.latest.Groups))]
	var free []*sNode
	for _, c := range w.nodes {
		on := w.latest.ReplicasOn(c.id)
		serves := len(on) > 0 && g.Member(on[0]) != nil
		if c.up && !serves && (len(on) > 0 || !slices.ContainsFunc(c.replicas, func(r *sReplica) bool { return !r.gone })) {
			free = append(free, c)
		}
	}
	group, members := g.ID, slices.Clone(g.Members)
	if len(free) == 0 || len(members) > w.cfg.replicas {
		return
	}
	to, old, h := free[w.rnd.IntN(len(free))], members[w.rnd.IntN(len(members))].Replica, n.hold
	keep := len(members) < w.cfg.replicas // it lost one for good
	var rid ukai.ReplicaID
	if on := w.latest.ReplicasOn(to.id); len(on) > 0 {
		rid = on[0]
	} else {
		w.rids++
		rid = w.rids
	}
	w.note("n%d relocates replica %d of group %d to n%d as replica %d", n.n, old, group, to.n, rid)
	w.spawn(h.scope, func() {
		if to.replica(rid) == nil {
			if _, err := w.wait(w.call(n, to, false, func() (any, error) { to.create(rid); return nil, nil }), w.now+sealWait); err != nil {
				return
			}
		}
		if h.join(group, crdt.Member{Replica: rid, Node: to.id}, false) != nil {
			return
		}
		for until := w.now + 30*time.Second; !inSyncIn(&h.sets.known, rid, []uint8{group}); {
			if w.now >= until {
				_ = h.retire(group, rid)
				return
			}
			w.await(&h.changed, until)
		}
		named := func() bool { g := h.sets.known.Group(group); return g != nil && g.Member(old) != nil }
		for !keep && named() && h.retire(group, old) != nil && h.over == nil {
			w.sleep(time.Second)
		}
	})
}

// ranges has the holder give blocks replicas of their own, have fewer replicas of some, or treat blocks with the same replicas as one again.
func (w *sWorld) ranges() {
	n := w.serving()
	if n == nil {
		return
	}
	h, rec := n.hold, &w.latest
	a := rec.Groups[w.rnd.IntN(len(rec.Groups))].ID
	b := rec.Groups[w.rnd.IntN(len(rec.Groups))].ID
	kind, block := w.rnd.IntN(4), ukai.Index(w.rnd.IntN(sBlocks))
	member := w.rnd.IntN(8)
	change := func(known *crdt.Record) (cell.Change, error) {
		if kind < 2 && a != b {
			return cell.Merge{Epoch: h.epoch, Version: known.Version, Group: a, Into: b}, nil
		}
		into, err := known.FreeGroup()
		return cell.Split{Epoch: h.epoch, Version: known.Version, Group: known.GroupOf(block).ID, Blocks: []ukai.Range{{First: block, Count: 1}}, Into: into}, err
	}
	if g := rec.Group(a); kind == 3 && g.Count(crdt.InSync) > max(1, rec.MinSync) {
		m := g.Members[member%len(g.Members)].Replica
		w.note("n%d has replica %d leave group %d", n.n, m, a)
		w.spawn(h.scope, func() { _ = h.retire(a, m) })
		return
	}
	w.spawn(h.scope, func() {
		err := h.alter(change)
		if err == nil {
			w.regrouped++
		}
		w.note("n%d splits or merges groups: %v", n.n, err)
	})
}

// rearb replaces the arbiters.
func (w *sWorld) rearb() {
	n, set := w.any(), w.someArbiters()
	if n.up {
		w.spawn(n.scope, func() {
			_, _ = n.propose(cell.Rearb{Instance: n.view.Instance, Arbiters: set})
		})
	}
}

// happen has faults and operators at work until the mesh is healed.
func (w *sWorld) happen(f sFault) {
	w.after(w.around(f.mean), func() {
		if !w.healed {
			w.note("# %s", f.name)
			f.do(w)
			w.happen(f)
		}
	})
}

// heal ends all faults.
func (w *sWorld) heal() {
	w.healed = true
	w.note("# all is healed")
	w.cfg.loss, w.cfg.late = 0, 0
	for i := range w.net {
		clear(w.net[i])
	}
	for _, n := range w.nodes {
		n.frozen, n.slow, n.full, n.failing = min(n.frozen, w.now), 0, false, false
		if !n.up {
			n.boot()
		}
	}
}

// converged says whether one host serves the disk and every replica whose disk works is in sync.
func (w *sWorld) converged() bool {
	n := w.serving()
	if n == nil || n.hold.sets.inDoubt() || slices.ContainsFunc(n.hold.view.all, func(m *sMember) bool { return m.link == nil }) {
		return false
	}
	for i := range w.latest.Groups {
		for _, m := range w.latest.Groups[i].Members {
			if r := w.node(m.Node).replica(m.Replica); r != nil && !r.broken && m.Role != crdt.InSync {
				return false
			}
		}
	}
	return true
}

// hopelessly says that what is left in sync of some blocks has failed for ever: no protocol can bring that back.
func (w *sWorld) hopelessly() bool {
	return slices.ContainsFunc(w.latest.Groups, func(g crdt.Group) bool {
		return !slices.ContainsFunc(g.InSync(), func(m crdt.Member) bool {
			r := w.node(m.Node).replica(m.Replica)
			return r != nil && !r.broken
		})
	})
}

const convergeWithin = 15 * time.Minute

// simulate runs one seed and returns what was violated, or "".
func (w *sWorld) simulate() {
	defer w.close(w.root)
	for _, f := range w.cfg.faults {
		w.happen(f)
	}
	for _, f := range w.cfg.admin {
		w.happen(f)
	}
	w.keepAttached()
	w.run(w.cfg.safety, nil)
	w.heal()
	until := w.now + convergeWithin
	w.run(w.now+2*time.Second, nil) // reads of what is there now
	for calm := false; !calm && w.wrong == "" && !w.hopelessly(); calm = w.converged() {
		if !w.run(until, w.converged) && w.wrong == "" && !w.hopelessly() {
			w.fail("not converged %v after all faults have ended: %s", convergeWithin, sMembers(&w.latest))
		}
		w.run(w.now+5*time.Second, nil) // or nobody has noticed yet that something is amiss
	}
	w.inspect()
	w.settle()
	if w.wrong == "" {
		w.checkHistories()
	}
}

// keepAttached has some host attach the disk whenever nobody has.
func (w *sWorld) keepAttached() {
	w.after(w.between(0, 3*time.Second), func() {
		if w.serving() == nil && !slices.ContainsFunc(w.nodes, func(n *sNode) bool { return n.attaching && n.up }) {
			how := claimAsking
			if w.healed || w.chance(0.5) {
				how = claimForced
			}
			w.move(w.nodes[w.rnd.IntN(w.cfg.hosts)], how, false)
		}
		w.keepAttached()
	})
}

// settle reads everything through the holder once the guests are still, and compares the in-sync replicas.
func (w *sWorld) settle() {
	n := w.serving()
	if n == nil || w.wrong != "" || w.hopelessly() {
		return
	}
	h, done := n.hold, false
	h.closing = true
	w.spawn(n.scope, func() {
		for h.ops > 0 && h.over == nil && !h.view.suspended { // for ever, if the disk of a replica has failed
			w.await(&h.idle, sForever)
		}
		for i := range sSectors {
			n.readOp(h, i, i+1)
		}
		done = true
	})
	if !w.run(w.now+time.Minute, func() bool { return done }) {
		if w.wrong == "" && h.over == nil {
			w.fail("requests hang though all is healed")
		}
		return
	}
	if h.over != nil {
		return // let go meanwhile
	}
	for b := range sBlocks {
		var first *sReplica
		at := func(r *sReplica) []sVal { return r.mem[b*sPerBlock : (b+1)*sPerBlock] }
		for _, m := range w.latest.GroupOf(ukai.Index(b)).InSync() {
			r := w.node(m.Node).replica(m.Replica)
			switch {
			case r == nil || r.broken || r.unclean: // I4: an unclean one may lack what was not flushed
			case first == nil:
				first = r
			case !slices.Equal(at(first), at(r)):
				w.fail("I5: replicas %d and %d are in sync and differ at rest in block %d: %v and %v", first.rid, r.rid, b, at(first), at(r))
			}
		}
	}
}
