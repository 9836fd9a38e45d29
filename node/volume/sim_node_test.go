package volume

import (
	"fmt"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// Machines, the network between them, and the replicas on their disks.

// sNode is one machine: what survives a crash of its process, what survives a power loss, and the process.
type sNode struct {
	w           *sWorld
	n           int
	id          ukai.NodeID
	up          bool
	frozen      time.Duration // until then its process does not run
	rate        float64       // of its clock
	wall        time.Duration // its wall clock is off by this
	slow        time.Duration // added to every access to its disk
	full        bool
	failing     bool // the next write or sync fails, and the replica with it for ever
	incarnation byte

	arbiters []*sArbiter
	replicas []*sReplica

	// Of the process:
	scope     *sScope
	view      crdt.Record // the newest record gossip has brought
	cellLock  sLock
	turn      sLock
	hold      *sHold
	wanted    bool // a virtual machine on this node has the disk attached
	attaching bool
}

// clock is the boot-time clock: it goes on while the process is frozen.
func (n *sNode) clock() time.Duration { return time.Duration(float64(n.w.now) * n.rate) }

// until returns when this node's clock shows a time.
func (n *sNode) until(t time.Duration) time.Duration {
	return time.Duration(float64(t)/n.rate) + time.Microsecond
}

func (n *sNode) boot() {
	w := n.w
	n.up, n.scope = true, &sScope{up: w.root, node: n}
	n.hold, n.turn, n.cellLock, n.wanted, n.attaching = nil, sLock{}, sLock{}, false, false
	for _, r := range n.replicas {
		r.admission = &sAdmission{fence: fence{epoch: r.epoch}}
		r.confirmed = n.clock()
		r.control = sLock{}
	}
	w.spawn(n.scope, n.gossip)
	w.spawn(n.scope, n.collect)
	for range w.cfg.workers {
		w.spawn(n.scope, n.work)
	}
	w.note("n%d boots", n.n)
}

// crash ends the process at once; power says that the machine loses what is not on stable storage, too.
func (n *sNode) crash(power bool) {
	w := n.w
	if n.up {
		w.kill(n.scope)
		n.up, n.frozen = false, 0
		if n.hold != nil && n.hold.over == nil {
			n.hold.over = ukai.ErrClosed
		}
		w.note("n%d crashes, power lost: %v", n.n, power)
	}
	if !power {
		return
	}
	n.incarnation++
	for _, r := range n.replicas {
		r.powerLoss()
	}
	for _, a := range n.arbiters {
		if w.broken("amnesia") && w.cfg.amnesiac == n.n {
			a.dur = *cell.NewAcceptor(n.id, w.disk, a.dur.Instance())
			a.dur.Step(cell.Request{Kind: cell.Init, Disk: w.disk, Instance: a.dur.Instance(), Record: w.first})
		}
	}
}

// The network.

// sNet is how one direction between two machines behaves.
type sNet struct {
	cut   time.Duration // until then nothing arrives
	extra time.Duration // and until then everything is late by
	late  time.Duration // this
}

// carry takes something from one machine to another, late, or never.
func (w *sWorld) carry(from, to *sNode, f func()) {
	if from == to {
		w.after(w.between(0, 20*time.Microsecond), f)
		return
	}
	net := &w.net[from.n][to.n]
	if net.cut > w.now || w.chance(w.cfg.loss) {
		return
	}
	d := w.cfg.delay + w.around(w.cfg.delay/2)
	if net.extra > w.now {
		d += net.late
	}
	if w.chance(w.cfg.late) {
		d += w.around(w.cfg.lateBy)
	}
	w.after(d, f)
}

// sCall is a request under way.
type sCall struct {
	over bool
	err  error
	rep  any
	sent time.Duration
	wait sSignal
	// The range of a mutation; see sLink.open.
	off, end int64
}

func (w *sWorld) finish(c *sCall, rep any, err error) {
	if c.over {
		return
	}
	c.over, c.rep, c.err = true, rep, err
	w.broadcast(&c.wait)
}

// connectionDies is after which time what was sent into the void is known to be lost: the connection is.
const connectionDies = 10 * time.Second

// call has another machine, or this one, handle a request. One that repeats harmlessly may arrive twice.
func (w *sWorld) call(from, to *sNode, repeats bool, handle func() (any, error)) *sCall {
	c := &sCall{sent: w.now}
	asker := from.scope
	w.after(connectionDies, func() { w.finish(c, nil, ukai.ErrUnreachable) })
	arrive := func() {
		if !to.up {
			w.carry(to, from, func() { w.finish(c, nil, ukai.ErrUnreachable) })
			return
		}
		w.spawn(to.scope, func() {
			rep, err := handle()
			w.carry(to, from, func() {
				if !asker.over() {
					w.finish(c, rep, err)
				}
			})
		})
	}
	w.carry(from, to, arrive)
	if repeats && w.chance(w.cfg.twice) {
		w.carry(from, to, arrive)
	}
	return c
}

// wait returns the answer, or ErrTimeout at a time.
func (w *sWorld) wait(c *sCall, until time.Duration) (any, error) {
	for !c.over {
		if w.now >= until {
			w.finish(c, nil, ukai.ErrTimeout)
			break
		}
		w.await(&c.wait, until)
	}
	return c.rep, c.err
}

// Replicas.

// Sectors that are simulated: so many per block, at these places in it. They lie in three chunks, two in one of them.
const sPerBlock = 4

var sPlaces = [sPerBlock]int64{0, 512, 1 * ukai.ChunkSize, 9 * ukai.ChunkSize}

func sOff(sector int) int64 { return int64(sector/sPerBlock)*sBlockSize + sPlaces[sector%sPerBlock] }

const (
	sBlocks    = 3
	sSectors   = sBlocks * sPerBlock
	sBlockSize = ukai.MinBlockSize
)

// sRange returns the sectors that lie in a range of bytes.
func sRange(off, end int64) (from, to int) {
	for from = 0; from < sSectors && sOff(from) < off; from++ {
	}
	for to = from; to < sSectors && sOff(to) < end; to++ {
	}
	return from, to
}

// sVal is what a sector holds: the operation that wrote it.
type sVal uint32

// sReplica is a replica on a disk, and its fence.
type sReplica struct {
	node *sNode
	rid  ukai.ReplicaID

	mem, dur      [sSectors]sVal
	memAt, durAt  [sSectors]uint64 // when written, in changes
	changes       uint64
	stamp         [sBlocks]ukai.BlockStamp
	stampDur      [sBlocks]ukai.BlockStamp
	epoch         ukai.Epoch // durable
	stable        ukai.BlockStamp
	stableDur     ukai.BlockStamp
	unclean       bool
	broken        bool // its disk failed
	retired, gone bool

	admission *sAdmission
	control   sLock
	confirmed time.Duration // hosted.confirmed
}

// sAdmission is admission.
type sAdmission struct {
	fence
	running int
	closed  bool
	left    sSignal
}

func (n *sNode) replica(rid ukai.ReplicaID) *sReplica {
	for _, r := range n.replicas {
		if r.rid == rid && !r.gone {
			return r
		}
	}
	return nil
}

func (n *sNode) create(rid ukai.ReplicaID) *sReplica {
	r := &sReplica{node: n, rid: rid, admission: &sAdmission{}, confirmed: n.clock()}
	n.replicas = append(n.replicas, r)
	return r
}

// powerLoss leaves of what was not synced all, nothing, or any part.
func (r *sReplica) powerLoss() {
	w := r.node.w
	kept := [...]float64{0, 0, 0.5, 1}[w.rnd.IntN(4)]
	for i := range r.mem {
		if r.durAt[i] < r.memAt[i] && !w.chance(kept) {
			r.mem[i] = r.dur[i]
		}
		r.dur[i], r.durAt[i] = r.mem[i], r.memAt[i]
	}
	if w.broken("stamplazy") {
		r.stamp = r.stampDur
	}
	if w.chance(0.5) {
		r.stable = r.stableDur
	}
	r.stableDur = r.stable
	r.unclean = !w.broken("nounclean")
}

// admit lets an operation of a holder in; leave must follow.
func (r *sReplica) admit(epoch ukai.Epoch, session uint32) (*sAdmission, error) {
	if r.gone {
		return nil, ukai.ErrNotFound
	}
	w, a := r.node.w, r.admission
	err := a.admits(epoch, session)
	switch {
	case w.broken("nofence"):
		err = nil
	case w.broken("nosession") && a.epoch == epoch:
		err = nil
	}
	if err != nil {
		return nil, err
	}
	if a.closed && !w.broken("nofence") {
		return nil, &ukai.FencedError{Epoch: a.epoch}
	}
	if r.broken {
		return nil, ukai.ErrMedia
	}
	a.running++
	return a, nil
}

func (r *sReplica) leave(a *sAdmission) {
	if a.running--; a.running == 0 {
		r.node.w.broadcast(&a.left)
	}
}

// advance is hosted.advance.
func (r *sReplica) advance(next fence, ready func() error) error {
	w, old := r.node.w, r.admission
	r.admission = &sAdmission{fence: fence{epoch: next.epoch}}
	old.closed = true
	for old.running > 0 && !w.broken("nodrain") {
		w.await(&old.left, sForever)
	}
	if err := ready(); err != nil {
		r.admission = &sAdmission{fence: old.fence}
		return err
	}
	r.admission = &sAdmission{fence: next}
	return nil
}

// access is the time an access to the disk takes: now and then much longer than usual.
func (r *sReplica) access(mean time.Duration) {
	w := r.node.w
	d := r.node.slow + w.around(mean)
	if w.chance(w.cfg.hiccup) {
		d += w.around(100 * time.Millisecond)
	}
	w.sleep(d)
}

// fault says how a write or a sync fails now.
func (r *sReplica) fault(sync bool) error {
	n := r.node
	switch {
	case r.broken:
		return ukai.ErrMedia
	case n.failing && n.w.mayFail(r):
		n.failing, r.broken = false, true
		n.w.note("n%d: replica %d fails for ever", n.n, r.rid)
		return ukai.ErrMedia
	case n.full && !sync:
		return ukai.ErrNoSpace
	}
	return nil
}

const sSync, sTouch = 400 * time.Microsecond, 30 * time.Microsecond

func (r *sReplica) seal(epoch ukai.Epoch) (sealReply, error) {
	w := r.node.w
	if r.gone || r.retired {
		return sealReply{}, ukai.ErrNotFound
	}
	w.lock(&r.control)
	defer w.unlock(&r.control)
	switch f := r.admission.fence; f.onSeal(epoch) {
	case sealRefuse:
		return sealReply{}, &ukai.FencedError{Epoch: f.epoch}
	case sealAdvance:
		err := r.advance(fence{epoch, 1}, func() error {
			if r.broken {
				return ukai.ErrMedia
			}
			r.access(sSync)
			if epoch < r.epoch {
				w.fail("I7: the fence of replica %d goes from %v back to %v", r.rid, r.epoch, epoch)
			}
			r.epoch = epoch
			return nil
		})
		if err != nil {
			return sealReply{}, err
		}
	}
	now := r.node.clock()
	quiet := now - r.confirmed
	r.confirmed = now
	return sealReply{Incarnation: r.incarnation(), Unclean: r.unclean, Stable: r.stable, Session: r.admission.session, Quiet: quiet}, nil
}

func (r *sReplica) incarnation() ukai.Incarnation { return ukai.Incarnation{1, r.node.incarnation} }

func (r *sReplica) hello(epoch ukai.Epoch, session uint32, sealed ukai.Incarnation) error {
	w := r.node.w
	if r.gone {
		return ukai.ErrNotFound
	}
	w.lock(&r.control)
	defer w.unlock(&r.control)
	now := r.incarnation()
	if w.broken("noinc") {
		now = sealed
	}
	if err := r.admission.onHello(epoch, session, sealed, now); err != nil {
		return err
	}
	return r.advance(fence{epoch, session}, func() error { return nil })
}

func (r *sReplica) beat(b beat) error {
	if r.gone {
		return ukai.ErrNotFound
	}
	w, a := r.node.w, r.admission
	r.confirmed = r.node.clock()
	confirm, stable := a.onHeartbeat(b.Epoch, b.Session)
	if w.broken("beatnosession") {
		confirm = a.epoch == b.Epoch
	}
	if !confirm {
		return &ukai.FencedError{Epoch: a.epoch}
	}
	if r.broken {
		return ukai.ErrMedia
	}
	if b.Stable == (ukai.BlockStamp{}) || !stable || a.closed {
		return nil
	}
	if r.stable.Less(b.Stable) || r.unclean {
		if b.Stable.Less(r.stable) {
			w.fail("I7: stable of replica %d goes back", r.rid)
		}
		r.stable, r.unclean = b.Stable, false
	}
	return nil
}

// write applies values to the sectors of a range, in one part or two; vals may be empty: then only the stamp is raised.
func (r *sReplica) write(epoch ukai.Epoch, session uint32, off, end int64, vals []sVal, stamp ukai.BlockStamp) error {
	w := r.node.w
	a, err := r.admit(epoch, session)
	if err != nil {
		return err
	}
	defer r.leave(a)
	block := int(off / sBlockSize)
	if r.stamp[block].Less(stamp) {
		if err := r.fault(false); err != nil {
			return err
		}
		if w.broken("stamplazy") {
			r.stamp[block] = stamp
		} else {
			r.access(sSync)
		}
		if r.stamp[block].Less(stamp) {
			r.stamp[block], r.stampDur[block] = stamp, stamp
		}
	}
	if len(vals) == 0 {
		return nil
	}
	r.access(sTouch)
	if err := r.fault(false); err != nil {
		return err
	}
	from, to := sRange(off, end)
	half := to
	if w.chance(0.3) {
		half = from + w.rnd.IntN(to-from+1)
	}
	for i := from; i < to; i++ {
		if i == half {
			r.access(sTouch)
		}
		r.changes++
		r.mem[i], r.memAt[i] = vals[i-from], r.changes
	}
	w.mix(uint64(vals[0])<<32 | uint64(r.rid)<<16 | uint64(from))
	return nil
}

func (r *sReplica) read(epoch ukai.Epoch, session uint32, off, end int64) ([]sVal, error) {
	a, err := r.admit(epoch, session)
	if err != nil {
		return nil, err
	}
	defer r.leave(a)
	r.access(sTouch)
	from, to := sRange(off, end)
	return slices.Clone(r.mem[from:to]), nil
}

func (r *sReplica) flush(epoch ukai.Epoch, session uint32) error {
	a, err := r.admit(epoch, session)
	if err != nil {
		return err
	}
	defer r.leave(a)
	mem, at, stamps, stable := r.mem, r.memAt, r.stamp, r.stable
	r.access(sSync)
	if err := r.fault(true); err != nil {
		return err
	}
	for i := range mem {
		if r.durAt[i] < at[i] {
			r.dur[i], r.durAt[i] = mem[i], at[i]
		}
	}
	for b := range stamps {
		if r.stampDur[b].Less(stamps[b]) {
			r.stampDur[b] = stamps[b]
		}
	}
	if r.stableDur.Less(stable) {
		r.stableDur = stable
	}
	return nil
}

func (r *sReplica) suspects(epoch ukai.Epoch, session uint32, than ukai.BlockStamp) ([]suspect, error) {
	a, err := r.admit(epoch, session)
	if err != nil {
		return nil, err
	}
	defer r.leave(a)
	r.access(sTouch)
	var list []suspect
	for b, s := range r.stamp {
		if than.Less(s) {
			list = append(list, suspect{ukai.Index(b), s})
		}
	}
	return list, nil
}

// hashes is one number per chunk.
func (r *sReplica) hashes(epoch ukai.Epoch, session uint32, off, end int64) (sHashed, error) {
	vals, err := r.read(epoch, session, off, end)
	if err != nil {
		return sHashed{}, err
	}
	out := make([]uint64, (end-off+ukai.ChunkSize-1)/ukai.ChunkSize)
	from, _ := sRange(off, end)
	for i, v := range vals {
		c := (sOff(from+i) - off) / ukai.ChunkSize
		out[c] = out[c]*1_000_003 + uint64(v) + 1
	}
	return sHashed{out, r.stamp[off/sBlockSize]}, nil
}

// Gossip and the collection of replicas that are not needed.

func sNewer(a, b *crdt.Record) bool {
	return a.Instance > b.Instance || a.Instance == b.Instance && a.Version > b.Version
}

// learn takes in a committed record.
func (n *sNode) learn(rec *crdt.Record) {
	if rec.Version > n.w.latest.Version {
		n.w.fail("I10: n%d gossips version %d, %d is the newest that was chosen", n.n, rec.Version, n.w.latest.Version)
	}
	if sNewer(rec, &n.view) {
		n.view = *rec
	}
}

func (n *sNode) gossip() {
	w := n.w
	for {
		w.sleep(w.between(500*time.Millisecond, 1500*time.Millisecond))
		to := w.nodes[w.rnd.IntN(len(w.nodes))]
		rec := n.view
		w.call(n, to, true, func() (any, error) {
			to.learn(&rec)
			return nil, nil
		})
	}
}

// collect deletes replicas that the disk does not need any more: only when the arbiters say so.
func (n *sNode) collect() {
	w := n.w
	named := func(rec *crdt.Record, rid ukai.ReplicaID) bool { all, _ := memberships(rec, rid); return all > 0 }
	for {
		w.sleep(w.between(1*time.Second, 3*time.Second))
		for _, r := range n.replicas {
			if r.gone || named(&n.view, r.rid) {
				continue
			}
			if !w.broken("deleteunread") {
				if r.epoch == 0 {
					continue // never in use: it may yet be named
				}
				rec, err := n.propose(cell.Identity{})
				if err != nil || named(&rec, r.rid) {
					continue
				}
			}
			w.lock(&r.control)
			r.retired = true
			_ = r.advance(fence{epoch: r.admission.epoch}, func() error { return nil })
			w.unlock(&r.control)
			if named(&w.latest, r.rid) {
				w.fail("I9: n%d deletes replica %d, which the record names", n.n, r.rid)
			}
			r.gone = true
			w.note("n%d deletes replica %d", n.n, r.rid)
		}
	}
}

func (n *sNode) String() string { return fmt.Sprintf("n%d", n.n) }
