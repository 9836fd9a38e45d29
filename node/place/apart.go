package place

import (
	"cmp"
	"slices"
	"strings"

	"ukai"
	"ukai/crdt"
)

// grouping is what a plan keeps of a disk whose blocks have not all the same replicas, or are not all to have the same rule. Nil for all others.
type grouping struct {
	w     *work
	now   crdt.Record // as it is before the first step
	bytes map[int]int64
}

// taken returns the bytes that steps so far put on a node.
func (p *grouping) taken(node int) int64 {
	if p == nil {
		return 0
	}
	return p.bytes[node]
}

// take notes that a replica is added on a node, and returns the one that the node has of other blocks; 0 if it has none.
func (p *grouping) take(node int, bytes int64) ukai.ReplicaID {
	if p == nil {
		return 0
	}
	p.bytes[node] += bytes
	for _, r := range p.w.rec.ReplicasOn(p.w.p.nodes[node].ID) {
		if _, lost := p.w.p.Lost[r]; !lost {
			return r
		}
	}
	return 0
}

// stuck says whether a node can take no new replica because the one that it has of other blocks is lost, and is the record's to keep.
func (p *grouping) stuck(node int) bool {
	return p != nil && slices.ContainsFunc(p.w.rec.ReplicasOn(p.w.p.nodes[node].ID), func(r ukai.ReplicaID) bool {
		_, lost := p.w.p.Lost[r]
		return lost && p.w.rec.InSyncAnywhere(r)
	})
}

// apart plans a disk whose blocks have not all the same replicas and rule. Blocks get a group of their own where they are to have another rule than others
// of their group; then each group is brought to where its rule wants it; groups of one rule whose replicas are the same become one.
func (w *work) apart() error {
	disk := w.rule
	p := &grouping{w: w, now: w.rec.Clone(), bytes: map[int]int64{}}
	rec := w.rec.Clone()
	w.rec, w.grouping = &rec, p
	step := func(s Step) {
		w.plan.Steps = append(w.plan.Steps, s)
		s.apply(&rec)
	}
	of := func(rec *crdt.Record, group uint8) []piece { return w.p.Ranges.pieces(disk, rec.RangesOf(group)) }
	w.merges(&rec, of, mergeable, step)
	full := w.splits(&rec, of, step)
	if err := w.moves(disk, &rec, of, full); err != nil {
		return err
	}
	after := w.plan.After(p.now)
	w.merges(&after, of, alike, func(s Step) {
		s.Waits = true
		w.plan.Steps = append(w.plan.Steps, s)
		s.apply(&after)
	})
	return nil
}

// merges has groups that are wholly of one rule become one.
func (w *work) merges(rec *crdt.Record, of func(*crdt.Record, uint8) []piece, may func(a, b *crdt.Group) bool, step func(Step)) {
	for {
		into, group, found := uint8(0), uint8(0), false
		for i := range rec.Groups {
			for j := range rec.Groups[:i] {
				a, b := &rec.Groups[j], &rec.Groups[i]
				ours, theirs := of(rec, a.ID), of(rec, b.ID)
				if !found && may(a, b) && len(ours) == 1 && len(theirs) == 1 && ours[0].class == theirs[0].class {
					into, group, found = a.ID, b.ID, true
				}
			}
		}
		if !found {
			return
		}
		step(Step{Kind: MergeGroup, Group: group, Into: into, Blocks: rec.RangesOf(group)})
	}
}

// splits gives blocks that are to have another rule than others of their group one of their own. It returns those for which there is no room.
func (w *work) splits(rec *crdt.Record, of func(*crdt.Record, uint8) []piece, step func(Step)) (full map[uint8]bool) {
	full = map[uint8]bool{}
	var ids []uint8
	for i := range rec.Groups {
		ids = append(ids, rec.Groups[i].ID)
	}
	for _, id := range ids {
		for _, piece := range of(rec, id)[1:] {
			into, err := rec.FreeGroup()
			if err != nil {
				full[id] = true
				break
			}
			step(Step{Kind: SplitGroup, Group: id, Into: into, Blocks: piece.blocks})
		}
	}
	return full
}

