package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
	"ukai/node/volume"
)

// find returns what the catalog knows of a disk, by name or id.
func (n *Node) find(name string, removed bool) (d *crdt.Disk, err error) {
	n.mesh.View(func(c *crdt.Catalog) { d, err = diskByName(c, name, removed) })
	return d, err
}

// Disk implements admin.Backend.
func (n *Node) Disk(ctx context.Context, disk string) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	p := n.people()
	n.hear(ctx, &p, d)
	n.measure(ctx, &p, d)
	return n.show(p, d), nil
}

// Disks implements admin.Backend.
func (n *Node) Disks(ctx context.Context, removed bool) ([]admin.Disk, error) {
	var found []*crdt.Disk
	n.mesh.View(func(c *crdt.Catalog) {
		for d := range c.Disks() {
			if d.Live() && !removed || removed && d.Removed.Value && !d.Deleted() {
				found = append(found, d)
			}
		}
	})
	people := n.people()
	n.hear(ctx, &people, found...)
	list := make([]admin.Disk, 0, len(found))
	for _, d := range found {
		list = append(list, n.show(people, d))
	}
	slices.SortFunc(list, func(a, b admin.Disk) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), slices.Compare(a.ID[:], b.ID[:]))
	})
	return list, nil
}

// show tells everything about a disk.
func (n *Node) show(p people, d *crdt.Disk) admin.Disk {
	rec, ok := d.Record()
	if !ok {
		out := admin.Disk{ID: d.ID, State: admin.DiskConflict, Why: "its record has not come yet", Replicas: []admin.Replica{}, Arbiters: []admin.Arbiter{}}
		if d.Conflict() {
			out.Why = fmt.Sprintf("it has %d histories after forced takeovers; pick one: ukai-node disk pick %s", len(d.View), d.Name.Value)
		}
		out.Name, out.Histories = d.Name.Value, n.histories(p, d)
		return out
	}
	out := n.describe(p, d.Name.Value, rec, wishOf(d))
	out.Created, out.Scrub, out.Histories = d.Born.Stamp.Time(), showScrub(d, &rec), n.histories(p, d)
	out.Warnings = append(out.Warnings, rottenDisk(d)...)
	switch {
	case d.Removed.Value:
		since := d.Removed.Stamp.Time()
		out.State, out.Removed = admin.DiskRemoved, &admin.Removed{Since: since, Until: since.Add(grace(d))}
		if removedByForce(d) {
			out.Removed.Until = time.Time{}
		}
		out.RuleMet, out.Warnings = true, nil // nothing is wanted of it any more
	case n.cfg.MountDir != "":
		out.Path = filepath.Join(n.cfg.MountDir, out.Name)
	}
	return out
}

func grace(d *crdt.Disk) time.Duration {
	if removedByForce(d) {
		return math.MaxInt64
	}
	if p, ok := d.Policy[policyGrace]; ok {
		if seconds, err := strconv.ParseInt(p.Value, 10, 64); err == nil && seconds >= 0 {
			return time.Duration(min(seconds, int64(maxGrace/time.Second))) * time.Second
		}
	}
	return graceDefault
}

// codeArbiters is the code of what a disk's arbiters do not survive.
const codeArbiters = "arbiters"

