package node

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
	"ukai/node/store"
	"ukai/node/wire"
)

const (
	// answerTime is how long a node is given to answer a doctor; it is far above any round trip.
	answerTime = 3 * time.Second
	// maxAsked bounds how many nodes are asked at the same time.
	maxAsked = 16
	// maxNamed bounds how many paths a warning names.
	maxNamed = 5
)

// Doctor implements admin.Backend.
func (n *Node) Doctor(ctx context.Context) ([]admin.Warning, error) {
	s, err := n.Status(ctx)
	if err != nil {
		return nil, err
	}
	list := slices.Concat(s.Warnings, n.silent(ctx, s.Nodes), missingWitness(s.Nodes), n.unsafe())
	if n.fit() == nil { // else it is not known which replicas have a record
		list = append(list, n.strays()...)
	}
	sortWarnings(list)
	return list, nil
}

// silent asks every node that membership holds for alive whether it answers. Membership may have that from others, or from small packets,
// where a firewall or a small MTU keeps this node from it.
func (n *Node) silent(ctx context.Context, nodes []admin.Node) []admin.Warning {
	failures := make([]error, len(nodes))
	var asked errgroup.Group
	asked.SetLimit(maxAsked)
	for i, node := range nodes {
		if node.Self || node.State != admin.NodeAlive {
			continue
		}
		asked.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, answerTime)
			defer cancel()
			_, failures[i] = n.wire.Call(ctx, node.ID, &wire.Message{Kind: wire.KindPing}, nil)
			return nil
		})
	}
	_ = asked.Wait() // none fails
	var list []admin.Warning
	for i, err := range failures {
		if err == nil {
			continue
		}
		port := "the port of " + nodes[i].Address
		if _, p, err := net.SplitHostPort(nodes[i].Address); err == nil {
			port = "port " + p
		}
		list = append(list, admin.Warning{
			Level: admin.Warn, Code: "node-unreachable", Node: nodes[i].Name,
			Text:   fmt.Sprintf("node %s is in the mesh, but %s does not reach it at %s: %v", nodes[i].Name, n.cfg.Name, nodes[i].Address, err),
			Remedy: fmt.Sprintf("let UDP %s pass between the two in both directions, also in packets of 1280 bytes (a tunnel may need a larger MTU)", port),
		})
	}
	return list
}

// missingWitness finds a mesh whose nodes are in two datacenters: no third place breaks the tie when one of them is lost.
func missingWitness(nodes []admin.Node) []admin.Warning {
	var dcs []string
	for _, node := range nodes {
		if dc := node.Labels[ukai.LabelDC]; dc != "" && node.State != admin.NodeLeft && !slices.Contains(dcs, dc) {
			dcs = append(dcs, dc)
		}
	}
	if len(dcs) != 2 {
		return nil
	}
	slices.Sort(dcs)
	return []admin.Warning{{
		Level: admin.Notice, Code: "no-witness",
		Text:   fmt.Sprintf("all nodes are in two datacenters, %s and %s: a disk with copies in both does not survive the loss of the one with most of its arbiters", dcs[0], dcs[1]),
		Remedy: "run a witness in a third place: ukai-node start --witness --label dc=THIRD",
	}}
}

// unsafe finds disks that give up a part of what others are guaranteed.
func (n *Node) unsafe() (list []admin.Warning) {
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) { list = append(list, unsafeDisk(d.Name.Value, rec)...) })
	return list
}

func unsafeDisk(name string, rec crdt.Record) (list []admin.Warning) {
	if rec.Quorum == crdt.UnsafeSurvivor {
		list = append(list, admin.Warning{
			Level: admin.Warn, Code: "disk-unsafe", Disk: name,
			Text: fmt.Sprintf("disk %s: quorum mode unsafe: after a network split two hosts may write it", name), Remedy: "give it arbiters in three places",
		})
	}
	for i := range rec.Groups {
		if len(rec.Groups[i].Members) == 1 {
			of, blocks := "", ""
			if ranges := rec.RangesOf(rec.Groups[i].ID); len(rec.Groups) > 1 && len(ranges) > 0 {
				of, blocks = " of blocks "+place.Ranges(ranges), " --blocks "+ranges[0].String()
			}
			list = append(list, admin.Warning{
				Level: admin.Notice, Code: "disk-single", Disk: name, Text: fmt.Sprintf("disk %s: there is a single copy%s, and with its node the data is lost", name, of),
				Remedy: fmt.Sprintf("ask for two copies: ukai-node place disk %s%s any:2", name, blocks),
			})
			break
		}
	}
	return list
}

// strays finds what takes space in this node's store and belongs to no disk, or cannot be read.
func (n *Node) strays() (list []admin.Warning) {
	here := func(level admin.Level, code, remedy, format string, args ...any) {
		list = append(list, admin.Warning{Level: level, Code: code, Node: n.cfg.Name, Text: "node " + n.cfg.Name + ": " + fmt.Sprintf(format, args...), Remedy: remedy})
	}
	for _, r := range n.store.Replicas() {
		if broken := r.Broken; broken != "" || r.Err != nil {
			if r.Err != nil {
				broken = r.Err.Error()
			}
			here(admin.Critical, "replica-broken", "look at the machine's disk and its kernel log", "replica %v of disk %v is broken: %s", r.Replica, r.Disk, broken)
			continue
		}
		if r.Header.State == store.StateRetired {
			continue // freed in time, or kept as an old copy, as disk show tells
		}
		rec, err := n.known(r.Disk)
		if n.setAside(r.Disk, r.Replica) {
			continue
		}
		if err == nil && (rec.Phase == crdt.PhaseDeleted || names(rec, r.Replica)) {
			if d, err := n.findByID(r.Disk); err == nil && d.Removed.Value && removedByForce(d) {
				here(admin.Notice, "replica-orphan", fmt.Sprintf("ukai-node disk restore %s, or to delete it: ukai-node disk rm %v", d.Name.Value, r.Disk),
					"replica %v takes space, and its disk, %s, was removed by force while no copy of it could be had", r.Replica, d.Name.Value)
			}
			continue
		}
		here(admin.Notice, "replica-orphan", "it does no harm and is never deleted by itself, as it may be the last copy",
			"replica %v of disk %v takes space, and no quorum record that is known here names it", r.Replica, r.Disk)
	}
	if paths := n.store.Orphans(); len(paths) > 0 {
		here(admin.Notice, "store-orphans", "look at them and move them away: UKAI never deletes what it does not know",
			"%d files in its data directory belong to no replica: %s", len(paths), strings.Join(paths[:min(len(paths), maxNamed)], ", "))
	}
	return list
}

func names(rec crdt.Record, replica ukai.ReplicaID) bool {
	for i := range rec.Groups {
		if slices.ContainsFunc(rec.Groups[i].Members, func(m crdt.Member) bool { return m.Replica == replica }) {
			return true
		}
	}
	return false
}
