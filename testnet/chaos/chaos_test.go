//go:build linux

package chaos

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ukai/testnet/guest"
	"ukai/testnet/history"
	"ukai/testnet/proc"
)

var (
	runFor = flag.Duration("for", 2*time.Minute, "how long to break things; the check comes on top")
	seed   = flag.Uint64("seed", 0, "seed of the faults; 0: a new one")
)

const (
	episode   = 35 * time.Second // of faults, with disks of its own
	volumeMiB = 256
)

func TestNoAcknowledgedWriteIsLostAndNothingStaleIsReadUnderRandomFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real processes for minutes")
	}
	if *seed == 0 {
		*seed = rand.Uint64N(1 << 32)
	}
	r := newRun(t, *seed, *runFor)
	defer r.report()
	for end := time.Now().Add(*runFor); time.Now().Before(end) && !t.Failed(); r.episodes++ {
		r.episode(min(time.Until(end), episode))
	}
}

// run is one run of several episodes.
type run struct {
	t        *testing.T
	seed     uint64
	begin    time.Time
	m        *proc.Mesh
	nodes    []*proc.Node
	mounts   []*proc.Node // through which disks are used
	hands    []*hand
	dir      string // for the report and what a failure leaves
	image    guest.Image
	nextID   atomic.Uint64
	episodes int
	rec      *recorder // of the last episode
	rng      *rand.Rand

	lines  []string
	faults map[string]int
	counts map[string]int
	stalls []*history.Op
	checks history.Verdict
}

