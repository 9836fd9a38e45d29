package pace

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"ukai"
)

func TestARateIsReadAsItIsWritten(t *testing.T) {
	for text, want := range map[string]Rate{
		"50MB/s": 50e6, "20MiB/s": 20 << 20, "400Mbit/s": 50e6, "1.5GB/s": 1.5e9, "512B/s": 512, "0": 0, "none": Unlimited, "8kbit/s": 1000,
	} {
		got, err := ParseRate(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
		if again, err := ParseRate(got.String()); err != nil || again != got {
			t.Errorf("%s is written %s, which is read as %v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "50", "50MB", "-1MB/s", "MB/s", "NaNMB/s", "+5MB/s", "1e9GB/s", "1001GB/s", "5 MB/s", "infGB/s"} {
		if r, err := ParseRate(text); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%q is read as %v, %v", text, r, err)
		}
	}
}

func TestAWindowHoldsInItsZoneAndOverMidnight(t *testing.T) {
	l, err := ParseLimit("50MB/s", []string{"22:00-06:00=200MB/s", "12:00-13:00=0"}, "+09:00")
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]Rate{
		"2026-03-01T12:59:00Z": 50e6, "2026-03-01T13:00:00Z": 200e6, "2026-03-01T20:59:59Z": 200e6, "2026-03-01T21:00:00Z": 50e6, "2026-03-01T03:30:00Z": 0,
	} {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.At(when); got != want {
			t.Errorf("at %s the limit is %v, want %v", at, got, want)
		}
	}
	noon := time.Date(2026, 3, 1, 3, 30, 0, 0, time.UTC)
	if end, ok := l.Until(noon); !ok || !end.Equal(noon.Add(30*time.Minute)) {
		t.Errorf("the window at noon ends at %v, %v", end, ok)
	}
	if again, err := ParseText(l.String()); err != nil || again.String() != l.String() || again.Zone != 9*3600 {
		t.Errorf("%q is read as %q, %v", l, again, err)
	}
	if _, ok := (Limit{Rate: 5}).Until(noon); ok {
		t.Error("a limit without windows ends")
	}
	for _, bad := range []string{"22:00=1MB/s", "22:00-22:00=1MB/s", "25:00-01:00=1MB/s", "22:00-23:00", "a-b=1MB/s"} {
		if _, err := ParseLimit("1MB/s", []string{bad}, ""); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("window %q: %v", bad, err)
		}
	}
	if _, err := ParseLimit("1MB/s", nil, "Asia/Tokyo"); !errors.Is(err, ukai.ErrInvalid) {
		t.Errorf("zone by name: %v", err)
	}
}

