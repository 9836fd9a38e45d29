//go:build linux

package chaos

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

const sectorSize = 512

// opID names one write of a run; 0 is what a new disk holds.
type opID uint64

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// fill makes each sector of p, which begins at a sector of a disk, tell which disk and sector it is and which write wrote it.
func fill(p []byte, disk uint32, sector int64, id opID) {
	for i := 0; i < len(p); i += sectorSize {
		s := p[i : i+sectorSize]
		for j := 20; j < sectorSize-4; j += 8 {
			binary.LittleEndian.PutUint64(s[j:], uint64(id)*0x9e3779b97f4a7c15+uint64(j))
		}
		binary.LittleEndian.PutUint32(s, disk)
		binary.LittleEndian.PutUint64(s[4:], uint64(sector)+uint64(i/sectorSize))
		binary.LittleEndian.PutUint64(s[12:], uint64(id))
		binary.LittleEndian.PutUint32(s[sectorSize-4:], crc32.Checksum(s[:sectorSize-4], castagnoli))
	}
}

// saw returns which write a sector is from, or says why it is from none.
func saw(s []byte, disk uint32, sector int64) (opID, error) {
	if binary.LittleEndian.Uint64(s[4:]) == 0 && !slices.ContainsFunc(s, func(b byte) bool { return b != 0 }) {
		return 0, nil
	}
	if crc32.Checksum(s[:sectorSize-4], castagnoli) != binary.LittleEndian.Uint32(s[sectorSize-4:]) {
		return 0, fmt.Errorf("sector %d is torn or garbage: %x...", sector, s[:20])
	}
	if d, at := binary.LittleEndian.Uint32(s), int64(binary.LittleEndian.Uint64(s[4:])); d != disk || at != sector {
		return 0, fmt.Errorf("sector %d holds sector %d of disk %d", sector, at, d)
	}
	return opID(binary.LittleEndian.Uint64(s[12:])), nil
}

// outcome says how an operation ended.
type outcome uint8

const (
	done    outcome = iota
	maybe           // an error: it took effect before the next holder served its first request, or never
	refused         // certainly without effect
)

// operation is one read or write through one node's mount, of one sector or several.
type operation struct {
	node   string
	worker int
	write  bool
	sector int64
	id     opID   // of a write
	saw    []opID // by a read, per sector
	count  int    // sectors
	call   time.Time
	ret    time.Time
	end    outcome
	err    error
}