func newRun(t *testing.T, seed uint64, d time.Duration) *run {
	root, err := proc.Root()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{
		t: t, seed: seed, begin: time.Now(), faults: map[string]int{}, counts: map[string]int{}, rng: rand.New(rand.NewPCG(seed, 0x6368616f73)),
		dir: filepath.Join(root, "run", "chaos", strconv.FormatUint(seed, 10)),
	}
	if err := errors.Join(os.RemoveAll(r.dir), os.MkdirAll(r.dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	r.image, err = guest.Build(t.Context(), root, t.TempDir())
	if _, missing := exec.LookPath("qemu-system-x86_64"); err != nil || missing != nil {
		t.Skipf("no guest: %v %v", err, missing)
	}
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio is not installed: run .ci/setup test")
	}
	if r.hands, err = newHands(4 * workersPerNode); err != nil {
		t.Skip(err)
	}
	specs := proc.Specs("t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness")
	for i := range specs {
		if !specs[i].Witness {
			specs[i].DiskMiB = volumeMiB
		}
	}
	r.m = proc.StartNodes(t, specs)
	for _, s := range specs {
		n := r.m.Nodes[s.Name]
		r.nodes = append(r.nodes, n)
		if !s.Witness {
			r.mounts = append(r.mounts, n)
		}
	}
	r.logf("seed %d for %v; to repeat: make chaos SEED=%d MINUTES=%.0f", seed, d, seed, max(1, d.Minutes()))
	return r
}

func (r *run) logf(format string, args ...any) {
	line := fmt.Sprintf("%8.2fs %s %s", time.Since(r.begin).Seconds(), history.Clock(time.Now()), fmt.Sprintf(format, args...))
	r.lines = append(r.lines, line)
	r.t.Log(line)
}

func (r *run) fail(format string, args ...any) {
	r.t.Helper()
	r.lines = append(r.lines, "FAILED: "+fmt.Sprintf(format, args...))
	r.t.Errorf(format, args...)
}

// episode breaks things for a while with new disks, heals, and checks everything.
func (r *run) episode(d time.Duration) {
	n := r.episodes + 1
	recorded, other := fmt.Sprintf("rec%d", n), fmt.Sprintf("own%d", n)
	acks := r.acks(n)
	spared := r.mounts[r.rng.IntN(len(r.mounts))]
	faultSeed, workSeed := r.rng.Uint64(), r.rng.Uint64()
	at := r.nodes[0]
	at.Must("disk", "create", recorded, "16M", "dc=tokyo:2", "dc=osaka:1", "--block-size", "1M", "--ack", acks[0])
	at.Must("disk", "create", other, "32M", "dc=tokyo:1", "dc=osaka:1", "--block-size", "1M", "--ack", acks[1])
	r.m.AwaitDisk(recorded)
	r.m.AwaitDisk(other)

	rec := newRecorder(uint32(n), recorded, r.mounts, r.hands, &r.nextID)
	r.rec = rec
	rec.start(workSeed)
	var own verifier
	if n%2 == 1 {
		own = r.fio(spared.Path(other), d)
	} else {
		own = r.guest(spared.Path(other))
	}
	r.logf("episode %d: %s (ack=%s) is recorded through %d mounts, %s on %s verifies itself (ack=%s)", n, recorded, acks[0], len(r.mounts), own.what, spared.Name, acks[1])
	b := &breaker{
		m: r.m, rng: rand.New(rand.NewPCG(faultSeed, 1)), whims: rand.New(rand.NewPCG(faultSeed, 2)), nodes: r.nodes, spared: spared, disks: []string{recorded, other}, log: r.logf, counts: r.faults,
		home: func() *proc.Node { return r.mounts[rec.home.Load()] }, flee: rec.flee,
	}
	b.shape()
	// What runs must see no error; what begins to use a disk while no majority of its arbiters can be reached may be refused.
	r.m.Await(other+" attached by "+own.what, func() error {
		s, err := b.ask(other)
		if err == nil && s.State != "attached" {
			err = fmt.Errorf("it is %s", s.State)
		}
		return err
	})
	if err := b.run(time.Now().Add(d)); err != nil {
		r.fail("episode %d: %v", n, err)
	}
	r.logf("all is healed")
	r.m.AwaitAlive(len(r.nodes))
	if hanging := rec.finish(proc.Patience); len(hanging) > 0 {
		r.fail("operations have not returned %v after all was healed: %v", proc.Patience, hanging)
		return
	}
	r.logf("all operations have returned")
	if err := own.end(); err != nil && !b.lossy {
		r.fail("%s on %s: %v", own.what, spared.Name, err)
	}
	r.logf("%s has ended", own.what)
	r.settled(b, recorded, other)
	r.compare(rec, recorded)
	r.logf("%s was read through all mounts", recorded)
	r.compareFiles(b, recorded)
	r.compareFiles(b, other)
	r.check(rec, acks[0] == "local" || b.lossy)
	for _, disk := range []string{recorded, other} {
		r.m.Await("removal of "+disk, func() error {
			_, err := at.Run("disk", "rm", disk, "--grace", "0", "--yes")
			return err
		})
	}
}

// acks returns how the disks of an episode acknowledge writes: of the one that is recorded, and of the one whose program verifies itself.
// Over four episodes each of the two programs meets each.
func (r *run) acks(episode int) [2]string {
	both := [...]string{"all", "local"}
	first := int(r.seed) + episode
	return [2]string{both[first%2], both[(first+episode/2)%2]}
}

// verifier is a program that writes a disk and verifies what it wrote.
type verifier struct {
	what string
	end  func() error // waits for its end, after all was healed
}

func (r *run) fio(path string, d time.Duration) verifier {
	var out bytes.Buffer
	cmd := exec.Command("fio", "--name=chaos", "--filename="+path, "--rw=randrw", "--bsrange=4k-32k", "--direct=1", "--ioengine=libaio", "--iodepth=4", "--size=32M",
		"--verify=crc32c", "--verify_backlog=32", "--verify_fatal=1", "--verify_state_save=0", "--rate_iops=80,80", "--fsync=64", "--time_based", fmt.Sprintf("--runtime=%d", int(d.Seconds())))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return verifier{"fio", func() error {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("%w: %s", err, out.String())
			}
			return nil
		case <-time.After(2 * proc.Patience):
			_ = cmd.Process.Kill()
			return errors.New("it does not end")
		}
	}}
}

