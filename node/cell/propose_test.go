package cell

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/crdt"
)

func create(t *testing.T, m *mesh, arbiters ...int) crdt.Record {
	t.Helper()
	rec, err := Create(t.Context(), m, node(1), firstRecord(arbiters...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	settle()
	return rec
}

func claim(by int, nonce byte, after ukai.Epoch) Claim {
	return Claim{Node: node(by), Nonce: ukai.Nonce{nonce}, After: after}
}

func TestADiskIsCreatedClaimedUsedAndReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		rec := create(t, m, 1, 2, 3)
		do := func(c Change) {
			t.Helper()
			next, err := Propose(t.Context(), m, node(1), Where(rec), c, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if next.Version != rec.Version+1 {
				t.Fatalf("%v: version %d after %d", c, next.Version, rec.Version)
			}
			if !c.Done(next) {
				t.Fatalf("%v: not done in %+v", c, next)
			}
			rec = next
		}
		do(claim(1, 7, 0))
		if !rec.Clean || rec.Phase != crdt.PhaseRecovering || rec.Epoch != 1 {
			t.Fatalf("after claim: %+v", rec)
		}
		do(Activate{Epoch: 1, Nonce: ukai.Nonce{7}, Version: rec.Version, InSync: []ukai.ReplicaID{1, 2}})
		do(Shrink{Epoch: 1, Version: rec.Version, Replica: 2})
		do(Join{Epoch: 1, Version: rec.Version, Replica: 2, Node: node(2)})
		do(Grow{Epoch: 1, Version: rec.Version, Replica: 2})
		do(Release{Epoch: 1, Nonce: ukai.Nonce{7}})
		do(claim(2, 8, 1))
		if !rec.Clean {
			t.Fatal("released epoch, but the claim is not clean")
		}
		do(claim(3, 9, 2))
		if rec.Clean {
			t.Fatal("epoch was not released, but the claim is clean")
		}
		read, err := Propose(t.Context(), m, node(5), Where(firstRecord(1, 2, 3)), Identity{}, Options{})
		if err != nil || !same(&read, &rec) {
			t.Fatalf("read %+v, %v; want %+v", read, err, rec)
		}
	})
}

func TestReplicaThatMayBeAheadIsKnownUntilNothingIsMissingElsewhere(t *testing.T) {
	const ahead = ukai.ReplicaID(1)
	both := []ukai.ReplicaID{1, 2}
	rec := firstRecord(1, 2, 3)
	do := func(c Change, want ukai.ReplicaID) {
		t.Helper()
		next, err := apply(c, &rec)
		if err != nil {
			t.Fatal(err)
		}
		if next.Ahead != want || !c.Done(next) {
			t.Fatalf("%v: replica %v is ahead, want %v; done=%v", c, next.Ahead, want, c.Done(next))
		}
		rec = next
	}
	refused := func(c Change) {
		t.Helper()
		if next, err := apply(c, &rec); !errors.Is(err, ukai.ErrRejected) {
			t.Fatalf("%v: %v, %+v", c, err, next)
		}
	}
	do(claim(1, 7, 0), 0)
	refused(Activate{Epoch: 1, Nonce: ukai.Nonce{7}, Version: rec.Version, InSync: both[1:], Ahead: ahead})
	do(Activate{Epoch: 1, Nonce: ukai.Nonce{7}, Version: rec.Version, InSync: both, Ahead: ahead}, ahead)
	do(Shrink{Epoch: 1, Version: rec.Version, Replica: 2}, ahead)
	refused(Lead{Epoch: 1, Version: rec.Version, Replica: 2})
	refused(Lead{Epoch: 1, Version: rec.Version - 1})
	do(Join{Epoch: 1, Version: rec.Version, Replica: 2, Node: node(2)}, ahead)
	do(Grow{Epoch: 1, Version: rec.Version, Replica: 2}, ahead)
	do(claim(2, 8, 1), ahead)
	do(claim(3, 9, 2), ahead)
	do(Activate{Epoch: 3, Nonce: ukai.Nonce{9}, Version: rec.Version, InSync: both}, 0)
	do(Lead{Epoch: 3, Version: rec.Version, Replica: 2}, 2)
	do(Shrink{Epoch: 3, Version: rec.Version, Replica: 2}, 0)
	do(Lead{Epoch: 3, Version: rec.Version, Replica: 1}, 1)
	do(Release{Epoch: 3, Nonce: ukai.Nonce{9}}, 0)
	refused(Lead{Epoch: 3, Version: rec.Version, Replica: 1})
}

