package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node"
	"ukai/node/admin"
	"ukai/node/store"
	"ukai/testnet/history"
)

func split(rule string) []string { return strings.Fields(rule) }

// watch holds what nodes know of disks against what they have known: of one version of a quorum record all say the same (I1). No block is without a copy in sync.
func (c *campaign) watch() {
	for _, s := range c.machines {
		n := s.live.Load()
		if n == nil || s.store.hangs() { // what it tells of its replicas waits for the medium, and who heals that is asking
			continue
		}
		for _, d := range c.disks {
			info, err := n.Disk(context.Background(), d.name)
			if err != nil || info.Version == 0 {
				continue
			}
			said := "epoch " + info.Epoch
			var roles []string
			for _, r := range info.Replicas {
				roles = append(roles, fmt.Sprintf("%v on %v %s", r.ID, r.Node.ID, r.Role)) // a node that was never heard of has no name yet
			}
			slices.Sort(roles)
			said += ", " + strings.Join(roles, ", ")
			key := fmt.Sprintf("%s version %d", d.name, info.Version)
			if before, known := c.records[key]; known && before != said {
				c.fail("I1: %s is %s, and as %s knows it %s", key, before, s.Name, said)
			}
			c.records[key] = said
			if !slices.ContainsFunc(info.Replicas, func(r admin.Replica) bool { return r.Role == admin.InSync }) {
				c.fail("%s: no copy is in sync: %s", key, said)
			}
		}
	}
}

// undoOrders takes back what administrators ordered beside rules: who was to take it back may have been down.
func (c *campaign) undoOrders() {
	no := false
	c.m.Await("what was ordered is taken back", func() error {
		n := c.machines[0].live.Load()
		for _, s := range c.machines {
			if _, err := n.ChangeNode(context.Background(), s.Name, admin.NodeChange{Drain: &no, Set: ukai.Labels{"ssd": "yes"}}); err != nil {
				return err
			}
		}
		for _, d := range c.disks {
			if _, err := n.OrderJob(context.Background(), d.name, admin.OrderJob{Order: admin.OrderResume}); err != nil && !errors.Is(err, ukai.ErrNotFound) {
				return err
			}
		}
		_, err := n.SetLink(context.Background(), "tokyo-osaka", admin.SetLink{Limit: "none"})
		return err
	})
}

// calm waits until all disks are as their rules say, as all nodes know them.
func (c *campaign) calm() {
	start := time.Now()
	var err error
	for time.Since(start) < awaitCalm {
		if err = c.each(c.settled); err == nil {
			c.logf("all disks are as their rules say after %v", time.Since(start))
			return
		}
		time.Sleep(time.Second)
		c.watch()
	}
	c.fail("not all disks are as their rules say %v after all was healed: %v", awaitCalm, err)
}

func (c *campaign) settled(n *node.Node, d admin.Disk) error {
	broken := false
	for _, r := range d.Replicas {
		switch {
		case r.Role == admin.InSync:
		case r.Node.Name == c.broken:
			broken = true
		default:
			return fmt.Errorf("the replica on %s is %s: %s", r.Node, r.Role, r.Why)
		}
	}
	if _, err := n.OpenDisk(d.Name); err != nil {
		return err
	}
	p, err := n.Placement(context.Background(), d.Name)
	if err == nil && !p.Met && !broken {
		err = fmt.Errorf("rule %s is not met: %v %s", p.Rule, p.Differences, p.Doing)
	}
	return err
}

// readAll reads on each node what was written on each disk.
func (c *campaign) readAll() {
	for _, d := range c.disks {
		var first [][]history.ID
		for i, s := range c.machines {
			v := s.Volume(d.name)
			var all [][]history.ID
			for _, run := range written(d.Ops()) {
				p := make([]byte, (run[1]-run[0])*history.SectorBytes)
				o := &history.Op{Node: s.Name, Worker: 100 + i, Sector: run[0], Count: int(run[1] - run[0]), Call: c.clock.now()}
				if _, o.Err = v.ReadAt(context.Background(), p, run[0]*history.SectorBytes); o.Err != nil {
					c.fail("%s cannot be read on %s: %v", d.name, s.Name, o.Err)
					continue
				}
				o.Ret = c.clock.now()
				o.Saw = c.see(d, p, run[0])
				d.Add(o)
				all = append(all, o.Saw)
			}
			if first == nil {
				first = all
			} else if !slices.EqualFunc(first, all, slices.Equal[[]history.ID]) {
				c.fail("%s reads differently on %s and %s", d.name, c.machines[0].Name, s.Name)
			}
		}
	}
}

// written returns runs of sectors, from and to, that were written, each of at most a megabyte.
func written(ops []*history.Op) (runs [][2]int64) {
	var sectors []int64
	for _, o := range ops {
		for i := range o.Count {
			if o.Kind == history.Write {
				sectors = append(sectors, o.Sector+int64(i))
			}
		}
	}
	slices.Sort(sectors)
	for _, s := range slices.Compact(sectors) {
		if n := len(runs) - 1; n >= 0 && runs[n][1] == s && s-runs[n][0] < 1<<20/history.SectorBytes {
			runs[n][1]++
		} else {
			runs = append(runs, [2]int64{s, s + 1})
		}
	}
	return runs
}

