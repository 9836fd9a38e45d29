package node

import (
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node/store"
)

func isDue(r *relocations, disk ukai.DiskID, seen settledFor) bool {
	due, _ := r.due(disk, seen)
	return due
}

func TestARuleThatIsNotMetIsTriedAgainThoughNothingChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, disk, seen := newRelocations(), ukai.DiskID{1}, settledFor{version: 7, rule: "dc=tokyo:2"}
		r.rest(disk, seen, true)
		if time.Sleep(time.Hour); isDue(&r, disk, seen) {
			t.Error("a disk that is where its rule wants it is planned for without a reason")
		}
		if !isDue(&r, disk, settledFor{version: 8, rule: seen.rule}) {
			t.Error("a disk whose record changed is not looked at")
		}
		seen.version = 9
		r.rest(disk, seen, false)
		if isDue(&r, disk, seen) {
			t.Error("a rule that cannot be met is tried again at once")
		}
		if time.Sleep(unmetPause); !isDue(&r, disk, seen) {
			t.Error("a rule that could not be met is not tried again: space may be free by now")
		}
	})
}

func TestAReplicaThatTheRecordNamesIsNotPutAsideWhateverGossipSays(t *testing.T) {
	inMesh(t, 1, func(t *testing.T, nodes []*Node) {
		n := nodes[0]
		if _, err := n.CreateDisk(t.Context(), newDisk("vm1", "any:1")); err != nil {
			t.Fatal(err)
		}
		d, err := n.OpenDisk("vm1")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Attach(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, r := range n.store.Replicas() { // as if the record known here did not name them
			if err := n.retireReplica(t.Context(), r); err != nil {
				t.Error(err)
			}
		}
		if r := n.store.Replicas()[0]; r.Header.State != store.StateOpen {
			t.Errorf("the only replica of a disk is %v", r.Header.State)
		}
		if _, err := d.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
			t.Error(err)
		}
		if err := d.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
