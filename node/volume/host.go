package volume

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/wire"
)

// Peers carries requests to other nodes. Start may wait for room in a named bound, until ctx ends; the message and its
// payload are the caller's again when it returns.
type Peers interface {
	Start(ctx context.Context, to ukai.NodeID, m *wire.Message, into []byte) Call
	// RTT is the measured round trip, if there is one.
	RTT(to ukai.NodeID) (time.Duration, bool)
}

// Call is a request under way. When Wait has returned, the buffer for the reply is not touched any more; the end of ctx
// makes it return soon.
type Call interface {
	Wait(ctx context.Context) (wire.Reply, error)
	Done() <-chan struct{}
}

// Cells changes and reads quorum records. Errors are those of cell.Propose: ukai.ErrRejected with the record that was
// found, ukai.ErrNoQuorum if the change certainly did not take effect, anything else leaves that in doubt.
type Cells interface {
	Propose(ctx context.Context, disk ukai.DiskID, change cell.Change) (crdt.Record, error)
}

// Mesh is what gossip knows. All of it may be old, and none of it is relied on for correctness.
type Mesh interface {
	// Record returns the last record of a disk that reached this node.
	Record(disk ukai.DiskID) (crdt.Record, bool)
	// Dead says whether a majority of the record's arbiters takes the holder's node for dead, so that it may be
	// deposed without asking anyone. If silent, it is enough that they suspect it and it does not answer them now.
	Dead(rec crdt.Record, silent bool) bool
	// NodeName returns a node's name, "" if it is not known.
	NodeName(id ukai.NodeID) string
}

// Config is what a Host needs to know.
type Config struct {
	Node     ukai.NodeID
	Peers    Peers
	Cells    Cells
	Mesh     Mesh
	Replicas *Replicas    // this node's own
	Log      *slog.Logger // default: discard
	// Notify is told what happens to replicas of disks held here. It must not block. Default: nobody is.
	Notify func(Event)
	// Budget waits until bytes may be copied between two nodes in the background for a disk. It is asked before the range of the disk is locked,
	// and never for what the guest does or waits for. Default: they may always.
	Budget func(ctx context.Context, disk ukai.DiskID, from, to ukai.NodeID, bytes int64) error

	// Heat returns how often the parts of a disk were used by guests of other nodes, as far as those tell. Default: nobody is asked.
	Heat func(ctx context.Context, disk ukai.DiskID) [HeatParts]uint32

	// Clock is the time since some moment, and goes on while the machine is suspended: leases depend on it. Default:
	// CLOCK_BOOTTIME.
	Clock func() time.Duration
	// AttachTimeout bounds an attach whose context has no deadline. Default 30 s.
	AttachTimeout time.Duration
	// LossLimit is how long I/O on a disk with OnLoss = Error waits for lost replicas or arbiters. Default
	// DefaultLossLimit.
	LossLimit time.Duration
	// Linger is how long a disk that is used without Attach stays held after its last use, if it was written; if not,
	// readLinger times as long. Default 2 s.
	Linger time.Duration
	// StrayGrace is how long a replica keeps blocks that it does not serve any more. Default 1 h.
	StrayGrace time.Duration
	// MaxInflight bounds the bytes of reads and writes that run on one disk; more wait. Default 64 MiB.
	MaxInflight int64
}

// readLinger is how many times as long a disk stays held that was only read: every reader elsewhere is served by the
// one that claimed it, and who wants to write gets it at once.
const readLinger = 5

// DefaultLossLimit is below the 30 s after which guests give up.
const DefaultLossLimit = 20 * time.Second

// Times of the holder's side that are not part of the protocol. RTTs are added to them, so that slow is not dead.
const (
	tickEvery = 125 * time.Millisecond
	// suspectAfter is the age of an unanswered request at which its node is probed.
	suspectAfter = 1 // ticks
	// silentAfter is how long a node may leave a heartbeat unanswered before the requests it owes are given up and a new
	// session is tried; idleSilentAfter the same when it owes none.
	silentAfter     = 350 * time.Millisecond
	idleSilentAfter = 3 * time.Second
	// slowAfter is the age at which a request is given up though its node is alive: its disk hangs.
	slowAfter = slowTime / tickEvery // ticks, fewer than slots
	slowTime  = 7500 * time.Millisecond
	// reconnectFor is how long a lost replica is greeted before it is dropped from the in-sync set.
	reconnectFor = 200 * time.Millisecond
	// rttFactor is how many round trips each of these is lengthened by.
	rttFactor = 4

	heartbeatTicks = int(heartbeatEvery / tickEvery)
)

