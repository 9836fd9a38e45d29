package sim

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node"
	"ukai/node/admin"
	"ukai/node/store"
	"ukai/node/volume"
)

// moments are those of the relocation of a disk with two replicas from Tokyo to Osaka, in the order in which they come. They are seen in the
// records that nodes tell each other and in what they do to their stores, so the product knows nothing of them.
var moments = []string{
	"the first replica is made",
	"the first replica is named",
	"the second replica is made",
	"the second replica is named",
	"the quorum record begins to move",
	"the quorum record has moved",
	"the first copy has begun",
	"half of the first copy is made",
	"nearly all of the first copy is made",
	"the first copy is durable",
	"the first replica is in sync",
	"the second copy has begun",
	"half of the second copy is made",
	"nearly all of the second copy is made",
	"the second copy is durable",
	"the second replica is in sync",
	"one old replica is dropped",
	"both old replicas are dropped",
	"an old replica is put aside",
	"an old replica is removed",
}

// victims are who dies. One machine may be several of them: the first free one by this order is taken.
const (
	executor = "the executor"
	target   = "the target"
	source   = "the source"
	arbiter  = "an arbiter"
)

// deaths are how.
const (
	crashes    = "crashes"
	losesPower = "loses power"
	staysAway  = "loses power and stays away"
)

// relocation is one that is watched.
type relocation struct {
	m      *Mesh
	disk   ukai.DiskID
	wanted string        // moment
	came   chan struct{} // closed when it comes

	mu       sync.Mutex
	seen     []string // moments, as they came
	copies   []*copyTo
	reads    map[string]int64 // bytes read by copies, by node
	instance string           // of the quorum record when it began
	told     map[string]string
	least    int // fewest replicas in sync that any record has had
	over     chan struct{}
}

// copyTo is a replica that is made in Osaka.
type copyTo struct {
	node    string
	replica ukai.ReplicaID
	bytes   int64 // that were copied there
}

const (
	movedBytes = 8 << 20  // of data
	movedSize  = 12 << 20 // of the disk
	// guestWrites is more than a guest writes at once, and less than a copy does.
	guestWrites = 4096
)

// watch begins to watch the relocation of a disk on all nodes of a mesh that run.
func (m *Mesh) watch(disk, wanted string) *relocation {
	m.T.Helper()
	info, err := m.Order[0].StatDisk(disk)
	if err != nil {
		m.T.Fatal(err)
	}
	r := &relocation{m: m, disk: info.ID, wanted: wanted, came: make(chan struct{}), reads: map[string]int64{}, least: 1 << 10, over: make(chan struct{})}
	for _, n := range m.Order {
		n.Fault = r.storeOf(n)
		r.listen(n)
	}
	return r
}

// end ends the watching of records.
func (r *relocation) end() { close(r.over) }

// listen hears the records that a node learns of, until its process ends.
func (r *relocation) listen(n *Node) {
	process := n.Node
	changed, cancel := process.Changed()
	go func() {
		defer cancel()
		for {
			r.record(process)
			select {
			case <-changed:
			case <-r.over:
				return
			}
		}
	}()
}

// meets notes that a moment has come. The caller holds r.mu.
func (r *relocation) meets(moment string) {
	if slices.Contains(r.seen, moment) {
		return
	}
	r.seen = append(r.seen, moment)
	if moment == r.wanted {
		close(r.came)
	}
}

// ordinal puts the number of a copy into words.
func ordinal(i int) string { return [...]string{"first", "second", "third", "fourth"}[i] }

// record takes in what a node tells of the disk.
func (r *relocation) record(n *node.Node) {
	facts := n.Facts(r.disk)
	r.mu.Lock()
	defer r.mu.Unlock()
	if facts["locations"] == "" {
		return
	}
	before := r.told
	r.told = facts
	r.least = min(r.least, strings.Count(facts["locations"], " in sync"))
	for i, c := range r.copies {
		for role, word := range map[string]string{"syncing": "named", "in sync": "in sync"} {
			if strings.Contains(facts["locations"], c.node+"@osaka "+role) {
				r.meets(fmt.Sprintf("the %s replica is %s", ordinal(i), word))
			}
		}
	}
	if slices.Contains(r.seen, "the second replica is in sync") {
		switch strings.Count(facts["locations"], "@tokyo") {
		case 1:
			r.meets("one old replica is dropped")
		case 0:
			r.meets("both old replicas are dropped")
		}
	}
	if slices.Contains(r.seen, "the quorum record begins to move") && before["version"] < facts["version"] && before["locations"] == facts["locations"] && before["epoch"] == facts["epoch"] && before["phase"] == facts["phase"] {
		r.meets("the quorum record has moved")
	}
}

