package volume

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"ukai"
	"ukai/crdt"
	"ukai/node/wire"
)

// What a request to read from a past asks for, in its Session.
const (
	pastRead = 0
	pastData = seekData
	pastHole = seekHole
)

// Past is a history of a disk that the disk does not go on with, or of which that is not decided: what its replicas have, for reading only.
//
// It claims nothing, seals nothing and renews no lease, so it is in nobody's way, and nobody waits for it. Epochs cannot tell it what a
// replica has, for two histories count on from the same one. So each read names the forced takeovers one of which the replica must have been
// sealed after last, and the epoch of the record: a replica that somebody took into another history since, or into a newer epoch of this one,
// refuses. The replica looks while the read counts as one of the operations that a seal waits for, so nothing newer can be in what is read.
//
// Where the last holder did not release the disk its replicas may differ in what was under way. Then all of a group is read from the one
// that answered first, and from no other if that one is lost.
type Past struct {
	host    *Host
	disk    ukai.DiskID
	epoch   ukai.Epoch
	payload []byte // encoded pastRequest
	layout  layout
	clean   bool // released: its replicas are equal
	groups  map[uint8]*pastGroup
}

type pastGroup struct {
	members []crdt.Member               // in sync, in the order in which they are asked
	from    atomic.Pointer[crdt.Member] // that answered first
}

// pastRequest is the payload of wire.ReadPast: the forced takeovers one of which the last seal of the replica must have descended from.
type pastRequest struct {
	Forks []ukai.Nonce `cbor:"1,keyasint,omitempty"`
	Base  bool         `cbor:"2,keyasint,omitempty"` // none at all will do, too
}

// Past returns a history of a disk by its record. Others are the records of its other histories.
func (h *Host) Past(rec crdt.Record, others []crdt.Record) *Past {
	p := &Past{
		host: h, disk: rec.Disk, epoch: rec.Epoch, layout: newLayout(&rec), clean: rec.Phase == crdt.PhaseReleased,
		groups: map[uint8]*pastGroup{}, payload: encode(newPastRequest(&rec, others)),
	}
	for i := range rec.Groups {
		g := &pastGroup{members: rec.Groups[i].InSync()}
		far := func(m crdt.Member) int64 {
			switch {
			case m.Replica == rec.Ahead:
				return -2
			case m.Node == h.cfg.Node:
				return -1
			}
			return int64(h.rtt(m.Node))
		}
		slices.SortStableFunc(g.members, func(a, b crdt.Member) int { return cmp.Compare(far(a), far(b)) })
		p.groups[rec.Groups[i].ID] = g
	}
	return p
}

// newPastRequest says after which takeovers a replica may have been sealed. One that was last sealed before the youngest of rec has what rec began
// with, and nothing else as long as nobody goes on from there; so where another history does, its takeover is not among them.
func newPastRequest(rec *crdt.Record, others []crdt.Record) (req pastRequest) {
	alone := func(tip string) bool {
		return !slices.ContainsFunc(others, func(o crdt.Record) bool { return o.Tip() == tip })
	}
	for i := range rec.Lineage {
		if at := (crdt.Record{Lineage: rec.Lineage[:i+1]}); alone(at.Tip()) {
			req.Forks = append(req.Forks, rec.Lineage[i].ID)
		}
	}
	req.Base = alone((&crdt.Record{}).Tip())
	return req
}

// Size returns how many bytes the disk has in this history.
func (p *Past) Size() int64 { return p.layout.size }

// BlockSize returns the unit of placement in bytes.
func (p *Past) BlockSize() int { return int(p.layout.blockSize) }

func (p *Past) check(off, n int64) error {
	if off < 0 || off > p.layout.size-n {
		return fmt.Errorf("%d bytes at %d: %w: the disk has %d in this history", n, off, ukai.ErrInvalid, p.layout.size)
	}
	return nil
}

// ReadAt fills p from off. Errors match ukai.ErrRejected or ukai.ErrFenced if the replicas do not have this history alone any more,
// ukai.ErrNotFound if they are gone.
func (p *Past) ReadAt(ctx context.Context, b []byte, off int64) (n int, err error) {
	if err := p.check(off, int64(len(b))); err != nil {
		return 0, err
	}
	for n < len(b) {
		index := p.layout.index(off)
		group, last := p.layout.groupAt(index)
		part := b[n:]
		part = part[:min(int64(len(part)), ukai.MaxIO, int64(last)*p.layout.blockSize-off)]
		if _, err := p.ask(ctx, group, pastRead, part, off); err != nil {
			return n, err
		}
		n, off = n+len(part), off+int64(len(part))
	}
	return n, nil
}

// NextData returns the first offset at or after off that may hold data, or Size.
func (p *Past) NextData(ctx context.Context, off int64) (int64, error) {
	return p.seek(ctx, off, pastData)
}

// NextHole returns the first offset at or after off that is in a hole, or Size.
func (p *Past) NextHole(ctx context.Context, off int64) (int64, error) {
	return p.seek(ctx, off, pastHole)
}

