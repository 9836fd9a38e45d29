package node

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"ukai/node/admin"
)

const (
	// eventBuffer is how many events may wait for one reader; a reader that is slower misses the oldest.
	eventBuffer = 256
	// maxOnce bounds how many events are remembered as told; then all are forgotten, and may be told again.
	maxOnce = 4096
)

// events tells what happens on this node to whoever listens, and to the log.
type events struct {
	log *slog.Logger

	mu      sync.Mutex
	seq     uint64
	told    map[string]bool
	readers map[chan admin.Event]bool
}

// add tells an event. It does not block.
func (e *events) add(ev admin.Event) {
	ev.Time = time.Now()
	e.mu.Lock()
	e.seq++
	ev.Seq = e.seq
	for r := range e.readers {
		select {
		case r <- ev:
		default: // too slow: Seq tells it that it missed some
		}
	}
	e.mu.Unlock()
	level := slog.LevelInfo
	switch ev.Level {
	case admin.Warn:
		level = slog.LevelWarn
	case admin.Critical:
		level = slog.LevelError
	case admin.Fine, admin.Notice:
	}
	e.log.LogAttrs(context.Background(), level, ev.Text, slog.String("event", ev.Kind), slog.String("node", ev.Node), slog.String("disk", ev.Disk))
}

// once tells an event unless one with this key was told before.
func (e *events) once(key string, ev admin.Event) {
	e.mu.Lock()
	if e.told == nil || len(e.told) >= maxOnce {
		e.told = map[string]bool{}
	}
	told := e.told[key]
	e.told[key] = true
	e.mu.Unlock()
	if !told {
		e.add(ev)
	}
}

// listen returns the events from now on until ctx ends or the node stops.
func (e *events) listen(ctx, node context.Context, spawn func(func()) bool) <-chan admin.Event {
	in, out := make(chan admin.Event, eventBuffer), make(chan admin.Event)
	e.mu.Lock()
	if e.readers == nil {
		e.readers = map[chan admin.Event]bool{}
	}
	e.readers[in] = true
	e.mu.Unlock()
	carry := func() {
		defer close(out)
		defer func() { e.mu.Lock(); delete(e.readers, in); e.mu.Unlock() }()
		for {
			select {
			case ev := <-in:
				select {
				case out <- ev:
				case <-ctx.Done():
					return
				case <-node.Done():
					return
				}
			case <-ctx.Done():
				return
			case <-node.Done():
				return
			}
		}
	}
	if !spawn(carry) {
		close(out)
	}
	return out
}
