package admintest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/node/admin"
)

// CreateDisk puts one replica on each node that the rule chooses.
func (f *Fake) CreateDisk(_ context.Context, n admin.NewDisk) (admin.DiskCreated, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rule := admin.Rule{Terms: []string{"dc=tokyo:2"}}
	if n.Rule != nil {
		rule = *n.Rule
	}
	n.BlockSizeBytes = cmp.Or(n.BlockSizeBytes, ukai.DefaultBlockSize)
	err := cmp.Or(ukai.CheckName("disk", n.Name), ukai.CheckDiskSize(n.SizeBytes), ukai.CheckBlockSize(n.BlockSizeBytes), f.free(n.Name))
	if err != nil {
		return admin.DiskCreated{}, err
	}
	chosen, reasons, err := f.choose(rule)
	if err != nil {
		return admin.DiskCreated{}, err
	}
	d := admin.Disk{
		Name: n.Name, State: admin.DiskIdle, SizeBytes: n.SizeBytes, BlockSizeBytes: n.BlockSizeBytes, Rule: text(rule), RuleMet: true, MinSync: max(1, rule.MinSync),
		OnLoss: cmp.Or(n.OnLoss, "wait"), Ack: cmp.Or(n.Ack, "local"), Quorum: "majority", Epoch: "0", Version: 1, Created: Epoch, Path: "/ukai/" + n.Name,
		AllocatedBytes: n.SizeBytes / 4,
	}
	for _, c := range chosen {
		d.Replicas = append(d.Replicas, admin.Replica{ID: ukai.ReplicaID(f.made*16 + len(d.Replicas) + 1), Node: admin.NodeRef{ID: c.ID, Name: c.Name}, Labels: c.Labels,
			Role: admin.InSync, NodeState: admin.NodeAlive, AllocatedBytes: d.AllocatedBytes})
	}
	for i := range f.nodes {
		if a := &f.nodes[i]; slices.Contains(chosen, a) || a.Witness {
			d.Arbiters = append(d.Arbiters, admin.Arbiter{Node: admin.NodeRef{ID: a.ID, Name: a.Name}, Labels: a.Labels, Reachable: true})
		}
	}
	if !n.DryRun {
		f.made++
		d.ID = ukai.DiskID{15: byte(f.made)}
		f.disks = append(f.disks, d)
		f.rules[d.ID] = rule
		slices.SortFunc(f.disks, func(a, b admin.Disk) int { return strings.Compare(a.Name, b.Name) })
	}
	p := f.placement(&d, rule)
	p.Reasons, p.DryRun = reasons, n.DryRun
	return admin.DiskCreated{Disk: d, Placement: p}, nil
}

// Disks lists disks.
func (f *Fake) Disks(_ context.Context, removed bool) (list []admin.Disk, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.disks {
		if (d.Removed != nil) == removed {
			list = append(list, d)
		}
	}
	return list, nil
}

// Disk tells of one disk.
func (f *Fake) Disk(_ context.Context, disk string) (admin.Disk, error) {
	return f.change(disk, func(*admin.Disk) error { return nil })
}

// ResizeDisk grows a disk.
func (f *Fake) ResizeDisk(_ context.Context, disk string, r admin.ResizeDisk) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		if r.SizeBytes < d.SizeBytes {
			return fmt.Errorf("disk %s: shrink: %w: blocks at its end would be lost", d.Name, ukai.ErrUnsupported)
		}
		d.SizeBytes = r.SizeBytes
		return ukai.CheckDiskSize(r.SizeBytes)
	})
}

// SetDisk changes what a disk does for safety.
func (f *Fake) SetDisk(_ context.Context, disk string, s admin.SetDisk) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		d.OnLoss, d.Ack = cmp.Or(s.OnLoss, d.OnLoss), cmp.Or(s.Ack, d.Ack)
		return nil
	})
}

