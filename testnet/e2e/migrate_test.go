//go:build linux

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ukai/testnet/guest"
	"ukai/testnet/proc"
)

// vm is a guest with a disk of a mesh, which it writes and verifies all the time, and the QEMU it runs in at the moment.
type vm struct {
	m     *proc.Mesh
	image guest.Image
	dir   string
	mib   int // how much of its disk it uses
	count int // QEMUs started
	host  string
	*machine
}

// machine is one QEMU.
type machine struct {
	*guest.Guest
	monitor  *guest.Monitor
	incoming string
}

const vmDisk = "vm1"

// migrations is how many disturbed migrations there are at least, after each disturbance has been once those are drawn at random.
var migrations = flag.Int("migrations", 0, "how many migrations are disturbed; 0: one in each way")

func (v *vm) config(node string) guest.Config {
	return guest.Config{Image: v.image, Disk: v.m.Nodes[node].Path(vmDisk), Cache: "none", Rounds: 1 << 20, MiB: v.mib, IOSize: 8192}
}

// startVM starts a guest on t1 that uses the first MiB of vmDisk, and waits until it has written and verified them once.
func startVM(m *proc.Mesh, img guest.Image, mib int) *vm {
	m.T.Helper()
	dir, err := os.MkdirTemp("", "ukai-vm-") // the path of a unix socket must be short
	if err != nil {
		m.T.Fatal(err)
	}
	m.T.Cleanup(func() { _ = os.RemoveAll(dir) })
	v := &vm{m: m, image: img, dir: dir, mib: mib}
	v.machine, v.host = v.start("t1", false), "t1"
	v.works()
	return v
}

// ends tells the guest to end, and reads its verdict.
func (v *vm) ends() {
	v.m.T.Helper()
	if err := v.Stop(); err != nil {
		v.m.T.Fatal(err)
	}
	if err := errors.Join(v.Wait(), guest.Verdict(v.Console())); err != nil {
		v.m.T.Fatalf("the guest in the end: %v: %s", err, v.Console())
	}
}

// guestImage returns what guests boot from, and skips the test where that cannot be had.
func guestImage(t *testing.T) guest.Image {
	t.Helper()
	need(t, "qemu-system-x86_64")
	root, err := proc.Root()
	if err != nil {
		t.Fatal(err)
	}
	img, err := guest.Build(t.Context(), root, t.TempDir())
	if err != nil {
		t.Skip(err)
	}
	return img
}

// start starts a QEMU on a node: a new guest, or one that waits for a migration.
func (v *vm) start(node string, waits bool) *machine {
	v.m.T.Helper()
	v.count++
	socket := filepath.Join(v.dir, fmt.Sprint("monitor", v.count))
	c := v.config(node)
	c.Args = guest.MonitorArgs(socket)
	q := &machine{}
	if waits {
		q.incoming = "unix:" + filepath.Join(v.dir, fmt.Sprint("incoming", v.count))
		c.Args = append(c.Args, "-incoming", q.incoming)
	}
	var err error
	if q.Guest, err = c.Start(context.Background()); err != nil {
		v.m.T.Fatal(err)
	}
	v.m.T.Cleanup(func() {
		q.Kill()
		if v.m.T.Failed() {
			v.m.T.Logf("console of a guest on %s:\n%s", node, q.Console())
		}
	})
	v.m.Await("monitor of QEMU on "+node, func() error {
		select {
		case <-q.Exited():
			v.m.T.Fatalf("QEMU on %s ended: %s", node, q.Console())
		default:
		}
		q.monitor, err = guest.DialMonitor(socket)
		return err
	})
	return q
}

func (q *machine) do(command string, arguments map[string]any) error {
	if arguments == nil {
		arguments = map[string]any{}
	}
	return q.monitor.Execute(command, arguments, nil)
}

// migration returns how the migration from here stands.
func (q *machine) migration() (string, error) {
	var m struct {
		Status string
		Desc   string `json:"error-desc"`
	}
	err := q.monitor.Execute("query-migrate", nil, &m)
	if m.Desc != "" {
		return m.Status + ": " + m.Desc, err
	}
	return m.Status, err
}

