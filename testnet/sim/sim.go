// Package sim runs meshes of real nodes in virtual time: real QUIC, real gossip, real volumes over a packet network in memory
// and stores that crash like disks, inside a testing/synctest bubble. Hours of virtual time pass in seconds; a seed
// fixes the workload and the odds of faults, not the schedule.
package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ukai"
	"ukai/gossip"
	"ukai/node"
	"ukai/node/admin"
	"ukai/node/store"
	"ukai/node/volume"
	"ukai/node/wire"
	"ukai/testnet/memnet"
)

// Patience bounds, in virtual time, how long Await waits for a condition.
const Patience = 5 * time.Minute

// Mesh is a mesh inside the bubble of a test.
type Mesh struct {
	T     testing.TB
	Net   *memnet.Network
	Nodes map[string]*Node
	Order []*Node            // in the order they were added
	Log   slog.Handler       // of all nodes, with "at" to tell them apart; nil: what UKAI_LOG in the environment says
	Tune  func(*node.Config) // changes the configuration of nodes before they start, if set
	Space int64              // bytes of each node's disk; 0: more than any test fills
	key   wire.MeshKey
}

// Node is one machine of the mesh: a store that outlives its process, and the process, if it runs.
type Node struct {
	*node.Node // nil while the process is down
	Name       string
	DC         string
	Witness    bool
	Addr       netip.AddrPort
	Store      *store.Mem
	Fault      func(store.Op) error // of the node's disk, if set
	Ahead      atomic.Int64         // ns by which its clock of time since boot has jumped
	mesh       *Mesh
	conn       *memnet.Conn
}

// Start runs a mesh of nodes given as "t1:tokyo t2:tokyo w1:fukuoka:witness" and waits until all of them see each other. It must be called
// inside a bubble; when the test ends the mesh is stopped.
func Start(t testing.TB, seed uint64, specs string) *Mesh {
	t.Helper()
	m := New(t, seed)
	m.AddAll(specs)
	return m
}

// New returns a mesh without nodes.
func New(t testing.TB, seed uint64) *Mesh {
	m := &Mesh{T: t, Net: memnet.New(seed), Nodes: map[string]*Node{}, key: wire.NewMeshKey()}
	m.Net.SetDefault(memnet.Link{Delay: 100 * time.Microsecond})
	return m
}

// AddAll starts the nodes that specs name and waits until all see each other.
func (m *Mesh) AddAll(specs string) {
	m.T.Helper()
	for _, word := range strings.Fields(specs) {
		parts := strings.Split(word, ":")
		m.Add(parts[0], parts[1], len(parts) > 2 && parts[2] == "witness")
	}
	m.AwaitWhole()
}

// Stop ends all nodes and waits until nothing of them is left in the bubble.
func (m *Mesh) Stop() {
	for _, n := range m.Order {
		if n.Node != nil {
			n.Crash()
		}
	}
	for _, n := range m.Order {
		if err := n.Store.Close(); err != nil {
			m.T.Errorf("store of %s: %v", n.Name, err)
		}
	}
	time.Sleep(gossip.Linger)
}

// Add starts one more node.
func (m *Mesh) Add(name, dc string, witness bool) *Node {
	m.T.Helper()
	n := &Node{Name: name, DC: dc, Witness: witness, mesh: m, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(len(m.Order) / 250), byte(1 + len(m.Order)%250)}), 7946)}
	n.Store = store.NewMem(store.MemConfig{Capacity: m.Space, Fault: func(op store.Op) error {
		if f := n.Fault; f != nil {
			return f(op)
		}
		return nil
	}})
	m.Nodes[name] = n
	m.Order = append(m.Order, n)
	n.Boot()
	return n
}

// Boot starts the node's process; it must be down.
func (n *Node) Boot() {
	n.mesh.T.Helper()
	conn, err := n.mesh.Net.Listen(n.Addr, n.DC, n.Name)
	if err != nil {
		n.mesh.T.Fatal(err)
	}
	cfg := node.Config{
		Name: n.Name, Labels: ukai.Labels{"dc": n.DC}, Witness: n.Witness, Keys: []wire.MeshKey{n.mesh.key},
		Conn: conn, Store: n.Store.Store(), Boottime: func() time.Duration { return time.Duration(time.Now().UnixNano() + n.Ahead.Load()) },
	}
	if first := n.mesh.Order[0]; first != n {
		cfg.Seeds = []string{first.Addr.String()}
	}
	switch {
	case n.mesh.Log != nil:
		cfg.Log = slog.New(n.mesh.Log.WithAttrs([]slog.Attr{slog.String("at", n.Name)}))
	case os.Getenv("UKAI_LOG") != "":
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", n.Name)
	}
	if n.mesh.Tune != nil {
		n.mesh.Tune(&cfg)
	}
	n.conn = conn
	if n.Node, err = node.Open(context.Background(), cfg); err != nil {
		n.mesh.T.Fatalf("%s: %v", n.Name, err)
	}
}

