package volume

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The simulator runs whole meshes, bit for bit repeatable: machines with disks that lose what was not synced, a network
// that loses, delays, repeats and reorders, guests on several hosts, operators, and the faults of sFaults, of which each
// seed takes some. It drives the real decisions: node/cell's acceptors, proposers and changes, and of this package the
// candidates, takeover, lease, fence, follow, range queues, tries and the rest that is pure. What waits and sends in this
// package is written again around them, in sim_{holder,members,attach}_test.go, without goroutines: whoever changes the
// order of steps there changes it here.
//
// Each run has a phase of faults and one without: then the disk must become whole again within convergeWithin. All the
// way the invariants I1 to I13 of the protocol are looked at (section 6.1; there are no snapshots), at the end each
// sector's history is checked by Porcupine.
//
//	sim_kernel_test.go                   clock, queue, coroutines
//	sim_node_test.go sim_cell_test.go    machines, network, disks, replicas; arbiters and what an observer of all sees
//	sim_holder_test.go sim_members_test.go sim_attach_test.go    the holder
//	sim_world_test.go sim_guest_test.go  seeds, faults, operators; guests and histories

// runSeed runs a seed, and again with a trace if something is wrong.
func runSeed(seed uint64, mutation string) (w *sWorld, trace string) {
	w = newSWorld(seed, mutation, false)
	w.simulate()
	if w.wrong == "" {
		return w, ""
	}
	again := newSWorld(seed, mutation, true)
	again.simulate()
	return w, again.trace.String()
}

func envInt(name string, other uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return other
}

// maxTraceLines bounds what a failing seed prints; SIM_TRACE=1 prints all.
const maxTraceLines = 300

func TestSimulatedMeshesKeepThePromisesOfADisk(t *testing.T) {
	seeds, first := envInt("SIM_SEEDS", 2000), envInt("SIM_FIRST", 0)
	if testing.Short() {
		seeds = min(seeds, 200)
	}
	begin, steps, ops, regrouped := time.Now(), 0, 0, 0
	for seed := first; seed < first+seeds; seed++ {
		w, trace := runSeed(seed, "")
		steps += w.steps
		ops += len(w.ops)
		regrouped += w.regrouped
		if w.wrong == "" {
			continue
		}
		lines := strings.Split(trace, "\n")
		if len(lines) > maxTraceLines && os.Getenv("SIM_TRACE") == "" {
			lines = append([]string{"..."}, lines[len(lines)-maxTraceLines:]...)
		}
		t.Fatalf("seed %d: %s\nrepeat: make sim SEEDS=1 FIRST=%d\n%s", seed, w.wrong, seed, strings.Join(lines, "\n"))
	}
	t.Logf("%d seeds, %d events, %d operations, %d splits and merges, %v", seeds, steps, ops, regrouped, time.Since(begin).Round(time.Millisecond))
	if seeds >= 100 && regrouped == 0 {
		t.Error("no blocks got replicas of their own")
	}
}

func TestASeedIsRepeatedBitForBit(t *testing.T) {
	hashes := map[uint64]bool{}
	for seed := range uint64(20) {
		a := newSWorld(seed, "", false)
		a.simulate()
		runtime.GC()
		b := newSWorld(seed, "", seed%2 == 0) // tracing changes nothing
		b.simulate()
		if a.hash != b.hash || a.steps != b.steps || len(a.ops) != len(b.ops) {
			t.Errorf("seed %d: hash %x after %d events, then %x after %d", seed, a.hash, a.steps, b.hash, b.steps)
		}
		hashes[a.hash] = true
	}
	if len(hashes) != 20 {
		t.Errorf("20 seeds have %d different courses", len(hashes))
	}
}

// sBroken are rules that the simulator can break, each with the temptation it stands for (protocol.md, section 8) and the
// seed that found it out first when this was measured. `make test` tries those that fall within quickly seeds, `make sim`
// the others too. The rest of the section: the layout as a CRDT is gossipmap; a raft group per disk is not unsafe, only
// dear.
var sBroken = []struct {
	mutation, rule string
	first          uint64
}{
	{"gossipmap", "the gossip map decides who is in sync; the layout is a CRDT", 0},
	{"nopromise", "a register that is read without a promise: the largest epoch wins", 32},
	{"amnesia", "an arbiter that forgets is an arbiter still", 42},
	{"nofence", "a lease without a fence at the replicas", 97},
	{"nosession", "an epoch fence without sessions", 139},
	{"ackearly", "a write is acknowledged by those that are alive, the others are dropped later", 0},
	{"majority", "a majority acknowledges, one is read", 3},
	{"norecover", "no re-silvering after a crash", 2},
	{"newest", "re-silvering from the replica that has applied most", 72},
	{"anyauthority", "re-silvering from any replica", 48},
	{"nounclean", "a machine that lost power vouches for its replica", 2},
	{"readinflight", "reads during a write of the same range", 4},
	{"grownomust", "promoted first, waited for afterwards", 101},
	{"copynolock", "chunks are copied without the range lock", 45},
	{"twoinflight", "two writes of one range are under way to one replica (rule O)", 104},
	{"missedclean", "a write that passed a syncing replica by leaves its block clean", 1666},
	{"dirtyauthonly", "what a returning replica has written itself is not looked at", 68},
	{"dirtyownonly", "what the others have written is not looked at", 3},
	{"equalunstamped", "a block that a resync finds equal keeps its stamp", 7127},
	{"haveafterloss", "what a replica had of a block before it lost power it has still", 0},
	{"stamplazy", "stamps are not durable before the data", 8},
	{"noinc", "a rebooted member is the same member", 17},
	{"earlystable", "stable is announced before the activation is committed", 65},
	{"stablesyncing", "stable is announced to a replica that is not in sync", 15},
	{"lateseal", "replicas that are sealed late are added to the set", 355},
	{"deleteunread", "a replica that the gossip map does not name is deleted", 4},
	{"nodrain", "a seal or hello does not wait for what runs at the replica", 3},
	{"nocheckdrain", "a checkpoint does not wait for the writes before it", 48},
	{"releasedirty", "a disk is released without a flush", 275},
	{"beatnosession", "a heartbeat confirms the epoch whatever the session", 17},
	{"ackbelow", "a write is acknowledged with fewer than min-sync replicas in sync", 23},
	{"stalegroup", "a write goes on with the replicas of the group that its block was of when it began", 4382},
	{"soleanywhere", "the error of a replica that is the only one of some blocks ends writes to any", 1013},
	{"minsyncrepair", "a replica that failed stays in the in-sync set where fewer than min-sync would be left", 23},
}

// quickly bounds the first seeds of the rules that `make test` breaks, hardly of those that `make check` does; slowly is how many seeds `make
// sim` tries. Which seed is the first changes with every change of what is driven, hence the margin.
const quickly, hardly, slowly, margin = 500, 15, 20_000, 6

func TestRulesBrokenInTheSimulatorAreFoundOut(t *testing.T) {
	tried, limit := uint64(quickly), uint64(quickly*margin)
	switch {
	case testing.Short():
		tried = hardly
	case envInt("SIM_SEEDS", 0) >= slowly:
		tried, limit = slowly, slowly
	}
	for _, b := range sBroken {
		if b.first >= tried {
			continue
		}
		t.Run(b.mutation, func(t *testing.T) {
			for seed := range limit {
				w := newSWorld(seed, b.mutation, false)
				if w.simulate(); w.wrong != "" {
					t.Logf("%s: seed %d: %s", b.rule, seed, w.wrong)
					return
				}
			}
			t.Errorf("%s: not found within %d seeds", b.rule, limit)
		})
	}
}
