package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/cell"
	"ukai/node/volume"
)

// The histories of a disk that it does not go on with can be looked at beside it: each is a file of its own that can only be read.

// pastMark joins, in the name of such a file, the name of the disk and the begin of the id of the history.
const pastMark = "~conflict-"

// pastDigits is how many digits of the id there are at least.
const pastDigits = 8

// pastName returns the name of the file of one of a disk's histories.
func pastName(d *crdt.Disk, at int) string {
	tip := d.View[at].Tip()
	digits := min(pastDigits, len(tip))
	for i := range d.View {
		for other := d.View[i].Tip(); i != at && digits < len(tip) && strings.HasPrefix(other, tip[:digits]); {
			digits++
		}
	}
	return d.Name.Value + pastMark + tip[:digits]
}

// pasts returns where in its view the histories of a live disk are that have a file: those that it does not go on with and that were not given up.
func pasts(d *crdt.Disk) (list []int) {
	if len(d.View) < 2 || !d.Live() {
		return nil
	}
	chosen, decided := d.Record()
	for i := range d.View {
		rec := &d.View[i]
		if _, given := d.Discarded(rec); !given && rec.Phase != crdt.PhaseDeleted && !(decided && rec.Tip() == chosen.Tip()) {
			list = append(list, i)
		}
	}
	return list
}

// pastID is what the file of a history has for the id of a disk: it must be told apart from the disk's own.
func pastID(disk ukai.DiskID, tip string) (id ukai.DiskID) {
	sum := sha256.Sum256(append(append([]byte("history of disk "), disk[:]...), tip...))
	copy(id[:], sum[:])
	return id
}

func pastInfo(d *crdt.Disk, at int) DiskInfo {
	return DiskInfo{
		Name: pastName(d, at), ID: pastID(d.ID, d.View[at].Tip()), Size: d.View[at].Size, Created: d.Born.Stamp.Time(), ReadOnly: true,
	}
}

// pastByName finds the history whose file has a name. A disk that is called so comes before it.
func pastByName(c *crdt.Catalog, name string) (d *crdt.Disk, at int, ok bool) {
	cut := strings.LastIndex(name, pastMark)
	if cut <= 0 || len(c.DisksByName(name)) > 0 {
		return nil, 0, false
	}
	found := c.DisksByName(name[:cut])
	if len(found) != 1 {
		return nil, 0, false
	}
	for _, at := range pasts(found[0]) {
		if pastName(found[0], at) == name {
			return found[0], at, true
		}
	}
	return nil, 0, false
}

// Past is a history of a disk beside the one that it goes on with, for reading only.
type Past struct {
	*volume.Past
	node *Node
	id   ukai.DiskID
	name string
	rec  crdt.Record
}

// OpenPast returns the history whose file has a name. Where its arbiters answer it is as they say, else as the catalog has it: whether that is what
// a replica has shows when it is read. Errors match ukai.ErrNotFound.
func (n *Node) OpenPast(ctx context.Context, name string) (*Past, error) {
	var (
		disk  *crdt.Disk
		at    int
		found bool
	)
	n.mesh.View(func(c *crdt.Catalog) { disk, at, found = pastByName(c, name) })
	if !found {
		return nil, fmt.Errorf("history %q: %w", name, ukai.ErrNotFound)
	}
	if err := n.fit(); err != nil {
		return nil, err
	}
	rec := disk.View[at]
	if answer(n.people(), &rec) {
		ask, cancel := context.WithTimeout(ctx, forceAskTime)
		if now, err := n.cells.proposeAt(ask, rec, cell.Identity{}); err == nil {
			rec = now
		}
		cancel()
	}
	if rec.Phase == crdt.PhaseDeleted {
		return nil, fmt.Errorf("history %q: %w: it was discarded", name, ukai.ErrNotFound)
	}
	others := slices.Delete(slices.Clone(disk.View), at, at+1)
	return &Past{n.host.Past(rec, others), n, pastID(disk.ID, rec.Tip()), name, rec}, nil
}

