package gossip

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
)

// maxSkew is how far ahead a peer's clock may be before its stamps are refused.
const maxSkew = crdt.MaxSkew

// Update makes a local change. The function gets the catalog and a source of stamps, calls the catalog's methods and returns what they
// returned, joined. It must not keep the catalog, block, or call the Mesh. When Update returns, the change is durable in the journal
// and on its way to the other nodes. If the journal fails, the change is in memory and spreads all the same; the error says so. An error of
// the function itself is returned as it is, after whatever delta came with it has been taken. If the clock of this node is so far ahead that others would
// refuse the stamps, the function gets zero ones, with which nothing can be written, and the error matches ukai.ErrClockSkew.
func (m *Mesh) Update(change func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error)) error {
	if m.closing.Load() {
		return ukai.ErrClosed
	}
	wall := m.cfg.Now()
	m.mu.Lock()
	fast, stamped := m.ahead(wall, wall), false
	d, err := change(m.catalog, func() crdt.Stamp {
		if !fast { // or the clock of stamps would go on from there when this node's has been set
			if s := m.clock.Now(wall); !m.ahead(s.Time(), wall) {
				return s
			}
		}
		stamped = true
		return crdt.Stamp{} // which the catalog takes for nothing
	})
	m.changed(d.Keys())
	m.mu.Unlock()
	if stamped {
		err = fmt.Errorf("%w: that of this node is, or was lately, more than %v ahead of most others, which would refuse what it changes: set it, and run NTP on every node", ukai.ErrClockSkew, maxSkew)
	}
	if d.IsEmpty() {
		return err
	}
	m.spread(d)
	if e := m.flush(m.ctx, true); e != nil && err == nil {
		err = fmt.Errorf("change made but not durable on this node: %w", e)
	}
	return err
}

// ahead says whether most of the peers that are alive would refuse a stamp of a time, at a moment of our wall clock. The caller holds m.mu.
func (m *Mesh) ahead(at, wall time.Time) bool {
	alive, behind := 0, 0
	for _, p := range m.members {
		if p.alive {
			alive++
			if at.Sub(wall.Add(p.skew)) > maxSkew {
				behind++
			}
		}
	}
	return 2*behind > alive
}

// View lets the function read the catalog. It must not change or keep it, block, or call the Mesh.
func (m *Mesh) View(look func(c *crdt.Catalog)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	look(m.catalog)
}

// Subscribe returns a channel that holds a token whenever the catalog or the membership has changed since the last was taken, and a
// function that ends the subscription. Many changes may share a token.
func (m *Mesh) Subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	m.mu.Lock()
	m.subs[c] = struct{}{}
	m.mu.Unlock()
	return c, func() {
		m.mu.Lock()
		delete(m.subs, c)
		m.mu.Unlock()
	}
}

// wakeSubscribers is called with m.mu held; it does not block.
func (m *Mesh) wakeSubscribers() {
	for c := range m.subs {
		wake(c)
	}
}

// changed notes that entries differ from what the journal has. The caller holds m.mu.
func (m *Mesh) changed(keys []crdt.Key) {
	if len(keys) == 0 {
		return
	}
	for _, k := range keys {
		m.dirty[k] = struct{}{}
	}
	m.roots.set(rootOf(m.catalog), time.Now())
	m.wakeSubscribers()
}

// rootOf is 8 bytes that are equal for equal catalogs: the XOR of the hashes of all entries.
func rootOf(c *crdt.Catalog) uint64 {
	root := uint64(0)
	for _, sum := range c.Digest() {
		root ^= sum
	}
	return root
}

// absorb merges what a peer sent and returns the keys of what changed. Entries with stamps from the future are left out, and so are disks
// not known here that come from an outdated peer; then whole is false.
func (m *Mesh) absorb(d crdt.Delta, outdated bool) (changed []crdt.Key, whole bool) {
	own := crdt.NodeKey(m.id)
	if slices.Contains(d.Keys(), own) {
		m.readOwn(d)
	}
	wall := m.cfg.Now()
	m.mu.Lock()
	d, whole = m.catalog.Screen(d, wall, outdated)
	changed, err := m.catalog.Merge(d, wall)
	_ = m.clock.Observe(m.catalog.Newest(), wall) // Merge has refused what the clock would refuse
	m.changed(changed)
	m.mu.Unlock()
	m.count.entriesMerged.Add(uint64(len(changed)))
	if slices.Contains(changed, own) {
		m.checkRetired()
	}
	if err != nil {
		m.complain(err)
	}
	return changed, whole && !errors.Is(err, ukai.ErrClockSkew)
}

