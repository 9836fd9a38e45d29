package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/coordinate"

	"ukai"
	"ukai/crdt"
)

// Linger is how long after Close goroutines of memberlist may go on waiting for answers to probes.
const Linger = 20 * time.Second

const (
	maxSeeds  = 256              // in Config.Seeds
	closeTime = 10 * time.Second // for the last write to the journal
)

// Config says what a mesh needs.
type Config struct {
	Transport Transport
	ID        ukai.NodeID
	// Info is what the node says of itself at first: name, version, public key, capacity. Open sets Addr and Seq, and Boot
	// where it is 0; a caller that counts starts itself sets Boot to that count. Publish changes it later.
	Info crdt.NodeInfo
	// Seeds are where to look for a mesh: "host:port" with a name or address; a name may resolve to many addresses, and the
	// port may be missing if it is the same as this node's. Without seeds and remembered peers the node is a mesh
	// of its own, which others join.
	Seeds []string
	// Advertise is the "ip:port" at which others reach this node; see the package comment for the default.
	Advertise string
	// Journal keeps the catalog and the peers. With nil the node forgets everything when it ends.
	Journal Journal
	// Resolve finds the addresses of a seed's name. Default: the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Now is the wall clock, for stamps. Default: time.Now.
	Now func() time.Time
	// Profile sets the pace. Default: WAN.
	Profile Profile
	// Log receives warnings, at most one per matter and minute. Default: none.
	Log *slog.Logger
}

// Profile sets how long membership waits before it doubts a node. Slow is not dead: the probe's timeout has to be above the
// longest round trip.
type Profile uint8

const (
	// WAN is for round trips up to a second: a probe every 2 s, a node that stopped is Dead after 10 to 25 s.
	WAN Profile = iota
	// LAN is for one site: a probe every second, a node that stopped is Dead after 4 to 12 s.
	LAN
)

// Mesh is this node's membership of the mesh and its copy of the catalog. Its methods are safe for concurrent use.
type Mesh struct {
	cfg       Config
	id        ukai.NodeID
	boot      uint64 // of this start
	loaded    self   // as the journal had it at Open
	advertise netip.AddrPort
	opened    time.Time
	log       *slog.Logger
	quiet     *quietLog
	count     counters

	carrier *carrier
	ml      *memberlist.Memberlist
	queue   memberlist.TransmitLimitedQueue
	alive   atomic.Int64 // how many peers are, for the queue
	vivaldi *coordinate.Client
	links   links

	ctx        context.Context
	stop       context.CancelFunc
	loops      sync.WaitGroup
	closing    atomic.Bool
	closed     chan struct{}
	ending     chan struct{} // holds one token: the right to leave or shut down
	publishing chan struct{} // holds one token: the right to publish this node's facts
	writing    chan struct{} // holds one token: the right to write the catalog to the journal
	joinWake   chan struct{}
	repairWake chan struct{}
	joined     chan struct{} // closed when this node has company, or is to be a mesh of its own
	recalled   chan struct{} // closed when a peer has told what it remembers of this node
	quarantine atomic.Pointer[error]
	shown      atomic.Bool // somebody may know of this start
	unsynced   bool        // guarded by writing: the journal has entries that may not be durable

	// Used by keepMeasured only, after Open.
	placed   *coordinate.Coordinate // this node's coordinate as published
	placedAt time.Time

	mu             sync.Mutex // never held over I/O, channel operations that may block, or calls that may block
	catalog        *crdt.Catalog
	clock          *crdt.Clock
	roots          roots
	info           crdt.NodeInfo // this node's facts as last published
	seq            uint64        // of the last publication
	queued         map[crdt.Key]*broadcast
	members        map[ukai.NodeID]*member
	ownAddrs       map[netip.AddrPort]bool // addresses that turned out to be this node's
	dirty          map[crdt.Key]struct{}   // entries the journal lacks
	repairs        map[ukai.NodeID]*repair
	exchanging     int
	nextCompare    time.Time     // no exchange of digests before then
	compareGap     time.Duration // between two of them that found little
	comparing      int           // exchanges that compare digests, also those of joins
	comparingSince time.Time
	leaving        bool
	subs           map[chan struct{}]struct{}
}

// Open reads the journal, takes the next boot number durably, and begins to look for peers. It does not wait for them; see Joined and
// Recalled.
func Open(cfg Config) (*Mesh, error) {
	if err := check(&cfg); err != nil {
		return nil, err
	}
	m, err := newMesh(cfg)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	if m.advertise, err = advertised(m.ctx, cfg); err != nil {
		return nil, err
	}
	if err := m.load(); err != nil {
		return nil, err
	}
	m.carrier = m.newCarrier()
	if m.ml, err = memberlist.Create(m.membershipConfig()); err != nil {
		m.stop()
		return nil, fmt.Errorf("mesh: %w", err)
	}
	m.carrier.start()
	m.loops.Add(6)
	go m.keepJoined()
	go m.keepEqual()
	go m.runRepairs()
	go m.keepJournal()
	go m.keepMeasured()
	go m.keepTidy()
	return m, nil
}

