package crdt

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
)

// point is a place in one lineage's chain of commits.
type point struct {
	instance uint32
	version  uint64
}

func (p point) compare(q point) int {
	return cmp.Or(cmp.Compare(p.instance, q.instance), cmp.Compare(p.version, q.version))
}

func (p point) String() string { return fmt.Sprintf("%d/%d", p.instance, p.version) }

// head is what the order of records looks at. Its field numbers are those of Record.
type head struct {
	Instance uint32 `cbor:"2,keyasint"`
	Lineage  []Fork `cbor:"3,keyasint,omitempty"`
	Version  uint64 `cbor:"5,keyasint"`
	Phase    Phase  `cbor:"9,keyasint"`
}

func (r *Record) head() head { return head{r.Instance, r.Lineage, r.Version, r.Phase} }

func (h head) point() point { return point{h.Instance, h.Version} }

// compareRank orders the records of one lineage: by commit, and a deleted one after all others.
func (h head) compareRank(o head) int {
	if d, e := h.Phase == PhaseDeleted, o.Phase == PhaseDeleted; d != e {
		if d {
			return 1
		}
		return -1
	}
	return h.point().compare(o.point())
}

// dominates says whether h stands for everything that o says (o <= h in protocol terms).
func (h head) dominates(o head) bool {
	if len(o.Lineage) > len(h.Lineage) || !slices.Equal(o.Lineage, h.Lineage[:len(o.Lineage)]) {
		return false
	}
	if len(o.Lineage) == len(h.Lineage) {
		return o.compareRank(h) <= 0
	}
	// h descends from o's lineage and knows of it what was committed up to the fork. A deletion ranks after every
	// commit and therefore after the fork too; taking its version instead would make the order intransitive.
	fork := h.Lineage[len(o.Lineage)]
	return o.Phase != PhaseDeleted && o.point().compare(point{fork.Instance, fork.Version}) <= 0
}

// sameCommit says whether both are the same commit of the same lineage, and so must be the same record.
func (h head) sameCommit(o head) bool {
	return slices.Equal(h.Lineage, o.Lineage) && h.compareRank(o) == 0
}

func (h head) compareLineage(o head) int {
	return slices.CompareFunc(h.Lineage, o.Lineage, func(f, g Fork) int {
		return cmp.Or(bytes.Compare(f.ID[:], g.ID[:]), point{f.Instance, f.Version}.compare(point{g.Instance, g.Version}))
	})
}

// Dominates says whether r makes other redundant: both belong to one lineage and r is the same commit or a later one
// (a deletion is later than all), or r's lineage forked from other's at or after other. Of two records neither of which
// dominates the other, the disk has two histories (a forced split brain), and only an operator can choose.
func (r *Record) Dominates(other Record) bool { return r.head().dominates(other.head()) }

// MergeViews returns the records of a and b that no other of them dominates, sorted by lineage: the join of two views
// of one disk. If the same commit is there with different content, which only a fault can bring about, the one whose
// encoding is smaller stays, so that all nodes choose the same.
func MergeViews(a, b []Record) []Record {
	items := make([]viewItem[Record], 0, len(a)+len(b))
	for _, view := range [][]Record{a, b} {
		for i := range view {
			items = append(items, viewItem[Record]{view[i].head(), view[i]})
		}
	}
	kept, _ := joinViews(items, func(x, y Record) int {
		p, _ := x.encode() // a record that cannot be encoded has no bytes, and so the smallest
		q, _ := y.encode()
		return bytes.Compare(p, q)
	})
	return kept
}

type viewItem[T any] struct {
	head head
	rec  T
}

// joinViews returns the maximal records, sorted by lineage, and those that are the same commit as a kept one but differ in
// content. There is at most one maximum per lineage, because a lineage is totally ordered.
func joinViews[T any](items []viewItem[T], compare func(x, y T) int) (kept, differing []T) {
	var tops []viewItem[T]
next:
	for _, it := range items {
		for i := 0; i < len(tops); i++ {
			top := &tops[i]
			if top.head.sameCommit(it.head) {
				switch c := compare(it.rec, top.rec); {
				case c < 0:
					differing = append(differing, top.rec)
					top.rec = it.rec
				case c > 0:
					differing = append(differing, it.rec)
				}
				continue next
			}
			if top.head.dominates(it.head) {
				continue next
			}
		}
		tops = slices.DeleteFunc(tops, func(top viewItem[T]) bool { return it.head.dominates(top.head) })
		tops = append(tops, it)
	}
	slices.SortFunc(tops, func(x, y viewItem[T]) int { return x.head.compareLineage(y.head) })
	for _, top := range tops {
		kept = append(kept, top.rec)
	}
	return kept, differing
}
