package node

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/gossip"
	"ukai/node/admin"
	"ukai/node/wire"
)

var _ admin.Backend = (*Node)(nil)

// Self implements admin.Backend.
func (n *Node) Self(context.Context) (admin.Self, error) {
	s := admin.Self{
		ID: n.id, Name: n.cfg.Name, Version: n.cfg.Version, Go: runtime.Version(), Mesh: n.cfg.Keys[0].ID(),
		DataDir: n.cfg.DataDir, MountDir: n.cfg.MountDir, PID: os.Getpid(), Started: n.started,
	}
	if addr, ok := n.mesh.Addr(n.id); ok {
		s.Address = addr.String()
	}
	s.Labels = n.people().labels(n.id)
	return s, nil
}

// Status implements admin.Backend.
func (n *Node) Status(ctx context.Context) (admin.Status, error) {
	people := n.people()
	s := admin.Status{Node: n.cfg.Name, Mesh: n.cfg.Keys[0].ID(), Time: time.Now(), Health: admin.Fine}
	replicas := map[ukai.NodeID]int{}
	var disks []*crdt.Disk
	n.mesh.View(func(c *crdt.Catalog) {
		for d := range c.Disks() {
			if d.Live() {
				disks = append(disks, d)
			}
		}
	})
	n.hear(ctx, &people, disks...)
	for _, d := range disks {
		rec, ok := d.Record()
		if !ok {
			continue
		}
		for _, id := range nodesOf(&rec) {
			replicas[id]++
		}
	}
	for id := range people.nodes {
		if node, ok := n.describeNode(people, id); ok {
			node.Replicas = replicas[id]
			s.Nodes = append(s.Nodes, node)
			s.Warnings = append(s.Warnings, n.nodeWarnings(people, node)...)
		}
	}
	slices.SortFunc(s.Nodes, func(a, b admin.Node) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), slices.Compare(a.ID[:], b.ID[:]))
	})
	s.RTTs = n.rtts(people, s.Nodes)
	for _, d := range disks {
		n.count(people, d, &s)
	}
	if len(n.cfg.Seeds) > 0 && len(s.Nodes) == 1 {
		s.Warnings = append(s.Warnings, admin.Warning{Level: admin.Warn, Code: "alone", Node: n.cfg.Name,
			Text:   fmt.Sprintf("node %s has reached none of its seeds (%s), and is alone in a mesh", n.cfg.Name, strings.Join(n.cfg.Seeds, ", ")),
			Remedy: "see its log; the nodes need the same mesh key (ukai-node mesh show), and UDP must pass between them"})
	}
	if err := n.mesh.Quarantined(); err != nil {
		s.Warnings = append(s.Warnings, admin.Warning{Level: admin.Critical, Code: "quarantined", Node: n.cfg.Name, Text: err.Error(),
			Remedy: "start this node with an empty data directory, as a new node"})
	}
	sortWarnings(s.Warnings)
	if len(s.Warnings) > 0 {
		s.Health = s.Warnings[0].Level
	}
	return s, nil
}

func rank(l admin.Level) int {
	return slices.Index([]admin.Level{admin.Critical, admin.Warn, admin.Notice, admin.Fine}, l)
}

func sortWarnings(list []admin.Warning) {
	slices.SortStableFunc(list, func(a, b admin.Warning) int {
		return cmp.Or(rank(a.Level)-rank(b.Level), strings.Compare(a.Disk, b.Disk), strings.Compare(a.Node, b.Node), strings.Compare(a.Code, b.Code))
	})
}

func (n *Node) describeNode(p people, id ukai.NodeID) (admin.Node, bool) {
	node, ok := p.nodes[id]
	if !ok || node.Retired || node.Info.IsZero() {
		return admin.Node{}, false
	}
	m := p.members[id]
	return admin.Node{
		ID: id, Name: node.Info.Name, Labels: node.LabelSet(), Address: node.Info.Addr, State: p.state(id), Since: m.Since,
		Version: node.Info.Version, Self: id == n.id, Witness: node.IsWitness(), Drain: node.Drain.Value, NoNew: node.NoNew.Value,
		CapacityBytes: node.Info.CapacityBytes, FreeBytes: node.Info.FreeBytes, ReserveBytes: node.Info.ReserveBytes,
		ClockSkewMillis: m.Skew.Milliseconds(),
	}, true
}

