package gossip

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	logEvery   = time.Minute // between two lines about the same matter
	maxMatters = 512         // remembered matters; when there are more all are forgotten, which costs a few extra lines
)

// quietLog writes at most one warning per matter and minute, so that what peers send cannot fill the log.
type quietLog struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[string]time.Time
}

func newQuietLog(log *slog.Logger) *quietLog {
	return &quietLog{log: log, last: make(map[string]time.Time)}
}

// warn logs a matter named by its message and the value of its first attribute.
func (q *quietLog) warn(msg string, args ...any) { q.write(slog.LevelWarn, msg, args...) }

func (q *quietLog) write(level slog.Level, msg string, args ...any) {
	matter := msg
	if len(args) > 1 {
		if s, ok := args[1].(string); ok {
			matter += s
		}
	}
	if q.allow(matter) {
		q.log.Log(context.Background(), level, msg, args...)
	}
}

func (q *quietLog) allow(matter string) bool {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	if t, ok := q.last[matter]; ok && now.Sub(t) < logEvery {
		return false
	}
	if len(q.last) >= maxMatters {
		clear(q.last)
	}
	q.last[matter] = now
	return true
}

// membershipLog turns memberlist's lines into records. Its errors are about peers, hence warnings here.
type membershipLog struct{ quiet *quietLog }

func (w membershipLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(bytes.ToValidUTF8(line, []byte("?"))))
	level := slog.LevelDebug
	for prefix, l := range map[string]slog.Level{
		"[ERR] ": slog.LevelWarn, "[ERROR] ": slog.LevelWarn, "[WARN] ": slog.LevelWarn,
		"[INFO] ": slog.LevelInfo, "[DEBUG] ": slog.LevelDebug,
	} {
		if rest, ok := strings.CutPrefix(text, prefix); ok {
			text, level = rest, l
			break
		}
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	// Lines about one matter differ in addresses and numbers towards their end.
	if level == slog.LevelDebug {
		w.quiet.log.Debug("membership: " + text)
	} else if w.quiet.allow("membership: " + text[:min(len(text), 24)]) {
		w.quiet.log.Log(context.Background(), level, "membership: "+text)
	}
	return len(line), nil
}