// compareCatalogs waits until all nodes have the same catalog (I10), as their journals tell.
func (c *campaign) compareCatalogs() {
	start := time.Now()
	var err error
	for time.Since(start) < awaitReturn {
		err = nil
		var first crdt.Digest
		for i, s := range c.machines {
			digest, e := catalog(s.Store)
			switch {
			case e != nil:
				err = fmt.Errorf("the catalog of %s: %w", s.Name, e)
			case i == 0:
				first = digest
			case digest != first:
				err = fmt.Errorf("%s and %s have different catalogs", c.machines[0].Name, s.Name)
			}
		}
		if err == nil {
			c.logf("all catalogs are equal after %v", time.Since(start))
			return
		}
		time.Sleep(time.Second)
	}
	c.fail("I10: %v after all was healed: %v", awaitReturn, err)
}

// catalog reads a node's catalog from its store.
func catalog(s *store.Mem) (crdt.Digest, error) {
	all := crdt.NewCatalog()
	for _, kind := range []string{"g/n/", "g/d/", "g/s/"} {
		err := s.Scan(kind, func(_ string, v []byte) error {
			d, err := crdt.UnmarshalDelta(slices.Clone(v))
			if err == nil {
				_, err = all.Merge(d, time.Time{})
			}
			return err
		})
		if err != nil {
			return crdt.Digest{}, err
		}
	}
	return all.Digest(), nil
}

// compareReplicas stops all nodes and compares what the in-sync replicas hold byte for byte (I5). None of them was ever removed
// from a store (I9).
func (c *campaign) compareReplicas() {
	type copyOf struct {
		s        *machine
		r        ukai.ReplicaID
		run      int
		off, end int64 // of the blocks that it has
	}
	copies, ids := map[*disk][]copyOf{}, map[*disk]ukai.DiskID{}
	groups := 0
	for _, d := range c.disks {
		info, err := c.machines[0].DiskMap(context.Background(), d.name)
		if err != nil {
			c.fail("%s: %v", d.name, err)
			continue
		}
		ids[d] = info.Disk.ID
		for i, run := range info.Runs {
			groups = max(groups, run.Group+1)
			for _, r := range run.Locations {
				if _, gone := c.removed.Load(r.ID); gone {
					c.fail("I9: replica %v of %s on %s was removed and is in the record", r.ID, d.name, r.Node)
				}
				at := slices.IndexFunc(c.machines, func(s *machine) bool { return s.Name == r.Node.Name })
				if r.Role == admin.InSync && at >= 0 {
					off := int64(run.First) * int64(info.BlockSizeBytes)
					copies[d] = append(copies[d], copyOf{c.machines[at], r.ID, i, off, min(off+int64(run.Count)*int64(info.BlockSizeBytes), d.size.Load())})
				}
			}
		}
	}
	c.t.Logf("%d ranges got a rule; a disk has up to %d groups of replicas", c.ranges.Load(), groups)
	for _, s := range c.machines {
		s.live.Store(nil)
		s.Crash()
	}
	for _, d := range c.disks {
		first := map[int][]byte{}
		for _, x := range copies[d] {
			r, err := x.s.Store.OpenReplica(ids[d], x.r)
			if err != nil {
				c.fail("%s on %s: %v", d.name, x.s.Name, err)
				continue
			}
			data := make([]byte, x.end-x.off)
			if err := r.ReadAt(data, x.off); err != nil {
				c.fail("%s on %s: %v", d.name, x.s.Name, err)
			}
			if err := r.Close(); err != nil {
				c.t.Error(err)
			}
			if first[x.run] == nil {
				first[x.run] = data
			} else if j := differ(first[x.run], data); j >= 0 {
				c.fail("I5: the in-sync replica of %s on %s differs from another first in sector %d", d.name, x.s.Name, x.off/history.SectorBytes+int64(j))
			}
		}
	}
}

// differ returns the first sector in which two contents differ, or -1.
func differ(a, b []byte) int {
	for off := 0; off+history.SectorBytes <= len(a); off += history.SectorBytes {
		if !bytes.Equal(a[off:off+history.SectorBytes], b[off:off+history.SectorBytes]) {
			return off / history.SectorBytes
		}
	}
	return -1
}

// check checks the histories.
func (c *campaign) check(dir string) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	for _, d := range c.disks {
		c.losses(d)
		v := d.Check(dir)
		reads, failed := 0, 0
		for _, o := range d.Ops() {
			if o.Kind == history.Read {
				reads++
			}
			if o.Err != nil {
				failed++
			}
		}
		c.t.Logf("%s (ack=%s): %d operations, %d of them reads, %d failed; %d sectors, %d takeovers, %d that may have lost writes, %d not decided", d.name, d.ack, len(d.Ops()), reads, failed, v.Sectors,
			len(d.Takeovers()), len(d.Losses()), v.Unknown)
		for _, text := range v.Violations {
			c.fail("%s: %s", d.name, text)
		}
		if v.Unknown > 0 {
			c.fail("%s: %d sectors could not be decided within %v: the workload is too dense", d.name, v.Unknown, history.CheckFor)
		}
	}
	c.journal.mu.Lock()
	text := c.journal.text.String()
	c.journal.mu.Unlock()
	for line := range strings.Lines(text) {
		if strings.Contains(line, "VIOLATION") {
			c.fail("%s", strings.TrimSpace(line))
		}
	}
	if !c.t.Failed() {
		_ = os.RemoveAll(dir)
	}
}

// losses holds what nodes told of lost writes against what was broken: with ack=all nothing is lost unless a machine has lost power.
func (c *campaign) losses(d *disk) {
	for _, l := range d.Losses() {
		if d.ack == "all" && !slices.ContainsFunc(c.cuts, func(p powerCut) bool { return p.at.Before(l.At) }) {
			c.fail("%s has ack=all, and %s tells of lost writes in epoch %d, at %s, although no machine has lost power", d.name, l.Node, l.Epoch, history.Clock(l.At))
		}
	}
}
