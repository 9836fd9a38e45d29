package gossip

import (
	"context"
	"math/rand/v2"
	"time"

	"ukai"
	"ukai/crdt"
)

const (
	// compareEvery is about how often the root of the catalog is sent to one random peer.
	compareEvery = 2 * time.Second
	// settleTime is how long roots may differ before anybody acts on it: a change that is on its way will arrive by itself.
	settleTime = time.Second
	// askAgain is about how long after a greeting that failed the peer is greeted again, while none has told what it remembers.
	askAgain = 2 * time.Second
	// maxExchanges bounds the exchanges this node runs at a time; others wait.
	maxExchanges = 4
	// fullAlone is how long an exchange of digests has this node for itself: another at the same time would mostly bring the same
	// entries twice, but one that hangs must not stop the others.
	fullAlone = 5 * time.Second
	// maxPullKeys bounds the announced entries that wait to be pulled from one peer; beyond it the digests find them.
	maxPullKeys = 256
	// rest is how long a peer is left alone after exchanges that changed nothing although roots differed, per such exchange and
	// at most maxRest: entries refused for their stamps differ until the clocks agree.
	rest    = 10 * time.Second
	maxRest = 5 * time.Minute
	// fewChanges is how many an exchange brings when packets do most of the work; then the gap to the next grows up to maxCompareGap.
	fewChanges    = 4
	maxCompareGap = 10 * time.Second
)

// roots are the root of the catalog now and those it had lately.
type roots struct {
	now   uint64
	past  [64]uint64
	until [64]time.Time // when past[i] ceased to be the root
	next  int
}

func (r *roots) set(root uint64, now time.Time) {
	if root == r.now {
		return
	}
	r.past[r.next], r.until[r.next] = r.now, now
	r.next = (r.next + 1) % len(r.past)
	r.now = root
}

// recent says whether root is, or was until a moment ago, that of this catalog.
func (r *roots) recent(root uint64, now time.Time) bool {
	if root == r.now {
		return true
	}
	for i, p := range r.past {
		if p == root && now.Sub(r.until[i]) < settleTime {
			return true
		}
	}
	return false
}

// repair is one exchange to come.
type repair struct {
	due  time.Time
	root uint64     // of the peer when it was heard; if this catalog gets there by itself there is nothing to do
	keys []crdt.Key // announced by the peer
	full bool       // compare digests
	ask  bool       // hear what the peer remembers of this node
	busy bool       // under way
}

// keepEqual tells a random peer the root of this catalog now and then.
func (m *Mesh) keepEqual() {
	defer m.loops.Done()
	for m.sleep(jitter(compareEvery)) {
		peers := m.alivePeers()
		if len(peers) == 0 {
			continue
		}
		m.sendRoot(peers[rand.IntN(len(peers))])
	}
}

// sleep waits; false means that the mesh closes.
func (m *Mesh) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-m.ctx.Done():
		return false
	}
}

// heardRoot compares a peer's root with ours, and plans an exchange if they differ for longer than a change takes to spread.
func (m *Mesh) heardRoot(from ukai.NodeID, root uint64) {
	now, wall := time.Now(), m.cfg.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count.rootsCompared.Add(1)
	p := m.members[from]
	if m.roots.recent(root, now) {
		m.wasEqual(p, wall)
		return
	}
	m.count.rootsDiffered.Add(1)
	if p == nil || !p.alive || now.Before(p.resting) {
		return
	}
	t := m.plan(from)
	if t == nil || t.full {
		return
	}
	t.full, t.root = true, root
	if len(t.keys) == 0 {
		t.due = now.Add(settleTime + rand.N(settleTime/2))
	}
	m.wakeRepairs()
}

// announced plans to pull an entry that a peer has and that is too large for packets.
func (m *Mesh) announced(from ukai.NodeID, kv crdt.KeyVersion) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.catalog.Missing([]crdt.KeyVersion{kv})) == 0 {
		return
	}
	if p := m.members[from]; p == nil || !p.alive {
		return
	}
	for _, t := range m.repairs {
		for _, k := range t.keys {
			if k == kv.Key {
				return // on its way from somebody
			}
		}
	}
	t := m.plan(from)
	if t == nil || len(t.keys) >= maxPullKeys {
		return
	}
	t.keys, t.due = append(t.keys, kv.Key), time.Now()
	m.wakeRepairs()
}

