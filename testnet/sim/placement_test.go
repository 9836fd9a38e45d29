package sim

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node/admin"
	"ukai/node/place"
)

const (
	placementSeeds      = 4
	shortPlacementSeeds = 1
	placementShare      = 10
	placementFor        = 3 * time.Minute // virtual: how long administrators change their minds
	placedBlocks        = 8               // of a disk
	placementLimit      = 2 << 20         // bytes per second between tokyo and osaka
	readIn              = 5 * time.Second // virtual: what is not read by then cannot be read
)

// placed is a disk whose rule changes, and what the guest wrote on it.
type placed struct {
	name    string
	asked   []asked           // by its rules, of late
	before  [placedBlocks]int // replicas of each block in sync when it was last looked at
	regions [][]byte
}

// asked is how many copies the rules asked for of each block when they were looked at.
type asked struct {
	at     time.Time
	copies [placedBlocks]int
}

// askedFor is for how long a step may go on that an older rule asked for.
const askedFor = 10 * time.Second

// minded is a mesh whose administrators change rules, labels and roles, pause and resume, on top of relocations that run.
type minded struct {
	*Mesh
	rng     *rand.Rand
	disks   []*placed
	crashes bool
	down    *Node     // or cut off, while it runs
	back    time.Time // when that ends
	calm    time.Time // since when no node has been down
	writes  int
	ranges  int // of blocks that got a rule
	reads   int
}

// TestDisksFollowRulesLabelsAndRolesAsTheyChangeAndNeverHaveFewerCopies changes rules, labels, drains and pauses at random while disks are used and
// moved, in half of the seeds with nodes that crash, lose power and are cut off.
func TestDisksFollowRulesLabelsAndRolesAsTheyChangeAndNeverHaveFewerCopies(t *testing.T) {
	n := *seeds
	switch {
	case n > 0:
		n = max(n/placementShare, 1) // of as many campaigns: these take longer
	case testing.Short():
		n = shortPlacementSeeds
	default:
		n = placementSeeds
	}
	for seed := *firstSeed; seed < *firstSeed+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := &minded{Mesh: Start(t, seed, "t1:tokyo t2:tokyo t3:tokyo o1:osaka o2:osaka w1:fukuoka:witness"), rng: rand.New(rand.NewPCG(seed, 0x706c6163)), crashes: seed%2 == 0}
				defer x.Stop()
				x.run()
			})
		})
	}
}