// works waits until the guest has finished another round: written everything, and verified it here.
func (v *vm) works() {
	v.m.T.Helper()
	before := v.Rounds()
	v.m.Await("another round of the guest on "+v.host, func() error {
		select {
		case <-v.Exited():
			v.m.T.Fatalf("QEMU on %s ended: %s", v.host, v.Console())
		default:
		}
		if strings.Contains(v.Console(), "guest: FAIL") {
			v.m.T.Fatalf("the guest on %s: %s", v.host, v.Console())
		}
		if v.Rounds() == before {
			return errors.New(v.Console())
		}
		return nil
	})
}

// setup makes migrations from here slow, so that there is time to disturb them, and lets them stop before they switch over.
func (v *vm) setup(slow, pause bool) {
	v.m.T.Helper()
	speed := 1 << 30
	if slow {
		speed = 1 << 20
	}
	err := errors.Join(
		v.do("migrate-set-parameters", map[string]any{"max-bandwidth": speed, "downtime-limit": 1000}),
		v.do("migrate-set-capabilities", map[string]any{"capabilities": []any{map[string]any{"capability": "pause-before-switchover", "state": pause}}}))
	if err != nil {
		v.m.T.Fatal(err)
	}
}

// begin starts to migrate the guest to a node and waits until the migration is in a state.
func (v *vm) begin(node, state string) (target *machine) {
	v.m.T.Helper()
	target = v.start(node, true)
	if err := v.do("migrate", map[string]any{"uri": target.incoming}); err != nil {
		v.m.T.Fatal(err)
	}
	v.await(state)
	return target
}

// await waits for a state of the migration from here.
func (v *vm) await(state string) {
	v.m.T.Helper()
	v.m.Await("migration "+state, func() error {
		s, err := v.migration()
		if err == nil && !strings.HasPrefix(s, state) {
			err = errors.New(s)
			if strings.HasPrefix(s, "failed") {
				v.m.T.Fatalf("migration: %s", s)
			}
		}
		return err
	})
}

// migrate moves the guest to a node.
func (v *vm) migrate(node string) {
	v.m.T.Helper()
	v.setup(false, false)
	source := v.machine
	target := v.begin(node, "completed")
	v.machine, v.host = target, node
	source.Kill()
}

// restart starts a new guest on a node after the old one was lost: first one that verifies what that one had left.
func (v *vm) restart(node string, rounds int) {
	v.m.T.Helper()
	c := v.config(node)
	c.Verify, c.AtLeast, c.Rounds = true, true, rounds
	v.m.Await("the disk of the lost guest on "+node, func() error {
		console, err := c.Run(context.Background())
		if err != nil && !strings.Contains(console, "lock") {
			v.m.T.Fatalf("a guest on %s that only verifies: %v", node, err)
		}
		return err
	})
	v.machine, v.host = v.start(node, false), node
	v.works()
}

// runs waits until QEMU lets the guest run.
func (v *vm) runs() {
	v.m.T.Helper()
	v.m.Await("the guest on "+v.host+" runs", func() error {
		var s struct{ Status string }
		err := v.monitor.Execute("query-status", nil, &s)
		if err == nil && s.Status != "running" {
			err = errors.New(s.Status)
		}
		return err
	})
}

// fails waits until QEMU has noticed that the migration from here cannot go on.
func (v *vm) fails() {
	v.m.T.Helper()
	v.m.Await("failure of the migration", func() error {
		if s, err := v.migration(); err != nil || !strings.HasPrefix(s, "failed") {
			return fmt.Errorf("%s: %w", s, err)
		}
		return nil
	})
}

