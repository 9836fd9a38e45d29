package crdt

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"ukai"
	"ukai/crdt/codec"
)

// site is one node's catalog and clock in a test.
type site struct {
	*testing.T
	*Catalog
	clock *Clock
	wall  time.Time
}

func newSite(t *testing.T, node int) *site {
	s := &site{T: t, Catalog: NewCatalog(), clock: NewClock(nodeID(node)), wall: noon}
	for i := 1; i <= 3; i++ {
		s.must(s.PutNode(nodeID(i), NodeInfo{Seq: 1, Boot: 1, Name: fmt.Sprintf("t%d", i), Addr: "10.0.0.1:7946"}))
	}
	return s
}

// now returns a stamp one millisecond later than the one before.
func (s *site) now() Stamp {
	s.wall = s.wall.Add(time.Millisecond)
	if err := s.clock.Observe(s.Newest(), s.wall); err != nil {
		s.Fatal(err)
	}
	return s.clock.Now(s.wall)
}

func (s *site) must(d Delta, err error) Delta {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
	return d
}

func (s *site) create(disk int, name string) ukai.DiskID {
	s.Helper()
	stamp := s.now()
	rec := usualRecord(diskID(disk))
	s.must(s.CreateDisk(Born{Creator: stamp.Node, Stamp: stamp, Name: name}, "dc=tokyo:2", rec))
	return rec.Disk
}

func wantError(t *testing.T, what string, err, sentinel error, text string) {
	t.Helper()
	if !errors.Is(err, sentinel) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: error %v, want %v that says %q", what, err, sentinel, text)
	}
}

func TestAnyNodeSetsLabelsOfAnyNode(t *testing.T) {
	a, b := newSite(t, 1), newSite(t, 2)
	tokyo, osaka := "tokyo", "osaka"
	d := a.must(a.SetLabel(nodeID(3), "dc", &tokyo, a.now()))
	if _, err := b.Merge(d, noon); err != nil {
		t.Fatal(err)
	}
	// b's write comes after it saw a's, so it wins on both, although it is made within the same millisecond.
	b.wall = a.wall.Add(-time.Millisecond)
	e := b.must(b.SetLabel(nodeID(3), "dc", &osaka, b.now()))
	if _, err := a.Merge(e, noon); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*site{a, b} {
		n, _ := s.Node(nodeID(3))
		if got := n.LabelSet().String(); got != "dc=osaka" {
			t.Errorf("labels %q, want dc=osaka", got)
		}
	}
	osaka = "changed by the caller"
	a.must(a.SetLabel(nodeID(3), "rack", &tokyo, a.now()))
	a.must(a.SetLabel(nodeID(3), "dc", nil, a.now()))
	n, _ := a.Node(nodeID(3))
	if got := n.LabelSet(); !maps.Equal(got, ukai.Labels{"rack": "tokyo"}) {
		t.Errorf("labels %v after removing dc", got)
	}
	n.Labels["rack"] = Register[*string]{}
	if again, _ := a.Node(nodeID(3)); len(again.LabelSet()) != 1 {
		t.Error("changing a returned node changed the catalog")
	}
	if d := a.must(a.SetLabel(nodeID(3), "never-set", nil, a.now())); !d.IsEmpty() {
		t.Error("removing a label that was never there says something")
	}
}

func TestLabelsAreBounded(t *testing.T) {
	s := newSite(t, 1)
	value := "x"
	for i := range ukai.MaxLabels {
		s.must(s.SetLabel(nodeID(1), fmt.Sprintf("key%d", i), &value, s.now()))
	}
	_, err := s.SetLabel(nodeID(1), "more", &value, s.now())
	wantError(t, "a label too many", err, ukai.ErrInvalid, "at most 32")
	s.must(s.SetLabel(nodeID(1), "key0", &value, s.now()))
	s.must(s.SetLabel(nodeID(1), "key0", nil, s.now()))
	s.must(s.SetLabel(nodeID(1), "more", &value, s.now()))
	_, err = s.SetLabel(nodeID(1), "key0", &value, s.now())
	wantError(t, "bringing back a label too many", err, ukai.ErrInvalid, "at most 32")
	for i := len(s.nodes[nodeID(1)].Labels); i < maxLabelsEver; i++ {
		s.must(s.SetLabel(nodeID(1), "more", nil, s.now()))
		s.must(s.SetLabel(nodeID(1), fmt.Sprintf("old%d", i), &value, s.now()))
		s.must(s.SetLabel(nodeID(1), fmt.Sprintf("old%d", i), nil, s.now()))
	}
	_, err = s.SetLabel(nodeID(1), "yet-more", &value, s.now())
	wantError(t, "a key too many", err, ukai.ErrInvalid, "at most 256")
	_, err = s.SetLabel(nodeID(9), "dc", &value, s.now())
	wantError(t, "label of an unknown node", err, ukai.ErrNotFound, nodeID(9).String())
	_, err = s.SetLabel(nodeID(2), "node", &value, s.now())
	wantError(t, "reserved label", err, ukai.ErrInvalid, "reserved")
	_, err = s.SetLabel(nodeID(2), "dc", &value, Stamp{})
	wantError(t, "label without stamp", err, ukai.ErrInvalid, "stamp")
}

