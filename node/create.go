package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/cell"
	"ukai/node/place"
	"ukai/node/store"
	"ukai/node/volume"
	"ukai/node/wire"
)

// settingDefaultRule is the mesh-wide setting that disks without a rule of their own get.
const settingDefaultRule = "default-rule"

// fallbackRule is the default rule of a mesh that has none: one copy, anywhere.
const fallbackRule = "any:1"

// CreateDisk implements admin.Backend. The order matters: replicas exist durably before the record that names them is begun, and gossip
// hears of the disk only when a majority of its arbiters has that record. A crash in between leaves empty replicas that no
// record names.
func (n *Node) CreateDisk(ctx context.Context, d admin.NewDisk) (admin.DiskCreated, error) {
	want, rec, choice, err := n.design(d)
	if err != nil {
		return admin.DiskCreated{}, err
	}
	if d.DryRun {
		return n.designed(d, want, rec, choice), nil
	}
	err = n.makeReplicas(ctx, rec)
	if err == nil {
		_, err = n.cells.Create(ctx, rec)
	}
	if err != nil {
		// Whatever the arbiters have, no majority confirmed it, so nobody was or will be told of this disk.
		return admin.DiskCreated{}, errors.Join(fmt.Errorf("create disk %s: %w", d.Name, err), n.unmakeReplicas(ctx, rec))
	}
	err = n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		made, err := c.CreateDisk(crdt.Born{Creator: n.id, Stamp: stamp(), Name: d.Name}, want.text, rec)
		if err != nil || want.asked.Follow == 0 {
			return made, err
		}
		here, err := setHere(c, rec.Disk, want.here, stamp())
		return made.Join(here), err
	})
	if err != nil { // another disk has taken the name meanwhile, for one
		return admin.DiskCreated{}, errors.Join(fmt.Errorf("create disk %s: %w", d.Name, err), n.unmake(ctx, rec))
	}
	n.events.add(admin.Event{Level: admin.Fine, Kind: "disk-created", Disk: d.Name, Text: fmt.Sprintf("disk %s of %d bytes was created by %s", d.Name, rec.Size, want.text)})
	out := admin.DiskCreated{}
	if out.Disk, err = n.Disk(ctx, rec.Disk.String()); err != nil {
		return out, err
	}
	out.Placement, err = n.Placement(ctx, rec.Disk.String())
	return out, err
}

// design decides what a new disk is to be, changing nothing.
func (n *Node) design(d admin.NewDisk) (wish, crdt.Record, place.Choice, error) {
	fail := func(err error) (wish, crdt.Record, place.Choice, error) {
		return wish{}, crdt.Record{}, place.Choice{}, err
	}
	if err := ukai.CheckName("disk", d.Name); err != nil {
		return fail(err)
	}
	if err := ukai.CheckDiskSize(d.SizeBytes); err != nil {
		return fail(err)
	}
	if d.BlockSizeBytes == 0 {
		d.BlockSizeBytes = ukai.DefaultBlockSize
	}
	if err := ukai.CheckBlockSize(d.BlockSizeBytes); err != nil {
		return fail(err)
	}
	rec := crdt.Record{
		Disk: ukai.NewDiskID(), Version: 1, Phase: crdt.PhaseReleased,
		Size: d.SizeBytes, BlockSize: d.BlockSizeBytes, Ack: crdt.AckLocal,
	}
	if err := applySafety(&rec, admin.SetDisk{OnLoss: d.OnLoss, Ack: d.Ack}); err != nil {
		return fail(err)
	}
	var taken bool
	n.mesh.View(func(c *crdt.Catalog) { taken = len(c.DisksByName(d.Name)) > 0 })
	if taken {
		return fail(fmt.Errorf("disk %s: %w; choose another name, or remove that one: ukai-node disk rm %s", d.Name, ukai.ErrExists, d.Name))
	}
	var asked place.Rule
	var err error
	if d.Rule != nil {
		asked, err = parseRule(*d.Rule)
	} else {
		asked, err = place.ParseText(n.defaultRule())
	}
	if err != nil {
		return fail(err)
	}
	people := n.people()
	here := place.Here{Node: n.id, Since: time.Now()} // where the disk is created, until it has been used elsewhere
	if asked.Follow != 0 {
		if here.Values, err = place.HereAt(asked, n.asPlace(people)); err != nil {
			return fail(err)
		}
	}
	want := wishFor(asked, here)
	if want.err != nil {
		return fail(want.err)
	}
	rule := want.rule
	candidates := people.candidates()
	choice, err := place.Initial(rule, d.SizeBytes, candidates, n.mesh.Estimate)
	if err != nil {
		return fail(people.refusal(rule, choice, err))
	}
	group := crdt.Group{Generation: 1}
	for _, id := range choice.Nodes {
		group.Members = append(group.Members, crdt.Member{Replica: ukai.NewReplicaID(), Node: id, Role: crdt.InSync})
	}
	slices.SortFunc(group.Members, func(a, b crdt.Member) int {
		if a.Replica < b.Replica {
			return -1
		}
		return 1
	})
	rec.Groups = []crdt.Group{group}
	rec.Runs = []crdt.Run{{Count: rec.Blocks()}}
	rec.MinSync = rule.InSync()
	arbiters, _ := place.Arbiters(choice.Nodes, candidates, n.mesh.Estimate)
	rec.Arbiters = arbiters
	return want, rec, choice, rec.Check()
}

