package node

import (
	"encoding/json"
	"testing"
	"time"

	"ukai/node/admin"
	"ukai/node/volume"
)

func TestWhatIsScrubbedNextFollowsFromWhatWasAskedForAndWhen(t *testing.T) {
	month := 30 * 24 * time.Hour
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	running := func(request string) scrubState {
		return scrubState{Taken: "a", Now: admin.ScrubRun{Request: request, Began: ago(time.Hour), Verified: 7}, Next: 7, Full: ago(month)}
	}
	for name, c := range map[string]struct {
		state      scrubState
		wanted     scrubWanted
		born       time.Time
		never      bool
		due, asked bool
		fresh      bool // begins at the first block
	}{
		"a new disk":                            {born: ago(time.Hour)},
		"a disk that is old enough":             {born: ago(month), due: true, fresh: true},
		"an old one that was scrubbed lately":   {born: ago(9 * month), state: scrubState{Full: ago(month - time.Hour)}},
		"one that was scrubbed long ago":        {born: ago(9 * month), state: scrubState{Full: ago(month)}, due: true, fresh: true},
		"looked at lately is not scrubbed":      {born: ago(9 * month), state: scrubState{Last: admin.ScrubRun{VerifyOnly: true, Ended: ago(time.Hour)}}, due: true, fresh: true},
		"old enough, and nothing is due here":   {born: ago(month), never: true},
		"asked for":                             {born: ago(time.Hour), wanted: scrubWanted{Request: "a"}, due: true, asked: true, fresh: true},
		"asked for where nothing is due":        {born: ago(time.Hour), wanted: scrubWanted{Request: "a"}, never: true, due: true, asked: true, fresh: true},
		"asked for and done":                    {born: ago(time.Hour), state: scrubState{Taken: "a"}, wanted: scrubWanted{Request: "a"}},
		"asked for again":                       {born: ago(time.Hour), state: scrubState{Taken: "a"}, wanted: scrubWanted{Request: "b"}, due: true, asked: true, fresh: true},
		"asked for and begun":                   {state: running("a"), wanted: scrubWanted{Request: "a"}, due: true, asked: true},
		"asked for and begun, for somebody":     {state: running("a"), wanted: scrubWanted{Request: "a"}, never: true, due: true, asked: true},
		"was due and has begun":                 {state: running(""), wanted: scrubWanted{Request: "a"}, due: true},
		"was due, has begun, and is not wanted": {state: running(""), wanted: scrubWanted{Request: "a"}, never: true},
		"was due, and then asked for":           {state: running(""), wanted: scrubWanted{Request: "b", VerifyOnly: true}, due: true, asked: true, fresh: true},
	} {
		every := month
		if c.never {
			every = -1
		}
		next, asked, due := c.state.due(c.wanted, c.born, now, every)
		if due != c.due || asked != c.asked {
			t.Errorf("%s: due %v, asked for %v; want %v, %v", name, due, asked, c.due, c.asked)
		}
		if !due {
			continue
		}
		want := c.state
		if c.fresh {
			want.Next, want.Now = 0, admin.ScrubRun{Began: now}
			if asked {
				want.Taken, want.Now.Request, want.Now.VerifyOnly = c.wanted.Request, c.wanted.Request, c.wanted.VerifyOnly
			}
		}
		if next != want {
			t.Errorf("%s: goes on as %+v, want %+v", name, next, want)
		}
	}
}

func TestAScrubThatOnlyLookedDoesNotPutOffTheNext(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, only := range []bool{true, false} {
		s := scrubState{Now: admin.ScrubRun{VerifyOnly: only, Began: now.Add(-time.Hour), Verified: 3}, Next: 9}
		s.add(volume.ScrubResult{Next: 12, Verified: 4, Corrupt: 2, Repaired: 1, Unrepaired: 1})
		if s.finish(now); s.Full.IsZero() != only {
			t.Errorf("verify-only %v: all is known to be well since %v", only, s.Full)
		}
		want := admin.ScrubRun{VerifyOnly: only, Began: now.Add(-time.Hour), Ended: now, Verified: 7, Corrupt: 2, Repaired: 1, Unrepaired: 1}
		if s.Last != want || s.Now != (admin.ScrubRun{}) || s.Next != 0 {
			t.Errorf("%+v", s)
		}
		text, err := json.Marshal(s)
		if err != nil || len(text) > 2048 {
			t.Errorf("%d bytes in the catalog, %v", len(text), err)
		}
	}
}

func TestAScrubThatIsCalledOffIsNotDueAndWhatItFoundStays(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	run := admin.ScrubRun{Request: "a", Began: now.Add(-time.Hour), Unrepaired: 2}
	s := scrubState{Taken: "a", Now: run, Next: 7, Last: admin.ScrubRun{Unrepaired: 1}}
	off := scrubWanted{Request: "b", Cancelled: now}
	heeded := s.heed(off)
	if _, _, due := heeded.due(off, now, now, time.Hour); due || heeded.Next != 0 || !heeded.Now.Began.IsZero() {
		t.Errorf("due %v: %+v", due, heeded)
	}
	if heeded.Last.Unrepaired != 2 || !heeded.Last.Ended.Equal(now) {
		t.Errorf("what it found is forgotten: %+v", heeded.Last)
	}
	if again := heeded.heed(off); again != heeded {
		t.Errorf("heeded twice: %+v", again)
	}
	if same := s.heed(scrubWanted{Request: "b"}); same != s {
		t.Errorf("another request calls it off: %+v", same)
	}
	if _, asked, due := heeded.due(scrubWanted{Request: "c"}, now, now, time.Hour); !due || !asked {
		t.Error("the next request is not heeded")
	}
}
