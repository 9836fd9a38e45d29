//go:build linux

package chaos

import (
	"errors"
	"testing"
	"time"
)

// past makes a history of one sector from lines of call, return and what: times in milliseconds.
type step struct {
	call, ret int
	node      string
	write     bool
	id        opID
	end       outcome
}

func past(steps []step, attachments ...attachment) *history {
	zero := time.Unix(1000, 0)
	h := &history{attachments: attachments}
	for i, s := range steps {
		o := &operation{node: s.node, worker: i, write: s.write, count: 1, call: zero.Add(time.Duration(s.call) * time.Millisecond), ret: zero.Add(time.Duration(s.ret) * time.Millisecond), end: s.end}
		if s.end != done {
			o.err = errors.New("error")
		}
		if s.write {
			o.id = s.id
		} else if s.end == done {
			o.saw = []opID{s.id}
		}
		h.add(o)
	}
	return h
}

func TestTheCheckerTellsGoodHistoriesFromBad(t *testing.T) {
	at := func(ms int, node string, epoch uint64) attachment {
		return attachment{node, epoch, time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond)}
	}
	holders := []attachment{at(0, "t1", 1), at(100, "t2", 2)}
	for name, c := range map[string]struct {
		steps []step
		good  bool
	}{
		"a read sees the last write":                      {[]step{{1, 2, "t1", true, 1, done}, {3, 4, "t2", false, 1, done}}, true},
		"a stale read":                                    {[]step{{1, 2, "t1", true, 1, done}, {3, 4, "t1", true, 2, done}, {5, 6, "t2", false, 1, done}}, false},
		"an acknowledged write is lost":                   {[]step{{1, 2, "t1", true, 1, done}, {3, 4, "t2", false, 0, done}}, false},
		"reads during a write may differ, old then new":   {[]step{{1, 9, "t1", true, 1, done}, {2, 3, "t1", false, 0, done}, {4, 5, "t2", false, 1, done}}, true},
		"new, then old":                                   {[]step{{1, 9, "t1", true, 1, done}, {2, 3, "t1", false, 1, done}, {4, 5, "t2", false, 0, done}}, false},
		"a failed write never happened":                   {[]step{{1, 2, "t1", true, 1, maybe}, {110, 111, "t2", false, 0, done}, {120, 121, "t1", false, 0, done}}, true},
		"a failed write happened":                         {[]step{{1, 2, "t1", true, 1, maybe}, {110, 111, "t2", false, 1, done}, {120, 121, "t1", false, 1, done}}, true},
		"a failed write happens before the next holder":   {[]step{{1, 2, "t1", true, 1, maybe}, {50, 51, "t1", false, 0, done}, {110, 111, "t2", false, 1, done}}, true},
		"a failed write happens after the next holder":    {[]step{{1, 2, "t1", true, 1, maybe}, {110, 111, "t2", false, 0, done}, {120, 121, "t2", false, 1, done}}, false},
		"of the last holder it may happen at any time":    {[]step{{101, 102, "t2", true, 1, maybe}, {110, 111, "t2", false, 0, done}, {120, 121, "t2", false, 1, done}}, true},
		"a refused write happened":                        {[]step{{1, 2, "t1", true, 1, refused}, {110, 111, "t2", false, 1, done}}, false},
		"somebody reads what nobody wrote":                {[]step{{1, 2, "t1", false, 7, done}}, false},
		"a failed write comes back after it was replaced": {[]step{{1, 2, "t1", true, 1, maybe}, {5, 6, "t1", true, 2, done}, {110, 111, "t2", false, 2, done}, {120, 121, "t2", false, 1, done}}, false},
	} {
		v := past(c.steps, holders...).check(t.TempDir())
		if good := len(v.violations) == 0; good != c.good || v.unknown > 0 {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func TestASectorTellsWhoWroteItAndWhetherItIsWhole(t *testing.T) {
	p := make([]byte, 4*sectorSize)
	if id, err := saw(p[:sectorSize], 3, 0); id != 0 || err != nil {
		t.Errorf("zeros: %d, %v", id, err)
	}
	fill(p, 3, 7, 42)
	if id, err := saw(p[sectorSize:2*sectorSize], 3, 8); id != 42 || err != nil {
		t.Errorf("whole: %d, %v", id, err)
	}
	for what, at := range map[string]int64{"misplaced": 9, "whole": 8} {
		if _, err := saw(p[sectorSize:2*sectorSize], 3, at); (err == nil) != (what == "whole") {
			t.Errorf("%s: %v", what, err)
		}
	}
	fill(p[100:100+sectorSize], 3, 8, 43)
	if _, err := saw(p[:sectorSize], 3, 7); err == nil {
		t.Error("a torn sector passed")
	}
}

func TestAttachmentsAreReadFromALog(t *testing.T) {
	var h history
	h.attached("t1", "rec1", `time=2026-11-24T11:04:13.386Z level=INFO msg=attached disk=rec1 epoch=1
time=2026-11-24T11:04:14.000Z level=INFO msg=attached disk=other epoch=9
time=2026-11-24T11:04:12.386+00:00 level=INFO msg=attached disk=rec1 epoch=1.4
`)
	if len(h.attachments) != 2 || h.attachments[0].epoch != 1<<40|4 || h.attachments[1].epoch != 1 {
		t.Errorf("%+v", h.attachments)
	}
}
