//go:build linux

package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"ukai/testnet/proc"
	"ukai/testnet/wan"
)

// base is the network without faults: one-way delays between datacenters.
func base(a, b *proc.Node) wan.Link {
	if a.DC == b.DC {
		return wan.Link{Delay: 200 * time.Microsecond}
	}
	delay := 4 * time.Millisecond
	if a.DC == "fukuoka" || b.DC == "fukuoka" {
		delay = 8 * time.Millisecond
	}
	return wan.Link{Delay: delay, Jitter: delay / 10}
}

// fault is one that is in force.
type fault struct {
	kind  string
	node  *proc.Node // whose process or disk it is; nil for links
	peers [2]*proc.Node
	until time.Time
	link  func(from, to *proc.Node, l *wan.Link) // nil if links are not concerned
	heal  func() error
	text  string
}

func (f *fault) String() string { return f.text }

// breaker makes faults in a mesh.
type breaker struct {
	m      *proc.Mesh
	rng    *rand.Rand
	whims  *rand.Rand        // of administrators
	nodes  []*proc.Node      // in order, so that a seed means the same
	spared *proc.Node        // where fio or the guest runs: its process is not killed, its power not cut
	disks  []string          // those that must keep an in-sync replica
	home   func() *proc.Node // which is broken more often than others
	flee   func()            // has the programs at home go on elsewhere
	lossy  bool              // the last in-sync replica has lost power, see cutPower
	active []*fault
	log    func(format string, args ...any)
	counts map[string]int
}

// kinds of faults and how often each is chosen.
var kinds = []struct {
	name   string
	weight int
}{
	{"kill", 6}, {"freeze", 5}, {"cut", 3}, {"one-way cut", 3}, {"isolate", 4}, {"deaf", 2}, {"mute", 2}, {"slow", 4}, {"full", 2}, {"power cut", 2},
	{"lag and kill", 9},
}

// rules that disks get, one after the other, at random. All ask for two copies at least.
var rules = [][]string{{"dc=tokyo:2", "dc=osaka:1"}, {"dc=tokyo:1", "dc=osaka:2"}, {"dc=tokyo:1", "dc=osaka:1"}, {"dc=tokyo:2"}, {"dc=osaka:2"}, {"any:3"}, {"node!=t1:2"}}

const (
	maxActive = 2               // faults at a time
	ruleEvery = 6 * time.Second // a disk gets another rule, on average
)

// run breaks and heals until a time; then all is healed.
func (b *breaker) run(until time.Time) error {
	next := time.Now()
	whim := next.Add(ruleEvery / 2)
	for now := next; now.Before(until); now = time.Now() {
		if err := b.expire(now); err != nil {
			return err
		}
		if len(b.active) < maxActive && now.After(next) {
			if err := b.begin(until); err != nil {
				return err
			}
			next = time.Now().Add(300*time.Millisecond + time.Duration(b.rng.Int64N(int64(2200*time.Millisecond))))
		}
		if now.After(whim) {
			b.newRule()
			whim = time.Now().Add(ruleEvery/2 + time.Duration(b.whims.Int64N(int64(ruleEvery))))
		}
		time.Sleep(20 * time.Millisecond)
	}
	return b.expire(time.Time{})
}

// expire heals what is due; the zero time, everything.
func (b *breaker) expire(now time.Time) error {
	changed := false
	for _, f := range slices.Clone(b.active) {
		if now.IsZero() || now.After(f.until) {
			changed = true
			b.active = slices.DeleteFunc(b.active, func(g *fault) bool { return g == f })
			if f.heal != nil {
				if err := f.heal(); err != nil {
					return fmt.Errorf("heal %v: %w", f, err)
				}
			}
			b.log("healed: %v", f)
		}
	}
	if changed {
		b.shape()
	}
	return nil
}

// shape sets every link as the faults in force want it.
func (b *breaker) shape() {
	for _, from := range b.nodes {
		for _, to := range b.nodes {
			if from == to {
				continue
			}
			l := base(from, to)
			for _, f := range b.active {
				if f.link != nil {
					f.link(from, to, &l)
				}
			}
			b.m.Net.SetLink(from.Name, to.Name, l)
		}
	}
}

