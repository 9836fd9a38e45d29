package pace

import (
	"slices"
	"time"

	"ukai"
)

const (
	// maxBurst is how much of a rate may be saved up while nobody asks.
	maxBurst = 100 * time.Millisecond
	// maxWait is when whoever waits asks again at the latest: the rate may have changed.
	maxWait = time.Second
)

// Pacer shares the bytes of one link among jobs, each of which is a disk: fairly, whatever the sizes of their requests, and in the order of
// requests within a job. It is start-time fair queueing over a token bucket. In no span of time does it grant more than the rate times that
// span, maxBurst of the rate, and one request.
//
// Its zero value has granted nothing. It is not safe for concurrent use.
type Pacer struct {
	queue   []*Ticket // by start, then by arrival
	ends    map[ukai.DiskID]float64
	virtual float64 // start of the newest ticket that was granted
	tokens  float64 // bytes that may pass now; negative: owed
	rate    Rate    // since last
	last    time.Time
	granted int64
}

// Ticket is a request for bytes.
type Ticket struct {
	job     ukai.DiskID
	bytes   int64
	start   float64
	granted bool
}

// Granted says whether the bytes may pass.
func (t *Ticket) Granted() bool { return t.granted }

// Ask queues a request.
func (p *Pacer) Ask(job ukai.DiskID, bytes int64) *Ticket {
	if p.ends == nil {
		p.ends = map[ukai.DiskID]float64{}
	}
	t := &Ticket{job: job, bytes: bytes, start: max(p.virtual, p.ends[job])}
	p.ends[job] = t.start + float64(bytes)
	at, _ := slices.BinarySearchFunc(p.queue, t.start, func(q *Ticket, start float64) int {
		if q.start <= start {
			return -1
		}
		return 1
	})
	p.queue = slices.Insert(p.queue, at, t)
	return t
}

// Cancel takes a request back, if it was not granted.
func (p *Pacer) Cancel(t *Ticket) {
	if i := slices.Index(p.queue, t); i >= 0 {
		p.queue = slices.Delete(p.queue, i, i+1)
		p.tidy()
	}
}

// Waiting returns how many requests wait.
func (p *Pacer) Waiting() int { return len(p.queue) }

// Waits says whether a request of a job waits.
func (p *Pacer) Waits(job ukai.DiskID) bool {
	return slices.ContainsFunc(p.queue, func(t *Ticket) bool { return t.job == job })
}

// Bytes returns how many bytes were granted.
func (p *Pacer) Bytes() int64 { return p.granted }

// Run grants what may pass at a time by the rate that holds from then on, and tells when to ask again about one of the requests.
func (p *Pacer) Run(now time.Time, rate Rate, about *Ticket) (again time.Duration) {
	if !p.last.IsZero() && now.After(p.last) && p.rate > 0 {
		p.tokens = min(p.tokens+float64(p.rate)*now.Sub(p.last).Seconds(), float64(p.rate)*maxBurst.Seconds())
	}
	p.last, p.rate = now, rate
	if rate < 0 {
		p.tokens = 0
	}
	for len(p.queue) > 0 && (rate < 0 || rate > 0 && p.tokens >= 0) {
		t := p.queue[0]
		p.queue = slices.Delete(p.queue, 0, 1)
		t.granted = true
		p.granted += t.bytes
		p.virtual = t.start
		if rate > 0 {
			p.tokens -= float64(t.bytes)
		}
	}
	p.tidy()
	if about.granted || rate == 0 {
		return maxWait
	}
	ahead := -p.tokens
	for _, t := range p.queue {
		if t == about {
			break
		}
		ahead += float64(t.bytes)
	}
	// Rounded up, or whoever waits asks a moment too early, again and again.
	return min(time.Duration(ahead/float64(rate)*float64(time.Second))+time.Microsecond, maxWait)
}

// tidy forgets jobs that have had no more than the others.
func (p *Pacer) tidy() {
	if len(p.queue) == 0 {
		clear(p.ends)
		p.virtual = 0
	}
}