func (o *operation) String() string {
	what := fmt.Sprintf("read %v", o.saw)
	if o.write {
		what = fmt.Sprintf("write %d", o.id)
	}
	text := fmt.Sprintf("%s %s %-2s w%d sectors %d+%d %s", clock(o.call), clock(o.ret), o.node, o.worker, o.sector, o.count, what)
	if o.err != nil {
		text += fmt.Sprintf(": %v (%s)", o.err, [...]string{"done", "maybe", "refused"}[o.end])
	}
	return text
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05.000000") }

// attachment is a node's becoming the holder of a disk, as its log tells. The epoch was activated before that time.
type attachment struct {
	node  string
	epoch uint64
	at    time.Time
}

// history is all that happened to one disk.
type history struct {
	mu          sync.Mutex
	ops         []*operation
	attachments []attachment // sorted by time
}

func (h *history) add(o *operation) {
	h.mu.Lock()
	h.ops = append(h.ops, o)
	h.mu.Unlock()
}

var attachedLine = regexp.MustCompile(`^time=(\S+) .*msg=attached disk=(\S+) epoch=(?:(\d+)\.)?(\d+)`)

// attached reads a node's log for when it became the holder of a disk.
func (h *history) attached(node, disk, log string) {
	for line := range strings.Lines(log) {
		m := attachedLine.FindStringSubmatch(line)
		if m == nil || m[2] != disk {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, m[1])
		era, _ := strconv.ParseUint(m[3], 10, 24)
		n, err2 := strconv.ParseUint(m[4], 10, 64)
		if err == nil && err2 == nil {
			h.attachments = append(h.attachments, attachment{node, era<<40 | n, at.Add(time.Millisecond)}) // logs have whole milliseconds
		}
	}
	slices.SortStableFunc(h.attachments, func(a, b attachment) int { return a.at.Compare(b.at) })
}

// deadline returns until when a write that failed may still take effect: until the next epoch was activated, by this node
// or another. It is a bound from above - an epoch whose holder died before it could log is not known - so it never calls a good history bad.
func (h *history) deadline(o *operation) time.Time {
	var own uint64
	for _, a := range h.attachments {
		if a.node == o.node && !a.at.After(o.ret.Add(time.Millisecond)) {
			own = max(own, a.epoch)
		}
	}
	for _, a := range h.attachments {
		if a.at.After(o.ret) && a.epoch > own {
			return a.at
		}
	}
	return time.Time{}
}

// access is one sector's share of an operation, as the checker wants it.
type access struct {
	write bool
	id    opID
	op    *operation
}

// register is the model of a sector: a read sees the last write.
var register = porcupine.Model{
	Init: func() any { return opID(0) },
	Step: func(state, input, _ any) (bool, any) {
		a := input.(access)
		if a.write {
			return true, a.id
		}
		return state.(opID) == a.id, state
	},
	Hash: func(state any) uint64 { return uint64(state.(opID)) },
	DescribeOperation: func(input, _ any) string {
		a := input.(access)
		if a.write {
			return fmt.Sprintf("%s writes %d", a.op.node, a.id)
		}
		return fmt.Sprintf("%s reads %d", a.op.node, a.id)
	},
}

// sectors splits the history. A write that failed counts only where somebody saw it: one that nobody saw constrains nothing. Then
// it did take effect, within its deadline.
func (h *history) sectors() map[int64][]porcupine.Operation {
	seen := map[opID]map[int64]bool{}
	for _, o := range h.ops {
		for i, id := range o.saw {
			if seen[id] == nil {
				seen[id] = map[int64]bool{}
			}
			seen[id][o.sector+int64(i)] = true
		}
	}
	all := map[int64][]porcupine.Operation{}
	for _, o := range h.ops {
		if !o.write && o.end != done {
			continue
		}
		ret := o.ret.UnixNano()
		if o.end != done {
			ret = math.MaxInt64
			if o.end == refused {
				ret = o.ret.UnixNano()
			} else if t := h.deadline(o); !t.IsZero() {
				ret = t.UnixNano()
			}
		}
		for i := range o.count {
			sector := o.sector + int64(i)
			a := access{write: o.write, id: o.id, op: o}
			if o.write && o.end != done && !seen[o.id][sector] {
				continue
			}
			if !o.write {
				a.id = o.saw[i]
			}
			all[sector] = append(all[sector], porcupine.Operation{ClientId: o.worker, Input: a, Call: o.call.UnixNano(), Return: ret})
		}
	}
	return all
}

// verdict is what became of checking a history.
type verdict struct {
	sectors, accesses, unknown int
	violations                 []string
}

// checkFor bounds the time for one sector; usual is milliseconds.
const checkFor = 20 * time.Second

// check checks every sector, and writes the history of those that are not linearizable to dir.
func (h *history) check(dir string) (v verdict) {
	for _, o := range h.ops {
		if o.end != refused {
			continue
		}
		for _, other := range h.ops {
			if slices.Contains(other.saw, o.id) {
				v.violations = append(v.violations, fmt.Sprintf("a refused write took effect: %v; seen by %v", o, other))
			}
		}
	}
	for sector, ops := range h.sectors() {
		v.sectors++
		v.accesses += len(ops)
		result, info := porcupine.CheckOperationsVerbose(register, ops, checkFor)
		switch result {
		case porcupine.Unknown:
			v.unknown++
		case porcupine.Illegal:
			path := filepath.Join(dir, fmt.Sprintf("sector-%d", sector))
			v.violations = append(v.violations, fmt.Sprintf("sector %d is not linearizable: see %s", sector, path))
			_ = os.WriteFile(path, []byte(h.tell(sector)), 0o600)
			_ = porcupine.VisualizePath(register, info, path+".html")
		}
	}
	return v
}

// tell returns what happened to a sector.
func (h *history) tell(sector int64) string {
	var lines []string
	for _, o := range h.ops {
		if o.sector <= sector && sector < o.sector+int64(o.count) {
			line := o.String()
			if o.write && o.end == maybe {
				line += ", may take effect until " + clock(h.deadline(o))
			}
			lines = append(lines, line)
		}
	}
	for _, a := range h.attachments {
		lines = append(lines, fmt.Sprintf("%s %s attached, epoch %d", clock(a.at), a.node, a.epoch))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}
