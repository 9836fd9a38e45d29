package gossip

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt"
)

// Two catalogs that have anything in common, or nothing, are equal after one exchange.
func TestAnExchangeMakesCatalogsEqual(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		net := newNetwork(t)
		net.delay = func(netip.AddrPort, netip.AddrPort) time.Duration { return 0 }
		net.at[addrOf(1, 1)], net.at[addrOf(1, 2)] = &endpoint{}, &endpoint{}
		a, b := bare(t, ukai.NodeID{1}), bare(t, ukai.NodeID{2})
		for i := range rapid.IntRange(0, 60).Draw(r, "settings") {
			name, value := fmt.Sprintf("s-%d", i), fmt.Sprint(rapid.IntRange(0, 3).Draw(r, "value"))
			set := func(m *Mesh, value string) {
				err := m.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
					return c.SetSetting(name, &value, stamp())
				})
				if err != nil {
					r.Fatal(err)
				}
			}
			switch rapid.IntRange(0, 3).Draw(r, "where") {
			case 0:
				set(a, value)
			case 1:
				set(b, value)
			case 2:
				set(a, value)
				set(b, value+"b")
			case 3: // the same in both
				set(a, value)
				d := crdt.Delta{}
				a.View(func(c *crdt.Catalog) { d = c.Extract([]crdt.Key{crdt.SettingKey(name)}) })
				b.absorb(d, false)
			}
		}
		there, back := newPipe(net, addrOf(1, 1), addrOf(1, 2)), newPipe(net, addrOf(1, 2), addrOf(1, 1))
		served := make(chan error, 1)
		server := &conn{in: there, out: back, local: addrOf(1, 2), remote: addrOf(1, 1)}
		go func() { served <- b.answer(server) }()
		x, err := a.greetOn(&conn{in: back, out: there, local: addrOf(1, 1), remote: addrOf(1, 2)})
		if err != nil {
			r.Fatal(err)
		}
		if err := x.reconcile(); err != nil {
			r.Fatal(err)
		}
		x.close()
		if err := <-served; err != nil {
			r.Fatal(err)
		}
		if a.catalog.Digest() != b.catalog.Digest() || a.roots.now != b.roots.now {
			r.Error("digests differ after an exchange")
		}
	})
}

func TestRootsOfTheLastMomentAreKnown(t *testing.T) {
	var r roots
	now := time.Unix(1000, 0)
	for i := range uint64(200) {
		r.set(i+1, now.Add(time.Duration(i)*10*time.Millisecond))
	}
	end := now.Add(2 * time.Second)
	for root, want := range map[uint64]bool{200: true, 199: true, 150: true, 100: false, 1: false, 999: false} {
		if got := r.recent(root, end); got != want {
			t.Errorf("root %d: recent %v, want %v", root, got, want)
		}
	}
	if r.recent(199, end.Add(time.Minute)) {
		t.Error("an old root is recent")
	}
	if !r.recent(200, end.Add(time.Hour)) {
		t.Error("the root is not recent")
	}
}

func TestQueuedChangesOfOneEntryAreJoined(t *testing.T) {
	m := bare(t, ukai.NodeID{1})
	id := ukai.NodeID{1}
	for _, k := range []string{"a", "b", "c"} {
		must(t, m.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
			v := "x"
			return c.SetLabel(id, k, &v, stamp())
		}))
	}
	other := bare(t, ukai.NodeID{2})
	msgs := m.queue.GetBroadcasts(3, 1100)
	if len(msgs) != 1 {
		t.Fatalf("%d messages for one entry", len(msgs))
	}
	must(t, other.take(msgs[0]))
	n, ok := other.catalogNode(id)
	if !ok || len(n.LabelSet()) != 3 || n.Info.Name != "n" {
		t.Errorf("one of the changes is missing: %+v", n)
	}
	for len(m.queue.GetBroadcasts(3, 1100)) > 0 {
	}
	if len(m.queued) != 0 {
		t.Errorf("%d entries are taken for queued", len(m.queued))
	}
}

func TestTheQueueIsBounded(t *testing.T) {
	m := bare(t, ukai.NodeID{1})
	for i := range maxQueued + 500 {
		must(t, m.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
			v := "x"
			return c.SetSetting(fmt.Sprintf("s-%d", i), &v, stamp())
		}))
	}
	if n := m.queue.NumQueued(); n > maxQueued || len(m.queued) > maxQueued {
		t.Errorf("%d messages, %d entries queued, limit %d", n, len(m.queued), maxQueued)
	}
}

func TestP99OfAWindow(t *testing.T) {
	var l link
	if _, _, ok := l.estimate(); ok {
		t.Error("an estimate before the first sample")
	}
	l.observe(time.Millisecond)
	if ewma, p99, ok := l.estimate(); !ok || ewma != time.Millisecond || p99 != time.Millisecond {
		t.Errorf("after one sample: %v %v", ewma, p99)
	}
	for i := range 10 * rttWindow {
		l.observe(time.Duration(i%rttWindow+1) * time.Millisecond)
	}
	if _, p99, _ := l.estimate(); p99 != 127*time.Millisecond {
		t.Errorf("p99 %v of 1 to 128 ms", p99)
	}
	for range 2 * rttWindow {
		l.observe(time.Millisecond)
	}
	if _, p99, _ := l.estimate(); p99 > 2*time.Millisecond {
		t.Errorf("old samples stay: p99 %v", p99)
	}
}

func TestWarningsAreRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		q := newQuietLog(slog.New(slog.NewTextHandler(&out, nil)))
		for i := range 100 {
			q.warn("refused", "from", "a", "number", i)
			q.warn("refused", "from", "b", "number", i)
		}
		if n := strings.Count(out.String(), "\n"); n != 2 {
			t.Errorf("%d lines, want one per matter", n)
		}
		time.Sleep(logEvery)
		q.warn("refused", "from", "a")
		if n := strings.Count(out.String(), "\n"); n != 3 {
			t.Errorf("%d lines a minute later", n)
		}
		for i := range 10 * maxMatters {
			q.allow(fmt.Sprint(i))
		}
		if len(q.last) > maxMatters {
			t.Errorf("%d matters are kept", len(q.last))
		}
	})
}

func TestMembershipLinesBecomeRecords(t *testing.T) {
	var out bytes.Buffer
	w := membershipLog{newQuietLog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))}
	for line, want := range map[string]string{
		"[ERR] memberlist: Push/Pull with x failed: y\n": "level=WARN msg=\"membership: Push/Pull with x failed: y\"",
		"[DEBUG] memberlist: Stream connection\n":        "level=DEBUG msg=\"membership: Stream connection\"",
		"[INFO] memberlist: Suspect x has failed\n":      "level=INFO msg=\"membership: Suspect x has failed\"",
		"something else\n":                               "level=DEBUG msg=\"membership: something else\"",
	} {
		out.Reset()
		if n, err := w.Write([]byte(line)); err != nil || n != len(line) {
			t.Errorf("%q: %d %v", line, n, err)
		}
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q became %q", line, out.String())
		}
	}
}
