package crdt

import (
	"fmt"
	"testing"

	"ukai"
)

// An entry that one node can make and another refuses to read would keep the two from ever being equal.
func TestPoliciesThatCanBeSetCanBeRead(t *testing.T) {
	a, b := newSite(t, 1), newSite(t, 2)
	id := a.create(1, "vm1")
	b.mergeChecked(a.Extract([]Key{DiskKey(id)}))
	for i := range maxPolicies {
		a.must(a.SetPolicy(id, fmt.Sprintf("a%d", i), "x", a.now()))
		b.must(b.SetPolicy(id, fmt.Sprintf("b%d", i), "x", b.now()))
	}
	_, err := a.SetPolicy(id, "more", "x", a.now())
	wantError(t, "a policy too many", err, ukai.ErrInvalid, "at most 64")
	a.must(a.SetPolicy(id, "a0", "y", a.now()))

	a.mergeChecked(b.Extract([]Key{DiskKey(id)}))
	data, err := a.Extract([]Key{DiskKey(id)}).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	d, err := UnmarshalDelta(data)
	if err != nil {
		t.Fatalf("what two nodes have set without seeing each other cannot be read: %v", err)
	}
	b.mergeChecked(d)
	if a.Digest() != b.Digest() {
		t.Error("catalogs differ")
	}
}

// Ids are random, so only a fault makes two births of one disk meet. Then all nodes must agree on the earlier.
func TestTheEarlierBirthWins(t *testing.T) {
	early := Born{Creator: nodeID(2), Stamp: Stamp{Wall: 1, Node: nodeID(2)}, Name: "b"}
	late := Born{Creator: nodeID(1), Stamp: Stamp{Wall: 2, Node: nodeID(1)}, Name: "a"}
	for _, order := range [][2]Born{{early, late}, {late, early}} {
		b := order[0]
		b.mergeBorn(order[1])
		if b != early {
			t.Errorf("%v, then %v: %v stays", order[0], order[1], b)
		}
	}
}
