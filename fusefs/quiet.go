package fusefs

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"ukai"
)

// quietTime is how long after a log line no other of its kind is written.
const quietTime = 5 * time.Second

// maxKinds bounds how many kinds are told apart; beyond it those that were not seen lately are forgotten, and what is
// new beyond that shares one.
const maxKinds = 1000

// quiet keeps a program that repeats what does not work from filling the log.
type quiet struct {
	mu    sync.Mutex
	kinds map[string]*kind
}

type kind struct {
	last    time.Time
	skipped int
}

// allow says whether a line of this kind may be written now, and how many were not since the last.
func (q *quiet) allow(what string) (skipped int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kinds == nil {
		q.kinds = make(map[string]*kind)
	}
	now := time.Now()
	k := q.kinds[what]
	if k == nil && len(q.kinds) >= maxKinds {
		maps.DeleteFunc(q.kinds, func(_ string, k *kind) bool { return now.Sub(k.last) >= quietTime })
		if len(q.kinds) >= maxKinds {
			what = ""
			k = q.kinds[what]
		}
	}
	if k == nil {
		k = &kind{}
		q.kinds[what] = k
	}
	if !k.last.IsZero() && now.Sub(k.last) < quietTime {
		k.skipped++
		return 0, false
	}
	skipped, k.skipped, k.last = k.skipped, 0, now
	return skipped, true
}

// say logs a warning unless one of its kind was logged lately.
func (fs *filesystem) say(kind, msg string, args ...any) {
	skipped, ok := fs.quiet.allow(kind)
	if !ok {
		return
	}
	if skipped > 0 {
		args = append(args, "repeated", skipped)
	}
	fs.cfg.Log.Warn(msg, args...)
}

// refuse logs that a file operation was refused, and what to do instead.
func (fs *filesystem) refuse(what string, tid uint32, remedy string) {
	fs.say(what, "refused: "+what, "use", remedy, "pid", tid)
}

// failed logs an error that the kernel is only told EIO of.
func (fs *filesystem) failed(what string, f *file, err error) {
	if f != nil {
		fs.warn(what, f, err)
	} else {
		fs.say(what, what, "error", err)
	}
}

// warn logs that an operation on a disk went wrong.
func (fs *filesystem) warn(what string, f *file, err error) {
	fs.say(fmt.Sprint(what, f.id, ukai.Code(err)), what+" "+f.label(), "error", err)
}
