package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/gossip"
	"ukai/node/store"
	"ukai/node/volume"
	"ukai/node/wire"
)

// Node is one node of a mesh. Open it, use its disks, Close it.
type Node struct {
	cfg      Config
	id       ukai.NodeID
	boot     uint64
	started  time.Time
	log      *slog.Logger
	store    store.Backend
	wire     *wire.Endpoint
	mesh     *gossip.Mesh
	cells    *cells
	replicas *volume.Replicas
	host     *volume.Host
	events   events

	relocations relocations
	links       links
	progress    progress
	scrubs      scrubs
	wanted      wanted
	unmet       unmet

	ctx     context.Context // of everything in the background
	cancel  context.CancelFunc
	work    sync.WaitGroup
	mu      sync.Mutex
	stopped bool          // guarded by mu: nothing new is started
	open    chan struct{} // closed when peers' requests can be served
	leaving chan struct{} // closed when an administrator asked the node to go
	leave   sync.Once
}

// Open starts a node. It does not wait for other nodes.
func Open(ctx context.Context, cfg Config) (n *Node, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	n = &Node{cfg: cfg, log: cfg.Log, started: time.Now(), events: events{log: cfg.Log}, relocations: newRelocations(), scrubs: newScrubs(cfg.ScrubRate), store: cfg.Store, open: make(chan struct{}), leaving: make(chan struct{})}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, n.stop(ctx))
			n = nil
		}
	}()
	if n.store == nil {
		opened, err := store.Open(store.Config{Dir: cfg.DataDir, ReserveBytes: cfg.Reserve, Log: cfg.Log})
		if err != nil {
			return n, err
		}
		n.store = opened // not before: a nil *store.Store in an interface is not nil
	}
	identity, boot, err := identify(ctx, n.store)
	if err != nil {
		return n, err
	}
	n.id, n.boot = identity.ID(), boot

	conn := cfg.Conn
	if conn == nil {
		if conn, err = listen(cfg.Listen); err != nil {
			return n, err
		}
	}
	if n.wire, err = wire.Open(wire.Config{
		Conn: conn, Keys: cfg.Keys, Identity: identity, Addr: n.addr, Serve: n.serve, Log: cfg.Log,
	}); err != nil {
		_ = conn.Close()
		return n, err
	}
	info, err := n.facts()
	if err != nil {
		return n, err
	}
	n.cells = newCells(n.id, n.store)
	n.cells.call, n.cells.ready, n.cells.learn, n.cells.known, n.cells.unknown, n.cells.log = n.call, n.fit, n.learn, n.known, n.unknownDisk, cfg.Log
	n.replicas = volume.NewReplicas(volume.ReplicasConfig{Node: n.id, Name: cfg.Name, Store: n.store, Log: cfg.Log, Clock: cfg.Boottime, Lineage: n.admitLineage, Within: n.within, Reuse: n.reuse})
	mesh, err := gossip.Open(gossip.Config{
		Transport: transport{n.wire}, ID: n.id, Info: info, Seeds: cfg.Seeds, Advertise: cfg.Advertise, Resolve: cfg.Resolve,
		Journal: journal{n.store}, Log: cfg.Log,
	})
	if err != nil {
		return n, err
	}
	n.mesh = mesh
	n.host = volume.NewHost(volume.Config{
		Node: n.id, Peers: peers{n}, Cells: wantingCells{n}, Mesh: hearsay{n}, Replicas: n.replicas, Log: cfg.Log,
		Clock: cfg.Boottime, LossLimit: cfg.OnLoss, Notify: n.replicaEvent, Budget: n.budget, Heat: n.heat, StrayGrace: cfg.TrashGrace,
	})
	close(n.open)
	for _, loop := range []func(){n.publishFacts, n.watch, n.collect, n.tend, n.keepLinks, n.outlive, n.forgetEnded} {
		n.spawn(loop)
	}
	n.log.Info("node is up", "name", cfg.Name, "id", n.id, "listen", n.wire.LocalAddr(), "boot", boot)
	return n, nil
}

