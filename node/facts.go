package node

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/gossip"
	"ukai/node/admin"
	"ukai/node/store"
)

const (
	// factsEvery is how often a node looks at its free space; it tells the mesh only of a change that matters.
	factsEvery = 15 * time.Second
	// factsStep is the share of the capacity by which the free space must change to be worth telling.
	factsStep = 200
	// watchEvery is how often a node looks at what has changed in the mesh.
	watchEvery = 500 * time.Millisecond
	// unsafeWarnEvery is how often the log tells of disks that may lose writes to a cut.
	unsafeWarnEvery = time.Minute
)

// facts returns what this node says of itself.
func (n *Node) facts() (crdt.NodeInfo, error) {
	space, err := n.store.Space()
	if err != nil {
		return crdt.NodeInfo{}, err
	}
	return crdt.NodeInfo{
		Name: n.cfg.Name, Version: n.cfg.Version, Boot: n.boot, Witness: n.cfg.Witness, Started: n.started.UnixMilli(),
		CapacityBytes: space.Total, FreeBytes: space.Free, ReserveBytes: space.Reserve,
	}, nil
}

// publishFacts sets the labels that this node was started with, and keeps its free space known.
func (n *Node) publishFacts() {
	tick := time.NewTicker(factsEvery)
	defer tick.Stop()
	for labelled := false; ; {
		if !labelled {
			if err := n.setOwnLabels(); err != nil {
				n.log.Debug("labels are not set yet", "err", err)
			} else {
				labelled = true
			}
		}
		if space, err := n.store.Space(); err != nil {
			n.log.Warn("free space cannot be told", "err", err)
		} else if n.worthTelling(space) {
			err := n.mesh.Publish(n.ctx, func(i *crdt.NodeInfo) {
				i.CapacityBytes, i.FreeBytes, i.ReserveBytes = space.Total, space.Free, space.Reserve
			})
			if err != nil && n.ctx.Err() == nil {
				n.log.Warn("facts about this node could not be published", "err", err)
			}
		}
		wait := tick.C
		if !labelled {
			soon := time.NewTimer(200 * time.Millisecond)
			wait = soon.C
		}
		select {
		case <-wait:
		case <-n.ctx.Done():
			return
		}
	}
}

func (n *Node) worthTelling(s store.Space) bool {
	var told crdt.NodeInfo
	n.mesh.View(func(c *crdt.Catalog) {
		if me, ok := c.Node(n.id); ok {
			told = me.Info
		}
	})
	if told.CapacityBytes != s.Total || told.ReserveBytes != s.Reserve || s.Full() != (told.FreeBytes < told.ReserveBytes) {
		return true
	}
	return max(told.FreeBytes, s.Free)-min(told.FreeBytes, s.Free) > s.Total/factsStep
}

// setOwnLabels gives this node the labels it was started with, if they are others than at its last start: what an administrator set
// with `place node` meanwhile is not undone by a restart.
func (n *Node) setOwnLabels() error {
	want := n.cfg.Labels.String()
	switch was, err := n.store.Get(keyLabels); {
	case err == nil && string(was) == want:
		return nil
	case err != nil && !errors.Is(err, ukai.ErrNotFound):
		return err
	case bytes.Equal(was, []byte(want)) && len(n.cfg.Labels) == 0:
		return nil
	default:
		before := map[string]bool{}
		for _, word := range strings.Fields(string(was)) {
			key, _, _ := strings.Cut(word, "=")
			before[key] = true
		}
		err := n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
			var all crdt.Delta
			for _, key := range slices.Sorted(maps.Keys(n.cfg.Labels)) {
				value := n.cfg.Labels[key]
				d, err := c.SetLabel(n.id, key, &value, stamp())
				if err != nil {
					return all, err
				}
				all = all.Join(d)
				delete(before, key)
			}
			for _, key := range slices.Sorted(maps.Keys(before)) { // given at the last start, not at this one
				d, err := c.SetLabel(n.id, key, nil, stamp())
				if err != nil {
					return all, err
				}
				all = all.Join(d)
			}
			return all, nil
		})
		if err != nil {
			return fmt.Errorf("labels of this node: %w", err)
		}
		return n.store.Put(n.ctx, true, store.KV{K: keyLabels, V: []byte(want)})
	}
}

