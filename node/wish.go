package node

import (
	"encoding/json"
	"fmt"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
)

// policyHere is what $here stands for in the rule of a disk: a place.Here as JSON, written by the node that has the disk attached, or else looks after it.
const policyHere = "here"

// policyFewer allows that a disk has fewer copies in sync while it moves to where the rule wants it that the policy names. It is ended by whoever does the
// move, once that is done; another rule ends it, too.
const policyFewer = "allow-fewer"

// policyRanges are the blocks of a disk that have a rule of their own, as place.RangeRules.String writes them: one register, so of two changes that were made
// on two sides of a cut all of the later one counts, as of two rules.
const policyRanges = "ranges"

// wish is what administrators want of a disk.
type wish struct {
	text   string     // of the rule, as it is kept; "" if the disk has none
	asked  place.Rule // what text says
	rule   place.Rule // the same with what $here stands for now
	ranges place.RangeRules
	here   place.Here
	fewer  bool // copies in sync are allowed while it moves there
	keep   bool // nodes keep old copies
	kept   oldCopies
	err    error // why there is no rule to plan by
}

// wishOf returns what is wanted of a disk, as it is known here.
func wishOf(d *crdt.Disk) (w wish) {
	w.text, w.keep, w.kept = d.Rule.Value, d.Policy[policyKeep].Value == keepOn, keptOf(d)
	if p, ok := d.Policy[policyHere]; ok {
		_ = json.Unmarshal([]byte(p.Value), &w.here) // what cannot be read is found out anew
	}
	if w.text == "" {
		return w
	}
	if w.asked, w.err = place.ParseText(w.text); w.err == nil {
		w.rule, w.err = w.asked.At(w.here.Values)
	}
	if p, ok := d.Policy[policyRanges]; ok && w.err == nil {
		w.ranges, w.err = place.ParseRangeRules(p.Value)
	}
	if p, ok := d.Policy[policyFewer]; ok {
		w.fewer = p.Value == w.all()
	}
	return w
}

// wish is what is wanted of a disk that gets a rule.
func wishFor(rule place.Rule, here place.Here) (w wish) {
	w = wish{text: rule.String(), asked: rule, here: here}
	w.rule, w.err = rule.At(here.Values)
	return w
}

// all returns all that is planned by as text: when it is another, so may the plan be.
func (w wish) all() string {
	if len(w.ranges) == 0 {
		return w.now()
	}
	return w.now() + "; " + w.ranges.String()
}

// now returns the rule by which is planned as text.
func (w wish) now() string {
	if w.err != nil || w.asked.Follow == 0 {
		return w.text
	}
	return w.rule.String()
}

// setHere returns the policy with which h is kept.
func setHere(c *crdt.Catalog, disk ukai.DiskID, h place.Here, at crdt.Stamp) (crdt.Delta, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return crdt.Delta{}, err
	}
	return c.SetPolicy(disk, policyHere, string(text), at)
}

// unusedAfter is for how long a disk must not have been attached before a stay elsewhere has ended: VMs that are moved from host to host, or boot, let
// go of it for a moment.
const unusedAfter = time.Minute

// follow keeps what $here stands for in the rule of a disk that is this node's to look after. It returns what is wanted of the disk now. unused is since
// when disks have not been attached, as this node has seen it.
func (n *Node) follow(p people, d tended, unused map[ukai.DiskID]time.Time) wish {
	w := wishOf(d.Disk)
	if w.asked.Follow == 0 {
		delete(unused, d.ID)
		return w
	}
	now := time.Now()
	held, _ := n.host.Held(d.ID)
	used := held.Here && held.Attached > 0
	var h place.Here
	var changed bool
	switch since, known := unused[d.ID]; {
	case used:
		delete(unused, d.ID)
		h, changed = w.here.Used(w.asked, n.asPlace(p), now)
	case !known:
		unused[d.ID] = now
		return w
	case now.Sub(since) >= unusedAfter:
		if h, changed = w.here.Unused(); w.err == nil {
			break
		}
		if values := place.HereNow(w.asked, d.rec, p.candidates()); len(values) > 0 { // the rule and what $here stands for were set on two sides of a cut
			h, changed = place.Here{Values: values, Since: now}, true
		}
	}
	if !changed {
		return w
	}
	err := n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		return setHere(c, d.ID, h, stamp())
	})
	if err != nil {
		if n.ctx.Err() == nil {
			n.log.Warn("where a disk is used could not be told to the mesh", "disk", d.Name.Value, "err", err)
		}
		return w
	}
	next := wishFor(w.asked, h)
	next.text, next.ranges, next.keep, next.kept = w.text, w.ranges, w.keep, w.kept
	next.fewer = w.fewer && next.all() == w.all()
	if before := w.now(); before != next.now() && next.err == nil && w.err == nil {
		n.events.add(admin.Event{Level: admin.Notice, Kind: "disk-follows", Disk: d.Name.Value, Node: n.cfg.Name,
			Text: fmt.Sprintf("disk %s has been used on %s for %v and follows: its rule is now %s", d.Name.Value, n.cfg.Name, w.asked.Follow, next.now())})
	}
	return next
}

// asPlace returns this node as the planner sees it.
func (n *Node) asPlace(p people) place.Node {
	return place.Node{ID: n.id, Name: n.cfg.Name, Labels: p.labels(n.id)}
}

// hereFor returns what $here stands for when a disk gets a rule: what it stood for in the rule before; else where the disk is attached, or if nobody has it
// attached, where most of its copies are. p has heard of the disk.
func (n *Node) hereFor(p people, d *crdt.Disk, rec crdt.Record, rule place.Rule) (place.Here, error) {
	before := wishOf(d)
	keys := rule.HereKeys()
	if len(keys) == 0 {
		return before.here, nil // kept: it costs nothing, and a cancelled job may go back to it
	}
	if _, err := rule.At(before.here.Values); err == nil && before.asked.Follow != 0 {
		return before.here, nil
	}
	now := time.Now()
	held, here := n.host.Held(rec.Disk)
	if !here {
		held = p.told[rec.Disk]
	}
	if held.Here && held.Attached > 0 {
		at := place.Node{ID: held.Holder, Name: p.name(held.Holder), Labels: p.labels(held.Holder)}
		values, err := place.HereAt(rule, at)
		return place.Here{Values: values, Node: held.Holder, Since: now}, err
	}
	h := place.Here{Values: place.HereNow(rule, rec, p.candidates()), Since: now}
	for _, key := range keys {
		if h.Values[key] == "" {
			return h, fmt.Errorf("rule %q: %w: no node with a copy in sync has a label %s, which %s=$here needs: ukai-node place node NAME %s=VALUE", rule, ukai.ErrInvalid, key, key, key)
		}
	}
	return h, nil
}

// showHere tells what $here stands for in the rule of a disk.
func showHere(p people, w wish) *admin.Here {
	if w.asked.Follow == 0 {
		return nil
	}
	out := &admin.Here{FollowSeconds: int64(w.asked.Follow / time.Second), Values: ukai.Labels{}, Since: w.here.Since}
	for _, key := range w.asked.HereKeys() {
		if v := w.here.Values[key]; v != "" {
			out.Values[key] = v
		}
	}
	if !w.here.Node.IsZero() {
		ref := p.ref(w.here.Node)
		out.Node = &ref
	}
	if s := w.here.Next; s != nil {
		out.Next = &admin.HereNext{Values: s.Values, Node: p.ref(s.Node), Since: s.Since, At: s.Since.Add(w.asked.Follow)}
	}
	return out
}