// moves plans the members of each group.
func (w *work) moves(disk Rule, rec *crdt.Record, of func(*crdt.Record, uint8) []piece, full map[uint8]bool) error {
	w.plan.Targets = map[string][]ukai.NodeID{}
	var unmet, missing []string
	var help string
	before := len(w.plan.Steps)
	first := map[int][]int{} // where those of a rule go: all go where the most blocks do, or they could not be merged
	for _, g := range largestFirst(rec) {
		piece := of(rec, g.ID)[0]
		w.rule = w.p.Ranges.rule(disk, piece.class)
		var err error
		if w.e, err = w.p.eligibility(w.rule); err != nil {
			return err
		}
		blocks := rec.RangesOf(g.ID)
		w.need = w.share(blocks)
		from := len(w.plan.Steps)
		target := first[piece.class]
		switch {
		case target == nil:
			target = w.group(g)
			first[piece.class] = target
		case w.joins(g, target):
			w.steps(g, target)
		default:
			target = w.group(g)
		}
		target = slices.Clone(target)
		for s := range w.plan.Steps[from:] {
			w.plan.Steps[from+s].Blocks = blocks
		}
		if w.targets == nil || piece.class == 0 && w.plan.Targets[disk.String()] == nil {
			w.targets = slices.Clone(target)
		}
		slices.Sort(target)
		if text := w.rule.String(); w.plan.Targets[text] == nil {
			w.plan.Targets[text] = w.p.ids(target)
		}
		if full[g.ID] && w.plan.Unmet == "" {
			w.plan.Missing, w.plan.Help = "the disk has as many groups of replicas as can be", "wait until blocks that have the same rule again are merged, or use fewer different rules"
			w.plan.Unmet = w.plan.Missing + "; what would help: " + w.plan.Help
		}
		if w.plan.Unmet != "" {
			where := "blocks " + Ranges(blocks) + ": "
			unmet, missing = append(unmet, where+w.plan.Unmet), append(missing, where+w.plan.Missing)
			if help == "" {
				help = w.plan.Help
			}
			if text := w.rule.String(); !slices.Contains(w.plan.Short, text) {
				w.plan.Short = append(w.plan.Short, text)
			}
			w.plan.Unmet, w.plan.Missing, w.plan.Help = "", "", ""
		}
	}
	w.plan.Unmet, w.plan.Missing, w.plan.Help = strings.Join(unmet, "; "), strings.Join(missing, "; "), help
	w.rule = disk
	// A node has one replica of a disk, whatever it serves: one that is lost goes everywhere before another is made there.
	slices.SortStableFunc(w.plan.Steps[before:], func(a, b Step) int {
		return compareBool(b.Kind == DropReplica && b.Why == lostWhy, a.Kind == DropReplica && a.Why == lostWhy)
	})
	return nil
}

// largestFirst returns the groups of a record, those with the most blocks first.
func largestFirst(rec *crdt.Record) (list []*crdt.Group) {
	for i := range rec.Groups {
		list = append(list, &rec.Groups[i])
	}
	slices.SortStableFunc(list, func(a, b *crdt.Group) int { return cmp.Compare(rec.BytesOf(b.ID), rec.BytesOf(a.ID)) })
	return list
}

// joins says whether a group can have its replicas on some nodes, as another of its rule has.
func (w *work) joins(g *crdt.Group, nodes []int) bool {
	return !slices.ContainsFunc(nodes, func(i int) bool {
		n := &w.p.nodes[i]
		has := slices.ContainsFunc(g.Members, func(m crdt.Member) bool { return m.Node == n.ID && !w.p.lost(m) })
		return !has && (!n.fits(w.need+w.grouping.taken(i)) || w.grouping.stuck(i))
	})
}

// share returns how many bytes a replica of some blocks takes at most.
func (w *work) share(blocks []ukai.Range) (bytes int64) {
	for _, b := range blocks {
		bytes += int64(b.Count) * int64(w.rec.BlockSize)
	}
	return min(bytes, w.allocated)
}
