package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ukai"
	"ukai/node/admin"
	"ukai/node/volume"
)

// locations returns "NODE role" of a disk's replicas as a node knows them.
func locations(n *Node, disk string) ([]string, error) {
	d, err := n.Disk(context.Background(), disk)
	var list []string
	for _, r := range d.Replicas {
		list = append(list, r.Node.Name+" "+string(r.Role))
	}
	slices.Sort(list)
	return list, err
}

func (m *Mesh) awaitLocations(at *Node, disk string, want ...string) time.Duration {
	m.T.Helper()
	return m.Await(fmt.Sprintf("%s is on %v", disk, want), func() error {
		got, err := locations(at, disk)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("it is on %v", got)
		}
		return err
	})
}

func TestAReplicaThatCrashedIsInSyncAgainAndCarriesTheDiskAlone(t *testing.T) {
	for _, attached := range []bool{true, false} {
		t.Run(fmt.Sprint("attached=", attached), func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				m.Create("vm1", 8<<20, "dc=tokyo:2")
				ctx := context.Background()
				t1, t2 := m.Nodes["t1"], m.Nodes["t2"]
				d := t1.Volume("vm1")
				if err := d.Attach(ctx); err != nil {
					t.Fatal(err)
				}
				want := pattern(1, 8<<20)
				write := func(from, to int) {
					for off := from; off < to; off += 256 << 10 {
						if _, err := d.WriteAt(ctx, want[off:off+256<<10], int64(off)); err != nil {
							t.Fatal(err)
						}
					}
				}
				write(0, 8<<20)
				t2.PowerCut()
				copy(want[1<<20:], pattern(2, 1<<20))
				write(1<<20, 2<<20)
				if !attached {
					if err := d.Detach(ctx); err != nil {
						t.Fatal(err)
					}
				}
				t2.Boot()
				m.awaitLocations(t1, "vm1", "t1 in sync", "t2 in sync")
				if !attached {
					m.Await("the disk is let go", func() error {
						info, err := t1.Disk(ctx, "vm1")
						if err == nil && info.Holder != nil {
							err = fmt.Errorf("held by %v", info.Holder)
						}
						return err
					})
				}
				t1.Crash()
				m.Await("t2 takes over", func() error { return t2.Volume("vm1").Attach(ctx) })
				same(t, t2, "vm1", want)
				if err := t2.Volume("vm1").Detach(ctx); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestADiskMovesToItsNewRuleUnderIOAndLeavesNothingBehind(t *testing.T) {
	long(t)
	bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		m.Create("vm1", 8<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		want, write := scribble(t, d)
		plan, err := o1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=osaka:2"}}, DryRun: true})
		if err != nil || len(plan.Steps) < 4 {
			t.Fatalf("%v: steps %+v", err, plan.Steps)
		}
		if _, err := o1.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=osaka:2"}}}); err != nil {
			t.Fatal(err)
		}
		m.Await("the disk is in osaka", func() error {
			write()
			got, err := locations(t1, "vm1")
			inSync := 0
			for _, l := range got {
				if l[3:] == string(admin.InSync) {
					inSync++
				}
			}
			if inSync < 2 {
				t.Fatalf("%d copies in sync: %v", inSync, got)
			}
			if err == nil && !slices.Equal(got, []string{"o1 in sync", "o2 in sync"}) {
				err = fmt.Errorf("it is on %v", got)
			}
			return err
		})
		m.Await("the arbiters have followed", func() error {
			if got := arbiters(t, t1, "vm1"); slices.Contains(got, "t1") || slices.Contains(got, "t2") {
				return fmt.Errorf("arbiters %v", got)
			}
			return nil
		})
		write()
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		if left := len(t1.Store.Replicas()) + len(m.Nodes["t2"].Store.Replicas()); left != 2 {
			t.Errorf("%d of 2 dropped replicas are kept half an hour later", left)
		}
		time.Sleep(90 * time.Minute)
		if left := len(t1.Store.Replicas()) + len(m.Nodes["t2"].Store.Replicas()); left > 0 {
			t.Errorf("%d replicas are left in tokyo", left)
		}
		for _, name := range []string{"t1", "t2"} {
			m.Nodes[name].Crash()
		}
		same(t, o1, "vm1", want)
	})
}

// What was never written, and what was written with zeros, is not sent.
func TestADiskThatMovesTakesOnlyTheChunksAlongThatHoldSomething(t *testing.T) {
	const size = 64 << 20
	bubble(t, "t1:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", size, "node=t1:1")
		ctx, t1 := context.Background(), m.Nodes["t1"]
		d := t1.Volume("vm1")
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, size)
		chunks := 0
		for _, w := range []struct{ off, n, chunks int }{{1 << 20, ukai.ChunkSize, 1}, {20 << 20, 4096, 1}, {40<<20 + ukai.ChunkSize, 2 * ukai.ChunkSize, 2}, {size - 512, 512, 1}} {
			copy(want[w.off:], pattern(uint64(w.off), w.n))
			chunks += w.chunks
			if _, err := d.WriteAt(ctx, want[w.off:w.off+w.n], int64(w.off)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.WriteAt(ctx, make([]byte, 4<<20), 30<<20); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		copied, crossed := t1.Counters()["ukai_resync_bytes_total"], m.crossing("tokyo", "osaka")
		m.place("w1", "vm1", "dc=osaka:1")
		m.awaitLocations(t1, "vm1", "o1 in sync")
		must := uint64(chunks * ukai.ChunkSize)
		if n := t1.Counters()["ukai_resync_bytes_total"] - copied; n != must {
			t.Errorf("%d bytes were copied, must be %d", n, must)
		}
		if n := m.crossing("tokyo", "osaka") - crossed; n < must || n > must+1<<19 {
			t.Errorf("%d bytes went to osaka, of %d that hold something", n, must)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		t1.Crash()
		same(t, m.Nodes["o1"], "vm1", want)
	})
}

func TestAReplicaOnANodeThatIsDownForLongIsMadeAnewElsewhere(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo t3:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		before, err := locations(m.Nodes["w1"], "vm1")
		if err != nil {
			t.Fatal(err)
		}
		keep, lose := m.Nodes[before[0][:2]], m.Nodes[before[1][:2]]
		spare := "t1"
		for _, l := range []string{"t2", "t3"} {
			if keep.Name != l && lose.Name != l {
				spare = l
			}
		}
		d := keep.Volume("vm1")
		want := pattern(5, 4<<20)
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(ctx, want[:1<<20], 0); err != nil {
			t.Fatal(err)
		}
		lose.Crash()
		for off := 1 << 20; off < len(want); off += 1 << 20 {
			if _, err := d.WriteAt(ctx, want[off:off+1<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(8 * time.Minute)
		if got, _ := locations(keep, "vm1"); len(got) != 2 {
			t.Fatalf("replaced too early: %v", got)
		}
		expect := []string{keep.Name + " in sync", spare + " in sync"}
		slices.Sort(expect)
		m.awaitLocations(keep, "vm1", expect...)
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
		lose.Boot() // its copy is old, and nobody's any more
		m.AwaitWhole()
		same(t, lose, "vm1", want)
	})
}

// A machine dies, another is put in its place, and the VM runs there: that one has never met the dead one, and is who must do without it.
func TestWhatWasOnANodeThatDiedBeforeTheHolderJoinedIsMadeAnew(t *testing.T) {
	for _, holds := range []bool{false, true} {
		t.Run(fmt.Sprint("held by the dead node=", holds), func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				m.Create("vm1", 4<<20, "dc=tokyo:2")
				t1, t2 := m.Nodes["t1"], m.Nodes["t2"]
				g := m.attach("t2", "vm1")
				g.write(0, 1)
				g.flush()
				if !holds {
					g.detach()
				}
				t2.Crash()
				m.Await("t2 is held for dead", func() error {
					s, err := t1.Status(context.Background())
					if err == nil && !slices.ContainsFunc(s.Nodes, func(x admin.Node) bool { return x.Name == "t2" && x.State == admin.NodeDead }) {
						err = fmt.Errorf("nodes %+v", s.Nodes)
					}
					return err
				})
				m.Add("t3", "tokyo", false)
				m.AwaitWhole()
				g = m.awaitAttach("t3", "vm1")
				if got := g.reads(0); got != 1 {
					t.Errorf("it reads %d", got)
				}
				time.Sleep(8 * time.Minute)
				if got, err := locations(t1, "vm1"); err != nil || !slices.Equal(got, []string{"t1 in sync", "t2 out"}) {
					t.Errorf("replaced before t2 was down for ten minutes: %v, %v", got, err)
				}
				m.awaitLocations(t1, "vm1", "t1 in sync", "t3 in sync")
				m.Await("another arbiter", func() error {
					if got := arbiters(t, t1, "vm1"); slices.Contains(got, "t2") {
						return fmt.Errorf("arbiters %v", got)
					}
					return nil
				})
				g.detach()
			})
		})
	}
}