// begin chooses a fault and makes it. All is drawn before anything is looked at, so that the choice follows from the seed alone.
func (b *breaker) begin(until time.Time) error {
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	pick := b.rng.IntN(total)
	kind := ""
	for _, k := range kinds {
		if pick -= k.weight; pick < 0 {
			kind = k.name
			break
		}
	}
	a := b.nodes[b.rng.IntN(len(b.nodes))]
	c := b.nodes[b.rng.IntN(len(b.nodes))]
	if b.rng.IntN(3) == 0 {
		a = b.home()
	}
	span := time.Second + time.Duration(b.rng.Int64N(int64(9*time.Second)))
	switch b.rng.IntN(6) {
	case 0, 1:
		span += 12 * time.Second // until others take the node for dead
	case 2, 3:
		span /= 12 // over before anybody is given up
	}
	flees := b.rng.IntN(2) == 0 && a == b.home()
	slow := wan.Link{
		Delay: time.Duration(5+b.rng.IntN(300)) * time.Millisecond, Jitter: time.Duration(1+b.rng.IntN(30)) * time.Millisecond,
		Loss: float64(b.rng.IntN(15)) / 100, Duplicate: float64(b.rng.IntN(10)) / 100, Reorder: float64(b.rng.IntN(10)) / 100,
	}
	end := time.Now().Add(span)
	if end.After(until) {
		end = until
	}
	f := &fault{kind: kind, until: end, text: fmt.Sprintf("%s of %s for %v", kind, a.Name, span.Round(time.Millisecond))}
	between := func(from, to, x, y *proc.Node) bool { return from == x && to == y }
	switch kind {
	case "kill":
		if a == b.spared || b.busy(a) || b.full(a) {
			return nil
		}
		f.node = a
		a.Kill()
		f.heal = func() error { a.Start(); return nil }
	case "freeze":
		if b.busy(a) {
			return nil
		}
		f.node = a
		a.Signal(syscall.SIGSTOP)
		f.heal = func() error { a.Signal(syscall.SIGCONT); return nil }
	case "cut", "one-way cut":
		if a == c {
			return nil
		}
		f.peers = [2]*proc.Node{a, c}
		f.text = fmt.Sprintf("%s from %s to %s for %v", kind, a.Name, c.Name, span.Round(time.Millisecond))
		f.link = func(from, to *proc.Node, l *wan.Link) {
			l.Down = l.Down || between(from, to, a, c) || kind == "cut" && between(from, to, c, a)
		}
	case "isolate", "deaf", "mute":
		f.link = func(from, to *proc.Node, l *wan.Link) {
			l.Down = l.Down || from == a && kind != "deaf" || to == a && kind != "mute"
		}
	case "slow":
		f.text += fmt.Sprintf(": %+v", slow)
		f.link = func(from, to *proc.Node, l *wan.Link) {
			if from == a || to == a {
				down := l.Down
				*l = slow
				l.Down = down
			}
		}
	case "full":
		if a.Volume == nil || !a.Running() || b.full(a) || !b.another(a) {
			return nil
		}
		if err := a.Volume.Fill(); err != nil {
			return err
		}
		f.peers[0] = a
		f.heal = a.Volume.Free
	case "power cut":
		return b.cutPower(a)
	case "lag and kill":
		return b.lagAndKill(f, slow.Delay)
	}
	b.note(f)
	if flees {
		b.flee()
	}
	return nil
}

// newRule has an administrator give a disk another rule at a node. It may be refused.
func (b *breaker) newRule() {
	disk, rule, a := b.disks[b.whims.IntN(len(b.disks))], rules[b.whims.IntN(len(rules))], b.nodes[b.whims.IntN(len(b.nodes))]
	if b.busy(a) || !a.Running() {
		return
	}
	b.counts["new rule"]++
	b.log("%s is to be on %s, says %s", disk, strings.Join(rule, " "), a.Name)
	if _, err := a.Run(append([]string{"place", "disk", disk}, rule...)...); err != nil {
		b.counts["new rule refused"]++
		b.log("refused: %v", err)
	}
}

// lagAndKill kills the node that has the first disk attached, and a replica of it, while what it sends needs long, and until others have
// taken the disk: they have what was flushed, and with ack=local not all of the rest.
func (b *breaker) lagAndKill(f *fault, delay time.Duration) error {
	s, err := b.ask(b.disks[0])
	if err != nil || s.Holder == nil || !s.inSync(s.Holder.Name) {
		return nil //nolint:nilerr // nobody has it, or nobody can be asked
	}
	a := b.m.Nodes[s.Holder.Name]
	if a == b.spared || b.busy(a) || b.full(a) {
		return nil
	}
	f.text = fmt.Sprintf("links from %s need %v", a.Name, delay)
	f.link = func(from, _ *proc.Node, l *wan.Link) {
		if from == a {
			l.Delay += delay
		}
	}
	b.note(f)
	time.Sleep(delay * 2) // the fault itself
	a.Kill()
	f.node, f.until = a, time.Now().Add(lagAndKillFor)
	f.heal = func() error { a.Start(); return nil }
	b.log("fault: kill of %s for %v", a.Name, lagAndKillFor)
	if a == b.home() {
		b.flee()
	}
	return nil
}

// lagAndKillFor is longer than others need to take a node for dead and the disk from it.
const lagAndKillFor = 20 * time.Second

