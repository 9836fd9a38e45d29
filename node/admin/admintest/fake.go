// Package admintest has a Backend that behaves like a node of a small mesh, for tests of what talks to a node.
package admintest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"ukai"
	"ukai/node/admin"
)

// Epoch is the clock of every Fake.
var Epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Fake is a mesh of four nodes: t1 and t2 in dc tokyo, o1 in osaka, and the witness w1 in fukuoka. It keeps disks in memory
// and answers as a node does: names are checked, rules are met or refused, attached disks are not removed.
type Fake struct {
	self     string
	defaults admin.Defaults
	dial     func(ctx context.Context, node string) (net.Conn, error)

	mu      sync.Mutex
	nodes   []admin.Node
	disks   []admin.Disk
	rules   map[ukai.DiskID]admin.Rule
	ranges  map[ukai.DiskID][]admin.Range
	links   []admin.Link // sorted by name
	paused  map[ukai.DiskID]bool
	made    int // disks ever created
	rot     map[ukai.DiskID]int64
	left    bool
	seq     uint64
	readers map[chan admin.Event]bool
}

var _ admin.Backend = (*Fake)(nil)

// New returns the mesh as the node called self sees it. dial reaches other nodes; nil: none is reachable.
func New(self string, dial func(ctx context.Context, node string) (net.Conn, error)) *Fake {
	f := &Fake{
		self: self, defaults: admin.Defaults{Rule: "dc=tokyo:2", RepairAfterSeconds: 600}, dial: dial, rules: map[ukai.DiskID]admin.Rule{}, ranges: map[ukai.DiskID][]admin.Range{},
		rot: map[ukai.DiskID]int64{}, paused: map[ukai.DiskID]bool{}, readers: map[chan admin.Event]bool{},
	}
	for i, n := range []struct{ name, dc string }{{"o1", "osaka"}, {"t1", "tokyo"}, {"t2", "tokyo"}, {"w1", "fukuoka"}} {
		f.nodes = append(f.nodes, admin.Node{
			ID: nodeID(n.name), Name: n.name, Labels: ukai.Labels{"dc": n.dc}, Address: fmt.Sprintf("10.0.0.%d:7946", i+1), State: admin.NodeAlive,
			Since: Epoch.Add(-time.Hour), Version: "v0.1.0", Self: n.name == self, Witness: n.name == "w1",
			CapacityBytes: 100 << 30, FreeBytes: 80 << 30, ReserveBytes: 5 << 30,
		})
	}
	return f
}

func nodeID(name string) (id ukai.NodeID) {
	sum := sha256.Sum256([]byte(name))
	return ukai.NodeID(sum[:16])
}

// Attach makes node the holder of a disk.
func (f *Fake) Attach(disk, node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.disk(disk)
	n := f.node(node)
	if err != nil || n == nil {
		panic("no such disk or node")
	}
	d.State, d.Holder, d.Epoch = admin.DiskAttached, &admin.NodeRef{ID: n.ID, Name: n.Name}, "2"
}

// Split gives a disk two histories of which none was picked, one on each of its first two replicas' nodes.
func (f *Fake) Split(disk string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.disk(disk)
	if err != nil || len(d.Replicas) < 2 {
		panic("no such disk, or too few replicas")
	}
	d.State, d.Why = admin.DiskConflict, "it has 2 histories after forced takeovers"
	for i, r := range d.Replicas[:2] {
		r.AllocatedBytes = int64(i+1) << 20
		id := fmt.Sprintf("%x%031x", 0xa+i, i)
		d.Histories = append(d.Histories, admin.History{
			ID: id, Forced: 1, Epoch: "1.2", Version: 7, LastHeld: &r.Node, Nodes: []admin.NodeRef{r.Node},
			Name: d.Name + "~conflict-" + id[:8], SizeBytes: d.SizeBytes, Replicas: []admin.Replica{r},
		})
	}
}

// Rot makes pieces of a disk corrupt.
func (f *Fake) Rot(disk string, pieces int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.disk(disk)
	if err != nil {
		panic("no such disk")
	}
	f.rot[d.ID] = pieces
}

