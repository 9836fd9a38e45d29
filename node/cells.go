package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/cell"
	"ukai/node/store"
	"ukai/node/wire"
)

// lanes is how many quorum records of this node can be worked on at the same time; records share lanes by disk.
const lanes = 64

// cells keeps the quorum records of which this node is an arbiter, and proposes changes to any disk's.
type cells struct {
	self  ukai.NodeID
	store store.Backend
	call  func(ctx context.Context, to ukai.NodeID, m *wire.Message) (wire.Reply, error)
	ready func() error // nil when this node may answer as an arbiter
	// learn hands a committed record to gossip.
	learn func(crdt.Record) error
	// known returns the newest record that gossip has brought of a disk.
	known func(ukai.DiskID) (crdt.Record, error)
	// unknown says whether the catalog does not know a disk, and up to when it has all that any node's had.
	unknown func(ukai.DiskID) (caughtUp time.Time, unknown bool)
	log     *slog.Logger

	lane [lanes]chan struct{} // of size one: held over the write that makes a promise durable

	mu       sync.Mutex
	unsynced map[string]bool // keys whose last write failed: what is read of them may not be durable

	wg        sync.WaitGroup // requests under way
	proposals atomic.Uint64  // sent, counted so that a test can show that reads and writes send none
	served    atomic.Uint64
}

func newCells(self ukai.NodeID, s store.Backend) *cells {
	c := &cells{self: self, store: s, unsynced: map[string]bool{}}
	for i := range c.lane {
		c.lane[i] = make(chan struct{}, 1)
	}
	return c
}

func cellKey(disk ukai.DiskID, instance uint32) string {
	return fmt.Sprintf("%s%s/%08x", cellPrefix, disk, instance)
}

// enter waits for a disk's turn, and returns what ends it.
func (c *cells) enter(ctx context.Context, disk ukai.DiskID) (leave func(), err error) {
	lane := c.lane[int(disk[0])%lanes]
	select {
	case lane <- struct{}{}:
		return func() { <-lane }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Step answers a request as arbiter. What the answer promises is durable before Step returns it.
func (c *cells) Step(ctx context.Context, req cell.Request) (cell.Reply, error) {
	c.served.Add(1)
	if err := c.ready(); err != nil {
		return cell.Reply{}, err
	}
	leave, err := c.enter(ctx, req.Disk)
	if err != nil {
		return cell.Reply{}, err
	}
	defer leave()
	key := cellKey(req.Disk, req.Instance)
	var arbiter *cell.Acceptor
	switch data, err := c.store.Get(key); {
	case errors.Is(err, ukai.ErrNotFound):
		if gone, err := c.forgotten(req.Disk, req.Instance); err != nil {
			return cell.Reply{}, err
		} else if gone {
			return cell.Reply{Answer: cell.Unknown, To: req.Kind, Disk: req.Disk, Instance: req.Instance, Ballot: req.Ballot, Detail: "that instance ended long ago"}, nil
		}
		arbiter = cell.NewAcceptor(c.self, req.Disk, req.Instance)
	case err != nil:
		return cell.Reply{}, err
	default:
		if arbiter, err = cell.UnmarshalAcceptor(c.self, data); err != nil {
			return cell.Reply{}, fmt.Errorf("quorum record %s: %w", key, err)
		}
	}
	reply, persist := arbiter.Step(req)
	c.mu.Lock()
	persist = persist || c.unsynced[key]
	c.mu.Unlock()
	if !persist {
		return reply, nil
	}
	data, err := arbiter.Marshal()
	if err != nil {
		return cell.Reply{}, err
	}
	// Not cut short when the proposer gives up: a half-made promise would have to be made again.
	err = c.store.Put(context.WithoutCancel(ctx), true, store.KV{K: key, V: data})
	c.mu.Lock()
	if err != nil {
		c.unsynced[key] = true
	} else {
		delete(c.unsynced, key)
	}
	c.mu.Unlock()
	if err != nil {
		return cell.Reply{}, fmt.Errorf("quorum record %s: %w", key, err)
	}
	return reply, nil
}

// Send carries a request to an arbiter, which may be this node.
func (c *cells) Send(ctx context.Context, to ukai.NodeID, req cell.Request) (cell.Reply, error) {
	c.proposals.Add(1)
	if to == c.self {
		return c.Step(ctx, req)
	}
	payload, err := cell.EncodeRequest(req)
	if err != nil {
		return cell.Reply{}, err
	}
	kind := wire.KindPrepare
	switch req.Kind {
	case cell.Accept:
		kind = wire.KindAccept
	case cell.Init, cell.Close:
		kind = wire.KindInit
	}
	reply, err := c.call(ctx, to, &wire.Message{Kind: kind, Disk: req.Disk, Payload: payload})
	if err != nil {
		return cell.Reply{}, err
	}
	return cell.DecodeReply(reply.Payload)
}

// serve answers a peer's request.
func (c *cells) serve(ctx context.Context, r *wire.Request) ([]byte, error) {
	req, err := cell.DecodeRequest(r.Payload)
	if err != nil {
		return nil, err
	}
	reply, err := c.Step(ctx, req)
	if err != nil {
		return nil, err
	}
	return cell.EncodeReply(reply)
}

// Read returns the committed record of a disk, as it was at some moment between call and return.
func (c *cells) Read(ctx context.Context, disk ukai.DiskID) (crdt.Record, error) {
	return c.Propose(ctx, disk, cell.Identity{})
}

// Propose carries a change through the arbiters of a disk and publishes what was committed. Errors are those of
// cell.Propose; with ukai.ErrRejected comes the committed record that was found.
func (c *cells) Propose(ctx context.Context, disk ukai.DiskID, change cell.Change) (crdt.Record, error) {
	if err := c.ready(); err != nil {
		return crdt.Record{}, err
	}
	at, err := c.known(disk)
	if err != nil {
		return crdt.Record{}, err
	}
	return c.proposeAt(ctx, at, change)
}

// proposeAt is Propose in the history of a record, which need not be the one that the disk goes on with.
func (c *cells) proposeAt(ctx context.Context, at crdt.Record, change cell.Change) (crdt.Record, error) {
	rec, err := cell.Propose(ctx, c, c.self, cell.Where(at), change, cell.Options{Go: c.wg.Go})
	if err == nil || errors.Is(err, ukai.ErrRejected) && rec.Disk == at.Disk {
		c.publish(rec)
	}
	return rec, err
}

// Create begins the record of a new disk on its arbiters.
func (c *cells) Create(ctx context.Context, rec crdt.Record) (crdt.Record, error) {
	if err := c.ready(); err != nil {
		return crdt.Record{}, err
	}
	return cell.Create(ctx, c, c.self, rec, cell.Options{Go: c.wg.Go})
}

// Force begins a new lineage of a disk's record on the arbiters that rec names.
func (c *cells) Force(ctx context.Context, rec crdt.Record) (crdt.Record, error) {
	if err := c.ready(); err != nil {
		return crdt.Record{}, err
	}
	rec, err := cell.Force(ctx, c, c.self, rec, cell.Options{Go: c.wg.Go})
	if err == nil {
		c.publish(rec)
	}
	return rec, err
}

// publish hands a committed record to gossip. That it is committed does not depend on gossip, so a failure is only logged.
func (c *cells) publish(rec crdt.Record) {
	if err := c.learn(rec); err != nil {
		c.log.Warn("a committed record could not be published; anti-entropy will bring it", "disk", rec.Disk, "version", rec.Version, "err", err)
	}
}

// close waits for requests that outlived their proposals.
func (c *cells) close() { c.wg.Wait() }