// storeOf sees what a node does to its store.
func (r *relocation) storeOf(n *Node) func(store.Op) error {
	return func(op store.Op) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case op.Kind == store.OpPut && strings.HasPrefix(op.Key, "c/"+r.disk.String()):
			instance := op.Key[strings.LastIndex(op.Key, "/")+1:]
			if r.instance == "" {
				r.instance = instance
			} else if instance > r.instance {
				r.meets("the quorum record begins to move")
			}
		case op.Kind == store.OpPut && strings.HasPrefix(op.Key, "t/"+r.disk.String()) && n.DC == "tokyo":
			r.meets("an old replica is put aside")
		case op.Disk != r.disk:
		case op.Kind == store.OpRead && n.DC == "tokyo" && op.Bytes > guestWrites:
			r.reads[n.Name] += op.Bytes
		case op.Kind == store.OpRemove && n.DC == "tokyo":
			r.meets("an old replica is removed")
		case op.Kind == store.OpCreate && n.DC == "osaka":
			r.copies = append(r.copies, &copyTo{node: n.Name, replica: op.Replica})
			r.meets(fmt.Sprintf("the %s replica is made", ordinal(len(r.copies)-1)))
		case op.Kind == store.OpWrite && op.Bytes > guestWrites || op.Kind == store.OpSync:
			i := slices.IndexFunc(r.copies, func(c *copyTo) bool { return c.replica == op.Replica })
			if i < 0 {
				break
			}
			if op.Kind == store.OpWrite {
				r.copies[i].bytes += op.Bytes
			}
			which := ordinal(i)
			if n := r.copies[i].bytes; n > 0 {
				r.meets("the " + which + " copy has begun")
				if n >= movedBytes/2 {
					r.meets("half of the " + which + " copy is made")
				}
				if n >= movedBytes*7/8 {
					r.meets("nearly all of the " + which + " copy is made")
				}
				if n >= movedBytes && op.Kind == store.OpSync {
					r.meets("the " + which + " copy is durable")
				}
			}
		}
		return nil
	}
}

// landed returns how many bytes have been copied to Osaka, and how many of them to one node.
func (r *relocation) landed(on string) (all, there int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.copies {
		all += c.bytes
		if c.node == on {
			there += c.bytes
		}
	}
	return all, there
}

// find returns the machine that is a victim now.
func (r *relocation) find(victim string) *Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	doer := r.told["holder"]
	if doer == "" { // nobody holds it: the first by id with an in-sync replica
		var first ukai.NodeID
		for _, n := range r.m.Order {
			if id := n.ID(); strings.Contains(r.told["locations"], n.Name+"@"+n.DC+" in sync") && (doer == "" || slices.Compare(id[:], first[:]) < 0) {
				doer, first = n.Name, id
			}
		}
	}
	to := ""
	if len(r.copies) > 0 {
		to = r.copies[len(r.copies)-1].node
	}
	from := ""
	for _, name := range slices.Sorted(maps.Keys(r.reads)) {
		if name != doer && (from == "" || r.reads[name] > r.reads[from]) {
			from = name
		}
	}
	for _, name := range []string{"t1", "t2"} {
		if from == "" && name != doer {
			from = name
		}
	}
	switch victim {
	case executor:
		return r.m.Nodes[doer]
	case target:
		return r.m.Nodes[to]
	case source:
		return r.m.Nodes[from]
	}
	return r.m.Nodes["w1"]
}

// sectors is what a disk should hold, as a guest knows that had its writes acknowledged.
type sectors struct {
	data  []byte
	doubt map[int]byte // sector -> value of a write that may be there or not
	next  int
}

const (
	sectorBytes = 512
	// usedChunks is how many chunks of the disk the guest writes: each that it wrote while a replica was away is copied.
	usedChunks = 12
)

// use writes sectors one after the other until stop is closed or a write fails.
func (s *sectors) use(d *volume.Disk, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(100 * time.Millisecond):
		}
		s.next++
		const perChunk = ukai.ChunkSize / sectorBytes
		i, value := s.next%usedChunks*(movedSize/usedChunks/sectorBytes)+s.next/usedChunks%perChunk, byte(s.next)
		p := make([]byte, sectorBytes)
		for k := range p {
			p[k] = value
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		_, err := d.WriteAt(ctx, p, int64(i)*sectorBytes)
		cancel()
		if err != nil {
			s.doubt[i] = value
			return fmt.Errorf("write of sector %d: %w", i, err)
		}
		delete(s.doubt, i)
		copy(s.data[i*sectorBytes:], p)
	}
}

