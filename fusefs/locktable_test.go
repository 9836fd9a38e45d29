package fusefs

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// byteLocks is what a lockTable means, said without ranges: who has what on each byte.
type byteLocks map[[2]uint64]lock // byte and owner -> lock of one byte

const lockSpace = 24 // bytes that the test locks

func (m byteLocks) set(l lock) {
	for b := l.start; b <= l.end; b++ {
		one := l
		one.start, one.end = b, b
		m[[2]uint64{b, l.owner}] = one
	}
}

func (m byteLocks) drop(which func(lock) bool) bool {
	n := len(m)
	for k, l := range m {
		if which(l) {
			delete(m, k)
		}
	}
	return len(m) < n
}

func (m byteLocks) conflicts(l lock) bool {
	for _, o := range m {
		if o.owner != l.owner && o.overlaps(l.start, l.end) && (o.write || l.write) {
			return true
		}
	}
	return false
}

func TestLockTableMeansWhatBytesMean(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table lockTable
		model := byteLocks{}
		owners := rapid.Uint64Range(1, 3)
		handles := rapid.Uint64Range(1, 3)
		span := func() (start, end uint64) {
			start = rapid.Uint64Range(0, lockSpace-1).Draw(t, "start")
			return start, rapid.Uint64Range(start, lockSpace-1).Draw(t, "end")
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				start, end := span()
				l := lock{start: start, end: end, write: rapid.Bool().Draw(t, "write"), owner: owners.Draw(t, "owner"), fh: handles.Draw(t, "fh")}
				other, found := table.conflict(l)
				if want := model.conflicts(l); found != want {
					t.Fatalf("conflict of %+v: %v, want %v", l, found, want)
				}
				if found {
					if other.owner == l.owner || !other.overlaps(start, end) {
						t.Fatalf("%+v is not in the way of %+v", other, l)
					}
					return
				}
				replaced, ok := table.set(l)
				if !ok {
					t.Fatal("too many locks")
				}
				was := byteLocks{}
				for _, r := range replaced {
					was.set(r)
				}
				for b := start; b <= end; b++ {
					k := [2]uint64{b, l.owner}
					if was[k] != model[k] {
						t.Fatalf("byte %d: replaced %+v, had %+v", b, was[k], model[k])
					}
					delete(was, k)
				}
				if len(was) != 0 {
					t.Fatalf("replaced outside of the range: %+v", was)
				}
				model.set(l)
			},
			"unset": func(t *rapid.T) {
				start, end := span()
				owner := owners.Draw(t, "owner")
				want := model.drop(func(l lock) bool { return l.owner == owner && l.overlaps(start, end) })
				if got := table.unset(owner, start, end); got != want {
					t.Fatalf("unset: %v, want %v", got, want)
				}
			},
			"drop owner": func(t *rapid.T) {
				owner := owners.Draw(t, "owner")
				want := model.drop(func(l lock) bool { return l.owner == owner })
				if got := table.dropOwner(owner); got != want {
					t.Fatalf("drop: %v, want %v", got, want)
				}
			},
			"drop handle": func(t *rapid.T) {
				fh := handles.Draw(t, "fh")
				want := model.drop(func(l lock) bool { return l.fh == fh })
				if got := table.dropHandle(fh); got != want {
					t.Fatalf("drop: %v, want %v", got, want)
				}
			},
			"": func(t *rapid.T) {
				got := byteLocks{}
				for i, l := range table.locks {
					if l.start > l.end {
						t.Fatalf("%+v is empty", l)
					}
					if i > 0 && (table.locks[i-1].joins(l) || table.locks[i-1].owner > l.owner) {
						t.Fatalf("%+v and %+v: not joined or not in order", table.locks[i-1], l)
					}
					got.set(l)
				}
				if len(got) != len(model) {
					t.Fatalf("covers %d bytes, want %d", len(got), len(model))
				}
				for k, l := range model {
					if got[k] != l {
						t.Fatalf("byte %d of owner %d: %+v, want %+v", k[0], k[1], got[k], l)
					}
				}
				for fh := uint64(1); fh <= 3; fh++ {
					for b := uint64(0); b < lockSpace; b++ {
						want := false
						for _, l := range model {
							want = want || l.fh == fh && l.overlaps(b, b)
						}
						if table.holds(fh, b) != want {
							t.Fatalf("handle %d holds byte %d: %v, want %v", fh, b, !want, want)
						}
					}
				}
			},
		})
	})
}

func TestLockTableIsBounded(t *testing.T) {
	var table lockTable
	n := 0
	for ; n < 2*maxLocks; n++ {
		if _, ok := table.set(lock{start: uint64(2 * n), end: uint64(2 * n), owner: 1, fh: 1}); !ok {
			break
		}
	}
	if n >= maxLocks || n < maxLocks/2 {
		t.Errorf("%d locks were taken", n)
	}
	if !table.unset(1, 0, lastByte) || len(table.locks) != 0 {
		t.Error("not all were let go")
	}
}

func TestLocksToTheEndOfTheFile(t *testing.T) {
	var table lockTable
	table.set(lock{start: 10, end: lastByte, write: true, owner: 1, fh: 1})
	table.unset(1, 20, 29)
	var got []string
	for _, l := range table.locks {
		got = append(got, fmt.Sprintf("%d-%d", l.start, l.end))
	}
	if want := []string{"10-19", fmt.Sprintf("30-%d", uint64(lastByte))}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