func TestALinkIsFoundWhereNamesHoldADash(t *testing.T) {
	known := []string{"tokyo", "us-east", "us-west"}
	for text, want := range map[string]Pair{
		"tokyo-osaka": {"osaka", "tokyo"}, "tokyo-tokyo": {"tokyo", "tokyo"}, "us-west-us-east": {"us-east", "us-west"}, "tokyo-us-east": {"tokyo", "us-east"},
	} {
		if got, err := ParsePair(text, known); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"tokyo", "", "-", "eu-west-eu-east", "tokyo-"} {
		if got, err := ParsePair(text, known); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// waiter is a job that always wants more, in requests of some size.
type waiter struct {
	job    ukai.DiskID
	size   int64
	ticket *Ticket
	got    int64
}

// drive runs waiters over a pacer until a time, each asking again when it is told to, as a shell does. at is called with each grant.
func drive(p *Pacer, from, until time.Time, rate func(time.Time) Rate, waiters []*waiter, at func(time.Time, int64)) {
	next := make([]time.Time, len(waiters))
	for i := range next {
		next[i] = from
	}
	for {
		i := 0
		for j := range next {
			if next[j].Before(next[i]) {
				i = j
			}
		}
		now, w := next[i], waiters[i]
		if now.After(until) {
			return
		}
		if w.ticket == nil {
			w.ticket = p.Ask(w.job, w.size)
		}
		next[i] = now.Add(p.Run(now, rate(now), w.ticket))
		if w.ticket.Granted() {
			w.got += w.size
			at(now, w.size)
			w.ticket, next[i] = nil, now
		}
	}
}

func TestAPacerNeverGrantsMoreThanItsRateAndWastesNothing(t *testing.T) {
	start := time.Unix(1e9, 0)
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		rate := Rate(1e5 + rng.Int64N(1e8))
		var waiters []*waiter
		largest := int64(0)
		for i := range 1 + rng.IntN(12) {
			w := &waiter{job: ukai.DiskID{byte(rng.IntN(4))}, size: 1 + rng.Int64N(256<<10)}
			if i == 0 {
				w.size = 256 << 10
			}
			largest = max(largest, w.size)
			waiters = append(waiters, w)
		}
		type grant struct {
			at    time.Time
			bytes int64
		}
		var grants []grant
		var p Pacer
		const span = 5 * time.Second
		drive(&p, start, start.Add(span), func(time.Time) Rate { return rate }, waiters, func(at time.Time, n int64) { grants = append(grants, grant{at, n}) })
		allowed := func(d time.Duration) float64 { return float64(rate)*(d+maxBurst).Seconds() + float64(largest) }
		var total int64
		for i := range grants {
			total += grants[i].bytes
			var sum int64
			for j := i; j < min(len(grants), i+400); j++ {
				if sum += grants[j].bytes; float64(sum) > allowed(grants[j].at.Sub(grants[i].at)) {
					t.Fatalf("seed %d: %d bytes in %v at %v", seed, sum, grants[j].at.Sub(grants[i].at), rate)
				}
			}
		}
		// Whoever was granted something by another's question learns of it when it asks again, a second later at most.
		if want := float64(rate) * (span - maxWait).Seconds(); float64(total) < want-float64(largest)*float64(len(waiters)) {
			t.Errorf("seed %d: %d bytes in %v at %v, of %.0f", seed, total, span, rate, want)
		}
	}
}

func TestJobsGetEqualSharesWhateverTheirRequests(t *testing.T) {
	start := time.Unix(1e9, 0)
	waiters := []*waiter{{job: ukai.DiskID{1}, size: 256 << 10}, {job: ukai.DiskID{2}, size: 4 << 10}, {job: ukai.DiskID{2}, size: 4 << 10}, {job: ukai.DiskID{3}, size: 64 << 10}}
	for range 8 { // a job with many requests gets no more
		waiters = append(waiters, &waiter{job: ukai.DiskID{4}, size: 256 << 10})
	}
	var p Pacer
	drive(&p, start, start.Add(time.Minute), func(time.Time) Rate { return 10e6 }, waiters, func(time.Time, int64) {})
	got := map[ukai.DiskID]int64{}
	for _, w := range waiters {
		got[w.job] += w.got
	}
	for job, n := range got {
		if n < 140e6 || n > 160e6 {
			t.Errorf("job %d got %d of 600 MB that four share", job[0], n)
		}
	}
}

func TestNothingPassesALinkAtRateZeroAndAllWithoutALimit(t *testing.T) {
	start := time.Unix(1e9, 0)
	rate := func(now time.Time) Rate {
		switch {
		case now.Sub(start) < 10*time.Second:
			return 0
		case now.Sub(start) < 20*time.Second:
			return 1e6
		}
		return Unlimited
	}
	var p Pacer
	var before, slow int64
	w := []*waiter{{job: ukai.DiskID{1}, size: 1 << 20}}
	drive(&p, start, start.Add(20*time.Second-1), rate, w, func(at time.Time, n int64) {
		switch {
		case at.Sub(start) < 10*time.Second:
			before += n
		case at.Sub(start) < 20*time.Second:
			slow += n
		}
	})
	if before != 0 {
		t.Errorf("%d bytes passed at rate 0", before)
	}
	if slow < 8e6 || slow > 12e6 {
		t.Errorf("%d bytes passed in 10 s at 1 MB/s: what was not used at rate 0 must not be saved up", slow)
	}
	many := make([]*Ticket, 100)
	for i := range many {
		many[i] = p.Ask(ukai.DiskID{2}, 1<<20)
	}
	p.Run(start.Add(30*time.Second), Unlimited, many[0])
	if slices.ContainsFunc(many, func(t *Ticket) bool { return !t.Granted() }) {
		t.Error("a link without a limit keeps a request waiting")
	}
	gone := p.Ask(ukai.DiskID{3}, 1)
	p.Cancel(gone)
	if p.Waiting() != 0 || gone.Granted() {
		t.Error("a request that was taken back waits")
	}
}
