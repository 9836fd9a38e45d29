package memnet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func addr(last byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, last}), 7946)
}

func listen(t *testing.T, n *Network, last byte, places ...string) *Conn {
	t.Helper()
	c, err := n.Listen(addr(last), places...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPacketsArriveInOrderAfterTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.SetLink("tokyo", "osaka", Link{Delay: 40 * time.Millisecond, Jitter: 10 * time.Millisecond})
		a, b := listen(t, n, 1, "t1", "tokyo"), listen(t, n, 2, "o1", "osaka")
		start := time.Now()
		for i := range 100 {
			if _, err := a.WriteTo([]byte{byte(i)}, b.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 10)
		for i := range 100 {
			k, from, err := b.ReadFrom(buf)
			if err != nil || k != 1 || buf[0] != byte(i) || from.String() != a.LocalAddr().String() {
				t.Fatalf("packet %d: n=%d data=%d from=%v err=%v", i, k, buf[0], from, err)
			}
		}
		if d := time.Since(start); d < 40*time.Millisecond || d > 50*time.Millisecond {
			t.Fatalf("took %v, want the delay of 40 ms and at most 10 ms of jitter", d)
		}
	})
}

func TestACutIsOneWayAndCountsLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := listen(t, n, 1, "t1", "tokyo"), listen(t, n, 2, "o1", "osaka")
		n.SetLink("tokyo", "osaka", Link{Down: true})
		_, _ = a.WriteTo([]byte("lost"), b.LocalAddr())
		_, _ = b.WriteTo([]byte("kept"), a.LocalAddr())
		buf := make([]byte, 10)
		if k, _, err := a.ReadFrom(buf); err != nil || string(buf[:k]) != "kept" {
			t.Fatalf("read %q, %v", buf[:k], err)
		}
		_ = b.SetReadDeadline(time.Now().Add(time.Hour))
		if _, _, err := b.ReadFrom(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read over a cut link: %v", err)
		}
		if s := n.Stats(); s.Lost != 1 || s.Delivered != 1 {
			t.Fatalf("stats %+v", s)
		}
	})
}

func TestLossAndDuplicationFollowTheOdds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(7)
		n.SetDefault(Link{Loss: 0.1, Duplicate: 0.1})
		a, b := listen(t, n, 1), listen(t, n, 2)
		for range 5000 {
			_, _ = a.WriteTo([]byte("x"), b.LocalAddr())
		}
		if s := n.Stats(); s.Lost < 400 || s.Lost > 600 || s.Duplicated < 350 || s.Duplicated > 550 {
			t.Fatalf("stats %+v", s)
		}
	})
}

func TestCloseEndsAReadAndFreesTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a := listen(t, n, 1)
		done := make(chan error)
		go func() { _, _, err := a.ReadFrom(make([]byte, 1)); done <- err }()
		synctest.Wait()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		listen(t, n, 1)
	})
}

func TestRateQueuesPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.SetDefault(Link{Rate: 1000})
		a, b := listen(t, n, 1), listen(t, n, 2)
		start := time.Now()
		for range 10 {
			_, _ = a.WriteTo(make([]byte, 100), b.LocalAddr())
		}
		for range 10 {
			if _, _, err := b.ReadFrom(make([]byte, 200)); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != time.Second {
			t.Fatalf("1000 bytes at 1000 B/s took %v", d)
		}
	})
}