// A clock-like counter makes the first round of each change succeed: one PREPARE and one ACCEPT per arbiter, and a read
// of a settled record costs PREPARE only.
func TestRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		rec := create(t, m, 1, 2, 3)
		for i := range 3 {
			time.Sleep(time.Millisecond)
			if _, err := Propose(t.Context(), m, node(1+i), Where(rec), claim(1+i, byte(i), ukai.Epoch(i)), Options{}); err != nil {
				t.Fatal(err)
			}
			settle()
		}
		if m.count[Prepare] != 9 || m.count[Accept] != 9 {
			t.Fatalf("three changes took %v", m.count)
		}
		time.Sleep(time.Millisecond)
		if _, err := Propose(t.Context(), m, node(9), Where(rec), Identity{}, Options{}); err != nil {
			t.Fatal(err)
		}
		settle()
		if m.count[Prepare] != 12 || m.count[Accept] != 9 {
			t.Fatalf("a read took %v", m.count)
		}
	})
}

func TestSlowArbiterIsNotWaitedForButStillLearns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.delay[node(3)] = time.Second
		rec := firstRecord(1, 2, 3)
		var tasks sync.WaitGroup
		rec, err := Create(t.Context(), m, node(1), rec, Options{Go: tasks.Go})
		if err != nil {
			t.Fatal(err)
		}
		tasks.Wait()
		start := time.Now()
		if _, err = Propose(t.Context(), m, node(1), Where(rec), claim(1, 1, 0), Options{Go: tasks.Go}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 0 {
			t.Fatalf("took %v with a majority at hand", took)
		}
		tasks.Wait()
		if got, ok := m.acceptor(node(3), 0).Record(); !ok || got.Version != 2 {
			t.Fatalf("the slow arbiter has version %d, %v", got.Version, ok)
		}
	})
}

func TestArbiterThatMissedCreationIsMendedByTheNextChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.down[node(3)] = ukai.ErrUnreachable
		rec := create(t, m, 1, 2, 3)
		m.set(func() { clear(m.down) })
		m.delay[node(1)] = time.Millisecond // so that node 3 is heard before there is a majority
		if _, err := Propose(t.Context(), m, node(1), Where(rec), claim(1, 1, 0), Options{}); err != nil {
			t.Fatal(err)
		}
		settle()
		m.set(func() { m.down[node(1)] = ukai.ErrUnreachable })
		got, err := Propose(t.Context(), m, node(2), Where(rec), Identity{}, Options{})
		if err != nil || got.Version != 2 {
			t.Fatalf("read with the mended arbiter: version %d, %v", got.Version, err)
		}
	})
}

func TestNoQuorumNamesTheArbitersAndWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		rec := create(t, m, 1, 2, 3)
		m.down[node(1)] = &ukai.NodeError{Node: node(1), Name: "t1", Err: ukai.ErrUnreachable}
		m.delay[node(3)] = time.Hour
		_, err := Propose(t.Context(), m, node(2), Where(rec), claim(2, 1, 0), Options{})
		if !errors.Is(err, ukai.ErrNoQuorum) || errors.Is(err, ukai.ErrInDoubt) || ukai.Code(err) != ukai.Code(ukai.ErrNoQuorum) {
			t.Fatalf("got %v", err)
		}
		for _, want := range []string{"claim by node 02000000", "1 of 3 arbiters answered", "node t1: unreachable", "node 03000000: timed out"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
		settle()
	})
}

func TestUnknownDiskIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := Propose(t.Context(), newMesh(t), node(1), Where(firstRecord(1, 2, 3)), Identity{}, Options{})
		if !errors.Is(err, ukai.ErrNoQuorum) || !strings.Contains(err.Error(), "has no record of this disk") {
			t.Fatalf("got %v", err)
		}
	})
}

func TestInDoubtIsSettledByProposingTheSameAgain(t *testing.T) {
	for _, took := range []bool{true, false} {
		t.Run(fmt.Sprintf("accepted=%v", took), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t)
				rec := create(t, m, 1, 2, 3)
				m.intercept = func(to ukai.NodeID, req Request) error {
					if req.Kind == Accept && (!took || to != node(1)) {
						return ukai.ErrUnreachable
					}
					return nil
				}
				m.deaf[node(1)] = true
				c := claim(1, 1, 0)
				_, err := Propose(t.Context(), m, node(1), Where(rec), c, Options{})
				if !errors.Is(err, ukai.ErrInDoubt) {
					t.Fatalf("got %v", err)
				}
				settle()
				m.intercept = nil
				clear(m.deaf)
				got, err := Propose(t.Context(), m, node(1), Where(rec), c, Options{})
				if err != nil || got.Version != 2 || !c.Done(got) {
					t.Fatalf("second attempt: version %d, %v", got.Version, err)
				}
			})
		})
	}
}

func TestOfTwoClaimsForOneEpochOneWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		rec := create(t, m, 1, 2, 3)
		errs := make(chan error)
		for by := 1; by <= 4; by++ {
			m.delay[node(by)] = time.Duration(by) * time.Millisecond
			go func() {
				_, err := Propose(t.Context(), m, node(by), Where(rec), claim(by, byte(by), 0), Options{Attempts: 100})
				errs <- err
			}()
		}
		won := 0
		for range 4 {
			switch err := <-errs; {
			case err == nil:
				won++
			case !errors.Is(err, ukai.ErrRejected) || !errors.Is(err, ukai.ErrHeld):
				t.Errorf("got %v", err)
			}
		}
		if won != 1 {
			t.Fatalf("%d claims won", won)
		}
		settle()
	})
}

func TestArbitersAreReplacedAndOldOnesRedirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		rec := create(t, m, 1, 2, 3)
		c := Rearb{Instance: 0, Arbiters: nodes(6, 5, 4)}
		next, err := Propose(t.Context(), m, node(1), Where(rec), c, Options{})
		if err != nil || next.Instance != 1 || next.Version != 2 || !c.Done(next) {
			t.Fatalf("rearb: %+v, %v", next, err)
		}
		settle()
		// One old arbiter alone, which a stale node may ask, knows the way.
		m.set(func() { m.down[node(1)], m.down[node(2)] = ukai.ErrUnreachable, ukai.ErrUnreachable })
		got, err := Propose(t.Context(), m, node(9), Where(rec), claim(9, 1, 0), Options{})
		if err != nil || got.Instance != 1 || got.Version != 3 {
			t.Fatalf("claim by the old address: %+v, %v", got, err)
		}
		settle()
		if again, err := Propose(t.Context(), m, node(9), Where(got), c, Options{}); err != nil || again.Version != 3 {
			t.Fatalf("repeated rearb: version %d, %v", again.Version, err)
		}
	})
}