func (x *minded) run() {
	wan(x.Mesh, 5*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
	x.limit("o1", "tokyo-osaka", "2MiB/s")
	for i := range 3 {
		d := &placed{name: fmt.Sprintf("vm%d", i+1), regions: make([][]byte, 64)}
		x.Create(d.name, 8<<20, "any:2")
		x.disks = append(x.disks, d)
	}
	var crossed []uint64 // at each second
	next := time.Now()
	for end := time.Now().Add(placementFor); time.Now().Before(end); {
		if now := time.Now(); now.After(next) {
			next = now.Add(time.Duration(1+x.rng.IntN(8)) * time.Second)
			x.changeMind()
		}
		for range 10 {
			x.guest()
			x.watch()
			time.Sleep(100 * time.Millisecond)
		}
		crossed = append(crossed, x.crossing("tokyo", "osaka"))
	}
	x.settle()
	for _, d := range x.disks {
		x.verify(d)
	}
	// The guests' own traffic, gossip and QUIC's overhead are beside the budget.
	const span = 5
	for i := span; i < len(crossed); i++ {
		if got := crossed[i] - crossed[i-span]; got > span*placementLimit*120/100+1<<20 {
			x.T.Errorf("%d bytes crossed between tokyo and osaka in %d s, with a budget of %d per second", got, span, placementLimit)
		}
	}
	if x.writes < 100 || x.reads < 100 || x.ranges == 0 {
		x.T.Errorf("only %d writes and %d reads of the guests succeeded, and %d ranges of blocks got a rule", x.writes, x.reads, x.ranges)
	}
}

func (x *minded) alive() *Node {
	for {
		if n := x.Order[x.rng.IntN(len(x.Order))]; n.Node != nil {
			return n
		}
	}
}

// changeMind has an administrator change something. It may be refused.
func (x *minded) changeMind() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	at, d := x.alive(), x.disks[x.rng.IntN(len(x.disks))]
	node := x.Order[x.rng.IntN(5)].Name
	yes := x.rng.IntN(3) == 0
	switch x.rng.IntN(10) {
	case 0, 1, 2, 8, 9:
		rules := [][]string{{"dc=tokyo:2"}, {"dc=osaka:2"}, {"dc=tokyo:1", "dc=osaka:1"}, {"any:3"}, {"ssd=yes:1", "any:1"}, {"dc=osaka:1"}}
		change := admin.PlaceDisk{Rule: admin.Rule{Terms: rules[x.rng.IntN(len(rules))], Prefer: true}}
		switch x.rng.IntN(5) {
		case 0, 1:
			change.Blocks = []string{"0", "3-5", "4-7", "0-7", "2"}[x.rng.IntN(5)]
		case 2:
			change = admin.PlaceDisk{Blocks: []string{"0", "3-5", "4-7", "0-7", "2"}[x.rng.IntN(5)], Remove: true}
		}
		if _, err := at.PlaceDisk(ctx, d.name, change); err == nil && change.Blocks != "" && !change.Remove {
			x.ranges++
		}
	case 3:
		change := admin.NodeChange{Set: ukai.Labels{"ssd": "yes"}}
		if yes {
			change = admin.NodeChange{Unset: []string{"ssd"}}
		}
		_, _ = at.ChangeNode(ctx, node, change)
	case 4:
		_, _ = at.ChangeNode(ctx, node, admin.NodeChange{Drain: &yes})
	case 5:
		_, _ = at.OrderJob(ctx, d.name, admin.OrderJob{Order: admin.OrderPause})
	case 6:
		_, _ = at.OrderJob(ctx, d.name, admin.OrderJob{Order: []string{admin.OrderResume, admin.OrderCancel, admin.OrderRetry}[x.rng.IntN(3)]})
	case 7:
		kind := x.rng.IntN(3)
		if !x.crashes || x.down != nil || at.Witness {
			return
		}
		x.down, x.back = at, time.Now().Add(time.Duration(1+x.rng.IntN(20))*time.Second)
		switch kind {
		case 0:
			at.Crash()
		case 1:
			at.PowerCut()
		case 2:
			x.isolate(at, true)
		}
	}
}

// isolate cuts a node off from all others, or ends that.
func (x *minded) isolate(n *Node, cut bool) {
	for _, other := range x.Order {
		for _, way := range [][2]*Node{{n, other}, {other, n}} {
			l := x.Net.Link(way[0].DC, way[1].DC)
			l.Down = cut
			x.Net.SetLink(way[0].Name, way[1].Name, l)
		}
	}
}

// heal has the node back that is down or cut off.
func (x *minded) heal() {
	if x.down.Node == nil {
		x.down.Boot()
	} else {
		x.isolate(x.down, false)
	}
	x.down = nil
}

// guest writes and reads a region of each disk, on any node.
func (x *minded) guest() {
	if x.down != nil {
		x.calm = time.Now()
		if time.Now().After(x.back) {
			x.heal()
		}
	}
	for _, d := range x.disks {
		if x.rng.IntN(5) > 0 {
			continue
		}
		at := x.alive()
		v, err := at.OpenDisk(d.name)
		if err != nil {
			continue // it has just been started
		}
		i, value := x.rng.IntN(len(d.regions)), byte(1+x.rng.IntN(255))
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err = v.WriteAt(ctx, bytes.Repeat([]byte{value}, 4096), int64(i)*128<<10)
		cancel()
		if err == nil {
			d.regions[i] = []byte{value}
			x.writes++
		} else {
			if d.regions[i] == nil {
				d.regions[i] = []byte{0}
			}
			d.regions[i] = append(d.regions[i], value) // it may have been written
		}
		x.read(x.alive(), d, x.rng.IntN(len(d.regions)))
	}
}