// Host is the holder's side of a node: the disks it has open, and what they share - heartbeats to the nodes with their
// replicas, and one clock tick for them all.
type Host struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	attaching context.Context // ends when Close begins: nothing is attached any more
	refuse    context.CancelFunc
	gone      context.Context // already over: waiting under it takes a call back

	mu      sync.Mutex
	closed  bool // no disk is attached any more
	stopped bool // no goroutine is started any more
	disks   map[ukai.DiskID]*Disk
	peers   map[ukai.NodeID]*peer

	forwards atomic.Int64

	resyncs  map[ukai.NodeID]chan struct{} // those that run, by the node of the replica
	copies   *copies
	resynced struct {
		bytes, blocks, hashed atomic.Int64
	}
	scrubbed struct {
		verified, corrupt, repaired, unrepaired atomic.Int64 // parts of disks
	}
}

// NewHost starts the holder's side. Close it before Replicas.
func NewHost(cfg Config) *Host {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = bootTime
	}
	cfg.AttachTimeout = defaultTo(cfg.AttachTimeout, 30*time.Second)
	cfg.LossLimit = defaultTo(cfg.LossLimit, DefaultLossLimit)
	cfg.Linger = defaultTo(cfg.Linger, 2*time.Second)
	cfg.StrayGrace = defaultTo(cfg.StrayGrace, time.Hour)
	if cfg.MaxInflight <= 0 {
		cfg.MaxInflight = 64 << 20
	}
	h := &Host{cfg: cfg, disks: make(map[ukai.DiskID]*Disk), peers: make(map[ukai.NodeID]*peer)}
	h.resyncs, h.copies = make(map[ukai.NodeID]chan struct{}), newCopies()
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.attaching, h.refuse = context.WithCancel(h.ctx)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	h.gone = gone
	h.work.Go(h.pulse)
	return h
}

func defaultTo(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

// bootTime reads CLOCK_BOOTTIME. Go's own clock stands still while the machine is suspended, and a host that wakes up
// would take an old lease for a fresh one.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // only if the kernel has no such clock; Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Disk returns a disk as this node sees it. It is made without asking anyone: what is wrong with it shows at its use.
func (h *Host) Disk(id ukai.DiskID, name string) *Disk {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.disks[id]
	if d == nil {
		d = newDisk(h, id)
		h.disks[id] = d
	}
	if name != "" {
		d.name.Store(&name)
	}
	return d
}

// Forget drops a disk that is not held: a deleted one.
func (h *Host) Forget(id ukai.DiskID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.disks[id]; d != nil && d.holding.Load() == nil {
		delete(h.disks, id)
	}
}

// Observe tells the host of a committed record that has reached this node. If it shows that a disk has a newer holder,
// this one stops at once instead of at its next refused request; what it says of this holder's epoch is taken in.
func (h *Host) Observe(rec crdt.Record) {
	h.mu.Lock()
	d := h.disks[rec.Disk]
	h.mu.Unlock()
	if d == nil {
		return
	}
	held := d.holding.Load()
	switch {
	case held == nil:
	case held.parted(&rec):
		held.end(fmt.Errorf("the disk goes on with another history than that of epoch %v here: %w", held.epoch, ukai.ErrFenced))
	case rec.Epoch > held.epoch:
		held.fenced(rec.Epoch)
	case rec.Epoch == held.epoch:
		held.observe(rec)
	}
}

// parted says whether a record is of another history of the disk than this holding, after forced takeovers on both sides of a cut. Epochs and
// versions of two histories do not compare.
func (h *holding) parted(rec *crdt.Record) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !rec.Dominates(h.sets.known) && !h.sets.known.Dominates(*rec)
}

// observe takes in what others committed about the disk: safety settings, arbiters. Sets of replicas are changed by the
// holder alone. While a change of its own is under way this is left to that change, which reads the record.
func (h *holding) observe(rec crdt.Record) {
	select {
	case h.reconfiguring <- struct{}{}:
	default:
		return
	}
	defer func() { <-h.reconfiguring }()
	h.mu.Lock()
	news := h.serving && !h.sets.inDoubt() && rec.Version > h.sets.known.Version
	h.mu.Unlock()
	if news {
		h.resolved(rec)
	}
}

