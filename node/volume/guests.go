package volume

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
	"ukai/node/pace"
)

// Copies in the background take what guests leave over: what a guest's requests take is held against what they take while nothing is copied on this
// node, and pace.Scavenger says how much may be under way. This is the shell around it.

// copies is what all background copies of a host share.
type copies struct {
	began time.Time     // since when quiet counts
	turn  chan struct{} // lock of 1: whose copy is admitted next, in order of arrival
	quiet atomic.Int64  // ns after began: since when guests feel nothing of copies; 0: they may

	mu      sync.Mutex
	bound   pace.Scavenger
	waiting int
	news    chan struct{} // closed and replaced when another may be admitted
	guests  time.Duration // when a disk was used last, as the pulse saw it
}

func newCopies() *copies {
	c := &copies{began: time.Now(), turn: make(chan struct{}, 1), news: make(chan struct{})}
	c.quiet.Store(1)
	return c
}

// The kinds of requests that differ in what they take.
const (
	feltRead = 2 * iota // and of more than SmallIO
	feltWrite
	feltFlush
	feltKinds = feltFlush + 1
)

// felt is what the guest of a disk on this node feels.
type felt struct {
	base  [feltKinds]Histogram    // while nothing was copied here
	limit [feltKinds]atomic.Int64 // ns: hardly any takes longer while nothing is copied; 0: not known

	// While something is copied, since the last verdict:
	requests, slow atomic.Uint32
	since          time.Duration // host clock; of the pulse alone

	unknown atomic.Bool // a limit is missing of a kind that was seen
}

const (
	// baseMemory is about how many requests of a kind are remembered: what a guest felt long ago, doing other work, is no measure.
	baseMemory = 8192
	// baseSamples is how many requests tell what they take by themselves.
	baseSamples = 64
	// slowFactor is how many times what 99 of 100 requests take counts as slow: well below the 2 that are promised, for it takes a while to notice.
	slowFactor = 1.25
	// slowBlind is what counts as slow as long as nothing is known of the guest.
	slowBlind = 20 * time.Millisecond
)

// felt notes what one request of the guest took, of n bytes.
func (d *Disk) felt(kind int, n int64, began time.Time, took time.Duration) {
	if n > SmallIO {
		kind++
	}
	c, f := d.host.copies, &d.record().felt
	if quiet := c.quiet.Load(); quiet != 0 && began.Sub(c.began) >= time.Duration(quiet) {
		f.base[kind].Observe(took)
		if f.base[kind].total.Load() >= baseMemory {
			f.base[kind].halve()
		}
		return
	}
	limit := time.Duration(f.limit[kind].Load())
	if limit == 0 {
		limit = slowBlind
		if !f.unknown.Load() {
			f.unknown.Store(true)
		}
	}
	f.requests.Add(1)
	if took > limit {
		f.slow.Add(1)
	}
}

// learn takes in what was felt without copies, which begin now.
func (f *felt) learn(now time.Duration) {
	for kind := range f.base {
		if s := f.base[kind].Summary(); s.Count >= baseSamples {
			f.limit[kind].Store(int64(slowFactor * float64(s.Quantiles[SummaryPoints-2])))
			f.base[kind].halve() // what is learnt next time counts as much
		}
	}
	f.requests.Store(0)
	f.slow.Store(0)
	f.unknown.Store(false)
	f.since = now
}

// look returns whether the guest did anything since the last look, and how it fares.
func (f *felt) look(now time.Duration) (busy bool, v pace.Verdict) {
	requests, slow := f.requests.Load(), f.slow.Load()
	if v = pace.Judge(requests, slow, now-f.since); v != pace.Unknown || requests == 0 {
		f.requests.Add(-requests)
		f.slow.Add(-slow)
		f.since = now
	}
	return requests > 0, v
}

// room waits until n more bytes may be copied on this host.
func (h *Host) room(ctx context.Context, n int64) (leave func(), err error) {
	c := h.copies
	c.mu.Lock()
	c.waiting++
	c.mu.Unlock()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
		err = h.admit(ctx, n)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	c.waiting--
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	began := h.cfg.Clock()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		now := h.cfg.Clock()
		c.bound.Done(now, n, now-began)
		c.wake()
	}, nil
}

// admit is room for the one whose turn it is.
func (h *Host) admit(ctx context.Context, n int64) error {
	c := h.copies
	for {
		now := h.cfg.Clock()
		first := c.quiet.Load() != 0
		if first {
			h.learn(now)
		}
		c.mu.Lock()
		if first {
			c.bound.Guests(now, c.guests)
		}
		wait, news := c.bound.Admit(now, n), c.news
		if wait == 0 {
			c.quiet.Store(0) // the pulse may have listened since
		}
		c.mu.Unlock()
		if wait == 0 {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-news:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// wake lets those that wait for room look again. The caller holds c.mu.
func (c *copies) wake() {
	close(c.news)
	c.news = make(chan struct{})
}

// learn takes in what guests feel without copies, for they may feel those from now on.
func (h *Host) learn(now time.Duration) {
	h.copies.quiet.Store(0)
	for _, f := range h.feeling() {
		f.learn(now)
	}
}

// feeling returns what the guests of disks feel that have any on this node.
func (h *Host) feeling() (all []*felt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.disks {
		if m := d.mix.Load(); m != nil && d.holding.Load() != nil {
			all = append(all, &m.felt)
		}
	}
	return all
}

// watch is the pulse's part: it tells how guests fare beside copies. used says that one has used its disk since the last pulse.
func (h *Host) watch(used bool) {
	c, now := h.copies, h.cfg.Clock()
	c.mu.Lock()
	if used {
		c.guests = now
	}
	c.mu.Unlock()
	if c.quiet.Load() != 0 {
		return
	}
	busy, strange, worst := false, false, pace.Unknown
	for _, f := range h.feeling() {
		did, v := f.look(now)
		busy = busy || did
		strange = strange || f.unknown.Load()
		worst = max(worst, v)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bound.Look(now, busy, worst, strange)
	if c.bound.Quiet(now, c.waiting > 0) {
		c.quiet.Store(max(int64(time.Since(c.began)), 1))
	}
	c.wake()
}

// piece returns how many bytes of at most so many, which are whole chunks, are copied at once: few, if guests are not to feel it.
func (h *Host) piece(most int64) int64 {
	h.copies.mu.Lock()
	defer h.copies.mu.Unlock()
	return min(max(h.copies.bound.Window()/ukai.ChunkSize, 1)*ukai.ChunkSize, most)
}
