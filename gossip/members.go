package gossip

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/coordinate"

	"ukai"
	"ukai/crdt"
)

// State is what gossip thinks of a node. It is an opinion: it starts timers and planning, it never fences or elects.
type State uint8

// States of a member.
const (
	Alive   State = iota
	Suspect       // did not answer lately; somebody still has to hear from it
	Dead          // was not heard of for long, by anybody; it is looked for
	Left          // said that it leaves, or was retired; it is not looked for
)

// String returns the word that status shows.
func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Suspect:
		return "suspect"
	case Dead:
		return "dead"
	case Left:
		return "left"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText makes states readable in JSON and YAML.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Member is a node as this node sees it.
type Member struct {
	ID    ukai.NodeID
	Name  string // from the catalog; "" until that has come
	Addr  netip.AddrPort
	State State
	Since time.Time     // of State; when it was last seen, if it has not been alive since Open; zero if never
	Self  bool          // it is this node
	RTT   time.Duration // smoothed; 0 if not measured
	P99   time.Duration
	Skew  time.Duration // how far its clock is ahead of ours, to a few milliseconds; negative: behind
	// Refused says that its clock is so far ahead that changes it stamps are not taken.
	Refused bool
}

// member is a peer in the table; m.mu guards it.
type member struct {
	id      ukai.NodeID
	addr    netip.AddrPort
	boot    uint64
	alive   bool // memberlist has it as alive or suspect
	suspect bool
	since   time.Time
	seen    time.Time
	skew    time.Duration
	place   *coordinate.Coordinate // newest heard; replaced, never changed

	changed bool      // the journal has something else
	written time.Time // when the journal was last told
	forget  bool      // to be removed from the journal and the table

	equal     int64     // Unix milliseconds of our wall clock: then this catalog had all that its had; 0 if never
	fruitless int       // exchanges in a row that changed nothing on either side though roots differed
	resting   time.Time // no exchange before then
}

// Members returns all nodes this node knows of, itself first, then by id: those it has met, now or in an earlier life, and those of
// the catalog it never met, which are Dead with a zero Since.
func (m *Mesh) Members() []Member {
	m.mu.Lock()
	list := make([]Member, 0, len(m.members)+1)
	for id, p := range m.members {
		if !p.forget {
			list = append(list, m.describe(id, p))
		}
	}
	for n := range m.catalog.Nodes() {
		if n.ID == m.id || m.members[n.ID] != nil {
			continue
		}
		addr, _ := netip.ParseAddrPort(n.Info.Addr) // zero if it has none
		e := Member{ID: n.ID, Name: n.Info.Name, Addr: addr, State: Dead}
		if n.Retired || hasLeft(n) {
			e.State = Left
		}
		list = append(list, e)
	}
	me := Member{ID: m.id, Name: m.info.Name, Addr: m.advertise, Since: m.opened, Self: true}
	if m.leaving {
		me.State = Left
	}
	m.mu.Unlock()
	for i := range list {
		list[i].RTT, list[i].P99, _ = m.RTT(list[i].ID)
	}
	slices.SortFunc(list, func(a, b Member) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return slices.Insert(list, 0, me)
}

// describe makes a Member of p; the caller holds m.mu.
func (m *Mesh) describe(id ukai.NodeID, p *member) Member {
	e := Member{ID: id, Addr: p.addr, State: Alive, Since: p.since, Skew: p.skew, Refused: p.skew > maxSkew}
	switch {
	case p.alive && p.suspect:
		e.State = Suspect
	case p.alive:
	case m.gone(id, p):
		e.State = Left
	default:
		e.State = Dead
	}
	if n, ok := m.catalogNode(id); ok {
		e.Name = n.Info.Name
	}
	return e
}

// gone says whether a peer that is not alive left in good order or was retired. The caller holds m.mu.
func (m *Mesh) gone(id ukai.NodeID, p *member) bool {
	n, ok := m.catalogNode(id)
	return ok && (n.Retired || n.Info.Boot >= p.boot && hasLeft(n))
}

// hasLeft says whether the last that a node said of itself is that it leaves.
func hasLeft(n *crdt.Node) bool {
	left, _, err := parsePlace(n.Info.Coordinate)
	return err == nil && left
}

// Addr returns where a node listens: as membership has it, else as the catalog does.
func (m *Mesh) Addr(id ukai.NodeID) (net.Addr, bool) {
	addr, ok := m.addrPort(id)
	if !ok {
		return nil, false
	}
	return net.UDPAddrFromAddrPort(addr), true
}

func (m *Mesh) addrPort(id ukai.NodeID) (netip.AddrPort, bool) {
	if id == m.id {
		return m.advertise, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.members[id]
	if p != nil && p.alive {
		return p.addr, true
	}
	if n, ok := m.catalogNode(id); ok {
		if addr, err := netip.ParseAddrPort(n.Info.Addr); err == nil {
			return addr, true
		}
	}
	if p != nil {
		return p.addr, true
	}
	return netip.AddrPort{}, false
}

// alivePeers returns the peers that are alive, in no order.
func (m *Mesh) alivePeers() []ukai.NodeID {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids := make([]ukai.NodeID, 0, len(m.members))
	for id, p := range m.members {
		if p.alive {
			ids = append(ids, id)
		}
	}
	return ids
}

// What a node says of itself in memberlist's messages: version and boot.
const metaVersion = 1

func appendMeta(b []byte, boot uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, metaVersion), boot)
}