// Held returns the state of a disk that this node holds; ok says whether it does.
func (h *Host) Held(id ukai.DiskID) (s Status, ok bool) {
	h.mu.Lock()
	d := h.disks[id]
	h.mu.Unlock()
	if d == nil || d.holding.Load() == nil {
		return s, false
	}
	s = d.Status()
	return s, s.Here
}

// Troubled returns the state of the disks of which this node knows more than their records say, because it holds them or looks after them: their I/O
// waits or fails, or a replica is not in sync.
func (h *Host) Troubled() (list []Status) {
	h.mu.Lock()
	disks := make([]*Disk, 0, len(h.disks))
	for _, d := range h.disks {
		disks = append(disks, d)
	}
	h.mu.Unlock()
	for _, d := range disks {
		if s := d.Status(); s.Suspended != "" || s.Ended != "" || slices.ContainsFunc(s.Replicas, func(r ReplicaStatus) bool { return r.Role != crdt.InSync }) {
			list = append(list, s)
		}
	}
	return list
}

// Counters tells what this host has done since it started.
func (h *Host) Counters() map[string]uint64 {
	return map[string]uint64{
		"ukai_resync_bytes_total":        uint64(h.resynced.bytes.Load()),
		"ukai_resync_blocks_total":       uint64(h.resynced.blocks.Load()),
		"ukai_resync_hashed_bytes_total": uint64(h.resynced.hashed.Load()),
		"ukai_scrub_verified_total":      uint64(h.scrubbed.verified.Load()),
		"ukai_scrub_corrupt_total":       uint64(h.scrubbed.corrupt.Load()),
		"ukai_scrub_repaired_total":      uint64(h.scrubbed.repaired.Load()),
		"ukai_scrub_unrepaired_total":    uint64(h.scrubbed.unrepaired.Load()),
	}
}

// Close releases every disk, as far as that is possible before ctx ends, and stops. If ctx has ended already, nothing is
// released, as if the process had been killed. A second call returns nil.
func (h *Host) Close(ctx context.Context) error {
	h.refuse()
	h.mu.Lock()
	if h.stopped {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	disks := make([]*Disk, 0, len(h.disks))
	for _, d := range h.disks {
		disks = append(disks, d)
	}
	h.mu.Unlock()
	errs := make([]error, len(disks))
	var all sync.WaitGroup
	for i, d := range disks {
		all.Go(func() { errs[i] = d.shut(ctx) })
	}
	all.Wait()
	h.mu.Lock()
	h.stopped = true
	h.mu.Unlock()
	h.cancel()
	h.work.Wait()
	return joined(errs)
}

// joined is errors.Join on one line.
func joined(errs []error) error {
	var out error
	for _, err := range errs {
		switch {
		case err == nil:
		case out == nil:
			out = err
		default:
			out = fmt.Errorf("%w; %w", out, err)
		}
	}
	return out
}

// spawn runs f in a goroutine that Close waits for. It says whether it did: not after Close.
func (h *Host) spawn(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return false
	}
	h.work.Go(f)
	return true
}

// holdings returns the disks held now.
func (h *Host) holdings() []*holding {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []*holding
	for _, d := range h.disks {
		if held := d.holding.Load(); held != nil {
			all = append(all, held)
		}
	}
	return all
}

// pulse is the host's one timer.
func (h *Host) pulse() {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
		}
		all := h.holdings()
		if n%heartbeatTicks == 0 {
			h.heartbeat(all)
		}
		used := false
		for _, held := range all {
			held.tick()
			used = used || held.idleTicks == 0
		}
		h.watch(used)
	}
}

func (h *Host) nodeError(id ukai.NodeID, err error) error {
	return &ukai.NodeError{Node: id, Name: h.cfg.Mesh.NodeName(id), Err: err}
}

// rtt returns the measured round trip to a node, 0 if there is none yet.
func (h *Host) rtt(id ukai.NodeID) time.Duration {
	d, ok := h.cfg.Peers.RTT(id)
	if !ok {
		return 0
	}
	return d
}
