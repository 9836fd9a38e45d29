package volume

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// scenario is what to explore: bounds, and the rule that is broken, if any.
type scenario struct {
	name      string
	replicas  int
	inSync    uint8 // mask at the start, 0: all
	minSync   int   // 0: one
	local     bool  // host i and replica i are on one node
	ackLocal  bool  // the guest is answered when the replica on its node has a write; needs local
	slowReads bool  // time passes between a replica's answer to a read and its arrival
	release   bool
	epochs    uint8
	writes    uint8
	max       xBudget
	mutation  string
}

// exhaust visits all states, breadth first, at most limit, and returns how many and the way to the first violation.
// complete says that there were no more.
func (x *explorer) exhaust(limit int) (states int, complete bool, violation string) {
	type origin struct {
		from uint32
		way  uint16
	}
	seed := maphash.MakeSeed()
	first := x.start()
	queue := []xWorld{first}
	origins := []origin{{}}
	seen := map[uint64]struct{}{maphash.Comparable(seed, first): {}}
	done := 0 // states taken off the queue; their place in it is given back in slices
	for len(queue) > 0 && len(origins) < limit {
		w := queue[0]
		queue = queue[1:]
		way := uint16(0)
		x.next(&w, func(n xWorld, _ string, _ ...any) {
			if violation != "" {
				return
			}
			x.normalise(&n)
			if f := maphash.Comparable(seed, n); !has(seen, f) {
				seen[f] = struct{}{}
				queue = append(queue, n)
				origins = append(origins, origin{uint32(done), way})
				if wrong := x.wrong(&n); wrong != "" {
					violation = wrong
				}
			}
			way++
		})
		if violation != "" {
			var ways []uint16
			for at := uint32(len(origins) - 1); at != 0; at = origins[at].from {
				ways = append(ways, origins[at].way)
			}
			slices.Reverse(ways)
			return len(origins), false, violation + x.tell(first, ways)
		}
		if done++; done%1024 == 0 && !x.until.IsZero() && time.Now().After(x.until) {
			break
		}
	}
	return len(origins), len(queue) == 0, ""
}

func has(set map[uint64]struct{}, f uint64) bool {
	_, ok := set[f]
	return ok
}

// tell says what happens on a way.
func (x *explorer) tell(w xWorld, ways []uint16) string {
	var b strings.Builder
	for _, way := range ways {
		at := uint16(0)
		from := w
		x.next(&from, func(n xWorld, format string, args ...any) {
			if at == way {
				fmt.Fprintf(&b, "\n  "+format, args...)
				x.normalise(&n)
				w = n
			}
			at++
		})
	}
	return b.String()
}

// walk goes one random way, on which what happens seldom is seldom.
func (x *explorer) walk(rnd *rand.Rand, steps int) (violation string) {
	first := x.start()
	w := first
	var ways []uint16
	type choice struct {
		w    xWorld
		rare bool
	}
	var choices []choice
	patience := rnd.IntN(6)
	for range steps {
		choices = choices[:0]
		x.next(&w, func(n xWorld, format string, _ ...any) {
			choices = append(choices, choice{n, rare(format)})
		})
		if len(choices) == 0 {
			return ""
		}
		at := rnd.IntN(len(choices))
		for range patience {
			if choices[at].rare {
				at = rnd.IntN(len(choices))
			}
		}
		w = choices[at].w
		x.normalise(&w)
		ways = append(ways, uint16(at))
		if wrong := x.wrong(&w); wrong != "" {
			return wrong + x.tell(first, ways)
		}
	}
	return ""
}

// rare says whether an event should not be as likely as the others.
func rare(format string) bool {
	for _, s := range []string{"claims", "crashes", "releases", "loses power", "time passes", "restarts", "is lost", "is deposed"} {
		if strings.Contains(format, s) {
			return true
		}
	}
	return false
}

