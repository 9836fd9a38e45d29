package volume

import (
	"errors"
	"time"

	"ukai"
	"ukai/crdt"
)

// Which replica is brought back next, and when. Pure: the time is an argument.

// absentee is a replica that is not in sync in all of its groups.
type absentee struct {
	crdt.Member
	out     []uint8 // groups that it must join first
	lacking []uint8 // groups in which it is to become in sync; out is part of them
}

// absentees lists the replicas of a record that are to be brought back. Those that lag by design are not.
func absentees(rec *crdt.Record) []absentee {
	var list []absentee
	for i := range rec.Groups {
		g := &rec.Groups[i]
		for _, m := range g.Members {
			if m.Role != crdt.Out && m.Role != crdt.Syncing {
				continue
			}
			at := 0
			for at < len(list) && list[at].Replica != m.Replica {
				at++
			}
			if at == len(list) {
				list = append(list, absentee{Member: m})
			}
			list[at].lacking = append(list[at].lacking, g.ID)
			if m.Role == crdt.Out {
				list[at].out = append(list[at].out, g.ID)
			}
		}
	}
	return list
}

// Pauses between attempts to bring one replica back.
const (
	// A node that does not answer is asked again after a pause that grows from minProbePause to maxProbePause.
	minProbePause = time.Second
	maxProbePause = 10 * time.Second
	// Resyncs of one replica begin no closer than a pause that grows from minReturnPause to maxReturnPause, until the
	// replica has been in sync for calmAfter: a node that comes and goes costs its disks little. If writes wait for it, minProbePause
	// and after a failure maxProbePause is all there is.
	minReturnPause = time.Second
	maxReturnPause = 5 * time.Minute
	calmAfter      = 10 * time.Minute
)

// try is what is remembered of bringing one replica back.
type try struct {
	next  time.Duration // not before
	soon  time.Duration // not before either, if writes wait for it
	began time.Duration // when the last resync began
	pause time.Duration // from then to the next one
	probe time.Duration // the last pause before asking its node again
	since time.Duration // when it was dropped or failed, 0 if not known
	lost  time.Duration // when its node first said that it has it no more, or that its disk has failed; 0: it did not
	why   string
	lacks int64 // bytes it lacked when its last resync ended, 0 if not known
	// stable is what was equal and durable on it and the others when it was dropped, zero if not known.
	stable ukai.BlockStamp
}

// tries keeps a try for each replica that was out under this host.
type tries map[ukai.ReplicaID]*try

// maxTries bounds the replicas remembered per disk; beyond, those that are in sync are forgotten.
const maxTries = 64

func (t *tries) of(r ukai.ReplicaID) *try {
	if *t == nil {
		*t = make(tries)
	}
	if (*t)[r] == nil {
		if len(*t) >= maxTries {
			clear(*t)
		}
		(*t)[r] = new(try)
	}
	return (*t)[r]
}

// choose returns the replica to bring back now, or else when to look again. urgent says that writes wait for one.
func (t *tries) choose(list []absentee, now time.Duration, urgent bool) (a absentee, at time.Duration, due bool) {
	at = never
	for _, c := range list {
		next := time.Duration(0)
		if e := (*t)[c.Replica]; e != nil {
			if next = e.next; urgent {
				next = min(next, e.soon)
			}
		}
		if next < at {
			a, at = c, next
		}
	}
	return a, at, at <= now
}

// dropped notes that a replica left the in-sync set.
func (t *tries) dropped(r ukai.ReplicaID, now time.Duration, why string) {
	e := t.of(r)
	e.since, e.why, e.probe, e.lacks = now, why, 0, 0
	e.soon = now + minProbePause
	e.next = max(e.next, e.soon)
}

// silent notes that a replica's node does not answer, or does not have it: that one will not come back as it is.
func (t *tries) silent(r ukai.ReplicaID, now time.Duration, why error) {
	e := t.of(r)
	switch {
	case !gone(why):
		e.lost = 0
	case e.lost == 0:
		e.lost = max(now, 1)
	}
	e.probe = min(max(2*e.probe, minProbePause), maxProbePause)
	e.next, e.soon, e.why = now+e.probe, now+minProbePause, why.Error()
	if e.since == 0 {
		e.since = now
	}
}

// gone says whether an error with which a node answered means that it does not have a replica any more, or that the replica is
// broken for ever.
func gone(err error) bool { return errors.Is(err, ukai.ErrNotFound) || errors.Is(err, ukai.ErrMedia) }

// begun notes that a resync begins.
func (t *tries) begun(r ukai.ReplicaID, now time.Duration) {
	e := t.of(r)
	if e.pause == 0 || now-e.began > calmAfter+e.pause {
		e.pause = minReturnPause
	} else {
		e.pause = min(2*e.pause, maxReturnPause)
	}
	e.began, e.next, e.soon, e.probe = now, now+e.pause, now+minProbePause, 0
	e.lost = 0
}

// failed notes that a resync failed.
func (t *tries) failed(r ukai.ReplicaID, now time.Duration, why string, lacks int64) {
	e := t.of(r)
	e.why, e.lacks = why, lacks
	e.next, e.soon = now+e.pause, now+maxProbePause
	if e.since == 0 {
		e.since = now
	}
}

// hurry forgets the pauses between attempts.
func (t *tries) hurry() {
	for _, e := range *t {
		e.next, e.pause, e.probe = 0, 0, 0
	}
}

// done notes that a replica is in sync.
func (t *tries) done(r ukai.ReplicaID) {
	e := t.of(r)
	e.since, e.why, e.lacks, e.stable = 0, "", 0, ukai.BlockStamp{}
}
