package gossip

import (
	"time"

	"ukai/crdt"
)

const (
	tidyEvery = time.Hour
	// caughtUpMargin is taken off the time at which catalogs were found equal, for messages that were long on their way.
	caughtUpMargin = time.Minute
)

// keepTidy lets deleted disks be forgotten: it says up to when this node has everybody's changes, and sweeps.
func (m *Mesh) keepTidy() {
	defer m.loops.Done()
	for m.sleep(jitter(tidyEvery)) {
		if m.isLeaving() || m.Quarantined() != nil {
			continue
		}
		if err := m.tidy(); err != nil && m.ctx.Err() == nil {
			m.quiet.warn("catalog not tidied", "error", err.Error())
		}
	}
}

func (m *Mesh) tidy() error {
	// What this node says it has must not be lost with a power cut: others forget deletions by it. So that is settled before the flush.
	t := m.caughtUp()
	if err := m.flush(m.ctx, true); err != nil {
		return err
	}
	if t != 0 {
		err := m.Publish(m.ctx, func(i *crdt.NodeInfo) { i.CaughtUp = max(i.CaughtUp, t) })
		if err != nil {
			return err
		}
	}
	wall := m.cfg.Now()
	m.mu.Lock()
	if m.ahead(wall, wall) {
		m.mu.Unlock()
		return nil // the others would refuse its marks, and all stamps after them also when the clock has been set
	}
	marked, forgotten := m.catalog.Sweep(m.clock.Now(wall))
	m.changed(marked.Keys())
	m.changed(forgotten)
	m.mu.Unlock()
	m.spread(marked)
	return nil
}

// forget drops deleted disks whose time has come. Both sides do so before they compare catalogs: a peer that differs has perhaps forgotten
// them already, and by the same rule they are forgotten here.
func (m *Mesh) forget() {
	wall := m.cfg.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changed(m.catalog.Forget(wall))
}

// caughtUp returns the time, in Unix milliseconds, up to which this node has the changes of every node that is not retired; 0 if there
// is a node it was never equal with since Open, or if this node's clock is, or was at the last comparison, so far ahead that it would say
// so of a time that has not come yet.
func (m *Mesh) caughtUp() int64 {
	now := m.cfg.Now().UnixMilli()
	t := now
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := range m.catalog.Nodes() {
		if n.ID == m.id || n.Retired {
			continue
		}
		p := m.members[n.ID]
		if p == nil || p.equal == 0 || p.equal > now || p.skew < -maxSkew {
			return 0
		}
		t = min(t, p.equal)
	}
	return t - caughtUpMargin.Milliseconds()
}

// wasEqual notes that this catalog has all that a peer's had at a moment of our wall clock. The caller holds m.mu.
func (m *Mesh) wasEqual(p *member, at time.Time) {
	if t := at.UnixMilli(); p != nil && (t > p.equal || p.equal > m.cfg.Now().UnixMilli()) {
		p.equal = t
	}
}
