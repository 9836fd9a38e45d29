package node

import (
	"testing"

	"ukai"
	"ukai/crdt"
)

func TestAReplicaFollowsAForcedTakeoverOnlyIfItsOwnHistoryDidNotGoOn(t *testing.T) {
	fork := func(id byte, version uint64) crdt.Fork {
		return crdt.Fork{ID: ukai.Nonce{id}, Instance: 1, Version: version}
	}
	record := func(instance uint32, version uint64, forks ...crdt.Fork) crdt.Record {
		return crdt.Record{Instance: instance, Version: version, Lineage: forks}
	}
	a, b, aa := fork(1, 5), fork(2, 5), fork(3, 9)
	after := func(f crdt.Fork) []byte { return f.ID[:] }
	for _, c := range []struct {
		what    string
		had     []byte
		lineage []crdt.Fork
		view    []crdt.Record
		ok      bool
	}{
		{"nothing was ever forced", nil, nil, []crdt.Record{record(1, 9)}, true},
		{"the first takeover", nil, []crdt.Fork{a}, []crdt.Record{record(1, 5)}, true},
		{"of which the catalog knows", nil, []crdt.Fork{a}, []crdt.Record{record(1, 6, a)}, true},
		{"of a disk that is not in the catalog", nil, []crdt.Fork{a}, nil, true},
		{"the disk went on here", nil, []crdt.Fork{a}, []crdt.Record{record(1, 6)}, false},
		{"in another instance", nil, []crdt.Fork{a}, []crdt.Record{record(2, 5)}, false},
		{"and the catalog knows both", nil, []crdt.Fork{a}, []crdt.Record{record(1, 6), record(1, 6, a)}, false},
		{"the same history", after(a), []crdt.Fork{a}, []crdt.Record{record(1, 6), record(1, 20, a)}, true},
		{"another one", after(b), []crdt.Fork{a}, nil, false},
		{"the holder knows of no takeover", after(a), nil, nil, false},
		{"one that was forced again", after(a), []crdt.Fork{a, aa}, []crdt.Record{record(1, 9, a), record(1, 7)}, true},
		{"and went on here", after(a), []crdt.Fork{a, aa}, []crdt.Record{record(1, 10, a)}, false},
		{"which another one did", after(a), []crdt.Fork{a, aa}, []crdt.Record{record(1, 9, a), record(1, 30, b)}, true},
		{"both takeovers were missed", nil, []crdt.Fork{a, aa}, []crdt.Record{record(1, 5)}, true},
		{"and the disk went on here", nil, []crdt.Fork{a, aa}, []crdt.Record{record(1, 6)}, false},
	} {
		if err := follows(c.had, c.lineage, c.view); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
