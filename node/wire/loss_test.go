package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
)

func TestASilentPeerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet(time.Millisecond)
		m := newMesh(t, n)
		a, b := m.node("a", nil), m.node("b", echo)
		if _, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); err != nil {
			t.Fatal(err)
		}
		n.setLink(func(string, string, []byte) []memDelivery { return nil })
		start := time.Now()
		var calls []*Call
		for i := range 10 {
			calls = append(calls, a.Start(context.Background(), b.ID(), &Message{Kind: KindWrite, Payload: make([]byte, 4096*(i+1))}, nil))
		}
		for _, c := range calls {
			if _, err := c.Wait(context.Background()); !errors.Is(err, ukai.ErrUnreachable) || !strings.Contains(err.Error(), "nothing heard") {
				t.Fatalf("call to a silent peer: %v", err)
			}
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("noticed after %v", took)
		}
		// Now dials fail as well, and calls in between fail at once.
		if _, err := a.Call(context.Background(), b.ID(), &Message{Kind: KindPing}, nil); !errors.Is(err, ukai.ErrUnreachable) {
			t.Fatalf("dial: %v", err)
		}
		start = time.Now()
		_, err := a.Call(context.Background(), b.ID(), &Message{Kind: KindPing}, nil)
		if !errors.Is(err, ukai.ErrUnreachable) || !strings.Contains(err.Error(), "next try in") || time.Since(start) > 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		n.setLink(func(_, _ string, p []byte) []memDelivery { return []memDelivery{{time.Millisecond, p}} })
		time.Sleep(maxBackoff)
		if _, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); err != nil {
			t.Errorf("after the network has healed: %v", err)
		}
	})
}

func TestARestartedPeerIsNoticedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet(time.Millisecond)
		m := newMesh(t, n)
		stuck := func(*Request) {}
		identity, err := NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		same := func(c *Config) { c.Identity = identity }
		a, b := m.node("a", nil), m.node("b", stuck, same)
		c := a.Start(context.Background(), b.ID(), &Message{Kind: KindPing}, nil)
		time.Sleep(100 * time.Millisecond)
		// kill -9: nothing is said, and another process is on the port. The old endpoint hears nothing any more.
		n.listen("b")
		again := m.node("b", echo, same)
		start := time.Now()
		a.Start(context.Background(), b.ID(), &Message{Kind: KindPing}, nil)
		if _, err := c.Wait(context.Background()); !errors.Is(err, ukai.ErrUnreachable) || !strings.Contains(err.Error(), "restarted") {
			t.Errorf("call to the old life: %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("noticed after %v", took)
		}
		time.Sleep(2 * minBackoff)
		if _, err := a.Call(within(t, time.Second), again.ID(), &Message{Kind: KindPing}, nil); err != nil {
			t.Errorf("call to the new life: %v", err)
		}
	})
}

func TestAPeerWithoutAddressIsUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a := m.node("a", nil)
		if _, err := a.Call(context.Background(), ukai.NodeID{1}, &Message{Kind: KindPing}, nil); !errors.Is(err, ukai.ErrUnreachable) {
			t.Errorf("call: %v", err)
		}
		if _, err := a.DialNode(context.Background(), ukai.NodeID{1}, ProtoAdmin); !errors.Is(err, ukai.ErrUnreachable) {
			t.Errorf("stream: %v", err)
		}
		if _, err := a.Call(context.Background(), ukai.NodeID{}, &Message{Kind: KindPing}, nil); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("call to no node: %v", err)
		}
		for _, m := range []Message{{}, {Kind: 99}, {Kind: KindRead, Offset: -1}, {Kind: KindWrite, Payload: make([]byte, MaxPayload+1)}} {
			if _, err := a.Call(context.Background(), ukai.NodeID{1}, &m, nil); !errors.Is(err, ukai.ErrInvalid) {
				t.Errorf("%v at %d: %v", m.Kind, m.Offset, err)
			}
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		var held []*Request
		a, b := m.node("a", nil), m.node("b", func(r *Request) { held = append(held, r) })
		call := a.Start(context.Background(), b.ID(), &Message{Kind: KindPing}, nil)
		stream, err := a.DialStream(context.Background(), b.LocalAddr(), ProtoGossip)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		var accepting sync.WaitGroup
		accepting.Go(func() {
			if _, _, err := a.AcceptStream(context.Background(), ProtoAdmin); !errors.Is(err, ukai.ErrClosed) {
				t.Errorf("accept: %v", err)
			}
		})
		accepting.Go(func() {
			if _, _, err := a.ReadPacket(context.Background()); !errors.Is(err, ukai.ErrClosed) {
				t.Errorf("read packet: %v", err)
			}
		})
		synctest.Wait()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		accepting.Wait()
		if _, err := call.Wait(context.Background()); !errors.Is(err, ukai.ErrClosed) {
			t.Errorf("call under way: %v", err)
		}
		if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, ukai.ErrClosed) {
			t.Errorf("open stream: %v", err)
		}
		if _, err := a.Call(context.Background(), b.ID(), &Message{Kind: KindPing}, nil); !errors.Is(err, ukai.ErrClosed) {
			t.Errorf("call: %v", err)
		}
		if _, err := a.DialStream(context.Background(), b.LocalAddr(), ProtoGossip); !errors.Is(err, ukai.ErrClosed) {
			t.Errorf("dial: %v", err)
		}
		if err := a.WritePacket(nil, b.LocalAddr()); !errors.Is(err, ukai.ErrClosed) {
			t.Errorf("packet: %v", err)
		}
		held[0].Reply(Reply{}, nil) // of a connection that is gone
		if err := a.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
}

func TestCloseEndsADialUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a := m.node("a", nil)
		m.setAddr(ukai.NodeID{1}, memAddr("nobody"))
		call := a.Start(context.Background(), ukai.NodeID{1}, &Message{Kind: KindPing}, nil)
		synctest.Wait()
		start := time.Now()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if _, err := call.Wait(context.Background()); !errors.Is(err, ukai.ErrClosed) || time.Since(start) > 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// The caller gives up while half of the reply is there: Wait returns at once, nobody writes to the buffer after
// that, and the connection goes on.
func TestGivingUpInTheMiddleOfAReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet(time.Millisecond)
		m := newMesh(t, n)
		a, b := m.node("a", nil), m.node("b", echo)
		if _, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindRead, Count: 1 << 20}, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		var bytesLeft atomic.Int64 // then the way back is cut
		bytesLeft.Store(300 << 10)
		n.setLink(func(from, _ string, p []byte) []memDelivery {
			if from == "b" {
				if bytesLeft.Add(-int64(len(p))) < 0 {
					return nil
				}
			}
			return []memDelivery{{time.Millisecond, p}}
		})
		into := make([]byte, 1<<20)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := a.Call(ctx, b.ID(), &Message{Kind: KindRead, Count: 1 << 20}, into)
		if !errors.Is(err, ukai.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		if bytes.Equal(into[:1000], make([]byte, 1000)) {
			t.Fatal("nothing had arrived: the test does not test")
		}
		for i := range into {
			into[i] = 0xee
		}
		n.setLink(func(_, _ string, p []byte) []memDelivery { return []memDelivery{{time.Millisecond, p}} })
		for range 4 {
			again := make([]byte, 1<<20)
			r, err := a.Call(within(t, 5*time.Second), b.ID(), &Message{Kind: KindRead, Count: 1 << 20, Offset: 5}, again)
			if err != nil || !isPattern(r.Payload, 5) {
				t.Fatalf("next call: %v", err)
			}
		}
		for i := range into {
			if into[i] != 0xee {
				t.Fatalf("byte %d was written after Wait had returned", i)
			}
		}
		if n := a.Counters()["ukai_wire_calls_lost_total"]; n != 0 {
			t.Errorf("%d calls lost: the connection did not survive", n)
		}
		synctest.Wait()
		if g := a.Gauges(); g["ukai_wire_inflight_requests"] != 0 || g["ukai_wire_inflight_bytes"] != 0 {
			t.Errorf("still in the books: %v", g)
		}
	})
}