func (r *run) guest(path string) verifier {
	ctx, cancel := context.WithCancel(context.Background())
	g, err := guest.Config{Image: r.image, Disk: path, Cache: "none", Rounds: 1 << 20, MiB: 2, IOSize: 8192}.Start(ctx)
	if err != nil {
		cancel()
		r.t.Fatal(err)
	}
	return verifier{"a guest", func() error {
		defer cancel()
		late := time.After(2 * proc.Patience)
		again := time.NewTicker(time.Second)
		defer again.Stop()
		for ended := false; !ended; {
			_ = g.Stop() // lost on a guest that has not come to its console yet, or has ended: what counts is that it ends
			select {
			case <-g.Exited():
				ended = true
			case <-again.C:
			case <-late:
				g.Kill()
				return fmt.Errorf("it does not end: its console: %s", g.Console())
			}
		}
		r.counts["rounds of the guest"] += g.Rounds()
		return errors.Join(g.Wait(), guest.Verdict(g.Console()))
	}}
}

// placed is what `place show` tells of a disk.
type placed struct {
	Rule        string
	Met         bool
	Differences []string
	Steps       []struct{ Text string }
	Doing       string
}

// settled waits until the disks are let go, all their replicas are in sync again, and are where the last rule wants them.
func (r *run) settled(b *breaker, disks ...string) {
	for _, disk := range disks {
		var s shown
		start := time.Now()
		r.m.Await(disk+" idle, with all replicas in sync where its rule wants them", func() (err error) {
			if s, err = b.ask(disk); err != nil {
				return err
			}
			if s.State != "idle" || slices.ContainsFunc(s.Replicas, func(x replica) bool { return x.Role != "in sync" }) {
				return fmt.Errorf("%v: %s", &s, s.Why)
			}
			for _, n := range r.nodes {
				var p placed
				if err := n.JSON(&p, "place", "show", disk); err != nil {
					return err
				}
				if !p.Met || len(p.Steps) > 0 {
					return fmt.Errorf("%s as %s knows it: rule %s, %v, steps %v, %s", &s, n.Name, p.Rule, p.Differences, p.Steps, p.Doing)
				}
			}
			return nil
		})
		r.logf("%s is %v, after %v", disk, &s, time.Since(start).Round(100*time.Millisecond))
	}
}

// compare reads the recorded disk through every mount.
func (r *run) compare(rec *recorder, disk string) {
	var first []byte
	for i, n := range r.mounts {
		all, err := rec.readAll(n, 100+i)
		if err != nil {
			r.fail("%v", err)
			continue
		}
		if first == nil {
			first = all
		} else if !bytes.Equal(first, all) {
			r.fail("%s reads differently through %s and %s", disk, r.mounts[0].Name, n.Name)
		}
	}
}

// compareFiles compares what the in-sync replicas hold, byte for byte, while nobody has the disk.
func (r *run) compareFiles(b *breaker, disk string) {
	var s shown
	r.m.Await(disk+" idle", func() (err error) {
		if s, err = b.ask(disk); err == nil && s.State != "idle" {
			err = fmt.Errorf("%s: %s", &s, s.Why)
		}
		return err
	})
	var first []byte
	from := ""
	for _, x := range s.Replicas {
		if x.Role != "in sync" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(r.m.Nodes[x.Node.Name].Data, "replicas", s.ID, x.ID, "0.img"))
		if err != nil {
			r.fail("%s: %v", disk, err)
			continue
		}
		if first == nil {
			first, from = data, x.Node.Name
		} else if i := differ(first, data); i >= 0 {
			r.fail("%s: the in-sync replicas on %s and %s differ first at byte %d", disk, from, x.Node.Name, i)
		}
	}
	if first == nil {
		r.fail("%s has no in-sync replica: %v", disk, &s)
	}
}

// differ returns the first byte in which two files differ, or -1. Where one ends it holds zeros.
func differ(a, b []byte) int64 {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range max(len(a), len(b)) {
		var x, y byte
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return int64(i)
		}
	}
	return -1
}

