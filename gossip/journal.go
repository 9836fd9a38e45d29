package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"ukai/crdt"
)

// KV is one entry of a journal. A nil Value deletes the key.
type KV struct {
	Key   string
	Value []byte
}

// Journal keeps the catalog and the peers; all keys begin with "g/".
type Journal interface {
	// Put writes kvs as one batch. With sync they are durable when it returns, and so is all that was put before.
	Put(ctx context.Context, sync bool, kvs ...KV) error
	// Scan calls f for each key that begins with prefix, until f returns an error, which it returns. v is valid only during the call.
	Scan(prefix string, f func(k string, v []byte) error) error
}

const (
	journalPrefix = "g/"
	syncKey       = "g/sync"

	// journalEvery is how long a change learned from a peer may be in memory only: peers have it too.
	journalEvery = time.Second
	// journalBatch bounds the entries of one Put.
	journalBatch = 256

	errorLevel = slog.LevelError
)

// load fills the mesh from the journal and publishes this node's facts to itself.
func (m *Mesh) load() error {
	if err := m.loadSelf(m.ctx); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	for _, kind := range []string{"n/", "d/", "s/"} {
		if err := m.cfg.Journal.Scan(journalPrefix+kind, m.loadEntry); err != nil {
			return fmt.Errorf("mesh: read the catalog: %w", err)
		}
	}
	if err := m.clock.Observe(m.catalog.Newest(), m.cfg.Now()); err != nil {
		// The clock was ahead when these were stamped, or is behind now. Nothing is lost, but newer changes may lose against them.
		m.log.Error("the catalog has changes from the future: check this machine's clock", "error", err)
	}
	m.roots.set(rootOf(m.catalog), time.Now())
	if err := m.loadPeers(); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	if err := m.introduce(); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	m.checkRetired()
	if len(m.cfg.Seeds) == 0 && len(m.members) == 0 || m.loaded == (self{}) && m.boot == 1 {
		m.setRecalled()
	}
	return nil
}

func (m *Mesh) loadEntry(k string, v []byte) error {
	d, err := crdt.UnmarshalDelta(append([]byte(nil), v...))
	if err == nil {
		_, err = m.catalog.Merge(d, time.Time{}) // stamps were judged when they came in
	}
	if err != nil {
		// Peers have the entry too; a node must not stay away for it.
		m.count.journalErrors.Add(1)
		m.log.Error("catalog entry skipped, it will be learned again", "key", k, "error", err)
	}
	return nil
}

// introduce publishes this node's first facts, and takes over from its earlier life what it measured.
func (m *Mesh) introduce() error {
	n, known := m.catalogNode(m.id)
	if known {
		m.seq = max(m.seq, n.Info.Seq)
		if _, place, err := parsePlace(n.Info.Coordinate); err == nil && place != nil {
			if err := m.vivaldi.SetCoordinate(place); err == nil {
				m.placed = place
			}
		}
	}
	return m.Publish(m.ctx, func(i *crdt.NodeInfo) {
		*i = m.cfg.Info
		if known {
			i.CaughtUp = n.Info.CaughtUp
		}
		i.Coordinate = appendPlace(nil, false, m.placed)
	})
}

// keepJournal writes what changed, once a second.
func (m *Mesh) keepJournal() {
	defer m.loops.Done()
	for m.sleep(journalEvery) {
		if err := m.flush(m.ctx, false); err != nil && m.ctx.Err() == nil {
			m.quiet.write(errorLevel, "the catalog is not written", "error", err.Error())
		}
	}
}

// flush writes the entries and peers that the journal lacks. Only one flush runs at a time, and each writes entries as they are when it
// runs, so an older state never replaces a newer one.
func (m *Mesh) flush(ctx context.Context, sync bool) error {
	select {
	case m.writing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.writing }()
	for {
		kvs, keys, err := m.unwritten()
		if err != nil {
			return err
		}
		if len(kvs) == 0 {
			if !sync || !m.unsynced {
				return nil
			}
			kvs = []KV{{Key: syncKey, Value: []byte{1}}} // what an earlier flush wrote becomes durable with it
		}
		m.unsynced = !sync
		m.count.journalWrites.Add(1)
		if err := m.cfg.Journal.Put(ctx, sync, kvs...); err != nil {
			m.count.journalErrors.Add(1)
			m.unsynced = true // whatever an earlier flush wrote
			m.mu.Lock()
			for _, k := range keys {
				m.dirty[k] = struct{}{}
			}
			m.mu.Unlock()
			return fmt.Errorf("journal: %w", err)
		}
	}
}

// unwritten takes up to a batch of what the journal lacks.
func (m *Mesh) unwritten() ([]KV, []crdt.Key, error) {
	now := time.Now()
	m.mu.Lock()
	keys := make([]crdt.Key, 0, min(len(m.dirty), journalBatch))
	for k := range m.dirty {
		if len(keys) == journalBatch {
			break
		}
		keys = append(keys, k)
		delete(m.dirty, k)
	}
	d := m.catalog.Extract(keys)
	kvs := m.peersToWrite(now)
	m.mu.Unlock()
	missing := make(map[crdt.Key]bool, len(keys))
	for _, k := range keys {
		missing[k] = true
	}
	for _, e := range entries(d) {
		delete(missing, e.Keys()[0])
		b, err := e.MarshalBinary()
		if err != nil {
			return nil, nil, err
		}
		kvs = append(kvs, KV{Key: journalPrefix + e.Keys()[0].String(), Value: b})
	}
	for k := range missing { // swept
		kvs = append(kvs, KV{Key: journalPrefix + k.String()})
	}
	return kvs, keys, nil
}

// forgetful is the journal of a node that has none.
type forgetful struct{}

func (forgetful) Put(context.Context, bool, ...KV) error            { return nil }
func (forgetful) Scan(string, func(k string, v []byte) error) error { return nil }
