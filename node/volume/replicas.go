package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
	"ukai/node/store"
	"ukai/node/wire"
)

// Store is what Replicas needs of this node's store.
type Store interface {
	Incarnation() ukai.Incarnation
	Space() (store.Space, error)
	Create(ctx context.Context, disk ukai.DiskID, rid ukai.ReplicaID, cfg store.ReplicaConfig) error
	OpenReplica(disk ukai.DiskID, rid ukai.ReplicaID) (store.Replica, error)
	Replicas() []store.ReplicaInfo
}

// ReplicasConfig is what Replicas needs to know.
type ReplicasConfig struct {
	Node  ukai.NodeID // this node
	Name  string      // its name, for errors
	Store Store
	Log   *slog.Logger // default: discard
	// Clock is the time since some moment, and goes on while the machine is suspended. Default: CLOCK_BOOTTIME.
	Clock func() time.Duration
	// Lineage says why a holder whose record descends from these forced takeovers, oldest first, may not seal a replica, or nil; then the replica
	// is of that lineage. Default: every holder may.
	Lineage func(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID, lineage []crdt.Fork) error
	// Within says why a replica is not one that was last sealed by a holder whose record's youngest forced takeover is one of these, or, with
	// base, that descends from none; nil if it is. Default: every replica is.
	Within func(disk ukai.DiskID, replica ukai.ReplicaID, forks []ukai.Nonce, base bool) error
	// Reuse makes a replica of an old copy of its disk that this node has kept. The error matches ukai.ErrNotFound if there is none that can be
	// used. Default: there never is.
	Reuse func(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID, cfg store.ReplicaConfig) error
	// Workers is how many reads, writes and hashes run at once. Default 128: enough to keep a disk array busy.
	Workers int
}

// Bounds of the replica side. At any of them the request is refused with ukai.ErrOverloaded, which the holder takes as
// "not applied, ask again".
const (
	defaultWorkers = 128
	maxPendingData = 16 << 10 // requests that wait for a worker
	maxPendingRest = 8 << 10  // seals, flushes, heartbeats and the like, which need no worker
	inlineBytes    = 64 << 10 // a write up to this size, to a block whose stamp is raised, runs on the reader's goroutine
)

// openTime bounds how long the answer to a heartbeat waits for replicas to be opened: less than a holder waits for it.
const openTime = time.Second

// Replicas is this node's replicas of disks: the side of the data path that admits, applies and answers. It admits an
// operation only of the epoch and session a replica was last sealed and greeted for, and finishes the operations of
// older ones before it answers a seal or a hello.
type Replicas struct {
	cfg     ReplicasConfig
	opened  opened
	workers chan struct{}
	data    atomic.Int64 // pending
	rest    atomic.Int64
	ctx     context.Context
	stop    context.CancelFunc
	running *gate
	service Service
}

// Service returns how long this node's store takes.
func (rs *Replicas) Service() *Service { return &rs.service }

type replicaKey struct {
	disk    ukai.DiskID
	replica ukai.ReplicaID
}

// NewReplicas returns the replica side of a node. Close it before the store.
func NewReplicas(cfg ReplicasConfig) *Replicas {
	if cfg.Workers <= 0 {
		cfg.Workers = defaultWorkers
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = bootTime
	}
	rs := &Replicas{
		cfg: cfg, workers: make(chan struct{}, cfg.Workers), running: newGate(),
	}
	rs.opened.init()
	rs.ctx, rs.stop = context.WithCancel(context.Background())
	return rs
}

// Close refuses new requests, waits for those that run, and closes every replica.
func (rs *Replicas) Close() error {
	rs.stop()
	<-rs.running.close() // nothing is opened any more
	var errs []error
	for _, h := range *rs.opened.all.Swap(&map[replicaKey]*hosted{}) {
		errs = append(errs, h.data.Close())
	}
	return errors.Join(errs...)
}

// request is what Replicas needs of a wire.Request.
type request interface {
	message() *wire.Message
	reply(wire.Reply, error)
	buffer(n int) []byte
}

// Serve answers one request of a kind in this list: Read, Write, Zero, Discard, Status (of a replica: where data or a hole
// is), Flush, Resize, Seal, Hello, Heartbeat, Stamps, Hash, Verify, Checksum, Restore, ReadPast, CreateReplica. It does not block: what may wait runs in a goroutine of its own, within bounds.
func (rs *Replicas) Serve(r *wire.Request) { rs.serve(wireRequest{r}) }

