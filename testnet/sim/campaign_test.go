package sim

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node"
	"ukai/node/admin"
	"ukai/testnet/history"
	"ukai/testnet/memnet"
)

var (
	firstSeed = flag.Uint64("first", 1, "first seed of the random campaigns")
	seeds     = flag.Uint64("seeds", 0, "how many seeds; 0: those of an ordinary test run")
)

const (
	ordinarySeeds = 50
	shortSeeds    = 4
	// breakFor is how long faults are made, virtual; what converges after it has awaitCalm.
	breakFor = 45 * time.Second
	// awaitReturn bounds how long an operation may still take when all faults are gone.
	awaitReturn = time.Minute
	// awaitCalm bounds how long a mesh may need until all disks are as their rules say: a replica that came and went is
	// tried again after up to five minutes.
	awaitCalm = 15 * time.Minute
)

// TestNothingIsLostOrStaleInAMeshThatIsBrokenAtRandom runs one campaign per seed. The seed fixes the mesh, the workload and the
// faults, but not the schedule: a failure leaves its history.
func TestNothingIsLostOrStaleInAMeshThatIsBrokenAtRandom(t *testing.T) {
	n := *seeds
	switch {
	case n > 0:
	case testing.Short():
		n = shortSeeds
	default:
		n = ordinarySeeds
	}
	for seed := *firstSeed; seed < *firstSeed+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runCampaign(t, seed) })
		})
	}
}

// campaign is a mesh, the programs that use its disks, and what is broken in it.
type campaign struct {
	t        *testing.T
	seed     uint64
	rng      *rand.Rand // of the shape and the faults; the programs have their own
	m        *Mesh
	machines []*machine
	disks    []*disk
	journal  journal
	clock    clock
	nextID   atomic.Uint64

	stop chan struct{} // the programs end
	work sync.WaitGroup

	active  []*fault
	cuts    []powerCut
	removed sync.Map     // ukai.ReplicaID -> time.Time
	ranges  atomic.Int32 // of blocks that got a rule
	records map[string]string
	stacks  []byte // of all goroutines, when programs did not end
	broken  string // the machine on which a replica's medium failed; such a replica stays out until it is removed
	dropped bool   // it has had the time to be dropped
}

// machine is a node that programs and faults meet.
type machine struct {
	*Node
	live  atomic.Pointer[node.Node] // nil while it is down
	store diskFault
}

type powerCut struct {
	machine string
	at      time.Time
}

// disk is one disk and what was seen of it.
type disk struct {
	history.History
	number uint32
	name   string
	rule   string
	rules  []string // it may get
	ack    string
	size   atomic.Int64
	epochs sync.Map // epoch -> node, of those told of
}

// clock gives times that all differ: of two operations at one instant of virtual time it is known which came first.
type clock struct {
	mu   sync.Mutex
	last time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := time.Now(); t.After(c.last) {
		c.last = t
	} else {
		c.last = c.last.Add(1)
	}
	return c.last
}

// journal is what the nodes log and the campaign tells, with times that fit the histories.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) add(at time.Time, format string, args ...any) {
	line := history.Clock(at) + " " + fmt.Sprintf(format, args...)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.WriteString(line)
	j.text.WriteByte('\n')
}

func (c *campaign) logf(format string, args ...any) { c.journal.add(c.clock.now(), format, args...) }

// nodeLog hears the log of one node.
type nodeLog struct {
	c  *campaign
	at string
}

func (l nodeLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l nodeLog) WithGroup(string) slog.Handler                    { return l }
func (l nodeLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "at" {
			l.at = a.Value.String()
		}
	}
	return l
}

// Handle notes who becomes a disk's holder, and what may be lost by that.
func (l nodeLog) Handle(_ context.Context, r slog.Record) error {
	at := l.c.clock.now()
	text, name, epoch := "", "", ukai.Epoch(0)
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		switch v := a.Value.Any().(type) {
		case string:
			if a.Key == "disk" {
				name = v
			}
		case ukai.Epoch:
			epoch = v
		}
		return true
	})
	l.c.journal.add(at, "%s %s %s%s", l.at, r.Level, r.Message, text)
	for _, d := range l.c.disks {
		switch {
		case d.name != name:
			continue
		case r.Message == "writes that were acknowledged and not flushed may be lost":
			d.Loses(history.Loss{Node: l.at, Epoch: uint64(epoch), At: at})
			continue
		case r.Message != "attached":
			continue
		}
		d.Took(history.Takeover{Node: l.at, Epoch: uint64(epoch), At: at})
		if other, twice := d.epochs.LoadOrStore(epoch, l.at); twice {
			l.c.journal.add(at, "VIOLATION I2: epoch %v of %s belongs to %v and to %s", epoch, name, other, l.at)
		}
	}
	return nil
}

// shapes are the meshes, and the rules that each can meet.
var shapes = []struct {
	nodes string
	rules []string
}{
	{"t1:tokyo t2:tokyo o1:osaka", []string{"any:2", "dc=tokyo:1 dc=osaka:1", "any:3", "dc=tokyo:2"}},
	{"t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", []string{"any:2", "dc=tokyo:2", "any:3"}},
	{"t1:tokyo t2:tokyo o1:osaka o2:osaka", []string{"any:2", "dc=tokyo:2", "dc=osaka:2", "dc=tokyo:1 dc=osaka:1", "any:3", "dc=tokyo:2 dc=osaka:1"}},
	{"t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness", []string{"any:2", "dc=tokyo:2", "dc=tokyo:1 dc=osaka:1", "any:3", "dc=tokyo:1 dc=osaka:2"}},
	{"t1:tokyo t2:tokyo t3:tokyo o1:osaka o2:osaka", []string{"any:2", "dc=tokyo:2", "dc=tokyo:3", "dc=tokyo:2 dc=osaka:1", "dc=osaka:1 dc=tokyo:1", "any:3"}},
}