// Crash ends the process at once. What it wrote is still in the machine's page cache.
func (n *Node) Crash() {
	_ = n.conn.Close() // nothing more leaves it
	n.Store.Restart()
	_ = n.Kill() // its errors are those of a network and a store that are gone
	n.Node = nil
}

// PowerCut ends the machine at once: what was not synced is gone.
func (n *Node) PowerCut() {
	_ = n.conn.Close()
	n.Store.Crash()
	_ = n.Kill()
	n.Node = nil
}

// PowerCutKeeping is PowerCut where of what was not synced each sector survives or not as r decides.
func (n *Node) PowerCutKeeping(r *rand.Rand) {
	_ = n.conn.Close()
	n.Store.CrashKeeping(r)
	_ = n.Kill()
	n.Node = nil
}

// Freeze stops the network of the node, as SIGSTOP does with its process, or lets it go on.
func (n *Node) Freeze(frozen bool) { n.conn.Freeze(frozen) }

// Cut cuts the link between two places in both directions; Heal mends it.
func (m *Mesh) Cut(a, b string) { m.link(a, b, func(l *memnet.Link) { l.Down = true }) }

// Heal undoes Cut.
func (m *Mesh) Heal(a, b string) { m.link(a, b, func(l *memnet.Link) { l.Down = false }) }

func (m *Mesh) link(a, b string, change func(*memnet.Link)) {
	for _, way := range [][2]string{{a, b}, {b, a}} {
		l := m.Net.Link(way[0], way[1])
		change(&l)
		m.Net.SetLink(way[0], way[1], l)
	}
}

// Await waits, in virtual time, until a condition holds.
func (m *Mesh) Await(what string, condition func() error) time.Duration {
	m.T.Helper()
	start := time.Now()
	var err error
	for time.Since(start) < Patience {
		if err = condition(); err == nil {
			return time.Since(start)
		}
		time.Sleep(20 * time.Millisecond)
	}
	m.T.Fatalf("%s did not come true in %v of virtual time: %v", what, Patience, err)
	return 0
}

// AwaitWhole waits until every running node sees every running node alive, under its name and label.
func (m *Mesh) AwaitWhole() {
	m.T.Helper()
	running := 0
	for _, n := range m.Order {
		if n.Node != nil {
			running++
		}
	}
	for _, n := range m.Order {
		if n.Node == nil {
			continue
		}
		m.Await("a whole mesh as "+n.Name+" sees it", func() error {
			s, err := n.Status(context.Background())
			if err != nil {
				return err
			}
			alive := 0
			for _, other := range s.Nodes {
				if other.State == admin.NodeAlive && other.Labels["dc"] != "" {
					alive++
				}
			}
			if alive != running {
				return fmt.Errorf("%d of %d alive", alive, running)
			}
			return nil
		})
	}
}

// Create makes a disk by a rule ("dc=tokyo:2 dc=osaka:1") and waits until every running node knows it.
func (m *Mesh) Create(name string, size int64, rule string) {
	m.T.Helper()
	m.CreateAck(name, size, rule, "")
}

// CreateAck is Create for a disk whose writes are acknowledged when all replicas have them, or the local one.
func (m *Mesh) CreateAck(name string, size int64, rule, ack string) {
	m.T.Helper()
	terms := strings.Fields(rule)
	var at *Node
	for _, n := range m.Order {
		if n.Node != nil {
			at = n
			break
		}
	}
	if _, err := at.CreateDisk(context.Background(), admin.NewDisk{Name: name, SizeBytes: size, BlockSizeBytes: ukai.MinBlockSize, Rule: &admin.Rule{Terms: terms}, Ack: ack}); err != nil {
		m.T.Fatal(err)
	}
	for _, n := range m.Order {
		if n.Node != nil {
			m.Await("disk "+name+" at "+n.Name, func() error { _, err := n.StatDisk(name); return err })
		}
	}
}

// Volume returns a disk as a node sees it.
func (n *Node) Volume(name string) *volume.Disk {
	n.mesh.T.Helper()
	d, err := n.OpenDisk(name)
	if err != nil {
		n.mesh.T.Fatalf("%s at %s: %v", name, n.Name, err)
	}
	return d
}
