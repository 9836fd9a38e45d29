package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/store"
	"ukai/node/wire"
)

// world is a mesh in memory: nodes with crashable stores, a network that delays, cuts and breaks connections, and a
// quorum record that can be slow, unreachable or in doubt.
type world struct {
	t     *testing.T
	disk  ukai.DiskID
	nodes []*testNode
	cells *testCells
	start time.Time
	done  chan struct{}
	work  sync.WaitGroup

	mu     sync.Mutex
	delay  func(from, to int) time.Duration
	cut    map[[2]int]bool // requests and replies on this way vanish
	closed map[int]bool    // node's socket is closed: connections break at once
	late   time.Duration   // requests of broken connections arrive up to this much later
	broken map[[2]int]chan struct{}
	dead   map[int]bool // what gossip says
	rng    *rand.Rand

	requests atomic.Int64
	onSend   atomic.Pointer[func(from, to int, m *wire.Message)] // sees each request before it is sent
}

type testNode struct {
	w        *world
	n        int
	id       ukai.NodeID
	rid      ukai.ReplicaID
	mem      *store.Mem
	store    *store.Store
	replicas atomic.Pointer[Replicas]
	host     atomic.Pointer[Host]
	frozen   atomic.Pointer[chan struct{}]
}

const (
	testBlock = 1 << 20
	testSize  = 8 << 20
)

type setup struct {
	nodes    int
	replicas int // on the first so many nodes
	size     int64
	change   func(*crdt.Record)
	host     func(*Config)
	mem      func(n int) store.MemConfig
}

func newWorld(t *testing.T, s setup) *world {
	t.Helper()
	if s.size == 0 {
		s.size = testSize
	}
	w := &world{
		t: t, disk: ukai.DiskID{1}, start: time.Now(), done: make(chan struct{}), cut: map[[2]int]bool{}, closed: map[int]bool{},
		broken: map[[2]int]chan struct{}{}, dead: map[int]bool{}, rng: rand.New(rand.NewPCG(1, 2)),
		delay: func(int, int) time.Duration { return 100 * time.Microsecond },
	}
	rec := crdt.Record{
		Disk: w.disk, Version: 1, Phase: crdt.PhaseReleased, Size: s.size, BlockSize: testBlock, MinSync: 1,
		Runs: []crdt.Run{{Count: ukai.Blocks(s.size, testBlock)}}, Groups: []crdt.Group{{}},
	}
	for i := range s.nodes {
		cfg := store.MemConfig{}
		if s.mem != nil {
			cfg = s.mem(i)
		}
		n := &testNode{w: w, n: i, id: ukai.NodeID{byte(i + 1)}, rid: ukai.ReplicaID(100 + i), mem: store.NewMem(cfg)}
		w.nodes = append(w.nodes, n)
		if i < 3 {
			rec.Arbiters = append(rec.Arbiters, n.id)
		}
		if i < s.replicas {
			rec.Groups[0].Members = append(rec.Groups[0].Members, crdt.Member{Replica: n.rid, Node: n.id})
		}
	}
	if len(rec.Arbiters) == 2 {
		rec.Arbiters = rec.Arbiters[:1]
	}
	if s.change != nil {
		s.change(&rec)
	}
	if err := rec.Check(); err != nil {
		t.Fatal(err)
	}
	w.cells = &testCells{w: w, rec: rec, latency: time.Millisecond}
	for _, n := range w.nodes {
		for i := range rec.Groups {
			for _, m := range rec.Groups[i].Members {
				if m.Node == n.id {
					if err := n.mem.Create(t.Context(), w.disk, m.Replica, store.ReplicaConfig{Size: s.size, BlockSize: testBlock}); err != nil && !errors.Is(err, ukai.ErrExists) {
						t.Fatal(err)
					}
				}
			}
		}
		n.boot(s.host)
	}
	return w
}

// mediaFault is for setup.mem: while broken is true, operations of a kind fail on node n.
func mediaFault(n int, kind store.OpKind) (mem func(int) store.MemConfig, broken *atomic.Bool) {
	broken = new(atomic.Bool)
	return func(node int) store.MemConfig {
		return store.MemConfig{Fault: func(op store.Op) error {
			if node == n && broken.Load() && op.Kind == kind {
				return ukai.ErrMedia
			}
			return nil
		}}
	}, broken
}

