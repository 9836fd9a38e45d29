package crdt

import (
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

// PolicyPicked is the policy of a disk with several histories that says which of them it goes on with: the tip of that one, then those of the
// histories that are set aside, separated by blanks. The last pick wins everywhere; the view keeps all histories, whichever is picked.
const PolicyPicked = "picked"

// baseTip is the tip of the history without a forced takeover.
const baseTip = "0"

func (f Fork) tip() string { return hex.EncodeToString(f.ID[:]) }

// Tip names the history that r is of: the id of its last forced takeover, or "0".
func (r *Record) Tip() string {
	if n := len(r.Lineage); n > 0 {
		return r.Lineage[n-1].tip()
	}
	return baseTip
}

// within returns the newest of these tips that r's lineage went through, "" if none. A history that was forced again stays what it was picked as.
func (r *Record) within(tips []string) string {
	for i := len(r.Lineage) - 1; i >= 0; i-- {
		if tip := r.Lineage[i].tip(); slices.Contains(tips, tip) {
			return tip
		}
	}
	if slices.Contains(tips, baseTip) {
		return baseTip
	}
	return ""
}

// Picked returns the tips of PolicyPicked: that of the history to go on with comes first. Empty: none was picked.
func (d *Disk) Picked() []string { return strings.Fields(d.Policy[PolicyPicked].Value) }

// chosen returns where in the view the disk's record is, or -1: it has not come yet, or is not decided.
func (d *Disk) chosen() int {
	tips := d.Picked()
	if len(tips) == 0 {
		if len(d.View) != 1 {
			return -1
		}
		return 0
	}
	at := -1
	for i := range d.View {
		switch d.View[i].within(tips) {
		case tips[0]:
			if at >= 0 {
				return -1 // that history was split again
			}
			at = i
		case "": // a history that nobody knew of when that was picked, or one that the others left from
			if len(d.View) > 1 {
				return -1
			}
			at = i
		}
	}
	return at
}

// Aside returns the histories that were set aside when another was picked. Whole says whether all are known here.
func (d *Disk) Aside() (aside []Record, whole bool) {
	tips, at := d.Picked(), d.chosen()
	for i := range d.View {
		if at >= 0 && i != at {
			aside = append(aside, d.View[i])
		}
	}
	for _, tip := range tips {
		if !slices.ContainsFunc(d.View, func(r Record) bool { return r.within([]string{tip}) != "" }) {
			return aside, false
		}
	}
	return aside, true
}

// DiscardPolicy is the policy of a disk that says that one of its histories, by its tip, is given up for good: up to which count of forced
// takeovers in its epoch, in decimal. Who picks a history or forces it raises that count, and so takes back what was said before.
func DiscardPolicy(tip string) string { return "discarded-" + tip }

// Discarded says whether a history that the disk does not go on with is given up for good, and up to which count of forced takeovers.
func (d *Disk) Discarded(rec *Record) (upTo uint64, ok bool) {
	at := d.chosen()
	if at < 0 || len(d.View) < 2 || d.View[at].Tip() == rec.Tip() {
		return 0, false
	}
	upTo, err := strconv.ParseUint(d.Policy[DiscardPolicy(rec.Tip())].Value, 10, 64)
	return upTo, err == nil && rec.Epoch.Forced() <= upTo
}