// SetQuorum says who decides about a disk.
func (f *Fake) SetQuorum(_ context.Context, disk string, q admin.SetQuorum) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		if q.Mode == admin.QuorumUnsafe && q.AcceptSplitBrain != d.Name {
			return fmt.Errorf("quorum of disk %s: %w: say --accept-split-brain %s", d.Name, ukai.ErrPermission, d.Name)
		}
		d.Quorum = strings.TrimSpace(q.Mode + " " + q.Node)
		return nil
	})
}

// ForceDisk goes on with a disk without its arbiters: those whose nodes are dead must be named.
func (f *Fake) ForceDisk(_ context.Context, disk string, force admin.ForceDisk) (admin.Disk, error) {
	dead := map[string]bool{}
	f.mu.Lock()
	for _, n := range f.nodes {
		dead[n.Name] = n.State == admin.NodeDead
	}
	f.mu.Unlock()
	return f.change(disk, func(d *admin.Disk) error {
		var gone []string
		for _, a := range d.Arbiters {
			if dead[a.Node.Name] {
				gone = append(gone, a.Node.Name)
			}
		}
		if len(gone) <= len(d.Arbiters)/2 {
			return fmt.Errorf("force disk %s: %w: a majority of its arbiters answers", d.Name, ukai.ErrRejected)
		}
		if !slices.Equal(gone, force.Gone) {
			return fmt.Errorf("force disk %s: %w: name them all: --gone %s", d.Name, ukai.ErrPermission, strings.Join(gone, ","))
		}
		return nil
	})
}

// PickDisk picks the history of that id.
func (f *Fake) PickDisk(_ context.Context, disk string, p admin.PickDisk) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		at := slices.IndexFunc(d.Histories, func(h admin.History) bool {
			return h.ID == p.History || len(h.Nodes) == 1 && h.Nodes[0].Name == p.History
		})
		if at < 0 {
			return fmt.Errorf("history %q: %w", p.History, ukai.ErrNotFound)
		}
		for i := range d.Histories {
			h := &d.Histories[i]
			if h.Picked, h.Name = i == at, d.Name+"~conflict-"+h.ID[:8]; h.Picked {
				h.Name = ""
			}
		}
		d.State, d.Why = admin.DiskIdle, ""
		return nil
	})
}

// DiscardHistory drops the history of that id or name.
func (f *Fake) DiscardHistory(_ context.Context, disk string, h admin.DiscardHistory) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		at := slices.IndexFunc(d.Histories, func(is admin.History) bool { return is.ID == h.History || is.Name == h.History })
		switch {
		case at < 0:
			return fmt.Errorf("history %q: %w", h.History, ukai.ErrNotFound)
		case d.State == admin.DiskConflict || d.Histories[at].Picked:
			return fmt.Errorf("history %q: %w: pick another one first", h.History, ukai.ErrRejected)
		}
		d.Histories = nil
		return nil
	})
}

// RemoveDisk hides a disk.
func (f *Fake) RemoveDisk(_ context.Context, disk string, r admin.RemoveDisk) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		if d.Holder != nil {
			return fmt.Errorf("disk %s: %w", d.Name, &ukai.HeldError{Node: d.Holder.ID, Name: d.Holder.Name})
		}
		if r.Force {
			if !slices.ContainsFunc(d.Replicas, func(r admin.Replica) bool { return r.NodeState == admin.NodeDead }) {
				return fmt.Errorf("remove disk %s by force: %w: it can be had", d.Name, ukai.ErrRejected)
			}
			d.State, d.Removed, d.Path = admin.DiskRemoved, &admin.Removed{Since: Epoch}, ""
			return nil
		}
		grace := 24 * time.Hour
		if r.GraceSeconds != nil {
			grace = time.Duration(*r.GraceSeconds) * time.Second
		}
		d.State, d.Removed, d.Path = admin.DiskRemoved, &admin.Removed{Since: Epoch, Until: Epoch.Add(grace)}, ""
		return nil
	})
}

