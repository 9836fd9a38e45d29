package crdt

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"ukai"
	"ukai/crdt/codec"
)

// Limits on what the catalog keeps of a disk beside its record.
const (
	MaxRuleLen  = 2048 // bytes of a placement rule's text
	maxValueLen = 2048 // bytes of a policy's or setting's value
	maxPolicies = 64
	// maxPoliciesDecoded is looser, because nodes that do not see each other may set policies of the same disk.
	maxPoliciesDecoded = 1024
	maxView            = 64 // records of a disk with several histories
)

// Born says who made a disk, when, and under which name. It never changes.
type Born struct {
	Creator ukai.NodeID `cbor:"1,keyasint" json:"creator"`
	Stamp   Stamp       `cbor:"2,keyasint" json:"stamp"`
	Name    string      `cbor:"3,keyasint" json:"name"`
}

// IsZero says whether the birth of the disk is not known here (yet).
func (b Born) IsZero() bool { return b == Born{} }

// Disk is what the catalog knows of a disk: what administrators want, and the view, what its arbiters committed.
type Disk struct {
	ID      ukai.DiskID                 `json:"id"`
	Born    Born                        `json:"born"`
	Name    Register[string]            `json:"name"`
	Rule    Register[string]            `json:"rule"`    // text form of a placement rule
	Removed Register[bool]              `json:"removed"` // by rm, until restore; Stamp says when
	Policy  map[string]Register[string] `json:"policy,omitempty"`
	Buried  Stamp                       `json:"buried,omitzero"` // when the deletion was first swept, see Catalog.Sweep
	View    []Record                    `json:"view"`            // normally one
}

// Record returns the disk's committed record, or false if none is known here or if there are several histories and none of them was picked.
func (d *Disk) Record() (Record, bool) {
	if at := d.chosen(); at >= 0 {
		return d.View[at], true
	}
	return Record{}, false
}

// Conflict says whether the disk has several histories (forced split brain) of which none was picked. Then it must not be attached before an
// operator has done that.
func (d *Disk) Conflict() bool { return len(d.View) > 1 && d.chosen() < 0 }

// Deleted says whether the disk is gone for good, in all its histories.
func (d *Disk) Deleted() bool {
	return len(d.View) > 0 && !slices.ContainsFunc(d.View, func(r Record) bool { return r.Phase != PhaseDeleted })
}

// Live says whether the disk is neither removed nor deleted: it has a file, and its name is taken.
func (d *Disk) Live() bool { return !d.Removed.Value && !d.Deleted() }

// packed is the encoding of a checked Record. The catalog keeps records so: it is compact, comparing is comparing bytes,
// and fields of newer releases pass through unharmed.
type packed string

func (p packed) record() Record {
	r, err := DecodeRecord([]byte(p))
	if err != nil {
		panic(err) // was checked when it was packed
	}
	return r
}

func (p packed) head() head {
	var h head
	if err := codec.Unmarshal([]byte(p), &h); err != nil {
		panic(err) // was checked when it was packed
	}
	return h
}

// diskFields is a Disk as the catalog stores it and as deltas carry it, whole or in part. Its slices are never changed in
// place, so copies may share them.
type diskFields struct {
	id      ukai.DiskID
	born    Born
	name    Register[string]
	rule    Register[string]
	removed Register[bool]
	buried  Stamp
	policy  []policyField // sorted by key
	view    []packed      // sorted by lineage; none dominates another
}

type policyField struct {
	Key   string           `cbor:"1,keyasint"`
	Value Register[string] `cbor:"2,keyasint"`
}

// wireDisk is diskFields on the wire.
type wireDisk struct {
	ID      ukai.DiskID      `cbor:"1,keyasint"`
	Born    Born             `cbor:"2,keyasint,omitzero"`
	Name    Register[string] `cbor:"3,keyasint,omitzero"`
	Rule    Register[string] `cbor:"4,keyasint,omitzero"`
	Removed Register[bool]   `cbor:"5,keyasint,omitzero"`
	Policy  []policyField    `cbor:"6,keyasint,omitempty"`
	Buried  Stamp            `cbor:"7,keyasint,omitzero"`
	View    [][]byte         `cbor:"8,keyasint,omitempty"`
}

