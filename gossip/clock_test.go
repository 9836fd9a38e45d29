package gossip

import (
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
)

// What a node says to have caught up with makes others forget deletions: it must not be of a time that has not come.
func TestAClockThatIsAheadDoesNotCatchUpWithTheFuture(t *testing.T) {
	peer := ukai.NodeID{2}
	start := time.UnixMilli(1_000_000_000_000)
	minute := time.Minute
	for name, tc := range map[string]struct {
		compared time.Time     // by our clock, when catalogs were equal
		again    time.Time     // a later comparison, if any
		now      time.Time     // by our clock, when we say what we have
		skew     time.Duration // of the peer's clock
		want     time.Time     // before the margin; zero: nothing is said
	}{
		"clocks agree":                               {compared: start, now: start.Add(minute), want: start},
		"never compared":                             {now: start},
		"ahead of the peer":                          {compared: start, now: start.Add(minute), skew: -maxSkew - time.Second},
		"behind the peer":                            {compared: start, now: start.Add(minute), skew: maxSkew + time.Second, want: start},
		"was ahead when it compared":                 {compared: start.Add(time.Hour), now: start.Add(minute)},
		"was ahead, set right, has compared again":   {compared: start.Add(time.Hour), again: start.Add(minute), now: start.Add(minute), want: start.Add(minute)},
		"an older comparison is reported afterwards": {compared: start.Add(minute), again: start, now: start.Add(minute), want: start.Add(minute)},
	} {
		t.Run(name, func(t *testing.T) {
			m := bare(t, ukai.NodeID{1})
			m.cfg.Now = func() time.Time { return tc.now }
			if _, err := m.catalog.PutNode(peer, crdt.NodeInfo{Seq: 1, Boot: 1, Name: "peer"}); err != nil {
				t.Fatal(err)
			}
			p := &member{id: peer, skew: tc.skew}
			m.members[peer] = p
			for _, at := range []time.Time{tc.compared, tc.again} {
				if !at.IsZero() {
					m.wasEqual(p, at)
				}
			}
			want := int64(0)
			if !tc.want.IsZero() {
				want = tc.want.Add(-caughtUpMargin).UnixMilli()
			}
			if got := m.caughtUp(); got != want {
				t.Errorf("caught up with %v, want %v", time.UnixMilli(got), tc.want)
			}
		})
	}
}