// RestoreDisk shows a hidden disk again.
func (f *Fake) RestoreDisk(_ context.Context, disk string, r admin.RestoreDisk) (admin.Disk, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.disks {
		if d := &f.disks[i]; d.Removed != nil && (d.Name == disk || d.ID.String() == disk) {
			name := cmp.Or(r.Name, d.Name)
			if err := f.free(name); err != nil {
				return admin.Disk{}, err
			}
			d.Name, d.State, d.Removed = name, admin.DiskIdle, nil
			return *d, nil
		}
	}
	return admin.Disk{}, fmt.Errorf("removed disk %q: %w", disk, ukai.ErrNotFound)
}

// RenameDisk renames a disk.
func (f *Fake) RenameDisk(_ context.Context, disk string, r admin.RenameDisk) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		if err := cmp.Or(ukai.CheckName("disk", r.Name), f.free(r.Name)); err != nil {
			return err
		}
		d.Name = r.Name
		return nil
	})
}

// DiskMap tells of one run: all blocks.
func (f *Fake) DiskMap(_ context.Context, disk string) (admin.Map, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.disk(disk)
	if err != nil {
		return admin.Map{}, err
	}
	blocks := ukai.Blocks(d.SizeBytes, d.BlockSizeBytes)
	return admin.Map{
		Disk: admin.DiskRef{ID: d.ID, Name: d.Name}, SizeBytes: d.SizeBytes, BlockSizeBytes: d.BlockSizeBytes, Blocks: blocks, Holder: d.Holder, Epoch: d.Epoch, Version: d.Version,
		Runs: []admin.MapRun{{Count: blocks, Locations: d.Replicas, AllocatedBytes: d.AllocatedBytes}},
	}, nil
}

// ScrubDisk finds what Rot left, and has ended when it returns.
func (f *Fake) ScrubDisk(_ context.Context, disk string, s admin.ScrubDisk) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		f.made++
		run := admin.ScrubRun{
			Request: fmt.Sprint("request", f.made), VerifyOnly: s.VerifyOnly, Began: Epoch.Add(-time.Minute), Ended: Epoch,
			Verified: d.AllocatedBytes >> 18, Corrupt: f.rot[d.ID],
		}
		if s.VerifyOnly {
			run.Unrepaired = run.Corrupt
		} else {
			run.Repaired = run.Corrupt
			delete(f.rot, d.ID)
		}
		d.Scrub = &admin.Scrub{Asked: run.Request, Last: &run}
		return nil
	})
}

// Takeover frees a disk whose holder is dead, or any with Fenced.
func (f *Fake) Takeover(_ context.Context, disk string, t admin.Takeover) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		if d.Holder != nil && f.node(d.Holder.Name).State == admin.NodeAlive && !t.Fenced {
			return fmt.Errorf("take over disk %s: %w", d.Name, &ukai.HeldError{Node: d.Holder.ID, Name: d.Holder.Name})
		}
		d.Holder, d.State, d.Epoch = nil, admin.DiskIdle, "3"
		return nil
	})
}

// Handover moves a disk that nobody has attached, or any by force.
func (f *Fake) Handover(_ context.Context, disk string, h admin.Handover) (admin.Disk, error) {
	return f.change(disk, func(d *admin.Disk) error {
		to := f.node(h.To)
		switch {
		case to == nil:
			return fmt.Errorf("node %q: %w", h.To, ukai.ErrNotFound)
		case d.Holder != nil && d.Holder.ID != to.ID && !h.Force:
			return fmt.Errorf("hand over disk %s: %w", d.Name, &ukai.HeldError{Node: d.Holder.ID, Name: d.Holder.Name})
		}
		d.Holder, d.State, d.Epoch = &admin.NodeRef{ID: to.ID, Name: to.Name}, admin.DiskAttached, "3"
		return nil
	})
}