func TestMachinesThatComeBackFirstWaitForTheOthers(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo t3:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "node=t1:1 node=t2:1")
		m.place("t1", "vm1", "dc=tokyo:2")
		g := m.attach("t1", "vm1")
		g.write(0, 1)
		g.flush()
		g.detach()
		all := []string{"t1", "t2", "t3", "w1"}
		for _, name := range all {
			m.Nodes[name].Crash()
		}
		time.Sleep(time.Hour)
		for _, name := range []string{"t1", "t3", "w1"} {
			m.Nodes[name].Boot()
		}
		time.Sleep(8 * time.Minute)
		if got, err := locations(m.Nodes["t1"], "vm1"); err != nil || slices.ContainsFunc(got, func(at string) bool { return strings.HasPrefix(at, "t3") }) {
			t.Errorf("replaced eight minutes after the others came back: %v, %v", got, err)
		}
		m.awaitLocations(m.Nodes["t1"], "vm1", "t1 in sync", "t3 in sync")
	})
}

func TestReplicasAreMadeAnewWhenTheMeshSaysSoAndDisksGetItsRule(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo t3:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		ctx, w1 := context.Background(), m.Nodes["w1"]
		set := func(after time.Duration) {
			t.Helper()
			seconds := int64(after / time.Second)
			if _, err := w1.SetDefaults(ctx, admin.SetDefaults{Rule: &admin.Rule{Terms: []string{"dc=tokyo:2"}}, RepairAfterSeconds: &seconds}); err != nil {
				t.Fatal(err)
			}
		}
		set(0)
		time.Sleep(2 * time.Second)
		d, err := m.Nodes["t1"].CreateDisk(ctx, admin.NewDisk{Name: "vm1", SizeBytes: 4 << 20})
		if err != nil || d.Disk.Rule != "dc=tokyo:2" {
			t.Fatalf("a disk without a rule got %q: %v", d.Disk.Rule, err)
		}
		m.Await("w1 knows the disk", func() error { _, err := w1.Disk(ctx, "vm1"); return err })
		lose := m.Nodes[d.Disk.Replicas[0].Node.Name]
		lose.Crash()
		still := func(n int) error {
			info, err := w1.Disk(ctx, "vm1")
			in := 0
			for _, r := range info.Replicas {
				if r.Role == admin.InSync && r.NodeState == admin.NodeAlive {
					in++
				}
			}
			if err == nil && in != n {
				err = fmt.Errorf("%d replicas are in sync on living nodes", in)
			}
			return err
		}
		time.Sleep(time.Hour)
		// Something that plans depend on changes, so that they are made anew.
		if _, err := w1.ChangeNode(ctx, "w1", admin.NodeChange{Set: ukai.Labels{"rack": "r1"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := still(1); err != nil {
			t.Errorf("repairs are off: %v", err)
		}
		set(30 * time.Second)
		if took := m.Await("the replica is made anew", func() error { return still(2) }); took > 30*time.Second {
			t.Errorf("it took %v, though its node has been down for an hour", took)
		}
		if _, err := w1.SetDefaults(ctx, admin.SetDefaults{RepairAfterSeconds: new(int64(3))}); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("repairs after 3 s: %v", err)
		}
	})
}