func TestInterruptedReplacementOfArbitersIsFinishedByTheNextProposer(t *testing.T) {
	for _, stage := range []Kind{Accept, Init, Close} {
		t.Run(stage.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t)
				rec := create(t, m, 1, 2, 3)
				m.intercept = func(to ukai.NodeID, req Request) error {
					if req.Kind == stage && to != node(2) && to != node(5) {
						return ukai.ErrUnreachable
					}
					return nil
				}
				c := Rearb{Instance: 0, Arbiters: nodes(4, 5, 6)}
				_, err := Propose(t.Context(), m, node(1), Where(rec), c, Options{})
				if stage == Close && err != nil || stage != Close && !errors.Is(err, ukai.ErrInDoubt) {
					t.Fatalf("got %v", err)
				}
				settle()
				m.intercept = nil
				got, err := Propose(t.Context(), m, node(9), Where(rec), claim(9, 1, 0), Options{})
				if err != nil {
					t.Fatal(err)
				}
				if stage != Accept && got.Instance != 1 {
					t.Fatalf("a chosen replacement was left: %+v", got)
				}
				if got.Version != uint64(got.Instance)+2 {
					t.Fatalf("version %d in instance %d", got.Version, got.Instance)
				}
			})
		})
	}
}

func TestForcedTakeoverBeginsALineage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		old := create(t, m, 1, 2, 3)
		rec, err := Takeover{Fork: ukai.Nonce{9}, Node: node(3), Nonce: ukai.Nonce{1}, Arbiters: nodes(4, 3, 5)}.From(old)
		if err != nil {
			t.Fatal(err)
		}
		rec, err = Force(t.Context(), m, node(3), rec, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if rec.Epoch != ukai.NewEpoch(1, 1) || rec.Holder != node(3) || len(rec.Lineage) != 1 {
			t.Fatalf("got %+v", rec)
		}
		settle()
		rec, err = Propose(t.Context(), m, node(3), Where(rec), Activate{Epoch: rec.Epoch, Nonce: rec.Nonce, Version: rec.Version, InSync: []ukai.ReplicaID{2}}, Options{})
		if err != nil || rec.InSync(0)[0].Replica != 2 {
			t.Fatalf("%+v, %v", rec, err)
		}
		settle()
		// The old arbiters, back alive, have their own lineage; an arbiter of both does not mix them.
		_, err = Propose(t.Context(), m, node(1), Where(old), Rearb{Instance: 0, Arbiters: nodes(3, 4, 6)}, Options{})
		if !errors.Is(err, ukai.ErrInDoubt) || !strings.Contains(err.Error(), "another lineage") {
			t.Fatalf("got %v", err)
		}
		settle()
		got, err := Propose(t.Context(), m, node(3), Where(rec), Identity{}, Options{})
		if err != nil || !same(&got, &rec) {
			t.Fatalf("the forced lineage became %+v, %v", got, err)
		}
	})
}

func TestCanceledContextReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		rec := create(t, m, 1, 2, 3)
		for i := range 3 {
			m.delay[node(i+1)] = time.Hour
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := Propose(ctx, m, node(1), Where(rec), Identity{}, Options{})
		settle()
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ukai.ErrNoQuorum) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestPreferredNodeDecidesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		rec := create(t, m, 1, 2)
		rec, err := Propose(t.Context(), m, node(1), Where(rec), Rearb{Arbiters: nodes(1), Quorum: crdt.PreferredNode, Preferred: node(1)}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		settle()
		m.set(func() { m.down[node(2)] = ukai.ErrUnreachable })
		if _, err := Propose(t.Context(), m, node(1), Where(rec), claim(1, 1, 0), Options{}); err != nil {
			t.Fatal(err)
		}
		settle()
		m.set(func() { clear(m.down); m.down[node(1)] = ukai.ErrUnreachable })
		if _, err := Propose(t.Context(), m, node(2), Where(rec), claim(2, 1, 1), Options{}); !errors.Is(err, ukai.ErrNoQuorum) {
			t.Fatalf("the other node took over alone: %v", err)
		}
	})
}

