package wire

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ukai"
)

func TestPacketsArriveSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet(time.Millisecond)
		m := newMesh(t, n)
		a, b := m.node("a", nil), m.node("b", nil)
		secret := bytes.Repeat([]byte("gossip"), 200)
		n.setLink(func(_, _ string, p []byte) []memDelivery {
			if bytes.Contains(p, []byte("gossip")) || p[0] != 0 {
				t.Errorf("on the network in the clear: % .20x", p)
			}
			return []memDelivery{{time.Millisecond, p}}
		})
		for _, size := range []int{0, 1, len(secret)} {
			if err := a.WritePacket(secret[:size], b.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			got, from, err := b.ReadPacket(within(t, time.Second))
			if err != nil || !bytes.Equal(got, secret[:size]) || from.String() != "a" {
				t.Fatalf("%d bytes from %v: %v", len(got), from, err)
			}
		}
		if err := a.WritePacket(make([]byte, MaxPacket+1), b.LocalAddr()); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("packet too large: %v", err)
		}
		if err := a.WritePacket(nil, nil); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("no address: %v", err)
		}
		if _, _, err := b.ReadPacket(within(t, time.Second)); !errors.Is(err, ukai.ErrTimeout) {
			t.Errorf("nothing to read: %v", err)
		}
	})
}

func TestLargestPacketCrossesARealSocket(t *testing.T) {
	m := newMesh(t, nil)
	a, b := m.node("a", nil), m.node("b", nil)
	want := bytes.Repeat([]byte{7}, MaxPacket)
	type other struct{ net.Addr } // an address of a foreign type is as good as its text
	if err := a.WritePacket(want, other{b.LocalAddr()}); err != nil {
		t.Fatal(err)
	}
	got, _, err := b.ReadPacket(within(t, 5*time.Second))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes: %v", len(got), err)
	}
}

// What anybody can send to the port has no effect but on counters, and one line in the log.
func TestGarbagePacketsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet(time.Millisecond)
		m := newMesh(t, n)
		var log logLines
		a, b := m.node("a", nil), m.node("b", echo, log.logTo)
		attacker := n.listen("attacker")
		var recorded []byte
		n.setLink(func(from, _ string, p []byte) []memDelivery {
			if from == "a" && p[0] == 0 {
				recorded = bytes.Clone(p)
			}
			return []memDelivery{{time.Millisecond, p}}
		})
		if err := a.WritePacket([]byte("once"), b.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.ReadPacket(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		send := func(p []byte) {
			if _, err := attacker.WriteTo(p, b.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		expect := func(counter string, want uint64) {
			t.Helper()
			time.Sleep(10 * time.Millisecond)
			if got := b.Counters()[counter]; got != want {
				t.Errorf("%s = %d, want %d", counter, got, want)
			}
		}
		send(recorded)
		send(recorded)
		expect("ukai_wire_packets_replayed_total", 2)

		for bit := range 8 * len(recorded) {
			p := bytes.Clone(recorded)
			p[bit/8] ^= 1 << (bit % 8)
			if p[0]&0xc0 != 0 {
				continue // QUIC's
			}
			send(p)
			time.Sleep(2 * time.Millisecond) // QUIC queues 32 of them
		}
		flips := uint64(8*len(recorded) - 2)
		time.Sleep(10 * time.Millisecond)
		c := b.Counters()
		if got := c["ukai_wire_packets_garbage_total"] + c["ukai_wire_packets_other_key_total"]; got != flips {
			t.Errorf("%d changed packets refused, want %d", got, flips)
		}
		if got := c["ukai_wire_packets_other_key_total"]; got != 32 {
			t.Errorf("%d packets of another key, want one for each bit of the key id", got)
		}
		before := c["ukai_wire_packets_garbage_total"]
		for _, p := range [][]byte{{0}, {0, 1}, make([]byte, 1452), recorded[:packetOverhead-1]} {
			send(p)
		}
		expect("ukai_wire_packets_garbage_total", before+4)
		for _, first := range []byte{0x40, 0x7f, 0x80, 0xc0, 0xff} { // as QUIC, of no connection and of no version
			send(bytes.Repeat([]byte{first}, 1200))
		}
		time.Sleep(10 * time.Millisecond)
		if got := b.Counters()["ukai_wire_packets_garbage_total"]; got <= before+4 {
			t.Error("what QUIC drops is not counted")
		}

		if lines := log.count("refused packet"); lines != 1 {
			t.Errorf("%d lines in the log:\n%s", lines, &log.out)
		}
		time.Sleep(complaintPeriod)
		send([]byte{0, 0})
		time.Sleep(10 * time.Millisecond)
		if lines := log.count("refused packet"); lines != 2 {
			t.Errorf("%d lines in the log after a minute", lines)
		}
		if _, _, err := b.ReadPacket(within(t, time.Millisecond)); err == nil {
			t.Error("a refused packet was delivered")
		}
		if err := a.WritePacket([]byte("still here"), b.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if got, _, err := b.ReadPacket(within(t, time.Second)); err != nil || string(got) != "still here" {
			t.Errorf("%q: %v", got, err)
		}
	})
}

func TestUnreadPacketsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a, b := m.node("a", nil), m.node("b", nil)
		for range maxQueuedPackets + 10 {
			if err := a.WritePacket([]byte("hi"), b.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Millisecond)
		}
		if got := b.Counters()["ukai_wire_packets_dropped_total"]; got != 10 {
			t.Errorf("%d dropped, want 10", got)
		}
	})
}

