package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
)

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{ukai.ErrNoSpace, syscall.ENOSPC},
		{&ukai.NodeError{Name: "t1", Err: fmt.Errorf("write: %w", ukai.ErrNoSpace)}, syscall.ENOSPC},
		{&ukai.HeldError{Name: "o1"}, syscall.EBUSY},
		{&ukai.FencedError{Epoch: 3}, syscall.EIO},
		{ukai.ErrSuspended, syscall.EIO},
		{ukai.ErrNotFound, syscall.ENOENT},
		{ukai.ErrExists, syscall.EBUSY},
		{ukai.ErrInvalid, syscall.EINVAL},
		{ukai.ErrUnsupported, syscall.EOPNOTSUPP},
		{ukai.ErrPermission, syscall.EPERM},
		{ukai.ErrTimeout, syscall.ETIMEDOUT},
		{context.Canceled, syscall.EINTR},
		{fmt.Errorf("attach: %w", context.Canceled), syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
	} {
		if got, known := errno(c.err); got != c.want || !known {
			t.Errorf("%v: %v, known %v, want %v", c.err, got, known, c.want)
		}
	}
	if got, known := errno(errors.New("surprise")); got != syscall.EIO || known {
		t.Errorf("an unknown error: %v, known %v", got, known)
	}
	if got, known := errno(syscall.ENOENT); got != syscall.EIO || known {
		t.Errorf("a store's own ENOENT reached the program as %v, known %v", got, known)
	}
}

func TestEverySentinelHasAnErrno(t *testing.T) {
	for code := uint16(1); ; code++ {
		err := ukai.Sentinel(code)
		if err == nil {
			if code < 20 {
				t.Fatal("the sentinels were not found")
			}
			return
		}
		if _, known := errno(err); !known {
			t.Errorf("%v has no errno", err)
		}
	}
}

func TestGateWaitsForThoseInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		g.init()
		if g.enter() || g.isOpen() {
			t.Fatal("a new gate is open")
		}
		for range 3 {
			g.open()
			var wg sync.WaitGroup
			for i := range 5 {
				if !g.enter() {
					t.Fatal("an open gate let nobody in")
				}
				wg.Go(func() {
					time.Sleep(time.Duration(i+1) * time.Second)
					g.leave()
				})
			}
			began := time.Now()
			g.shut()
			if time.Since(began) != 5*time.Second {
				t.Errorf("shut after %v, when not all had left", time.Since(began))
			}
			if g.enter() || g.isOpen() {
				t.Error("a gate that was shut let somebody in")
			}
			wg.Wait()
		}
		g.open()
		g.shut() // with nobody inside
	})
}

func TestQuietLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q quiet
		allowed := func(what string, want bool, wantSkipped int) {
			t.Helper()
			if skipped, ok := q.allow(what); ok != want || skipped != wantSkipped {
				t.Errorf("%s: %v after %d, want %v after %d", what, ok, skipped, want, wantSkipped)
			}
		}
		allowed("a", true, 0)
		allowed("b", true, 0)
		allowed("a", false, 0)
		allowed("a", false, 0)
		time.Sleep(quietTime)
		allowed("a", true, 2)
		for i := range 3 * maxKinds {
			q.allow(strconv.Itoa(i))
		}
		if len(q.kinds) > maxKinds+1 {
			t.Errorf("%d kinds are kept", len(q.kinds))
		}
		time.Sleep(quietTime)
		allowed("new", true, 0)
		if len(q.kinds) > 2 {
			t.Errorf("%d kinds are kept after a while", len(q.kinds))
		}
	})
}

func TestWaitingForReleaseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s locks
		mine := lock{start: 1, end: 1, write: true, owner: 1, fh: 1}
		other := lock{start: 1, end: 1, owner: 2, fh: 2}
		ctx := t.Context()
		began := time.Now()
		if _, err := s.acquire(ctx, mine, false, false); err != nil {
			t.Fatal(err)
		}
		if _, err := s.acquire(ctx, other, false, false); !errors.Is(err, errConflict) || time.Since(began) != 0 {
			t.Errorf("a lock that is held: %v after %v", err, time.Since(began))
		}
		s.closed(77, 1) // a descriptor of the handle was closed, by a process without POSIX locks
		if _, err := s.acquire(ctx, other, false, false); !errors.Is(err, errConflict) || time.Since(began) != releaseWait {
			t.Errorf("a lock of a handle that was closed but not released: %v after %v", err, time.Since(began))
		}
		if l, err := s.query(ctx, other, false); l == nil || err != nil || time.Since(began) != 2*releaseWait {
			t.Errorf("query: %v, %v after %v", l, err, time.Since(began))
		}
		time.AfterFunc(releaseWait/2, func() { s.released(1) })
		if _, err := s.acquire(ctx, other, false, false); err != nil || time.Since(began) != 2*releaseWait+releaseWait/2 {
			t.Errorf("released while waiting: %v after %v", err, time.Since(began))
		}
		short, stop := context.WithTimeout(ctx, time.Minute)
		defer stop()
		if _, err := s.acquire(short, mine, false, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting for ever: %v", err)
		}
	})
}

func TestPanicAsideDoesNotEndTheDaemon(t *testing.T) {
	fs := &filesystem{cfg: Config{Log: slog.New(slog.DiscardHandler)}, life: t.Context()}
	err := fs.aside(make(request), func() error { panic("broken disk") })
	if !errors.Is(err, errPanic) {
		t.Error(err)
	}
	fs.shutdown()
}