func TestChangesThatWouldLeaveTooLittleAreRefused(t *testing.T) {
	rec := firstRecord(1, 2, 3)
	do := func(c Change) {
		t.Helper()
		next, err := apply(c, &rec)
		if err != nil {
			t.Fatal(err)
		}
		rec = next
	}
	refused := func(c Change) {
		t.Helper()
		if next, err := apply(c, &rec); !errors.Is(err, ukai.ErrRejected) {
			t.Fatalf("%v: %v, %+v", c, err, next)
		}
	}
	rec.MinSync = 2
	half := rec.Size / 2
	do(claim(1, 7, 0))
	do(Activate{Epoch: 1, Nonce: ukai.Nonce{7}, Version: rec.Version, InSync: []ukai.ReplicaID{1, 2}})
	refused(Shrink{Epoch: 1, Version: rec.Version, Replica: 2, Keep: rec.MinSync})
	refused(Resize{Epoch: 1, Version: rec.Version, Size: half})
	do(Shrink{Epoch: 1, Version: rec.Version, Replica: 2}) // it failed
	refused(Shrink{Epoch: 1, Version: rec.Version, Replica: 1})
	refused(Resize{Epoch: 1, Version: rec.Version, Size: half, Shrink: true}) // what it has beyond would come back
	do(Retire{Epoch: 1, Version: rec.Version, Replica: 2})
	do(Resize{Epoch: 1, Version: rec.Version, Size: half, Shrink: true})
}

func TestADeletionThatWasAllowedBeforeTheDiskWasToStayIsRefused(t *testing.T) {
	rec := firstRecord(1, 2, 3)
	stay, late := Stay{Version: rec.Version}, Delete{Version: rec.Version}
	stays, err := apply(stay, &rec)
	if err != nil || stay.Done(rec) || !stay.Done(stays) || !stays.Dominates(rec) {
		t.Fatalf("%+v: %v", stays, err)
	}
	if _, err := apply(late, &stays); !errors.Is(err, ukai.ErrRejected) {
		t.Errorf("deleted: %v", err)
	}
	gone, err := apply(late, &rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apply(stay, &gone); !errors.Is(err, ukai.ErrRejected) || stay.Done(gone) {
		t.Errorf("a deleted disk stays: %v", err)
	}
}

func TestAHistoryThatIsGivenUpEndsInAnyPhaseUnlessItWasPickedSince(t *testing.T) {
	for _, phase := range []crdt.Phase{crdt.PhaseReleased, crdt.PhaseRecovering, crdt.PhaseActive} {
		rec := firstRecord(1, 2, 3)
		rec.Epoch, rec.Phase, rec.Holder, rec.Nonce = ukai.NewEpoch(1, 4), phase, node(1), ukai.Nonce{1}
		picked, err := apply(Pick{Version: 1, Epoch: ukai.NewEpoch(2, 5), Node: node(2), Nonce: ukai.Nonce{2}}, &rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := apply(Discard{Forced: 1}, &picked); !errors.Is(err, ukai.ErrRejected) {
			t.Errorf("%v, though it was picked since: %v", phase, err)
		}
		ended, err := apply(Discard{Forced: 1}, &rec)
		if err != nil || ended.Phase != crdt.PhaseDeleted || !(Discard{}).Done(ended) || !ended.Dominates(rec) || ended.Epoch <= rec.Epoch || ended.Epoch.Forced() != 1 {
			t.Errorf("%v: it became %v, epoch %v: %v", phase, ended.Phase, ended.Epoch, err)
		}
		for _, c := range []Change{
			Pick{Version: ended.Version, Epoch: ukai.NewEpoch(2, 5), Node: node(2), Nonce: ukai.Nonce{2}}, Claim{Node: node(1), After: ended.Epoch},
			Discard{Forced: 9},
		} {
			if _, err := apply(c, &ended); !errors.Is(err, ukai.ErrRejected) {
				t.Errorf("%v after the end of a history that was %v: %v", c, phase, err)
			}
		}
	}
	pinned := firstRecord(1)
	pinned.Pins = []ukai.DiskID{{9}}
	if _, err := apply(Discard{}, &pinned); !errors.Is(err, ukai.ErrRejected) {
		t.Errorf("a history that a clone needs: %v", err)
	}
}
