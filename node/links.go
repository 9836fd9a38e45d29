package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/gossip"
	"ukai/node/pace"
)

const (
	// linksEvery is how often a node looks at most at what the mesh says of links.
	linksEvery = 250 * time.Millisecond
	// pullSettle is how long after it has told the mesh that it copies over a link a node begins to: the others have heard of it by then, and
	// take less. Should somebody not have, the link carries more than its budget until they have.
	pullSettle = 3 * time.Second
	// pullLinger is how long after its last copy over a link a node still says that it copies over it.
	pullLinger = 10 * time.Second

	// settingLink begins the names of the mesh-wide settings that are budgets of links.
	settingLink = "link."
)

// linkSetting returns the name of the setting that is the budget of a link. Two names of datacenters may be longer than a setting's.
func linkSetting(p pace.Pair) string {
	sum := sha256.Sum256([]byte(p.Key()))
	return settingLink + hex.EncodeToString(sum[:12])
}

// linkText is the value of a setting that is the budget of a link.
func linkText(p pace.Pair, l pace.Limit) string { return p.A + " " + p.B + " " + l.String() }

func parseLinkText(text string) (p pace.Pair, l pace.Limit, err error) {
	words := strings.SplitN(text, " ", 3)
	if len(words) < 3 {
		return p, l, fmt.Errorf("budget %q: %w: want two datacenters and a rate", text, ukai.ErrCorrupt)
	}
	l, err = pace.ParseText(words[2])
	return pace.NewPair(words[0], words[1]), l, err
}

// links holds the copies of this node to the budgets of the links that they pass. The nodes that copy over a link say so in what they publish
// of themselves, and each takes an equal part of its budget.
type links struct {
	seen atomic.Pointer[linksSeen]

	mu     sync.Mutex
	pacers map[pace.Pair]*pacer
}

// linksSeen is what the mesh says of links.
type linksSeen struct {
	limits map[pace.Pair]pace.Limit
	dcs    map[ukai.NodeID]string
	pulls  map[string][]ukai.NodeID // key of a pair -> the living nodes that copy over it
}

// pacer is a pace.Pacer of one link, and when it was used.
type pacer struct {
	pace.Pacer
	used time.Time
	told time.Time // when the mesh was told that this node copies over the link; zero: it was not
}

// lookAtLinks returns what the catalog says of links, nil if no link has a budget.
func (n *Node) lookAtLinks() *linksSeen {
	s := &linksSeen{limits: map[pace.Pair]pace.Limit{}, dcs: map[ukai.NodeID]string{}, pulls: map[string][]ukai.NodeID{}}
	alive := map[ukai.NodeID]bool{n.id: true}
	for _, m := range n.mesh.Members() {
		alive[m.ID] = m.Self || m.State == gossip.Alive || m.State == gossip.Suspect
	}
	n.mesh.View(func(c *crdt.Catalog) {
		for name, value := range c.Settings() {
			if !strings.HasPrefix(name, settingLink) {
				continue
			}
			if p, l, err := parseLinkText(value); err == nil { // one of a newer release is told of by `link`
				s.limits[p] = l
			}
		}
		if len(s.limits) == 0 {
			return
		}
		for node := range c.Nodes() {
			s.dcs[node.ID] = node.LabelSet()[ukai.LabelDC]
			if !alive[node.ID] {
				continue
			}
			for _, key := range node.Info.Pulls {
				s.pulls[key] = append(s.pulls[key], node.ID)
			}
		}
	})
	if len(s.limits) == 0 {
		return nil
	}
	return s
}

