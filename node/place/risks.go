package place

import (
	"fmt"
	"slices"

	"ukai"
)

// Risk is something that a disk does not survive.
type Risk struct{ Text, Help string }

// Risks says what a disk's arbiters, as they are, do not survive although one of its replicas does, and what would help. It is what Arbiters
// warns of for a new disk.
func Risks(arbiters, replicas []ukai.NodeID, nodes []Node) []Risk {
	find := func(id ukai.NodeID) (Node, bool) {
		i := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == id })
		if i < 0 {
			return Node{}, false
		}
		return nodes[i], true
	}
	var names, dcs []string
	most, count := "", map[string]int{} // the datacenter with most of the arbiters
	for _, id := range arbiters {
		n, ok := find(id)
		if !ok {
			continue
		}
		names = append(names, n.name())
		dc := n.dc()
		if dc != "" && !slices.Contains(dcs, dc) {
			dcs = append(dcs, dc)
		}
		if count[dc]++; count[dc] > count[most] || most == "" {
			most = dc
		}
	}
	left := slices.ContainsFunc(replicas, func(id ukai.NodeID) bool { n, ok := find(id); return ok && n.dc() != most })
	slices.Sort(names)
	slices.Sort(dcs)
	switch {
	case len(arbiters) == 2 && len(names) == 2:
		return []Risk{{
			Text: fmt.Sprintf("only two nodes, %s and %s, keep its quorum record: when either is down, a disk that has lost a replica waits and cannot be attached", names[0], names[1]),
			Help: "add a witness: ukai-node start --witness; or let one node go on alone: ukai-node disk quorum NAME preferred NODE",
		}}
	case len(arbiters) > 2 && len(dcs) == 2 && left:
		return []Risk{{
			Text: fmt.Sprintf("its arbiters are in exactly two datacenters, %s and %s: when %s is lost, the copy that is left cannot be attached", dcs[0], dcs[1], most),
			Help: "add a witness in a third datacenter: ukai-node start --witness --label dc=THIRD; or let one node go on alone: ukai-node disk quorum NAME preferred NODE",
		}}
	}
	return nil
}