// Kill makes a node dead, and its replicas out.
func (f *Fake) Kill(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.node(node)
	n.State, n.Since = admin.NodeDead, Epoch.Add(-10*time.Minute)
	for i := range f.disks {
		for j := range f.disks[i].Replicas {
			if r := &f.disks[i].Replicas[j]; r.Node.ID == n.ID {
				r.Role, r.NodeState, r.Why, r.BehindBytes, r.Since = admin.Out, admin.NodeDead, "its node is dead", 64<<20, Epoch.Add(-9*time.Minute)
			}
		}
	}
}

// Emit sends an event to all readers.
func (f *Fake) Emit(e admin.Event) {
	f.mu.Lock()
	f.seq++
	e.Seq, e.Time = f.seq, Epoch
	readers := slices.Collect(maps.Keys(f.readers))
	f.mu.Unlock()
	for _, r := range readers {
		r <- e
	}
}

// Readers returns how many event streams are open.
func (f *Fake) Readers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.readers)
}

// Left says whether the node was told to leave.
func (f *Fake) Left() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left
}

// Self implements admin.Backend, as do the methods below.
func (f *Fake) Self(context.Context) (admin.Self, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.node(f.self)
	return admin.Self{
		ID: n.ID, Name: n.Name, Labels: n.Labels.Clone(), Version: n.Version, Go: "go1.26", Mesh: "4f9c-2b71", Address: n.Address,
		DataDir: "/var/lib/ukai", MountDir: "/ukai", PID: 4711, Started: Epoch.Add(-time.Hour),
	}, nil
}

// Status tells of four nodes, and warns of the dead ones.
func (f *Fake) Status(context.Context) (admin.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := admin.Status{Node: f.self, Mesh: "4f9c-2b71", Time: Epoch, Health: admin.Fine, Nodes: slices.Clone(f.nodes)}
	for i, a := range f.nodes {
		for _, b := range f.nodes[i+1:] {
			rtt := admin.RTT{From: a.Name, To: b.Name, RTTMicros: 400}
			if a.Labels["dc"] != b.Labels["dc"] {
				rtt.RTTMicros = 8200
			}
			if a.Self || b.Self {
				rtt.Measured, rtt.P99Micros = true, rtt.RTTMicros*2
			}
			s.RTTs = append(s.RTTs, rtt)
		}
		if a.State == admin.NodeDead {
			s.Health = admin.Warn
			s.Warnings = append(s.Warnings, admin.Warning{Level: admin.Warn, Code: "node-dead", Node: a.Name, Text: "node " + a.Name + " has been dead for 10 minutes",
				Remedy: "start it again, or `ukai-node place node " + a.Name + " --drain`"})
		}
	}
	for _, d := range f.disks {
		if d.Removed != nil {
			continue
		}
		s.Disks.Total++
		s.Disks.SizeBytes += d.SizeBytes
		if d.Holder != nil {
			s.Disks.Attached++
		}
		if slices.ContainsFunc(d.Replicas, func(r admin.Replica) bool { return r.Role != admin.InSync }) {
			s.Disks.Degraded++
		}
	}
	return s, nil
}

// ChangeNode sets labels and roles.
func (f *Fake) ChangeNode(_ context.Context, node string, c admin.NodeChange) (admin.NodeChanged, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.node(node)
	if n == nil {
		return admin.NodeChanged{}, fmt.Errorf("node %q: %w", node, ukai.ErrNotFound)
	}
	labels := n.Labels.Clone()
	for k, v := range c.Set {
		if err := ukai.CheckLabel(k, v); err != nil {
			return admin.NodeChanged{}, err
		}
		labels[k] = v
	}
	for _, k := range c.Unset {
		delete(labels, k)
	}
	n.Labels = labels
	for _, r := range []struct {
		to   *bool
		from *bool
	}{{&n.Drain, c.Drain}, {&n.NoNew, c.NoNew}, {&n.Witness, c.Witness}} {
		if r.from != nil {
			*r.to = *r.from
		}
	}
	return admin.NodeChanged{Node: *n}, nil
}

