package node

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/gossip"
	"ukai/node/admin"
	"ukai/node/place"
	"ukai/node/volume"
)

// nodeByName finds a node by its name, or by its id in 32 hexadecimal digits.
func nodeByName(c *crdt.Catalog, name string) (*crdt.Node, error) {
	switch found := c.NodesByName(name); len(found) {
	case 1:
		return found[0], nil
	case 0:
	default:
		ids := make([]string, len(found))
		for i, n := range found {
			ids[i] = n.ID.String()
		}
		return nil, fmt.Errorf("node %q: %w: %d nodes have that name; use an id: %s", name, ukai.ErrInvalid, len(found), strings.Join(ids, ", "))
	}
	if id, err := ukai.ParseNodeID(name); err == nil {
		if n, ok := c.Node(id); ok && !n.Retired {
			return n, nil
		}
	}
	return nil, fmt.Errorf("node %q: %w; `ukai-node status` lists the nodes", name, ukai.ErrNotFound)
}

// diskByName finds a disk by its name, or by its id in 32 hexadecimal digits. A removed disk is found by its id, and with removed
// by the name it had.
func diskByName(c *crdt.Catalog, name string, removed bool) (*crdt.Disk, error) {
	found := c.DisksByName(name)
	if removed {
		found = c.RemovedByName(name)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
	default:
		ids := make([]string, len(found))
		for i, d := range found {
			ids[i] = d.ID.String()
		}
		return nil, fmt.Errorf("disk %q: %w: %d disks have that name; use an id, and rename one: %s", name, ukai.ErrInvalid, len(found), strings.Join(ids, ", "))
	}
	if id, err := ukai.ParseDiskID(name); err == nil {
		if d, ok := c.Disk(id); ok && !d.Deleted() {
			return d, nil
		}
	}
	if gone := c.RemovedByName(name); !removed && len(gone) > 0 {
		return nil, fmt.Errorf("disk %q: %w: it was removed; get it back with: ukai-node disk restore %s", name, ukai.ErrNotFound, name)
	}
	if d, at, ok := pastByName(c, name); ok {
		return nil, fmt.Errorf("%q: %w: it is a history that disk %s does not go on with, and can only be read, picked (ukai-node disk pick %[3]s %[4]s) or given up (ukai-node disk discard %[3]s %[4]s)",
			name, ukai.ErrPermission, d.Name.Value, d.View[at].Tip())
	}
	what := "`ukai-node disk ls` lists the disks"
	if removed {
		what = "`ukai-node disk ls --removed` lists those that can be restored"
	}
	return nil, fmt.Errorf("disk %q: %w; %s", name, ukai.ErrNotFound, what)
}

// people is a consistent look at the nodes: what the catalog says of them, what membership thinks, and what they told if they were asked.
type people struct {
	nodes   map[ukai.NodeID]*crdt.Node
	members map[ukai.NodeID]gossip.Member
	unmet   map[ukai.NodeID]time.Time     // since when those are known that were never met, see unmet
	up      time.Time                     // since when this node is
	told    map[ukai.DiskID]volume.Status // by those who hold disks or look after them, see hear
	space   map[ukai.ReplicaID]int64      // bytes, as nodes told that were asked, see measure
	repair  time.Duration                 // after which a node that is down is done without; negative: never
}

func (n *Node) people() people {
	p := people{nodes: map[ukai.NodeID]*crdt.Node{}, members: map[ukai.NodeID]gossip.Member{}, repair: n.repairAfter()}
	for _, m := range n.mesh.Members() {
		p.members[m.ID] = m
		if m.Self {
			p.up = m.Since
		}
	}
	p.unmet = n.unmet.look(p.members, time.Now())
	n.mesh.View(func(c *crdt.Catalog) {
		for node := range c.Nodes() {
			p.nodes[node.ID] = node
		}
	})
	return p
}

// name returns a node's name, "" if it was never heard of.
func (p people) name(id ukai.NodeID) string {
	if n, ok := p.nodes[id]; ok {
		return n.Info.Name
	}
	return p.members[id].Name
}

func (p people) ref(id ukai.NodeID) admin.NodeRef { return admin.NodeRef{ID: id, Name: p.name(id)} }

func (p people) labels(id ukai.NodeID) ukai.Labels {
	if n, ok := p.nodes[id]; ok {
		return n.LabelSet()
	}
	return nil
}

func (p people) state(id ukai.NodeID) admin.NodeState {
	m, ok := p.members[id]
	if !ok {
		return admin.NodeDead
	}
	return admin.NodeState(m.State.String())
}

func (p people) alive(id ukai.NodeID) bool {
	m, ok := p.members[id]
	return ok && (m.State == gossip.Alive || m.State == gossip.Suspect)
}

// since returns since when a node is in the state that membership has it in, zero if it was never heard of.
func (p people) since(id ukai.NodeID) time.Time {
	if at := p.members[id].Since; !at.IsZero() {
		return at
	}
	return p.unmet[id]
}

// missed returns since when this node has missed another that is down, zero if it was never heard of: since it was last seen, but not since before this node
// came up, which knows nothing of that time. Machines that lost their power together come back one after the other, and the first are not to do without the rest.
func (p people) missed(id ukai.NodeID) time.Time {
	at := p.since(id)
	if !at.IsZero() && at.Before(p.up) {
		return p.up
	}
	return at
}

// unmet notes when nodes came to be known here that membership has never met: they died before this node joined. Nobody here can tell when, but after
// that they were not seen either, so that what waits for them does not wait for ever.
type unmet struct {
	mu   sync.Mutex
	seen map[ukai.NodeID]time.Time
}

// look takes in what membership says now, and returns what has been noted.
func (u *unmet) look(members map[ukai.NodeID]gossip.Member, now time.Time) map[ukai.NodeID]time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	seen := map[ukai.NodeID]time.Time{}
	for id, m := range members {
		if !m.Self && m.Since.IsZero() {
			if seen[id] = now; !u.seen[id].IsZero() {
				seen[id] = u.seen[id]
			}
		}
	}
	u.seen = seen
	return seen
}

// abandoned says whether a disk's holder has been retired, or down for so long that what it has is made anew elsewhere. Then others look after the
// disk as if nobody held it: a copy may be missing, or a relocation half done, and no program may ever open the disk again. As always a majority of
// the arbiters must hold the holder for dead before anybody takes the disk from it, and a reader elsewhere would have done that long ago.
func (p people) abandoned(rec crdt.Record) bool {
	if rec.Phase != crdt.PhaseActive && rec.Phase != crdt.PhaseRecovering || p.alive(rec.Holder) {
		return false
	}
	if n, known := p.nodes[rec.Holder]; known && n.Retired {
		return true
	}
	since := p.missed(rec.Holder)
	return p.repair > 0 && !since.IsZero() && time.Since(since) >= p.repair
}

// candidates returns the nodes as the planner sees them.
func (p people) candidates() []place.Node {
	var list []place.Node
	for id, n := range p.nodes {
		if n.Retired {
			continue
		}
		c := place.Node{
			ID: id, Name: n.Info.Name, Labels: n.LabelSet(),
			CapacityBytes: n.Info.CapacityBytes, FreeBytes: n.Info.FreeBytes, ReserveBytes: n.Info.ReserveBytes,
			Witness: n.IsWitness(), Drain: n.Drain.Value, NoNew: n.NoNew.Value, Alive: p.alive(id),
		}
		if !c.Alive {
			c.DownSince, c.LastSeen = p.missed(id), p.since(id)
		}
		list = append(list, c)
	}
	return list
}
