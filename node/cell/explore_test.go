package cell

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

// The explorer drives the real Acceptor and Proposer through every order of message deliveries, losses, repetitions,
// crashes (a proposer that is never heard of again) and retries, within bounds, and holds them to this: the chosen
// records form one chain, nothing committed is lost, and what a proposer reports is so.
//
// Requests once sent stay in the network for ever, so that each may be delivered at any time, any number of times, or
// never. In exhaustive search a reply comes at once or never; in random walks it too may come late and twice.

// scenario is what to explore.
type scenario struct {
	name      string
	sets      [2][]int // arbiters of instances 0 and 1
	late      int      // an arbiter of instance 0 that had no INIT, or 0
	proposers []role
	retries   int
	mutation  string
	beyond    uint32 // the second instance is the one after this, 0: instance 1
}

// slot says which of the two instances a number is of.
func slot(instance uint32) int { return min(int(instance), 1) }

type role struct {
	node int
	kind string // "change", "read", "rearb"
}

// tagged is a change that leaves a mark of its own for each application, so that a record names all its ancestors.
type tagged struct {
	who   byte
	round uint64
	inner Change // nil or Rearb
}

func (c tagged) Apply(rec crdt.Record) (crdt.Record, error) {
	if c.inner != nil {
		next, err := c.inner.Apply(rec.Clone())
		if err != nil {
			return next, err
		}
		rec = next
	} else {
		rec.Version++
	}
	tag := ukai.DiskID{c.who, byte(c.round), 0xff}
	rec.Pins = append(slices.Clone(rec.Pins), tag)
	slices.SortFunc(rec.Pins, func(a, b ukai.DiskID) int { return bytes.Compare(a[:], b[:]) })
	return rec, nil
}

func (c tagged) Done(rec crdt.Record) bool {
	return slices.ContainsFunc(rec.Pins, func(p ukai.DiskID) bool { return p[0] == c.who })
}

func (c tagged) String() string { return "tagged" }

// acts tracks one proposer.
type acts struct {
	p       Proposer
	started bool
	retries int
	floor   uint64 // newest version chosen before it started
	judged  bool
}

// world is one state. Records and requests are shared, numbered by the explorer, and never changed.
type world struct {
	acceptors [2][6]acceptorState // by instance and node
	actors    []acts
	sent      []uint16 // numbers of requests, sorted
	votes     []vote   // sorted; all ever given
	chosen    []uint16 // numbers of records, sorted
	broken    int      // mutations so far
}

type vote struct {
	instance, node uint8
	counter        uint16
	by             uint8
	rec            uint16
}

type envelope struct {
	from int // proposer
	m    Message
}

// requestKey tells requests apart.
type requestKey struct {
	from     int
	to       ukai.NodeID
	kind     Kind
	instance uint32
	ballot   Ballot
	rec      uint16
}

type explorer struct {
	s        scenario
	first    *crdt.Record
	records  map[string]uint16
	byNumber []*crdt.Record
	pointers map[*crdt.Record]uint16
	requests map[requestKey]uint16
	network  []envelope
	seed     maphash.Seed
	problem  string
}

func newExplorer(s scenario) *explorer {
	x := &explorer{s: s, records: map[string]uint16{}, pointers: map[*crdt.Record]uint16{}, requests: map[requestKey]uint16{}, seed: maphash.MakeSeed()}
	rec := firstRecord(s.sets[0]...)
	x.first = x.intern(&rec)
	return x
}

// intern returns the one pointer for records of equal content.
func (x *explorer) intern(rec *crdt.Record) *crdt.Record {
	if rec == nil {
		return nil
	}
	if n, ok := x.pointers[rec]; ok {
		return x.byNumber[n]
	}
	data, err := rec.Encode()
	if err != nil {
		x.problem = err.Error()
		return rec
	}
	n, ok := x.records[string(data)]
	if !ok {
		n = uint16(len(x.byNumber))
		x.records[string(data)] = n
		x.byNumber = append(x.byNumber, rec)
	}
	x.pointers[rec] = n
	return x.byNumber[n]
}

func (x *explorer) number(rec *crdt.Record) uint16 {
	if rec == nil {
		return 0xffff
	}
	x.intern(rec)
	return x.pointers[rec]
}