func parseMeta(b []byte) (boot uint64, err error) {
	if len(b) < 9 || b[0] != metaVersion {
		return 0, fmt.Errorf("node meta %x: %w: want version %d and 8 bytes of boot", b[:min(len(b), 16)], ukai.ErrInvalid, metaVersion)
	}
	return binary.BigEndian.Uint64(b[1:]), nil
}

// membership receives what memberlist has to say about nodes. memberlist holds its own lock in each of these calls.
type membership struct{ m *Mesh }

// NotifyAlive refuses nodes that cannot be members.
func (e membership) NotifyAlive(n *memberlist.Node) error {
	id, boot, err := parseNode(n)
	if err != nil {
		e.m.count.messagesRefused.Add(1)
		return err
	}
	return e.m.heardOf(id, boot, addrOfMember(n))
}

// heardOf is told of every message that says that a node is alive.
func (m *Mesh) heardOf(id ukai.NodeID, boot uint64, addr netip.AddrPort) error {
	if id == m.id {
		switch {
		case boot > m.boot:
			m.setQuarantined("a peer", boot, 0)
		case boot == m.boot && addr != netip.AddrPortFrom(m.advertise.Addr().WithZone(""), m.advertise.Port()): // zones are not gossiped
			m.setTwin("at " + addr.String())
		}
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n, ok := m.catalogNode(id); ok && n.Retired {
		return fmt.Errorf("node %s (%s) at %v: %w: it was retired; empty its data directory or give it another, and start it as a new node", n.Info.Name, id.Short(), addr, ukai.ErrPermission)
	}
	return nil
}

// NotifyJoin is told when a node comes to life.
func (e membership) NotifyJoin(n *memberlist.Node) { e.m.update(n, true) }

// NotifyUpdate is told when what a node says of itself changes.
func (e membership) NotifyUpdate(n *memberlist.Node) { e.m.update(n, true) }

// NotifyLeave is told when a node has left or is held for dead; the catalog tells which.
func (e membership) NotifyLeave(n *memberlist.Node) { e.m.update(n, false) }

func (m *Mesh) update(n *memberlist.Node, alive bool) {
	id, boot, err := parseNode(n)
	if err != nil || id == m.id {
		return
	}
	addr := addrOfMember(n)
	now := time.Now()
	m.shown.Store(true)
	m.links.add(id)
	m.mu.Lock()
	p := m.members[id]
	if p == nil {
		p = &member{id: id}
		m.members[id] = p
		m.dropOldest()
	}
	if p.alive != alive || p.since.IsZero() {
		if p.alive != alive {
			m.alive.Add(map[bool]int64{true: 1, false: -1}[alive])
		}
		p.alive, p.since = alive, now
	}
	if alive && !m.isRecalled() {
		if t := m.plan(id); t != nil { // it may remember something
			t.ask, t.due = true, now
			m.wakeRepairs()
		}
	}
	p.suspect, p.forget, p.changed = false, false, true
	p.fruitless, p.resting = 0, time.Time{}
	p.seen, p.addr, p.boot = now, addr, max(p.boot, boot)
	m.wakeSubscribers()
	m.mu.Unlock()
	if !alive {
		m.vivaldi.ForgetNode(n.Name)
	}
	m.wakeJoiner()
}

func addrOfMember(n *memberlist.Node) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(ip.Unmap(), n.Port)
}

func parseNode(n *memberlist.Node) (ukai.NodeID, uint64, error) {
	id, err := ukai.ParseNodeID(n.Name)
	if err != nil {
		return id, 0, fmt.Errorf("member: %w", err)
	}
	ip, ok := netip.AddrFromSlice(n.Addr)
	if !ok || ip.IsUnspecified() || n.Port == 0 {
		return id, 0, fmt.Errorf("member %s at %v:%d: %w: not an address to send to", id.Short(), n.Addr, n.Port, ukai.ErrInvalid)
	}
	boot, err := parseMeta(n.Meta)
	return id, boot, err
}

// NotifyConflict is told when two nodes with one identity but different addresses are in the mesh.
func (e membership) NotifyConflict(existing, other *memberlist.Node) {
	e.m.quiet.warn("two addresses claim one identity", "node", existing.Name, "known", existing.Address(), "other", other.Address())
}