// RetireNode forgets a dead node.
func (f *Fake) RetireNode(_ context.Context, node string, r admin.RetireNode) (admin.NodeRetired, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.node(node)
	switch {
	case n == nil:
		return admin.NodeRetired{}, fmt.Errorf("node %q: %w", node, ukai.ErrNotFound)
	case n.State != admin.NodeDead:
		return admin.NodeRetired{}, fmt.Errorf("retire node %s: %w: t1 hears from it", node, ukai.ErrRejected)
	}
	out := admin.NodeRetired{Node: admin.NodeRef{ID: n.ID, Name: n.Name}, DryRun: r.DryRun}
	for _, d := range f.disks {
		at := slices.IndexFunc(d.Replicas, func(r admin.Replica) bool { return r.Node.ID == n.ID })
		if at < 0 {
			continue
		}
		out.Replicas++
		if len(d.Replicas) == 1 {
			out.Warnings = append(out.Warnings, admin.Warning{Level: admin.Critical, Code: "retire", Disk: d.Name, Text: "disk " + d.Name + ": its last copy is there"})
		}
	}
	if !r.DryRun {
		f.nodes = slices.DeleteFunc(f.nodes, func(x admin.Node) bool { return x.ID == out.Node.ID })
	}
	return out, nil
}

// Leave refuses while the node holds a disk.
func (f *Fake) Leave(_ context.Context, l admin.Leave) (admin.Leaving, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.disks {
		if d.Holder != nil && d.Holder.Name == f.self && !l.Force {
			return admin.Leaving{}, fmt.Errorf("disk %s is attached here: %w", d.Name, ukai.ErrRejected)
		}
	}
	f.left = true
	n := f.node(f.self)
	return admin.Leaving{Node: admin.NodeRef{ID: n.ID, Name: n.Name}}, nil
}

// Doctor tells what Status warns of.
func (f *Fake) Doctor(ctx context.Context) ([]admin.Warning, error) {
	s, err := f.Status(ctx)
	return s.Warnings, err
}

// Events sends what Emit is given.
func (f *Fake) Events(ctx context.Context) (<-chan admin.Event, error) {
	in, out := make(chan admin.Event, 16), make(chan admin.Event)
	f.mu.Lock()
	f.readers[in] = true
	f.mu.Unlock()
	go func() {
		defer close(out)
		defer func() {
			f.mu.Lock()
			delete(f.readers, in)
			f.mu.Unlock()
		}()
		for {
			select {
			case e := <-in:
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// Counters has one counter with a label, one without, and one that is malformed.
func (f *Fake) Counters() map[string]uint64 {
	return map[string]uint64{"ukai_wire_frames_sent": 7, `ukai_wire_refused{why="bad \"key\""}`: 2, "not a metric": 1}
}

// Gauges has one gauge.
func (f *Fake) Gauges() map[string]float64 {
	return map[string]float64{`ukai_node_rtt_seconds{peer="o1"}`: 0.0082}
}

// DialAdmin reaches other nodes.
func (f *Fake) DialAdmin(ctx context.Context, node string) (net.Conn, error) {
	f.mu.Lock()
	n := f.node(node)
	f.mu.Unlock()
	switch {
	case n == nil:
		return nil, fmt.Errorf("node %q: %w", node, ukai.ErrNotFound)
	case f.dial == nil:
		return nil, &ukai.NodeError{Node: n.ID, Name: n.Name, Err: ukai.ErrUnreachable}
	}
	return f.dial(ctx, node)
}

func (f *Fake) node(name string) *admin.Node {
	for i := range f.nodes {
		if n := &f.nodes[i]; n.Name == name || n.ID.String() == name {
			return n
		}
	}
	return nil
}

func (f *Fake) disk(name string) (*admin.Disk, error) {
	for i := range f.disks {
		if d := &f.disks[i]; d.Removed == nil && (d.Name == name || d.ID.String() == name) {
			return d, nil
		}
	}
	return nil, fmt.Errorf("disk %q: %w", name, ukai.ErrNotFound)
}

// free says whether a name is still free.
func (f *Fake) free(name string) error {
	if d, err := f.disk(name); err == nil {
		return fmt.Errorf("disk %s: %w", d.Name, ukai.ErrExists)
	}
	return nil
}

func (f *Fake) change(disk string, how func(*admin.Disk) error) (admin.Disk, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.disk(disk)
	if err != nil {
		return admin.Disk{}, err
	}
	changed := *d
	if err := how(&changed); err != nil {
		return admin.Disk{}, err
	}
	*d = changed
	return changed, nil
}