func (f *diskFields) wire() wireDisk {
	w := wireDisk{ID: f.id, Born: f.born, Name: f.name, Rule: f.rule, Removed: f.removed, Policy: f.policy, Buried: f.buried}
	for _, p := range f.view {
		w.View = append(w.View, []byte(p))
	}
	return w
}

// fields checks w and returns what it says.
func (w *wireDisk) fields() (diskFields, error) {
	f := diskFields{id: w.ID, born: w.Born, name: w.Name, rule: w.Rule, removed: w.Removed, buried: w.Buried, policy: w.Policy}
	if err := f.check(); err != nil {
		return diskFields{}, err
	}
	if len(w.View) > maxView {
		return diskFields{}, invalid("disk %v: %d histories", w.ID, len(w.View), fmt.Sprintf("at most %d", maxView))
	}
	for _, data := range w.View {
		rec, err := DecodeRecord(data)
		if err != nil {
			return diskFields{}, fmt.Errorf("disk %v: %w", w.ID, err)
		}
		if rec.Disk != w.ID {
			return diskFields{}, invalid("disk %v: record of disk %v", w.ID, rec.Disk, "belongs to another disk")
		}
		f.view = append(f.view, packed(data))
	}
	return f, nil
}

// check says what is wrong with f apart from its records, which are checked when they are packed.
func (f *diskFields) check() error {
	if f.id.IsZero() {
		return invalid("disk id", "must not be zero")
	}
	if err := f.checkValues(); err != nil {
		return fmt.Errorf("disk %v: %w", f.id, err)
	}
	return nil
}

func (f *diskFields) checkValues() error {
	if !f.born.IsZero() {
		if err := cmp.Or(ukai.CheckName("disk", f.born.Name), checkWritten("birth", f.born.Stamp)); err != nil {
			return err
		}
	}
	if f.name != (Register[string]{}) {
		if err := cmp.Or(ukai.CheckName("disk", f.name.Value), checkWritten("name", f.name.Stamp)); err != nil {
			return err
		}
	}
	if f.rule != (Register[string]{}) {
		if err := cmp.Or(checkText("rule", f.rule.Value, MaxRuleLen), checkWritten("rule", f.rule.Stamp)); err != nil {
			return err
		}
	}
	if f.removed != (Register[bool]{}) {
		if err := checkWritten("removal", f.removed.Stamp); err != nil {
			return err
		}
	}
	if f.buried != (Stamp{}) {
		if err := checkWritten("burial", f.buried); err != nil {
			return err
		}
	}
	if len(f.policy) > maxPoliciesDecoded {
		return invalid("%d policies", len(f.policy), fmt.Sprintf("at most %d", maxPoliciesDecoded))
	}
	for i, p := range f.policy {
		if i > 0 && f.policy[i-1].Key >= p.Key {
			return invalid("policy %q", p.Key, "policies must be sorted and distinct")
		}
		if err := cmp.Or(ukai.CheckName("policy", p.Key), checkText("policy "+p.Key, p.Value.Value, maxValueLen), checkWritten("policy "+p.Key, p.Value.Stamp)); err != nil {
			return err
		}
	}
	return nil
}

func checkText(what, text string, limit int) error {
	if len(text) > limit {
		return invalid("%s of %d bytes", what, len(text), fmt.Sprintf("at most %d", limit))
	}
	return nil
}

// merge joins what d says into f. It says whether that changed f, and returns records that contradict one that f keeps.
func (f *diskFields) merge(d *diskFields) (changed bool, differing []packed) {
	if f.born.mergeBorn(d.born) {
		changed = true
	}
	changed = f.name.Merge(d.name) || changed
	changed = f.rule.Merge(d.rule) || changed
	changed = f.removed.Merge(d.removed) || changed
	if f.buried.Less(d.buried) {
		f.buried, changed = d.buried, true
	}
	changed = f.mergePolicy(d.policy) || changed
	viewChanged, differing := f.mergeView(d.view)
	return changed || viewChanged, differing
}