func (w *world) clock() time.Duration { return time.Since(w.start) }

// boot starts the daemon of a node.
func (n *testNode) boot(change func(*Config)) {
	n.store = n.mem.Store()
	rs := NewReplicas(ReplicasConfig{Node: n.id, Name: fmt.Sprintf("n%d", n.n), Store: n.store, Clock: n.w.clock})
	cfg := Config{
		Node: n.id, Peers: testPeers{n}, Cells: w(n).cells.at(n), Mesh: testMesh{n}, Replicas: rs, Clock: n.w.clock, Log: testLog(n),
	}
	if change != nil {
		change(&cfg)
	}
	n.replicas.Store(rs)
	n.host.Store(NewHost(cfg))
}

func w(n *testNode) *world { return n.w }

// kill ends the daemon of a node at once, as far as others can tell: what runs is joined, but nothing is released.
func (n *testNode) kill() {
	n.w.setClosed(n.n, true)
	n.mem.Restart() // before Replicas.Close, which would make everything durable
	rs, h := n.replicas.Swap(nil), n.host.Swap(nil)
	if h != nil {
		h.abandon()
	}
	if rs != nil {
		_ = rs.Close()
	}
}

// abandon stops a host without releasing anything, as the end of the process would.
func (h *Host) abandon() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = h.Close(ctx)
}

// restart brings a killed node back; power says whether it lost what was not synced.
func (n *testNode) restart(power bool) {
	if power {
		n.mem.Crash()
	}
	n.boot(nil)
	n.w.setClosed(n.n, false)
}

func (w *world) close() {
	w.t.Helper()
	w.mu.Lock()
	clear(w.cut)
	clear(w.closed)
	w.mu.Unlock()
	for _, n := range w.nodes {
		n.thaw()
	}
	w.cells.heal()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, n := range w.nodes {
		if h := n.host.Load(); h != nil {
			_ = h.Close(ctx)
		}
	}
	close(w.done)
	for _, n := range w.nodes {
		if rs := n.replicas.Load(); rs != nil {
			_ = rs.Close()
		}
		_ = n.mem.Close()
	}
	w.work.Wait()
}

func (w *world) d(n int) *Disk { return w.nodes[n].host.Load().Disk(w.disk, "vm1") }

// setClosed closes or opens a node's socket. Closing breaks every connection to and from it.
func (w *world) setClosed(n int, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed[n] = closed
	if closed {
		w.breakLocked(n)
	}
}

// flap breaks the connections of a node; requests under way end for the caller, but may still arrive.
func (w *world) flap(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.breakLocked(n)
}

func (w *world) breakLocked(n int) {
	for way, ch := range w.broken {
		if way[0] == n || way[1] == n {
			close(ch)
			delete(w.broken, way)
		}
	}
}

func (w *world) setCut(from, to int, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[[2]int{from, to}] = cut
}

// isolate cuts all ways between two sets of nodes, both ways.
func (w *world) isolate(a, b []int, cut bool) {
	for _, x := range a {
		for _, y := range b {
			w.setCut(x, y, cut)
			w.setCut(y, x, cut)
		}
	}
}

func (n *testNode) freeze() {
	ch := make(chan struct{})
	n.frozen.Store(&ch)
}

func (n *testNode) thaw() {
	if ch := n.frozen.Swap(nil); ch != nil {
		close(*ch)
	}
}

func (n *testNode) awaitThaw() {
	for {
		ch := n.frozen.Load()
		if ch == nil {
			return
		}
		select {
		case <-*ch:
		case <-n.w.done:
			return
		}
	}
}

type testMesh struct{ n *testNode }

func (m testMesh) Record(ukai.DiskID) (crdt.Record, bool) { return m.n.w.cells.gossiped(m.n.n) }
func (m testMesh) Dead(rec crdt.Record, _ bool) bool {
	m.n.w.mu.Lock()
	defer m.n.w.mu.Unlock()
	return m.n.w.dead[int(rec.Holder[0])-1]
}
func (m testMesh) NodeName(id ukai.NodeID) string { return fmt.Sprintf("n%d", int(id[0])-1) }

