package volume

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"time"
)

// The simulator's kernel: one virtual clock, one queue of events, one source of randomness, and processes that run one
// at a time and give way only where they wait. They are coroutines (iter.Pull), which the runtime switches by hand: there
// is no scheduler but this one, so that a seed is repeated bit for bit.

type sim struct {
	rnd   *rand.Rand
	now   time.Duration
	queue []sEvent // a heap
	seq   uint64
	steps int
	procs []*sProc
	cur   *sProc
	hash  uint64 // of all that happened
	trace *strings.Builder
	wrong string // the first violation
}

// sEvent calls f, or else goes on with a process that still waits for this very event.
type sEvent struct {
	at  time.Duration
	seq uint64
	f   func()
	p   *sProc
	gen uint64
}

func (a *sEvent) before(b *sEvent) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// sScope is what processes end with: a machine's process, or one holding of the disk.
type sScope struct {
	up   *sScope
	node *sNode
	dead bool
}

func (c *sScope) over() bool {
	for ; c != nil; c = c.up {
		if c.dead {
			return true
		}
	}
	return false
}

type sProc struct {
	scope *sScope
	next  func() (struct{}, bool)
	yield func(struct{}) bool
	gen   uint64
	ended bool
}

// sKilled unwinds a process whose scope is over.
type sKilled struct{}

func (s *sim) mix(v uint64) {
	s.hash = (s.hash ^ v) * 0x100000001b3
	s.hash ^= s.hash >> 29
}

func (s *sim) note(format string, args ...any) {
	if s.trace != nil {
		fmt.Fprintf(s.trace, "%10.6f  "+format+"\n", append([]any{s.now.Seconds()}, args...)...)
	}
}

// fail notes a violation; the first one counts.
func (s *sim) fail(format string, args ...any) {
	if s.wrong == "" {
		s.wrong = fmt.Sprintf(format, args...)
		s.note("VIOLATION: %s", s.wrong)
	}
}

func (s *sim) push(e sEvent) {
	s.seq++
	e.seq = s.seq
	s.queue = append(s.queue, e)
	for i := len(s.queue) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.queue[i].before(&s.queue[up]) {
			break
		}
		s.queue[i], s.queue[up] = s.queue[up], s.queue[i]
		i = up
	}
}

func (s *sim) pop() sEvent {
	e, last := s.queue[0], len(s.queue)-1
	s.queue[0] = s.queue[last]
	s.queue[last] = sEvent{}
	s.queue = s.queue[:last]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < last; c++ {
			if s.queue[c].before(&s.queue[least]) {
				least = c
			}
		}
		if least == i {
			return e
		}
		s.queue[i], s.queue[least] = s.queue[least], s.queue[i]
		i = least
	}
}

func (s *sim) after(d time.Duration, f func()) { s.push(sEvent{at: s.now + max(d, 0), f: f}) }

// maxSteps bounds one run: usual are some ten thousand events.
const maxSteps = 3_000_000

// run lets events happen until a time, or until done says so, and says whether it did.
func (s *sim) run(until time.Duration, done func() bool) bool {
	for len(s.queue) > 0 && s.wrong == "" && s.queue[0].at <= until {
		e := s.pop()
		s.now = e.at
		if s.steps++; s.steps > maxSteps {
			s.fail("more than %d events", maxSteps)
		}
		s.mix(uint64(e.at)<<20 ^ e.seq)
		switch {
		case e.f != nil:
			e.f()
		case e.p.ended || e.p.gen != e.gen:
		case e.p.scope.node != nil && e.p.scope.node.frozen > s.now && !e.p.scope.over():
			s.push(sEvent{at: e.p.scope.node.frozen, p: e.p, gen: e.gen})
		default:
			s.resume(e.p)
		}
		if done != nil && done() {
			return true
		}
	}
	return false
}

func (s *sim) resume(p *sProc) {
	p.gen++
	s.cur = p
	p.next()
	s.cur = nil
	if p.ended {
		for i := range s.procs {
			if s.procs[i] == p {
				last := len(s.procs) - 1
				s.procs[i] = s.procs[last]
				s.procs = s.procs[:last]
				break
			}
		}
	}
}

// spawn starts a process at this very moment, but not before the one that runs gives way.
func (s *sim) spawn(scope *sScope, f func()) {
	p := &sProc{scope: scope}
	p.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		p.yield = yield
		defer func() {
			p.ended = true
			if r := recover(); r != nil && r != any(sKilled{}) {
				panic(r)
			}
		}()
		if !scope.over() {
			f()
		}
	})
	s.procs = append(s.procs, p)
	s.push(sEvent{at: s.now, p: p, gen: p.gen})
}

// kill ends a scope and all processes in it, as soon as the one that runs gives way.
func (s *sim) kill(scope *sScope) {
	if scope.dead {
		return
	}
	scope.dead = true
	for _, p := range s.procs {
		if p != s.cur && p.scope.over() {
			s.push(sEvent{at: s.now, p: p, gen: p.gen})
		}
	}
}

// close ends every process, so that no coroutine is left.
func (s *sim) close(root *sScope) {
	root.dead = true
	for len(s.procs) > 0 {
		s.resume(s.procs[len(s.procs)-1])
	}
}

// park waits for an event made by the caller.
func (s *sim) park() {
	p := s.cur
	if p.scope.over() {
		panic(sKilled{})
	}
	p.yield(struct{}{})
	if p.scope.over() {
		panic(sKilled{})
	}
}

func (s *sim) sleep(d time.Duration) {
	s.push(sEvent{at: s.now + max(d, 0), p: s.cur, gen: s.cur.gen})
	s.park()
}

// sSignal is what processes wait for; whoever waits looks again.
type sSignal struct{ waiting []sEvent }

func (s *sim) broadcast(sig *sSignal) {
	for _, e := range sig.waiting {
		if !e.p.ended && e.p.gen == e.gen {
			s.push(sEvent{at: s.now, p: e.p, gen: e.gen})
		}
	}
	sig.waiting = sig.waiting[:0]
}

const sForever = time.Duration(1) << 60

// await waits for a signal, or until a time.
func (s *sim) await(sig *sSignal, until time.Duration) {
	e := sEvent{at: until, p: s.cur, gen: s.cur.gen}
	sig.waiting = append(sig.waiting, e)
	if until < sForever {
		s.push(e)
	}
	s.park()
}

// sLock is a lock over waits.
type sLock struct {
	held bool
	free sSignal
}

func (s *sim) lock(l *sLock) {
	for l.held {
		s.await(&l.free, sForever)
	}
	l.held = true
}

func (s *sim) unlock(l *sLock) {
	l.held = false
	s.broadcast(&l.free)
}

// Randomness.

func (s *sim) chance(p float64) bool { return p > 0 && s.rnd.Float64() < p }

func (s *sim) between(a, b time.Duration) time.Duration {
	if b <= a {
		return a
	}
	return a + time.Duration(s.rnd.Int64N(int64(b-a)))
}

// around is exponential: mostly short, sometimes long.
func (s *sim) around(mean time.Duration) time.Duration {
	return time.Duration(s.rnd.ExpFloat64() * float64(mean))
}