func TestRolesAndRetirement(t *testing.T) {
	s := newSite(t, 1)
	for role := range NodeRole(3) {
		s.must(s.SetRole(nodeID(2), role, true, s.now()))
	}
	s.must(s.SetRole(nodeID(2), RoleDrain, false, s.now()))
	n, _ := s.Node(nodeID(2))
	if n.Drain.Value || !n.NoNew.Value || !n.IsWitness() {
		t.Errorf("roles drain %v, no-new %v, witness %v", n.Drain.Value, n.NoNew.Value, n.IsWitness())
	}
	_, err := s.SetRole(nodeID(2), 9, true, s.now())
	wantError(t, "unknown role", err, ukai.ErrInvalid, "no-new")
	_, err = s.SetRole(nodeID(9), RoleDrain, true, s.now())
	wantError(t, "role of an unknown node", err, ukai.ErrNotFound, "")
	s.must(s.Retire(nodeID(2)))
	if d := s.must(s.Retire(nodeID(2))); !d.IsEmpty() {
		t.Error("retiring twice says something twice")
	}
	s.must(s.PutNode(nodeID(2), NodeInfo{Seq: 2, Boot: 2, Name: "t2"}))
	if n, _ := s.Node(nodeID(2)); !n.Retired || n.Boot != 2 {
		t.Errorf("a retired node that speaks: retired %v, boot %d", n.Retired, n.Boot)
	}
	if got := s.NodesByName("t2"); len(got) != 0 {
		t.Error("a retired node is still found by name")
	}
	if got := s.NodesByName("t3"); len(got) != 1 || got[0].ID != nodeID(3) {
		t.Errorf("nodes called t3: %v", got)
	}
	_, err = s.Retire(nodeID(9))
	wantError(t, "retiring an unknown node", err, ukai.ErrNotFound, "")
}

func TestNodeSpeaksWithGrowingSeq(t *testing.T) {
	s := newSite(t, 1)
	info := NodeInfo{Seq: 5, Boot: 3, Name: "t1", FreeBytes: 10}
	s.must(s.PutNode(nodeID(1), info))
	if d := s.must(s.PutNode(nodeID(1), info)); !d.IsEmpty() {
		t.Error("the same words again say something")
	}
	info.FreeBytes = 9
	_, err := s.PutNode(nodeID(1), info)
	wantError(t, "other words under the same Seq", err, ukai.ErrInvalid, "Seq 5")
	info.Seq = 4
	_, err = s.PutNode(nodeID(1), info)
	wantError(t, "an old Seq", err, ukai.ErrInvalid, "5 was published")
	info.Seq, info.Boot = 6, 1
	s.must(s.PutNode(nodeID(1), info))
	if n, _ := s.Node(nodeID(1)); n.Boot != 3 || n.Info.FreeBytes != 9 {
		t.Errorf("boot %d, free %d: a rolled-back boot must stay visible", n.Boot, n.Info.FreeBytes)
	}
	for what, bad := range map[string]NodeInfo{
		"seq 0": {Name: "x"}, "no name": {Seq: 9}, "long address": {Seq: 9, Name: "x", Addr: strings.Repeat("a", 256)},
		"negative space": {Seq: 9, Name: "x", FreeBytes: -1}, "long coordinate": {Seq: 9, Name: "x", Coordinate: make([]byte, 513)},
		"long key": {Seq: 9, Name: "x", PublicKey: make([]byte, 129)}, "long version": {Seq: 9, Name: "x", Version: strings.Repeat("v", 65)},
	} {
		_, err := s.PutNode(nodeID(1), bad)
		wantError(t, what, err, ukai.ErrInvalid, "")
	}
}

