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
	attached(&h, "t1", "rec1", `time=2026-11-24T11:04:13.386Z level=INFO msg=attached disk=rec1 epoch=1
time=2026-11-24T11:04:14.000Z level=INFO msg=attached disk=other epoch=9
time=2026-11-24T11:04:14.386Z level=WARN msg="writes that were acknowledged and not flushed may be lost" disk=rec1 epoch=3 why="replica 7"
time=2026-11-24T11:04:14.387Z level=WARN msg="writes that were acknowledged and not flushed may be lost" disk=other epoch=3 why="replica 7"
time=2026-11-24T11:04:12.386+00:00 level=INFO msg=attached disk=rec1 epoch=1.4
`)
	if got := h.Takeovers(); len(got) != 2 || got[0].Epoch != 1<<40|4 || got[1].Epoch != 1 {
		t.Errorf("%+v", got)
	}
	if got := h.Losses(); len(got) != 1 || got[0].Epoch != 3 || got[0].At.Nanosecond() != 386e6 {
		t.Errorf("%+v", got)
	}
}

var (
	attachedLine = regexp.MustCompile(`^time=(\S+) .*msg=attached disk=(\S+) epoch=(?:(\d+)\.)?(\d+)`)
	lossLine     = regexp.MustCompile(`^time=(\S+) .*msg="writes that were acknowledged and not flushed may be lost" disk=(\S+) epoch=(?:(\d+)\.)?(\d+)`)
)

// attached reads a node's log for when it became the holder of a disk, and when that may have lost writes.
func attached(h *history.History, node, disk, log string) {
	for line := range strings.Lines(log) {
		if at, epoch, ok := parse(attachedLine, line, disk); ok {
			h.Took(history.Takeover{Node: node, Epoch: epoch, At: at.Add(time.Millisecond)}) // logs have whole milliseconds
		}
		if at, epoch, ok := parse(lossLine, line, disk); ok {
			h.Loses(history.Loss{Node: node, Epoch: epoch, At: at})
		}
	}
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