// disturbances are what may happen while the guest is migrated to a node. If it is lost with its QEMU, it is started again there.
var disturbances = []struct {
	name string
	do   func(v *vm, to string)
}{
	{"cancelled while memory was copied", func(v *vm, to string) {
		v.setup(true, false)
		target := v.begin(to, "active")
		v.cancel(target)
	}},
	{"the target was killed while memory was copied", func(v *vm, to string) {
		v.setup(true, false)
		v.begin(to, "active").Kill()
		v.fails()
	}},
	{"cancelled before the switch-over", func(v *vm, to string) {
		v.setup(false, true)
		target := v.begin(to, "pre-switchover")
		v.cancel(target)
	}},
	{"the target was killed before the switch-over", func(v *vm, to string) {
		v.setup(false, true)
		v.begin(to, "pre-switchover").Kill()
		_ = v.do("migrate-continue", map[string]any{"state": "pre-switchover"}) // it may have noticed
		v.fails()
	}},
	{"the source was told to go on after the switch-over", func(v *vm, to string) {
		v.setup(false, false)
		source := v.machine
		v.machine, v.host = v.begin(to, "completed"), to
		v.runs() // before that either of the two may get the disk
		if err := source.do("cont", nil); err == nil || !strings.Contains(err.Error(), "lock") {
			v.m.T.Errorf("a guest that runs on %s was let go on where it came from: %v", to, err)
		}
		rounds := source.Rounds()
		v.works()
		v.works()
		if now := source.Rounds(); now != rounds {
			v.m.T.Errorf("while the guest ran on %s it went from round %d to %d where it came from", to, rounds, now)
		}
		source.Kill()
	}},
	{"the source was killed while memory was copied", func(v *vm, to string) {
		v.setup(true, false)
		rounds, target := v.Rounds(), v.begin(to, "active")
		v.Kill()
		<-target.Exited()
		v.restart(to, rounds)
	}},
	{"the source was killed before the switch-over", func(v *vm, to string) {
		v.setup(false, true)
		rounds, target := v.Rounds(), v.begin(to, "pre-switchover")
		v.Kill()
		<-target.Exited()
		v.restart(to, rounds)
	}},
	{"the target was killed after the switch-over", func(v *vm, to string) {
		v.setup(false, false)
		rounds, target := v.Rounds(), v.begin(to, "completed")
		target.Kill()
		v.Kill()
		v.restart(to, rounds)
	}},
}

// cancel calls the migration off.
func (v *vm) cancel(target *machine) {
	v.m.T.Helper()
	if err := v.do("migrate_cancel", nil); err != nil {
		v.m.T.Fatal(err)
	}
	v.await("cancelled")
	target.Kill()
}

func TestAGuestMigratesBetweenHostsUnderLoadAndNeverSeesAnErrorOrAWrongByte(t *testing.T) {
	img := guestImage(t)
	m := proc.Start(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness")
	m.Nodes["t1"].Must("disk", "create", vmDisk, "16M", "dc=tokyo:2")
	m.AwaitDisk(vmDisk)
	v := startVM(m, img, 4)
	step := func(what string) {
		v.works()
		t.Logf("%s: %s; the guest is on %s", time.Now().Format("15:04:05.000"), what, v.host)
	}
	for range 5 {
		v.migrate("o1")
		v.works()
		v.migrate("t1")
		step("there and back")
	}
	out, err := v.config("o1").Run(t.Context())
	if err == nil || !strings.Contains(out, `Failed to get "write" lock`) {
		t.Errorf("a second QEMU on o1 while the guest runs on t1: %v: %s", err, out)
	}
	step("a second QEMU was refused")

	rng := rand.New(rand.NewPCG(uint64(*migrations), 0x6d696772))
	hosts := []string{"t1", "t2", "o1"}
	for i := range max(len(disturbances), *migrations) {
		d := disturbances[i%len(disturbances)]
		if i >= len(disturbances) { // a long run, at random
			d = disturbances[rng.IntN(len(disturbances))]
			v.migrate(another(hosts, v.host, rng))
			v.works()
		}
		d.do(v, another(hosts, v.host, rng))
		step(d.name)
	}
	v.ends()
}

// another returns a host, but not the one given.
func another(hosts []string, than string, rng *rand.Rand) string {
	for {
		if h := hosts[rng.IntN(len(hosts))]; h != than {
			return h
		}
	}
}
