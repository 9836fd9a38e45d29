package gossip

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
)

const (
	rttWindow = 128              // samples from which p99 is taken
	rttSettle = 16               // samples between two computations of p99
	maxRTT    = 60 * time.Second // longer samples are not round trips
)

// link estimates the round trip to one peer from pings, from the transport and from block traffic.
type link struct {
	mu      sync.Mutex
	samples [rttWindow]uint32 // microseconds, a ring
	count   uint64

	ewma, p99 atomic.Int64 // nanoseconds; 0 before the first sample
}

// observe adds one sample. It does not allocate.
func (l *link) observe(rtt time.Duration) {
	if rtt < 0 || rtt > maxRTT {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples[l.count%rttWindow] = uint32((rtt + 500*time.Nanosecond) / time.Microsecond)
	l.count++
	if old := l.ewma.Load(); l.count == 1 {
		l.ewma.Store(max(int64(rtt), 1))
	} else {
		l.ewma.Store(max(old+(int64(rtt)-old)/8, 1))
	}
	if l.count > rttSettle && l.count%rttSettle != 0 {
		return
	}
	sorted := l.samples
	window := sorted[:min(l.count, rttWindow)]
	slices.Sort(window)
	l.p99.Store(max(int64(window[(len(window)*99+99)/100-1])*int64(time.Microsecond), 1))
}

// estimate returns the smoothed round trip and the one that 99 of 100 do not exceed.
func (l *link) estimate() (ewma, p99 time.Duration, ok bool) {
	ewma, p99 = time.Duration(l.ewma.Load()), time.Duration(l.p99.Load())
	return ewma, max(ewma, p99), ewma != 0
}

// links are the estimates for all peers that were ever met.
type links struct {
	mu sync.RWMutex
	by map[ukai.NodeID]*link
}

func (l *links) of(id ukai.NodeID) *link {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.by[id]
}

// add makes room for a peer.
func (l *links) add(id ukai.NodeID) {
	if l.of(id) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by[id] == nil {
		l.by[id] = new(link)
	}
}

// remove forgets a peer.
func (l *links) remove(id ukai.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.by, id)
}

// RTT returns the smoothed round trip to a peer and its 99th percentile, of pings, the transport's own measurements and what
// Observe was told. It is false before the first sample. It costs tens of nanoseconds.
func (m *Mesh) RTT(id ukai.NodeID) (ewma, p99 time.Duration, ok bool) {
	if l := m.links.of(id); l != nil {
		return l.estimate()
	}
	return 0, 0, false
}

// Observe adds the round trip of one request to a peer to the estimate. It neither allocates nor blocks; samples of
// nodes that are not members are ignored.
func (m *Mesh) Observe(id ukai.NodeID, rtt time.Duration) {
	if l := m.links.of(id); l != nil {
		l.observe(rtt)
	}
}
