package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/wire"
)

// What a forwarded request asks for, in its Session.
const (
	forwardRead = 0
	forwardData = seekData
	forwardHole = seekHole
)

// forwardPatience is how long one node is given to answer a forwarded read.
const forwardPatience = 5 * time.Second

// maxDenials is how often a node may deny that it serves a disk it is named the holder of, while it may be recovering,
// before it is asked to let go.
const maxDenials = 3

// maxForwards bounds the requests of other nodes that run here; more are refused with ukai.ErrOverloaded.
const maxForwards = 1024

// anywhere reads: here if this node holds the disk or nobody does, else through the holder.
func (d *Disk) anywhere(ctx context.Context, here func(*holding) error, there func(ctx context.Context, holder ukai.NodeID) error) error {
	if h := d.holding.Load(); h != nil || d.users() > 0 {
		h, err := d.enter(ctx, claimIfFree)
		if err == nil {
			defer h.ops.leave()
			return here(h)
		}
		if !errors.Is(err, ukai.ErrHeld) {
			return err
		}
	}
	pause := minAttachPause
	holder := ukai.NodeID{}
	rec, ok := d.host.cfg.Mesh.Record(d.id)
	if ok && (rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering) && rec.Holder != d.host.cfg.Node {
		holder = rec.Holder
	}
	if limit := d.host.cfg.LossLimit; rec.OnLoss == crdt.Error {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("no holder answered within %v: %w", limit, ukai.ErrTimeout))
		defer cancel()
	}
	how, denials := claimIfFree, 0
	for {
		var err error
		if !holder.IsZero() {
			if err = there(ctx, holder); err == nil || !d.elsewhere(err) {
				return err
			}
			if denials++; errors.Is(err, ukai.ErrNotAttached) && denials > maxDenials {
				how = claimAsking // the record names it, and it does not know: as after a restart
			}
		}
		h, again := d.enter(ctx, how)
		if again == nil {
			defer h.ops.leave()
			return here(h)
		}
		switch held := (*ukai.HeldError)(nil); {
		case errors.As(again, &held):
			if held.Node != holder {
				holder, how, denials = held.Node, claimIfFree, 0
				if err == nil {
					continue // go there at once
				}
			}
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", context.Cause(ctx), again)
		case !waits(again):
			return again
		}
		if err == nil {
			err = again
		}
		if pause = min(2*pause, maxAttachPause); !sleep(ctx, pause/2+rand.N(pause/2)) {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// waits says whether a disk could not be claimed for want of replicas or arbiters.
func waits(err error) bool {
	return errors.Is(err, ukai.ErrUnavailable) || errors.Is(err, ukai.ErrNoQuorum) || errors.Is(err, ukai.ErrUnreachable) || errors.Is(err, ukai.ErrTimeout)
}

// elsewhere says whether an error of the holder's node means that somebody else should be asked, or it again later.
func (d *Disk) elsewhere(err error) bool {
	return errors.Is(err, ukai.ErrNotAttached) || errors.Is(err, ukai.ErrFenced) || transient(err)
}

// forward sends a request to the holder's node.
func (d *Disk) forward(ctx context.Context, holder ukai.NodeID, what uint32, off int64, p []byte) (wire.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardPatience)
	defer cancel()
	m := wire.Message{Kind: wire.KindForward, Disk: d.id, Session: what, Offset: off, Count: uint32(len(p))}
	reply, err := d.host.cfg.Peers.Start(ctx, holder, &m, p).Wait(ctx)
	if err != nil {
		return reply, d.host.nodeError(holder, err)
	}
	return reply, nil
}

func (d *Disk) forwardRead(ctx context.Context, holder ukai.NodeID, p []byte, off int64) error {
	for len(p) > 0 {
		part := p[:min(len(p), ukai.MaxIO)]
		reply, err := d.forward(ctx, holder, forwardRead, off, part)
		if err != nil {
			return err
		}
		if len(reply.Payload) != len(part) {
			return d.host.nodeError(holder, fmt.Errorf("read of %d bytes returned %d: %w", len(part), len(reply.Payload), ukai.ErrCorrupt))
		}
		if &reply.Payload[0] != &part[0] {
			copy(part, reply.Payload)
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

func (d *Disk) forwardSeek(ctx context.Context, holder ukai.NodeID, off int64, what uint32) (int64, error) {
	reply, err := d.forward(ctx, holder, what, off, nil)
	return reply.Offset, err
}

// Serve answers requests of other nodes to this one as a holder: Forward and Yield. It does not block.
func (h *Host) Serve(r *wire.Request) { h.serve(wireRequest{r}) }

func (h *Host) serve(r request) {
	m := r.message()
	if h.forwards.Add(1) > maxForwards {
		h.forwards.Add(-1)
		r.reply(wire.Reply{}, fmt.Errorf("%d requests run: %w", maxForwards, ukai.ErrOverloaded))
		return
	}
	if !h.spawn(func() {
		defer h.forwards.Add(-1)
		reply, err := h.answer(r, m)
		r.reply(reply, err)
	}) {
		h.forwards.Add(-1)
		r.reply(wire.Reply{}, fmt.Errorf("node: %w", ukai.ErrNotAttached))
	}
}

func (h *Host) answer(r request, m *wire.Message) (wire.Reply, error) {
	h.mu.Lock()
	d := h.disks[m.Disk]
	h.mu.Unlock()
	if d == nil {
		return wire.Reply{}, fmt.Errorf("disk %v: %w", m.Disk, ukai.ErrNotAttached)
	}
	switch m.Kind {
	case wire.KindYield:
		ctx, cancel := context.WithTimeout(h.ctx, yieldPatience)
		defer cancel()
		return wire.Reply{}, d.Yield(ctx)
	case wire.KindForward:
		return d.serveForward(r, m)
	}
	return wire.Reply{}, fmt.Errorf("request of kind %v to a holder: %w", m.Kind, ukai.ErrUnsupported)
}

// serveForward answers a read of another node, if this one serves the disk now.
func (d *Disk) serveForward(r request, m *wire.Message) (wire.Reply, error) {
	h := d.holding.Load()
	if h == nil || !h.ops.enter() {
		return wire.Reply{}, fmt.Errorf("disk %s: %w", d.Name(), ukai.ErrNotAttached)
	}
	defer h.ops.leave()
	if err := h.err(); err != nil {
		return wire.Reply{}, err
	}
	if !h.used.Load() {
		h.used.Store(true)
	}
	ctx, cancel := context.WithTimeout(h.ctx, forwardPatience)
	defer cancel()
	switch m.Session {
	case forwardRead:
		if m.Count == 0 || m.Count > ukai.MaxIO {
			return wire.Reply{}, fmt.Errorf("read of %d bytes: %w: 1 to %d", m.Count, ukai.ErrInvalid, ukai.MaxIO)
		}
		if err := d.check(m.Offset, int64(m.Count)); err != nil {
			return wire.Reply{}, err
		}
		p := r.buffer(int(m.Count))
		return wire.Reply{Payload: p}, h.read(ctx, p, m.Offset)
	case forwardData, forwardHole:
		if err := d.check(m.Offset, 0); err != nil {
			return wire.Reply{}, err
		}
		off, err := h.seek(ctx, m.Offset, m.Session)
		return wire.Reply{Offset: off}, err
	}
	return wire.Reply{}, fmt.Errorf("forwarded request %d: %w", m.Session, ukai.ErrUnsupported)
}