const (
	walkSteps   = 120
	modelStates = 20_000_000 // of one scenario in a deep run: about 8 GB
)

// xSmall are scenarios of which every state is visited, xMedium likewise but not with -short, xLarge those with the bounds
// of the model that the protocol was designed with: they are for the deep run.
var (
	xSmall = []scenario{
		{name: "lease", replicas: 2, epochs: 2, writes: 1, max: xBudget{ticks: 1}},
		{name: "lease, replicas on the hosts, slow reads", replicas: 2, local: true, slowReads: true, epochs: 2, writes: 1, max: xBudget{ticks: 1}},
		{name: "shrink", replicas: 2, epochs: 2, writes: 2, max: xBudget{shrinks: 1}},
		{name: "join", replicas: 2, inSync: 1, epochs: 2, writes: 2, max: xBudget{joins: 1}},
		{name: "relocation", replicas: 2, inSync: 1, epochs: 1, writes: 2, max: xBudget{joins: 1, reconnects: 1, shrinks: 1}},
		{name: "join, read on the host before it is in sync", replicas: 2, inSync: 2, local: true, epochs: 2, writes: 1, max: xBudget{joins: 1, ticks: 1}},
		{name: "restarts", replicas: 2, epochs: 1, writes: 2, max: xBudget{restarts: 1, reconnects: 2}},
		{name: "three replicas", replicas: 3, epochs: 2, writes: 1},
	}
	xMedium = []scenario{
		{name: "ack=local", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 2, max: xBudget{crashes: 1, ticks: 1}},
		{name: "ack=local, join", replicas: 2, inSync: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{crashes: 1, joins: 1}},
		{name: "ack=local, shrink", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 2, max: xBudget{shrinks: 1, ticks: 1}},
		{name: "ack=local, restarts", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 2, max: xBudget{restarts: 1, reconnects: 1, crashes: 1}},
		{name: "lease and shrink", replicas: 2, epochs: 2, writes: 1, max: xBudget{ticks: 1, shrinks: 1}},
		{name: "min-sync", replicas: 2, minSync: 2, epochs: 2, writes: 2, max: xBudget{shrinks: 1, joins: 1}},
		{name: "crash and reconnect", replicas: 2, epochs: 2, writes: 2, max: xBudget{crashes: 1, reconnects: 1}},
		{name: "three epochs", replicas: 2, epochs: 3, writes: 1, max: xBudget{crashes: 1}},
		{name: "power loss and reconnect", replicas: 2, epochs: 2, writes: 1, max: xBudget{losses: 1, reconnects: 1}},
		{name: "power loss and release", replicas: 2, release: true, epochs: 2, writes: 1, max: xBudget{losses: 1}},
		{name: "power loss and flush", replicas: 2, epochs: 2, writes: 1, max: xBudget{losses: 1, flushes: 1}},
	}
	xLarge = []scenario{
		{name: "relocation to the host, read before it is in sync", replicas: 2, inSync: 2, local: true, epochs: 2, writes: 2,
			max: xBudget{crashes: 1, reconnects: 1, joins: 1, shrinks: 1, ticks: 1}},
		{name: "join, slow reads on the host before it is in sync", replicas: 2, inSync: 2, local: true, slowReads: true, epochs: 2, writes: 2,
			max: xBudget{reconnects: 1, joins: 1, ticks: 1}},
		{name: "ack=local, power loss and flush", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{flushes: 1, losses: 1}},
		{name: "ack=local, power loss, flush and reconnect", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{flushes: 1, losses: 1, reconnects: 1}},
		{name: "crash, reconnect and shrink", replicas: 2, epochs: 2, writes: 2, max: xBudget{crashes: 1, reconnects: 1, shrinks: 1, ticks: 1}},
		{name: "three epochs", replicas: 2, epochs: 3, writes: 2, max: xBudget{crashes: 1, shrinks: 1, ticks: 1}},
		{name: "replicas on the hosts, slow reads", replicas: 2, local: true, slowReads: true, epochs: 2, writes: 2, max: xBudget{shrinks: 1, ticks: 1}},
		{name: "relocation", replicas: 2, inSync: 1, epochs: 2, writes: 2, max: xBudget{crashes: 1, reconnects: 1, joins: 1, shrinks: 1, ticks: 1}},
		{name: "relocation, three writes", replicas: 2, inSync: 1, epochs: 2, writes: 3, max: xBudget{reconnects: 1, joins: 1, shrinks: 1}},
		{name: "flush and release", replicas: 2, release: true, epochs: 2, writes: 2, max: xBudget{flushes: 1, shrinks: 1, ticks: 1}},
		{name: "power loss, flush and reconnect", replicas: 2, epochs: 2, writes: 1, max: xBudget{losses: 1, flushes: 1, reconnects: 1, ticks: 1}},
		{name: "restarts", replicas: 2, epochs: 2, writes: 2, max: xBudget{restarts: 1, reconnects: 2, ticks: 1}},
		{name: "three replicas", replicas: 3, epochs: 2, writes: 1, max: xBudget{crashes: 1, shrinks: 1, ticks: 1}},
		{name: "three replicas, join", replicas: 3, inSync: 3, epochs: 2, writes: 2, max: xBudget{joins: 1, shrinks: 1}},
		{name: "join and flush over three epochs", replicas: 2, epochs: 3, writes: 1, max: xBudget{joins: 1, flushes: 1, shrinks: 1, ticks: 1}},
		{name: "three replicas over three epochs", replicas: 3, epochs: 3, writes: 1, max: xBudget{crashes: 1, flushes: 1, ticks: 1}},
	}
)