func (x *explorer) start() *world {
	w := &world{}
	for instance, set := range x.s.sets {
		for _, n := range set {
			a := NewAcceptor(node(n), testDisk, uint32(instance)*(1+x.s.beyond))
			if instance == 0 && n != x.s.late {
				a.s.Accepted = x.first
			}
			w.acceptors[instance][n] = a.s
		}
	}
	for i, r := range x.s.proposers {
		var change Change = Identity{}
		switch r.kind {
		case "change":
			change = tagged{who: byte(i + 1)}
		case "rearb":
			change = tagged{who: byte(i + 1), inner: Rearb{Arbiters: nodes(x.s.sets[1]...), Beyond: x.s.beyond}}
		}
		p := NewProposer(node(r.node), Where(*x.first), change)
		if x.s.mutation == "minority" {
			p.quorum = func(n int) int { return n / 2 }
		}
		w.actors = append(w.actors, acts{p: *p})
	}
	w.chosen = []uint16{x.number(x.first)}
	return w
}

func (w *world) clone() *world {
	c := *w
	c.actors = slices.Clone(w.actors)
	for i := range c.actors {
		p := &c.actors[i].p
		p.answers = slices.Clone(p.answers)
		p.missed = slices.Clone(p.missed)
	}
	c.sent = slices.Clone(w.sent)
	c.votes = slices.Clone(w.votes)
	c.chosen = slices.Clone(w.chosen)
	return &c
}

func insert[T any](list []T, v T, compare func(a, b T) int) []T {
	i, ok := slices.BinarySearchFunc(list, v, compare)
	if ok {
		return list
	}
	return slices.Insert(list, i, v)
}

func compareNumbers(a, b uint16) int { return int(a) - int(b) }

func compareVotes(a, b vote) int {
	return slices.Compare([]int{int(a.instance), int(a.counter), int(a.by), int(a.rec), int(a.node)},
		[]int{int(b.instance), int(b.counter), int(b.by), int(b.rec), int(b.node)})
}

// put adds messages of a proposer to the network.
func (x *explorer) put(w *world, from int, messages []Message) {
	for _, m := range messages {
		m.Request.Record = x.intern(m.Request.Record)
		r := m.Request
		key := requestKey{from, m.To, r.Kind, r.Instance, r.Ballot, x.number(r.Record)}
		n, ok := x.requests[key]
		if !ok {
			n = uint16(len(x.network))
			x.requests[key] = n
			x.network = append(x.network, envelope{from, m})
		}
		w.sent = insert(w.sent, n, compareNumbers)
	}
}

// settle shares the records that a proposer has made, and judges what it reports.
func (x *explorer) settle(w *world, i int) {
	a := &w.actors[i]
	p := &a.p
	p.target, p.doubt = x.intern(p.target), x.intern(p.doubt)
	if p.change != (Identity{}) {
		c := p.change.(tagged)
		c.round = p.ballot.Counter
		p.change = c
	}
	if o := p.out; !a.judged && (o.State == Committed || o.State == Rejected) {
		a.judged = true
		rec := x.intern(&o.Record)
		if !slices.Contains(w.chosen, x.number(rec)) {
			x.problem = fmt.Sprintf("proposer %d concludes from version %d of %v, which is not chosen", i, rec.Version, rec.Pins)
		}
		if rec.Version < a.floor {
			x.problem = fmt.Sprintf("proposer %d reports version %d after version %d was chosen", i, rec.Version, a.floor)
		}
		if o.State == Committed && !p.change.Done(*rec) {
			x.problem = fmt.Sprintf("proposer %d reports a commit without its change", i)
		}
		p.out.Record = crdt.Record{} // judged; only the state matters from here on
		p.target = nil
	}
}