func TestDiskLifeByName(t *testing.T) {
	s := newSite(t, 1)
	id := s.create(1, "vm1")
	_, err := s.CreateDisk(Born{Creator: nodeID(1), Stamp: s.now(), Name: "vm1"}, "", usualRecord(diskID(2)))
	wantError(t, "a second vm1", err, ukai.ErrExists, "vm1")
	_, err = s.CreateDisk(Born{Creator: nodeID(1), Stamp: s.now(), Name: "a/b"}, "", usualRecord(diskID(2)))
	wantError(t, "a bad name", err, ukai.ErrInvalid, "a/b")
	_, err = s.CreateDisk(Born{Creator: nodeID(1), Stamp: s.now(), Name: "vm2"}, strings.Repeat("r", MaxRuleLen+1), usualRecord(diskID(2)))
	wantError(t, "a long rule", err, ukai.ErrInvalid, "rule")
	_, err = s.CreateDisk(Born{Creator: nodeID(1), Stamp: s.now(), Name: "vm2"}, "", Record{Disk: diskID(2)})
	wantError(t, "an empty record", err, ukai.ErrInvalid, "version")

	s.must(s.RenameDisk(id, "web", s.now()))
	s.must(s.RenameDisk(id, "web", s.now()))
	other := s.create(2, "vm1")
	_, err = s.RenameDisk(other, "web", s.now())
	wantError(t, "rename to a taken name", err, ukai.ErrExists, "web")
	s.must(s.SetRule(id, "dc=osaka:1", s.now()))
	s.must(s.SetPolicy(id, "rpo", "60s", s.now()))
	s.must(s.SetPolicy(id, "ack", "local", s.now()))
	d, ok := s.Disk(id)
	if !ok || d.Name.Value != "web" || d.Born.Name != "vm1" || d.Rule.Value != "dc=osaka:1" || d.Policy["rpo"].Value != "60s" || d.Policy["ack"].Value != "local" || !d.Live() {
		t.Errorf("disk is %+v", d)
	}

	s.must(s.SetRemoved(id, true, s.now()))
	if len(s.DisksByName("web")) != 0 || len(s.RemovedByName("web")) != 1 {
		t.Error("a removed disk is found as if it were live, or not as removed")
	}
	s.must(s.RenameDisk(other, "web", s.now()))
	_, err = s.SetRemoved(id, false, s.now())
	wantError(t, "restore to a name that was given away", err, ukai.ErrExists, "web")
	s.must(s.RenameDisk(id, "web-old", s.now()))
	s.must(s.SetRemoved(id, false, s.now()))
	if names := slices.Collect(maps.Keys(maps.Collect(s.DiskNames()))); len(names) != 2 {
		t.Errorf("live disks %v, want web and web-old", names)
	}

	rec, _ := d.Record()
	rec.Version, rec.Phase = rec.Version+1, PhaseDeleted
	s.must(s.PutRecord(rec))
	if len(s.DisksByName("web-old"))+len(s.RemovedByName("web-old")) != 0 {
		t.Error("a deleted disk is still found by name")
	}
	for what, do := range map[string]func() (Delta, error){
		"rename": func() (Delta, error) { return s.RenameDisk(id, "x", s.now()) }, "rule": func() (Delta, error) { return s.SetRule(id, "x", s.now()) },
		"policy": func() (Delta, error) { return s.SetPolicy(id, "x", "y", s.now()) }, "restore": func() (Delta, error) { return s.SetRemoved(id, false, s.now()) },
	} {
		_, err := do()
		wantError(t, what+" of a deleted disk", err, ukai.ErrNotFound, "deleted")
	}
	_, err = s.SetRule(diskID(9), "x", s.now())
	wantError(t, "rule of an unknown disk", err, ukai.ErrNotFound, "")
	checkIndexes(t, s.Catalog)
}

