package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/volume"
)

// DiskInfo is what a directory shows of a disk.
type DiskInfo struct {
	Name      string
	ID        ukai.DiskID
	Size      int64 // bytes
	Created   time.Time
	Allocated int64 // bytes of it that a replica on this node stores; 0: not known here
	ReadOnly  bool  // it is a history that the disk does not go on with: see OpenPast
}

// LiveDisks returns the disks that have a name, in its order. Of disks that share one only the first is there. A disk with several histories is
// followed by those that it does not go on with.
func (n *Node) LiveDisks() []DiskInfo {
	var list []DiskInfo
	n.mesh.View(func(c *crdt.Catalog) {
		last := ""
		for name, id := range c.DiskNames() {
			if name == last {
				continue
			}
			last = name
			if d, ok := c.Disk(id); ok {
				if rec, ok := d.Record(); ok {
					list = append(list, DiskInfo{Name: name, ID: id, Size: rec.Size, Created: d.Born.Stamp.Time()})
				}
				for _, at := range pasts(d) {
					if past := pastInfo(d, at); len(c.DisksByName(past.Name)) == 0 {
						list = append(list, past)
					}
				}
			}
		}
	})
	return list
}

// StatDisk returns the live disk of a name, or the history of one. Errors match ukai.ErrNotFound, or ukai.ErrExists if several disks have the name.
func (n *Node) StatDisk(name string) (info DiskInfo, err error) {
	n.mesh.View(func(c *crdt.Catalog) {
		found := c.DisksByName(name)
		switch len(found) {
		case 1:
		case 0:
			if d, at, ok := pastByName(c, name); ok {
				info = pastInfo(d, at)
			} else {
				err = fmt.Errorf("disk %q: %w", name, ukai.ErrNotFound)
			}
			return
		default:
			err = fmt.Errorf("disk %q: %w: %d disks have that name; rename one: ukai-node disk rename %v NEW-NAME", name, ukai.ErrExists, len(found), found[1].ID)
			return
		}
		d := found[0]
		rec, ok := d.Record()
		if !ok {
			err = fmt.Errorf("disk %s: %w: it has several histories after forced takeovers (then pick one: ukai-node disk pick %s), or its record has not come yet", name, ukai.ErrRejected, name)
			return
		}
		info = DiskInfo{Name: name, ID: d.ID, Size: rec.Size, Created: d.Born.Stamp.Time()}
	})
	if err == nil && !info.ReadOnly {
		for _, bytes := range n.replicas.Allocated(n.ctx, info.ID) {
			info.Allocated = max(info.Allocated, bytes)
		}
	}
	return info, err
}

// OpenDisk returns the live disk of a name, without attaching it. Errors are those of StatDisk.
func (n *Node) OpenDisk(name string) (*volume.Disk, error) {
	info, err := n.StatDisk(name)
	if err != nil {
		return nil, err
	}
	if info.ReadOnly {
		return nil, fmt.Errorf("disk %s: %w: it is a history that was not picked, and can only be read", name, ukai.ErrPermission)
	}
	if err := n.fit(); err != nil {
		return nil, err
	}
	return n.host.Disk(info.ID, name), nil
}

// Capacity sums up the stores of the nodes that are alive and store blocks, in bytes: their file systems' size, what is free of it, and what of
// that is not reserved.
func (n *Node) Capacity() (total, free, available int64) {
	p := n.people()
	for id, node := range p.nodes {
		if node.IsWitness() || node.Retired || !p.alive(id) {
			continue
		}
		total += node.Info.CapacityBytes
		free += node.Info.FreeBytes
		available += max(0, node.Info.FreeBytes-node.Info.ReserveBytes)
	}
	return total, free, available
}

// Facts returns what programs may ask about a disk's file: name -> value.
func (n *Node) Facts(disk ukai.DiskID) map[string]string {
	facts := map[string]string{"id": disk.String()}
	d, err := n.findByID(disk)
	if err != nil {
		return facts
	}
	facts["name"], facts["rule"] = d.Name.Value, d.Rule.Value
	if r := d.Policy[policyRanges].Value; r != "" {
		facts["ranges"] = r
	}
	rec, ok := d.Record()
	if !ok {
		return facts
	}
	p := n.people()
	locations := map[string]bool{}
	for _, g := range rec.Groups {
		for _, m := range g.Members {
			text := p.ref(m.Node).String() + " " + m.Role.String()
			if dc := p.labels(m.Node)[ukai.LabelDC]; dc != "" {
				text = p.ref(m.Node).String() + "@" + dc + " " + m.Role.String()
			}
			locations[text] = true
		}
	}
	facts["locations"] = strings.Join(slices.Sorted(maps.Keys(locations)), ", ")
	facts["epoch"] = rec.Epoch.String()
	facts["phase"] = rec.Phase.String()
	facts["quorum"] = quorumText(p, &rec)
	facts["block_size"] = fmt.Sprint(rec.BlockSize)
	facts["version"] = fmt.Sprint(rec.Version)
	if rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering {
		facts["holder"] = p.ref(rec.Holder).String()
	}
	return facts
}

// HeldElsewhere says whether another node has the disk attached. One that holds it for nobody, as while it brings a replica back, is asked to let
// go of it.
func (n *Node) HeldElsewhere(ctx context.Context, disk ukai.DiskID) bool {
	rec, err := n.known(disk)
	if err != nil || rec.Holder == n.id || rec.Phase != crdt.PhaseActive && rec.Phase != crdt.PhaseRecovering {
		return false
	}
	_, err = n.host.Disk(disk, "").Free(ctx)
	return err != nil
}