// ask steps a copy of the acceptor that a request goes to.
func (x *explorer) ask(w *world, n uint16) (acceptorState, Reply, bool) {
	m := x.network[n].m
	state := w.acceptors[slot(m.Request.Instance)][m.To[0]]
	if state.Format == 0 {
		return state, Reply{}, false
	}
	a := &Acceptor{self: m.To, s: state}
	switch {
	case x.s.mutation == "equal" && m.Request.Kind == Prepare && m.Request.Ballot == a.s.Promised:
		a.s.Promised.Counter--
	case x.s.mutation == "acceptlow" && m.Request.Kind == Accept && m.Request.Ballot.Compare(a.s.Promised) < 0:
		a.s.Promised = m.Request.Ballot
	case x.s.mutation == "initagain" && m.Request.Kind == Init && a.s.Accepted != nil:
		a = NewAcceptor(m.To, testDisk, m.Request.Instance)
	}
	rep, persist := a.Step(m.Request)
	if persist != (a.s != state) && x.s.mutation == "" {
		x.problem = fmt.Sprintf("%v: persist is %v", m.Request.Kind, persist)
	}
	return a.s, rep, true
}

// deliver makes what ask found so.
func (x *explorer) deliver(w *world, n uint16, state acceptorState, rep Reply) {
	m := x.network[n].m
	r := m.Request
	w.acceptors[slot(r.Instance)][m.To[0]] = state
	if r.Kind == Accept && rep.Answer == Accepted {
		x.count(w, vote{uint8(slot(r.Instance)), m.To[0], uint16(r.Ballot.Counter), r.Ballot.Node[0], x.number(r.Record)})
	}
}

// count notes a vote, and the record as chosen if it is the one that makes a majority.
func (x *explorer) count(w *world, v vote) {
	w.votes = insert(w.votes, v, compareVotes)
	n := 0
	for _, o := range w.votes {
		if o.instance == v.instance && o.counter == v.counter && o.by == v.by && o.rec == v.rec {
			n++
		}
	}
	need := majority(len(x.s.sets[v.instance]))
	if x.s.mutation == "minority" {
		need = len(x.s.sets[v.instance]) / 2
	}
	if n < need {
		return
	}
	w.chosen = insert(w.chosen, v.rec, compareNumbers)
	for _, o := range w.chosen {
		a, b := x.byNumber[o], x.byNumber[v.rec]
		if a.Version > b.Version {
			a, b = b, a
		}
		if a != b && (a.Version == b.Version || !within(a.Pins, b.Pins)) {
			x.problem = fmt.Sprintf("chosen: version %d of %v and version %d of %v", a.Version, a.Pins, b.Version, b.Pins)
		}
	}
}

// within says whether all of a is in b.
func within(a, b []ukai.DiskID) bool {
	return !slices.ContainsFunc(a, func(p ukai.DiskID) bool { return !slices.Contains(b, p) })
}

// act lets a proposer start, or begin a new round, and says which; "" if it may do neither.
func (x *explorer) act(w *world, i int) string {
	a := &w.actors[i]
	switch {
	case !a.started:
		a.started = true
		for _, c := range w.chosen {
			a.floor = max(a.floor, x.byNumber[c].Version)
		}
		x.put(w, i, a.p.Start(0))
		x.settle(w, i)
		return fmt.Sprintf("proposer %d starts", i)
	case a.retries < x.s.retries && a.p.out.State != Committed && a.p.out.State != Rejected:
		a.retries++
		x.put(w, i, a.p.Retry())
		x.settle(w, i)
		return fmt.Sprintf("proposer %d retries with %v", i, a.p.ballot)
	}
	return ""
}

// hear lets a proposer take a reply.
func (x *explorer) hear(w *world, i int, from ukai.NodeID, rep Reply) {
	p := &w.actors[i].p
	messages := p.Step(from, rep)
	if p.phase == accepting && len(messages) > 0 {
		messages = x.misjudge(p, messages)
	}
	x.put(w, i, messages)
	x.settle(w, i)
}

// misjudge breaks a rule of a proposer that has just decided what to have accepted.
func (x *explorer) misjudge(p *Proposer, messages []Message) []Message {
	switch {
	case x.s.mutation == "inituncommitted" && p.goal == goalFollow:
		return p.chosen() // a FINAL that was only seen
	case x.s.mutation == "builtonfinal" && p.goal == goalFollow:
		next, err := apply(p.change, p.target)
		if err != nil {
			return messages
		}
		p.target, p.goal, p.doubt = &next, goalCommit, &next
		return p.send(Accept)
	case x.s.mutation == "readunchosen" && p.change == Identity{}:
		return p.decide()
	}
	return messages
}

