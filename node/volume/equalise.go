package volume

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ukai"
	"ukai/node/wire"
)

// copyWidth is how many blocks are compared at once during recovery.
const copyWidth = 4

// equalise makes [off, off+n) of others equal to what from has, chunk by chunk, copying only what differs. The stamp is
// raised first on all others, even where no chunk differs. Nobody else may write to the range; off is at the border of
// a chunk.
func (h *holding) equalise(ctx context.Context, from *member, others []*member, off, n int64, stamp ukai.BlockStamp) error {
	for _, m := range others {
		if err := m.put(ctx, nil, off, stamp); err != nil {
			return err
		}
	}
	for end := off + n; off < end; off += maxHashed {
		part := min(maxHashed, end-off)
		want, _, err := from.hashes(ctx, off, part, nil, ukai.BlockStamp{})
		if err != nil {
			return err
		}
		for _, m := range others {
			have, _, err := m.hashes(ctx, off, part, nil, ukai.BlockStamp{})
			if err != nil {
				return err
			}
			for i := range want {
				if want[i] == have[i] {
					continue
				}
				at := off + int64(i)*ukai.ChunkSize
				length := min(ukai.ChunkSize, off+part-at)
				if want[i] == (chunkHash{}) {
					err = m.zero(ctx, at, length, stamp)
				} else {
					err = h.copyRange(ctx, from, m, at, length, stamp)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// copyRange copies a range from one replica to another.
func (h *holding) copyRange(ctx context.Context, from, to *member, off, n int64, stamp ukai.BlockStamp) error {
	buf := make([]byte, min(n, ukai.MaxIO))
	for end := off + n; off < end; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), end-off)]
		if err := from.get(ctx, buf, off); err != nil {
			return err
		}
		var err error
		if allZero(buf) {
			err = to.zero(ctx, off, int64(len(buf)), stamp) // takes no space
		} else {
			err = to.put(ctx, buf, off, stamp)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// command sends one request in the session that stands, and gives it up with the session.
func (m *member) command(ctx context.Context, msg wire.Message, into []byte) (wire.Reply, error) {
	l := m.link.Load()
	if l == nil {
		return wire.Reply{}, m.named(fmt.Errorf("no session: %w", ukai.ErrUnreachable))
	}
	try, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	if m.h.view.Load() == nil {
		var end context.CancelFunc
		try, end = context.WithTimeout(try, unwatchedFor(msg.Kind, m.h.slow)+rttFactor*m.h.host.rtt(m.Node))
		defer end()
	}
	age := l.age(msg.Kind)
	slot := age.begin()
	l.count(&msg)
	if mutates(msg.Kind) {
		l.again.Add(1)
	}
	reply, err := m.ask(try, l.session, msg, into)
	age.end(slot)
	if err != nil {
		l.failed(msg.Kind)
	}
	if err != nil && l.ctx.Err() != nil && ctx.Err() == nil {
		err = m.named(fmt.Errorf("its session ended: %w", ukai.ErrUnreachable))
	}
	return reply, err
}

// unwatchedFor is how long a request may take during a takeover, after attempts for which something was too slow: no tick looks after its age. A flush may have much to
// write that its holder before has not flushed. A replica that hangs is not sealed by the next attempt; one that is, is slow, and is given more time.
func unwatchedFor(kind wire.Kind, slow int) time.Duration {
	limit := slowTime << min(slow, 2)
	if kind == wire.KindFlush {
		return 2 * limit
	}
	return limit
}

func (m *member) get(ctx context.Context, p []byte, off int64) error {
	return m.fetch(ctx, p, off, nil)
}

// fetch is get, or with source() a read that fails where the data has rotted.
func (m *member) fetch(ctx context.Context, p []byte, off int64, as []byte) error {
	reply, err := m.command(ctx, wire.Message{Kind: wire.KindRead, Offset: off, Count: uint32(len(p)), Payload: as}, p)
	if err == nil && len(reply.Payload) != len(p) {
		err = m.named(fmt.Errorf("read of %d bytes returned %d: %w", len(p), len(reply.Payload), ukai.ErrCorrupt))
	}
	return err
}

// put writes p, or only raises the stamp of the block at off if p is empty.
func (m *member) put(ctx context.Context, p []byte, off int64, stamp ukai.BlockStamp) error {
	_, err := m.command(ctx, wire.Message{Kind: wire.KindWrite, Offset: off, Payload: p, Stamp: stamp}, nil)
	return err
}

func (m *member) zero(ctx context.Context, off, n int64, stamp ukai.BlockStamp) error {
	_, err := m.command(ctx, wire.Message{Kind: wire.KindDiscard, Offset: off, Count: uint32(n), Stamp: stamp}, nil)
	return err
}

func (m *member) sync(ctx context.Context) error {
	_, err := m.command(ctx, wire.Message{Kind: wire.KindFlush}, nil)
	return err
}

// hashes returns the hashes of the chunks of a range, and the newest stamp of its blocks, or untold if the node does not tell. With source() it fails where
// the data has rotted.
func (m *member) hashes(ctx context.Context, off, n int64, as []byte, untold ukai.BlockStamp) (hashes []chunkHash, newest ukai.BlockStamp, err error) {
	reply, err := m.command(ctx, wire.Message{Kind: wire.KindHash, Offset: off, Count: uint32(n), Payload: as}, nil)
	if err != nil {
		return nil, newest, err
	}
	list := slices.Collect(slices.Chunk(reply.Payload, len(chunkHash{})))
	want := int((n + ukai.ChunkSize - 1) / ukai.ChunkSize)
	if len(list) != want || len(reply.Payload) != want*len(chunkHash{}) {
		return nil, newest, m.named(fmt.Errorf("%d bytes of hashes for %d chunks: %w", len(reply.Payload), want, ukai.ErrCorrupt))
	}
	hashes = make([]chunkHash, want)
	for i := range list {
		hashes[i] = chunkHash(list[i])
	}
	if newest = reply.Stamp; reply.Count != hashStamped {
		newest = untold
	}
	return hashes, newest, nil
}

// suspects lists the replica's blocks with a stamp newer than a given one.
func (m *member) suspects(ctx context.Context, than ukai.BlockStamp) ([]suspect, error) {
	var all []suspect
	for next := int64(0); ; {
		reply, err := m.command(ctx, wire.Message{Kind: wire.KindStamps, Stamp: than, Offset: next}, nil)
		if err != nil {
			return nil, err
		}
		list, err := decodeSuspects(reply.Payload)
		if err != nil {
			return nil, m.named(err)
		}
		if len(list) > 0 && int64(list[0].index) < next {
			return nil, m.named(fmt.Errorf("list of stamps: %w: asked from block %d, got %d", ukai.ErrCorrupt, next, list[0].index))
		}
		all = append(all, list...)
		if reply.Count == 0 {
			return all, nil
		}
		if reply.Offset <= next {
			return nil, m.named(fmt.Errorf("list of stamps: %w: goes on at block %d after %d", ukai.ErrCorrupt, reply.Offset, next))
		}
		next = reply.Offset
	}
}

// recoverGroup makes the sealed replicas of one group equal wherever they may differ.
func (h *holding) recoverGroup(ctx context.Context, t *takeover, group uint8) error {
	set, k := t.set(group), t.watermark(group)
	var list []suspect
	for _, s := range set {
		more, err := h.members[s.member.Replica].suspects(ctx, k)
		if err != nil {
			return err
		}
		list = mergeSuspects(list, more)
	}
	if len(list) == 0 {
		return nil
	}
	h.host.cfg.Log.Info("recovering", "disk", h.d.Name(), "epoch", h.epoch, "group", group, "blocks", len(list), "authority", set[0].member.Replica, "lossy", t.lossy(group))
	from := h.members[set[0].member.Replica]
	var others []*member
	for _, s := range set[1:] {
		others = append(others, h.members[s.member.Replica])
	}
	layout := newLayout(&t.rec)
	work, ctx := errgroup.WithContext(ctx) // with a replica that hangs each block would wait for its answer
	work.SetLimit(copyWidth)
	for _, s := range list {
		off := int64(s.index) * layout.blockSize
		if g, _ := layout.groupAt(s.index); off >= layout.size || g != group {
			continue // beyond a size the disk had, or of another group: not read through this one
		}
		work.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return h.equalise(ctx, from, others, off, min(layout.blockSize, layout.size-off), s.stamp)
		})
	}
	return work.Wait()
}