// nearlyFull is the share of the usable space, in percent, below which a node's free space is worth a warning.
const nearlyFull = 10

func (n *Node) nodeWarnings(p people, node admin.Node) (list []admin.Warning) {
	warn := func(level admin.Level, code, remedy, format string, args ...any) {
		list = append(list, admin.Warning{Level: level, Code: code, Node: node.Name, Text: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	switch node.State {
	case admin.NodeDead:
		warn(admin.Warn, "node-dead", "start it, or see what depends on it: ukai-node disk ls", "node %s does not answer", node.Name)
	case admin.NodeSuspect:
		warn(admin.Notice, "node-suspect", "", "node %s did not answer lately", node.Name)
	case admin.NodeAlive, admin.NodeLeft:
	}
	if m, ok := p.members[node.ID]; ok && m.Refused {
		warn(admin.Critical, "clock-skew", "set its clock; run NTP on every node", "the clock of %s is %v ahead: what it changes is not taken over", node.Name, m.Skew.Round(time.Second))
	} else if ok && (m.Skew > 10*time.Second || m.Skew < -10*time.Second) {
		warn(admin.Warn, "clock-skew", "run NTP on every node", "the clock of %s differs from ours by %v", node.Name, m.Skew.Round(time.Second))
	}
	if usable := node.CapacityBytes - node.ReserveBytes; !node.Witness && node.CapacityBytes > 0 {
		switch free := node.FreeBytes - node.ReserveBytes; {
		case free <= 0:
			warn(admin.Critical, "node-full", "free space on it, or move replicas elsewhere", "node %s has reached its reserve: its replicas take no new data", node.Name)
		case free < usable/100*nearlyFull:
			warn(admin.Warn, "node-nearly-full", "free space on it, or place new disks elsewhere", "node %s has %d %% of its space left", node.Name, free*100/max(1, usable))
		}
	}
	var same []string
	for id, other := range p.nodes {
		if !other.Retired && id != node.ID && other.Info.Name == node.Name {
			same = append(same, id.Short())
		}
	}
	if len(same) > 0 {
		warn(admin.Warn, "node-name", "give each node its own name", "%d nodes are called %s", len(same)+1, node.Name)
	}
	return list
}

// rtts returns each pair's round-trip time once.
func (n *Node) rtts(p people, nodes []admin.Node) []admin.RTT {
	list := []admin.RTT{}
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			rtt := admin.RTT{From: a.Name, To: b.Name}
			other := b.ID
			if b.Self {
				other = a.ID
			}
			if a.Self || b.Self {
				ewma, p99, ok := n.mesh.RTT(other)
				rtt.RTTMicros, rtt.P99Micros, rtt.Measured = ewma.Microseconds(), p99.Microseconds(), ok
			}
			if !rtt.Measured {
				estimate, ok := n.mesh.Estimate(a.ID, b.ID)
				if !ok {
					continue
				}
				rtt.RTTMicros = estimate.Microseconds()
			}
			list = append(list, rtt)
		}
	}
	return list
}

// count adds a disk to a status.
func (n *Node) count(p people, d *crdt.Disk, s *admin.Status) {
	s.Disks.Total++
	warn := func(level admin.Level, code, remedy, format string, args ...any) {
		s.Warnings = append(s.Warnings, admin.Warning{Level: level, Code: code, Disk: d.Name.Value, Text: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if d.Conflict() {
		warn(admin.Critical, "disk-conflict", "ukai-node disk pick "+d.Name.Value, "disk %s has %d histories after forced takeovers", d.Name.Value, len(d.View))
		return
	}
	rec, ok := d.Record()
	if !ok {
		return
	}
	s.Disks.SizeBytes += rec.Size
	disk := n.describe(p, d.Name.Value, rec, wishOf(d))
	if disk.Holder != nil {
		s.Disks.Attached++
	}
	if disk.State == admin.DiskSuspended {
		s.Disks.Suspended++
		warn(admin.Critical, "disk-suspended", "", "I/O of disk %s waits: %s", disk.Name, disk.Why)
	}
	if disk.State == admin.DiskFailed {
		warn(admin.Critical, "disk-failed", "", "I/O of disk %s fails: %s", disk.Name, disk.Why)
	}
	degraded := !disk.RuleMet
	for _, r := range disk.Replicas {
		if r.Role == admin.InSync {
			continue
		}
		degraded = true
		level := admin.Warn
		if r.Role == admin.Syncing {
			level = admin.Notice
		}
		warn(level, "replica-"+string(r.Role), "", "disk %s: its replica on %s is %s%s", disk.Name, r.Node, r.Role, absence(r))
	}
	if degraded {
		s.Disks.Degraded++
	}
	s.Warnings = slices.Concat(s.Warnings, disk.Warnings, rottenDisk(d))
}

// absence tells why a replica is not in sync, since when and how far it is, as far as that is known.
func absence(r admin.Replica) (text string) {
	if !r.Since.IsZero() {
		text += " since " + r.Since.UTC().Format(time.DateTime+" MST")
	}
	if r.Percent > 0 {
		text += fmt.Sprintf(", %d %%", r.Percent)
	}
	if r.ETASeconds > 0 {
		text += fmt.Sprintf(", in sync in about %v", time.Duration(r.ETASeconds)*time.Second)
	}
	if r.BehindBytes > 0 {
		text += fmt.Sprintf(", %d bytes to compare and copy", r.BehindBytes)
	}
	if r.Why != "" && r.Role != admin.Syncing {
		text += ": " + r.Why
	}
	return text
}

// nodesOf returns the nodes with a replica of a disk, each once.
func nodesOf(rec *crdt.Record) []ukai.NodeID {
	var ids []ukai.NodeID
	for _, g := range rec.Groups {
		for _, m := range g.Members {
			if !slices.Contains(ids, m.Node) {
				ids = append(ids, m.Node)
			}
		}
	}
	return ids
}

// ChangeNode implements admin.Backend.
func (n *Node) ChangeNode(_ context.Context, node string, change admin.NodeChange) (admin.NodeChanged, error) {
	for k, v := range change.Set {
		if err := ukai.CheckLabel(k, v); err != nil {
			return admin.NodeChanged{}, err
		}
	}
	for _, k := range change.Unset {
		if err := ukai.CheckLabel(k, "x"); err != nil {
			return admin.NodeChanged{}, err
		}
		if _, both := change.Set[k]; both {
			return admin.NodeChanged{}, fmt.Errorf("label %s: %w: it is both set and removed", k, ukai.ErrInvalid)
		}
	}
	var id ukai.NodeID
	err := n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (all crdt.Delta, err error) {
		found, err := nodeByName(c, node)
		if err != nil {
			return all, err
		}
		id = found.ID
		do := func(d crdt.Delta, e error) {
			if err == nil {
				err = e
			}
			all = all.Join(d)
		}
		for k, v := range change.Set {
			do(c.SetLabel(id, k, &v, stamp()))
		}
		for _, k := range change.Unset {
			do(c.SetLabel(id, k, nil, stamp()))
		}
		for role, on := range map[crdt.NodeRole]*bool{crdt.RoleDrain: change.Drain, crdt.RoleNoNew: change.NoNew, crdt.RoleWitness: change.Witness} {
			if on != nil {
				do(c.SetRole(id, role, *on, stamp()))
			}
		}
		return all, err
	})
	if err != nil {
		return admin.NodeChanged{}, err
	}
	people := n.people()
	described, _ := n.describeNode(people, id)
	out := admin.NodeChanged{Node: described}
	out.Warnings = n.unmetOn(people, id)
	return out, nil
}

// unmetOn tells which disks with a replica on a node have rules that are not met.
func (n *Node) unmetOn(p people, id ukai.NodeID) (list []admin.Warning) {
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) {
		if !slices.Contains(nodesOf(&rec), id) {
			return
		}
		for _, w := range n.describe(p, d.Name.Value, rec, wishOf(d)).Warnings {
			if w.Code == "rule-unmet" {
				list = append(list, w)
			}
		}
	})
	return list
}

// eachLive calls f for every disk that is neither removed nor in conflict, outside the catalog's lock.
func (n *Node) eachLive(f func(*crdt.Disk, crdt.Record)) {
	var all []*crdt.Disk
	n.mesh.View(func(c *crdt.Catalog) {
		for d := range c.Disks() {
			if d.Live() {
				all = append(all, d)
			}
		}
	})
	for _, d := range all {
		if rec, ok := d.Record(); ok {
			f(d, rec)
		}
	}
}

// Leave implements admin.Backend.
func (n *Node) Leave(ctx context.Context, l admin.Leave) (admin.Leaving, error) {
	p := n.people()
	out := admin.Leaving{Node: p.ref(n.id)}
	var refusals []string
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) {
		if n.letGo(ctx, d) != nil {
			refusals = append(refusals, fmt.Sprintf("disk %s is attached here", d.Name.Value))
		}
		for _, g := range rec.Groups {
			mine, others := false, 0
			for _, m := range g.InSync() {
				switch {
				case m.Node == n.id:
					mine = true
				case p.alive(m.Node):
					others++
				}
			}
			if mine && others == 0 {
				refusals = append(refusals, fmt.Sprintf("disk %s has its last in-sync replica here", d.Name.Value))
			} else if mine {
				out.Warnings = append(out.Warnings, admin.Warning{Level: admin.Warn, Code: "disk-degraded", Disk: d.Name.Value,
					Text: fmt.Sprintf("disk %s has %d in-sync replicas while this node is away", d.Name.Value, others)})
			}
		}
	})
	if len(refusals) > 0 && !l.Force {
		return out, &declined{"leave: " + strings.Join(refusals, "; ") + "; stop what uses it, bring other replicas in sync, or say --force"}
	}
	n.leave.Do(func() { close(n.leaving) })
	return out, nil
}