func (b *breaker) note(f *fault) {
	b.active = append(b.active, f)
	b.counts[f.kind]++
	b.log("fault: %v", f)
	b.shape()
}

// busy says whether a node's process is under a fault already.
func (b *breaker) busy(n *proc.Node) bool {
	return slices.ContainsFunc(b.active, func(f *fault) bool { return f.node == n })
}

// full says whether a node's file system is full: then its process refuses to start.
func (b *breaker) full(n *proc.Node) bool {
	return slices.ContainsFunc(b.active, func(f *fault) bool { return f.kind == "full" && f.peers[0] == n })
}

// replica is what `disk show` tells of one.
type replica struct {
	ID   string
	Node struct{ Name string }
	Role string
	Why  string
}

// shown is what `disk show` tells of a disk.
type shown struct {
	State    string
	Holder   *struct{ Name string }
	Why      string
	ID       string
	Epoch    string
	Replicas []replica
}

func (s *shown) inSync(node string) bool {
	return slices.ContainsFunc(s.Replicas, func(r replica) bool { return r.Node.Name == node && r.Role == "in sync" })
}

// count counts the replicas in sync.
func (s *shown) count() (n int) {
	for _, r := range s.Replicas {
		if r.Role == "in sync" {
			n++
		}
	}
	return n
}

func (s *shown) String() string {
	var all []string
	for _, r := range s.Replicas {
		all = append(all, r.Node.Name+" "+r.Role)
	}
	return s.State + ": " + strings.Join(all, ", ")
}

// ask returns what a node other than one of those left out tells of a disk.
func (b *breaker) ask(disk string, not ...*proc.Node) (s shown, err error) {
	err = fmt.Errorf("no node can be asked")
	for _, n := range b.nodes {
		if slices.Contains(not, n) || b.busy(n) || !n.Running() {
			continue
		}
		if err = n.JSON(&s, "disk", "show", disk); err == nil {
			return s, nil
		}
	}
	return s, err
}

// another says whether every disk certainly has another in-sync replica than that of a node, on a node that is not full.
func (b *breaker) another(than *proc.Node) bool {
	for _, disk := range b.disks {
		s, err := b.ask(disk, than)
		if err != nil {
			return false
		}
		if s.inSync(than.Name) && !slices.ContainsFunc(b.nodes, func(n *proc.Node) bool {
			return n != than && s.inSync(n.Name) && !b.full(n)
		}) {
			return false
		}
	}
	return true
}

// cutPower ends a node's machine with all that it had not synced, and boots it again when no disk in use counts it as in sync any more. Until
// then nothing else is broken: acknowledged writes that nobody flushed may be lost if every in-sync replica lost power, and programs that
// verify themselves are not to see that. So all replicas are to be in sync before. If the last of the others was dropped in that very
// moment, as may happen on a busy machine, that is noted.
func (b *breaker) cutPower(n *proc.Node) error {
	if n == b.spared || n.Volume == nil {
		return nil
	}
	if err := b.expire(time.Time{}); err != nil {
		return err
	}
	for start := time.Now(); !b.whole(); time.Sleep(200 * time.Millisecond) {
		if time.Since(start) > patienceForWhole {
			return nil
		}
	}
	f := &fault{kind: "power cut", node: n, text: "power cut of " + n.Name}
	n.PowerCut()
	b.note(f)
	if n == b.home() {
		b.flee()
	}
	for start := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		counted, last := false, false
		for _, disk := range b.disks {
			s, err := b.ask(disk)
			in := err != nil || s.inSync(n.Name)
			if in && err == nil && s.State == "idle" && time.Since(start) > patienceForWhole {
				in = false // its program has ended: all of it was flushed, and nobody asks whether its replicas live
			}
			counted = counted || in
			last = last || in && err == nil && s.count() == 1
		}
		if !counted {
			b.log("dropped %v after it lost power", time.Since(start).Round(100*time.Millisecond))
			break
		}
		if last && time.Since(start) > patienceForWhole {
			b.log("it has the last in-sync replica: writes that nobody flushed may be lost")
			b.lossy = true
			break
		}
		if time.Since(start) > proc.Patience {
			return fmt.Errorf("%s lost power %v ago and still counts as in sync", n.Name, proc.Patience)
		}
	}
	n.Start()
	return b.expire(time.Time{})
}

// patienceForWhole bounds the wait for replicas to be in sync before the power of one is cut.
const patienceForWhole = 15 * time.Second

// whole says whether all replicas are in sync.
func (b *breaker) whole() bool {
	for _, disk := range b.disks {
		if s, err := b.ask(disk); err != nil || s.count() < len(s.Replicas) {
			return false
		}
	}
	return true
}