func (rs *Replicas) serve(r request) {
	m := r.message()
	switch m.Kind {
	case wire.KindWrite:
		if len(m.Payload) <= inlineBytes {
			if h := rs.opened.get(replicaKey{m.Disk, m.Replica}); h != nil && h.raised(m) && rs.running.enter() {
				r.reply(wire.Reply{}, rs.named(h.write(rs.ctx, m.Epoch, m.Session, m.Layer, m.Payload, m.Offset, m.Stamp)))
				rs.running.leave()
				return
			}
		}
		rs.start(r, &rs.data, maxPendingData, true)
	case wire.KindRead, wire.KindZero, wire.KindDiscard, wire.KindHash, wire.KindVerify, wire.KindRestore, wire.KindReadPast:
		rs.start(r, &rs.data, maxPendingData, true)
	default:
		rs.start(r, &rs.rest, maxPendingRest, false)
	}
}

// start runs a request in a goroutine, if there is room.
func (rs *Replicas) start(r request, pending *atomic.Int64, bound int64, worker bool) {
	if !rs.running.enter() {
		r.reply(wire.Reply{}, rs.named(fmt.Errorf("replicas: %w", ukai.ErrClosed)))
		return
	}
	if pending.Add(1) > bound {
		pending.Add(-1)
		rs.running.leave()
		r.reply(wire.Reply{}, rs.named(fmt.Errorf("%d requests are waiting: %w", bound, ukai.ErrOverloaded)))
		return
	}
	go func() {
		defer rs.running.leave()
		defer pending.Add(-1)
		if worker {
			rs.workers <- struct{}{}
			defer func() { <-rs.workers }()
		}
		reply, err := rs.answer(r)
		r.reply(reply, rs.named(err))
	}()
}

// answer does what a request asks.
func (rs *Replicas) answer(r request) (wire.Reply, error) {
	m := r.message()
	switch m.Kind {
	case wire.KindHeartbeat:
		return rs.heartbeat(m)
	case wire.KindCreateReplica:
		return wire.Reply{}, rs.create(m)
	}
	h, err := rs.open(rs.ctx, m.Disk, m.Replica)
	if err != nil {
		return wire.Reply{}, err
	}
	switch m.Kind {
	case wire.KindRead:
		if m.Count > ukai.MaxIO {
			return wire.Reply{}, fmt.Errorf("read of %d bytes: %w: at most %d", m.Count, ukai.ErrInvalid, ukai.MaxIO)
		}
		p := r.buffer(int(m.Count))
		return wire.Reply{Payload: p}, h.read(m.Epoch, m.Session, p, m.Offset, asSource(m))
	case wire.KindWrite:
		return wire.Reply{}, h.write(rs.ctx, m.Epoch, m.Session, m.Layer, m.Payload, m.Offset, m.Stamp)
	case wire.KindZero, wire.KindDiscard:
		return wire.Reply{}, h.clear(rs.ctx, m.Epoch, m.Session, m.Layer, m.Offset, int64(m.Count), m.Stamp, m.Kind == wire.KindDiscard)
	case wire.KindStatus:
		off, err := h.next(m.Epoch, m.Session, m.Offset, m.Count == seekHole)
		return wire.Reply{Offset: off}, err
	case wire.KindResize:
		return wire.Reply{}, h.resize(rs.ctx, m.Epoch, m.Session, m.Offset)
	case wire.KindFlush:
		return wire.Reply{}, h.flush(rs.ctx, m.Epoch, m.Session, m.Layer, uint64(m.Offset))
	case wire.KindSeal:
		var req sealRequest
		if err := codec.Unmarshal(m.Payload, &req); err != nil {
			return wire.Reply{}, err
		}
		reply, err := h.seal(rs.ctx, m.Epoch, req)
		return wire.Reply{Payload: encode(reply)}, err
	case wire.KindHello:
		var req helloRequest
		if err := codec.Unmarshal(m.Payload, &req); err != nil {
			return wire.Reply{}, err
		}
		return wire.Reply{Count: helloCounts}, h.hello(rs.ctx, m.Epoch, m.Session, req.Incarnation)
	case wire.KindStamps:
		list, next, more, err := h.suspects(m.Epoch, m.Session, m.Stamp, ukai.Index(m.Offset), int(m.Count))
		reply := wire.Reply{Offset: int64(next), Payload: list}
		if more {
			reply.Count = 1
		}
		return reply, err
	case wire.KindHash:
		hashes, newest, err := h.hash(m.Epoch, m.Session, m.Offset, int64(m.Count), asSource(m))
		return wire.Reply{Payload: hashes, Stamp: newest, Count: hashStamped}, err
	case wire.KindVerify:
		in, err := h.verify(m.Epoch, m.Session, m.Offset, int64(m.Count))
		reply := wire.Reply{Stamp: in.stamp, Payload: encodeLooks(in.looks)}
		if in.quiet {
			reply.Count = 1
		}
		return reply, err
	case wire.KindChecksum:
		return wire.Reply{}, h.note(rs.ctx, m.Epoch, m.Session, m.Offset, m.Stamp, m.Payload)
	case wire.KindRestore:
		return wire.Reply{}, h.restore(m.Epoch, m.Session, m.Payload, m.Offset)
	case wire.KindReadPast:
		var req pastRequest
		if err := codec.Unmarshal(m.Payload, &req); err != nil {
			return wire.Reply{}, err
		}
		return h.readPast(r, m, req)
	}
	return wire.Reply{}, fmt.Errorf("request of kind %v to a replica: %w", m.Kind, ukai.ErrUnsupported)
}

