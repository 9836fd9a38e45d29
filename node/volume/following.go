package volume

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/wire"
)

// echoWorkers is how many writes are under way to a replica that is not waited for.
const echoWorkers = 16

// following brings one replica up to date: J2 to J8 of the protocol, 3.8. It exists from before the replica's dirty
// blocks are listed until it is in sync or given up; while it is installed in the holding, no mutation of its groups
// ends without it knowing whether the replica has it.
type following struct {
	h      *holding
	m      *member
	groups []uint8 // in which it is to become in sync
	began  time.Duration

	mu    sync.Mutex
	state follow
	news  chan struct{} // closed and replaced when the replica owes less

	echoes chan *echo // sent, not waited for; room for all that follow admits

	heat   [HeatParts]uint32 // of the disk, as other nodes tell; set before there is anything to copy
	leaves atomic.Bool       // it may be dropped at any moment
	listed ukai.Incarnation  // whose dirty blocks are in state
	sized  int64             // bytes: what the replica has been resized to

	total atomic.Int64 // bytes that were found dirty at first
	moved atomic.Int64 // bytes copied
	steps atomic.Int64 // blocks done, and other signs of progress
}

// echo is a write to a replica that is not waited for. The guest's buffer is its own again, so p is a copy.
type echo struct {
	kind  wire.Kind
	index ukai.Index
	off   int64
	n     int64
	stamp ukai.BlockStamp
	p     []byte
}

func newFollowing(h *holding, m *member, groups []uint8, rec *crdt.Record) *following {
	f := &following{
		h: h, m: m, groups: groups, began: h.host.cfg.Clock(), news: make(chan struct{}), echoes: make(chan *echo, maxOwed),
	}
	f.state.blockSize = int64(rec.BlockSize)
	f.state.size = h.view.Load().layout.size
	return f
}

// admit decides what becomes of a mutation at the replica; see follow.admit. The mutation holds its range.
func (f *following) admit(op *mutation) verdict {
	end := op.off + op.n
	f.mu.Lock()
	v := f.state.admit(op.claim.index, op.off, end)
	f.mu.Unlock()
	if v != send {
		return v
	}
	e := &echo{kind: op.kind, index: op.claim.index, off: op.off, n: op.n, stamp: op.stamp}
	if op.p != nil {
		e.p = append([]byte(nil), op.p...)
	}
	f.echoes <- e // has room: what is in it is owed, and no more than maxOwed is
	return v
}

// missed notes that a mutation ended without the replica having it for certain.
func (f *following) missed(op *mutation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.missed(op.claim.index, op.off, op.off+op.n)
}

// suspend lets all writes pass the replica by from now on, unless it may be in sync already. The caller holds h.mu and
// rebuilds the view.
func (f *following) suspend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.mode != admitted {
		f.state.mode = passedBy
	}
}

// waitedFor says whether the replica belongs to the ack set though no record may name it in sync.
func (f *following) waitedFor() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.mode >= awaited
}

func (f *following) complete() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.complete()
}

func (f *following) left() (bytes int64, blocks int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.left(), f.state.blocks()
}

// echo sends writes that are not waited for, until ctx ends.
func (f *following) echo(ctx context.Context, l *link) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-f.echoes:
			msg := wire.Message{Kind: e.kind, Offset: e.off, Payload: e.p, Stamp: e.stamp}
			if e.kind != wire.KindWrite {
				msg.Count = uint32(e.n)
			}
			_, err := f.m.command(ctx, msg, nil)
			if err != nil {
				_ = f.blame(ctx, l, err) // told by the attempt
			}
			f.paid(e, err == nil)
		}
	}
}

// paid ends an echo.
func (f *following) paid(e *echo, done bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.sent(e.index, e.off, e.off+e.n, done)
	close(f.news)
	f.news = make(chan struct{})
}

// forget gives up the echoes that were not sent. Nothing is admitted to them any more.
func (f *following) forget() {
	for {
		select {
		case e := <-f.echoes:
			f.paid(e, false)
		default:
			return
		}
	}
}