// next calls yield with each state that can follow w, and what happened.
func (x *explorer) next(w *world, yield func(*world, func() string)) {
	for i := range w.actors {
		n := w.clone()
		if what := x.act(n, i); what != "" {
			yield(n, func() string { return what })
		}
	}
	for _, m := range w.sent {
		state, rep, ok := x.ask(w, m)
		if !ok {
			continue
		}
		e := x.network[m]
		text := func(and string) func() string {
			return func() string {
				return fmt.Sprintf("%v %v instance %d from proposer %d to %d: %v%s", e.m.Request.Kind, e.m.Request.Ballot, e.m.Request.Instance, e.from, e.m.To[0], rep.Answer, and)
			}
		}
		from := w
		if state != w.acceptors[slot(e.m.Request.Instance)][e.m.To[0]] {
			from = w.clone()
			x.deliver(from, m, state, rep)
			yield(from, text(", reply lost"))
		}
		if w.actors[e.from].p.slot(e.m.To, rep.Disk, rep.Instance, rep.To, rep.Ballot) == nil {
			continue // the proposer does not care
		}
		h := from.clone()
		x.hear(h, e.from, e.m.To, rep)
		yield(h, text(""))
	}
	x.mutate(w, yield)
}

// mutate adds what must never happen.
func (x *explorer) mutate(w *world, yield func(*world, func() string)) {
	if w.broken > 0 {
		return
	}
	if x.s.mutation != "amnesia" {
		return
	}
	for at, s := range w.acceptors[0] {
		if s.Accepted == nil || s.Promised.IsZero() {
			continue
		}
		n := w.clone()
		n.broken++
		n.acceptors[0][at] = acceptorState{Format: acceptorFormat, Disk: testDisk, Accepted: x.first}
		yield(n, func() string { return fmt.Sprintf("%d forgets", at) })
	}
}

// fingerprint tells states apart.
func (x *explorer) fingerprint(w *world) uint64 {
	b := make([]byte, 0, 512)
	num := func(v uint64) { b = binary.AppendUvarint(b, v) }
	ballot := func(v Ballot) { num(v.Counter); num(uint64(v.Node[0])) }
	for instance, set := range x.s.sets {
		for _, n := range set {
			s := w.acceptors[instance][n]
			ballot(s.Promised)
			ballot(s.AcceptedAt)
			num(uint64(x.number(s.Accepted)))
			if s.Closed {
				num(1)
			}
		}
	}
	for i := range w.actors {
		a := &w.actors[i]
		p := &a.p
		num(uint64(a.retries)<<8 | uint64(p.out.State)<<4 | uint64(p.phase)<<2 | uint64(p.goal))
		if !a.started {
			continue
		}
		num(a.floor)
		num(p.counter)
		num(uint64(p.at.Instance))
		ballot(p.ballot)
		num(uint64(x.number(p.target)))
		num(uint64(x.number(p.doubt)))
		num(uint64(len(p.missed)))
		num(uint64(len(p.old.Arbiters)))
		for _, g := range p.answers {
			num(uint64(g.kind))
			if g.failed != nil {
				num(1)
			}
			ballot(g.ballot)
			num(uint64(x.number(g.accepted)))
		}
	}
	num(uint64(len(w.sent)))
	for _, m := range w.sent {
		num(uint64(m))
	}
	num(uint64(len(w.votes)))
	for _, v := range w.votes {
		num(uint64(v.instance)<<40 | uint64(v.node)<<32 | uint64(v.counter)<<24 | uint64(v.by)<<16 | uint64(v.rec))
	}
	num(uint64(w.broken))
	return maphash.Bytes(x.seed, b)
}