// declined is ukai.ErrRejected by this node itself, not by a quorum record.
type declined struct{ text string }

func (d *declined) Error() string { return d.text }
func (d *declined) Unwrap() error { return ukai.ErrRejected }

// Events implements admin.Backend.
func (n *Node) Events(ctx context.Context) (<-chan admin.Event, error) {
	return n.events.listen(ctx, n.ctx, n.spawn), nil
}

// Counters implements admin.Backend.
func (n *Node) Counters() map[string]uint64 {
	all := map[string]uint64{
		"ukai_cell_requests_sent_total":   n.cells.proposals.Load(),
		"ukai_cell_requests_served_total": n.cells.served.Load(),
	}
	for _, more := range []map[string]uint64{n.wire.Counters(), n.mesh.Counters(), n.host.Counters()} {
		for k, v := range more {
			all[k] = v
		}
	}
	return all
}

// Gauges implements admin.Backend.
func (n *Node) Gauges() map[string]float64 {
	all := map[string]float64{}
	if s, err := n.store.Space(); err == nil {
		all["ukai_store_capacity_bytes"], all["ukai_store_free_bytes"], all["ukai_store_reserve_bytes"] = float64(s.Total), float64(s.Free), float64(s.Reserve)
	}
	states := map[gossip.State]int{}
	for _, m := range n.mesh.Members() {
		states[m.State]++
		if !m.Self && m.Name != "" && m.RTT > 0 {
			all[fmt.Sprintf("ukai_node_rtt_seconds{peer=%q}", m.Name)] = m.RTT.Seconds()
		}
	}
	for s, count := range states {
		all[fmt.Sprintf("ukai_mesh_nodes{state=%q}", s.String())] = float64(count)
	}
	all["ukai_store_replicas"] = float64(len(n.store.Replicas()))
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) {
		if rec.Quorum == crdt.UnsafeSurvivor {
			all[fmt.Sprintf("ukai_disk_unsafe{disk=%q}", d.Name.Value)] = 1
		}
		if run, rotten := unrepaired(d); rotten {
			all[fmt.Sprintf("ukai_disk_unrepaired{disk=%q}", d.Name.Value)] = float64(run.Unrepaired)
		}
	})
	return all
}

// DialAdmin implements admin.Backend.
func (n *Node) DialAdmin(ctx context.Context, node string) (net.Conn, error) {
	id, err := n.nodeID(node)
	if err != nil {
		return nil, err
	}
	conn, err := n.wire.DialNode(ctx, id, wire.ProtoAdmin)
	if err != nil {
		return nil, &ukai.NodeError{Node: id, Name: node, Err: err}
	}
	return conn, nil
}

// AdminListener returns the listener on which other nodes of the mesh reach this one's admin API.
func (n *Node) AdminListener() net.Listener { return adminListener{n} }

type adminListener struct{ n *Node }

func (l adminListener) Accept() (net.Conn, error) {
	conn, _, err := l.n.wire.AcceptStream(l.n.ctx, wire.ProtoAdmin)
	return conn, err
}
func (l adminListener) Close() error   { return nil } // ends with the node
func (l adminListener) Addr() net.Addr { return l.n.wire.LocalAddr() }