// xEverything is what random walks go through.
var xEverything = []scenario{
	{name: "all at once", replicas: 3, release: true, epochs: 3, writes: 3,
		max: xBudget{crashes: 2, losses: 2, restarts: 1, reconnects: 3, joins: 2, flushes: 3, shrinks: 3, ticks: 2}},
	{name: "all at once, replicas on the hosts", replicas: 3, local: true, release: true, epochs: 4, writes: 3,
		max: xBudget{crashes: 2, losses: 2, restarts: 1, reconnects: 3, joins: 2, flushes: 3, shrinks: 3, ticks: 3}},
	{name: "all at once, min-sync", replicas: 3, minSync: 2, release: true, epochs: 3, writes: 3,
		max: xBudget{crashes: 2, losses: 2, restarts: 1, reconnects: 3, joins: 2, flushes: 3, shrinks: 3, ticks: 2}},
	{name: "all at once, ack=local", replicas: 3, local: true, ackLocal: true, release: true, epochs: 4, writes: 3,
		max: xBudget{crashes: 2, losses: 2, restarts: 1, reconnects: 3, joins: 2, flushes: 3, shrinks: 3, ticks: 3}},
}

func TestEveryOrderOfEventsIsStrictlyLinearizable(t *testing.T) {
	scenarios := xSmall
	if !testing.Short() {
		scenarios = slices.Concat(xSmall, xMedium)
	}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			n, complete, violation := newExplorer(s).exhaust(1_000_000)
			t.Logf("%d states", n)
			if violation != "" {
				t.Fatal(violation)
			}
			if !complete {
				t.Fatal("more states than were visited")
			}
		})
	}
}

