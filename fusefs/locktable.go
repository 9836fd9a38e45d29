package fusefs

import (
	"cmp"
	"math"
	"slices"
)

// maxLocks bounds the ranges that one file's table holds; a lock that would need more fails with ENOLCK.
const maxLocks = 4096

// lastByte is the end of a lock that reaches to the end of the file, wherever that will be.
const lastByte = math.MaxInt64

// lock is a range of bytes that an owner has locked.
type lock struct {
	start, end uint64 // first and last byte, both included
	write      bool   // excludes all others; else excludes only writers
	owner      uint64 // who: a process for POSIX locks, an open file for the others
	fh         uint64 // the handle through which it was taken; releasing that drops it
	pid        uint32 // told to others who ask
}

func (l lock) overlaps(start, end uint64) bool { return l.start <= end && start <= l.end }

// lockTable holds the locks of one file, with the rules of fcntl(2): an owner has at most one lock on each byte, a
// new one replaces what it had there, and neighbours that do not differ are one. It knows no time and no waiting.
type lockTable struct {
	locks []lock // ordered by owner, then start; those of one owner do not overlap
}

// conflict returns a lock of another owner that does not go together with l.
func (t *lockTable) conflict(l lock) (lock, bool) {
	for _, o := range t.locks {
		if o.owner != l.owner && o.overlaps(l.start, l.end) && (o.write || l.write) {
			return o, true
		}
	}
	return lock{}, false
}

// set gives l to its owner, who must have no conflict, in place of what it had in that range, which is returned. It
// says false if there are too many locks.
func (t *lockTable) set(l lock) (replaced []lock, ok bool) {
	// In the worst case a lock in the middle of another makes three of one.
	if len(t.locks)+2 > maxLocks {
		return nil, false
	}
	replaced = t.cut(l.owner, l.start, l.end)
	t.insert(l)
	return replaced, true
}

// unset takes the range from owner and says whether it had any of it.
func (t *lockTable) unset(owner, start, end uint64) bool { return len(t.cut(owner, start, end)) > 0 }

// dropOwner takes everything from owner and says whether that was anything.
func (t *lockTable) dropOwner(owner uint64) bool {
	return t.drop(func(l lock) bool { return l.owner == owner })
}

// dropHandle takes everything that was locked through fh and says whether that was anything.
func (t *lockTable) dropHandle(fh uint64) bool {
	return t.drop(func(l lock) bool { return l.fh == fh })
}

// holds says whether something was locked through fh that covers one of the bytes, or anything at all if none is given.
func (t *lockTable) holds(fh uint64, bytes ...uint64) bool {
	return slices.ContainsFunc(t.locks, func(l lock) bool {
		return l.fh == fh && (len(bytes) == 0 || slices.ContainsFunc(bytes, func(b uint64) bool { return l.overlaps(b, b) }))
	})
}

func (t *lockTable) drop(which func(lock) bool) bool {
	n := len(t.locks)
	t.locks = slices.DeleteFunc(t.locks, which)
	return len(t.locks) < n
}

// cut removes [start, end] from what owner has, splitting the locks that reach beyond it, and returns the pieces.
func (t *lockTable) cut(owner, start, end uint64) (pieces []lock) {
	var rest []lock
	t.locks = slices.DeleteFunc(t.locks, func(l lock) bool {
		if l.owner != owner || !l.overlaps(start, end) {
			return false
		}
		piece := l
		if l.start < start {
			left := l
			left.end, piece.start = start-1, start
			rest = append(rest, left)
		}
		if l.end > end {
			right := l
			right.start, piece.end = end+1, end
			rest = append(rest, right)
		}
		pieces = append(pieces, piece)
		return true
	})
	for _, l := range rest {
		t.insert(l)
	}
	return pieces
}

// insert adds l, which overlaps nothing of its owner, and joins it with its neighbours.
func (t *lockTable) insert(l lock) {
	i, _ := slices.BinarySearchFunc(t.locks, l, func(a, b lock) int {
		return cmp.Or(cmp.Compare(a.owner, b.owner), cmp.Compare(a.start, b.start))
	})
	if i < len(t.locks) && l.joins(t.locks[i]) {
		l.end = t.locks[i].end
		t.locks = slices.Delete(t.locks, i, i+1)
	}
	if i > 0 && t.locks[i-1].joins(l) {
		t.locks[i-1].end = l.end
		return
	}
	t.locks = slices.Insert(t.locks, i, l)
}

// joins says whether next begins where l ends and is otherwise the same.
func (l lock) joins(next lock) bool {
	return l.owner == next.owner && l.write == next.write && l.fh == next.fh && l.pid == next.pid && l.end+1 == next.start
}