func TestSurviveForetellsWhatTheLossOfADatacenterDoes(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka o2:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("both", 1<<20, "dc=tokyo:1 dc=osaka:1")
		m.Create("one", 1<<20, "dc=tokyo:1")
		ctx := context.Background()
		s, err := m.Nodes["w1"].Survive(ctx, "dc=tokyo")
		if err != nil || len(s.Cases) != 1 || s.Cases[0].LoseData != 1 || s.Cases[0].LoseRedundancy != 1 {
			t.Fatalf("%v: %+v", err, s)
		}
		if d := s.Cases[0].Disks[0]; d.Disk.Name != "one" || d.Remedy != "ukai-node place disk one dc=tokyo:1 dc!=tokyo:1" {
			t.Errorf("%+v", d)
		}
		if all, err := m.Nodes["w1"].Survive(ctx, ""); err != nil || len(all.Cases) != 7 {
			t.Errorf("%v: %+v", err, all)
		}
		m.Nodes["t1"].Crash()
		m.Await("the disk with a copy in osaka is attached there", func() error { return m.Nodes["o1"].Volume("both").Attach(ctx) })
		if err := m.Nodes["o1"].Volume("both").Detach(ctx); err != nil {
			t.Error(err)
		}
		if err := m.Nodes["o1"].Volume("one").Attach(ctx); err == nil {
			t.Error("a disk without any copy was attached")
		}
	})
}

