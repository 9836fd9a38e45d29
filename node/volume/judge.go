package volume

import "ukai/node/store"

// A scrub compares what replicas hold in parts of store.SumBytes. Which of the copies of a part are wrong is decided here. Pure.

// look is what a replica says of one part of its data.
type look struct {
	unreadable bool
	sum        store.Sum // of the data, if it can be read
	known      bool      // it has a checksum for the part
	want       store.Sum // that checksum
}

// ruling is what is to be done about the copies of a part, none of which is being written.
type ruling struct {
	bad  []int     // copies that are wrong, or of which it cannot be told that they are right; empty: all is well
	good []int     // copies that the bad ones may be written anew from
	sum  store.Sum // of these; with none, the checksum that none of them has. Zero: it is not known what is right
	why  string    // there is no good copy
}

// judge decides about the copies of a part. A checksum is a witness from when the copies were equal; of two witnesses that
// differ neither is believed, and of copies without any only more than half of at least three.
func judge(copies []look) ruling {
	if len(copies) == 0 {
		return ruling{}
	}
	var want *store.Sum
	for i := range copies {
		c := &copies[i]
		switch {
		case !c.known:
		case want == nil:
			want = &c.want
		case *want != c.want:
			return ruling{bad: where(copies, func(look) bool { return true }), why: "its replicas have different checksums for it"}
		}
	}
	has := func(sum store.Sum) func(look) bool {
		return func(c look) bool { return !c.unreadable && c.sum == sum }
	}
	if want == nil {
		if want = believed(copies); want == nil {
			r := ruling{bad: where(copies, func(look) bool { return true }), why: "its replicas differ, there is no checksum, and no majority of at least three agrees"}
			if len(where(copies, func(c look) bool { return !c.unreadable })) == 0 {
				r.why = "no replica can read it"
			}
			return r
		}
	}
	r := ruling{sum: *want, good: where(copies, has(*want))}
	r.bad = where(copies, func(c look) bool { return !has(*want)(c) })
	if len(r.good) == 0 {
		r.why = "no replica has what its checksum says"
	}
	return r
}

// believed returns the content that copies without checksums have: that of all that can be read, or of more than half of three or more.
func believed(copies []look) *store.Sum {
	votes, readable := map[store.Sum]int{}, 0
	for i := range copies {
		if !copies[i].unreadable {
			votes[copies[i].sum]++
			readable++
		}
	}
	for sum, n := range votes {
		if n == readable || len(copies) >= 3 && 2*n > len(copies) {
			return &sum
		}
	}
	return nil
}

// suspicious says whether a part must be looked at again while nobody writes it.
func suspicious(copies []look) bool {
	for i := range copies {
		c := &copies[i]
		if c.unreadable || c.sum != copies[0].sum || c.known && c.want != c.sum {
			return true
		}
	}
	return false
}

func where(copies []look, holds func(look) bool) (list []int) {
	for i := range copies {
		if holds(copies[i]) {
			list = append(list, i)
		}
	}
	return list
}