// CreateReplica returns the request that makes a replica of a disk on another node: an empty one, or with reuse one that begins with what that
// node has kept of the disk, if anything. Either knows of no block that it is equal to any.
func CreateReplica(rec *crdt.Record, replica ukai.ReplicaID, reuse bool) *wire.Message {
	return &wire.Message{
		Kind: wire.KindCreateReplica, Disk: rec.Disk, Replica: replica,
		Payload: encode(createRequest{Size: rec.Size, BlockSize: rec.BlockSize, Reuse: reuse}),
	}
}

func (rs *Replicas) create(m *wire.Message) error {
	var req createRequest
	if err := codec.Unmarshal(m.Payload, &req); err != nil {
		return err
	}
	if err := ukai.CheckBlockSize(req.BlockSize); err != nil {
		return err
	}
	if err := ukai.CheckDiskSize(req.Size); err != nil {
		return err
	}
	cfg := store.ReplicaConfig{Size: req.Size, BlockSize: req.BlockSize}
	if req.Reuse && rs.cfg.Reuse != nil {
		if err := rs.cfg.Reuse(rs.ctx, m.Disk, m.Replica, cfg); !errors.Is(err, ukai.ErrNotFound) {
			return err
		}
	}
	return rs.cfg.Store.Create(rs.ctx, m.Disk, m.Replica, cfg)
}

// heartbeat confirms epochs and takes over stable stamps.
func (rs *Replicas) heartbeat(m *wire.Message) (wire.Reply, error) {
	hb, err := decodeHeartbeat(m.Payload)
	if err != nil {
		return wire.Reply{}, err
	}
	// Those that are not open yet, as after a restart, are, but what lies on a medium that hangs must not keep the answer about the others.
	opening, cancel := context.WithTimeoutCause(rs.ctx, openTime, fmt.Errorf("not opened within %v: %w", openTime, ukai.ErrTimeout))
	defer cancel()
	var out heartbeatReply
	for i, b := range hb.Beats {
		h, err := rs.open(opening, b.Disk, b.Replica)
		if err != nil {
			out.Exceptions = append(out.Exceptions, exception{At: i, Code: ukai.Code(err)})
			continue
		}
		if err := h.beat(b); err != nil {
			e := exception{At: i, Code: ukai.Code(err)}
			if fenced := (*ukai.FencedError)(nil); errors.As(err, &fenced) {
				e.Now = fenced.Epoch
			}
			out.Exceptions = append(out.Exceptions, e)
		}
	}
	return wire.Reply{Payload: encode(out)}, nil
}

// named says on which node an error arose, where that helps whoever must act on it.
func (rs *Replicas) named(err error) error {
	if err == nil || errors.Is(err, ukai.ErrFenced) {
		return err
	}
	if named := (*ukai.NodeError)(nil); errors.As(err, &named) {
		return err
	}
	return &ukai.NodeError{Node: rs.cfg.Node, Name: rs.cfg.Name, Err: err}
}

// wireRequest fits a wire.Request to what Replicas and Host need.
type wireRequest struct{ r *wire.Request }

func (w wireRequest) message() *wire.Message          { return &w.r.Message }
func (w wireRequest) reply(reply wire.Reply, e error) { w.r.Reply(reply, e) }
func (w wireRequest) buffer(n int) []byte             { return w.r.Buffer(n) }

// localRequest is a request of the holder on this node, which needs no wire.
type localRequest struct {
	m    *wire.Message
	into []byte
}

func (l localRequest) message() *wire.Message  { return l.m }
func (l localRequest) reply(wire.Reply, error) {}
func (l localRequest) buffer(n int) []byte {
	if n <= len(l.into) {
		return l.into[:n]
	}
	return make([]byte, n)
}

// do answers a request of the holder on this node.
func (rs *Replicas) do(m *wire.Message, into []byte) (wire.Reply, error) {
	if !rs.running.enter() {
		return wire.Reply{}, rs.named(fmt.Errorf("replicas: %w", ukai.ErrClosed))
	}
	defer rs.running.leave()
	reply, err := rs.answer(localRequest{m, into})
	return reply, rs.named(err)
}