// complain counts and logs what Merge refused.
func (m *Mesh) complain(err error) {
	if errors.Is(err, ukai.ErrClockSkew) {
		m.count.entriesSkewed.Add(1)
		m.quiet.warn("changes refused: a peer's clock is ahead", "error", err.Error())
	}
	if errors.Is(err, ukai.ErrCorrupt) {
		m.count.entriesConflicting.Add(1)
		m.quiet.write(errorLevel, "two records of one commit differ", "error", err.Error())
	}
}

// readOwn looks at what a peer has under this node's own key.
func (m *Mesh) readOwn(d crdt.Delta) {
	c := crdt.NewCatalog()
	if _, err := c.Merge(d, time.Time{}); err != nil {
		return // what cannot be merged is complained about when it is
	}
	n, ok := c.Node(m.id)
	if !ok {
		return
	}
	m.remembers("a peer", max(n.Boot, n.Info.Boot), n.Info.Seq)
	m.mu.Lock()
	twin := n.Info.Seq != 0 && n.Info.Seq == m.info.Seq && !sameInfo(n.Info, m.info)
	m.mu.Unlock()
	if twin {
		m.setTwin("at " + n.Info.Addr)
	}
}

// recall takes in what a peer remembers of this node; zeros if nothing.
func (m *Mesh) recall(peer ukai.NodeID, boot, seq uint64) {
	m.remembers("node "+peer.Short(), boot, seq)
	m.setRecalled()
}

// remembers holds what somebody knows of this node against what its database says. If that is an old copy, promises this node made are lost.
func (m *Mesh) remembers(who string, boot, seq uint64) {
	if m.report().olderThan(boot, seq) {
		m.setQuarantined(who, boot, seq)
	}
}

func (m *Mesh) setQuarantined(who string, boot, seq uint64) {
	m.isolate(fmt.Errorf("%w: %s remembers boot %d, publication %d of this node, the database here only boot %d, publication %d: "+
		"it was restored from an old copy, or another node runs with the same identity; retire this node and let it join anew with an empty data directory",
		ukai.ErrQuarantined, who, boot, seq, m.loaded.Boot, m.loaded.Seq))
}

// setTwin is called when another node turns out to be in the same life of this identity: boots are counted durably, so two nodes with
// one identity and one boot are two copies of one database. Neither knows what the other promised.
func (m *Mesh) setTwin(where string) {
	m.isolate(fmt.Errorf("%w: another node runs with the identity of this one, %s: its data directory is a copy of this one or this one of it; "+
		"stop both, retire this identity and let each join anew with an empty data directory", ukai.ErrQuarantined, where))
}

// checkRetired isolates this node if the catalog says that it was retired: others have given up what it holds, and take nothing from it.
func (m *Mesh) checkRetired() {
	m.mu.Lock()
	n, ok := m.catalogNode(m.id)
	m.mu.Unlock()
	if ok && n.Retired {
		m.isolate(fmt.Errorf("%w: node %s was retired, for good: the mesh does without what it stores, and does not let it in again; "+
			"to use this machine, empty its data directory or give it another, and start it as a new node", ukai.ErrQuarantined, m.id.Short()))
	}
}

func (m *Mesh) isolate(err error) {
	if m.quarantine.CompareAndSwap(nil, &err) {
		m.log.Error("this node must not serve", "error", err)
		m.mu.Lock()
		m.wakeSubscribers()
		m.mu.Unlock()
	}
}

// Quarantined returns nil, or, once a peer has proved that this node's database is an old copy or has told that the node was retired, an error
// that matches ukai.ErrQuarantined. Such a node must not serve as arbiter or replica: it has forgotten promises, or others count on its being
// gone. One with an old copy stays a member, so that status can show it.
func (m *Mesh) Quarantined() error {
	if err := m.quarantine.Load(); err != nil {
		return *err
	}
	return nil
}

