// Package history records what programs saw of a disk and decides whether a correct disk could have shown it: strict
// linearizability per sector (guarantee G1 of the protocol), and with losses of power what a disk with a volatile cache may
// forget (G2 and G3). Sectors tell which write they are from, so a read names the writes it saw and a torn sector is found.
package history

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"time"

	"ukai"
)

// SectorBytes is the unit in which a disk is atomic.
const SectorBytes = ukai.SectorSize

// ID names one write; 0 is what a new disk holds.
type ID uint64

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Fill makes each sector of p, which begins at a sector of a disk, tell which disk and sector it is and which write wrote it.
func Fill(p []byte, disk uint32, sector int64, id ID) {
	for i := 0; i < len(p); i += SectorBytes {
		s := p[i : i+SectorBytes]
		for j := 20; j < SectorBytes-4; j += 8 {
			binary.LittleEndian.PutUint64(s[j:], uint64(id)*0x9e3779b97f4a7c15+uint64(j))
		}
		binary.LittleEndian.PutUint32(s, disk)
		binary.LittleEndian.PutUint64(s[4:], uint64(sector)+uint64(i/SectorBytes))
		binary.LittleEndian.PutUint64(s[12:], uint64(id))
		binary.LittleEndian.PutUint32(s[SectorBytes-4:], crc32.Checksum(s[:SectorBytes-4], castagnoli))
	}
}

// Saw returns which write a sector is from, or says why it is from none.
func Saw(s []byte, disk uint32, sector int64) (ID, error) {
	if binary.LittleEndian.Uint64(s[4:]) == 0 && !slices.ContainsFunc(s, func(b byte) bool { return b != 0 }) {
		return 0, nil
	}
	if crc32.Checksum(s[:SectorBytes-4], castagnoli) != binary.LittleEndian.Uint32(s[SectorBytes-4:]) {
		return 0, fmt.Errorf("sector %d is torn or garbage, it begins with %x", sector, s[:20])
	}
	if d, at := binary.LittleEndian.Uint32(s), int64(binary.LittleEndian.Uint64(s[4:])); d != disk || at != sector {
		return 0, fmt.Errorf("sector %d holds sector %d of disk %d", sector, at, d)
	}
	return ID(binary.LittleEndian.Uint64(s[12:])), nil
}

// Kind says what an operation does.
type Kind uint8

// Kinds of operations. A flush is one of the whole disk.
const (
	Read Kind = iota
	Write
	Flush
)

// End says how an operation ended.
type End uint8

// Ends of operations.
const (
	Done    End = iota
	Maybe       // an error: it took effect before the next holder served its first request, or never
	Refused     // certainly without effect
)

// Op is one operation through one node, on one sector or several.
type Op struct {
	Node      string
	Worker    int
	Kind      Kind
	Sector    int64
	Count     int  // sectors
	ID        ID   // of a write; 0: of zeros
	Saw       []ID // by a read, per sector
	Own       bool // a flush that vouches only for what was written through its node
	Call, Ret time.Time
	End       End
	Err       error
}

// Took returns how long it took.
func (o *Op) Took() time.Duration { return o.Ret.Sub(o.Call) }

// String tells the operation in one line.
func (o *Op) String() string {
	what := [...]string{fmt.Sprintf("read %v", o.Saw), fmt.Sprintf("write %d", o.ID), "flush"}[o.Kind]
	text := fmt.Sprintf("%s %s %-2s w%d sectors %d+%d %s", Clock(o.Call), Clock(o.Ret), o.Node, o.Worker, o.Sector, o.Count, what)
	if o.Err != nil {
		text += fmt.Sprintf(": %v (%s)", o.Err, [...]string{"done", "maybe", "refused"}[o.End])
	}
	return text
}

// Clock writes a time as histories do.
func Clock(t time.Time) string { return t.UTC().Format("15:04:05.000000") }

// Takeover is a node's becoming the holder of a disk. The epoch was activated before At.
type Takeover struct {
	Node  string
	Epoch uint64
	At    time.Time
	// Lossy: what was acknowledged and not flushed may be gone since the end of the epoch before.
	Lossy bool
}

// Loss is a node's saying, before it takes a disk over, that what was acknowledged and not flushed may be lost by that.
type Loss struct {
	Node  string
	Epoch uint64
	At    time.Time
}

// History is all that happened to one disk. Its zero value is empty.
type History struct {
	mu        sync.Mutex
	ops       []*Op
	takeovers []Takeover // sorted by time
	losses    []Loss
}

// Add records an operation that has returned.
func (h *History) Add(o *Op) {
	h.mu.Lock()
	h.ops = append(h.ops, o)
	h.mu.Unlock()
}

// Took records a takeover.
func (h *History) Took(t Takeover) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.takeovers = append(h.takeovers, t)
	slices.SortStableFunc(h.takeovers, func(a, b Takeover) int { return a.At.Compare(b.At) })
}

// Loses records that a takeover may have lost writes.
func (h *History) Loses(l Loss) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.losses = append(h.losses, l)
}

// Losses returns what was said of losses.
func (h *History) Losses() []Loss {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.losses)
}

// judge marks the takeovers that may have lost writes. A node that ended after it told of a loss, and before it told that it had the
// disk, may have been its holder: then the next one misses what that lost.
func (h *History) judge() {
	for _, l := range h.losses {
		own, next := -1, -1
		for i, t := range h.takeovers {
			switch {
			case t.Epoch == l.Epoch:
				own = i
			case next < 0 && t.At.After(l.At):
				next = i
			}
		}
		if own < 0 {
			own = next
		}
		if own >= 0 {
			h.takeovers[own].Lossy = true
		}
	}
}

// Ops returns the operations in the order in which they returned.
func (h *History) Ops() []*Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops)
}

// Takeovers returns the takeovers by time.
func (h *History) Takeovers() []Takeover {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.takeovers)
}

// deadline returns until when a write that failed may still take effect: until the next epoch was activated, by this node
// or another. It is a bound from above - an epoch whose holder died before it could tell is not known - so it never calls
// a good history bad.
func (h *History) deadline(o *Op) time.Time {
	var own uint64
	for _, t := range h.takeovers {
		if t.Node == o.Node && !t.At.After(o.Ret.Add(time.Millisecond)) {
			own = max(own, t.Epoch)
		}
	}
	for _, t := range h.takeovers {
		if t.At.After(o.Call) && t.Epoch > own {
			return t.At
		}
	}
	return time.Time{}
}

// Tell returns what happened to a sector, in order.
func (h *History) Tell(sector int64) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tell(func(o *Op) bool { return o.Kind == Flush || o.Sector <= sector && sector < o.Sector+int64(o.Count) })
}

// TellAll returns all that has happened so far, in order.
func (h *History) TellAll() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tell(func(*Op) bool { return true })
}

func (h *History) tell(concerns func(*Op) bool) string {
	var lines []string
	for _, o := range h.ops {
		if concerns(o) {
			line := o.String()
			if o.Kind == Write && o.End == Maybe {
				line += ", may take effect until " + Clock(h.deadline(o))
			}
			lines = append(lines, line)
		}
	}
	for _, t := range h.takeovers {
		line := fmt.Sprintf("%s %s attached, epoch %d", Clock(t.At), t.Node, t.Epoch)
		if t.Lossy {
			line += ", may have lost what was not flushed"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}
