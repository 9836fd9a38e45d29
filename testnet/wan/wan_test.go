//go:build linux

package wan

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
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