// xBroken are the rules that must not be broken, each with the bounds in which the explorer finds that out.
var xBroken = []scenario{
	{mutation: "nofence", replicas: 2, epochs: 2, writes: 2, max: xBudget{crashes: 1, reconnects: 1, shrinks: 1, ticks: 1}},
	{mutation: "nosession", replicas: 2, epochs: 2, writes: 2, max: xBudget{crashes: 1, reconnects: 1, shrinks: 1, ticks: 1}},
	{mutation: "nolease", replicas: 2, epochs: 2, writes: 1, max: xBudget{ticks: 1}},
	{mutation: "noleasewait", replicas: 2, epochs: 2, writes: 1, max: xBudget{ticks: 1}},
	{mutation: "ackearly", replicas: 2, epochs: 2, writes: 2, max: xBudget{crashes: 1, shrinks: 1}},
	{mutation: "majority", replicas: 3, epochs: 2, writes: 1},
	{mutation: "ackbelow", replicas: 2, minSync: 2, epochs: 1, writes: 1, max: xBudget{shrinks: 1}},
	{mutation: "norecover", replicas: 2, epochs: 2, writes: 2, max: xBudget{crashes: 1, shrinks: 1}},
	{mutation: "readinflight", replicas: 2, epochs: 2, writes: 2, max: xBudget{shrinks: 1}},
	{mutation: "readunion", replicas: 2, epochs: 2, writes: 2, max: xBudget{crashes: 1, shrinks: 1}},
	{mutation: "gossipmap", replicas: 2, epochs: 2, writes: 2, max: xBudget{shrinks: 1, ticks: 1}},
	{mutation: "latticeclaim", replicas: 2, epochs: 2, writes: 1, max: xBudget{shrinks: 1, ticks: 1}},
	{mutation: "noinc", replicas: 2, epochs: 2, writes: 1, max: xBudget{losses: 1, reconnects: 1}},
	{mutation: "stamplazy", replicas: 2, epochs: 2, writes: 1, max: xBudget{losses: 1, flushes: 1}},
	{mutation: "anyauthority", replicas: 2, epochs: 2, writes: 1, max: xBudget{losses: 1}},
	{mutation: "releasedirty", replicas: 2, release: true, epochs: 2, writes: 1, max: xBudget{losses: 1, flushes: 1}},
	{mutation: "copynolock", replicas: 2, inSync: 1, epochs: 2, writes: 2, max: xBudget{joins: 1, shrinks: 1}},
	{mutation: "twoinflight", replicas: 2, inSync: 1, epochs: 2, writes: 2, max: xBudget{joins: 1, shrinks: 1}},
	{mutation: "grownomust", replicas: 2, inSync: 1, epochs: 2, writes: 2, max: xBudget{joins: 1, shrinks: 1}},
	{mutation: "grownodrain", replicas: 2, inSync: 1, epochs: 2, writes: 2, max: xBudget{joins: 1, shrinks: 1}},
	{mutation: "nearlacking", replicas: 2, inSync: 2, local: true, epochs: 1, writes: 1, max: xBudget{joins: 1}},
	{mutation: "nearunwaited", replicas: 2, inSync: 2, local: true, epochs: 2, writes: 1, max: xBudget{joins: 1}},
	{mutation: "missedclean", replicas: 2, inSync: 1, epochs: 2, writes: 2, max: xBudget{joins: 1, reconnects: 1}},
	{mutation: "lateknown", replicas: 2, epochs: 2, writes: 1, max: xBudget{joins: 1}},
	{mutation: "dirtyauthonly", replicas: 2, epochs: 2, writes: 1, max: xBudget{joins: 1, flushes: 1, ticks: 1}},
	{mutation: "earlystable", replicas: 3, epochs: 3, writes: 1, max: xBudget{crashes: 2, flushes: 1, ticks: 2}},
	{mutation: "lateseal", replicas: 3, epochs: 3, writes: 3, max: xBudget{crashes: 2, losses: 2, reconnects: 3, joins: 2, flushes: 3, shrinks: 3, ticks: 2}},
	{mutation: "stablesyncing", replicas: 2, epochs: 3, writes: 2, max: xBudget{joins: 2, flushes: 1, shrinks: 1, ticks: 2}},
	{mutation: "localprefer", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{crashes: 1}},
	{mutation: "localnolease", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{ticks: 1}},
	{mutation: "localindoubt", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{shrinks: 1, ticks: 1}},
	{mutation: "localunnamed", replicas: 2, inSync: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{crashes: 1, joins: 1}},
	{mutation: "localreadany", replicas: 2, local: true, ackLocal: true, epochs: 1, writes: 1},
	{mutation: "localnodrain", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{flushes: 1, losses: 1, ticks: 1}},
	{mutation: "behinduncounted", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{flushes: 1, losses: 1, ticks: 1}},
	{mutation: "behindredone", replicas: 2, local: true, ackLocal: true, epochs: 1, writes: 1, max: xBudget{flushes: 1, losses: 1, reconnects: 1}},
	{mutation: "localshrink", replicas: 2, local: true, ackLocal: true, epochs: 2, writes: 1, max: xBudget{shrinks: 1}},
	{mutation: "beatnosession", replicas: 2, epochs: 1, writes: 1, max: xBudget{losses: 1}},
	{mutation: "stablenosession", replicas: 2, epochs: 3, writes: 2, max: xBudget{losses: 1, restarts: 1, reconnects: 1, flushes: 1, ticks: 1}},
}

