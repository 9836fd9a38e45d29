package sim

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"ukai"
	"ukai/node/store"
	"ukai/testnet/memnet"
)

func TestScenario02ARecoveryThatCrashesHalfWayLeavesOneOutcome(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo t3:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:3")
		g := m.attach("o1", "vm1")
		const blocks = 32
		for i := range blocks {
			g.write(i, 1)
		}
		g.flush()
		// The next writes reach t1 only.
		for _, deaf := range []string{"t2", "t3"} {
			m.Net.SetLink("o1", deaf, memnet.Link{Down: true})
		}
		short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		for i := range blocks {
			_, _ = g.n.Volume("vm1").WriteAt(short, filled(2), int64(i)*4096) // nobody is told that they are done
		}
		g.n.Crash()
		for _, deaf := range []string{"t2", "t3"} {
			m.Net.SetLink("o1", deaf, memnet.Link{})
		}
		// t1 recovers and crashes when it has copied some.
		var copied atomic.Int32
		halfWay, ended := make(chan struct{}), make(chan struct{})
		m.Nodes["t2"].Fault = func(op store.Op) error {
			if op.Kind == store.OpWrite {
				n := copied.Add(1)
				if n == 2 {
					close(halfWay)
				}
				if n >= 2 {
					<-ended
				}
			}
			return nil
		}
		attaching := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			for {
				err := m.Nodes["t1"].Volume("vm1").Attach(ctx)
				if err == nil || !errors.Is(err, ukai.ErrHeld) {
					attaching <- err
					return
				}
				time.Sleep(time.Second)
			}
		}()
		<-halfWay
		m.Nodes["t1"].Crash()
		close(ended)
		if err := <-attaching; err == nil {
			t.Error("the first recovery was done before it crashed")
		}
		m.Nodes["t2"].Fault = nil
		m.awaitAttach("t3", "vm1")
		var outcome [blocks]byte
		for i := range blocks {
			outcome[i] = m.wantReads("t3", "vm1", i, 1, 2)
		}
		for _, next := range []string{"t2", "t1", "t3"} {
			if m.Nodes[next].Node == nil {
				m.Nodes[next].Boot()
				m.AwaitWhole()
			}
			for i := range blocks {
				m.wantReads(next, "vm1", i, outcome[i])
			}
		}
	})
}

func TestScenario03APartitionedHolderGetsNoAckAndItsWritesAreUndone(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka w1:osaka:witness", func(t *testing.T, m *Mesh) {
		m.CreateAck("vm1", 4<<20, "dc=tokyo:1 dc=osaka:1", "all")
		g := m.attach("t1", "vm1")
		g.write(0, 1)
		m.Cut("tokyo", "osaka")
		acked := make(chan error, 1)
		go func() { acked <- g.try(0, 2) }() // ends after a minute
		h := m.awaitAttach("o1", "vm1")
		m.wantReads("o1", "vm1", 0, 1)
		h.write(1, 3)
		if got, err := m.reads("t1", "vm1", 1); err == nil {
			t.Errorf("the deposed host reads %d", got)
		}
		if err := <-acked; err == nil {
			t.Error("a write was acknowledged on the side of the minority")
		}
		m.Heal("tokyo", "osaka")
		m.awaitLocations(h.n, "vm1", "o1 in sync", "t1 in sync")
		_ = g.n.Volume("vm1").Detach(context.Background()) // it was told that it lost the disk
		m.wantReads("t1", "vm1", 0, 1)
		h.detach()
		m.wantEqualReplicas("vm1", 2)
	})
}

func TestScenario04AHolderWithTheMajorityGoesOnAndTheOthersGetNothing(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka w1:tokyo:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:1 dc=osaka:1")
		g := m.attach("t1", "vm1")
		m.Cut("tokyo", "osaka")
		for i := range 10 {
			g.write(i, 1)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := m.Nodes["o1"].Volume("vm1").Attach(ctx); err == nil {
			t.Error("attached without a majority while another host has it")
		}
		if got, err := m.reads("o1", "vm1", 0); err == nil {
			t.Errorf("reads %d where nobody knows who holds the disk", got)
		}
		m.Heal("tokyo", "osaka")
		m.awaitLocations(g.n, "vm1", "o1 in sync", "t1 in sync")
		m.wantReads("o1", "vm1", 9, 1)
		if err := m.Nodes["o1"].Volume("vm1").Attach(context.Background()); !errors.Is(err, ukai.ErrHeld) {
			t.Errorf("a second host attached: %v", err)
		}
		g.detach()
		m.wantEqualReplicas("vm1", 10)
	})
}

