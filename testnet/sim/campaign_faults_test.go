package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ukai"
	"ukai/node/admin"
	"ukai/node/store"
	"ukai/testnet/memnet"
)

// kinds of faults, and how often each is chosen.
var kinds = []struct {
	name   string
	weight int
}{
	{"crash", 8}, {"power cut", 6}, {"blackout", 2}, {"restart", 2}, {"freeze", 5}, {"suspend", 2}, {"clock jump", 2},
	{"cut", 4}, {"one-way cut", 5}, {"isolate", 5}, {"deaf", 3}, {"mute", 3}, {"flap", 4}, {"slow", 5},
	{"full", 4}, {"read errors", 3}, {"write error", 1}, {"sync error", 1}, {"slow disk", 4}, {"hung disk", 2},
	{"new rule", 6}, {"new range", 5}, {"label", 2}, {"resize", 3}, {"drain", 3}, {"pause", 2}, {"cancel", 2}, {"limit", 2},
}

// mediumFor is how long a medium fails.
const mediumFor = 300 * time.Millisecond

// maxActive bounds the faults at a time.
const maxActive = 3

// fault is one that is in force.
type fault struct {
	text  string
	s     *machine // whose process or disk it is, nil if it concerns links only
	until time.Time
	link  func(from, to *machine, l *memnet.Link) // nil if links are not concerned
	heal  func()                                  // nil if there is nothing to do
	flaps bool
}

// breakThings makes and heals faults for a while.
func (c *campaign) breakThings(d time.Duration) {
	next := time.Now().Add(2 * time.Second)
	watched := time.Now()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		now := time.Now()
		changed := false
		for _, f := range slices.Clone(c.active) {
			if now.After(f.until) {
				c.end(f)
				changed = true
			}
			changed = changed || f.flaps
		}
		if len(c.active) < maxActive && now.After(next) {
			c.begin()
			changed = true
			next = time.Now().Add(100*time.Millisecond + time.Duration(c.rng.Int64N(int64(2500*time.Millisecond))))
			if c.broken != "" && !c.dropped {
				c.dropped, next = true, time.Now().Add(10*time.Second) // until the replica is out
			}
		}
		if changed {
			c.shape()
		}
		if now.Sub(watched) > time.Second {
			watched = now
			c.watch()
		}
	}
}

// healAll ends all faults.
func (c *campaign) healAll() {
	for _, f := range slices.Clone(c.active) {
		c.end(f)
	}
	c.shape()
}

func (c *campaign) end(f *fault) {
	c.active = slices.DeleteFunc(c.active, func(g *fault) bool { return g == f })
	if f.heal != nil {
		f.heal()
	}
	c.logf("healed: %s", f.text)
}

// shape sets the links between all pairs of machines as the faults in force want them.
func (c *campaign) shape() {
	for _, from := range c.machines {
		for _, to := range c.machines {
			if from == to {
				continue
			}
			l := c.m.Net.Link(from.DC, to.DC)
			for _, f := range c.active {
				if f.link != nil {
					f.link(from, to, &l)
				}
			}
			c.m.Net.SetLink(from.Name, to.Name, l)
		}
	}
}

// busy says whether a fault has a machine's process or disk.
func (c *campaign) busy(s *machine) bool {
	return s.live.Load() == nil || slices.ContainsFunc(c.active, func(f *fault) bool { return f.s == s })
}

func (c *campaign) down(s *machine, power bool) {
	s.live.Store(nil)
	s.store.set(nil)
	if !power {
		s.Crash()
		return
	}
	c.cuts = append(c.cuts, powerCut{s.Name, c.clock.now()})
	if c.rng.IntN(2) == 0 {
		s.PowerCut()
	} else {
		s.PowerCutKeeping(rand.New(rand.NewPCG(c.seed, c.rng.Uint64())))
	}
}

func (c *campaign) up(s *machine) {
	if s.Node.Node == nil {
		s.Boot()
		s.live.Store(s.Node.Node)
	}
}

