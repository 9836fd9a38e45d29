package volume

import (
	"fmt"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// The explorer holds the data path to strict linearizability: it drives the real decisions of this package and the real
// changes of node/cell through every order of events, within bounds. One block, up to three replicas, two hosts. This
// file has the state and the bridge from it to the real code; what surrounds the decisions (which messages a holder
// sends, what a replica's memory does) is a small shell in explore_{recovery,serve,members,events}_test.go.
//
// The quorum record is an atomic register here: a change under way is applied late, once, or never, and its proposer may
// not learn which. That the arbiters amount to this is what the explorer of node/cell is for. Messages are not ordered,
// and one that is never delivered is lost.

const (
	xReplicas = 3
	xHosts    = 2
	xMessages = 6
)

type xMode uint8

const (
	xIdle xMode = iota
	xClaiming
	xClaimed
	xActive
)

// xReplica is a replica: its fence, and the block's value and stamp, as they are and as a power loss leaves them.
type xReplica struct {
	epoch, session  uint8
	mem, dur        uint8
	stamp, durStamp uint8
	stable          uint8
	incarnation     uint8
	unclean         bool
}

// xHost is a host: what a holding, its members and a takeover know. Sets of replicas are masks.
type xHost struct {
	mode     xMode
	epoch    uint8
	known    uint16 // record, see explorer.records
	proposed uint16 // that may be committed too, 0 if none
	reply    uint16 // what the arbiters answered, under way
	asked    bool   // a change was proposed, its outcome is not known

	linked, lasting      uint8
	session, incarnation [xReplicas]uint8 // tried last; sealed
	confirmed            [xReplicas]uint8 // 1 + tick of the last confirmation, 0: none

	sealed, unclean uint8 // takeover
	stables         [xReplicas]uint8
	first           uint8 // tick
	prefer          uint8 // 1 + replica
	frozen          bool
	authority       uint8
	lossy, lost     bool
	suspect         uint8 // stamp to raise to, 0: no block is suspect
	todo            uint8 // to be made equal

	value, targets, acks, stamp uint8 // write under way
	told                        bool  // its guest knows of it already: ack=local
	unvouched                   uint8 // values that were written, and whose guests wait for min-sync
	check, stable               uint8
	flushing                    bool
	flushTargets, flushed       uint8
	flushSince                  uint8 // values that may be current when a power loss takes what is not flushed
	redoing                     bool  // the write under way was not sent, or is sent again, to a replica that must have it
	flushBehind, uncounted      uint8 // the flush was sent behind this write; replicas that have not applied it in the session it was sent in
	again                       bool  // that flush is none: it must be sent once more when the write is over

	dirty, owes uint8 // syncing replicas
	copying     uint8 // 1 + replica
	reading     uint8 // 1 + replica whose answer is under way
	read        uint8
	fresh       bool // it was current at some moment since it was asked for
}

type xKind uint8

const (
	_ xKind = iota
	xWrite
	xCopy
	xAck
	xCopied
)

type xMessage struct {
	kind                                        xKind
	host, replica, epoch, session, value, stamp uint8
}

// xChange is a change of the quorum record under way.
type xChange struct {
	op      xOp
	host    uint8
	epoch   uint8
	version uint8
	replica uint8
	in      uint8
	ahead   uint8 // 1 + replica
	seen    uint16
	lossy   bool
	lost    bool // what only the replica that was ahead had
}

type xOp uint8

const (
	_ xOp = iota
	xOpClaim
	xOpActivate
	xOpShrink
	xOpJoin
	xOpGrow
	xOpRelease
	xOpLead
)

// xWorld is one state. It is compared and hashed whole.
type xWorld struct {
	replica [xReplicas]xReplica
	host    [xHosts]xHost
	change  [xHosts]xChange
	rec     uint16 // committed
	net     [xMessages]xMessage
	tick    uint8 // times that every older lease has run out
	writes  uint8
	risk    bool  // with ack=local: the guest knows of a write that only the replica named in the record has
	since   uint8 // values that may be current after a power loss
	monitor xMonitor
	used    xBudget
}

// xBudget counts what happens seldom.
type xBudget struct {
	crashes, losses, restarts, reconnects, joins, flushes, shrinks, ticks uint8
}

// Stamps are packed: epoch and check.

func xStamp(epoch, check uint8) uint8 { return epoch<<3 | check }

func xReal(s uint8) ukai.BlockStamp {
	return ukai.BlockStamp{Epoch: ukai.Epoch(s >> 3), Check: uint32(s & 7)}
}

func xPacked(s ukai.BlockStamp) uint8 { return xStamp(uint8(s.Epoch), uint8(s.Check)) }

func xBit(r int) uint8 { return 1 << r }

func xID(r int) ukai.ReplicaID { return ukai.ReplicaID(r + 1) }

func xMask(ids []ukai.ReplicaID) (mask uint8) {
	for _, id := range ids {
		mask |= xBit(int(id) - 1)
	}
	return mask
}

func xMembers(list []crdt.Member) (mask uint8) {
	for _, m := range list {
		mask |= xBit(int(m.Replica) - 1)
	}
	return mask
}

func xIncarnation(n uint8) ukai.Incarnation { return ukai.Incarnation{n} }

// fence returns the replica's real fence.
func (p *xReplica) fence() fence { return fence{ukai.Epoch(p.epoch), uint32(p.session)} }

// explorer remembers what the real code has decided: it is pure, so that once is enough.
type explorer struct {
	s        scenario
	byBytes  map[string]uint16
	records  []*crdt.Record // by number; 0 is none
	applied  map[xApplication]uint16
	setsOf   map[[2]uint16]xSets
	verdicts map[xSeals]xVerdict
	problem  string
	until    time.Time // when a deep run gives up
}

func newExplorer(s scenario) *explorer {
	return &explorer{
		s: s, byBytes: map[string]uint16{}, records: []*crdt.Record{nil}, applied: map[xApplication]uint16{},
		setsOf: map[[2]uint16]xSets{}, verdicts: map[xSeals]xVerdict{},
	}
}

func (x *explorer) start() xWorld {
	rec := record(1)
	rec.Version, rec.Disk, rec.Arbiters = 1, ukai.DiskID{1}, []ukai.NodeID{{1}, {2}, {3}}
	members := rec.Groups[0].Members[:x.s.replicas]
	for r := range members {
		if x.s.inSync == 0 || x.s.inSync&xBit(r) != 0 {
			members[r].Role = crdt.InSync
		}
	}
	rec.Groups[0].Members = members
	rec.MinSync = max(1, x.s.minSync)
	if x.s.ackLocal {
		rec.Ack = crdt.AckLocal
	}
	w := xWorld{rec: x.intern(&rec), since: 1}
	w.monitor.add(xMay(0, 0, 0))
	return w
}

// intern numbers records by content.
func (x *explorer) intern(rec *crdt.Record) uint16 {
	data, err := rec.Encode()
	if err != nil {
		x.problem = err.Error()
		return 0
	}
	n, ok := x.byBytes[string(data)]
	if !ok {
		n = uint16(len(x.records))
		x.byBytes[string(data)] = n
		x.records = append(x.records, rec)
	}
	return n
}

func xNode(h uint8) ukai.NodeID { return ukai.NodeID{h + 1} }

// real returns the change of node/cell.
func (c xChange) real() cell.Change {
	epoch, version, nonce := ukai.Epoch(c.epoch), uint64(c.version), ukai.Nonce{c.host + 1, c.epoch}
	switch c.op {
	case xOpClaim:
		return cell.Claim{Node: xNode(c.host), Nonce: nonce, After: epoch - 1}
	case xOpActivate:
		var in []ukai.ReplicaID
		for r := range xReplicas {
			if c.in&xBit(r) != 0 {
				in = append(in, xID(r))
			}
		}
		return cell.Activate{Epoch: epoch, Nonce: nonce, Version: version, InSync: in, Ahead: ukai.ReplicaID(c.ahead)}
	case xOpShrink:
		return cell.Shrink{Epoch: epoch, Version: version, Replica: xID(int(c.replica))}
	case xOpJoin:
		return cell.Join{Epoch: epoch, Version: version, Replica: xID(int(c.replica)), Node: ukai.NodeID{c.replica + 1}}
	case xOpGrow:
		return cell.Grow{Epoch: epoch, Version: version, Replica: xID(int(c.replica))}
	case xOpLead:
		return cell.Lead{Epoch: epoch, Version: version, Replica: xID(int(c.replica))}
	}
	return cell.Release{Epoch: epoch, Nonce: nonce}
}

type xApplication struct {
	change xChange
	rec    uint16
}

// apply returns what a change makes of a record, 0 if it is refused.
func (x *explorer) apply(c xChange, rec uint16) uint16 {
	c.lossy, c.lost = false, false
	key := xApplication{c, rec}
	if n, ok := x.applied[key]; ok {
		return n
	}
	var n uint16
	base := x.records[rec]
	if c.op == xOpClaim && x.s.mutation == "latticeclaim" && x.records[c.seen].Epoch == base.Epoch {
		seen := x.records[c.seen].Clone() // the larger epoch wins, whatever became of the record it was read from
		seen.Version = base.Version
		base = &seen
	}
	if next, err := c.real().Apply(base.Clone()); err == nil {
		n = x.intern(&next)
	}
	x.applied[key] = n
	return n
}

// change returns the change that a host would propose now.
func (x *explorer) change(h int, y *xHost, op xOp) xChange {
	return xChange{op: op, host: uint8(h), epoch: y.epoch, version: uint8(x.records[y.known].Version)}
}

func (x *explorer) epoch(rec uint16) uint8 { return uint8(x.records[rec].Epoch) }

// role returns the replicas with a role.
func (x *explorer) role(rec uint16, role crdt.Role) (mask uint8) {
	for _, m := range x.records[rec].Groups[0].Members {
		if m.Role == role {
			mask |= xBit(int(m.Replica) - 1)
		}
	}
	return mask
}

// deposed says whether a successor of an epoch serves or has served.
func (x *explorer) deposed(w *xWorld, epoch uint8) bool {
	rec := x.records[w.rec]
	return uint8(rec.Epoch) > epoch && rec.Phase != crdt.PhaseRecovering
}

type xSets struct {
	ack, read, lease uint8
	ahead            uint8 // 1 + replica
	suspended        bool
}

// sets returns what candidates make of what a host knows.
func (x *explorer) sets(y *xHost) xSets {
	key := [2]uint16{y.known, y.proposed}
	if s, ok := x.setsOf[key]; ok {
		return s
	}
	p := candidates{known: *x.records[y.known]}
	if y.proposed != 0 {
		p.propose(*x.records[y.proposed])
	}
	if p.inDoubt() != (y.proposed != 0) {
		x.problem = "inDoubt is wrong"
	}
	s := xSets{ack: xMembers(p.ackSet(0)), read: xMembers(p.readSet(0)), lease: xMembers(p.leaseSet()), ahead: uint8(p.ahead(0))}
	_, _, s.suspended = p.suspendedGroup()
	x.setsOf[key] = s
	return s
}

// proposal is the record that a change of one replica's role is going to commit.
func (x *explorer) proposal(y *xHost, r int, role crdt.Role) uint16 {
	next := withRole(*x.records[y.known], xID(r), role)
	return x.intern(&next)
}

// xSeals is what a takeover knows.
type xSeals struct {
	rec             uint16
	sealed, unclean uint8
	stables         [xReplicas]uint8
	first, prefer   uint8
	frozen          bool
}

// xVerdict is what it makes of it.
type xVerdict struct {
	members         uint8 // to seal
	ready           bool  // may be frozen
	set             uint8
	authority       int
	watermark       uint8
	recovers, lossy bool
	abandons        bool
	ahead           uint8 // 1 + replica
	clean           bool  // the epoch before was released
	wait            time.Duration
}

func (y *xHost) seals() xSeals {
	return xSeals{y.known, y.sealed, y.unclean, y.stables, y.first, y.prefer, y.frozen}
}

// xTick is the time between two ticks: a successor that waits for leases has waited long enough.
const xTick = leaseWait

// takeover rebuilds the real takeover.
func (x *explorer) takeover(s xSeals) *takeover {
	rec := *x.records[s.rec]
	if x.s.mutation == "localprefer" {
		rec.Ahead = 0 // the record does not tell which one to copy from
	}
	t := newTakeover(rec, ukai.ReplicaID(s.prefer))
	for _, m := range t.members() {
		if r := int(m.Replica) - 1; s.sealed&xBit(r) != 0 {
			x.onSealed(t, s, r)
		}
	}
	return t
}

func (x *explorer) onSealed(t *takeover, s xSeals, r int) {
	at := time.Duration(s.first) * xTick
	for _, m := range t.members() {
		if m.Replica == xID(r) {
			t.onSealed(at, at, m, sealReply{Unclean: s.unclean&xBit(r) != 0, Stable: xReal(s.stables[r])})
		}
	}
}

func (x *explorer) verdict(s xSeals) xVerdict {
	if v, ok := x.verdicts[s]; ok {
		return v
	}
	t := x.takeover(s)
	v := xVerdict{members: xMembers(t.members()), authority: -1}
	_, more := t.wait(t.first + sealWait)
	v.ready = !more && t.freeze() == nil
	if set := t.set(0); len(set) > 0 {
		v.authority = int(set[0].member.Replica) - 1
	}
	v.set, v.watermark = xMask(t.replicas()), xPacked(t.watermark(0))
	v.recovers, v.lossy, v.clean = t.recovers(0), t.lossy(0), t.rec.Clean
	v.wait, v.abandons, v.ahead = t.leaseEnds(false), t.abandons(0), uint8(t.ahead())
	x.verdicts[s] = v
	return v
}

// late says whether a takeover whose set is frozen takes in one more replica.
func (x *explorer) late(s xSeals, r int) bool {
	t := x.takeover(s)
	if err := t.freeze(); err != nil {
		x.problem = err.Error()
	}
	if x.s.mutation == "lateseal" {
		t.frozen = false
	}
	x.onSealed(t, s, r)
	return slices.Contains(t.replicas(), xID(r))
}

// newer is what a replica answers when asked for blocks newer than a stamp.
func (p *xReplica) newer(than uint8) []suspect {
	if xReal(than).Less(xReal(p.stamp)) {
		return []suspect{{index: 0, stamp: xReal(p.stamp)}}
	}
	return nil
}

// leaseHolds is holding.leaseHolds: the replica on the holder's own node is asked for its fence, the others confirm.
func (x *explorer) leaseHolds(w *xWorld, h int) bool {
	y := &w.host[h]
	if x.s.mutation == "nolease" {
		return true
	}
	var l lease
	var needs []ukai.ReplicaID
	set := x.sets(y).lease
	for r := range x.s.replicas {
		if set&xBit(r) == 0 {
			continue
		}
		if x.s.local && r == h {
			if w.replica[r].epoch > y.epoch {
				return false
			}
			continue
		}
		needs = append(needs, xID(r))
		if at := y.confirmed[r]; at > 0 {
			l.confirm(xID(r), time.Duration(at-1)*xTick)
		}
	}
	until := l.until(needs)
	return until == never || time.Duration(w.tick)*xTick < until
}

// claims returns the block's range locks, as held now.
func (y *xHost) claims() *rangeQueue {
	q := new(rangeQueue)
	if y.value != 0 || y.copying != 0 {
		c := &claim{end: 1, exclusive: true}
		q.add(c)
		if y.told {
			q.downgrade(c, nil)
		}
	}
	if y.reading != 0 {
		q.add(&claim{end: 1})
	}
	return q
}

// behind says whether a read that is let in now must go to the replica that is ahead.
func (y *xHost) behind() bool {
	c := &claim{end: 1}
	return y.claims().add(c) && c.behind.Load() > 0
}

// free says whether the range lock would be granted at once. Waiting for it is the same as coming later.
func (y *xHost) free(exclusive bool) bool {
	return y.claims().add(&claim{end: 1, exclusive: exclusive})
}

// wrong says what is wrong with a state, or "".
func (x *explorer) wrong(w *xWorld) string {
	if x.problem != "" {
		return x.problem
	}
	if w.monitor.empty() {
		return "not strictly linearizable"
	}
	if x.records[w.rec].Phase == crdt.PhaseRecovering {
		return ""
	}
	in := x.role(w.rec, crdt.InSync)
	var stable uint8
	for r := range x.s.replicas {
		if in&xBit(r) != 0 {
			stable = max(stable, w.replica[r].stable)
		}
	}
	first := -1
	for r := range x.s.replicas {
		switch {
		case in&xBit(r) == 0:
		case w.replica[r].stamp > stable:
			return ""
		case first < 0:
			first = r
		case w.replica[r].mem != w.replica[first].mem:
			return fmt.Sprintf("replicas %d and %d differ where no stamp makes it suspect", first+1, r+1)
		}
	}
	return ""
}