// check checks the history. Only of what a node tells when it takes the disk over may anything be missing, and only what was not flushed;
// and nothing at all unless mayLose: with ack=all no replica is ahead of the others.
func (r *run) check(rec *recorder, mayLose bool) {
	if text := rec.faulty.Load(); text != nil {
		r.fail("%s: %s", rec.name, *text)
	}
	for _, n := range r.mounts {
		log, err := os.ReadFile(n.Log)
		if err != nil {
			r.t.Fatal(err)
		}
		attached(&rec.History, n.Name, rec.name, string(log))
	}
	told := rec.Losses()
	r.counts["takeovers that may have lost writes"] += len(told)
	if len(told) > 0 && !mayLose {
		r.fail("%s: told of lost writes with ack=all, and not all replicas have lost power: %v", rec.name, told)
	}
	start := time.Now()
	v := rec.Check(r.dir)
	for _, text := range v.Violations {
		r.fail("%s: %s", rec.name, text)
	}
	counts, stalls := rec.summary()
	for k, n := range counts {
		r.counts[k] += n
	}
	r.stalls = append(r.stalls, stalls...)
	r.checks.Sectors += v.Sectors
	r.checks.Accesses += v.Accesses
	r.checks.Unknown += v.Unknown
	r.counts["attachments"] += len(rec.Takeovers())
	r.logf("%s: %d operations on %d sectors, %d attachments, checked in %v: %d violations, %d not decided", rec.name, len(rec.Ops()), v.Sectors, len(rec.Takeovers()),
		time.Since(start).Round(time.Millisecond), len(v.Violations), v.Unknown)
}

// resynced sums up what nodes say of bytes copied to returning replicas.
func (r *run) resynced() (sum float64, known bool) {
	for _, n := range r.nodes {
		if x, err := n.Metric("ukai_resync_bytes_total"); err == nil {
			sum, known = sum+x, true
		}
	}
	return sum, known
}

// report writes what the run was like, and what a failure needs.
func (r *run) report() {
	var out strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	say("chaos, seed %d: %d episodes in %v; failed: %v", r.seed, r.episodes, time.Since(r.begin).Round(time.Second), r.t.Failed())
	for _, k := range slices.Sorted(maps.Keys(r.faults)) {
		say("  fault %-12s %d", k, r.faults[k])
	}
	for _, k := range slices.Sorted(maps.Keys(r.counts)) {
		say("  %-40s %d", k, r.counts[k])
	}
	say("  histories: %d sectors, %d accesses, %d sectors not decided in %v", r.checks.Sectors, r.checks.Accesses, r.checks.Unknown, history.CheckFor)
	if n, known := r.resynced(); known {
		say("  resynced: %.0f bytes (by processes still running)", n)
	} else {
		say("  resynced: the nodes do not tell")
	}
	slices.SortFunc(r.stalls, func(a, b *history.Op) int { return int(b.Took() - a.Took()) })
	longest := time.Duration(0)
	if len(r.stalls) > 0 {
		longest = r.stalls[0].Took()
	}
	say("  operations of more than %v: %d, the longest %v", stallWorthTold, len(r.stalls), longest.Round(time.Millisecond))
	summary := out.String()
	for _, o := range r.stalls[:min(len(r.stalls), 50)] {
		say("  %v: %v", o.Took().Round(time.Millisecond), o)
	}
	say("%s", strings.Join(r.lines, "\n"))
	path := filepath.Join(r.dir, "report")
	if err := os.WriteFile(path, []byte(out.String()), 0o600); err != nil {
		r.t.Error(err)
	}
	r.t.Logf("%s\nthe report is %s", summary, path)
	for _, n := range r.nodes {
		data, err := os.ReadFile(n.Log)
		if err == nil {
			err = os.WriteFile(filepath.Join(r.dir, n.Name+".log"), data, 0o600)
		}
		if err != nil {
			r.t.Error(err)
		}
	}
	if r.t.Failed() {
		if r.rec != nil {
			if err := os.WriteFile(filepath.Join(r.dir, "history-"+r.rec.name), []byte(r.rec.TellAll()), 0o600); err != nil {
				r.t.Error(err)
			}
		}
		r.t.Logf("histories and logs are in %s; the same faults again: make chaos SEED=%d MINUTES=%.0f", r.dir, r.seed, max(1, runFor.Minutes()))
	}
}