// mergeBorn takes the one that is known. Ids are random, so two births of one disk cannot meet; if a fault makes them
// meet, the earlier wins everywhere.
func (b *Born) mergeBorn(o Born) bool {
	if o.IsZero() || *b == o || !b.IsZero() && b.compare(o) < 0 {
		return false
	}
	*b = o
	return true
}

func (b Born) compare(o Born) int {
	return cmp.Or(b.Stamp.Compare(o.Stamp), bytes.Compare(b.Creator[:], o.Creator[:]), strings.Compare(b.Name, o.Name))
}

func (f *diskFields) mergePolicy(theirs []policyField) (changed bool) {
	for _, t := range theirs {
		i, found := slices.BinarySearchFunc(f.policy, t.Key, func(p policyField, key string) int { return strings.Compare(p.Key, key) })
		if !found {
			f.policy, changed = slices.Insert(slices.Clone(f.policy), i, t), true
			continue
		}
		if ours := f.policy[i].Value; ours.Merge(t.Value) {
			f.policy, changed = slices.Clone(f.policy), true
			f.policy[i].Value = ours
		}
	}
	return changed
}

func (f *diskFields) mergeView(theirs []packed) (changed bool, differing []packed) {
	if len(theirs) == 0 || slices.Equal(f.view, theirs) {
		return false, nil
	}
	if len(f.view) == 0 && len(theirs) == 1 {
		f.view = theirs // the usual first sight of a disk
		return true, nil
	}
	items := make([]viewItem[packed], 0, len(f.view)+len(theirs))
	for _, p := range append(slices.Clip(f.view), theirs...) {
		items = append(items, viewItem[packed]{p.head(), p})
	}
	view, differing := joinViews(items, func(x, y packed) int { return cmp.Compare(x, y) })
	if slices.Equal(f.view, view) {
		return false, differing
	}
	f.view = view
	return true, differing
}

// isDeleted says whether all histories of the disk end in its deletion.
func (f *diskFields) isDeleted() bool { return len(f.view) > 0 && !f.isLive() }

// isLive says whether some history of the disk is known to go on.
func (f *diskFields) isLive() bool {
	return slices.ContainsFunc(f.view, func(p packed) bool { return p.head().Phase != PhaseDeleted })
}

// disk returns f in the form that callers get, sharing nothing that changes.
func (f *diskFields) disk() *Disk {
	d := &Disk{ID: f.id, Born: f.born, Name: f.name, Rule: f.rule, Removed: f.removed, Buried: f.buried, View: make([]Record, 0, len(f.view))}
	if len(f.policy) > 0 {
		d.Policy = make(map[string]Register[string], len(f.policy))
		for _, p := range f.policy {
			d.Policy[p.Key] = p.Value
		}
	}
	for _, p := range f.view {
		d.View = append(d.View, p.record())
	}
	return d
}

// stamps calls g with every stamp in f until g returns an error, and returns that.
func (f *diskFields) stamps(g func(Stamp) error) error {
	for _, s := range []Stamp{f.born.Stamp, f.name.Stamp, f.rule.Stamp, f.removed.Stamp, f.buried} {
		if err := g(s); err != nil {
			return err
		}
	}
	for _, p := range f.policy {
		if err := g(p.Value.Stamp); err != nil {
			return err
		}
	}
	return nil
}

// parts returns what of f merges independently, each as an entry of its own.
func (f *diskFields) parts() []diskFields {
	var parts []diskFields
	if names := (diskFields{id: f.id, born: f.born, name: f.name, removed: f.removed, buried: f.buried}); !names.isBottom() {
		parts = append(parts, names)
	}
	if !f.rule.IsZero() {
		parts = append(parts, diskFields{id: f.id, rule: f.rule})
	}
	for i := range f.policy {
		parts = append(parts, diskFields{id: f.id, policy: f.policy[i : i+1 : i+1]})
	}
	for i := range f.view {
		parts = append(parts, diskFields{id: f.id, view: f.view[i : i+1 : i+1]})
	}
	return parts
}

func (f *diskFields) isBottom() bool {
	return f.born.IsZero() && f.name.IsZero() && f.rule.IsZero() && f.removed.IsZero() && f.buried.IsZero() && len(f.policy) == 0 && len(f.view) == 0
}