func listen(addr string) (net.PacketConn, error) {
	udp, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %w: %w; write an address of this machine with a port, or :PORT for all", addr, ukai.ErrInvalid, err)
	}
	conn, err := net.ListenUDP("udp", udp)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on UDP %s: %w: another program, perhaps another node, has this port: stop it or give another --listen", addr, ukai.ErrLocked)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on UDP %s: %w: this machine does not have the address: give one of its own, or :PORT for all", addr, ukai.ErrInvalid)
	case err != nil:
		return nil, fmt.Errorf("listen on UDP %s: %w; give another --listen", addr, err)
	}
	return conn, nil
}

// ID returns the node's id.
func (n *Node) ID() ukai.NodeID { return n.id }

// Leaving is closed when an administrator asked this node to go: its process then stops in an orderly way.
func (n *Node) Leaving() <-chan struct{} { return n.leaving }

// Changed returns a channel that gets a token when something that nodes know of each other or of disks has changed, and a
// function that ends it.
func (n *Node) Changed() (<-chan struct{}, func()) { return n.mesh.Subscribe() }

// Close stops the node: disks held here are released as far as that is possible before ctx ends, the mesh is told that the
// node leaves, and everything is closed. No request for a disk may be made any more.
func (n *Node) Close(ctx context.Context) error {
	err := n.host.Close(ctx)
	leave, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if e := n.mesh.Leave(leave); e != nil {
		n.log.Warn("peers may take this node for dead: it could not say that it leaves", "err", e)
	}
	return errors.Join(err, n.stop(ctx))
}

// Kill stops the node as a crash of its process would: nothing is released and nobody is told. For tests.
func (n *Node) Kill() error {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	err := n.host.Close(gone)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, n.stop(gone))
}

// spawn runs f in a goroutine that Close waits for. It says whether it did: not while the node stops.
func (n *Node) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		return false
	}
	n.work.Go(f)
	return true
}

// stop closes what has been opened, in reverse order.
func (n *Node) stop(ctx context.Context) error {
	n.mu.Lock()
	n.stopped = true
	n.mu.Unlock()
	n.cancel()
	var errs []error
	if n.host != nil {
		errs = append(errs, n.host.Close(ctx))
	}
	n.work.Wait()
	if n.mesh != nil {
		errs = append(errs, n.mesh.Close())
	}
	if n.wire != nil {
		errs = append(errs, n.wire.Close())
	}
	if n.cells != nil {
		n.cells.close()
	}
	if n.replicas != nil {
		errs = append(errs, n.replicas.Close())
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	return errors.Join(errs...)
}

// fit says why this node must not serve as arbiter or replica, or nil: its database may have been rolled back.
func (n *Node) fit() error {
	if n.mesh == nil {
		return fmt.Errorf("node %s: %w: still starting", n.cfg.Name, ukai.ErrUnreachable)
	}
	select {
	case <-n.mesh.Recalled():
	default:
		if !n.cfg.Alone {
			return fmt.Errorf("node %s: %w: waiting to hear from any other node whether the database here is the newest; if all others are lost for good: start --alone",
				n.cfg.Name, ukai.ErrQuarantined)
		}
	}
	return n.mesh.Quarantined()
}

// learn hands a committed record to gossip, and to who holds the disk if it goes on with that history: of another one he would learn that his own
// was left.
func (n *Node) learn(rec crdt.Record) error {
	err := n.mesh.Update(func(c *crdt.Catalog, _ func() crdt.Stamp) (crdt.Delta, error) { return c.PutRecord(rec) })
	if d, unknown := n.findByID(rec.Disk); unknown == nil && len(d.View) > 1 {
		if chosen, ok := d.Record(); !ok || chosen.Tip() != rec.Tip() {
			return err
		}
	}
	n.host.Observe(rec)
	return err
}

// known returns the newest record of a disk that gossip has brought.
func (n *Node) known(disk ukai.DiskID) (rec crdt.Record, err error) {
	err = fmt.Errorf("disk %v: %w", disk, ukai.ErrNotFound)
	n.mesh.View(func(c *crdt.Catalog) {
		d, ok := c.Disk(disk)
		if !ok {
			return
		}
		if d.Conflict() {
			err = fmt.Errorf("disk %s: %w: it has %d histories after forced takeovers; pick one: ukai-node disk pick %s", d.Name.Value, ukai.ErrRejected, len(d.View), d.Name.Value)
			return
		}
		if r, ok := d.Record(); ok {
			rec, err = r, nil
		}
	})
	return rec, err
}
