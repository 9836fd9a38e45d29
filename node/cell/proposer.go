package cell

import (
	"errors"
	"fmt"
	"slices"

	"ukai"
	"ukai/crdt"
)

// maxInstances bounds how many instances one attempt follows; an arbiter set changes a few times in the life of a disk.
const maxInstances = 256

// At says where a disk's record is kept: an instance, its arbiters and its lineage.
type At struct {
	Disk     ukai.DiskID
	Instance uint32
	Fork     ukai.Nonce // id of the last forced takeover, zero if there was none
	Arbiters []ukai.NodeID
}

// Where returns where rec is kept. A record that has become old in the meantime does no harm: its arbiters redirect.
func Where(rec crdt.Record) At {
	return At{Disk: rec.Disk, Instance: rec.Instance, Fork: fork(&rec), Arbiters: slices.Clone(rec.Arbiters)}
}

// fork returns the lineage that rec belongs to.
func fork(rec *crdt.Record) ukai.Nonce {
	if n := len(rec.Lineage); n > 0 {
		return rec.Lineage[n-1].ID
	}
	return ukai.Nonce{}
}

// Message is a request and the arbiter it goes to, which may be the proposer's own node.
type Message struct {
	To      ukai.NodeID
	Request Request
}

// State says how far a Proposer is.
type State uint8

// States of a Proposer.
const (
	Pending   State = iota // replies are awaited
	Duel                   // another proposer has a higher ballot: Retry after a random pause
	Stuck                  // no majority can answer this round: Retry, or give up
	Committed              // decided: the change took effect
	Rejected               // decided: the change's guard does not hold on the committed record
)

// Outcome is what a Proposer knows.
type Outcome struct {
	State State
	// Record is what is committed, in states Committed and Rejected.
	Record crdt.Record
	// Err is the change's reason in state Rejected; it matches ukai.ErrRejected.
	Err error
	// InDoubt says that giving up now leaves it unknown whether the change took effect. Both must be assumed possible
	// until a later Propose returns a record: then the change took effect if Done holds of that record.
	InDoubt bool
	// Proposed is what the change made of the record, if InDoubt.
	Proposed crdt.Record
}

// Proposer carries one change of one disk's record through its arbiters. It is a state machine: Start, Step and Retry
// return the messages to send now; the caller feeds back each reply with Step and each message that got none with Fail,
// in any order, late or twice. It is not safe for concurrent use.
type Proposer struct {
	self    ukai.NodeID
	at      At
	change  Change // nil: only INIT
	quorum  func(arbiters int) int
	counter uint64 // highest that was used or seen
	hops    int

	phase   phase
	ballot  Ballot
	answers []answer      // of at.Arbiters in this phase, by position
	target  *crdt.Record  // what this phase wants accepted
	goal    goal          // what it means once it is
	reason  error         // of goalReject
	old     At            // whose FINAL led to this INIT, if any
	missed  []ukai.NodeID // arbiters of this instance that have had no INIT

	doubt *crdt.Record // what the change made, sent for acceptance, fate unknown
	out   Outcome
}

type phase uint8

const (
	preparing phase = iota
	accepting
	initing
)

// goal says what follows when target has been chosen.
type goal uint8

const (
	goalCommit goal = iota // the change is committed
	goalReject             // it is refused, on grounds of a committed record
	goalFollow             // a FINAL of somebody else: go on in the next instance
)

type answer struct {
	kind     Answer // 0: none yet
	failed   error  // why there is none
	ballot   Ballot // accepted before, or the one to outbid
	accepted *crdt.Record
}

// NewProposer returns a proposer of node self for one change. Start comes first.
func NewProposer(self ukai.NodeID, at At, change Change) *Proposer {
	return &Proposer{self: self, at: at, change: change, quorum: majority}
}

// newInit returns a proposer that has rec, the first record of a new lineage, accepted by its arbiters.
func newInit(self ukai.NodeID, rec crdt.Record) *Proposer {
	return &Proposer{self: self, at: Where(rec), quorum: majority, phase: initing, target: &rec}
}

func majority(arbiters int) int { return arbiters/2 + 1 }

// Start returns the first messages. Of two attempts the one with the higher counter wins, so a counter that grows with
// time saves a round trip; it need not be unique.
func (p *Proposer) Start(counter uint64) []Message {
	p.counter = max(p.counter, min(counter, maxCounter/2))
	if p.phase == initing {
		return p.send(Init)
	}
	return p.prepare()
}

// Retry begins a new round, after a pause if the state is Duel.
func (p *Proposer) Retry() []Message {
	if p.phase == initing {
		return p.send(Init)
	}
	return p.prepare()
}

// Outcome returns what is known now.
func (p *Proposer) Outcome() Outcome {
	o := p.out
	if p.doubt != nil && o.State != Committed && o.State != Rejected {
		o.InDoubt, o.Proposed = true, p.doubt.Clone()
	}
	return o
}