// check reads all on a node.
func (s *sectors) check(n *Node, disk string) error {
	d, err := n.OpenDisk(disk)
	if err != nil {
		return err
	}
	got := make([]byte, len(s.data))
	if _, err := d.ReadAt(context.Background(), got, 0); err != nil {
		return err
	}
	for i := 0; i < len(got)/sectorBytes; i++ {
		is, want := got[i*sectorBytes:][:sectorBytes], s.data[i*sectorBytes:][:sectorBytes]
		if value, any := s.doubt[i]; any && slices.Max(is) == value && slices.Min(is) == value {
			continue
		}
		if !slices.Equal(is, want) {
			return fmt.Errorf("%s reads % x... in sector %d, want % x...", n.Name, is[:8], i, want[:8])
		}
	}
	return nil
}

// kill is one relocation in which a machine dies, or none.
type kill struct {
	attached      bool // the disk is used on a node without a replica; else nobody uses it
	moment        string
	victim, death string
}

func (k kill) String() string {
	mode := "attached"
	if !k.attached {
		mode = "unattached"
	}
	return strings.ReplaceAll(fmt.Sprintf("%s, %s, %s %s", mode, k.moment, k.victim, k.death), " ", "_")
}

// run runs the relocation and returns what was seen of it.
func (k kill) run(t *testing.T) *relocation {
	m := New(t, 1)
	defer m.Stop()
	m.Tune = func(c *node.Config) { c.TrashGrace = 20 * time.Second }
	m.AddAll("t1:tokyo t2:tokyo o1:osaka o2:osaka o3:osaka h1:tokyo:witness w1:fukuoka:witness")
	wan(m, 5*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
	m.serveAdmin()
	ctx := context.Background()
	m.Create("vm1", movedSize, "dc=tokyo:2")
	content := &sectors{data: make([]byte, movedSize), doubt: map[int]byte{}}
	copy(content.data, pattern(7, movedBytes))
	first := m.attach("h1", "vm1")
	if _, err := first.n.Volume("vm1").WriteAt(ctx, content.data[:movedBytes], 0); err != nil {
		t.Fatal(err)
	}
	first.flush()
	if !k.attached {
		first.detach()
	}
	after := int64(30)
	if _, err := m.Nodes["w1"].SetDefaults(ctx, admin.SetDefaults{RepairAfterSeconds: &after}); err != nil {
		t.Fatal(err)
	}
	m.limit("w1", "tokyo-osaka", "4MiB/s")

	r := m.watch("vm1", k.moment)
	defer r.end()
	stop := make(chan struct{})
	var guests sync.WaitGroup
	var failed error
	if k.attached {
		guests.Go(func() { failed = content.use(first.n.Volume("vm1"), stop) })
	}
	m.place("o3", "vm1", "dc=osaka:2")

	var dead *Node
	allowed, was := int64(2*(movedBytes+usedChunks*ukai.ChunkSize)), 0 // chunks that are written while they are copied are copied twice
	if k.victim != "" {
		select {
		case <-r.came:
		case <-time.After(Patience):
			t.Fatalf("%s has not come; those that have: %q", k.moment, r.seen)
		}
		dead = r.find(k.victim)
		_, there := r.landed(dead.Name)
		r.mu.Lock()
		if strings.Contains(r.told["locations"], dead.Name+"@"+dead.DC+" in sync") {
			was = 1
		}
		r.mu.Unlock()
		allowed += volume.CopyWindow + usedChunks*ukai.ChunkSize
		if k.death == staysAway || k.death == losesPower && was == 0 {
			allowed += there
		}
		if k.death == crashes {
			dead.Crash()
		} else {
			dead.PowerCut()
		}
	}
	observer := m.Nodes["w1"]
	if dead == observer {
		observer = m.Nodes["o3"]
	}
	percents := map[string]int{}
	look := func() {
		j, err := observer.job("vm1")
		if err != nil || j.State.Ended() {
			return
		}
		which := j.Kind + j.Since.String()
		if j.Percent < percents[which] {
			t.Errorf("the %s was done to %d %% and is done to %d %%: %+v", j.Kind, percents[which], j.Percent, j)
		}
		percents[which] = j.Percent
	}
	last := "h1"
	if dead != nil {
		for range 8 {
			time.Sleep(time.Second)
			look()
		}
		if k.death != staysAway {
			dead.Boot()
			s, l := admin.NewServer(admin.ServerConfig{Backend: dead.Node}), dead.AdminListener()
			go func() { _ = s.Serve(l) }() // ends with the node
			r.listen(dead)
		}
		if k.attached && k.victim == executor {
			guests.Wait() // its program died with it, and is started again
			if k.death == staysAway {
				last = "t2"
			}
			again := m.awaitAttach(last, "vm1")
			guests.Go(func() { failed = content.use(again.n.Volume("vm1"), stop) })
		}
	}
	there := func() error {
		look()
		var in, gone []string
		for _, l := range strings.Split(observer.Facts(r.disk)["locations"], ", ") {
			if name, ok := strings.CutSuffix(l, "@osaka in sync"); ok && (dead == nil || dead.Node != nil || dead.Name != name) {
				in = append(in, name)
			} else {
				gone = append(gone, l)
			}
		}
		if len(in) != 2 || len(gone) > 0 {
			return fmt.Errorf("it is on %v and %v", in, gone)
		}
		if got := arbiters(t, observer, "vm1"); slices.Contains(got, "t1") || slices.Contains(got, "t2") {
			return fmt.Errorf("its arbiters are %v", got)
		}
		for _, name := range []string{"t1", "t2"} {
			if n := m.Nodes[name]; n.Node != nil && len(n.Store.Replicas()) > 0 {
				return fmt.Errorf("%s still has a replica", name)
			}
		}
		if j, err := observer.job("vm1"); err != nil || j.State != admin.JobDone {
			return fmt.Errorf("%w: its job is %+v", err, j)
		}
		return nil
	}
	for start := time.Now(); there() != nil; time.Sleep(250 * time.Millisecond) {
		if time.Since(start) > Patience {
			t.Errorf("the disk is not in osaka after %v: %v", Patience, there())
			break
		}
	}
	close(stop)
	guests.Wait()
	if failed != nil {
		t.Errorf("the guest: %v", failed)
	}
	if k.attached {
		if err := m.Nodes[last].Volume("vm1").Detach(ctx); err != nil {
			t.Error(err)
		}
	}
	if all, _ := r.landed(""); all > allowed {
		t.Errorf("%d bytes were copied, of %d at most", all, allowed)
	}
	r.mu.Lock()
	if r.least < 2-was {
		t.Errorf("%d replicas were in sync", r.least)
	}
	r.mu.Unlock()
	for _, name := range []string{"t1", "t2"} {
		if n := m.Nodes[name]; n.Node != nil {
			n.Crash()
		}
	}
	m.Await("osaka reads what was acknowledged", func() error { return content.check(m.Nodes["o3"], "vm1") })
	return r
}

// TestARelocationPassesItsMomentsInOrder holds the moments themselves: if a relocation has others, machines are to die then, too.
func TestARelocationPassesItsMomentsInOrder(t *testing.T) {
	for _, attached := range []bool{true, false} {
		t.Run(kill{attached: attached}.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := kill{attached: attached}.run(t)
				if !slices.Equal(r.seen, moments) {
					t.Errorf("it passed\n%s", strings.Join(r.seen, "\n"))
				}
			})
		})
	}
}

var allKills = flag.Bool("kills", false, "kill machines of a relocation at all its moments in all ways, not a part of them")

// TestARelocationSurvivesTheDeathOfAnyMachineAtAnyMoment kills each machine that takes part in a relocation at each of its moments: each of them in
// each way with -kills, else one machine at each moment in one way.
func TestARelocationSurvivesTheDeathOfAnyMachineAtAnyMoment(t *testing.T) {
	victims, deaths := []string{executor, target, source, arbiter}, []string{crashes, losesPower, staysAway}
	for i, moment := range moments {
		for j, victim := range victims {
			for l, death := range deaths {
				for mode, attached := range []bool{true, false} {
					chosen := i%len(victims) == j && (i/len(victims)+j)%len(deaths) == l && (i/2+i/len(victims))%2 == mode
					if !*allKills && (!chosen || testing.Short() && i%5 > 0) {
						continue
					}
					k := kill{attached, moment, victim, death}
					t.Run(k.String(), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { k.run(t) })
					})
				}
			}
		}
	}
}
