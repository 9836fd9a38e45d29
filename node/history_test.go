package node

import (
	"strings"
	"testing"

	"ukai"
	"ukai/crdt"
)

func TestTheFilesOfHistoriesHaveNamesOfTheirOwn(t *testing.T) {
	fork := func(id ...byte) crdt.Record {
		if id == nil {
			return crdt.Record{}
		}
		var f crdt.Fork
		copy(f.ID[:], id)
		return crdt.Record{Lineage: []crdt.Fork{f}}
	}
	d := &crdt.Disk{ID: ukai.DiskID{1}, Name: crdt.Register[string]{Value: "vm1"}, View: []crdt.Record{
		fork(), fork(0xab, 0xcd), fork(0xab, 0xcd, 0, 0, 1), fork(9), {Lineage: fork(7).Lineage, Phase: crdt.PhaseDeleted},
	}}
	var got []string
	ids := map[ukai.DiskID]bool{d.ID: true}
	for _, at := range pasts(d) {
		i := pastInfo(d, at)
		got = append(got, i.Name)
		if err := ukai.CheckName("disk", i.Name); err != nil || ids[i.ID] || !i.ReadOnly {
			t.Errorf("%+v: %v", i, err)
		}
		ids[i.ID] = true
	}
	want := "vm1~conflict-0 vm1~conflict-abcd000000 vm1~conflict-abcd000001 vm1~conflict-09000000"
	if text := strings.Join(got, " "); text != want {
		t.Errorf("%s, want %s", text, want)
	}
	// The one that was picked has none.
	d.Policy = map[string]crdt.Register[string]{crdt.PolicyPicked: {Value: strings.Join([]string{d.View[3].Tip(), "0", d.View[1].Tip(), d.View[2].Tip(), d.View[4].Tip()}, " ")}}
	if list := pasts(d); len(list) != 3 {
		t.Errorf("histories %v have a file", list)
	}
	d.Removed.Value = true
	if list := pasts(d); len(list) != 0 {
		t.Errorf("of a removed disk histories %v have a file", list)
	}
}
