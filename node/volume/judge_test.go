package volume

import (
	"fmt"
	"testing"

	"ukai/node/store"
)

func TestCopiesOfAPartAreJudgedByTheirChecksumsOrByAMajority(t *testing.T) {
	// A copy is its content, "-" if it cannot be read, and after a colon what its checksum is of.
	for _, c := range []struct {
		copies    string
		bad, good string
		looked    bool // at again, under the lock
	}{
		{"a a", "[]", "[0 1]", false},
		{"a:a a", "[]", "[0 1]", false},
		{"a:a", "[]", "[0]", false},
		{"a:a b:a", "[1]", "[0]", true},
		{"a:a b", "[1]", "[0]", true},
		{"b a:a", "[0]", "[1]", true},
		{"a:a -", "[1]", "[0]", true},
		{"- a:a", "[0]", "[1]", true},
		{"-:a a", "[0]", "[1]", true},
		{"a -:b", "[0 1]", "[]", true},   // the only witness says that the copy that can be read is wrong
		{"b:a a", "[0]", "[1]", true},    // right without a witness of its own
		{"b:a b:a", "[0 1]", "[]", true}, // equal, and wrong
		{"b:a", "[0]", "[]", true},
		{"a:a b:b", "[0 1]", "[]", true}, // two witnesses that differ
		{"a:a a:b a", "[0 1 2]", "[]", true},
		{"a b", "[0 1]", "[]", true},
		{"a -", "[1]", "[0]", true},
		{"- -", "[0 1]", "[]", true},
		{"-", "[0]", "[]", true},
		{"a a b", "[2]", "[0 1]", true},
		{"a b c", "[0 1 2]", "[]", true},
		{"a b -", "[0 1 2]", "[]", true},
		{"a a -", "[2]", "[0 1]", true},
		{"a - -", "[1 2]", "[0]", true},
		{"a a b b", "[0 1 2 3]", "[]", true},
		{"a a b -", "[0 1 2 3]", "[]", true},
		{"a a a b", "[3]", "[0 1 2]", true},
		{"b b a:a", "[0 1]", "[2]", true}, // a witness outweighs a majority
		{"", "[]", "[]", false},
	} {
		copies := looks(t, c.copies)
		r := judge(copies)
		if bad, good := fmt.Sprint(r.bad), fmt.Sprint(r.good); bad != c.bad || good != c.good {
			t.Errorf("%q: bad %s, good %s; want %s, %s", c.copies, bad, good, c.bad, c.good)
		}
		if hopeless := len(r.bad) > 0 && len(r.good) == 0; hopeless != (r.why != "") {
			t.Errorf("%q: bad %v, good %v, and why: %q", c.copies, r.bad, r.good, r.why)
		}
		for _, k := range r.good {
			if copies[k].sum != r.sum {
				t.Errorf("%q: copy %d is good without having the content", c.copies, k)
			}
		}
		if got := suspicious(copies); got != c.looked {
			t.Errorf("%q: suspicious: %v", c.copies, got)
		}
	}
}

func looks(t *testing.T, text string) (list []look) {
	t.Helper()
	for i := 0; i < len(text); i++ {
		l := look{unreadable: text[i] == '-'}
		if !l.unreadable {
			l.sum = store.SumOf([]byte{text[i]})
		}
		if i+2 < len(text) && text[i+1] == ':' {
			l.known, l.want = true, store.SumOf([]byte{text[i+2]})
			i += 2
		}
		list = append(list, l)
		i++
	}
	return list
}
