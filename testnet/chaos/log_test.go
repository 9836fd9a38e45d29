//go:build linux

package chaos

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ukai/testnet/history"
)

func TestAttachmentsAndLossesAreReadFromALog(t *testing.T) {
	var h history.History
	told := attached(&h, "t1", "rec1", `time=2026-11-24T11:04:13.386Z level=INFO msg=attached disk=rec1 epoch=1
time=2026-11-24T11:04:14.000Z level=INFO msg=attached disk=other epoch=9
time=2026-11-24T11:04:14.386Z level=WARN msg="writes that were acknowledged and not flushed may be lost" disk=rec1 epoch=3 why="replica 7"
time=2026-11-24T11:04:14.386Z level=WARN msg="writes that were acknowledged and not flushed may be lost" disk=other epoch=3 why="replica 7"
time=2026-11-24T11:04:14.390Z level=INFO msg=attached disk=rec1 epoch=4
time=2026-11-24T11:04:14.395Z level=WARN msg="writes that were acknowledged and not flushed may be lost" disk=rec1 epoch=1.4 why="replica 7"
time=2026-11-24T11:04:12.386+00:00 level=INFO msg=attached disk=rec1 epoch=1.4
`)
	if got := h.Takeovers(); len(got) != 3 || got[0].Epoch != 1<<40|4 || got[1].Epoch != 1 || got[2].Epoch != 4 {
		t.Errorf("%+v", got)
	}
	if len(told) != 2 || told[0].epoch != 3 || told[1].epoch != 1<<40|4 {
		t.Errorf("%+v", told)
	}
	h.Judge(func(t []history.Takeover) { lose(t, told) })
	if got := h.Takeovers(); !got[0].Lossy || got[1].Lossy || !got[2].Lossy {
		t.Errorf("epoch 3 ended before it could say so, and lost what 4 misses; 1.4 lost something itself; 1 did not: %+v", got)
	}
}

var (
	attachedLine = regexp.MustCompile(`^time=(\S+) .*msg=attached disk=(\S+) epoch=(?:(\d+)\.)?(\d+)`)
	lossLine     = regexp.MustCompile(`^time=(\S+) .*msg="writes that were acknowledged and not flushed may be lost" disk=(\S+) epoch=(?:(\d+)\.)?(\d+)`)
)

// loss is a node's saying, before it takes a disk over, that writes may be lost by that.
type loss struct {
	node  string
	epoch uint64
	at    time.Time
}

// attached reads a node's log for when it became the holder of a disk, and what that may have lost.
func attached(h *history.History, node, disk, log string) (told []loss) {
	for line := range strings.Lines(log) {
		if at, epoch, ok := parse(attachedLine, line, disk); ok {
			h.Took(history.Takeover{Node: node, Epoch: epoch, At: at.Add(time.Millisecond)}) // logs have whole milliseconds
		}
		if at, epoch, ok := parse(lossLine, line, disk); ok {
			told = append(told, loss{node, epoch, at})
		}
	}
	return told
}

func parse(pattern *regexp.Regexp, line, disk string) (at time.Time, epoch uint64, ok bool) {
	m := pattern.FindStringSubmatch(line)
	if m == nil || m[2] != disk {
		return at, 0, false
	}
	at, err := time.Parse(time.RFC3339Nano, m[1])
	era, _ := strconv.ParseUint(m[3], 10, 24)
	n, err2 := strconv.ParseUint(m[4], 10, 64)
	return at, era<<40 | n, err == nil && err2 == nil
}

// lose marks the takeovers that may have lost writes. A node that was killed after it told of a loss, and before it told that it had
// attached the disk, may have been its holder: then the next one misses what that lost.
func lose(takeovers []history.Takeover, told []loss) {
	for _, l := range told {
		own, next := -1, -1
		for i, t := range takeovers {
			switch {
			case t.Epoch == l.epoch:
				own = i
			case next < 0 && t.At.After(l.at):
				next = i
			}
		}
		if own < 0 {
			own = next
		}
		if own >= 0 {
			takeovers[own].Lossy = true
		}
	}
}
