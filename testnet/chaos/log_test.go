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

func TestAttachmentsAreReadFromALog(t *testing.T) {
	var h history.History
	attached(&h, "t1", "rec1", `time=2026-11-24T11:04:13.386Z level=INFO msg=attached disk=rec1 epoch=1
time=2026-11-24T11:04:14.000Z level=INFO msg=attached disk=other epoch=9
time=2026-11-24T11:04:12.386+00:00 level=INFO msg=attached disk=rec1 epoch=1.4
`)
	if got := h.Takeovers(); len(got) != 2 || got[0].Epoch != 1<<40|4 || got[1].Epoch != 1 {
		t.Errorf("%+v", got)
	}
}

var attachedLine = regexp.MustCompile(`^time=(\S+) .*msg=attached disk=(\S+) epoch=(?:(\d+)\.)?(\d+)`)

// attached reads a node's log for when it became the holder of a disk.
func attached(h *history.History, node, disk, log string) {
	for line := range strings.Lines(log) {
		m := attachedLine.FindStringSubmatch(line)
		if m == nil || m[2] != disk {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, m[1])
		era, _ := strconv.ParseUint(m[3], 10, 24)
		n, err2 := strconv.ParseUint(m[4], 10, 64)
		if err == nil && err2 == nil {
			h.Took(history.Takeover{Node: node, Epoch: era<<40 | n, At: at.Add(time.Millisecond)}) // logs have whole milliseconds
		}
	}
}