// Recalled is closed once a peer has told what it remembers of this node, or at once if nobody can remember it: at its first start, and if it
// knows neither seeds, other than itself, nor peers. Before that Quarantined says nothing, and the node must not serve.
func (m *Mesh) Recalled() <-chan struct{} { return m.recalled }

func (m *Mesh) setRecalled() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isRecalled() {
		close(m.recalled)
	}
}

func (m *Mesh) isRecalled() bool {
	select {
	case <-m.recalled:
		return true
	default:
		return false
	}
}

// Publish changes what this node says of itself, and tells everybody if it is different then. The function must not block or call the
// Mesh; Seq, Boot and Addr are not its to change. Publications are durable first.
func (m *Mesh) Publish(ctx context.Context, edit func(info *crdt.NodeInfo)) error {
	select {
	case m.publishing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-m.ctx.Done():
		return ukai.ErrClosed
	}
	defer func() { <-m.publishing }()
	if m.closing.Load() {
		return ukai.ErrClosed
	}
	if err := m.Quarantined(); err != nil {
		return err
	}
	m.mu.Lock()
	old := m.info
	info := old
	edit(&info)
	info.Seq, info.Boot, info.Addr = old.Seq, m.boot, m.advertise.String()
	seq := m.seq + 1
	m.mu.Unlock()
	if old.Seq != 0 && sameInfo(old, info) {
		return nil
	}
	info.Seq = seq
	if err := m.writeSelf(ctx, self{Boot: m.boot, Seq: seq}); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	m.mu.Lock()
	m.seq = seq
	d, err := m.catalog.PutNode(m.id, info)
	if err == nil {
		m.info = info
	}
	m.changed(d.Keys())
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	m.count.publishes.Add(1)
	m.spread(d)
	return nil
}

func sameInfo(a, b crdt.NodeInfo) bool {
	p, errP := codec.Marshal(a)
	q, errQ := codec.Marshal(b)
	return errP == nil && errQ == nil && string(p) == string(q)
}

// catalogNode is Catalog.Node; the caller holds m.mu.
func (m *Mesh) catalogNode(id ukai.NodeID) (*crdt.Node, bool) { return m.catalog.Node(id) }

// entries divides d into deltas of one entry each.
func entries(d crdt.Delta) []crdt.Delta {
	keys := d.Keys()
	if len(keys) < 2 {
		return []crdt.Delta{d}[:len(keys)]
	}
	c := crdt.NewCatalog()
	_, _ = c.Merge(d, time.Time{}) // what contradicts itself is dealt with where it is absorbed
	list := make([]crdt.Delta, 0, len(keys))
	for _, k := range keys {
		list = append(list, c.Extract([]crdt.Key{k}))
	}
	return list
}

// eachPiece calls f with the entries of these keys in pieces that fit frames, at least once; more says that another piece follows.
func (m *Mesh) eachPiece(keys []crdt.Key, f func(piece []byte, more bool) error) error {
	var last []byte
	for part := range slices.Chunk(keys, 64) { // so that the lock is held briefly
		m.mu.Lock()
		d := m.catalog.Extract(part)
		m.mu.Unlock()
		for _, piece := range d.Split(deltaPiece) {
			b, err := piece.MarshalBinary()
			if err != nil {
				return err
			}
			if last != nil {
				if err := f(last, true); err != nil {
					return err
				}
			}
			last = b
		}
	}
	if last == nil {
		var err error
		if last, err = (crdt.Delta{}).MarshalBinary(); err != nil {
			return err
		}
	}
	return f(last, false)
}

// noteClock keeps how far a peer's clock is from ours. The peer read it rtt/2 ago; 0 means that nobody measured.
func (m *Mesh) noteClock(id ukai.NodeID, wall int64, rtt time.Duration) {
	if rtt == 0 {
		rtt, _, _ = m.RTT(id)
	}
	skew := time.UnixMilli(wall).Sub(m.cfg.Now().Add(-rtt / 2))
	m.mu.Lock()
	p := m.members[id]
	if p != nil {
		p.skew = skew
	}
	m.mu.Unlock()
	if p != nil && skew > maxSkew {
		m.quiet.warn("a peer's clock is ahead: changes it stamps are refused; check NTP on both", "peer", id.Short(), "ahead", skew.Round(time.Millisecond))
	}
}
