package volume

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
)

// sealWait is how long a takeover waits for further in-sync replicas once the first is sealed, deadSealWait the same if all of them are on
// the node of the holder before, and that is held for dead.
const (
	sealWait     = 2 * time.Second
	deadSealWait = 300 * time.Millisecond
)

// takeover is the recovery of a disk by the holder of a new epoch (protocol 3.7, T3 to T7): seal the in-sync replicas,
// freeze the set of those sealed, make them equal where they may differ, wait for the deposed holder's lease if one
// could not be sealed, activate. Pure: it decides, the shell in attach.go acts. Any surprise ends the attempt; the next
// begins with a new claim.
type takeover struct {
	rec    crdt.Record    // as the claim committed it
	prefer ukai.ReplicaID // the replica on the holder's own node, 0 if there is none

	dead ukai.NodeID // of the holder before, if a majority of the arbiters holds it for dead

	sealed map[ukai.ReplicaID]sealed
	lost   map[ukai.ReplicaID]error // will not be sealed in this attempt
	first  time.Duration            // when the first seal was answered
	frozen bool
}

// sealed is the answer of one replica to the seal.
type sealed struct {
	member crdt.Member
	reply  sealReply
	sent   time.Duration // when the seal it answers was sent
	at     time.Duration // when it was answered
}

func newTakeover(rec crdt.Record, prefer ukai.ReplicaID) *takeover {
	return &takeover{rec: rec, prefer: prefer, sealed: make(map[ukai.ReplicaID]sealed), lost: make(map[ukai.ReplicaID]error)}
}

// members returns the in-sync replicas to seal, each once: it may be so in several groups.
func (t *takeover) members() []crdt.Member {
	var all []crdt.Member
	for i := range t.rec.Groups {
		for _, m := range t.rec.InSync(t.rec.Groups[i].ID) {
			if !slices.ContainsFunc(all, func(o crdt.Member) bool { return o.Replica == m.Replica }) {
				all = append(all, m)
			}
		}
	}
	return all
}

// onSealed notes a replica's answer. One that comes after the set was frozen is ignored: a late clean replica would be
// overwritten from an authority chosen without it.
func (t *takeover) onSealed(now, sent time.Duration, m crdt.Member, r sealReply) {
	if t.frozen {
		return
	}
	if len(t.sealed) == 0 {
		t.first = now
	}
	t.sealed[m.Replica] = sealed{member: m, reply: r, sent: sent, at: now}
}

// onLost notes that a replica cannot be sealed in this attempt.
func (t *takeover) onLost(m crdt.Member, why error) {
	if !t.frozen {
		t.lost[m.Replica] = why
	}
}

// wait returns when to stop waiting for seals: at once when all have answered, some time after the first answer, and
// never as long as a group has none.
func (t *takeover) wait(now time.Duration) (until time.Duration, more bool) {
	if t.uncovered() != nil {
		return never, !t.allHeard()
	}
	limit := t.first + sealWait
	if !slices.ContainsFunc(t.members(), func(m crdt.Member) bool { return m.Node != t.dead && !t.heard(m.Replica) }) {
		limit = t.first + deadSealWait
	}
	if t.allHeard() || now >= limit {
		return now, false
	}
	return limit, true
}

// heard says whether a replica is sealed or will not be.
func (t *takeover) heard(r ukai.ReplicaID) bool {
	_, answered := t.sealed[r]
	return answered || t.lost[r] != nil
}

func (t *takeover) allHeard() bool {
	return len(t.sealed)+len(t.lost) >= len(t.members())
}

// uncovered says which group has no sealed replica, and why, or nil.
func (t *takeover) uncovered() error {
	for i := range t.rec.Groups {
		g := t.rec.Groups[i].ID
		members := t.rec.InSync(g)
		if slices.ContainsFunc(members, func(m crdt.Member) bool { _, ok := t.sealed[m.Replica]; return ok }) {
			continue
		}
		var reasons []string
		for _, m := range members {
			if err := t.lost[m.Replica]; err != nil {
				reasons = append(reasons, err.Error())
			}
		}
		if len(reasons) == 0 {
			reasons = []string{"none has answered yet"}
		}
		return fmt.Errorf("no replica%s: %w: %s", ofBlocks(&t.rec, g), ukai.ErrUnavailable, strings.Join(reasons, "; "))
	}
	return nil
}

// freeze fixes the set S of sealed replicas.
func (t *takeover) freeze() error {
	if err := t.uncovered(); err != nil {
		return err
	}
	t.frozen = true
	return nil
}

// set returns S of one group, the authority first: a replica that has not lost power since it was last known to be
// durable, of these the one that may be ahead of the others, else the holder's own.
func (t *takeover) set(group uint8) []sealed {
	var s []sealed
	for _, m := range t.rec.InSync(group) {
		if e, ok := t.sealed[m.Replica]; ok {
			s = append(s, e)
		}
	}
	rank := func(e sealed) int {
		n := 0
		if e.reply.Unclean {
			n += 4
		}
		if e.member.Replica != t.rec.Ahead {
			n += 2
		}
		if e.member.Replica != t.prefer {
			n++
		}
		return n
	}
	slices.SortStableFunc(s, func(a, b sealed) int { return rank(a) - rank(b) })
	return s
}