func TestARuleThatCannotBeMetIsRefusedWithReasons(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		_, err := m.Nodes["t1"].PlaceDisk(context.Background(), "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=osaka:2"}}})
		var refusal *admin.Refusal
		if !errors.Is(err, ukai.ErrUnmet) || !errors.As(err, &refusal) || len(refusal.Reasons) != 3 {
			t.Fatalf("%v, reasons %+v", err, refusal)
		}
	})
}

func TestADiskThatMayHaveFewerCopiesMovesWithoutSpaceForBoth(t *testing.T) {
	for _, minSync := range []int{1, 2} {
		t.Run(fmt.Sprint("min-sync=", minSync), func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
				ctx := context.Background()
				t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
				if _, err := t1.CreateDisk(ctx, admin.NewDisk{Name: "vm1", SizeBytes: 8 << 20, Rule: &admin.Rule{Terms: []string{"dc=tokyo:2"}, MinSync: minSync}}); err != nil {
					t.Fatal(err)
				}
				m.Await("all have heard of it", func() error { _, err := o1.Disk(ctx, "vm1"); return err })
				d := t1.Volume("vm1")
				if err := d.Attach(ctx); err != nil {
					t.Fatal(err)
				}
				want, write := scribble(t, d)
				change := admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=osaka:2"}, MinSync: minSync}, AllowFewer: true}
				p, err := o1.PlaceDisk(ctx, "vm1", change)
				if err != nil || p.Costs == nil || p.Costs.LeastInSync != minSync || !p.AllowFewer {
					t.Fatalf("%v: %+v", err, p)
				}
				least, most := 2, 2
				m.Await("the disk is in osaka", func() error {
					write()
					got, err := locations(t1, "vm1")
					inSync := 0
					for _, l := range got {
						if l[3:] == string(admin.InSync) {
							inSync++
						}
					}
					least, most = min(least, inSync), max(most, len(got))
					if err == nil && !slices.Equal(got, []string{"o1 in sync", "o2 in sync"}) {
						err = fmt.Errorf("it is on %v", got)
					}
					return err
				})
				if least != minSync {
					t.Errorf("%d copies were in sync at one moment, must be %d", least, minSync)
				}
				if minSync == 1 && most > 3 { // one from before, two new ones
					t.Errorf("%d replicas at one moment", most)
				}
				m.Await("it is not allowed any more", func() error {
					p, err := o1.Placement(ctx, "vm1")
					if err == nil && (p.AllowFewer || !p.Met) {
						err = fmt.Errorf("allowed %v, met %v", p.AllowFewer, p.Met)
					}
					return err
				})
				if err := d.Detach(ctx); err != nil {
					t.Fatal(err)
				}
				same(t, o1, "vm1", want)
			})
		})
	}
}

