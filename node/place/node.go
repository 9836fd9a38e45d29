package place

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ukai"
)

// Node is what placement must know of one node.
type Node struct {
	ID     ukai.NodeID
	Name   string
	Labels ukai.Labels

	// FreeBytes is what its file system has left, ReserveBytes what must stay free of it.
	FreeBytes, ReserveBytes, CapacityBytes int64
	// PromisedBytes is what disks that already have a replica on it may yet write there; 0 if not known. It moves no
	// limit, but of two nodes the one that has promised less is better.
	PromisedBytes int64

	Witness bool // stores no blocks, votes only
	Drain   bool // its replicas are to leave
	NoNew   bool // keeps what it has
	Alive   bool
	// DownSince is since when it counts as down, if it is not alive; zero if not known.
	DownSince time.Time
	LastSeen  time.Time // for display; zero: DownSince
}

// Near returns the round-trip time between two nodes, false if it is not known. A nil Near knows nothing.
type Near func(a, b ukai.NodeID) (time.Duration, bool)

// value returns the value of a label, or the name for the key "node"; "" if there is none.
func (n Node) value(key string) string {
	if key == nodeKey {
		return n.Name
	}
	return n.Labels[key]
}

// name returns what people call the node.
func (n Node) name() string {
	if n.Name != "" {
		return n.Name
	}
	return n.ID.Short()
}

func (n Node) dc() string { return n.Labels[ukai.LabelDC] }

// available returns the bytes that may still be put on the node.
func (n *Node) available() int64 { return max(0, n.FreeBytes-n.ReserveBytes) }

// room returns what is left of available when all promises are called in; it may be negative.
func (n *Node) room() int64 { return n.available() - n.PromisedBytes }

// fits says whether unfit has nothing to say.
func (n *Node) fits(need int64) bool {
	return !n.Witness && n.Alive && !n.Drain && !n.NoNew && n.available() >= need
}

// unfit says why a node may take no new replica that needs this many bytes, whatever the rule says; "" if it may.
func (n Node) unfit(need int64) string {
	switch {
	case n.Witness:
		return "is a witness and stores no blocks"
	case !n.Alive:
		return n.down()
	case n.Drain:
		return "is being drained"
	case n.NoNew:
		return "takes no new replicas"
	case n.available() < need:
		return fmt.Sprintf("has no space: %s free less %s reserve, %s needed", size(n.FreeBytes), size(n.ReserveBytes), size(need))
	}
	return ""
}

func (n Node) down() string {
	if n.DownSince.IsZero() {
		return "is down"
	}
	at := n.DownSince
	if !n.LastSeen.IsZero() {
		at = n.LastSeen
	}
	return "is down since " + at.UTC().Format(time.DateTime) + " UTC"
}

// mismatch says which conditions of a term do not hold of a node; "" if all do.
func (t Term) mismatch(n Node) string {
	var not []string
	for _, c := range t.Conditions {
		if c.holds(n) {
			continue
		}
		switch v := n.value(c.Key); {
		case v == "":
			not = append(not, fmt.Sprintf("has no label %s, %v is wanted", c.Key, c))
		case c.Key == nodeKey:
			not = append(not, fmt.Sprintf("is not wanted by %v", c))
		default:
			not = append(not, fmt.Sprintf("has %s=%s, %v is wanted", c.Key, v, c))
		}
	}
	return strings.Join(not, " and ")
}

// byName returns the nodes sorted by name, then id: the order of everything that is shown.
func byName(nodes []Node) []Node {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, compareNames)
	return nodes
}

func compareNames(a, b Node) int {
	if d := strings.Compare(a.Name, b.Name); d != 0 {
		return d
	}
	return strings.Compare(string(a.ID[:]), string(b.ID[:]))
}

// size returns n bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1024, 0
	for ; v >= 1024 && u < len(units)-1; u++ {
		v /= 1024
	}
	return fmt.Sprintf("%.3g %ciB", v, units[u])
}

// known returns the round-trip time between two nodes, with guesses where near does not know: 1 ms within a datacenter,
// 50 ms between two.
func (near Near) known(a, b Node) time.Duration {
	if a.ID == b.ID {
		return 0
	}
	if near != nil {
		if d, ok := near(a.ID, b.ID); ok {
			return d
		}
	}
	if a.dc() == b.dc() {
		return time.Millisecond
	}
	return 50 * time.Millisecond
}
