package pace

import (
	"testing"
	"time"
)

func TestAGuestSuffersWhenMoreThanOneInAHundredOfItsRequestsIsSlow(t *testing.T) {
	for _, test := range []struct {
		requests, slow uint32
		span           time.Duration
		want           Verdict
	}{
		{0, 0, time.Minute, Unknown},
		{99, 0, time.Second / 8, Unknown},
		{99, 1, time.Second / 8, Unknown},
		{99, 2, time.Second / 8, Suffers},
		{3, 2, time.Second / 8, Suffers},
		{1, 1, time.Second, Well},
		{1, 0, time.Second, Well},
		{100, 0, time.Second / 8, Well},
		{100, 2, time.Second / 8, Well},
		{100, 3, time.Second / 8, Suffers},
		{10000, 101, time.Second / 8, Well},
		{10000, 102, time.Second / 8, Suffers},
	} {
		if got := Judge(test.requests, test.slow, test.span); got != test.want {
			t.Errorf("%d of %d requests slow within %v: %v, want %v", test.slow, test.requests, test.span, got, test.want)
		}
	}
}

// scavenging is a Scavenger under a model of a node: copies that take time by how many there are, and looks every eighth of a second.
type scavenging struct {
	*testing.T
	s      Scavenger
	now    time.Duration
	copied int64
	// guest says what one feels of so many bytes under way.
	guest func(window int64) (busy bool, v Verdict)
	quiet time.Duration // of it, copies were not felt
}

const (
	testStep  = time.Millisecond
	testLook  = 125 * time.Millisecond
	testPiece = 64 << 10
)

// run copies for a while, as much as it may, at a speed of one piece each millisecond for each that runs.
func (m *scavenging) run(d time.Duration) {
	running := 0
	for end := m.now + d; m.now < end; m.now += testStep {
		for ; running > 0; running-- {
			m.s.Done(m.now, testPiece, testStep)
			m.copied += testPiece
		}
		for m.s.Admit(m.now, testPiece) == 0 {
			running++
		}
		if m.s.Quiet(m.now, true) {
			m.quiet += testStep
			if running > 0 {
				m.Fatalf("at %v it is quiet with %d copies under way", m.now, running)
			}
		}
		if m.now%testLook == 0 {
			busy, v := m.guest(m.s.Window())
			m.s.Look(m.now, busy, v, false)
		}
	}
	for ; running > 0; running-- {
		m.s.Done(m.now, testPiece, testStep)
	}
}

func TestCopiesTakeEverythingWhileGuestsAreIdle(t *testing.T) {
	m := &scavenging{T: t, guest: func(int64) (bool, Verdict) { return false, Unknown }}
	m.run(time.Second)
	if m.copied < 1000*MaxWindow*9/10 {
		t.Errorf("%d bytes in 1000 round trips with a window of %d", m.copied, MaxWindow)
	}
	if m.s.Quiet(m.now, true) || !m.s.Quiet(m.now+time.Second, false) {
		t.Error("guests feel copies only while there are any")
	}
}

func TestTheWindowStaysWhereGuestsBeginToSuffer(t *testing.T) {
	for _, bearable := range []int64{5 << 20, 1 << 20, 128 << 10, 32 << 10} {
		suffered, looks := 0, 0
		m := &scavenging{T: t}
		m.guest = func(window int64) (bool, Verdict) {
			if m.now > 10*time.Second {
				looks++
			}
			if window <= bearable {
				return true, Well
			}
			if m.now > 10*time.Second {
				suffered++
			}
			return true, Suffers
		}
		m.s.Guests(0, 0)
		m.run(70 * time.Second)
		if w := m.s.Window(); w > bearable*9/8 || w < bearable/3 {
			t.Errorf("guests bear %d bytes, and the window is %d", bearable, w)
		}
		if suffered*8 > looks {
			t.Errorf("guests that bear %d bytes suffered in %d of %d looks", bearable, suffered, looks)
		}
		if m.quiet < 2*time.Second || m.quiet > 6*time.Second {
			t.Errorf("in 70 s it listened for %v", m.quiet)
		}
	}
}

func TestCopiesAreNeverStarved(t *testing.T) {
	m := &scavenging{T: t, guest: func(int64) (bool, Verdict) { return true, Suffers }}
	m.s.Guests(0, 0)
	m.run(5 * time.Second) // down to the floor
	m.copied = 0
	m.run(60 * time.Second)
	// It listens 1 s in 17, and then copies nothing.
	if rate := m.copied / 60; rate < int64(FloorRate)*9/10 || rate > int64(FloorRate)*3 {
		t.Errorf("guests that always suffer leave %d bytes per second, want %d", rate, FloorRate)
	}
}

func TestCopiesThatTakeLongAreNotStarvedEither(t *testing.T) {
	const took = 300 * time.Millisecond // of one
	var s Scavenger
	s.Guests(0, 0)
	var ends []time.Duration
	var copied int64
	for now := time.Duration(0); now < 30*time.Second; now += testStep {
		for len(ends) > 0 && ends[0] <= now {
			s.Done(now, testPiece, took)
			ends = ends[1:]
			copied += testPiece
		}
		for len(ends) < 64 && s.Admit(now, testPiece) == 0 {
			ends = append(ends, now+took)
		}
		if now%testLook == 0 {
			s.Look(now, true, Suffers, false)
		}
	}
	if rate := copied / 30; rate < int64(FloorRate)*8/10 || rate > int64(FloorRate)*11/10 {
		t.Errorf("guests that always suffer leave %d bytes per second, want %d", rate, FloorRate)
	}
}

func TestAGuestThatReturnsIsNotMetWithAllOfTheWindow(t *testing.T) {
	m := &scavenging{T: t, guest: func(int64) (bool, Verdict) { return true, Suffers }}
	m.s.Guests(0, 0)
	m.run(3 * time.Second)
	small := m.s.Window()
	m.guest = func(int64) (bool, Verdict) { return false, Unknown }
	m.run(3 * time.Second)
	if w := m.s.Window(); w != MaxWindow {
		t.Errorf("the guest is idle, and the window is %d", w)
	}
	m.guest = func(int64) (bool, Verdict) { return true, Unknown }
	m.run(testLook + testStep)
	if w := m.s.Window(); w != small {
		t.Errorf("the guest is back, and the window is %d, not %d", w, small)
	}
}

// What is not known of a guest is not found out while copies run.
func TestOfAStrangeGuestItIsFoundOutFirstWhatItFeelsWithoutCopies(t *testing.T) {
	var s Scavenger
	s.Guests(0, 0)
	s.Admit(0, testPiece)
	s.Done(testStep, testPiece, testStep)
	s.Look(testLook, true, Unknown, true)
	if wait := s.Admit(testLook, testPiece); wait != listenFor {
		t.Fatalf("admitted in %v, want %v", wait, listenFor)
	}
	if now := testLook + settleFor; !s.Quiet(now, true) {
		t.Error("it listens, and it is not quiet")
	}
	// Once: of a guest that does little, little is known for long.
	now := testLook + listenFor
	s.Look(now, true, Unknown, true)
	if wait := s.Admit(now, testPiece); wait != 0 {
		t.Errorf("it listens again at once: %v", wait)
	}
}