// Nobody opens the disk again: the program that had it ended with its machine.
func TestADiskWhoseHolderIsGoneIsRepairedThoughNobodyOpensIt(t *testing.T) {
	for _, after := range []time.Duration{30 * time.Second, 0} {
		t.Run(fmt.Sprint("repair-after=", after), func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo t3:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				ctx, w1 := context.Background(), m.Nodes["w1"]
				seconds := int64(after / time.Second)
				if _, err := w1.SetDefaults(ctx, admin.SetDefaults{RepairAfterSeconds: &seconds}); err != nil {
					t.Fatal(err)
				}
				m.Create("vm1", 4<<20, "dc=tokyo:2")
				with, spare := m.placed("vm1")
				g := m.attach(with[0].Name, "vm1")
				g.write(0, 1)
				g.flush()
				m.Await("w1 knows who holds the disk", func() error {
					d, err := w1.Disk(ctx, "vm1")
					if err == nil && (d.Holder == nil || d.Holder.Name != with[0].Name) {
						err = fmt.Errorf("%+v", d.Holder)
					}
					return err
				})
				with[0].Crash()
				m.Await("the holder is held for dead", func() error {
					d, err := w1.Disk(ctx, "vm1")
					if err == nil && !slices.ContainsFunc(d.Warnings, func(w admin.Warning) bool { return w.Code == "holder-dead" }) {
						err = fmt.Errorf("%+v", d.Warnings)
					}
					return err
				})
				time.Sleep(5 * time.Second)
				p, err := w1.Placement(ctx, "vm1")
				if err != nil || p.Met || after > 0 && p.Doing != "" && !strings.Contains(p.Doing, "when it has been down for 30s") {
					t.Errorf("%v: met %t, doing %q", err, p.Met, p.Doing)
				}
				d, err := w1.Disk(ctx, "vm1")
				if err != nil || d.Holder == nil || d.Holder.Name != with[0].Name {
					t.Fatalf("taken before its holder had been down for %v: %v, %+v", after, err, d.Holder)
				}
				if after == 0 {
					time.Sleep(time.Hour)
					if d, err = w1.Disk(ctx, "vm1"); err != nil || d.Holder == nil || d.Holder.Name != with[0].Name {
						t.Errorf("repairs are off: %v, %+v", err, d.Holder)
					}
					return
				}
				names := []string{with[1].Name + " in sync", spare.Name + " in sync"}
				slices.Sort(names)
				m.awaitLocations(w1, "vm1", names...)
				m.unused(w1, "vm1")
				m.wantReads(spare.Name, "vm1", 0, 1)
			})
		})
	}
}

// scribble writes 300 pieces of 32 KiB here and there to a disk of 8 MiB. It returns what the disk holds then, and a function that writes one more.
func scribble(t *testing.T, d *volume.Disk) (want []byte, write func()) {
	t.Helper()
	want = pattern(1, 8<<20)
	i := 0
	write = func() {
		off := (i * 37 % 256) * 32 << 10
		copy(want[off:], pattern(uint64(i), 32<<10))
		if _, err := d.WriteAt(context.Background(), want[off:off+32<<10], int64(off)); err != nil {
			t.Fatal(err)
		}
		i++
	}
	for i < 300 {
		write()
	}
	return want, write
}