// With -race this finds anybody who touches a caller's buffers after Wait has returned.
func TestGivingUpRacesWithReplies(t *testing.T) {
	m := newMesh(t, nil)
	a, b := m.node("a", nil), m.node("b", echo)
	var wg sync.WaitGroup
	var done, gaveUp atomic.Int64
	for worker := range 8 {
		wg.Go(func() {
			size := []int{512, 4096, 40 << 10, 200 << 10}[worker%4]
			into, payload := make([]byte, size), make([]byte, size)
			for i := range 60 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.Int64N(int64(3*time.Millisecond))))
				fillPattern(payload, int64(i))
				var r Reply
				var err error
				if i%2 == 0 {
					r, err = a.Call(ctx, b.ID(), &Message{Kind: KindRead, Offset: int64(i), Count: uint32(size)}, into)
				} else {
					c := a.Start(ctx, b.ID(), &Message{Kind: KindWrite, Payload: payload}, into)
					clear(payload) // ours again
					r, err = c.Wait(ctx)
				}
				cancel()
				switch {
				case err == nil && !isPattern(r.Payload, int64(i)):
					t.Error("another reply's content")
				case err == nil:
					done.Add(1)
				case errors.Is(err, ukai.ErrTimeout):
					gaveUp.Add(1)
				default:
					t.Error(err)
				}
				clear(into)
			}
		})
	}
	wg.Wait()
	t.Logf("%d done, %d given up", done.Load(), gaveUp.Load())
	if _, err := a.Call(within(t, 10*time.Second), b.ID(), &Message{Kind: KindPing}, nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Connections are killed under running calls: each call ends, right or with ErrUnreachable.
func TestKillingConnectionsUnderCalls(t *testing.T) {
	m := newMesh(t, nil)
	a, b := m.node("a", nil), m.node("b", echo)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			size := []int{512, 4096, 200 << 10}[worker%3]
			into := make([]byte, size)
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := a.Call(within(t, 20*time.Second), b.ID(), &Message{Kind: KindRead, Offset: int64(worker), Count: uint32(size)}, into)
				if err == nil && !isPattern(r.Payload, int64(worker)) {
					t.Error("another reply's content")
				}
				if err != nil && !errors.Is(err, ukai.ErrUnreachable) {
					t.Error(err)
				}
				clear(into)
			}
		})
	}
	for i := range 20 {
		before := a.Counters()["ukai_wire_replies_total"]
		for deadline := time.Now().Add(10 * time.Second); a.Counters()["ukai_wire_replies_total"] < before+20; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no replies any more")
			}
		}
		if i%2 == 0 {
			a.Drop(b.ID())
			continue
		}
		for _, c := range b.open() {
			c.close(codeReset, "")
		}
	}
	close(stop)
	wg.Wait()
	if g := a.Gauges(); g["ukai_wire_inflight_requests"] != 0 || g["ukai_wire_inflight_bytes"] != 0 {
		t.Errorf("still in the books: %v", g)
	}
}

func TestAThousandCallsAtOnce(t *testing.T) {
	m := newMesh(t, nil)
	a := m.node("a", nil)
	b := m.node("b", func(r *Request) { go echo(r) })
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			payload := fmt.Appendf(nil, "call %d", i)
			r, err := a.Call(within(t, 20*time.Second), b.ID(), &Message{Kind: KindWrite, Payload: payload}, make([]byte, 20))
			if err != nil || !bytes.Equal(r.Payload, payload) {
				t.Errorf("call %d: %q, %v", i, r.Payload, err)
			}
		})
	}
	wg.Wait()
}

