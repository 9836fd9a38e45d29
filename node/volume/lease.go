package volume

import (
	"math"
	"time"

	"ukai"
)

// Lease times (protocol 3.6). They are constants of the protocol: the next holder relies on them.
const (
	leaseTime      = 4 * time.Second
	heartbeatEvery = time.Second
	// leaseWait is how long a successor that could not seal every in-sync replica waits after the first seal: the
	// lease of the deposed holder, lengthened by the difference in clock rates that is allowed for.
	leaseWait = leaseTime + leaseTime/20
)

// never is the end of a lease that needs nobody's confirmation.
const never = time.Duration(math.MaxInt64)

// lease keeps when each replica last confirmed this holder's epoch. A confirmation counts from the moment its request
// was sent. Pure: the time is an argument, and is that of a clock that goes on while the machine is suspended.
type lease struct {
	confirmed map[ukai.ReplicaID]time.Duration
}

// confirm notes that a replica answered, under this epoch, something that was sent at the given time.
func (l *lease) confirm(r ukai.ReplicaID, sent time.Duration) {
	if l.confirmed == nil {
		l.confirmed = make(map[ukai.ReplicaID]time.Duration)
	}
	if old, ok := l.confirmed[r]; !ok || sent > old {
		l.confirmed[r] = sent
	}
}

// until returns when the lease ends: when the first of the replicas it needs has been silent for leaseTime.
func (l *lease) until(needs []ukai.ReplicaID) time.Duration {
	end := never
	for _, r := range needs {
		sent, ok := l.confirmed[r]
		if !ok {
			return 0
		}
		end = min(end, sent+leaseTime)
	}
	return end
}