// budget waits until a disk may have so many bytes copied between two nodes.
func (n *Node) budget(ctx context.Context, disk ukai.DiskID, from, to ukai.NodeID, bytes int64) error {
	s := n.links.seen.Load()
	if s == nil || from == to {
		return nil
	}
	pair := pace.NewPair(s.dcs[from], s.dcs[to])
	if _, limited := s.limits[pair]; !limited {
		return nil
	}
	l := &n.links
	l.mu.Lock()
	p := l.pacers[pair]
	if p == nil {
		if l.pacers == nil {
			l.pacers = map[pace.Pair]*pacer{}
		}
		p = new(pacer)
		l.pacers[pair] = p
	}
	ticket := p.Ask(disk, bytes)
	l.mu.Unlock()
	for {
		now := time.Now()
		seen := l.seen.Load()
		l.mu.Lock()
		p.used = now
		again := p.Run(now, seen.share(pair, n.id, p.told, now), ticket)
		granted := ticket.Granted()
		l.mu.Unlock()
		if granted {
			return nil
		}
		timer := time.NewTimer(again)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			l.mu.Lock()
			p.Cancel(ticket)
			l.mu.Unlock()
			return context.Cause(ctx)
		}
	}
}

// share returns the rate at which a node may copy over a link now. told is when it told the mesh that it does.
func (s *linksSeen) share(p pace.Pair, self ukai.NodeID, told, now time.Time) pace.Rate {
	if s == nil {
		return pace.Unlimited
	}
	limit, limited := s.limits[p]
	if !limited {
		return pace.Unlimited
	}
	rate := limit.At(now)
	if rate <= 0 {
		return rate
	}
	others := s.pulls[p.Key()]
	if told.IsZero() || now.Sub(told) < pullSettle || !slices.Contains(others, self) {
		return 0
	}
	return max(rate/pace.Rate(len(others)), 1)
}

// keepLinks follows what the mesh says of links, and tells it over which this node copies.
func (n *Node) keepLinks() {
	changed, cancel := n.mesh.Subscribe()
	defer cancel()
	tick := time.NewTicker(linksEvery)
	defer tick.Stop()
	var published []string
	for news := true; ; {
		if news {
			n.links.seen.Store(n.lookAtLinks())
			news = false
		}
		if pulls := n.links.inUse(time.Now()); !slices.Equal(pulls, published) && n.fit() == nil {
			if err := n.mesh.Publish(n.ctx, func(i *crdt.NodeInfo) { i.Pulls = pulls }); err != nil {
				if n.ctx.Err() == nil {
					n.log.Warn("the mesh could not be told over which links this node copies; this is tried again", "err", err)
				}
			} else {
				published = pulls
				n.links.tellOf(pulls, time.Now())
				news = true
			}
		}
		for waiting := true; waiting; {
			select {
			case <-n.ctx.Done():
				return
			case <-changed:
				news = true
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// inUse returns the keys of the links with a budget over which this node copies, or did until lately.
func (l *links) inUse(now time.Time) []string {
	seen := l.seen.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	var keys []string
	maps.DeleteFunc(l.pacers, func(p pace.Pair, x *pacer) bool {
		limited := seen != nil
		if limited {
			_, limited = seen.limits[p]
		}
		if x.Waiting() > 0 || now.Sub(x.used) < pullLinger {
			if limited {
				keys = append(keys, p.Key())
			}
			return false
		}
		return true
	})
	slices.Sort(keys)
	return keys[:min(len(keys), crdt.MaxPulls)]
}

// tellOf notes which links the mesh has been told of.
func (l *links) tellOf(keys []string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, x := range l.pacers {
		switch told := slices.Contains(keys, p.Key()); {
		case !told:
			x.told = time.Time{}
		case x.told.IsZero():
			x.told = now
		}
	}
}

// why says for what the copies of a disk between two nodes wait, "" if they do not.
func (l *links) why(disk ukai.DiskID, from, to ukai.NodeID) string {
	s := l.seen.Load()
	if s == nil || from == to {
		return ""
	}
	pair := pace.NewPair(s.dcs[from], s.dcs[to])
	limit, limited := s.limits[pair]
	if !limited {
		return ""
	}
	now := time.Now()
	if limit.At(now) == 0 {
		if until, ok := limit.Until(now); ok {
			return fmt.Sprintf("the link %v carries no copies until %s", pair, until.UTC().Format("15:04 UTC"))
		}
		return fmt.Sprintf("the link %v carries no copies: its limit is 0", pair)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.pacers[pair]; p != nil && p.Waits(disk) {
		return fmt.Sprintf("held to the limit %v of the link %v", limit.At(now), pair)
	}
	return ""
}