// newMesh returns a mesh that knows nothing and does nothing yet.
func newMesh(cfg Config) (*Mesh, error) {
	vivaldi, err := newVivaldi()
	if err != nil {
		return nil, err
	}
	m := &Mesh{
		cfg: cfg, id: cfg.ID, opened: time.Now(), log: cfg.Log, quiet: newQuietLog(cfg.Log), vivaldi: vivaldi,
		links:  links{by: make(map[ukai.NodeID]*link)},
		closed: make(chan struct{}), ending: make(chan struct{}, 1), publishing: make(chan struct{}, 1), writing: make(chan struct{}, 1),
		joinWake: make(chan struct{}, 1), repairWake: make(chan struct{}, 1),
		joined: make(chan struct{}), recalled: make(chan struct{}),
		catalog: crdt.NewCatalog(), clock: crdt.NewClock(cfg.ID),
		members: make(map[ukai.NodeID]*member), ownAddrs: make(map[netip.AddrPort]bool), dirty: make(map[crdt.Key]struct{}),
		queued: make(map[crdt.Key]*broadcast), repairs: make(map[ukai.NodeID]*repair), subs: make(map[chan struct{}]struct{}),
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	return m, nil
}

// check completes cfg and says what is wrong with it.
func check(cfg *Config) error {
	switch {
	case cfg.Transport == nil:
		return fmt.Errorf("mesh: %w: Config.Transport is missing", ukai.ErrInvalid)
	case cfg.ID.IsZero():
		return fmt.Errorf("mesh: %w: Config.ID is missing", ukai.ErrInvalid)
	case len(cfg.Seeds) > maxSeeds:
		return fmt.Errorf("mesh: %d seeds: %w: at most %d; a DNS name may stand for many", len(cfg.Seeds), ukai.ErrInvalid, maxSeeds)
	case cfg.Profile > LAN:
		return fmt.Errorf("mesh: profile %d: %w: use WAN or LAN", cfg.Profile, ukai.ErrInvalid)
	}
	for _, s := range cfg.Seeds {
		if _, _, err := splitSeed(s, 1); err != nil {
			return err
		}
	}
	if cfg.Journal == nil {
		cfg.Journal = forgetful{}
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (m *Mesh) membershipConfig() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = m.id.String()
	c.Transport = m.carrier
	c.BindPort = int(m.advertise.Port())
	c.AdvertisePort = c.BindPort
	c.ProtocolVersion = memberlist.ProtocolVersionMax
	c.Logger = log.New(membershipLog{m.quiet}, "", 0)
	c.Delegate, c.Ping = delegate{m}, pings{m}
	c.Events, c.Alive, c.Conflict = membership{m}, membership{m}, membership{m}
	c.UDPBufferSize = maxPacket
	c.EnableCompression = false // entries are small and binary
	// A node that returns with another address is taken as soon as it is held for dead.
	c.DeadNodeReclaimTime = time.Second
	c.AwarenessMaxMultiplier = 8
	c.GossipInterval, c.GossipNodes = 200*time.Millisecond, 4
	c.GossipToTheDeadTime = 30 * time.Second
	c.PushPullInterval = 30 * time.Second
	c.TCPTimeout = 10 * time.Second
	c.QueueCheckInterval = time.Hour
	switch m.cfg.Profile {
	case WAN:
		c.ProbeInterval, c.ProbeTimeout = 2*time.Second, time.Second
		c.SuspicionMult, c.SuspicionMaxTimeoutMult = 4, 3
		c.PushPullInterval = 60 * time.Second
	case LAN:
		c.ProbeInterval, c.ProbeTimeout = time.Second, 400*time.Millisecond
		c.SuspicionMult, c.SuspicionMaxTimeoutMult = 4, 3
	}
	m.queue.RetransmitMult = c.RetransmitMult
	m.queue.NumNodes = func() int { return int(m.alive.Load()) + 1 }
	return c
}

// Leave tells the mesh that this node goes away on purpose: it will be Left, not Dead, and nobody looks for it until it
// comes back. It returns when some peers know, or with ctx. Close still has to be called.
func (m *Mesh) Leave(ctx context.Context) error {
	select {
	case m.ending <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.ending }()
	if m.closing.Load() {
		return fmt.Errorf("leave: %w", ukai.ErrClosed)
	}
	m.mu.Lock()
	m.leaving = true
	m.mu.Unlock()
	place := m.vivaldi.GetCoordinate()
	err := m.Publish(ctx, func(i *crdt.NodeInfo) { i.Coordinate = appendPlace(nil, true, place) })
	if err != nil {
		m.log.Warn("departure not published: peers will take it for a failure", "error", err)
	}
	// Two peers hear of it by stream, so that no lost packet makes a departure look like a death.
	peers := m.alivePeers()
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	peers = peers[:min(len(peers), 2)]
	parallel(len(peers), func(i int) {
		if err := m.exchange(ctx, peers[i], nil, true); err != nil {
			m.log.Debug("leave not told by stream", "peer", peers[i].Short(), "error", err)
		}
	})
	timeout := 5 * time.Second
	if t, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(t), time.Millisecond)
	}
	if m.ml.Leave(timeout) != nil {
		err = errors.Join(err, fmt.Errorf("%w: the last message did not go out within %v", ukai.ErrTimeout, timeout))
	}
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

func (m *Mesh) isLeaving() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leaving
}

// Close ends membership without a word: peers will hold this node for dead unless Leave was called. It writes what the journal lacks and
// waits for everything Open started; see Linger for what it cannot wait for. The transport and the journal stay open.
func (m *Mesh) Close() error {
	if !m.closing.CompareAndSwap(false, true) {
		<-m.closed
		return nil
	}
	defer close(m.closed)
	m.stop()
	m.ending <- struct{}{} // a Leave that is under way ends soon now
	err := m.ml.Shutdown()
	<-m.ending
	m.loops.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if e := m.flush(ctx, true); e != nil {
		err = e
	}
	return err
}

// Joined is closed once this node has had company, or at once if it has neither seeds, other than itself, nor remembered peers.
func (m *Mesh) Joined() <-chan struct{} { return m.joined }

func (m *Mesh) setJoined() {
	select {
	case <-m.joined: // only keepJoined closes it
	default:
		close(m.joined)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is awake
	}
}

func (m *Mesh) wakeJoiner()  { wake(m.joinWake) }
func (m *Mesh) wakeRepairs() { wake(m.repairWake) }