type testPeers struct{ n *testNode }

func (p testPeers) RTT(to ukai.NodeID) (time.Duration, bool) {
	p.n.w.mu.Lock()
	defer p.n.w.mu.Unlock()
	return 2 * p.n.w.delay(p.n.n, int(to[0])-1), true
}

// testCall is a request under way.
type testCall struct {
	done  chan struct{}
	mu    sync.Mutex
	over  bool
	into  []byte
	reply wire.Reply
	err   error
}

func (c *testCall) Done() <-chan struct{} { return c.done }

func (c *testCall) Wait(ctx context.Context) (wire.Reply, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		err := ctx.Err()
		if errors.Is(err, context.DeadlineExceeded) {
			err = ukai.ErrTimeout
		}
		c.finish(wire.Reply{}, err)
	}
	return c.reply, c.err
}

func (c *testCall) finish(r wire.Reply, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.over = true
	if err == nil && len(r.Payload) <= len(c.into) {
		r.Payload = c.into[:copy(c.into, r.Payload)]
	}
	c.reply, c.err = r, err
	if err != nil {
		c.reply.Payload = nil
	}
	close(c.done)
}

// testRequest is a request at the node it was sent to.
type testRequest struct {
	m      wire.Message
	answer func(wire.Reply, error)
}

func (r *testRequest) message() *wire.Message      { return &r.m }
func (r *testRequest) reply(x wire.Reply, e error) { r.answer(x, e) }
func (r *testRequest) buffer(n int) []byte         { return make([]byte, n) }

func (p testPeers) Start(_ context.Context, to ukai.NodeID, m *wire.Message, into []byte) Call {
	w, from, dest := p.n.w, p.n.n, int(to[0])-1
	w.requests.Add(1)
	if see := w.onSend.Load(); see != nil {
		(*see)(from, dest, m)
	}
	c := &testCall{done: make(chan struct{}), into: into}
	msg := *m
	msg.Payload = bytes.Clone(m.Payload)
	w.mu.Lock()
	if w.closed[from] || w.closed[dest] {
		w.mu.Unlock()
		c.finish(wire.Reply{}, fmt.Errorf("n%d: %w", dest, ukai.ErrUnreachable))
		return c
	}
	way := [2]int{from, dest}
	broken := w.broken[way]
	if broken == nil {
		broken = make(chan struct{})
		w.broken[way] = broken
	}
	delay := w.delay(from, dest)
	w.mu.Unlock()
	w.work.Go(func() { w.carry(c, &msg, from, dest, delay, broken) })
	return c
}

// carry takes a request to its node and the answer back.
func (w *world) carry(c *testCall, m *wire.Message, from, to int, delay time.Duration, broken chan struct{}) {
	if w.pause(delay, broken) {
		c.finish(wire.Reply{}, fmt.Errorf("n%d: %w", to, ukai.ErrUnreachable))
		w.mu.Lock()
		late := w.late
		if late > 0 {
			late = time.Duration(w.rng.Int64N(int64(late)))
		}
		closed := w.closed[to]
		w.mu.Unlock()
		if closed || late == 0 {
			return
		}
		w.pause(late, nil) // a request of a dead connection that still arrives
	}
	if w.isCut(from, to) {
		select {
		case <-broken:
			c.finish(wire.Reply{}, fmt.Errorf("n%d: %w", to, ukai.ErrUnreachable))
		case <-c.done:
		case <-w.done:
		}
		return
	}
	n := w.nodes[to]
	n.awaitThaw()
	replied := make(chan struct{})
	var reply wire.Reply
	var err error
	r := &testRequest{m: *m, answer: func(x wire.Reply, e error) {
		reply, err = x, e
		close(replied)
	}}
	rs, h := n.replicas.Load(), n.host.Load()
	if rs == nil || h == nil {
		c.finish(wire.Reply{}, fmt.Errorf("n%d: %w", to, ukai.ErrUnreachable))
		return
	}
	switch m.Kind {
	case wire.KindForward, wire.KindYield:
		h.serve(r)
	default:
		rs.serve(r)
	}
	<-replied
	n.awaitThaw()
	if w.isCut(to, from) {
		select {
		case <-broken:
			c.finish(wire.Reply{}, fmt.Errorf("n%d: %w", to, ukai.ErrUnreachable))
		case <-c.done:
		case <-w.done:
		}
		return
	}
	if w.pause(delay, broken) {
		c.finish(wire.Reply{}, fmt.Errorf("n%d: %w", to, ukai.ErrUnreachable))
		return
	}
	c.finish(reply, err)
}