// Missing returns, for each arbiter that withheld its answer in this round, why.
func (p *Proposer) Missing() []error {
	var why []error
	for i, a := range p.answers {
		switch {
		case a.failed != nil:
			why = append(why, onNode(p.at.Arbiters[i], a.failed))
		case a.kind == 0:
			why = append(why, onNode(p.at.Arbiters[i], fmt.Errorf("%w: has not answered yet", ukai.ErrTimeout)))
		case a.kind == Nacked:
			why = append(why, onNode(p.at.Arbiters[i], fmt.Errorf("is busy with ballot %v of another node", a.ballot)))
		}
	}
	return why
}

// onNode says on which node err arose, unless it says so itself.
func onNode(id ukai.NodeID, err error) error {
	var named *ukai.NodeError
	if errors.As(err, &named) {
		return err
	}
	return &ukai.NodeError{Node: id, Err: err}
}

func (p *Proposer) prepare() []Message {
	p.counter++
	p.phase, p.ballot, p.target = preparing, Ballot{p.counter, p.self}, nil
	return p.send(Prepare)
}

// send asks all arbiters and forgets the answers of the phase before.
func (p *Proposer) send(kind Kind) []Message {
	p.out.State = Pending
	p.answers = make([]answer, len(p.at.Arbiters))
	req := Request{Kind: kind, Disk: p.at.Disk, Instance: p.at.Instance, Fork: p.at.Fork, Record: p.target}
	if kind != Init {
		req.Ballot = p.ballot
	}
	return toEach(p.at.Arbiters, req)
}

func toEach(nodes []ukai.NodeID, req Request) []Message {
	messages := make([]Message, 0, len(nodes))
	for _, id := range nodes {
		messages = append(messages, Message{id, req})
	}
	return messages
}

// kind returns the request whose replies are awaited.
func (p *Proposer) kind() Kind {
	switch p.phase {
	case preparing:
		return Prepare
	case accepting:
		return Accept
	}
	return Init
}

// slot returns the place for an arbiter's answer to a request of this kind, instance and ballot, or nil if it is not
// awaited: late, repeated, or not an arbiter's.
func (p *Proposer) slot(from ukai.NodeID, disk ukai.DiskID, instance uint32, kind Kind, b Ballot) *answer {
	i := slices.Index(p.at.Arbiters, from)
	if i < 0 || i >= len(p.answers) || p.out.State == Committed || p.out.State == Rejected {
		return nil
	}
	if disk != p.at.Disk || instance != p.at.Instance || kind != p.kind() || kind != Init && b != p.ballot {
		return nil
	}
	if p.answers[i].kind != 0 {
		return nil
	}
	return &p.answers[i]
}

// Fail says that a message got no reply, and why. The arbiter may have acted on it all the same, and a reply that comes
// later still counts.
func (p *Proposer) Fail(m Message, err error) {
	r := m.Request
	if a := p.slot(m.To, r.Disk, r.Instance, r.Kind, r.Ballot); a != nil {
		a.failed = err
		p.assess()
	}
}

// Step takes one arbiter's reply and returns the messages to send now. When the outcome is decided these are last
// services to single arbiters, whose replies nobody needs.
func (p *Proposer) Step(from ukai.NodeID, rep Reply) []Message {
	a := p.slot(from, rep.Disk, rep.Instance, rep.To, rep.Ballot)
	if a == nil {
		return nil
	}
	if err := p.misfit(rep); err != nil {
		a.failed = err
		p.assess()
		return nil
	}
	switch rep.Answer {
	case Unknown:
		a.failed = fmt.Errorf("%w: not an arbiter of this record: %s", ukai.ErrNotFound, rep.Detail)
		if !slices.Contains(p.missed, from) {
			p.missed = append(p.missed, from)
		}
	case Nacked:
		if p.phase == initing {
			a.failed = fmt.Errorf("%w: %s", ukai.ErrExists, rep.Detail)
			break
		}
		*a = answer{kind: Nacked, ballot: rep.Outbid}
		p.counter = max(p.counter, rep.Outbid.Counter)
	case Final:
		return p.redirected(rep.Record)
	default:
		*a = answer{kind: rep.Answer, ballot: rep.AcceptedAt, accepted: rep.Record}
	}
	n := 0
	for _, a := range p.answers {
		if a.kind == Promised || a.kind == Accepted {
			n++
		}
	}
	if n < p.quorum(len(p.at.Arbiters)) {
		p.assess()
		return nil
	}
	switch p.phase {
	case preparing:
		return p.promised()
	case accepting:
		return p.chosen()
	}
	return p.inited()
}

// misfit says what is wrong with a reply to what was asked.
func (p *Proposer) misfit(rep Reply) error {
	if err := rep.Check(); err != nil {
		return err
	}
	if rep.Record != nil && fork(rep.Record) != p.at.Fork {
		return fmt.Errorf("%v: %w: its record is of another lineage", rep.Answer, ukai.ErrInvalid)
	}
	if want := Accepted; rep.Answer == Promised && p.phase != preparing || rep.Answer == want && p.phase == preparing {
		return fmt.Errorf("%v to %v: %w", rep.Answer, rep.To, ukai.ErrInvalid)
	}
	return nil
}