// makeReplicas makes empty replicas on their nodes, all at once.
func (n *Node) makeReplicas(ctx context.Context, rec crdt.Record) error {
	return onEach(rec, func(m crdt.Member) error { return n.makeReplica(ctx, rec, m, false) })
}

// onEach runs f for all members of a new disk at once.
func onEach(rec crdt.Record, f func(crdt.Member) error) error {
	members := rec.Groups[0].Members
	errs := make([]error, len(members))
	var all sync.WaitGroup
	for i, m := range members {
		all.Go(func() { errs[i] = f(m) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// makeReplica makes a replica on its node: empty, or with reuse of what that node has kept of the disk.
func (n *Node) makeReplica(ctx context.Context, rec crdt.Record, m crdt.Member, reuse bool) error {
	if m.Node == n.id {
		if err := n.takesReplicas(); err != nil {
			return err
		}
		cfg := store.ReplicaConfig{Size: rec.Size, BlockSize: rec.BlockSize}
		if reuse {
			if err := n.reuse(ctx, rec.Disk, m.Replica, cfg); !errors.Is(err, ukai.ErrNotFound) {
				return err
			}
		}
		return n.store.Create(ctx, rec.Disk, m.Replica, cfg)
	}
	_, err := n.call(ctx, m.Node, volume.CreateReplica(&rec, m.Replica, reuse))
	return err
}

// unmakeTime bounds how long it is tried to leave nothing of a disk that did not come to be.
const unmakeTime = 5 * time.Second

// unmake ends a disk that its arbiters have and the catalog does not.
func (n *Node) unmake(ctx context.Context, rec crdt.Record) error {
	if _, err := n.known(rec.Disk); err == nil {
		return nil // it is in the catalog, only not in its journal
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmakeTime)
	defer cancel()
	if _, err := cell.Propose(end, n.cells, n.id, cell.Where(rec), cell.Delete{Version: rec.Version}, cell.Options{Go: n.cells.wg.Go}); err != nil {
		return fmt.Errorf("its replicas are left behind: %w", err)
	}
	return n.unmakeReplicas(ctx, rec)
}

// unmakeReplicas removes the replicas of a disk that did not come to be, also those of nodes that did not answer: they may have made them all
// the same. What cannot be removed stays as an orphan, which costs nothing but its name; that is told in the error.
func (n *Node) unmakeReplicas(ctx context.Context, rec crdt.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmakeTime)
	defer cancel()
	return onEach(rec, func(m crdt.Member) error { return n.unmakeReplica(ctx, rec.Disk, m) })
}

func (n *Node) unmakeReplica(ctx context.Context, disk ukai.DiskID, m crdt.Member) (err error) {
	if m.Node == n.id {
		err = n.dropNewReplica(ctx, disk, m.Replica)
	} else {
		_, err = n.call(ctx, m.Node, &wire.Message{Kind: wire.KindRetireReplica, Disk: disk, Replica: m.Replica})
	}
	if err != nil && !errors.Is(err, ukai.ErrNotFound) {
		return fmt.Errorf("an empty replica may be left behind: %w", err)
	}
	return nil
}

// dropNewReplica removes a replica that was made for a disk which then did not come to be, or did not take it: one that was never sealed, and
// that the disk's record, if there is one, does not name. Whoever asks for that knows that no record will.
func (n *Node) dropNewReplica(ctx context.Context, disk ukai.DiskID, replica ukai.ReplicaID) error {
	if _, err := n.known(disk); err == nil {
		rec, err := n.cells.Read(ctx, disk)
		if err != nil {
			return err
		}
		if _, named := rec.NodeOf(replica); named {
			return fmt.Errorf("replica %v: %w: version %d of the record of disk %v names it", replica, ukai.ErrRejected, rec.Version, disk)
		}
	}
	for _, r := range n.store.Replicas() {
		if r.Disk == disk && r.Replica == replica {
			if r.Header.State != store.StateNew {
				return fmt.Errorf("replica %v: %w: it has been used", replica, ukai.ErrRejected)
			}
			if r.Header.Adopted {
				return n.putAside(ctx, r) // it has what an old copy had, and becomes one again
			}
			return n.removeReplica(ctx, disk, replica)
		}
	}
	return fmt.Errorf("replica %v: %w", replica, ukai.ErrNotFound)
}

// takesReplicas says why no replica may be made here, or nil.
func (n *Node) takesReplicas() error {
	if err := n.fit(); err != nil {
		return err
	}
	witness := n.cfg.Witness
	n.mesh.View(func(c *crdt.Catalog) {
		if me, ok := c.Node(n.id); ok && me.IsWitness() {
			witness = true
		}
	})
	if witness {
		return &ukai.NodeError{Node: n.id, Name: n.cfg.Name, Err: fmt.Errorf("%w: a witness stores no blocks", ukai.ErrPermission)}
	}
	return nil
}

func parseRule(r admin.Rule) (place.Rule, error) {
	o := place.Options{Spread: r.Spread, MinSync: r.MinSync, Follow: time.Duration(r.FollowSeconds) * time.Second}
	if r.Prefer {
		o.Mode = place.Prefer
	}
	return place.ParseRule(r.Terms, o)
}

// refusal makes an admin.Refusal of a rule that cannot be met.
func (p people) refusal(rule place.Rule, c place.Choice, err error) error {
	if !errors.Is(err, ukai.ErrUnmet) || len(c.Reasons) == 0 {
		return err
	}
	return &admin.Refusal{
		Err: fmt.Errorf("rule %q: %w: %s", rule, ukai.ErrUnmet, c.Missing), Reasons: p.reasons(c.Reasons), Remedy: c.Help,
	}
}

func (p people) reasons(list []place.Reason) []admin.Reason {
	var out []admin.Reason
	for _, r := range list {
		out = append(out, admin.Reason{Node: p.ref(r.Node), Labels: p.labels(r.Node), Chosen: r.Chosen, Why: r.Why})
	}
	slices.SortFunc(out, func(a, b admin.Reason) int { return strings.Compare(a.Node.Name, b.Node.Name) })
	return out
}

// designed is the answer to a dry run.
func (n *Node) designed(d admin.NewDisk, want wish, rec crdt.Record, choice place.Choice) admin.DiskCreated {
	people := n.people()
	disk := n.describe(people, d.Name, rec, want)
	disk.ID = ukai.DiskID{}
	p := n.placement(people, admin.DiskRef{Name: d.Name}, want, &rec)
	p.Reasons, p.DryRun = people.reasons(choice.Reasons), true
	return admin.DiskCreated{Disk: disk, Placement: p}
}