// exhaust visits all states, breadth first, at most limit, and returns how many and the way to the first violation.
func (x *explorer) exhaust(limit int) (states int, violation string) {
	type step struct {
		from int
		text func() string
	}
	trail := []step{{-1, nil}}
	queue := []*world{x.start()}
	seen := map[uint64]bool{x.fingerprint(queue[0]): true}
	for i := 0; i < len(queue); i++ {
		w := queue[i]
		queue[i] = nil
		x.next(w, func(n *world, text func() string) {
			if violation != "" {
				return
			}
			f := x.fingerprint(n)
			if seen[f] && x.problem == "" {
				return
			}
			seen[f] = true
			queue = append(queue, n)
			trail = append(trail, step{i, text})
			if x.problem != "" {
				var lines []string
				for k := len(trail) - 1; k > 0; k = trail[k].from {
					lines = append(lines, "  "+trail[k].text())
				}
				slices.Reverse(lines)
				violation = x.problem + "\n" + strings.Join(lines, "\n")
			}
		})
		if violation != "" || len(queue) >= limit {
			break
		}
	}
	return len(queue), violation
}

// walk goes one random way. Replies too are delayed, repeated and reordered. Each walk has links of its own that seldom
// deliver, so that minorities and majorities come about that even chances would hardly give.
func (x *explorer) walk(rnd *rand.Rand, steps int) (violation string) {
	w := x.start()
	type late struct {
		to   int
		from ukai.NodeID
		rep  Reply
	}
	var replies []late
	var lines []string
	var slow [8][6]bool
	for i := range slow {
		for j := range slow[i] {
			slow[i][j] = rnd.IntN(3) == 0
		}
	}
	delivered := map[uint16]bool{}
	for range steps {
		var what string
		switch k := rnd.IntN(16); {
		case k < 3 && len(replies) > 0:
			r := replies[rnd.IntN(len(replies))]
			x.hear(w, r.to, r.from, r.rep)
			what = fmt.Sprintf("proposer %d hears %v to %v %v from %d", r.to, r.rep.Answer, r.rep.To, r.rep.Ballot, r.from[0])
		case k < 5 || len(w.sent) == 0:
			i := rnd.IntN(len(w.actors))
			if a := &w.actors[i]; a.started && a.p.out.State == Pending && rnd.IntN(4) > 0 {
				continue // who has hopes seldom gives up
			}
			if what = x.act(w, i); what == "" {
				continue
			}
		case k == 5:
			var ways []*world
			var texts []func() string
			x.mutate(w, func(n *world, text func() string) { ways, texts = append(ways, n), append(texts, text) })
			if len(ways) == 0 {
				continue
			}
			i := rnd.IntN(len(ways))
			w, what = ways[i], texts[i]()
		default:
			m := w.sent[rnd.IntN(len(w.sent))]
			for range 3 { // new requests are likelier than late ones
				if delivered[m] {
					m = w.sent[rnd.IntN(len(w.sent))]
				}
			}
			e := x.network[m]
			if slow[e.from][e.m.To[0]] && rnd.IntN(8) > 0 {
				continue
			}
			state, rep, ok := x.ask(w, m)
			if !ok {
				continue
			}
			x.deliver(w, m, state, rep)
			delivered[m] = true
			what = fmt.Sprintf("%v %v instance %d from proposer %d reaches %d: %v", e.m.Request.Kind, e.m.Request.Ballot, e.m.Request.Instance, e.from, e.m.To[0], rep.Answer)
			if rnd.IntN(4) > 0 {
				x.hear(w, e.from, e.m.To, rep)
				what += ", heard"
			}
			if rnd.IntN(2) == 0 {
				replies = append(replies, late{e.from, e.m.To, rep})
			}
		}
		lines = append(lines, "  "+what)
		if x.problem != "" {
			return x.problem + "\n" + strings.Join(lines, "\n")
		}
	}
	return ""
}

var (
	apart   = [2][]int{{1, 2, 3}, {3, 4, 5}}
	twins   = []role{{1, "change"}, {1, "change"}} // two attempts of one node carry the same ballots
	trio    = []role{{1, "change"}, {1, "change"}, {2, "read"}}
	reader  = []role{{1, "change"}, {2, "read"}}
	rearber = []role{{1, "rearb"}, {2, "change"}}
	crowd   = []role{{1, "rearb"}, {2, "change"}, {1, "change"}, {3, "read"}}
)

// Bounds of the exploration. The deep run is TestModel's.
func bounds() (states, walks int) {
	if testing.Short() {
		return 10_000, 6000
	}
	return 60_000, 40_000
}