// pause waits and says whether the connection broke before.
func (w *world) pause(d time.Duration, broken chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return false
	case <-broken:
		return true
	case <-w.done:
		return true
	}
}

func (w *world) isCut(from, to int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut[[2]int{from, to}]
}

// testCells is the quorum record as one atomic register.
type testCells struct {
	w       *world
	mu      sync.Mutex
	rec     crdt.Record
	old     *crdt.Record // what gossip shows instead
	latency time.Duration
	down    map[int]bool // nodes that reach no majority
	doubt   int          // next changes whose outcome is not told: they commit
	lose    int          // next changes whose outcome is not told: they do not commit
	count   int
	history []crdt.Record
	decide  func(n int, change cell.Change) fate // of a change that is not refused, if set
}

// fate is what becomes of a change.
type fate uint8

const (
	commits       fate = iota
	commitsUntold      // it commits, and the answer is lost
	vanishes           // it does not commit, and the answer is lost
	refused            // it certainly does not commit
	overtakes          // another change of the record comes first
)

type testCellsAt struct {
	c *testCells
	n *testNode
}

func (c *testCells) at(n *testNode) Cells { return testCellsAt{c, n} }

func (c *testCells) gossiped(int) (crdt.Record, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.old != nil {
		return c.old.Clone(), true
	}
	return c.rec.Clone(), true
}

func (c *testCells) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down, c.doubt, c.lose, c.decide = nil, 0, 0, nil
}

func (c *testCells) set(f func(*testCells)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c)
}

func (c *testCells) record() crdt.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Clone()
}

func (a testCellsAt) Propose(ctx context.Context, _ ukai.DiskID, change cell.Change) (crdt.Record, error) {
	c := a.c
	c.mu.Lock()
	c.count++
	latency := c.latency
	c.mu.Unlock()
	if !sleep(ctx, latency) {
		return crdt.Record{}, fmt.Errorf("%w: %w", ukai.ErrNoQuorum, ctx.Err())
	}
	rec, err := a.apply(change)
	if !sleep(ctx, latency) && err == nil {
		return crdt.Record{}, fmt.Errorf("%w: %w", ukai.ErrInDoubt, ctx.Err())
	}
	return rec, err
}

func (a testCellsAt) apply(change cell.Change) (crdt.Record, error) {
	c := a.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down[a.n.n] {
		return crdt.Record{}, fmt.Errorf("%v: %w", change, ukai.ErrNoQuorum)
	}
	if change.Done(c.rec) {
		return c.rec.Clone(), nil
	}
	next, err := change.Apply(c.rec.Clone())
	if err != nil {
		return c.rec.Clone(), err
	}
	told := commits
	if c.decide != nil {
		told = c.decide(a.n.n, change)
	}
	switch {
	case told == refused:
		return crdt.Record{}, fmt.Errorf("%v: %w", change, ukai.ErrNoQuorum)
	case told == overtakes:
		c.rec.Version++
		c.history = append(c.history, c.rec.Clone())
		_, err := change.Apply(c.rec.Clone())
		return c.rec.Clone(), err
	case told == vanishes:
		return crdt.Record{}, fmt.Errorf("%v: %w", change, ukai.ErrInDoubt)
	}
	if c.lose > 0 {
		c.lose--
		return crdt.Record{}, fmt.Errorf("%v: %w", change, ukai.ErrInDoubt)
	}
	c.rec = next
	c.history = append(c.history, next.Clone())
	if told == commitsUntold {
		return crdt.Record{}, fmt.Errorf("%v: %w", change, ukai.ErrInDoubt)
	}
	if c.doubt > 0 {
		c.doubt--
		return crdt.Record{}, fmt.Errorf("%v: %w", change, ukai.ErrInDoubt)
	}
	return next.Clone(), nil
}