func TestScenario05AShrinkThatOneArbiterAcceptedLosesNothing(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.CreateAck("vm1", 4<<20, "dc=tokyo:2", "all")
		g := m.attach("t1", "vm1")
		g.write(0, 1)
		// Alone, t1 promises and accepts the change that drops t2, and gets no further.
		m.Cut("t1", "t2")
		m.Cut("t1", "w1")
		acked := make(chan error, 1)
		go func() { acked <- g.try(0, 2) }() // ends after a minute
		time.Sleep(20 * time.Second)
		g.n.Crash()
		if err := <-acked; err == nil {
			t.Fatal("a write was acknowledged by one of two replicas without a majority")
		}
		h := m.awaitAttach("t2", "vm1")
		m.wantReads("t2", "vm1", 0, 1)
		h.write(0, 3)
		m.Heal("t1", "t2")
		m.Heal("t1", "w1")
		m.Nodes["t1"].Boot()
		m.awaitLocations(h.n, "vm1", "t1 in sync", "t2 in sync")
		m.wantReads("t1", "vm1", 0, 3)
		h.detach()
		m.wantEqualReplicas("vm1", 1)
	})
}

func TestScenario12WhenAllReplicasLosePowerTheGuestIsToldAndWhatWasFlushedIsThere(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		g := m.attach("o1", "vm1")
		g.write(0, 1)
		g.flush()
		g.write(0, 2)
		g.write(1, 2)
		m.Nodes["t1"].PowerCut()
		m.Nodes["t2"].PowerCut()
		time.Sleep(5 * time.Second)
		m.Nodes["t1"].Boot()
		m.Nodes["t2"].Boot()
		// What was acknowledged is gone, so nothing is answered before the disk is attached anew.
		m.Await("the guest is told", func() error {
			if _, err := m.reads("o1", "vm1", 1); err == nil {
				t.Fatal("a read was answered although what was acknowledged is gone")
			}
			if err := g.n.Volume("vm1").Flush(context.Background()); !errors.Is(err, ukai.ErrLost) {
				return fmt.Errorf("a flush says %w", err)
			}
			return nil
		})
		_ = g.n.Volume("vm1").Detach(context.Background()) // it has been told
		h := m.awaitAttach("o1", "vm1")
		one := m.wantReads("o1", "vm1", 0, 1, 2)
		two := m.wantReads("o1", "vm1", 1, 0, 2)
		h.detach()
		for _, name := range []string{"t1", "t2", "o1"} {
			m.wantReads(name, "vm1", 0, one)
			m.wantReads(name, "vm1", 1, two)
		}
		m.wantEqualReplicas("vm1", 2)
	})
}

func TestScenario13OfAReplicaThatLostPowerOnlyWhatWasNotFlushedMayBeGone(t *testing.T) {
	for _, second := range []bool{true, false} {
		t.Run(fmt.Sprintf("the clean one is there=%v", second), func(t *testing.T) {
			bubble(t, "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
				m.Create("vm1", 4<<20, "dc=tokyo:2")
				g := m.attach("o1", "vm1")
				g.write(0, 1)
				g.flush()
				g.write(1, 2)
				g.n.Crash()
				m.Nodes["t1"].PowerCut()
				if !second {
					m.Nodes["t2"].Crash() // it keeps what was not flushed
				}
				time.Sleep(time.Second)
				m.Nodes["t1"].Boot()
				g.n.Boot()
				h := m.awaitAttach("o1", "vm1")
				m.wantReads("o1", "vm1", 0, 1)
				if second {
					m.wantReads("o1", "vm1", 1, 2)
				} else {
					m.wantReads("o1", "vm1", 1, 0)
					m.Nodes["t2"].Boot()
					m.awaitLocations(h.n, "vm1", "t1 in sync", "t2 in sync")
				}
				now, err := m.reads("o1", "vm1", 1)
				if err != nil {
					t.Fatal(err)
				}
				h.detach()
				m.wantReads("t2", "vm1", 1, now)
				m.wantEqualReplicas("vm1", 2)
			})
		})
	}
}
