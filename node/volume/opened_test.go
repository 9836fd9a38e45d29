package volume

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node/store"
	"ukai/node/wire"
)

// hungStore is a store on whose medium some replicas hang while they are opened, or asked how much space they take.
type hungStore struct {
	*store.Store
	open, size ukai.ReplicaID // that hang
	asked      atomic.Int32   // how often one that hangs was asked for its size
	on         chan struct{}  // closed: none does any more
}

func (s *hungStore) OpenReplica(disk ukai.DiskID, rid ukai.ReplicaID) (store.Replica, error) {
	if rid == s.open {
		<-s.on
	}
	r, err := s.Store.OpenReplica(disk, rid)
	return hungReplica{r, s, rid}, err
}

type hungReplica struct {
	store.Replica
	s   *hungStore
	rid ukai.ReplicaID
}

func (r hungReplica) AllocatedBytes() int64 {
	if r.rid == r.s.size {
		r.s.asked.Add(1)
		<-r.s.on
	}
	return r.Replica.AllocatedBytes()
}

// hung is a replica side with the replicas 1 to 3 of a disk.
func hung(t *testing.T, s *hungStore) *Replicas {
	t.Helper()
	mem := store.NewMem(store.MemConfig{})
	s.Store, s.on = mem.Store(), make(chan struct{})
	for rid := range ukai.ReplicaID(3) {
		if err := mem.Create(t.Context(), ukai.DiskID{1}, rid+1, store.ReplicaConfig{Size: testSize, BlockSize: testBlock}); err != nil {
			t.Fatal(err)
		}
	}
	return NewReplicas(ReplicasConfig{Node: ukai.NodeID{1}, Store: s})
}

func TestHowMuchSpaceReplicasTakeIsToldThoughAMediumHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &hungStore{}
		rs := hung(t, s)
		ctx, disk := t.Context(), ukai.DiskID{1}
		took := func(most time.Duration, want ...ukai.ReplicaID) {
			t.Helper()
			start := time.Now()
			all := rs.Allocated(ctx, disk)
			if took := time.Since(start); took > most {
				t.Errorf("it took %v", took)
			}
			if len(all) != len(want) {
				t.Errorf("told of %v, want %v", all, want)
			}
			for _, id := range want {
				if _, ok := all[id]; !ok {
					t.Errorf("told of %v, want %v", all, want)
				}
			}
		}
		took(0, 1, 2, 3)
		s.size = 2
		took(allocatedTime, 1, 2, 3) // 2 as it was
		for range 100 {
			took(0, 1, 2, 3)
		}
		if n := s.asked.Load(); n != 1 {
			t.Errorf("a medium that hangs was asked %d times", n)
		}
		close(s.on)
		synctest.Wait()
		took(0, 1, 2, 3)
		if n := s.asked.Load(); n != 2 {
			t.Errorf("asked %d times when it works again", n)
		}
		if err := rs.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestAReplicaThatDoesNotOpenHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &hungStore{open: 2}
		rs := hung(t, s)
		disk := ukai.DiskID{1}
		if all := rs.Allocated(t.Context(), disk); len(all) != 2 {
			t.Errorf("told of %v", all)
		}
		start := time.Now()
		if _, err := rs.open(t.Context(), disk, 3); err != nil || time.Since(start) > 0 {
			t.Errorf("another one opened after %v: %v", time.Since(start), err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := rs.open(short, disk, 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("opened: %v", err)
		}
		// A heartbeat that names them all says which answer.
		hb := heartbeat{}
		for rid := range ukai.ReplicaID(3) {
			hb.Beats = append(hb.Beats, beat{Disk: disk, Replica: rid + 1, Epoch: 0})
		}
		start = time.Now()
		reply, err := rs.heartbeat(&wire.Message{Kind: wire.KindHeartbeat, Payload: encode(hb)})
		if err != nil || time.Since(start) > openTime {
			t.Fatalf("answered after %v: %v", time.Since(start), err)
		}
		out, err := decodeHeartbeatReply(reply.Payload, 3)
		if err != nil || len(out.Exceptions) != 1 || out.Exceptions[0].At != 1 || !errors.Is(ukai.Sentinel(out.Exceptions[0].Code), ukai.ErrTimeout) {
			t.Errorf("%+v, %v", out, err)
		}
		close(s.on)
		synctest.Wait()
		if _, err := rs.open(t.Context(), disk, 2); err != nil {
			t.Error(err)
		}
		if err := rs.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestReplicasAreOpenedOnceAndClosedWhileOthersAskForThem(t *testing.T) {
	s := &hungStore{}
	rs := hung(t, s)
	disk, ctx := ukai.DiskID{1}, t.Context()
	stop := make(chan struct{})
	ended := make(chan error, 4)
	for range cap(ended) {
		go func() {
			for {
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
				if _, err := rs.open(ctx, disk, 1); err != nil { // ErrLocked, were it opened twice
					ended <- err
					return
				}
				rs.Allocated(ctx, disk)
			}
		}()
	}
	for range 200 {
		if err := rs.Shut(ctx, disk, 1); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if err := rs.Close(); err != nil {
		t.Error(err)
	}
	if _, err := rs.open(ctx, disk, 1); !errors.Is(err, ukai.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestReplicaThatHasComeIntoUseSinceIsNotRetired(t *testing.T) {
	h := newSealed(t)
	defer func() { _ = h.rs.Close() }()
	retire := func(was store.State) error { return h.rs.Retire(t.Context(), h.key.disk, h.key.replica, was) }
	if err := retire(store.StateNew); !errors.Is(err, ukai.ErrRejected) || h.data.Header().State != store.StateOpen {
		t.Errorf("judged when it was new: %v, it is %v", err, h.data.Header().State)
	}
	if err := retire(store.StateOpen); err != nil || h.data.Header().State != store.StateRetired {
		t.Errorf("judged when it was in use: %v, it is %v", err, h.data.Header().State)
	}
}