// plan returns the exchange to come with a peer, or nil if one is under way. The caller holds m.mu.
func (m *Mesh) plan(peer ukai.NodeID) *repair {
	t := m.repairs[peer]
	if t == nil {
		t = new(repair)
		m.repairs[peer] = t
	}
	if t.busy {
		return nil
	}
	return t
}

// runRepairs carries out exchanges when they are due.
func (m *Mesh) runRepairs() {
	defer m.loops.Done()
	for {
		wait := m.startRepairs()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-m.repairWake:
			timer.Stop()
		case <-m.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// startRepairs starts what is due and returns how long nothing else will be.
func (m *Mesh) startRepairs() time.Duration {
	now := time.Now()
	wait := time.Hour
	m.mu.Lock()
	defer m.mu.Unlock()
	for peer, t := range m.repairs {
		switch {
		case t.busy:
		case t.due.After(now):
			wait = min(wait, t.due.Sub(now))
		case len(t.keys) == 0 && !t.ask && m.roots.recent(t.root, now):
			delete(m.repairs, peer) // it settled by itself
		case m.exchanging >= maxExchanges:
			// The one that ends wakes the loop.
		case t.full && now.Before(m.nextCompare):
			wait = min(wait, m.nextCompare.Sub(now))
		case t.full && m.comparing > 0 && now.Sub(m.comparingSince) < fullAlone:
			wait = min(wait, fullAlone-now.Sub(m.comparingSince))
		default:
			if t.full {
				m.comparing, m.comparingSince = m.comparing+1, now
			}
			t.busy = true
			m.exchanging++
			m.loops.Add(1)
			go m.repair(peer, t)
		}
	}
	return wait
}

// repair runs one exchange with a peer.
func (m *Mesh) repair(peer ukai.NodeID, t *repair) {
	defer m.loops.Done()
	ctx, cancel := context.WithTimeout(m.ctx, dialTime)
	defer cancel()
	err := m.exchange(ctx, peer, t.keys, t.full)
	m.count.exchanges.Add(1)
	if err != nil && m.ctx.Err() == nil {
		m.count.exchangesFailed.Add(1)
		m.log.Debug("exchange with peer failed", "peer", peer.Short(), "error", err)
	}
	m.mu.Lock()
	delete(m.repairs, peer)
	if p := m.members[peer]; err != nil && t.ask && p != nil && p.alive && !m.isRecalled() {
		// With equal roots nothing else makes this node greet anybody, and until a peer has told what it remembers it serves nothing.
		m.repairs[peer] = &repair{ask: true, due: time.Now().Add(jitter(askAgain))}
	}
	m.exchanging--
	if t.full {
		m.comparing--
	}
	m.mu.Unlock()
	m.wakeRepairs()
}

// exchange pulls keys from a peer and, if full, makes the two catalogs equal.
func (m *Mesh) exchange(ctx context.Context, peer ukai.NodeID, keys []crdt.Key, full bool) error {
	addr, ok := m.addrPort(peer)
	if !ok {
		return ukai.ErrNotFound
	}
	x, err := m.greet(ctx, addr)
	if err != nil {
		return err
	}
	defer x.close()
	if len(keys) > 0 {
		if err := x.pull(keys); err != nil {
			return err
		}
	}
	if full {
		err = x.reconcile()
	} else {
		err = x.bye(false)
	}
	m.respread(x.changed)
	return err
}

// judge gives a peer a rest if roots differ but exchanges change nothing, and all of them if they change little: then changes come so
// fast that catalogs are never equal, and packets bring them anyway.
func (m *Mesh) judge(peer ukai.NodeID, changed int) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if changed > fewChanges || now.Sub(m.nextCompare) > time.Minute {
		m.compareGap = 0
	} else {
		m.compareGap = min(max(2*m.compareGap, settleTime), maxCompareGap)
	}
	m.nextCompare = now.Add(m.compareGap)
	p := m.members[peer]
	if p == nil {
		return
	}
	if changed > 0 {
		p.fruitless, p.resting = 0, time.Time{}
		return
	}
	p.fruitless++
	p.resting = time.Now().Add(min(time.Duration(p.fruitless-1)*rest, maxRest))
}