func (p *Past) seek(ctx context.Context, off int64, what uint32) (int64, error) {
	if err := p.check(off, 0); err != nil {
		return 0, err
	}
	for off < p.layout.size {
		group, last := p.layout.groupAt(p.layout.index(off))
		end := min(int64(last)*p.layout.blockSize, p.layout.size)
		found, err := p.ask(ctx, group, what, nil, off)
		if err != nil {
			return 0, err
		}
		if found < end {
			return max(found, off), nil
		}
		off = end // a replica holds nothing of other groups' blocks
	}
	return p.layout.size, nil
}

// ask has a replica of a group answer.
func (p *Past) ask(ctx context.Context, group uint8, what uint32, b []byte, off int64) (found int64, err error) {
	g := p.groups[group]
	for {
		first := g.from.Load()
		if first != nil {
			if found, err = p.askOne(ctx, first, what, b, off); err == nil || !p.clean {
				return found, err
			}
		}
		errs := make([]error, 0, len(g.members))
		if err != nil {
			errs = append(errs, err)
		}
		for i := range g.members {
			m := &g.members[i]
			if m == first {
				continue
			}
			if found, err = p.askOne(ctx, m, what, b, off); err != nil {
				if errs = append(errs, err); ctx.Err() != nil {
					break
				}
				continue
			}
			if g.from.CompareAndSwap(first, m) || p.clean || g.from.Load() == m {
				return found, nil
			}
			break // another one was first, and only that one is read
		}
		if err != nil {
			return 0, fmt.Errorf("history of disk %v: %w", p.disk, joined(errs))
		}
	}
}

func (p *Past) askOne(ctx context.Context, m *crdt.Member, what uint32, b []byte, off int64) (int64, error) {
	msg := wire.Message{
		Kind: wire.KindReadPast, Disk: p.disk, Replica: m.Replica, Epoch: p.epoch, Session: what, Offset: off, Count: uint32(len(b)), Payload: p.payload,
	}
	var reply wire.Reply
	var err error
	if m.Node == p.host.cfg.Node {
		reply, err = p.host.cfg.Replicas.do(&msg, b)
	} else {
		ctx, cancel := context.WithTimeout(ctx, forwardPatience)
		defer cancel()
		if reply, err = p.host.cfg.Peers.Start(ctx, m.Node, &msg, b).Wait(ctx); err != nil {
			err = p.host.nodeError(m.Node, err)
		}
	}
	if err != nil {
		return 0, err
	}
	if len(reply.Payload) != len(b) {
		return 0, p.host.nodeError(m.Node, fmt.Errorf("read of %d bytes returned %d: %w", len(b), len(reply.Payload), ukai.ErrCorrupt))
	}
	if len(b) > 0 && &reply.Payload[0] != &b[0] {
		copy(b, reply.Payload)
	}
	return reply.Offset, nil
}

// past lets f read the replica, if it was last sealed as req says, and not for a newer epoch. f is one of the operations that the next seal waits
// for. It is no holder's, so it needs no session.
func (h *hosted) past(epoch ukai.Epoch, req pastRequest, f func() error) error {
	a := h.admitted.Load()
	for !a.ops.enter() {
		a = h.admitted.Load() // replaced before its gate was closed
	}
	defer a.ops.leave()
	if a.epoch > epoch {
		return fmt.Errorf("this history has gone on since: open it anew: %w", &ukai.FencedError{Epoch: a.epoch})
	}
	// Not before: whoever takes the replica into another history notes that first, and then waits for those who entered.
	if within := h.rs.cfg.Within; within != nil {
		if err := within(h.key.disk, h.key.replica, req.Forks, req.Base); err != nil {
			return err
		}
	}
	return f()
}

// readPast answers a read of a past.
func (h *hosted) readPast(r request, m *wire.Message, req pastRequest) (reply wire.Reply, err error) {
	switch m.Session {
	case pastRead:
		if m.Count == 0 || m.Count > ukai.MaxIO {
			return reply, fmt.Errorf("read of %d bytes: %w: 1 to %d", m.Count, ukai.ErrInvalid, ukai.MaxIO)
		}
		if err := h.check("read", m.Offset, int64(m.Count)); err != nil {
			return reply, err
		}
		reply.Payload = r.buffer(int(m.Count))
		return reply, h.past(m.Epoch, req, func() error { return h.data.ReadAt(reply.Payload, m.Offset) })
	case pastData, pastHole:
		if err := h.check("seek", m.Offset, 0); err != nil {
			return reply, err
		}
		err := h.past(m.Epoch, req, func() (err error) {
			next := h.data.NextData
			if m.Session == pastHole {
				next = h.data.NextHole
			}
			reply.Offset, err = next(m.Offset)
			return err
		})
		return reply, err
	}
	return reply, fmt.Errorf("request %d to a past: %w", m.Session, ukai.ErrUnsupported)
}
