package volume

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/store"
	"ukai/node/wire"
)

func TestAPastIsReadUnderAnotherHolderAndIsInNobodysWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, setup{nodes: 3, replicas: 2})
		defer w.close()
		ctx := t.Context()
		d := w.d(0)
		if err := d.Attach(ctx); err != nil {
			t.Fatal(err)
		}
		want := slices.Repeat([]byte{7}, 3<<19)
		if _, err := d.WriteAt(ctx, want, 1<<19); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		epoch := w.cells.record().Epoch
		version := w.cells.record().Version
		for n := range w.nodes { // one has no replica
			past := w.nodes[n].host.Load().Past(w.cells.record(), nil)
			got := make([]byte, len(want))
			if _, err := past.ReadAt(ctx, got, 1<<19); err != nil || !slices.Equal(got, want) {
				t.Fatalf("read on node %d: %v", n, err)
			}
			if off, err := past.NextData(ctx, 0); err != nil || off != 1<<19 {
				t.Errorf("data from %d on, %v", off, err)
			}
			if off, err := past.NextHole(ctx, 1<<19); err != nil || off != 2<<20 {
				t.Errorf("a hole from %d on, %v", off, err)
			}
			if _, err := past.ReadAt(ctx, got, testSize-1); !errors.Is(err, ukai.ErrInvalid) {
				t.Errorf("across the end: %v", err)
			}
		}
		if _, err := d.WriteAt(ctx, want[:512], 0); err != nil {
			t.Errorf("the holder was disturbed: %v", err)
		}
		if now := w.cells.record(); now.Epoch != epoch || now.Version != version {
			t.Errorf("epoch %v after %v, version %d after %d", now.Epoch, epoch, now.Version, version)
		}
		for _, n := range w.nodes[:2] {
			h, err := n.replicas.Load().open(ctx, w.disk, n.rid)
			if err != nil || h.data.Header().Fence != epoch {
				t.Errorf("node %d has fence %v, %v", n.n, h.data.Header().Fence, err)
			}
		}
	})
}

func TestAPastThatHasGoneOnSinceIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, setup{nodes: 2, replicas: 1})
		defer w.close()
		ctx := t.Context()
		past := w.nodes[1].host.Load().Past(w.cells.record(), nil)
		p := make([]byte, 512)
		if _, err := past.ReadAt(ctx, p, 0); err != nil {
			t.Fatal(err)
		}
		if err := w.d(0).Attach(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := past.ReadAt(ctx, p, 0); !errors.Is(err, ukai.ErrFenced) {
			t.Errorf("after a newer epoch had sealed its replica: %v", err)
		}
	})
}

// A seal by the holder of another history must not let that write what a read finds which was let in for this one.
func TestASealWaitsForTheReadOfAPast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		reading, on := make(chan struct{}), make(chan struct{})
		w := newWorld(t, setup{nodes: 2, replicas: 1, mem: func(int) store.MemConfig {
			return store.MemConfig{Fault: func(op store.Op) error {
				if op.Kind == store.OpRead && slow.CompareAndSwap(true, false) {
					close(reading)
					<-on
				}
				return nil
			}}
		}})
		defer w.close()
		ctx := t.Context()
		past := w.nodes[0].host.Load().Past(w.cells.record(), nil)
		slow.Store(true)
		read := make(chan error, 1)
		go func() {
			_, err := past.ReadAt(ctx, make([]byte, 512), 0)
			read <- err
		}()
		<-reading
		attached := make(chan error, 1)
		go func() { attached <- w.d(0).Attach(ctx) }()
		synctest.Wait()
		time.Sleep(time.Second)
		select {
		case err := <-attached:
			t.Fatalf("the replica was sealed while it was read: %v", err)
		default:
		}
		close(on)
		if err := errors.Join(<-read, <-attached); err != nil {
			t.Error(err)
		}
	})
}

func TestAPastThatWasNotReleasedIsReadFromOneReplicaOnly(t *testing.T) {
	for _, clean := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, setup{nodes: 3, replicas: 2})
			defer w.close()
			rec := w.cells.record()
			if !clean {
				rec.Phase, rec.Holder, rec.Epoch = crdt.PhaseActive, w.nodes[2].id, 1
			}
			ctx := t.Context()
			past := w.nodes[2].host.Load().Past(rec, nil)
			var asked atomic.Int32
			count := func(_, to int, m *wire.Message) {
				if m.Kind == wire.KindReadPast {
					asked.Store(int32(to))
				}
			}
			w.onSend.Store(&count)
			p := make([]byte, 512)
			if _, err := past.ReadAt(ctx, p, 0); err != nil {
				t.Fatal(err)
			}
			w.setClosed(int(asked.Load()), true)
			if _, err := past.ReadAt(ctx, p, 0); (err == nil) != clean {
				t.Errorf("released %v: without the replica that was read: %v", clean, err)
			}
		})
	}
}

func TestWhatAPastMayBeReadFromIsNotWhatAnotherHistoryGoesOnWith(t *testing.T) {
	fork := func(ids ...byte) (r crdt.Record) {
		for i, id := range ids {
			r.Lineage = append(r.Lineage, crdt.Fork{ID: ukai.Nonce{id}, Version: uint64(i + 1)})
		}
		return r
	}
	for _, c := range []struct {
		what   string
		rec    crdt.Record
		others []crdt.Record
		want   string
	}{
		{"both were forced", fork(1), []crdt.Record{fork(2)}, "base 1"},
		{"the base goes on", fork(1), []crdt.Record{fork()}, "1"},
		{"it is the base", fork(), []crdt.Record{fork(1)}, "base"},
		{"it was forced twice", fork(1, 2), []crdt.Record{fork(3)}, "base 1 2"},
		{"what it was forced from goes on", fork(1, 2), []crdt.Record{fork(1), fork(3)}, "base 2"},
	} {
		var got []string
		req := newPastRequest(&c.rec, c.others)
		if req.Base {
			got = append(got, "base")
		}
		for _, f := range req.Forks {
			got = append(got, string('0'+rune(f[0])))
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: %s, want %s", c.what, text, c.want)
		}
	}
}

func TestAPastIsRefusedByAReplicaOfAnotherHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, setup{nodes: 1, replicas: 1})
		defer w.close()
		rs := w.nodes[0].replicas.Load()
		rs.cfg.Within = func(_ ukai.DiskID, _ ukai.ReplicaID, forks []ukai.Nonce, base bool) error {
			if base || len(forks) != 1 || forks[0] != (ukai.Nonce{1}) {
				return ukai.ErrRejected
			}
			return nil
		}
		rec := w.cells.record()
		rec.Lineage = []crdt.Fork{{ID: ukai.Nonce{1}}}
		p := make([]byte, 512)
		for _, c := range []struct {
			others []crdt.Record
			want   error
		}{{[]crdt.Record{{}}, nil}, {nil, ukai.ErrRejected}} {
			_, err := w.nodes[0].host.Load().Past(rec, c.others).ReadAt(context.Background(), p, 0)
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("%v, want %v", err, c.want)
			}
		}
	})
}
