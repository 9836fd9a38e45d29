package link

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestTheMostParticularLinkGoesFirstButACutOfAnyLevelCuts(t *testing.T) {
	var table Table
	from, to := []string{"tokyo", "t1"}, []string{"osaka", "o1"}
	table.Set("tokyo", "osaka", Link{Delay: time.Second})
	table.Set("t1", "o1", Link{Delay: time.Minute})
	if l := table.Between(from, to); l.Delay != time.Minute || l.Down {
		t.Errorf("got %+v", l)
	}
	if l := table.Between(to, from); l != (Link{}) {
		t.Errorf("the other direction has no link of its own, got %+v", l)
	}
	table.Set("tokyo", "osaka", Link{Down: true})
	if l := table.Between(from, to); !l.Down {
		t.Error("a cut between the datacenters must cut the hosts")
	}
}

func TestScheduleFollowsTheOdds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	l := Link{Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.1, Duplicate: 0.1, Reorder: 0.05}
	var path Path
	now := time.Unix(0, 0)
	var lost, twice, late int
	var last time.Time
	for range 10000 {
		due, copies := l.Schedule(&path, rng, now, 100)
		switch copies {
		case 0:
			lost++
			continue
		case 2:
			twice++
		}
		if d := due[0].Sub(now); d < l.Delay || d > l.Delay+l.Jitter+l.Delay/2+l.Jitter {
			t.Fatalf("due after %v", d)
		}
		if due[0].Before(last) {
			late++
		}
		last = due[0]
		now = now.Add(time.Millisecond)
	}
	if lost < 900 || lost > 1100 || twice < 800 || twice > 1000 || late == 0 {
		t.Errorf("lost %d, duplicated %d, reordered %d of 10000", lost, twice, late)
	}
}

func TestWithoutReorderingJitterKeepsTheOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var path Path
	var last time.Time
	for i := range 1000 {
		due, _ := Link{Jitter: time.Second}.Schedule(&path, rng, time.Unix(0, int64(i)), 1)
		if due[0].Before(last) {
			t.Fatalf("packet %d overtakes the one before it", i)
		}
		last = due[0]
	}
}
