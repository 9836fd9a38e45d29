package pace

import "time"

// Bounds of what all background copies of a node may have under way at once.
const (
	// MaxWindow is how many bytes are copied at once while no guest wants anything.
	MaxWindow = 16 << 20
	// StartWindow is with how many bytes copies begin beside guests; minWindow is what they always have. Less than one piece means that between two
	// pieces there is a rest: the window is the share of the time in which there is a copy.
	StartWindow = 256 << 10
	minWindow   = 4 << 10
	// FloorRate is what copies get, in bytes per second, whatever guests feel and however long a copy takes: a replica that never comes back is a risk to
	// them, too.
	FloorRate Rate = 4 << 20
)

// floorTime is how long copies of so many bytes take at FloorRate.
func floorTime(bytes int64) time.Duration {
	return time.Duration(float64(bytes) / float64(FloorRate) * float64(time.Second))
}

// Times of a Scavenger.
const (
	// idleAfter is for how long guests must want nothing to count as idle.
	idleAfter = time.Second
	// Every listenEvery of copies beside guests there are none for listenFor, in which is measured how long the guests' requests take by themselves.
	listenEvery = 12 * time.Second
	listenFor   = 750 * time.Millisecond
	// settleFor is for how long after a copy requests still may be slow because of it.
	settleFor = 50 * time.Millisecond
	// judgeAfter is when few requests must do to judge by.
	judgeAfter = time.Second
	// floorBurst is of how long a time copies make up for at FloorRate what they were not let in.
	floorBurst = 100 * time.Millisecond
)

// judgeBy is how many requests of a guest are enough to judge by: of so many, one belongs to the slowest hundredth.
const judgeBy = 100

// Verdict says how a guest fares beside copies.
type Verdict uint8

// What a guest feels of copies.
const (
	Unknown Verdict = iota // too little was seen
	Well
	Suffers
)

// Judge tells how a guest fares by its requests within a span of time: how many there were, and how many of them took longer than hardly more than one
// in a hundred does without copies. One is nothing.
func Judge(requests, slow uint32, span time.Duration) Verdict {
	switch {
	case slow > 1+requests/100:
		return Suffers
	case requests >= judgeBy, requests > 0 && span >= judgeAfter:
		return Well
	}
	return Unknown
}

// Scavenger bounds the bytes of the background copies that a node has under way, so that they take what guests leave over. It is congestion control
// with additive increase and multiplicative decrease, where the sign of congestion is that guests' requests take longer than without copies (as in
// RFC 6817, LEDBAT; that it listens for a while, again and again, is from LEDBAT++). While guests are idle, all of MaxWindow is used.
//
// Its zero value has nothing under way and guests that are idle. It is not safe for concurrent use. Times are since some moment.
type Scavenger struct {
	window   float64 // bytes, beside guests; 0: none began yet
	slowed   bool    // a guest has suffered: no slow start any more
	guests   bool    // they are active
	asked    time.Duration
	inflight int64
	used     bool          // copies were admitted since the last look
	next     time.Duration // nothing begins before, but what FloorRate lets in
	floorAt  time.Duration // when FloorRate lets the next in
	ended    time.Duration // when the last copy ended
	listenAt time.Duration // when it listens next; 0: not yet known
	until    time.Duration // it listens until then
}

// Window returns how many bytes may be under way now.
func (s *Scavenger) Window() int64 {
	switch {
	case !s.guests:
		return MaxWindow
	case s.window == 0:
		return StartWindow
	}
	return int64(s.window)
}

// Inflight returns how many bytes are under way.
func (s *Scavenger) Inflight() int64 { return s.inflight }

// Admit takes in a copy of so many bytes if it may begin now, and returns 0; else it returns when to ask again at the latest. Whoever waits is to ask
// again after each Done and Look, too.
func (s *Scavenger) Admit(now time.Duration, bytes int64) (wait time.Duration) {
	over := s.inflight > 0 && s.inflight+bytes > s.Window()
	switch {
	case s.guests && now < s.until:
		return s.until - now
	case s.guests && now >= s.floorAt && s.inflight+bytes <= MaxWindow:
	case over && s.guests && now < s.floorAt:
		return min(s.floorAt-now, maxWait)
	case over:
		return maxWait
	case s.guests && now < s.next:
		return min(s.next, s.floorAt) - now
	}
	s.floorAt = min(max(s.floorAt, now-floorBurst), now) + floorTime(bytes)
	s.inflight += bytes
	s.used = true
	return 0
}

// Done ends a copy that was admitted, and took so long.
func (s *Scavenger) Done(now time.Duration, bytes int64, took time.Duration) {
	s.inflight -= bytes
	s.ended = now
	if window := s.Window(); s.guests && window < bytes {
		rest := time.Duration(float64(took) * (float64(bytes)/float64(window) - 1))
		s.next = now + rest
	}
}

// Guests notes when guests did something last. It is for the beginning of copies after a while without; later Look tells.
func (s *Scavenger) Guests(now, last time.Duration) {
	if s.guests = now-last < idleAfter; s.guests {
		s.begin(now, last)
	}
}

func (s *Scavenger) begin(now, last time.Duration) {
	s.guests, s.asked, s.listenAt = true, last, now+listenEvery
}

// Look takes in what guests felt since the last look: whether they did anything, what the one that fares worst felt, and whether there is one of which it
// is not known what it feels without copies.
func (s *Scavenger) Look(now time.Duration, busy bool, worst Verdict, strange bool) {
	used := s.used || s.inflight > 0
	s.used = false
	switch {
	case busy && !s.guests:
		s.begin(now, now)
		return // what was felt was felt of MaxWindow
	case busy:
		s.asked = now
	case now-s.asked >= idleAfter:
		s.guests = false
	}
	if !s.guests {
		return
	}
	s.window = float64(s.Window())
	switch {
	case now < s.until:
		return
	case worst == Suffers && used:
		s.window, s.slowed = max(s.window/2, minWindow), true
	case worst == Well && used && !s.slowed:
		s.window = min(2*s.window, MaxWindow)
	case worst == Well && used:
		s.window = min(s.window+max(s.window/16, minWindow/4), MaxWindow)
	}
	if now >= s.listenAt || strange && s.until == 0 {
		s.until = now + listenFor
		s.listenAt = s.until + listenEvery
	}
}

// Quiet says whether what guests feel now has nothing to do with copies. wanted says that a copy waits to be admitted.
func (s *Scavenger) Quiet(now time.Duration, wanted bool) bool {
	return s.inflight == 0 && now-s.ended >= settleFor && (!wanted || s.guests && now < s.until)
}
