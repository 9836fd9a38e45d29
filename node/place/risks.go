package place

import (
	"fmt"
	"slices"

	"ukai"
)

// Risk is something that a disk does not survive.
type Risk struct{ Text, Help string }

// Risks says what a disk's arbiters, as they are, do not survive, and what would help. It is what Arbiters warns of for a new disk.
func Risks(arbiters []ukai.NodeID, nodes []Node) []Risk {
	var names, dcs []string
	for _, id := range arbiters {
		i := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == id })
		if i < 0 {
			continue
		}
		names = append(names, nodes[i].name())
		if dc := nodes[i].dc(); dc != "" && !slices.Contains(dcs, dc) {
			dcs = append(dcs, dc)
		}
	}
	slices.Sort(names)
	slices.Sort(dcs)
	switch {
	case len(arbiters) == 2 && len(names) == 2:
		return []Risk{{
			Text: fmt.Sprintf("only two nodes, %s and %s, keep its quorum record: when either is down, a disk that has lost a replica waits and cannot be attached", names[0], names[1]),
			Help: "add a witness: ukai-node start --witness",
		}}
	case len(arbiters) > 2 && len(dcs) == 2:
		return []Risk{{
			Text: fmt.Sprintf("its arbiters are in exactly two datacenters, %s and %s: when the one with most of them is lost, what is left cannot be attached", dcs[0], dcs[1]),
			Help: "add a witness in a third datacenter: ukai-node start --witness --label dc=THIRD",
		}}
	}
	return nil
}
