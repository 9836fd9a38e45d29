package gossip

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt/codec"
)

// What the journal keeps besides the catalog.
const (
	peerPrefix = "g/p/" // + id: remembered
	selfKey    = "g/self"

	// maxRemembered bounds the peers that are looked for after a partition; the ones not seen for longest are dropped.
	maxRemembered = 4096
	// seenEvery is how often a peer that stays alive is written down again.
	seenEvery = 10 * time.Minute
)

// remembered is a peer as the journal keeps it.
type remembered struct {
	Addr string `cbor:"1,keyasint"` // "ip:port"
	Seen int64  `cbor:"2,keyasint"` // Unix milliseconds
	Boot uint64 `cbor:"3,keyasint"`
}

// self is what this node must not forget about itself: a peer that knows a larger boot or seq than the database has proves
// that the database is an old copy.
type self struct {
	Boot uint64 `cbor:"1,keyasint"` // counts starts
	Seq  uint64 `cbor:"2,keyasint"` // counts publications of this node's facts
}

// report is what a node says of its own counters when it meets another.
type report struct {
	Boot   uint64 `cbor:"1,keyasint"`
	Seq    uint64 `cbor:"2,keyasint"`
	Loaded uint64 `cbor:"3,keyasint"` // Seq as its database had it at the start
}

// olderThan says whether somebody remembers counters of the node that prove its database to be an old copy: only the node itself makes
// boots and seqs, and it makes them durable before it shows them.
func (r report) olderThan(boot, seq uint64) bool {
	return boot > r.Boot || boot == r.Boot && seq > r.Seq || boot < r.Boot && seq > r.Loaded
}

// report returns this node's own.
func (m *Mesh) report() report {
	m.mu.Lock()
	defer m.mu.Unlock()
	return report{Boot: m.boot, Seq: m.seq, Loaded: m.loaded.Seq}
}

// remembered returns the largest counters this node has seen of a peer; zeros if none. The caller holds m.mu.
func (m *Mesh) remembered(peer ukai.NodeID) (boot, seq uint64) {
	if n, ok := m.catalogNode(peer); ok {
		boot, seq = max(n.Boot, n.Info.Boot), n.Info.Seq
	}
	if p := m.members[peer]; p != nil {
		boot = max(boot, p.boot)
	}
	return boot, seq
}

// outdated says whether a peer's catalog may be older than what all others have forgotten.
func (m *Mesh) outdated(peer ukai.NodeID, r report) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	boot, seq := m.remembered(peer)
	n, ok := m.catalogNode(peer)
	return ok && n.Retired || r.olderThan(boot, seq)
}

// loadPeers fills the table of members from the journal: all are dead until they are heard of.
func (m *Mesh) loadPeers() error {
	type entry struct {
		id ukai.NodeID
		remembered
	}
	var found []entry
	err := m.cfg.Journal.Scan(peerPrefix, func(k string, v []byte) error {
		id, err := ukai.ParseNodeID(strings.TrimPrefix(k, peerPrefix))
		var r remembered
		if err == nil {
			err = codec.Unmarshal(v, &r)
		}
		if err == nil {
			_, err = netip.ParseAddrPort(r.Addr)
		}
		if err != nil {
			// A peer can be learned again; the mesh must not fail for it.
			m.log.Warn("remembered peer skipped", "key", k, "error", err)
			m.count.journalErrors.Add(1)
			return nil
		}
		found = append(found, entry{id, r})
		return nil
	})
	if err != nil {
		return fmt.Errorf("read remembered peers: %w", err)
	}
	slices.SortFunc(found, func(a, b entry) int { return cmp.Compare(b.Seen, a.Seen) })
	for i, e := range found {
		if i >= maxRemembered {
			break
		}
		if e.id == m.id {
			continue
		}
		seen := time.UnixMilli(e.Seen)
		m.members[e.id] = &member{
			id: e.id, addr: netip.MustParseAddrPort(e.Addr), boot: e.Boot, since: seen, seen: seen, written: seen,
		}
		m.links.add(e.id)
	}
	return nil
}

// peersToWrite returns the journal's entries for peers that changed or have been alive for long since they were written.
// The caller holds m.mu.
func (m *Mesh) peersToWrite(now time.Time) []KV {
	var kvs []KV
	for id, p := range m.members {
		if p.alive {
			p.seen = now
		} else if n, ok := m.catalogNode(id); ok && n.Retired {
			p.forget = true
		}
		if p.forget {
			kvs = append(kvs, KV{Key: peerPrefix + id.String()})
			delete(m.members, id)
			m.links.remove(id)
			continue
		}
		if !p.changed && p.seen.Sub(p.written) < seenEvery {
			continue
		}
		v, err := codec.Marshal(remembered{Addr: p.addr.String(), Seen: p.seen.UnixMilli(), Boot: p.boot})
		if err != nil {
			continue // cannot be: the type is plain
		}
		p.changed, p.written = false, now
		kvs = append(kvs, KV{Key: peerPrefix + id.String(), Value: v})
	}
	return kvs
}

// dropOldest forgets the peer not seen for longest if there are too many. It is called for each that comes, so one is enough. The caller
// holds m.mu.
func (m *Mesh) dropOldest() {
	if len(m.members) <= maxRemembered {
		return
	}
	var oldest *member
	for _, p := range m.members {
		if !p.alive && !p.forget && (oldest == nil || p.seen.Before(oldest.seen)) {
			oldest = p
		}
	}
	if oldest != nil {
		oldest.forget = true // the journal's writer removes it
	}
}

// missing returns the addresses of up to n nodes, in random order, that are not alive and neither left nor were retired: peers of before,
// and nodes that the catalog names and that were never met, as when many join at once and membership loses one.
func (m *Mesh) missing(n int) []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []netip.AddrPort
	for id, p := range m.members {
		if p.alive || p.forget || m.gone(id, p) {
			continue
		}
		found = append(found, p.addr)
	}
	for node := range m.catalog.Nodes() {
		if m.members[node.ID] != nil || node.ID == m.id || node.Retired || hasLeft(node) {
			continue
		}
		if addr, err := netip.ParseAddrPort(node.Info.Addr); err == nil {
			found = append(found, addr)
		}
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	return found[:min(n, len(found))]
}

// loadSelf reads this node's counters and takes the next boot, durably.
func (m *Mesh) loadSelf(ctx context.Context) error {
	var s self
	err := m.cfg.Journal.Scan(selfKey, func(k string, v []byte) error {
		if k != selfKey {
			return nil
		}
		return codec.Unmarshal(v, &s)
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", selfKey, err)
	}
	m.loaded, m.seq, m.boot = s, s.Seq, s.Boot+1
	if m.cfg.Info.Boot != 0 {
		m.boot = m.cfg.Info.Boot
	}
	return m.writeSelf(ctx, self{Boot: m.boot, Seq: m.seq})
}

func (m *Mesh) writeSelf(ctx context.Context, s self) error {
	v, err := codec.Marshal(s)
	if err != nil {
		return err
	}
	if err := m.cfg.Journal.Put(ctx, true, KV{Key: selfKey, Value: v}); err != nil {
		return fmt.Errorf("write %s: %w", selfKey, err)
	}
	return nil
}