// Helpers that say what went wrong.

func (w *world) attach(n int) {
	w.t.Helper()
	if err := w.d(n).Attach(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) detach(n int) {
	w.t.Helper()
	if err := w.d(n).Detach(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(n int, off int64, p []byte) {
	w.t.Helper()
	if _, err := w.d(n).WriteAt(w.t.Context(), p, off); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) flush(n int) {
	w.t.Helper()
	if err := w.d(n).Flush(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wantRead(n int, off int64, want []byte) {
	w.t.Helper()
	got := make([]byte, len(want))
	if _, err := w.d(n).ReadAt(w.t.Context(), got, off); err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		w.t.Fatalf("read at %d through n%d: got %x..., want %x...", off, n, got[:8], want[:8])
	}
}

// raw returns what the replica of a node holds, without asking its fence.
func (n *testNode) raw(off, size int64) []byte {
	p := make([]byte, size)
	h, err := n.replicas.Load().open(context.Background(), n.w.disk, n.rid)
	if err == nil {
		err = h.data.ReadAt(p, off)
	}
	if err != nil {
		n.w.t.Fatalf("n%d: %v", n.n, err)
	}
	return p
}

// wantEqual compares the in-sync replicas byte for byte.
func (w *world) wantEqual() {
	w.t.Helper()
	rec := w.cells.record()
	for i := range rec.Groups {
		var first []byte
		var of int
		for _, m := range rec.InSync(rec.Groups[i].ID) {
			n := w.nodes[int(m.Node[0])-1]
			got := n.raw(0, rec.Size)
			if first == nil {
				first, of = got, n.n
				continue
			}
			if bytes.Equal(first, got) {
				continue
			}
			for off := range first {
				if first[off] != got[off] {
					w.t.Fatalf("in-sync replicas of n%d and n%d differ at %d (block %d): %x and %x", of, n.n, off, off/testBlock, first[off], got[off])
				}
			}
		}
	}
}

// awaitAllInSync returns when all members of the record are in sync, and fails the test if that takes more than a minute or two.
func (w *world) awaitAllInSync() {
	w.t.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		rec := w.cells.record()
		if len(absentees(&rec)) == 0 {
			return
		}
		if time.Since(begin) > 2*time.Minute {
			for _, n := range w.nodes {
				if h := n.host.Load(); h != nil {
					w.t.Logf("n%d: %+v", n.n, h.Disk(w.disk, "").Status())
				}
			}
			w.t.Fatalf("not all replicas are in sync after two minutes: %+v", rec.Groups)
		}
	}
}

// resyncing has a holder write some blocks, twice, the second time without a replica, and returns when the resync of that replica has begun, over
// links that take this long.
func (w *world) resyncing(holder, replica int, blocks int64, delay time.Duration) {
	w.attach(holder)
	write := func(v byte) {
		for b := range blocks {
			w.write(holder, b*testBlock, fill(testBlock, v))
		}
	}
	write(1)
	w.nodes[replica].kill()
	write(2)
	w.mu.Lock()
	w.delay = func(int, int) time.Duration { return delay }
	w.mu.Unlock()
	w.nodes[replica].restart(false)
	for w.d(holder).holding.Load().record().Groups[0].Count(crdt.Syncing) == 0 {
		time.Sleep(time.Millisecond)
	}
}

// wantReturn waits until the replica of a node is in sync, and compares all that are.
func (w *world) wantReturn(n int) {
	w.t.Helper()
	w.awaitAllInSync()
	if in := w.inSync(); !slices.Contains(in, n) {
		w.t.Fatalf("in sync: %v, not n%d", in, n)
	}
	w.wantEqual()
}

func (w *world) inSync() (nodes []int) {
	rec := w.cells.record()
	for _, m := range rec.InSync(0) {
		nodes = append(nodes, int(m.Node[0])-1)
	}
	return nodes
}

func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

// bubble runs a test in virtual time.
func bubble(t *testing.T, s setup, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, s)
		defer w.close()
		f(w)
	})
}