// watch tells of what changes in the mesh: as events, and to the disks held here.
func (n *Node) watch() {
	changed, cancel := n.mesh.Subscribe()
	defer cancel()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	states := map[ukai.NodeID]gossip.State{}
	seen := map[ukai.DiskID]commit{}
	var warned time.Time
	for news := true; ; {
		// Once per tick at most: looking at all disks costs milliseconds when there are thousands.
		n.noticeNodes(states)
		if time.Since(warned) >= unsafeWarnEvery {
			warned = time.Now()
			n.warnOfUnsafe()
		}
		if news {
			news = false
			n.noticeDisks(seen)
		}
		for waiting := true; waiting; {
			select {
			case <-n.ctx.Done():
				return
			case <-changed:
				news = true
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// warnOfUnsafe logs the disks whose quorum mode is unsafe, on the nodes that keep their records.
func (n *Node) warnOfUnsafe() {
	n.eachLive(func(d *crdt.Disk, rec crdt.Record) {
		if rec.Quorum == crdt.UnsafeSurvivor && slices.Contains(rec.Arbiters, n.id) {
			n.log.Warn("quorum mode unsafe: after a cut both sides may go on, and then one side's writes are lost", "disk", d.Name.Value,
				"remedy", "ukai-node disk quorum "+d.Name.Value+" majority")
		}
	})
}

// noticeNodes makes events of what membership thinks of other nodes.
func (n *Node) noticeNodes(states map[ukai.NodeID]gossip.State) {
	for _, m := range n.mesh.Members() {
		was, known := states[m.ID]
		states[m.ID] = m.State
		if m.Self || known && was == m.State || !known && m.State != gossip.Alive {
			continue
		}
		level := admin.Notice
		if m.State == gossip.Dead {
			level = admin.Warn
		}
		name := m.Name
		if name == "" {
			name = m.ID.Short()
		}
		n.events.add(admin.Event{Level: level, Kind: "node-" + m.State.String(), Node: name, Text: fmt.Sprintf("node %s is %v", name, m.State)})
	}
}

// commit tells apart the records of a disk that a node meets. A version alone does not, once another history was picked.
type commit struct {
	epoch   ukai.Epoch
	version uint64
}

// noticeDisks tells volumes of newer records, so that a deposed holder stops at once, and makes events of what they say.
func (n *Node) noticeDisks(seen map[ukai.DiskID]commit) {
	var fresh []crdt.Record
	names := map[ukai.DiskID]string{}
	n.mesh.View(func(c *crdt.Catalog) {
		for d := range c.Disks() {
			rec, ok := d.Record()
			at := commit{rec.Epoch, rec.Version}
			if !ok || seen[d.ID] == at {
				continue
			}
			seen[d.ID] = at
			names[d.ID] = d.Name.Value
			fresh = append(fresh, rec)
		}
	})
	for _, rec := range fresh {
		n.host.Observe(rec)
		if rec.Phase == crdt.PhaseDeleted {
			n.host.Forget(rec.Disk)
		}
		for _, g := range rec.Groups {
			for _, m := range g.Members {
				if m.Role == crdt.Out && rec.Phase != crdt.PhaseDeleted {
					n.noticeOut(rec, g.Generation, m, names[rec.Disk])
				}
			}
		}
	}
}

func (n *Node) noticeOut(rec crdt.Record, generation uint32, m crdt.Member, disk string) {
	name := hearsay{n}.NodeName(m.Node)
	n.events.once(fmt.Sprintf("out/%v/%d", m.Replica, generation), admin.Event{
		Level: admin.Warn, Kind: "replica-out", Node: name, Disk: disk,
		Text: fmt.Sprintf("the replica of %s on %s is out of sync since version %d", disk, name, rec.Version),
	})
}