// read reads a region of a disk on any node. That it cannot be read is for times when a node is down or was, only.
func (x *minded) read(at *Node, d *placed, i int) {
	v, err := at.OpenDisk(d.name)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), readIn)
	defer cancel()
	p := make([]byte, 4096)
	if _, err := v.ReadAt(ctx, p, int64(i)*128<<10); err != nil {
		if time.Since(x.calm) > time.Minute {
			x.T.Errorf("%s, region %d cannot be read on %s: %v", d.name, i, at.Name, err)
		}
		return
	}
	x.reads++
	allowed := d.regions[i]
	if allowed == nil {
		allowed = []byte{0}
	}
	if !bytes.Contains(allowed, p[:1]) || !bytes.Equal(p, bytes.Repeat(p[:1], len(p))) {
		x.T.Errorf("%s, region %d on %s reads %x, written was %x", d.name, i, at.Name, p[0], allowed)
	}
}

// watch holds that while nodes live a block has no fewer replicas in sync than before, unless its rule asks for fewer.
func (x *minded) watch() {
	for _, d := range x.disks {
		m, err := x.Nodes["w1"].DiskMap(context.Background(), d.name)
		if err != nil {
			continue
		}
		facts := x.Nodes["w1"].Facts(m.Disk.ID)
		ranges, err := place.ParseRangeRules(facts["ranges"])
		if err != nil {
			x.T.Fatal(err)
		}
		rule, err := place.ParseText(facts["rule"])
		if err != nil {
			x.T.Fatal(err)
		}
		now := asked{at: time.Now()}
		for b := range now.copies {
			now.copies[b] = rule.Replicas()
			for _, r := range ranges {
				if r.Blocks.Contains(ukai.Index(b)) {
					now.copies[b] = r.Rule.Replicas()
				}
			}
		}
		d.asked = append(d.asked, now)
		d.asked = slices.DeleteFunc(d.asked, func(a asked) bool { return time.Since(a.at) > askedFor })
		for b := range now.copies {
			in, copies := 0, now.copies[b]
			for _, run := range m.Runs {
				for _, l := range run.Locations {
					if at := ukai.Index(b); run.First <= at && at < run.First+ukai.Index(run.Count) && l.Role == admin.InSync {
						in++
					}
				}
			}
			for _, a := range d.asked {
				copies = min(copies, a.copies[b])
			}
			if in < min(d.before[b], copies) && time.Since(x.calm) > time.Minute {
				x.T.Errorf("block %d of %s has %d replicas in sync, it had %d, and its rules ask for %d: %v, %+v", b, d.name, in, d.before[b], copies, facts, m.Runs)
			}
			d.before[b] = in
		}
	}
}

// settle has all that was ordered taken back but the rules, and waits until they are met.
func (x *minded) settle() {
	ctx := context.Background()
	if x.down != nil {
		x.heal()
	}
	x.AwaitWhole()
	no := false
	for _, n := range x.Order {
		if _, err := x.Nodes["w1"].ChangeNode(ctx, n.Name, admin.NodeChange{Drain: &no, Set: ukai.Labels{"ssd": "yes"}}); err != nil {
			x.T.Fatal(err)
		}
	}
	for _, d := range x.disks {
		_, _ = x.Nodes["w1"].OrderJob(ctx, d.name, admin.OrderJob{Order: admin.OrderResume}) // it may have no job
	}
	x.Await("all disks are as their rules say, and no job is left", func() error {
		for _, d := range x.disks {
			p, err := x.Nodes["w1"].Placement(ctx, d.name)
			if err == nil && (!p.Met || len(p.Steps) > 0) {
				err = fmt.Errorf("%s: %v, %s", d.name, p.Differences, p.Doing)
			}
			if err != nil {
				return err
			}
			if j, err := x.Nodes["w1"].job(d.name); err == nil && !j.State.Ended() {
				return fmt.Errorf("%+v", j)
			}
		}
		return nil
	})
}

// verify reads each region from each node.
func (x *minded) verify(d *placed) {
	for _, n := range x.Order {
		for i, allowed := range d.regions {
			if allowed == nil {
				continue
			}
			p := make([]byte, 4096)
			if _, err := n.Volume(d.name).ReadAt(context.Background(), p, int64(i)*128<<10); err != nil {
				x.T.Fatalf("%s, region %d on %s: %v", d.name, i, n.Name, err)
			}
			if !bytes.Contains(allowed, p[:1]) || !bytes.Equal(p, bytes.Repeat(p[:1], len(p))) {
				x.T.Fatalf("%s, region %d on %s reads %x, written was %x", d.name, i, n.Name, p[0], allowed)
			}
		}
	}
}