// lossy says whether the authority of a group is unclean: writes that were acknowledged and not flushed may be gone.
func (t *takeover) lossy(group uint8) bool {
	s := t.set(group)
	return len(s) > 0 && s[0].reply.Unclean && !t.rec.Clean
}

// abandons says whether the replica of a group that may be ahead of the others cannot be copied from: writes that were
// acknowledged and not flushed may be gone.
func (t *takeover) abandons(group uint8) bool {
	if t.rec.Ahead == 0 || !inSyncIn(&t.rec, t.rec.Ahead, []uint8{group}) {
		return false
	}
	s, ok := t.sealed[t.rec.Ahead]
	return !ok || s.reply.Unclean
}

// loses says why acknowledged writes that were not flushed may be gone in some group, "" if they are not.
func (t *takeover) loses() string {
	for i := range t.rec.Groups {
		switch g := t.rec.Groups[i].ID; {
		case t.abandons(g):
			return fmt.Sprintf("replica %v, which may be ahead of the others, lost power or could not be reached", t.rec.Ahead)
		case t.lossy(g):
			return "every in-sync replica that could be reached lost power"
		}
	}
	return ""
}

// ahead returns the replica that the new holder will let be ahead, 0 for none.
func (t *takeover) ahead() ukai.ReplicaID {
	if _, ok := t.sealed[t.prefer]; !ok || t.rec.Ack != crdt.AckLocal {
		return 0
	}
	return t.prefer
}

// watermark returns the newest stable stamp known in S of a group. Blocks with newer stamps may differ.
func (t *takeover) watermark(group uint8) (k ukai.BlockStamp) {
	for _, e := range t.set(group) {
		if k.Less(e.reply.Stable) {
			k = e.reply.Stable
		}
	}
	return k
}

// suspect is a block that may differ between the members of S.
type suspect struct {
	index ukai.Index
	stamp ukai.BlockStamp // the newest any of them has for it
}

// mergeSuspects adds the blocks that one replica holds with a stamp newer than the watermark. Both lists are sorted.
func mergeSuspects(all, more []suspect) []suspect {
	all = append(all, more...)
	slices.SortFunc(all, func(a, b suspect) int {
		if a.index != b.index {
			if a.index < b.index {
				return -1
			}
			return 1
		}
		return b.stamp.Compare(a.stamp)
	})
	return slices.CompactFunc(all, func(a, b suspect) bool { return a.index == b.index }) // keeps the newest
}

// recovers says whether blocks must be made equal: not after a clean release, nor where S is a single replica.
func (t *takeover) recovers(group uint8) bool {
	return !t.rec.Clean && len(t.set(group)) > 1
}

// leaseEnds returns until when activation must wait, 0 if it need not: the holder before may answer reads from an
// in-sync replica that was not sealed until its lease has run out, and from one on its own node that follows its writes, which is not sealed at all. fenced
// says that it is known to be off.
//
// Its lease needs the confirmation of every in-sync replica, so any one of those sealed bounds it: by when that confirmed something last,
// which is later than the holder sent what was confirmed.
func (t *takeover) leaseEnds(fenced bool) time.Duration {
	// A pick leaves no syncing replicas in the record, which the holders of before may have read.
	if t.rec.Clean || fenced || len(t.sealed) == len(t.members()) && !t.followed() && t.rec.Epoch.Forced() == 0 {
		return 0
	}
	end := never
	for _, e := range t.sealed {
		end = min(end, e.at-max(e.reply.Quiet, 0)+leaseWait)
	}
	return max(end, 0)
}

// followed says whether the holder before may have had a replica that follows writes on its own node, as far as the record tells: on any node but this
// one. If it was this one, its process or its holding is over.
func (t *takeover) followed() bool {
	for i := range t.rec.Groups {
		if slices.ContainsFunc(t.rec.Groups[i].Members, func(m crdt.Member) bool { return m.Role == crdt.Syncing && m.Node != t.rec.Holder }) {
			return true
		}
	}
	return false
}

// replicas returns S over all groups, sorted: the in-sync set to activate.
func (t *takeover) replicas() []ukai.ReplicaID {
	var ids []ukai.ReplicaID
	for r := range t.sealed {
		ids = append(ids, r)
	}
	slices.Sort(ids)
	return ids
}

// transient says whether asking again may help: the peer was not reached, or had no room. Everything else is an answer.
func transient(err error) bool {
	return errors.Is(err, ukai.ErrUnreachable) || errors.Is(err, ukai.ErrTimeout) || errors.Is(err, ukai.ErrOverloaded) ||
		errors.Is(err, ukai.ErrClosed)
}
