package crdt

import (
	"strings"
	"testing"

	"ukai"
)

func TestTheRecordOfADiskIsThatOfThePickedHistory(t *testing.T) {
	// a and b were forced from the base, aa and ab later from a.
	fork := func(ids ...byte) (r Record) {
		for i, id := range ids {
			r.Lineage = append(r.Lineage, Fork{ID: ukai.Nonce{id}, Version: uint64(i + 1)})
		}
		return r
	}
	tip := func(r Record) string { return r.Tip() }
	base, a, b, aa, ab := fork(), fork(1), fork(2), fork(1, 3), fork(1, 4)
	for _, c := range []struct {
		what   string
		view   []Record
		picked []Record
		want   string // its tip, "" if there is none
		aside  int
		whole  bool
	}{
		{"nothing is known", nil, nil, "", 0, true},
		{"one history", []Record{a}, nil, tip(a), 0, true},
		{"two histories", []Record{a, b}, nil, "", 0, true},
		{"one was picked", []Record{a, b}, []Record{b, a}, tip(b), 1, true},
		{"the one that was picked has not come", []Record{a}, []Record{b, a}, "", 0, false},
		{"the one that was set aside has not come", []Record{b}, []Record{b, a}, tip(b), 0, false},
		{"neither has come", []Record{base}, []Record{b, a}, tip(base), 0, false},
		{"the picked one was forced again", []Record{aa, b}, []Record{a, b}, tip(aa), 1, true},
		{"the one set aside was forced again", []Record{aa, b}, []Record{b, a}, tip(b), 1, true},
		{"the picked one was split again", []Record{aa, ab, b}, []Record{a, b}, "", 0, true},
		{"and one of these was picked", []Record{aa, ab, b}, []Record{ab, aa, b, a}, tip(ab), 2, true},
		{"the base was picked", []Record{base, a}, []Record{base, a}, tip(base), 1, true},
		{"the base was set aside", []Record{base, a}, []Record{a, base}, tip(a), 1, true},
		{"a third one turns up", []Record{a, b, fork(9)}, []Record{a, b}, "", 0, true},
	} {
		var tips []string
		for _, r := range c.picked {
			tips = append(tips, tip(r))
		}
		d := Disk{View: c.view, Policy: map[string]Register[string]{PolicyPicked: {Value: strings.Join(tips, " ")}}}
		rec, ok := d.Record()
		if ok != (c.want != "") || ok && rec.Tip() != c.want {
			t.Errorf("%s: record %v of %s, want %q", c.what, ok, rec.Tip(), c.want)
		}
		if conflict := len(c.view) > 1 && c.want == ""; d.Conflict() != conflict {
			t.Errorf("%s: conflict %v", c.what, d.Conflict())
		}
		if aside, whole := d.Aside(); len(aside) != c.aside || whole != c.whole {
			t.Errorf("%s: %d are aside, all known: %v", c.what, len(aside), whole)
		}
	}
}

func TestAHistoryIsGivenUpUntilItIsPickedOrForcedAgain(t *testing.T) {
	history := func(forced uint64, ids ...byte) (r Record) {
		r.Epoch = ukai.NewEpoch(forced, 7)
		for i, id := range ids {
			r.Lineage = append(r.Lineage, Fork{ID: ukai.Nonce{id}, Version: uint64(i + 1)})
		}
		return r
	}
	a, b := history(1, 1), history(1, 2)
	for _, c := range []struct {
		what   string
		view   []Record
		picked []Record
		mark   string
		want   bool
	}{
		{"it was set aside and given up", []Record{a, b}, []Record{a, b}, "1", true},
		{"nobody gave it up", []Record{a, b}, []Record{a, b}, "", false},
		{"none was picked", []Record{a, b}, nil, "1", false},
		{"the disk goes on with it", []Record{a, b}, []Record{b, a}, "1", false},
		{"it is the only one", []Record{b}, []Record{b, a}, "1", false},
		{"it was picked since, and set aside again", []Record{a, history(2, 2)}, []Record{a, b}, "1", false},
		{"that was given up, too", []Record{a, history(2, 2)}, []Record{a, b}, "2", true},
		{"it was forced since", []Record{a, history(2, 2, 3)}, []Record{a, b}, "1", false},
		{"what a newer release says", []Record{a, b}, []Record{a, b}, "1 and more", false},
	} {
		var tips []string
		for _, r := range c.picked {
			tips = append(tips, r.Tip())
		}
		d := Disk{View: c.view, Policy: map[string]Register[string]{
			PolicyPicked: {Value: strings.Join(tips, " ")}, DiscardPolicy(b.Tip()): {Value: c.mark},
		}}
		last := &c.view[len(c.view)-1]
		if _, got := d.Discarded(last); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
		if err := ukai.CheckName("policy", DiscardPolicy(last.Tip())); err != nil {
			t.Error(err)
		}
	}
}