// answer says whether most of a record's arbiters seem to be there.
func answer(p people, rec *crdt.Record) bool {
	there := 0
	for _, id := range rec.Arbiters {
		if p.alive(id) {
			there++
		}
	}
	return there > len(rec.Arbiters)/2
}

// ID tells the history apart from others and from the disk.
func (p *Past) ID() ukai.DiskID { return p.id }

// Name is that of its file.
func (p *Past) Name() string { return p.name }

// Facts returns what programs may ask about its file: name -> value.
func (p *Past) Facts() map[string]string {
	nodes := make([]string, 0, 2)
	people := p.node.people()
	for _, id := range inSyncNodes(&p.rec) {
		nodes = append(nodes, people.ref(id).String())
	}
	return map[string]string{
		"id": p.rec.Disk.String(), "name": p.name, "history": p.rec.Tip(), "locations": strings.Join(nodes, ", "), "epoch": p.rec.Epoch.String(),
		"phase": p.rec.Phase.String(), "version": fmt.Sprint(p.rec.Version), "read_only": "yes",
	}
}

// histories tells of a disk's histories, if it has several. The picked one comes first, and those that have ended are left out when no replica of them
// is known.
func (n *Node) histories(p people, d *crdt.Disk) (list []admin.History) {
	if len(d.View) < 2 {
		return nil
	}
	allocated := n.replicas.Allocated(n.ctx, d.ID)
	chosen, ok := d.Record()
	for i := range d.View {
		rec := &d.View[i]
		h := admin.History{
			ID: rec.Tip(), Picked: ok && rec.Tip() == chosen.Tip(), Forced: len(rec.Lineage), Epoch: rec.Epoch.String(), Version: rec.Version,
			Attached: rec.Phase == crdt.PhaseActive, SizeBytes: rec.Size, Nodes: []admin.NodeRef{}, Replicas: []admin.Replica{},
		}
		if slices.Contains(pasts(d), i) {
			h.Name = pastName(d, i)
		}
		h.Ended = rec.Phase == crdt.PhaseDeleted
		_, h.Discarded = d.Discarded(rec)
		if !rec.Holder.IsZero() {
			holder := p.ref(rec.Holder)
			h.LastHeld = &holder
		}
		for _, id := range inSyncNodes(rec) {
			h.Nodes = append(h.Nodes, p.ref(id))
		}
		for g := range rec.Groups {
			for _, m := range rec.Groups[g].Members {
				r := n.replica(p, m, allocated)
				if bytes, told := p.space[m.Replica]; told && r.AllocatedBytes < 0 {
					r.AllocatedBytes = bytes
				}
				h.Replicas = append(h.Replicas, r)
			}
		}
		if h.Ended { // what is left of it
			h.Replicas = slices.DeleteFunc(h.Replicas, func(r admin.Replica) bool { return r.AllocatedBytes < 0 || ok && names(chosen, r.ID) })
		}
		if !h.Ended || len(h.Replicas) > 0 {
			list = append(list, h)
		}
	}
	if len(list) < 2 {
		return nil
	}
	slices.SortStableFunc(list, func(a, b admin.History) int {
		switch {
		case a.Picked == b.Picked:
			return cmp.Compare(a.ID, b.ID)
		case a.Picked:
			return -1
		}
		return 1
	})
	return list
}

// measure asks the nodes with replicas of a disk with several histories how much space each takes.
func (n *Node) measure(ctx context.Context, p *people, d *crdt.Disk) {
	if len(d.View) < 2 {
		return
	}
	var nodes []ukai.NodeID
	for i := range d.View {
		for _, id := range nodesOf(&d.View[i]) {
			if id != n.id && !slices.Contains(nodes, id) {
				nodes = append(nodes, id)
			}
		}
	}
	p.space = map[ukai.ReplicaID]int64{}
	for _, r := range n.reports(ctx, *p, d.ID, nodes) {
		for _, s := range r.Replicas {
			p.space[s.Replica] = s.Bytes
		}
	}
}