func TestBrokenRulesOfTheDataPathAreFound(t *testing.T) {
	for _, s := range xBroken {
		t.Run(s.mutation, func(t *testing.T) {
			x := newExplorer(s)
			for seed := range uint64(3000) {
				if violation := x.walk(rand.New(rand.NewPCG(seed, 0)), walkSteps); violation != "" {
					t.Logf("seed %d: %s", seed, violation)
					return
				}
			}
			n, _, violation := x.exhaust(1_000_000)
			t.Logf("%d states: %s", n, violation)
			if violation == "" {
				t.Fatal("was not found")
			}
		})
	}
}

func TestRandomWalksAreStrictlyLinearizable(t *testing.T) {
	walks := 10_000
	if testing.Short() {
		walks = 2000
	}
	for _, s := range xEverything {
		t.Run(s.name, func(t *testing.T) {
			x := newExplorer(s)
			for seed := range uint64(walks) {
				if violation := x.walk(rand.New(rand.NewPCG(seed, 0)), walkSteps); violation != "" {
					t.Fatalf("seed %d: %s", seed, violation)
				}
			}
		})
	}
}

// TestModel goes on for as many minutes as MODEL_MINUTES says: half of the time exhaustively, then by random walks from
// a seed that MODEL_SEED may name (then there are only walks): `make model`.
func TestModel(t *testing.T) {
	minutes, _ := strconv.ParseFloat(os.Getenv("MODEL_MINUTES"), 64)
	if minutes <= 0 {
		t.Skip("a deep run: make model MINUTES=n")
	}
	begin := time.Now()
	end := begin.Add(time.Duration(minutes * float64(time.Minute)))
	seed, err := strconv.ParseUint(os.Getenv("MODEL_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64N(1 << 40)
		for i, s := range xLarge {
			x := newExplorer(s)
			x.until = begin.Add(end.Sub(begin) / 2 * time.Duration(i+1) / time.Duration(len(xLarge)))
			n, complete, violation := x.exhaust(modelStates)
			t.Logf("%s: %d states, all=%v, %v", s.name, n, complete, time.Since(begin).Round(time.Second))
			if violation != "" {
				t.Fatal(violation)
			}
		}
	}
	var explorers []*explorer
	for _, s := range xEverything {
		explorers = append(explorers, newExplorer(s))
	}
	walks := 0
	for ; time.Now().Before(end); seed++ {
		x := explorers[seed%uint64(len(explorers))]
		if violation := x.walk(rand.New(rand.NewPCG(seed, 0)), 2*walkSteps); violation != "" {
			t.Fatalf("%s: %s\nrepeat: MODEL_MINUTES=0.01 MODEL_SEED=%d go test -run TestModel ./node/volume", x.s.name, violation, seed)
		}
		walks++
	}
	t.Logf("%d walks, the last with seed %d", walks, seed-1)
}