// The window is compared with a plain set of what was seen.
func TestEveryCounterPassesOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newReplayFilter(4)
		seen := map[uint64]bool{}
		var newest uint64
		at := rapid.Uint64Range(1, 5000).Draw(t, "start")
		for range rapid.IntRange(1, 300).Draw(t, "packets") {
			c := at + uint64(rapid.IntRange(0, replayWindow*2).Draw(t, "ahead"))
			if rapid.Bool().Draw(t, "behind") {
				c = at - min(at, uint64(rapid.IntRange(0, replayWindow*2).Draw(t, "back")))
			}
			want := c > 0 && !seen[c] && c+replayWindow > newest
			if got := f.fresh(senderID{1}, c); got != want {
				t.Fatalf("counter %d after newest %d: passed %v, want %v", c, newest, got, want)
			}
			seen[c] = true
			newest = max(newest, c)
			at = newest
		}
	})
}

func TestSendersRememberedAreBounded(t *testing.T) {
	f := newReplayFilter(8)
	for round := range 3 {
		for i := range byte(20) {
			if !f.fresh(senderID{i + 1}, uint64(round+1)) {
				t.Fatalf("sender %d, round %d refused", i, round)
			}
			if !f.fresh(senderID{99}, uint64(round)*20+uint64(i)+1) {
				t.Fatal("the busiest sender was refused")
			}
			if len(f.senders) > 8 {
				t.Fatalf("%d senders remembered", len(f.senders))
			}
		}
	}
	if f.fresh(senderID{99}, 5) {
		t.Error("the busiest sender was forgotten")
	}
}

func FuzzOpenPacket(f *testing.F) {
	identity, err := NewIdentity()
	if err != nil {
		f.Fatal(err)
	}
	ring, err := newKeyring([]MeshKey{{1}, {2}}, identity)
	if err != nil {
		f.Fatal(err)
	}
	good := ring.seal(nil, senderID{3}, 4, []byte("hello"))
	f.Add(good)
	f.Add([]byte{0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		payload, sender, counter, err := ring.open(b)
		if err != nil {
			return
		}
		if !bytes.Equal(b, good) || string(payload) != "hello" || sender != (senderID{3}) || counter != 4 {
			t.Fatalf("forged: % x", b)
		}
	})
}