func TestEveryOrderOfMessagesKeepsOneChain(t *testing.T) {
	states, _ := bounds()
	for _, s := range []scenario{
		{name: "two attempts of one node", proposers: twins},
		{name: "a change and a read", proposers: reader, retries: 1},
		{name: "arbiters replaced", proposers: rearber},
		{name: "arbiters replaced, of a later instance", proposers: rearber, beyond: 2},
		{name: "an arbiter that missed its INIT", proposers: reader, late: 3},
	} {
		t.Run(s.name, func(t *testing.T) {
			s.sets = apart
			n, violation := newExplorer(s).exhaust(states)
			t.Logf("%d states", n)
			if violation != "" {
				t.Fatal(violation)
			}
		})
	}
}

// everything is what random walks go through.
var everything = []scenario{
	{name: "all at once", sets: apart, proposers: crowd, retries: 4},
	{name: "all at once, an arbiter missed its INIT", sets: apart, proposers: crowd, retries: 4, late: 2},
	{name: "all at once, of a later instance", sets: apart, proposers: crowd, retries: 4, beyond: 3},
	{name: "arbiters kept in part", sets: [2][]int{{1, 2, 3}, {2, 3, 4}}, proposers: crowd, retries: 3},
	{name: "two attempts and a read", sets: apart, proposers: trio, retries: 2},
}

const walkSteps = 120

func TestRandomWalksKeepOneChain(t *testing.T) {
	_, walks := bounds()
	for _, s := range everything {
		t.Run(s.name, func(t *testing.T) {
			for seed := range uint64(walks / len(everything)) {
				if violation := newExplorer(s).walk(rand.New(rand.NewPCG(seed, 0)), walkSteps); violation != "" {
					t.Fatalf("seed %d: %s", seed, violation)
				}
			}
		})
	}
}

// The explorer must be able to find what it looks for: each rule of the protocol, broken, gives a violation.
func TestBrokenRulesAreFound(t *testing.T) {
	changers := []role{{1, "change"}, {2, "change"}}
	rearbers := []role{{1, "rearb"}, {2, "change"}, {3, "change"}}
	for _, s := range []scenario{
		{mutation: "minority", proposers: twins},
		{mutation: "amnesia", proposers: changers, retries: 1},
		{mutation: "acceptlow", proposers: changers, retries: 1},
		{mutation: "equal", proposers: trio, retries: 1},
		{mutation: "readunchosen", proposers: []role{{1, "change"}, {2, "read"}, {3, "change"}}},
		{mutation: "inituncommitted", proposers: rearbers, retries: 1},
		{mutation: "builtonfinal", proposers: rearbers, retries: 1},
		{mutation: "initagain", proposers: rearbers, retries: 1},
		{mutation: "inituncommitted", proposers: rearbers, retries: 1, beyond: 3},
		{mutation: "builtonfinal", proposers: rearbers, retries: 1, beyond: 3},
	} {
		t.Run(s.mutation, func(t *testing.T) {
			s.sets = apart
			for seed := range uint64(50_000) {
				if violation := newExplorer(s).walk(rand.New(rand.NewPCG(seed, 0)), walkSteps); violation != "" {
					t.Logf("seed %d: %s", seed, violation)
					return
				}
			}
			t.Fatal("was not found")
		})
	}
}

// TestModel goes on for as many minutes as MODEL_MINUTES says, from a seed that MODEL_SEED may name: `make model`.
func TestModel(t *testing.T) {
	minutes, _ := strconv.ParseFloat(os.Getenv("MODEL_MINUTES"), 64)
	if minutes <= 0 {
		t.Skip("a deep run: make model MINUTES=n")
	}
	seed, err := strconv.ParseUint(os.Getenv("MODEL_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64N(1 << 40)
	}
	end := time.Now().Add(time.Duration(minutes * float64(time.Minute)))
	walks := 0
	for ; time.Now().Before(end); seed++ {
		s := everything[seed%uint64(len(everything))]
		if violation := newExplorer(s).walk(rand.New(rand.NewPCG(seed, 0)), 2*walkSteps); violation != "" {
			t.Fatalf("%s: %s\nrepeat: MODEL_MINUTES=0.01 MODEL_SEED=%d go test -run TestModel ./node/cell", s.name, violation, seed)
		}
		walks++
	}
	t.Logf("%d walks, the last with seed %d", walks, seed-1)
}
