package volume

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
)

// The quorum record: node/cell's real acceptors on the machines, and its real proposers.

// sArbiter is one node's acceptor of one instance, as it is on stable storage.
type sArbiter struct{ dur cell.Acceptor }

// step answers a request. What it promises is durable before the answer leaves.
func (n *sNode) step(req cell.Request) (cell.Reply, error) {
	w := n.w
	w.lock(&n.cellLock)
	defer w.unlock(&n.cellLock)
	var at *sArbiter
	for _, a := range n.arbiters {
		if a.dur.Instance() == req.Instance {
			at = a
		}
	}
	if at == nil {
		at = &sArbiter{*cell.NewAcceptor(n.id, w.disk, req.Instance)}
		n.arbiters = append(n.arbiters, at)
	}
	next := at.dur
	rep, persist := next.Step(req)
	if !persist {
		return rep, nil
	}
	w.sleep(n.slow + w.around(sSync))
	if w.broken("nopromise") && req.Kind == cell.Prepare {
		return rep, nil // reading is not promising
	}
	at.dur = next
	if req.Kind == cell.Accept && rep.Answer == cell.Accepted {
		w.accepted(n, req)
	}
	return rep, nil
}

// propose carries a change through the arbiters: what cell.Propose does around a proposer.
func (n *sNode) propose(change cell.Change) (crdt.Record, error) {
	w := n.w
	p := cell.NewProposer(n.id, cell.Where(n.view), change)
	var answers sSignal
	var got []func()
	var send func([]cell.Message)
	send = func(messages []cell.Message) {
		for _, m := range messages {
			to, req := w.node(m.To), m.Request
			c := w.call(n, to, true, func() (any, error) { return to.step(req) })
			w.spawn(n.scope, func() {
				rep, err := w.wait(c, w.now+cell.DefaultPerTryTimeout)
				got = append(got, func() {
					if err != nil {
						p.Fail(m, err)
					} else {
						send(p.Step(m.To, rep.(cell.Reply)))
					}
				})
				w.broadcast(&answers)
			})
		}
	}
	send(p.Start(uint64(max(1, (w.now + n.wall).Milliseconds()))))
	rounds, unanswered := 1, 0
	pause := time.Duration(0)
	for {
		for len(got) > 0 {
			f := got[0]
			got = got[1:]
			f()
			out := p.Outcome()
			switch out.State {
			case cell.Committed:
				n.learn(&out.Record)
				return out.Record, nil
			case cell.Rejected:
				n.learn(&out.Record)
				return out.Record, out.Err
			case cell.Pending:
				pause = 0
			case cell.Duel, cell.Stuck:
				if pause > 0 {
					break
				}
				if out.State == cell.Stuck {
					unanswered++
				}
				if rounds >= cell.DefaultAttempts || unanswered >= 2 {
					return crdt.Record{}, sUndecided(p)
				}
				pause = w.now + w.between(10*time.Millisecond, 200*time.Millisecond)
			}
		}
		if pause > 0 && w.now >= pause {
			pause = 0
			rounds++
			send(p.Retry())
			continue
		}
		until := sForever
		if pause > 0 {
			until = pause
		}
		w.await(&answers, until)
	}
}

func sUndecided(p *cell.Proposer) error {
	if p.Outcome().InDoubt {
		return ukai.ErrInDoubt
	}
	return ukai.ErrNoQuorum
}

// settled is Disk.settled.
func (n *sNode) settled(change cell.Change) (crdt.Record, error) {
	rec, err := n.propose(change)
	if err == nil || errors.Is(err, ukai.ErrRejected) || errors.Is(err, ukai.ErrNoQuorum) {
		return rec, err
	}
	for {
		rec, again := n.propose(cell.Identity{})
		if again == nil {
			if change.Done(rec) {
				return rec, nil
			}
			return rec, fmt.Errorf("%v: %w: it did not come through", change, ukai.ErrRejected)
		}
		n.w.sleep(maxAttachPause)
	}
}

// What an observer of all arbiters sees.

type sBallot struct {
	instance uint32
	ballot   cell.Ballot
}

// accepted counts a vote.
func (w *sWorld) accepted(n *sNode, req cell.Request) {
	at := sBallot{req.Instance, req.Ballot}
	votes := w.votes[at] | 1<<n.n
	w.votes[at] = votes
	set := w.sets[req.Instance]
	count := 0
	for _, id := range set {
		count += int(votes >> w.node(id).n & 1)
	}
	if count == len(set)/2+1 {
		w.chosen(req.Record)
	}
}