// describe tells what the record of the disk called name says, and what this node knows beside it.
func (n *Node) describe(p people, name string, rec crdt.Record, want wish) admin.Disk {
	out := admin.Disk{
		ID: rec.Disk, Name: name, SizeBytes: rec.Size, BlockSizeBytes: rec.BlockSize, Rule: want.text, Ranges: want.ranges.String(), RuleMet: true, MinSync: rec.MinSync,
		OnLoss: rec.OnLoss.String(), Ack: rec.Ack.String(), Quorum: quorumText(p, &rec), Epoch: rec.Epoch.String(), Version: rec.Version,
		State: admin.DiskIdle, AllocatedBytes: -1, KeepStale: want.keep, Kept: showKept(p, want.kept),
	}
	warn := func(level admin.Level, code, remedy, format string, args ...any) {
		out.Warnings = append(out.Warnings, admin.Warning{Level: level, Code: code, Disk: name, Text: "disk " + name + ": " + fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if rec.Quorum == crdt.UnsafeSurvivor {
		warn(admin.Warn, "quorum-unsafe", "ukai-node disk quorum NAME majority", "quorum mode unsafe: after a cut both sides may go on, and then one side's writes are lost")
	}
	switch rec.Phase {
	case crdt.PhaseRecovering:
		out.State = admin.DiskRecovering
	case crdt.PhaseActive:
		out.State = admin.DiskAttached
	case crdt.PhaseReleased, crdt.PhaseDeleted:
	}
	if rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering {
		holder := p.ref(rec.Holder)
		out.Holder = &holder
		if !p.alive(rec.Holder) {
			warn(admin.Warn, "holder-dead", "the next host that opens the disk takes over", "attached on %s, which does not answer", holder)
		}
	}
	held, here := n.host.Held(rec.Disk)
	if !here {
		held = p.told[rec.Disk]
	}
	if held.Here {
		out.State, out.Why = stateOf(held)
	}
	allocated := n.replicas.Allocated(n.ctx, rec.Disk)
	for _, g := range rec.Groups {
		for _, m := range g.Members {
			r := n.replica(p, m, allocated)
			if len(rec.Groups) > 1 {
				r.Blocks = place.Ranges(rec.RangesOf(g.ID))
			}
			if at := slices.IndexFunc(held.Replicas, func(s volume.ReplicaStatus) bool { return s.Replica == m.Replica && s.Group == g.ID }); at >= 0 {
				behind(&r, held.Replicas[at])
			}
			out.AllocatedBytes = max(out.AllocatedBytes, r.AllocatedBytes)
			out.Replicas = append(out.Replicas, r)
		}
		alive := 0
		for _, m := range g.InSync() {
			if p.alive(m.Node) {
				alive++
			}
		}
		of := ""
		if len(rec.Groups) > 1 {
			of = " of blocks " + place.Ranges(rec.RangesOf(g.ID))
		}
		switch {
		case alive == 0:
			warn(admin.Critical, "no-replica", "bring one of its nodes back", "no node with an in-sync replica%s answers", of)
		case alive < rec.MinSync:
			remedy := "bring one of its nodes back"
			if slices.ContainsFunc(g.Members, func(m crdt.Member) bool { return m.Role != crdt.InSync && m.Role != crdt.Async && p.alive(m.Node) }) {
				remedy = "wait until another replica is in sync again"
			}
			warn(admin.Critical, "too-few-replicas", remedy, "%d in-sync replicas%s answer, and writes wait for %d", alive, of, rec.MinSync)
		}
	}
	reachable := 0
	for _, id := range rec.Arbiters {
		a := admin.Arbiter{Node: p.ref(id), Labels: p.labels(id), Reachable: p.alive(id)}
		if a.Reachable {
			reachable++
		}
		out.Arbiters = append(out.Arbiters, a)
	}
	if reachable <= len(rec.Arbiters)/2 {
		warn(admin.Critical, "no-quorum", "bring arbiters back", "%d of %d arbiters answer: it can neither be attached nor lose a replica without stopping", reachable, len(rec.Arbiters))
	}
	candidates := p.candidates()
	for _, r := range place.Risks(rec.Arbiters, nodesOf(&rec), candidates) {
		warn(admin.Notice, codeArbiters, r.Help, "%s", r.Text)
	}
	if want.text != "" && want.err == nil {
		if s := place.CheckRanges(want.rule, want.ranges, rec, candidates); !s.Met {
			out.RuleMet = false
			warn(admin.Warn, "rule-unmet", "ukai-node place show "+name, "rule %s is not met: %s", want.all(), strings.Join(s.Differences, "; "))
		}
	}
	return out
}

// stateOf puts what the volume says into a disk's state.
func stateOf(s volume.Status) (admin.DiskState, string) {
	switch {
	case s.Ended != "":
		return admin.DiskFailed, s.Ended
	case s.Suspended != "":
		return admin.DiskSuspended, s.Suspended
	}
	return admin.DiskAttached, ""
}

func (n *Node) replica(p people, m crdt.Member, allocated map[ukai.ReplicaID]int64) admin.Replica {
	r := admin.Replica{
		ID: m.Replica, Node: p.ref(m.Node), Labels: p.labels(m.Node), Role: admin.Role(m.Role.String()), NodeState: p.state(m.Node),
		AllocatedBytes: -1,
	}
	if bytes, here := allocated[m.Replica]; here {
		r.AllocatedBytes = bytes
	}
	if m.Role == crdt.Out {
		r.Why = "it missed writes and has not been brought up to date"
		if !p.alive(m.Node) {
			r.Why, r.Since = fmt.Sprintf("its node is %s", r.NodeState), p.members[m.Node].Since
		}
	}
	return r
}

// behind adds what the holder, or who looks after the disk, knows of a replica that is not in sync.
func behind(r *admin.Replica, s volume.ReplicaStatus) {
	if r.Role == admin.InSync {
		return
	}
	r.BehindBytes = s.Behind
	if s.Trouble != "" {
		r.Why = s.Trouble
	}
	if s.Out > 0 {
		r.Since = time.Now().Add(-s.Out)
	}
	if p := s.Resync; p != nil {
		r.Why, r.BehindBytes, r.CopiedBytes = "is being brought up to date", p.Left, p.Copied
		if p.Total > 0 {
			r.Percent = int(100 * max(0, p.Total-p.Left) / p.Total)
		}
		r.ETASeconds = int64(p.Remaining() / time.Second)
	}
}

// DiskMap implements admin.Backend.
func (n *Node) DiskMap(_ context.Context, disk string) (admin.Map, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Map{}, err
	}
	rec, err := n.known(d.ID)
	if err != nil {
		return admin.Map{}, err
	}
	p := n.people()
	out := admin.Map{
		Disk: admin.DiskRef{ID: d.ID, Name: d.Name.Value}, SizeBytes: rec.Size, BlockSizeBytes: rec.BlockSize, Blocks: rec.Blocks(),
		Epoch: rec.Epoch.String(), Version: rec.Version,
	}
	if rec.Phase == crdt.PhaseActive || rec.Phase == crdt.PhaseRecovering {
		holder := p.ref(rec.Holder)
		out.Holder = &holder
	}
	allocated := n.replicas.Allocated(n.ctx, rec.Disk)
	if len(rec.Groups) > 1 {
		allocated = nil // a replica's space is not known per run
	}
	first := ukai.Index(0)
	for _, run := range rec.Runs {
		g := rec.Group(run.Group)
		r := admin.MapRun{First: first, Count: run.Count, Group: int(run.Group), Generation: g.Generation, AllocatedBytes: -1}
		for _, m := range g.Members {
			loc := n.replica(p, m, allocated)
			r.AllocatedBytes = max(r.AllocatedBytes, loc.AllocatedBytes)
			r.Locations = append(r.Locations, loc)
		}
		out.Runs = append(out.Runs, r)
		first += ukai.Index(run.Count)
	}
	return out, nil
}

// ResizeDisk implements admin.Backend. The holder resizes; without one this node attaches the disk for it.
func (n *Node) ResizeDisk(ctx context.Context, disk string, r admin.ResizeDisk) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	if err := ukai.CheckDiskSize(r.SizeBytes); err != nil {
		return admin.Disk{}, err
	}
	rec, err := n.known(d.ID)
	if err != nil {
		return admin.Disk{}, err
	}
	if r.SizeBytes < rec.Size {
		return admin.Disk{}, fmt.Errorf("resize disk %s to %d bytes: %w: it has %d, and making it smaller would destroy what lies beyond the new end; create a smaller disk and copy what it should have",
			d.Name.Value, r.SizeBytes, ukai.ErrUnsupported, rec.Size)
	}
	if r.SizeBytes > rec.Size {
		if err := n.host.Disk(d.ID, d.Name.Value).Resize(ctx, r.SizeBytes); err != nil {
			var held *ukai.HeldError
			if !errors.As(err, &held) || held.Node == n.id {
				return admin.Disk{}, fmt.Errorf("resize disk %s: %w", d.Name.Value, err)
			}
			return n.resizeAt(ctx, held.Node, d, r)
		}
	}
	return n.Disk(ctx, d.ID.String())
}

// resizeAt lets the holder's node do it.
func (n *Node) resizeAt(ctx context.Context, holder ukai.NodeID, d *crdt.Disk, r admin.ResizeDisk) (admin.Disk, error) {
	client := admin.NewClient(admin.ClientConfig{Dial: func(ctx context.Context) (net.Conn, error) { return n.DialAdmin(ctx, holder.String()) }})
	defer client.Close()
	if _, err := client.ResizeDisk(ctx, d.ID.String(), r); err != nil {
		return admin.Disk{}, err
	}
	if _, err := n.cells.Read(ctx, d.ID); err != nil { // learn what was committed there
		return admin.Disk{}, err
	}
	return n.Disk(ctx, d.ID.String())
}

func (n *Node) findByID(id ukai.DiskID) (*crdt.Disk, error) {
	var d *crdt.Disk
	n.mesh.View(func(c *crdt.Catalog) { d, _ = c.Disk(id) })
	if d == nil {
		return nil, fmt.Errorf("disk %v: %w", id, ukai.ErrNotFound)
	}
	return d, nil
}

// RenameDisk implements admin.Backend.
func (n *Node) RenameDisk(ctx context.Context, disk string, r admin.RenameDisk) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	if err := ukai.CheckName("disk", r.Name); err != nil {
		return admin.Disk{}, err
	}
	err = n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		return c.RenameDisk(d.ID, r.Name, stamp())
	})
	if err != nil {
		return admin.Disk{}, fmt.Errorf("rename disk %s to %s: %w", d.Name.Value, r.Name, err)
	}
	n.events.add(admin.Event{Level: admin.Fine, Kind: "disk-renamed", Disk: r.Name, Text: fmt.Sprintf("disk %s is now called %s", d.Name.Value, r.Name)})
	return n.Disk(ctx, d.ID.String())
}
