//go:build linux

package wan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func network(t *testing.T) *Network {
	t.Helper()
	if err := Supported(); err != nil {
		t.Skip(err)
	}
	n := New(fmt.Sprintf("wt%d", os.Getpid()), 1)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func host(t *testing.T, n *Network, name, dc string) *Host {
	t.Helper()
	h, err := n.AddHost(name, dc)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// dial measures a round trip: a refused connection takes one, and needs no server.
func dial(t *testing.T, from, to *Host, timeout time.Duration) (time.Duration, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	start := time.Now()
	out, err := from.Command(ctx, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/9", to.Addr)).CombinedOutput()
	took := time.Since(start)
	if strings.Contains(string(out), "refused") {
		return took, nil
	}
	return took, fmt.Errorf("%w: %s", err, out)
}

func TestHostsReachEachOtherAfterTheDelayOfTheirLink(t *testing.T) {
	n := network(t)
	a, b := host(t, n, "t1", "tokyo"), host(t, n, "o1", "osaka")
	n.SetBoth("tokyo", "osaka", Link{Delay: 100 * time.Millisecond})
	took, err := dial(t, a, b, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if took < 200*time.Millisecond {
		t.Errorf("a round trip took %v over a link of 100 ms each way", took)
	}
	if n.Sent("t1", "o1") == 0 || n.Sent("o1", "t1") == 0 {
		t.Error("no bytes were counted")
	}
}

func TestACutOfOneDirectionStopsTheConversation(t *testing.T) {
	n := network(t)
	a, b := host(t, n, "t1", "tokyo"), host(t, n, "o1", "osaka")
	n.SetLink("osaka", "tokyo", Link{Down: true})
	if _, err := dial(t, a, b, time.Second); err == nil {
		t.Error("connected although nothing comes back from osaka")
	}
	n.SetLink("osaka", "tokyo", Link{})
	if _, err := dial(t, a, b, 10*time.Second); err != nil {
		t.Errorf("after the cut was mended: %v", err)
	}
}

// udp opens a socket inside a host's namespace.
func udp(t *testing.T, h *Host) *net.UDPConn {
	t.Helper()
	type result struct {
		conn *net.UDPConn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		ns, err := os.Open("/run/netns/" + h.Namespace)
		if err == nil {
			err = errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), ns.Close())
		}
		if err != nil {
			done <- result{nil, err}
			return
		}
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: h.Addr.AsSlice(), Port: 9000})
		done <- result{conn, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	return r.conn
}

func TestPacketsAreLostDuplicatedReorderedAndDelayedByChance(t *testing.T) {
	n := network(t)
	a, b := host(t, n, "t1", "tokyo"), host(t, n, "o1", "osaka")
	n.SetLink("tokyo", "osaka", Link{Delay: 5 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.1, Duplicate: 0.1, Reorder: 0.1})
	from, to := udp(t, a), udp(t, b)
	const packets = 1200
	seen := map[uint32]int{}
	reordered, last := 0, uint32(0)
	buf := make([]byte, 64)
	receive := func(wait time.Duration) bool {
		if err := to.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := to.ReadFromUDPAddrPort(buf); err != nil {
			return false
		}
		i := binary.BigEndian.Uint32(buf)
		if seen[i]++; i < last {
			reordered++
		}
		last = max(last, i)
		return true
	}
	for i := range uint32(packets) {
		binary.BigEndian.PutUint32(buf, i)
		if _, err := from.WriteToUDPAddrPort(buf, netip.AddrPortFrom(b.Addr, 9000)); err != nil {
			t.Fatal(err)
		}
		for receive(time.Millisecond) { //nolint:revive // it takes in what has come
		}
	}
	for receive(time.Second) { //nolint:revive // and the rest
	}
	twice := 0
	for _, k := range seen {
		if k == 2 {
			twice++
		}
	}
	if lost := packets - len(seen); lost < packets/20 || lost > packets/5 || twice < packets/20 || twice > packets/5 || reordered < packets/50 {
		t.Errorf("of %d packets %d were lost, %d came twice, %d came late", packets, lost, twice, reordered)
	}
}