// begin chooses a fault and makes it. All is drawn before anything is looked at, so that the choice follows from the seed.
func (c *campaign) begin() {
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	pick, kind := c.rng.IntN(total), ""
	for _, k := range kinds {
		if pick -= k.weight; pick < 0 {
			kind = k.name
			break
		}
	}
	s, other := c.machines[c.rng.IntN(len(c.machines))], c.machines[c.rng.IntN(len(c.machines))]
	span := 500*time.Millisecond + time.Duration(c.rng.Int64N(int64(6*time.Second)))
	switch c.rng.IntN(6) {
	case 0:
		span += 12 * time.Second // until others take the node for dead
	case 1, 2:
		span /= 10 // over before anybody is given up
	}
	slow := memnet.Link{
		Delay: time.Duration(5+c.rng.IntN(300)) * time.Millisecond, Jitter: time.Duration(1+c.rng.IntN(30)) * time.Millisecond,
		Loss: float64(c.rng.IntN(15)) / 100, Duplicate: float64(c.rng.IntN(10)) / 100, Reorder: float64(c.rng.IntN(10)) / 100,
	}
	d := c.disks[c.rng.IntN(len(c.disks))]
	rule := d.rules[c.rng.IntN(len(d.rules))]
	ahead := time.Duration(c.rng.Int64N(int64(2 * time.Minute)))
	f := &fault{until: time.Now().Add(span), text: fmt.Sprintf("%s of %s for %v", kind, s.Name, span)}
	disk := func(do func(op store.Op) error) {
		f.s = s
		s.store.set(do)
		f.heal = func() { s.store.set(nil) }
	}
	switch kind {
	case "crash", "power cut", "restart", "freeze", "suspend", "full", "read errors", "write error", "sync error", "slow disk", "hung disk":
		if c.busy(s) {
			return
		}
	case "blackout":
		if slices.ContainsFunc(c.machines, c.busy) {
			return
		}
	}
	switch kind {
	case "crash", "power cut":
		f.s = s
		c.down(s, kind == "power cut")
		f.heal = func() { c.up(s) }
	case "blackout": // of all that store blocks, at times all but one
		for _, x := range c.machines {
			if !x.Witness && (x != s || c.rng.IntN(2) == 0) {
				c.down(x, true)
			}
		}
		f.s = s
		f.text = fmt.Sprintf("blackout for %v", span)
		f.heal = func() {
			for _, x := range c.machines {
				c.up(x)
			}
		}
	case "restart":
		f.s = s
		s.live.Store(nil)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := s.Shutdown(ctx); err != nil {
			c.logf("stopping %s: %v", s.Name, err)
		}
		cancel()
		f.heal = func() { c.up(s) }
	case "freeze", "suspend":
		f.s = s
		s.Freeze(true)
		f.heal = func() {
			if kind == "suspend" {
				s.Ahead.Add(int64(ahead))
			}
			if s.Node.Node != nil {
				s.Freeze(false)
			}
		}
	case "clock jump":
		s.Ahead.Add(int64(ahead))
		f.text = fmt.Sprintf("the clock of %s jumps by %v", s.Name, ahead)
	case "cut", "one-way cut":
		if s == other {
			return
		}
		f.text = fmt.Sprintf("%s from %s to %s for %v", kind, s.Name, other.Name, span)
		f.link = func(from, to *machine, l *memnet.Link) {
			l.Down = l.Down || from == s && to == other || kind == "cut" && from == other && to == s
		}
	case "isolate", "deaf", "mute":
		f.link = func(from, to *machine, l *memnet.Link) {
			l.Down = l.Down || from == s && kind != "deaf" || to == s && kind != "mute"
		}
	case "flap":
		f.flaps = true
		rng := rand.New(rand.NewPCG(c.seed, c.rng.Uint64()))
		var at time.Time
		down := false
		f.link = func(from, to *machine, l *memnet.Link) {
			if now := time.Now(); now != at {
				at = now
				if rng.IntN(6) == 0 {
					down = !down
				}
			}
			l.Down = l.Down || down && (from == s || to == s)
		}
	case "slow":
		f.text += fmt.Sprintf(": %+v", slow)
		f.link = func(from, to *machine, l *memnet.Link) {
			if from == s || to == s {
				slow.Down = l.Down
				*l = slow
			}
		}
	case "full":
		disk(func(op store.Op) error {
			if op.Kind == store.OpWrite || op.Kind == store.OpCreate || op.Kind == store.OpTruncate {
				return syscall.ENOSPC
			}
			return nil
		})
	case "read errors":
		disk(func(op store.Op) error {
			if op.Kind == store.OpRead && op.Off/4096%3 == 0 {
				return syscall.EIO
			}
			return nil
		})
	case "write error", "sync error":
		// It costs a replica for good. That must not be the last one that is in sync, so nothing else may be broken.
		if c.broken != "" || s.Witness || len(c.active) > 0 || c.each(c.settled) != nil {
			return
		}
		c.broken, f.until = s.Name, time.Now().Add(mediumFor)
		bad := store.OpWrite
		if kind == "sync error" {
			bad = store.OpSync
		}
		var hit atomic.Bool
		disk(func(op store.Op) error {
			if op.Kind == bad && !hit.Swap(true) {
				return syscall.EIO
			}
			return nil
		})
	case "slow disk":
		delay := slow.Delay / 4
		disk(func(store.Op) error { time.Sleep(delay); return nil })
	case "hung disk":
		gone := make(chan struct{})
		var once sync.Once
		disk(func(store.Op) error { <-gone; return nil })
		s.store.release = func() { once.Do(func() { close(gone) }) }
	case "new rule":
		f.text = fmt.Sprintf("%s is to be on %s", d.name, rule)
		c.ask(s, d.name+" by another rule", func(ctx context.Context, n admin.Backend) error {
			_, err := n.PlaceDisk(ctx, d.name, admin.PlaceDisk{Rule: admin.Rule{Terms: split(rule), Prefer: true}})
			return err
		})
	case "label":
		change := admin.NodeChange{Set: ukai.Labels{"ssd": "yes"}}
		if ahead%2 == 0 {
			change = admin.NodeChange{Unset: []string{"ssd"}}
		}
		f.text = fmt.Sprintf("labels of %s: %+v", other.Name, change)
		c.ask(s, "label "+other.Name, func(ctx context.Context, n admin.Backend) error {
			_, err := n.ChangeNode(ctx, other.Name, change)
			return err
		})
	case "new range":
		blocks := int(d.size.Load() / int64(ukai.MinBlockSize))
		first := int(ahead) % blocks
		last := min(blocks-1, first+int(ahead/7)%(blocks/2))
		change := admin.PlaceDisk{Blocks: fmt.Sprintf("%d-%d", first, last), Rule: admin.Rule{Terms: split(rule)}}
		f.text = fmt.Sprintf("blocks %s of %s are to be on %s", change.Blocks, d.name, rule)
		if ahead%4 == 0 {
			change.Rule, change.Remove = admin.Rule{}, true
			f.text = fmt.Sprintf("blocks %s of %s are to be where the rest is", change.Blocks, d.name)
		}
		c.ask(s, d.name+" have a range", func(ctx context.Context, n admin.Backend) error {
			_, err := n.PlaceDisk(ctx, d.name, change)
			if err == nil && !change.Remove {
				c.ranges.Add(1)
			}
			return err
		})
	case "drain":
		f.text = fmt.Sprintf("%s is drained for %v", other.Name, span)
		drain := func(on bool) {
			c.ask(s, "have "+other.Name+" drained or not", func(ctx context.Context, n admin.Backend) error {
				_, err := n.ChangeNode(ctx, other.Name, admin.NodeChange{Drain: &on})
				return err
			})
		}
		drain(true)
		f.heal = func() { drain(false) }
	case "pause", "cancel":
		f.text = fmt.Sprintf("%s the job of %s for %v", kind, d.name, span)
		order := func(what string) {
			c.ask(s, what+" the job of "+d.name, func(ctx context.Context, n admin.Backend) error {
				_, err := n.OrderJob(ctx, d.name, admin.OrderJob{Order: what})
				return err
			})
		}
		order(kind)
		f.heal = func() { order(admin.OrderResume) }
	case "limit":
		limit := []string{"0", "256KiB/s", "4MiB/s"}[int(ahead)%3]
		f.text = fmt.Sprintf("copies between tokyo and osaka are limited to %s for %v", limit, span)
		set := func(to string) {
			c.ask(s, "limit the link to "+to, func(ctx context.Context, n admin.Backend) error {
				_, err := n.SetLink(ctx, "tokyo-osaka", admin.SetLink{Limit: to})
				return err
			})
		}
		set(limit)
		f.heal = func() { set("none") }
	case "resize":
		f.text = fmt.Sprintf("%s grows", d.name)
		to := d.size.Load() + 512<<10
		c.ask(s, d.name+" larger", func(ctx context.Context, n admin.Backend) error {
			_, err := n.ResizeDisk(ctx, d.name, admin.ResizeDisk{SizeBytes: to})
			if err == nil {
				d.size.Store(max(d.size.Load(), to))
			}
			return err
		})
	}
	c.active = append(c.active, f)
	c.logf("fault: %s", f.text)
}