func TestTwoNodesCreateTheSameName(t *testing.T) {
	a, b := newSite(t, 1), newSite(t, 2)
	x, y := a.create(1, "vm1"), b.create(2, "vm1")
	for _, s := range []*site{a, b} {
		if _, err := s.Merge(a.Extract(a.keys()), noon); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Merge(b.Extract(b.keys()), noon); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []*site{a, b} {
		disks := s.DisksByName("vm1")
		if len(disks) != 2 || disks[0].ID != x || disks[1].ID != y {
			t.Errorf("vm1 is %v, want both", disks)
		}
		checkIndexes(t, s.Catalog)
	}
	a.must(a.RenameDisk(y, "vm2", a.now()))
	if disks := a.DisksByName("vm1"); len(disks) != 1 || disks[0].ID != x {
		t.Errorf("vm1 is %v after renaming the other", disks)
	}
}

func TestSettings(t *testing.T) {
	s := newSite(t, 1)
	rule, more := "dc=tokyo:2", "5m"
	if _, ok := s.Setting("default-rule"); ok {
		t.Error("a setting that nobody set is set")
	}
	s.must(s.SetSetting("default-rule", &rule, s.now()))
	s.must(s.SetSetting("a-first", &more, s.now()))
	if got, ok := s.Setting("default-rule"); !ok || got != rule {
		t.Errorf("default-rule is %q, %v", got, ok)
	}
	s.must(s.SetSetting("default-rule", nil, s.now()))
	if _, ok := s.Setting("default-rule"); ok {
		t.Error("a setting that was taken back is set")
	}
	if got := maps.Collect(s.Settings()); !maps.Equal(got, map[string]string{"a-first": "5m"}) {
		t.Errorf("settings %v", got)
	}
	_, err := s.SetSetting("bad name", &rule, s.now())
	wantError(t, "setting with a space", err, ukai.ErrInvalid, "bad name")
	long := strings.Repeat("x", maxValueLen+1)
	_, err = s.SetSetting("long", &long, s.now())
	wantError(t, "long setting", err, ukai.ErrInvalid, "2049")
}

// TestFastClockIsRefusedEntryByEntry sends a delta in which one node's clock is ahead: the entries it touched are left
// out, the rest is merged.
func TestFastClockIsRefusedEntryByEntry(t *testing.T) {
	s, fast := newSite(t, 1), newSite(t, 2)
	fast.create(1, "good")
	before := fast.clock.Now(fast.wall)
	fast.create(2, "bad")
	fast.wall = noon.Add(2 * MaxSkew)
	tokyo := "tokyo"
	fast.must(fast.RenameDisk(diskID(2), "worse", fast.now()))
	fast.must(fast.SetLabel(nodeID(3), "dc", &tokyo, fast.now()))
	fast.must(fast.SetSetting("fast", &tokyo, fast.now()))
	fast.must(fast.SetLabel(nodeID(1), "dc", &tokyo, before))

	changed, err := s.Merge(fast.Extract(fast.keys()), noon)
	var peer *ukai.NodeError
	if !errors.Is(err, ukai.ErrClockSkew) || !errors.As(err, &peer) || peer.Node != nodeID(2) || peer.Name != "t2" {
		t.Errorf("error %v, want one that names t2", err)
	}
	if strings.Count(err.Error(), "t2") != 1 {
		t.Errorf("error %v tells the story more than once", err)
	}
	if want := []Key{NodeKey(nodeID(1)), DiskKey(diskID(1))}; !slices.Equal(changed, want) {
		t.Errorf("changed %v, want %v", changed, want)
	}
	if _, ok := s.Disk(diskID(2)); ok {
		t.Error("an entry with a refused stamp was merged in part")
	}
	if got := s.Newest(); got.Wall > noon.Add(MaxSkew).UnixMilli() {
		t.Errorf("the newest stamp is the refused %v", got)
	}
	checkIndexes(t, s.Catalog)

	// Once time has come near, the same entries are taken.
	if _, err := s.Merge(fast.Extract(fast.keys()), noon.Add(MaxSkew+time.Second)); err != nil {
		t.Error(err)
	}
	if s.Digest() != fast.Digest() {
		t.Error("the catalogs differ after the clocks agree")
	}
}

func TestSweepForgetsWhatAllHaveSeenDeleted(t *testing.T) {
	s := newSite(t, 1)
	id := s.create(1, "vm1")
	s.create(2, "vm2")
	d, _ := s.Disk(id)
	rec, _ := d.Record()
	rec.Version, rec.Phase = rec.Version+1, PhaseDeleted
	s.must(s.PutRecord(rec))

	mark := s.now()
	marked, forgotten := s.Sweep(mark)
	if len(forgotten) != 0 || !slices.Equal(marked.Keys(), []Key{DiskKey(id)}) {
		t.Fatalf("first sweep marks %v and forgets %v", marked.Keys(), forgotten)
	}
	seq := uint64(1)
	catchUp := func(node int, at time.Time) {
		seq++
		s.must(s.PutNode(nodeID(node), NodeInfo{Seq: seq, Boot: 1, Name: "t", CaughtUp: at.UnixMilli()}))
	}
	later := func(d time.Duration) Stamp { return Stamp{Wall: mark.Time().Add(d).UnixMilli(), Node: nodeID(1)} }
	refused := func(why string, at Stamp) {
		t.Helper()
		if marked, forgotten := s.Sweep(at); len(forgotten) != 0 || !marked.IsEmpty() {
			t.Fatalf("%s: forgets %v, marks %v", why, forgotten, marked.Keys())
		}
	}
	refused("nobody has caught up", later(TombstoneKeep))
	catchUp(1, mark.Time().Add(time.Hour))
	catchUp(2, mark.Time().Add(time.Hour))
	refused("node 3 has not caught up", later(TombstoneKeep))
	catchUp(3, mark.Time().Add(-time.Hour))
	refused("node 3 caught up before the deletion", later(TombstoneKeep))
	s.must(s.Retire(nodeID(3)))
	refused("not yet 30 days", later(TombstoneKeep-time.Second))

	if _, forgotten := s.Sweep(later(TombstoneKeep)); !slices.Equal(forgotten, []Key{DiskKey(id)}) {
		t.Fatalf("30 days later: forgets %v", forgotten)
	}
	if _, ok := s.Disk(id); ok {
		t.Fatal("the forgotten disk is still known")
	}
	checkIndexes(t, s.Catalog)
	if len(s.DisksByName("vm2")) != 1 {
		t.Error("the sweep touched a live disk")
	}
}

func TestScreenKeepsOutWhatIsForgotten(t *testing.T) {
	s := newSite(t, 1)
	id := s.create(1, "vm1")
	s.create(2, "vm2")
	live := s.Extract([]Key{DiskKey(id), DiskKey(diskID(2))})
	d, _ := s.Disk(id)
	rec, _ := d.Record()
	rec.Version, rec.Phase = rec.Version+1, PhaseDeleted
	s.must(s.PutRecord(rec))
	unmarked := s.Extract([]Key{DiskKey(id)})
	mark := s.now()
	marking, _ := s.Sweep(mark)
	tomb := s.Extract([]Key{DiskKey(id), DiskKey(diskID(2))})
	split := s.Extract([]Key{DiskKey(id)}) // marked, though one history goes on
	split.disks[0].view = live.disks[0].view

	then := mark.Time().Add(TombstoneKeep)
	fresh := func(caughtUp time.Duration) *Catalog { // knows a node and no disk
		c := NewCatalog()
		if _, err := c.PutNode(nodeID(1), NodeInfo{Seq: 1, Boot: 1, Name: "t", CaughtUp: mark.Time().Add(caughtUp).UnixMilli()}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	both, second := tomb.Keys(), []Key{DiskKey(diskID(2))}
	for _, tc := range []struct {
		what     string
		c        *Catalog
		d        Delta
		at       time.Time
		outdated bool
		want     []Key
		whole    bool
	}{
		{"all have caught up", fresh(time.Hour), tomb, then, false, second, true},
		{"not yet 30 days", fresh(time.Hour), tomb, then.Add(-time.Second), false, both, true},
		{"not all have caught up", fresh(0), tomb, then, false, both, true},
		{"known here", s.Catalog, tomb, then, false, both, true},
		{"no node known", NewCatalog(), tomb, then, false, both, true},
		{"the mark alone", fresh(time.Hour), marking, then, false, nil, true},
		{"no mark", fresh(time.Hour), unmarked, then, false, unmarked.Keys(), true},
		{"one history goes on", fresh(time.Hour), split, then, false, split.Keys(), true},
		{"outdated peer", fresh(time.Hour), live, then, true, nil, false},
		{"outdated peer, known here", s.Catalog, live, then, true, both, true},
	} {
		before := tc.d.Keys()
		got, whole := tc.c.Screen(tc.d, tc.at, tc.outdated)
		if !slices.Equal(got.Keys(), tc.want) || whole != tc.whole {
			t.Errorf("%s: passes %v, whole %v; want %v, %v", tc.what, got.Keys(), whole, tc.want, tc.whole)
		}
		if !slices.Equal(tc.d.Keys(), before) {
			t.Errorf("%s: the delta was changed", tc.what)
		}
	}
}

func TestKeysReadBack(t *testing.T) {
	for _, k := range []Key{NodeKey(nodeID(1)), DiskKey(diskID(2)), SettingKey("default-rule")} {
		if got, err := ParseKey(k.String()); err != nil || got != k {
			t.Errorf("%v reads back as %v, %v", k, got, err)
		}
	}
	for _, s := range []string{"", "n/", "d/12", "s/", "s/a b", "x/y", "n"} {
		if _, err := ParseKey(s); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("key %q: error %v", s, err)
		}
	}
}

func TestDigestCrossesTheWire(t *testing.T) {
	s := newSite(t, 1)
	s.create(1, "vm1")
	data, err := s.Digest().MarshalBinary()
	if err != nil || len(data) != 8<<10 {
		t.Fatalf("digest of %d bytes, %v", len(data), err)
	}
	var back Digest
	if err := back.UnmarshalBinary(data); err != nil || back != s.Digest() {
		t.Errorf("digest came back different, %v", err)
	}
	if err := back.UnmarshalBinary(data[1:]); !errors.Is(err, ukai.ErrCorrupt) {
		t.Errorf("short digest: error %v", err)
	}
}

func TestUnmarshalDeltaRefusesWhatNoNodeWouldWrite(t *testing.T) {
	rec := usualRecord(diskID(1))
	data, err := rec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	stamp := Stamp{Wall: 1, Node: nodeID(1)}
	text := func(s string) Register[string] { return Register[string]{stamp, s} }
	for what, w := range map[string]wireDelta{
		"node without id":        {Nodes: []Node{{}}},
		"node without name":      {Nodes: []Node{{ID: nodeID(1), Info: NodeInfo{Seq: 1}}}},
		"info without seq":       {Nodes: []Node{{ID: nodeID(1), Info: NodeInfo{Boot: 2}}}},
		"bad label":              {Nodes: []Node{{ID: nodeID(1), Labels: map[string]Register[*string]{"a b": {stamp, nil}}}}},
		"label without stamp":    {Nodes: []Node{{ID: nodeID(1), Labels: map[string]Register[*string]{"dc": {}}}}},
		"role without writer":    {Nodes: []Node{{ID: nodeID(1), Drain: Register[bool]{Stamp{Wall: 1}, true}}}},
		"nodes unsorted":         {Nodes: []Node{{ID: nodeID(2)}, {ID: nodeID(1)}}},
		"disk without id":        {Disks: []wireDisk{{}}},
		"disk twice":             {Disks: []wireDisk{{ID: diskID(1)}, {ID: diskID(1)}}},
		"bad disk name":          {Disks: []wireDisk{{ID: diskID(1), Name: text("../etc")}}},
		"bad birth name":         {Disks: []wireDisk{{ID: diskID(1), Born: Born{Stamp: stamp, Name: "/"}}}},
		"birth without stamp":    {Disks: []wireDisk{{ID: diskID(1), Born: Born{Name: "vm1"}}}},
		"long rule":              {Disks: []wireDisk{{ID: diskID(1), Rule: text(strings.Repeat("r", MaxRuleLen+1))}}},
		"removed without writer": {Disks: []wireDisk{{ID: diskID(1), Removed: Register[bool]{Stamp{Wall: 1}, true}}}},
		"burial without writer":  {Disks: []wireDisk{{ID: diskID(1), Buried: Stamp{Wall: 1}}}},
		"policies unsorted":      {Disks: []wireDisk{{ID: diskID(1), Policy: []policyField{{"b", text("")}, {"a", text("")}}}}},
		"bad policy":             {Disks: []wireDisk{{ID: diskID(1), Policy: []policyField{{"", text("")}}}}},
		"record of another disk": {Disks: []wireDisk{{ID: diskID(2), View: [][]byte{data}}}},
		"broken record":          {Disks: []wireDisk{{ID: diskID(1), View: [][]byte{data[1:]}}}},
		"too many histories":     {Disks: []wireDisk{{ID: diskID(1), View: make([][]byte, maxView+1)}}},
		"setting without name":   {Settings: []setting{{"", Register[*string]{stamp, nil}}}},
		"setting without stamp":  {Settings: []setting{{"s", Register[*string]{}}}},
	} {
		data, err := codec.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := UnmarshalDelta(data); !errors.Is(err, ukai.ErrCorrupt) {
			t.Errorf("%s: error %v", what, err)
		}
	}
	if _, err := UnmarshalDelta(make([]byte, MaxDeltaBytes+1)); !errors.Is(err, ukai.ErrCorrupt) {
		t.Errorf("a huge delta: error %v", err)
	}
}