func TestStartWaitsAtTheBound(t *testing.T) {
	for _, bound := range []struct {
		name           string
		requests, size int
	}{{"requests", 4, 10}, {"bytes", 100, 10000}} {
		t.Run(bound.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, newMemNet(time.Millisecond))
				a := m.node("a", nil, func(c *Config) { c.MaxInflight = bound.requests; c.MaxInflightBytes = 4 * (10000 + headerSize) })
				held := make(chan *Request, 100)
				b := m.node("b", func(r *Request) { held <- r })
				write := &Message{Kind: KindWrite, Payload: make([]byte, bound.size)}
				for range 4 {
					a.Start(context.Background(), b.ID(), write, nil)
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				start := time.Now()
				c := a.Start(ctx, b.ID(), write, nil)
				if time.Since(start) != time.Second {
					t.Errorf("Start returned after %v", time.Since(start))
				}
				if _, err := c.Wait(context.Background()); !errors.Is(err, ukai.ErrTimeout) {
					t.Errorf("at the bound: %v", err)
				}
				// Another lane has bounds of its own: a heartbeat does not wait for writes.
				a.Start(ctx, b.ID(), &Message{Kind: KindHeartbeat}, nil)
				for range 5 {
					(<-held).Reply(Reply{}, nil)
				}
				time.Sleep(time.Second)
				if c := a.Start(context.Background(), b.ID(), write, nil); c.p == nil {
					t.Error("Start still waits after the replies")
				}
				(<-held).Reply(Reply{}, nil)
				time.Sleep(time.Second)
				if g := a.Gauges(); g["ukai_wire_inflight_requests"] != 0 || g["ukai_wire_waiting_requests"] != 0 {
					t.Errorf("still in the books: %v", g)
				}
			})
		})
	}
}

func TestAServerStopsReadingAtTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a := m.node("a", nil)
		held := make(chan *Request, 1000)
		b := m.node("b", func(r *Request) { held <- r }, func(c *Config) { c.MaxInflight = 7 })
		var calls []*Call
		for range 50 {
			calls = append(calls, a.Start(context.Background(), b.ID(), &Message{Kind: KindWrite, Payload: make([]byte, 4096)}, nil))
		}
		time.Sleep(time.Second)
		if len(held) != 7 {
			t.Errorf("%d requests served at a time, want 7", len(held))
		}
		a.Drop(b.ID()) // a new connection is no way round the bound
		for range 5 {
			a.Start(context.Background(), b.ID(), &Message{Kind: KindWrite}, nil)
		}
		time.Sleep(time.Minute)
		if len(held) != 7 {
			t.Errorf("%d requests served at a time after a reconnect, want 7", len(held))
		}
		for range 7 {
			(<-held).Reply(Reply{}, nil)
		}
		time.Sleep(time.Second)
		if len(held) == 0 {
			t.Error("nothing more was read after the replies")
		}
		for len(held) > 0 {
			(<-held).Reply(Reply{}, nil)
			time.Sleep(10 * time.Millisecond)
		}
		for _, c := range calls {
			if _, err := c.Wait(context.Background()); err != nil && !errors.Is(err, ukai.ErrUnreachable) {
				t.Error(err)
			}
		}
	})
}

func TestAChangedAddressIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		identity, err := NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		same := func(c *Config) { c.Identity = identity }
		held := make(chan *Request, 1)
		a, old := m.node("a", nil), m.node("old", func(r *Request) { held <- r }, same)
		call := a.Start(context.Background(), old.ID(), &Message{Kind: KindPing}, nil)
		time.Sleep(time.Second)
		fresh := m.node("fresh", echo, same)
		time.Sleep(2 * tidyPeriod)
		if _, err := a.Call(within(t, time.Second), old.ID(), &Message{Kind: KindPing}, nil); err != nil {
			t.Error(err)
		}
		if fresh.Counters()["ukai_wire_served_total"] != 1 {
			t.Error("the call went to the old address")
		}
		(<-held).Reply(Reply{}, nil) // what was under way may end
		if _, err := call.Wait(within(t, time.Second)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if n := old.Gauges()["ukai_wire_connections"]; n != 0 {
			t.Errorf("%d connections to the old address", n)
		}
	})
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a, b := m.node("a", nil), m.node("b", echo)
		for _, size := range []int{10, 100 << 10} {
			if _, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindWrite, Payload: make([]byte, size)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		s := a.Stats(b.ID())
		if !s.Connected || s.Connections != 2 || s.MinRTT < 2*time.Millisecond || s.MinRTT > 3*time.Millisecond || s.RTT < s.MinRTT || s.BytesSent < 100<<10 {
			t.Errorf("stats %+v", s)
		}
		if back := b.Stats(a.ID()); back.Connected || back.MinRTT < 2*time.Millisecond || back.Connections != 2 {
			t.Errorf("stats at the other end %+v", back)
		}
		time.Sleep(a.cfg.Linger + 2*tidyPeriod)
		if n := a.Gauges()["ukai_wire_connections"] + b.Gauges()["ukai_wire_connections"]; n != 0 {
			t.Errorf("%d ends of connections open", n)
		}
		if a.Counters()["ukai_wire_quic_sent_bytes_total"] < 100<<10 {
			t.Error("the traffic of closed connections is forgotten")
		}
		time.Sleep(peerMemory + 2*tidyPeriod)
		if n := a.Gauges()["ukai_wire_peers"]; n != 0 {
			t.Errorf("%d peers remembered", n)
		}
		if _, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindPing}, nil); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// Loss, duplication and reordering on the network are nothing that callers see.
func TestABadNetworkOnlyCostsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet(0)
		m := newMesh(t, n)
		a, b := m.node("a", nil), m.node("b", func(r *Request) { go echo(r) })
		var mu sync.Mutex
		rng := rand.New(rand.NewPCG(1, 2))
		n.setLink(func(_, _ string, p []byte) []memDelivery {
			mu.Lock()
			defer mu.Unlock()
			var out []memDelivery
			for range 1 + rng.IntN(20)/19 {
				if rng.IntN(100) > 0 {
					out = append(out, memDelivery{40*time.Millisecond + time.Duration(rng.IntN(int(time.Millisecond))), p})
				}
			}
			return out
		})
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for i := range 20 {
					size := []int{10, 4096, 300 << 10}[i%3]
					r, err := a.Call(within(t, time.Minute), b.ID(), &Message{Kind: KindRead, Count: uint32(size), Offset: int64(worker)}, make([]byte, size))
					if err != nil || !isPattern(r.Payload, int64(worker)) {
						t.Errorf("call: %v", err)
					}
				}
			})
		}
		wg.Wait()
	})
}

// A node that comes back dials its peers, for gossip at least. Those need not wait for what their last try has taught them.
func TestAPeerThatIsBackIsDialedAtOnce(t *testing.T) {
	for down := 10 * time.Second; down < 11*time.Second; down += 100 * time.Millisecond { // some are dialing then, some wait
		synctest.Test(t, func(t *testing.T) {
			n := newMemNet(time.Millisecond)
			m := newMesh(t, n)
			identity, err := NewIdentity()
			if err != nil {
				t.Fatal(err)
			}
			same := func(c *Config) { c.Identity = identity }
			a, b := m.node("a", nil), m.node("b", echo, same)
			reaches := func() bool {
				_, err := a.Call(within(t, 10*time.Second), b.ID(), &Message{Kind: KindPing}, nil)
				return err == nil
			}
			if !reaches() {
				t.Fatal("not reached at first")
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			gone := time.Now()
			var asking sync.WaitGroup
			asking.Go(func() {
				for !reaches() {
					time.Sleep(10 * time.Millisecond)
				}
			})
			time.Sleep(down - time.Since(gone))
			again := m.node("b", echo, same)
			s, err := again.DialStream(within(t, time.Second), a.LocalAddr(), ProtoGossip)
			if err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			asking.Wait()
			if took := time.Since(back); took > staleDial+100*time.Millisecond {
				t.Errorf("away for %v: reached again after %v", down, took)
			}
			_ = s.Close()
		})
	}
}