// chosen takes in a record that is the committed one from now on: I1 and I2.
func (w *sWorld) chosen(rec *crdt.Record) {
	data, err := rec.Encode()
	if err != nil {
		w.fail("chosen: %v", err)
		return
	}
	if old, ok := w.byVersion[rec.Version]; ok && old != string(data) {
		w.fail("I1: two records of version %d were chosen", rec.Version)
		return
	}
	w.byVersion[rec.Version] = string(data)
	if rec.Version <= w.latest.Version {
		return
	}
	old := w.latest
	w.latest = rec.Clone()
	if rec.Instance != old.Instance {
		w.sets[rec.Instance] = slices.Clone(rec.Arbiters)
	}
	if by, ok := w.holders[rec.Epoch]; ok && by != rec.Nonce {
		w.fail("I2: epoch %v has two holders", rec.Epoch)
	}
	w.holders[rec.Epoch] = rec.Nonce
	if rec.Epoch < old.Epoch {
		w.fail("I1: epoch %v is followed by %v", old.Epoch, rec.Epoch)
	}
	w.mix(rec.Version<<16 | uint64(rec.Epoch))
	if w.trace != nil {
		w.note("chosen: version %d instance %d epoch %v %v holder %s, %s", rec.Version, rec.Instance, rec.Epoch, rec.Phase, rec.Holder.Short(), sMembers(rec))
	}
	if rec.Phase != crdt.PhaseRecovering && rec.Epoch > w.activated() {
		w.activations = append(w.activations, sActivation{rec.Epoch, w.tick(), w.lossy[rec.Epoch]})
	}
	w.inspect()
	if rec.Phase == crdt.PhaseActive && old.Phase == crdt.PhaseActive && w.chance(w.cfg.doubt) {
		w.coup()
	}
}

func sMembers(rec *crdt.Record) string {
	text := ""
	for i := range rec.Groups {
		g := &rec.Groups[i]
		if len(rec.Groups) > 1 {
			text += fmt.Sprintf(" %v:", rec.RangesOf(g.ID))
		}
		for _, m := range g.Members {
			text += fmt.Sprintf(" %d:%v", m.Replica, m.Role)
			if m.Fresh {
				text += "(fresh)"
			}
		}
	}
	return text
}

// activated returns the newest epoch that was activated.
func (w *sWorld) activated() ukai.Epoch {
	if n := len(w.activations); n > 0 {
		return w.activations[n-1].epoch
	}
	return 0
}

// inspect holds the replicas to the invariants that always hold: I5, I8.
func (w *sWorld) inspect() {
	rec := &w.latest
	if rec.Phase == crdt.PhaseRecovering || rec.Epoch == 0 {
		return
	}
	for i := range rec.Groups {
		w.inspectGroup(rec, &rec.Groups[i])
	}
}

func (w *sWorld) inspectGroup(rec *crdt.Record, g *crdt.Group) {
	var in, rest []*sReplica
	var stable ukai.BlockStamp
	for _, m := range g.Members {
		r := w.node(m.Node).replica(m.Replica)
		switch {
		case r == nil:
		case m.Role == crdt.InSync:
			in = append(in, r)
			if stable.Less(r.stable) {
				stable = r.stable
			}
		case r.epoch > 0 && !m.Fresh: // of one that is fresh its stamps say nothing
			rest = append(rest, r)
		}
	}
	for i, a := range in {
		for _, b := range in[i+1:] {
			if block := sDiffer(a, b, stable, rec, g); block >= 0 {
				w.fail("I5: replicas %d and %d are in sync and differ in block %d, where no stamp makes it suspect", a.rid, b.rid, block)
			}
		}
		for _, b := range rest {
			if block := sDiffer(a, b, b.stable, rec, g); block >= 0 && !a.unclean {
				w.fail("I8: replica %d is not in sync and differs from %d in block %d, where no stamp says so", b.rid, a.rid, block)
			}
		}
	}
}

// sDiffer returns a block of a group in which two replicas differ though neither has a newer stamp than k, or -1.
func sDiffer(a, b *sReplica, k ukai.BlockStamp, rec *crdt.Record, g *crdt.Group) int {
	if a.mem == b.mem {
		return -1
	}
	for i := range a.mem {
		if block := i / sPerBlock; a.mem[i] != b.mem[i] && !k.Less(a.stamp[block]) && !k.Less(b.stamp[block]) && rec.GroupOf(ukai.Index(block)).ID == g.ID {
			return block
		}
	}
	return -1
}