func runCampaign(t *testing.T, seed uint64) {
	c := &campaign{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6d657368)), stop: make(chan struct{}), records: map[string]string{}}
	c.m = New(t, seed)
	c.m.Log = nodeLog{c: c}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("ukai-sim-mesh-%d", seed))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	defer c.keep(dir)
	defer c.m.Stop()

	shape := shapes[c.rng.IntN(len(shapes))]
	c.m.AddAll(shape.nodes)
	c.network()
	for _, n := range c.m.Order {
		s := &machine{Node: n}
		s.live.Store(n.Node)
		s.store.removed = func(r ukai.ReplicaID) { c.removed.Store(r, time.Now()) }
		n.Fault = s.store.ask
		c.machines = append(c.machines, s)
	}
	for i := range 2 + c.rng.IntN(2) {
		d := &disk{number: uint32(i + 1), name: fmt.Sprintf("d%d", i+1), rule: shape.rules[c.rng.IntN(len(shape.rules))], rules: append(slices.Clone(shape.rules), "ssd=yes:1 any:1"), ack: [...]string{"all", "local"}[(seed+uint64(i))%2]}
		d.size.Store(diskBytes)
		c.disks = append(c.disks, d)
		c.m.CreateAck(d.name, diskBytes, d.rule, d.ack)
		c.logf("%s is to be on %s, ack=%s", d.name, d.rule, d.ack)
	}
	for _, d := range c.disks {
		c.use(d, c.rng.Uint64())
	}
	c.breakThings(breakFor)
	c.healAll()
	c.logf("all is healed")
	close(c.stop)
	if !c.returned() {
		t.Fatal("operations have not returned: the bubble cannot end") // a goroutine that waits for ever is told of by synctest
	}
	c.undoOrders()
	c.calm()
	c.readAll()
	c.m.Await("nobody holds a disk", func() error { return c.each(idle) })
	c.compareCatalogs()
	c.compareReplicas()
	c.check(dir)
}

// returned waits until all programs have ended.
func (c *campaign) returned() bool {
	done := make(chan struct{})
	go func() { c.work.Wait(); close(done) }()
	start := time.Now()
	select {
	case <-done:
		c.logf("all programs have ended after %v", time.Since(start))
		return true
	case <-time.After(awaitReturn):
	}
	c.stacks = make([]byte, 16<<20)
	c.stacks = c.stacks[:runtime.Stack(c.stacks, true)]
	c.fail("programs have not ended %v after all was healed", awaitReturn)
	select {
	case <-done:
		c.logf("all programs have ended after %v", time.Since(start))
		return true
	case <-time.After(awaitCalm):
		return false
	}
}

func (c *campaign) fail(format string, args ...any) {
	c.t.Helper()
	c.logf("FAILED: "+format, args...)
	c.t.Errorf(format, args...)
}

// keep saves what a failed campaign leaves, and says how to repeat it.
func (c *campaign) keep(dir string) {
	if !c.t.Failed() {
		return
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Error(err)
	}
	for _, d := range c.disks {
		var text strings.Builder
		for _, o := range d.Ops() {
			text.WriteString(o.String() + "\n")
		}
		if err := os.WriteFile(filepath.Join(dir, d.name+".history"), []byte(text.String()), 0o600); err != nil {
			c.t.Error(err)
		}
	}
	c.journal.mu.Lock()
	text := c.journal.text.String()
	c.journal.mu.Unlock()
	for name, data := range map[string][]byte{"log": []byte(text), "goroutines": c.stacks} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			c.t.Error(err)
		}
	}
	c.t.Logf("histories and the log of all nodes are in %s; the same mesh, workload and faults again: make sim-mesh FIRST=%d SEEDS=1", dir, c.seed)
}

// network gives the links their delays.
func (c *campaign) network() {
	near := memnet.Link{Delay: time.Duration(50+c.rng.IntN(500)) * time.Microsecond}
	far := time.Duration(1+c.rng.IntN(20)) * time.Millisecond
	c.m.Net.SetDefault(near)
	loss := 0.0
	if c.rng.IntN(3) == 0 {
		loss = float64(c.rng.IntN(20)) / 1000
	}
	wan(c.m, far, loss, "tokyo", "osaka", "fukuoka")
	c.logf("links: %v within a datacenter, %v with %.1f %% loss between two", near.Delay, far, 100*loss)
}

// each asks all nodes about all disks.
func (c *campaign) each(ask func(*node.Node, admin.Disk) error) error {
	for _, d := range c.disks {
		for _, s := range c.machines {
			n := s.live.Load()
			if n == nil {
				return fmt.Errorf("%s is down", s.Name)
			}
			info, err := n.Disk(c.t.Context(), d.name)
			if err == nil {
				err = ask(n, info)
			}
			if err != nil {
				return fmt.Errorf("%s as %s knows it: %w", d.name, s.Name, err)
			}
		}
	}
	return nil
}

func idle(_ *node.Node, d admin.Disk) error {
	if d.State != admin.DiskIdle {
		return fmt.Errorf("%s, %s", d.State, d.Why)
	}
	return nil
}
