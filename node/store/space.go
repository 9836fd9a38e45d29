package store

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"ukai"
)

const (
	// gaugeAge is how long a reading of the free space is believed while others may be filling the file system.
	gaugeAge = time.Second
	// gaugeBytes is how much we may write before the next reading.
	gaugeBytes = 64 << 20
	// keyReserve is what must be free for the database to take new keys: room for its logs and for a compaction,
	// which it writes through memory maps, where a full file system would end the process (SIGBUS).
	keyReserve = 64 << 20
	// openFree is what must be free for the database to be opened: it begins a log, and writes what the last one held as
	// a table, both through memory maps.
	openFree = 2 * memtableBytes
)

// spaceGauge knows about how much is free, without asking the file system for every write.
type spaceGauge struct {
	files   files
	reserve int64
	log     *slog.Logger

	read  atomic.Int64 // when free was read, in ns since start
	free  atomic.Int64
	spent atomic.Int64 // bytes written since
	start time.Time
	full  atomic.Bool // what was last logged
}

func newSpaceGauge(f files, reserve int64, log *slog.Logger) *spaceGauge {
	g := &spaceGauge{files: f, reserve: reserve, log: log, start: time.Now()}
	g.read.Store(-int64(2 * gaugeAge))
	return g
}

// plenty says whether n bytes may be written without asking what is allocated. It costs a reading of the clock.
func (g *spaceGauge) plenty(n int64) bool {
	if g.fits(n) {
		return true
	}
	g.refresh()
	return g.fits(n)
}

func (g *spaceGauge) fits(n int64) bool {
	if int64(time.Since(g.start))-g.read.Load() > int64(gaugeAge) {
		return false
	}
	spent := g.spent.Add(n)
	return spent < gaugeBytes && g.free.Load()-spent >= g.reserve
}

// allow returns nil if n bytes may be allocated, by a new reading.
func (g *spaceGauge) allow(n int64) error {
	free, known := g.refresh()
	if !known || free-n >= g.reserve {
		return nil
	}
	return g.errFull(free, g.reserve)
}

// allowKeys returns nil if the database may grow.
func (g *spaceGauge) allowKeys() error {
	need := min(keyReserve, g.reserve/2)
	if int64(time.Since(g.start))-g.read.Load() <= int64(gaugeAge) && g.free.Load()-g.spent.Load() >= need {
		return nil
	}
	free, known := g.refresh()
	if !known || free >= need {
		return nil
	}
	return g.errFull(free, need)
}

func (g *spaceGauge) errFull(free, need int64) error {
	return fmt.Errorf("%s: %w: %d MiB free, %d MiB are kept in reserve: free space there, move replicas to another node, or lower the reserve",
		g.files.root(), ukai.ErrNoSpace, free>>20, need>>20)
}

// refresh reads the free space. If that fails, nothing is known and writes are left to the file system's own judgement.
func (g *spaceGauge) refresh() (free int64, known bool) {
	_, free, err := g.files.space()
	if err != nil {
		return 0, false
	}
	g.free.Store(free)
	g.spent.Store(0)
	g.read.Store(int64(time.Since(g.start)))
	if full := free < g.reserve; g.full.Swap(full) != full {
		if full {
			g.log.Warn("no space for new data: only what is allocated can be written", "dir", g.files.root(), "free", free, "reserve", g.reserve)
		} else {
			g.log.Info("space for new data again", "dir", g.files.root(), "free", free, "reserve", g.reserve)
		}
	}
	return free, true
}
