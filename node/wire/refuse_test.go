package wire

import (
	"strconv"
	"testing"
	"time"
)

func TestComplaintsAreRareAndBounded(t *testing.T) {
	var c complaints
	now := time.Unix(1000, 0)
	garbage := complaint{"10.0.0.1", "packet"}
	if n, ok := c.due(garbage, now); n != 0 || !ok {
		t.Fatalf("the first: %d suppressed, due %v", n, ok)
	}
	for range 5 {
		if _, ok := c.due(garbage, now.Add(complaintPeriod-1)); ok {
			t.Fatal("logged twice within a minute")
		}
	}
	if _, ok := c.due(complaint{"10.0.0.1", "connection"}, now); !ok {
		t.Error("another sort from the same address is not logged")
	}
	now = now.Add(complaintPeriod)
	if n, ok := c.due(garbage, now); n != 5 || !ok {
		t.Errorf("after a minute: %d suppressed, due %v", n, ok)
	}

	logged := 0
	for i := range 10 * maxComplaints { // forged addresses
		if _, ok := c.due(complaint{strconv.Itoa(i), "packet"}, now); ok {
			logged++
		}
	}
	if len(c.last) > maxComplaints || logged > maxComplaints {
		t.Errorf("%d remembered, %d logged, bound %d", len(c.last), logged, maxComplaints)
	}
	if _, ok := c.due(complaint{"10.0.0.2", "packet"}, now.Add(complaintPeriod)); !ok {
		t.Error("a flood keeps others out of the log when it is over")
	}
	if len(c.last) != 1 {
		t.Errorf("%d remembered after a minute", len(c.last))
	}
}

func BenchmarkComplaintsInAFlood(b *testing.B) {
	var c complaints
	now := time.Unix(1000, 0)
	addrs := make([]string, 4*maxComplaints)
	for i := range addrs {
		addrs[i] = strconv.Itoa(i)
		c.due(complaint{addrs[i], "packet"}, now)
	}
	for i := 0; b.Loop(); i++ {
		c.due(complaint{addrs[i%len(addrs)], "packet"}, now)
	}
}
