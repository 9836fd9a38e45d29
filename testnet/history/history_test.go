package history

import (
	"errors"
	"testing"
	"time"
)

// past makes a history of one sector from lines of call, return and what: times in milliseconds.
type step struct {
	call, ret int
	node      string
	kind      Kind
	id        ID
	end       End
	own       bool
}

func past(steps []step, takeovers ...Takeover) *History {
	zero := time.Unix(1000, 0)
	h := &History{takeovers: takeovers}
	for i, s := range steps {
		o := &Op{Node: s.node, Worker: i, Kind: s.kind, Count: 1, Call: zero.Add(time.Duration(s.call) * time.Millisecond), Ret: zero.Add(time.Duration(s.ret) * time.Millisecond), End: s.end, Own: s.own}
		if s.end != Done {
			o.Err = errors.New("error")
		}
		switch {
		case s.kind == Write:
			o.ID = s.id
		case s.kind == Read && s.end == Done:
			o.Saw = []ID{s.id}
		}
		h.Add(o)
	}
	return h
}

func TestTheCheckerTellsGoodHistoriesFromBad(t *testing.T) {
	at := func(ms int, node string, epoch uint64) Takeover {
		return Takeover{Node: node, Epoch: epoch, At: time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond)}
	}
	holders := []Takeover{at(0, "t1", 1), at(100, "t2", 2)}
	for name, c := range map[string]struct {
		steps []step
		good  bool
	}{
		"a read sees the last write":                      {[]step{{1, 2, "t1", Write, 1, Done, false}, {3, 4, "t2", Read, 1, Done, false}}, true},
		"a stale read":                                    {[]step{{1, 2, "t1", Write, 1, Done, false}, {3, 4, "t1", Write, 2, Done, false}, {5, 6, "t2", Read, 1, Done, false}}, false},
		"an acknowledged write is lost":                   {[]step{{1, 2, "t1", Write, 1, Done, false}, {3, 4, "t2", Read, 0, Done, false}}, false},
		"reads during a write may differ, old then new":   {[]step{{1, 9, "t1", Write, 1, Done, false}, {2, 3, "t1", Read, 0, Done, false}, {4, 5, "t2", Read, 1, Done, false}}, true},
		"new, then old":                                   {[]step{{1, 9, "t1", Write, 1, Done, false}, {2, 3, "t1", Read, 1, Done, false}, {4, 5, "t2", Read, 0, Done, false}}, false},
		"a failed write never happened":                   {[]step{{1, 2, "t1", Write, 1, Maybe, false}, {110, 111, "t2", Read, 0, Done, false}, {120, 121, "t1", Read, 0, Done, false}}, true},
		"a failed write happened":                         {[]step{{1, 2, "t1", Write, 1, Maybe, false}, {110, 111, "t2", Read, 1, Done, false}, {120, 121, "t1", Read, 1, Done, false}}, true},
		"a failed write happens before the next holder":   {[]step{{1, 2, "t1", Write, 1, Maybe, false}, {50, 51, "t1", Read, 0, Done, false}, {110, 111, "t2", Read, 1, Done, false}}, true},
		"a failed write happens after the next holder":    {[]step{{1, 2, "t1", Write, 1, Maybe, false}, {110, 111, "t2", Read, 0, Done, false}, {120, 121, "t2", Read, 1, Done, false}}, false},
		"of the last holder it may happen at any time":    {[]step{{101, 102, "t2", Write, 1, Maybe, false}, {110, 111, "t2", Read, 0, Done, false}, {120, 121, "t2", Read, 1, Done, false}}, true},
		"a refused write happened":                        {[]step{{1, 2, "t1", Write, 1, Refused, false}, {110, 111, "t2", Read, 1, Done, false}}, false},
		"somebody reads what nobody wrote":                {[]step{{1, 2, "t1", Read, 7, Done, false}}, false},
		"a failed write comes back after it was replaced": {[]step{{1, 2, "t1", Write, 1, Maybe, false}, {5, 6, "t1", Write, 2, Done, false}, {110, 111, "t2", Read, 2, Done, false}, {120, 121, "t2", Read, 1, Done, false}}, false},
	} {
		v := past(c.steps, holders...).Check(t.TempDir())
		if good := len(v.Violations) == 0; good != c.good || v.Unknown > 0 {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func TestASectorTellsWhoWroteItAndWhetherItIsWhole(t *testing.T) {
	p := make([]byte, 4*SectorBytes)
	if id, err := Saw(p[:SectorBytes], 3, 0); id != 0 || err != nil {
		t.Errorf("zeros: %d, %v", id, err)
	}
	Fill(p, 3, 7, 42)
	if id, err := Saw(p[SectorBytes:2*SectorBytes], 3, 8); id != 42 || err != nil {
		t.Errorf("whole: %d, %v", id, err)
	}
	for what, at := range map[string]int64{"misplaced": 9, "whole": 8} {
		if _, err := Saw(p[SectorBytes:2*SectorBytes], 3, at); (err == nil) != (what == "whole") {
			t.Errorf("%s: %v", what, err)
		}
	}
	Fill(p[100:100+SectorBytes], 3, 8, 43)
	if _, err := Saw(p[:SectorBytes], 3, 7); err == nil {
		t.Error("a torn sector passed")
	}
}

func TestATakeoverIsLossyIfItWasSaidOfItOrOfOneThatEndedBeforeItCouldTell(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	var h History
	for epoch, ms := range map[uint64]int{1: 0, 2: 10, 4: 30, 5: 40} {
		h.Took(Takeover{Node: "t1", Epoch: epoch, At: at(ms)})
	}
	h.Loses(Loss{"t1", 2, at(9)})
	h.Loses(Loss{"t2", 3, at(20)})
	h.Check(t.TempDir())
	for _, o := range h.Takeovers() {
		if want := o.Epoch == 2 || o.Epoch == 4; o.Lossy != want {
			t.Errorf("epoch %d: lossy is %v", o.Epoch, o.Lossy)
		}
	}
}

func TestALossOfPowerTakesOnlyWhatWasNotFlushedAndOnlyWithTheHolder(t *testing.T) {
	at := func(ms int, node string, epoch uint64, lossy bool) Takeover {
		return Takeover{Node: node, Epoch: epoch, At: time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond), Lossy: lossy}
	}
	holders := []Takeover{at(0, "t1", 1, false), at(100, "t2", 2, true)}
	w, f := func(call int, id ID) step { return step{call, call + 1, "t1", Write, id, Done, false} }, step{10, 11, "t1", Flush, 0, Done, false}
	r := func(call int, id ID) step { return step{call, call + 1, "t2", Read, id, Done, false} }
	own := func(node string) step { return step{10, 11, node, Flush, 0, Done, true} }
	for name, c := range map[string]struct {
		steps []step
		good  bool
	}{
		"all is there":                          {[]step{w(1, 1), f, w(20, 2), r(110, 2)}, true},
		"what was not flushed is gone":          {[]step{w(1, 1), f, w(20, 2), r(110, 1)}, true},
		"one of several is left":                {[]step{w(1, 1), f, w(20, 2), w(30, 3), w(40, 4), r(110, 3)}, true},
		"what was flushed is gone":              {[]step{w(1, 1), f, w(20, 2), r(110, 0)}, false},
		"what was replaced before the flush":    {[]step{w(1, 1), w(3, 2), f, r(110, 1)}, false},
		"one thing is seen, then another":       {[]step{w(1, 1), f, w(20, 2), r(110, 1), r(120, 2)}, false},
		"gone under the holder":                 {[]step{w(1, 1), w(20, 2), r(30, 1), r(110, 2)}, false},
		"gone later than with the takeover":     {[]step{w(1, 1), w(20, 2), r(110, 2), r(120, 0)}, false},
		"a flush during the write vouches not":  {[]step{{1, 20, "t1", Write, 1, Done, false}, f, r(110, 0)}, true},
		"a flush that failed vouches not":       {[]step{w(1, 1), {10, 11, "t1", Flush, 0, Maybe, false}, r(110, 0)}, true},
		"a flush of the node that wrote it":     {[]step{w(1, 1), own("t1"), r(110, 0)}, false},
		"a flush of another node than wrote it": {[]step{w(1, 1), own("t2"), r(110, 0)}, true},
		"a failed write that is seen, then not": {[]step{{1, 2, "t1", Write, 1, Maybe, false}, r(110, 1), r(120, 0)}, false},
	} {
		v := past(c.steps, holders...).Check(t.TempDir())
		if good := len(v.Violations) == 0; good != c.good || v.Unknown > 0 {
			t.Errorf("%s: %+v", name, v)
		}
	}
}
