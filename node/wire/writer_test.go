package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"pgregory.net/rapid"
)

// fakeStream takes bytes like a QUIC stream with a small window that somebody empties.
type fakeStream struct {
	mu     sync.Mutex
	got    []byte
	window int
	writes int
	err    error
	slow   time.Duration
}

func (s *fakeStream) TryWriteAll(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if len(b) > s.window {
		return quic.ErrWouldBlock
	}
	s.window -= len(b)
	s.got = append(s.got, b...)
	s.writes++
	return nil
}

func (s *fakeStream) Write(b []byte) (int, error) {
	time.Sleep(s.slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	s.got = append(s.got, b...)
	s.writes++
	s.window = 4096
	return len(b), nil
}

// Frames of one sender leave in order and whole, whatever their sizes and whoever else sends.
func TestFramesLeaveInOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{8, 100, 2000, 5000, 20000, 70000}), 1, 60).Draw(rt, "sizes")
		senders := rapid.IntRange(1, 4).Draw(rt, "senders")
		synctest.Test(t, func(t *testing.T) {
			var pool buffers
			var wg sync.WaitGroup
			owed := newBudget(1<<20, 1<<30)
			stream := &fakeStream{window: 10000, slow: time.Millisecond}
			w := writer{stream: stream, pool: &pool, spawn: func(f func()) bool { wg.Go(f); return true }, broken: func(err error) { t.Error(err) }}
			for s := range senders {
				wg.Go(func() {
					for i, size := range sizes {
						f := pool.get(size)
						clear(f.b)
						binary.BigEndian.PutUint32(f.b, uint32(size))
						binary.BigEndian.PutUint16(f.b[4:], uint16(s))
						binary.BigEndian.PutUint16(f.b[6:], uint16(i))
						if err := owed.acquire(context.Background(), size); err != nil {
							t.Error(err)
						}
						f.owed, f.cost = owed, size
						w.send(f, i%2 == 0)
						if i%7 == 0 {
							time.Sleep(time.Millisecond)
						}
					}
				})
			}
			wg.Wait()
			next := make([]int, senders)
			for b := stream.got; len(b) > 0; {
				size, s, i := binary.BigEndian.Uint32(b), binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
				if int(i) != next[s] || int(size) != sizes[i] || len(b) < int(size) {
					t.Fatalf("sender %d: frame %d of %d bytes where frame %d belongs", s, i, size, next[s])
				}
				next[s]++
				b = b[size:]
			}
			for s, n := range next {
				if n != len(sizes) {
					t.Errorf("sender %d: %d of %d frames left", s, n, len(sizes))
				}
			}
			if r, n, _ := owed.used(1 << 20); r != 0 || n != 0 {
				t.Errorf("%d frames of %d bytes were not given back", r, n)
			}
		})
	})
}

func TestFramesAreCombinedWhileTheStreamIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool buffers
		var wg sync.WaitGroup
		stream := &fakeStream{slow: time.Millisecond}
		w := writer{stream: stream, pool: &pool, spawn: func(f func()) bool { wg.Go(f); return true }, broken: func(error) {}}
		for range 17 {
			w.send(pool.get(1000), true)
		}
		wg.Wait()
		if stream.writes != 2 || len(stream.got) != 17000 {
			t.Errorf("17 frames left in %d writes of %d bytes in all, want 2 writes", stream.writes, len(stream.got))
		}
	})
}

func TestABrokenStreamKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, size := range []int{100, 5000, 100000} {
			var pool buffers
			var wg sync.WaitGroup
			owed := newBudget(100, 1<<30)
			broken := 0
			boom := errors.New("boom")
			stream := &fakeStream{slow: time.Millisecond, window: 150, err: nil}
			w := writer{stream: stream, pool: &pool, spawn: func(f func()) bool { wg.Go(f); return true }, broken: func(err error) {
				if broken++; !errors.Is(err, boom) {
					t.Errorf("broken by %v", err)
				}
			}}
			for i := range 20 {
				if i == 10 {
					stream.mu.Lock()
					stream.err = boom
					stream.mu.Unlock()
				}
				f := pool.get(size)
				_ = owed.acquire(context.Background(), size)
				f.owed, f.cost = owed, size
				w.send(f, false)
			}
			wg.Wait()
			if r, _, _ := owed.used(100); r != 0 || broken != 1 {
				t.Errorf("frames of %d: %d were not given back, told %d times", size, r, broken)
			}
		}
	})
}

func TestBudgetsServeInOrderAndForgetNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(2, 100)
		ctx, cancel := context.WithCancel(context.Background())
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(b.acquire(ctx, 60))
		must(b.acquire(ctx, 40))
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i, cost := range []int{1000, 60, 60} { // the first is larger than the whole budget
			wg.Go(func() {
				must(b.acquire(context.Background(), cost))
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				b.release(cost)
			})
			synctest.Wait()
		}
		var gaveUp sync.WaitGroup
		gaveUp.Go(func() {
			if err := b.acquire(ctx, 1); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		gaveUp.Wait()
		b.release(60)
		b.release(40)
		wg.Wait()
		if !slices.Equal(order, []int{0, 1, 2}) {
			t.Errorf("served in order %v", order)
		}
		if r, n, w := b.used(2); r != 0 || n != 0 || w != 0 {
			t.Errorf("%d requests, %d bytes, %d waiting at the end", r, n, w)
		}
	})
}

func TestGivingUpAtTheHeadOfTheLineLetsOthersThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(10, 100)
		if err := b.acquire(context.Background(), 50); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.acquire(ctx, 90); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if err := b.acquire(context.Background(), 20); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait() // hangs if the small one still waits behind the large one
	})
}