// assess finds out whether a majority can still answer in this round.
func (p *Proposer) assess() {
	open, nacked := 0, false
	for _, a := range p.answers {
		if a.kind != Nacked && a.failed == nil {
			open++
		}
		nacked = nacked || a.kind == Nacked
	}
	switch {
	case open >= p.quorum(len(p.at.Arbiters)):
		p.out.State = Pending
	case nacked:
		p.out.State = Duel
	default:
		p.out.State = Stuck
	}
}

// promised decides what to propose. A majority has promised, so what was not accepted by any of it under a lower ballot
// has not been and never will be chosen.
func (p *Proposer) promised() []Message {
	var top *answer
	for i := range p.answers {
		a := &p.answers[i]
		if a.kind != Promised {
			continue
		}
		if top == nil || above(a, top) {
			top = a
		}
	}
	found := top.accepted
	done := p.doubt != nil && same(found, p.doubt)
	// From here on the earlier proposal is either what was found, or among its ancestors, or dead.
	p.doubt = nil
	if found.Instance != p.at.Instance && !done {
		return p.propose(found, goalFollow, top.ballot)
	}
	if done || p.change.Done(*found) {
		if _, read := p.change.(Identity); !read {
			p.doubt = found
		}
		return p.propose(found, goalCommit, top.ballot)
	}
	next, err := apply(p.change, found)
	if err != nil {
		// The refusal rests on a record that may be accepted only here and there: it must be chosen before anybody
		// may conclude anything from it.
		p.reason = err
		return p.propose(found, goalReject, top.ballot)
	}
	p.target, p.goal, p.doubt = &next, goalCommit, &next
	p.phase = accepting
	return p.send(Accept)
}

// above says whether a's record goes before b's: the higher ballot, and among INITs the later record.
func above(a, b *answer) bool {
	if d := a.ballot.Compare(b.ballot); d != 0 {
		return d > 0
	}
	return a.accepted.Version > b.accepted.Version
}

// propose has a record chosen that was accepted already, without changing it. If a majority holds it under one ballot,
// it is chosen, and there is nothing to send.
func (p *Proposer) propose(found *crdt.Record, g goal, at Ballot) []Message {
	p.target, p.goal = found, g
	n := 0
	for _, a := range p.answers {
		if a.kind == Promised && a.ballot == at && (!at.IsZero() || same(a.accepted, found)) {
			n++
		}
	}
	if n >= p.quorum(len(p.at.Arbiters)) {
		return p.chosen()
	}
	p.phase = accepting
	return p.send(Accept)
}

// chosen goes on from a record that the arbiters have chosen.
func (p *Proposer) chosen() []Message {
	if p.target.Instance == p.at.Instance {
		return p.decide()
	}
	// A FINAL. Its instance has ended; INIT with the same record any number of times is harmless.
	if p.hops++; p.hops > maxInstances {
		p.out.State = Stuck
		return nil
	}
	p.old, p.at = p.at, Where(*p.target)
	p.phase, p.missed = initing, nil
	return p.send(Init)
}

// inited goes on when a majority of the next instance's arbiters have its first record.
func (p *Proposer) inited() []Message {
	var closing []Message
	if len(p.old.Arbiters) > 0 {
		req := Request{Kind: Close, Disk: p.old.Disk, Instance: p.old.Instance, Fork: p.old.Fork, Record: p.target}
		closing, p.old = toEach(p.old.Arbiters, req), At{}
	}
	if p.change == nil || p.goal == goalCommit {
		return append(closing, p.decide()...)
	}
	return append(closing, p.prepare()...)
}

// redirected goes on from an instance that is closed: final is chosen, and a majority of its arbiters had their INIT.
// No INIT is sent, because it might bring back an instance that has ended and been forgotten since.
func (p *Proposer) redirected(final *crdt.Record) []Message {
	if p.target != nil && p.goal == goalCommit && (p.phase == initing || same(final, p.target)) {
		return p.decide()
	}
	if p.hops++; p.hops > maxInstances {
		p.out.State = Stuck
		return nil
	}
	p.old, p.at, p.missed = At{}, Where(*final), nil
	return p.prepare()
}

// decide ends the proposer's work, and makes arbiters of those that have missed their INIT.
func (p *Proposer) decide() []Message {
	p.out = Outcome{State: Committed, Record: p.target.Clone()}
	if p.goal == goalReject {
		p.out.State, p.out.Err = Rejected, p.reason
	}
	if p.target.Instance != p.at.Instance {
		return nil
	}
	req := Request{Kind: Init, Disk: p.at.Disk, Instance: p.at.Instance, Fork: p.at.Fork, Record: p.target}
	return toEach(p.missed, req)
}
