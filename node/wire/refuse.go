package wire

import (
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// complaintPeriod is how often one address may appear in the log for one sort of refusal.
	complaintPeriod = time.Minute
	// maxComplaints bounds the addresses remembered for that; beyond it refusals are only counted.
	maxComplaints = 1024
)

// complaints keeps refusals from filling the log, whoever sends them.
type complaints struct {
	mu     sync.Mutex
	last   map[complaint]*complained
	looked time.Time // when old ones were last looked for
}

type complaint struct{ addr, what string }

type complained struct {
	at         time.Time
	suppressed uint64
}

// due says whether to log, and how many were not logged since the last one.
func (c *complaints) due(key complaint, now time.Time) (suppressed uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.last[key]; old != nil {
		if now.Sub(old.at) < complaintPeriod {
			old.suppressed++
			return 0, false
		}
		suppressed = old.suppressed
		*old = complained{at: now}
		return suppressed, true
	}
	if len(c.last) >= maxComplaints && now.Sub(c.looked) >= time.Second { // not for each packet of a flood
		c.looked = now
		for k, old := range c.last {
			if now.Sub(old.at) >= complaintPeriod {
				delete(c.last, k)
			}
		}
	}
	if len(c.last) >= maxComplaints {
		return 0, false
	}
	if c.last == nil {
		c.last = make(map[complaint]*complained)
	}
	c.last[key] = &complained{at: now}
	return 0, true
}

// refuse counts what was refused, and logs it if nothing like it from that address was logged lately.
func (e *Endpoint) refuse(count *atomic.Uint64, from net.Addr, what string, err error) {
	count.Add(1)
	addr := ""
	if from != nil {
		addr = from.String()
	}
	// Ports are not told apart: whoever sends garbage can choose any.
	host, _, splitErr := net.SplitHostPort(addr)
	if splitErr != nil {
		host = addr
	}
	if suppressed, ok := e.complaints.due(complaint{host, what}, time.Now()); ok {
		e.log.Warn("refused "+what, slog.String("from", addr), slog.String("reason", err.Error()), slog.Uint64("suppressed", suppressed))
	}
}