// ask has an administrator ask a node for something; it may be refused.
func (c *campaign) ask(s *machine, what string, do func(context.Context, admin.Backend) error) {
	n := s.live.Load()
	if n == nil {
		return
	}
	c.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := do(ctx, n); err != nil {
			c.logf("%s was not made %s: %v", s.Name, what, err)
		}
	})
}

// diskFault is what a machine's disk does.
type diskFault struct {
	removed func(ukai.ReplicaID)

	mu      sync.Mutex
	do      func(store.Op) error
	release func() // of those that hang
}

func (f *diskFault) set(do func(store.Op) error) {
	f.mu.Lock()
	release := f.release
	f.do, f.release = do, nil
	f.mu.Unlock()
	if release != nil {
		release()
	}
}

// hangs says whether the medium answers nobody.
func (f *diskFault) hangs() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.release != nil
}

func (f *diskFault) ask(op store.Op) error {
	f.mu.Lock()
	do := f.do
	f.mu.Unlock()
	if op.Kind == store.OpRemove {
		f.removed(op.Replica)
	}
	if do == nil {
		return nil
	}
	return do(op)
}

// Shutdown stops the node's process in good order.
func (n *Node) Shutdown(ctx context.Context) error {
	err := n.Node.Close(ctx)
	_ = n.conn.Close()
	n.Store.Restart()
	n.Node = nil
	if errors.Is(err, ukai.ErrClosed) {
		err = nil
	}
	return err
}
