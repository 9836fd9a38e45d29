package wire

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
)

func TestCallsCarryEveryField(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		var got Message
		a := m.node("a", nil)
		b := m.node("b", func(r *Request) {
			got = r.Message
			got.Payload = bytes.Clone(r.Payload)
			if r.From != a.ID() {
				t.Errorf("from %v, want %v", r.From, a.ID())
			}
			r.Reply(Reply{Epoch: 9, Stamp: ukai.BlockStamp{Epoch: 8, Check: 7}, Offset: 6, Count: 5, Payload: []byte("pong")}, nil)
		})
		want := Message{Kind: KindWrite, Disk: ukai.NewDiskID(), Replica: ukai.NewReplicaID(), Epoch: ukai.NewEpoch(3, 4), Session: 1 << 31,
			Layer: 65535, Stamp: ukai.BlockStamp{Epoch: 1, Check: 2}, Offset: ukai.MaxDiskSize, Count: 1<<32 - 1, Payload: []byte("ping")}
		into := make([]byte, 16)
		r, err := a.Call(within(t, time.Second), b.ID(), &want, into)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Payload, want.Payload) {
			t.Errorf("payload %q, want %q", got.Payload, want.Payload)
		}
		got.Payload, want.Payload = nil, nil
		if got.Disk != want.Disk || got.Kind != want.Kind || got.Replica != want.Replica || got.Epoch != want.Epoch || got.Session != want.Session ||
			got.Layer != want.Layer || got.Stamp != want.Stamp || got.Offset != want.Offset || got.Count != want.Count {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if r.Epoch != 9 || r.Stamp != (ukai.BlockStamp{Epoch: 8, Check: 7}) || r.Offset != 6 || r.Count != 5 || string(r.Payload) != "pong" {
			t.Errorf("reply %+v", r)
		}
		if &r.Payload[0] != &into[0] {
			t.Error("the reply was not read into the caller's buffer")
		}
	})
}

func TestEverySizeSurvives(t *testing.T) {
	for _, where := range []string{"memory", "loopback"} {
		t.Run(where, func(t *testing.T) {
			run := func(t *testing.T, n *memNet) {
				m := newMesh(t, n)
				a, b := m.node("a", nil), m.node("b", echo)
				for _, size := range []int{0, 1, 512, 4096, smallTransfer, smallTransfer + 1, 1 << 20, MaxPayload} {
					out := make([]byte, size)
					fillPattern(out, 3)
					r, err := a.Call(within(t, 10*time.Second), b.ID(), &Message{Kind: KindWrite, Payload: out}, make([]byte, size))
					if err != nil || !bytes.Equal(r.Payload, out) {
						t.Fatalf("write of %d: %v", size, err)
					}
					r, err = a.Call(within(t, 10*time.Second), b.ID(), &Message{Kind: KindRead, Offset: 99, Count: uint32(size)}, make([]byte, size))
					if err != nil || len(r.Payload) != size || !isPattern(r.Payload, 99) {
						t.Fatalf("read of %d: %v", size, err)
					}
				}
			}
			if where == "memory" {
				synctest.Test(t, func(t *testing.T) { run(t, newMemNet(100*time.Microsecond)) })
			} else {
				run(t, nil)
			}
		})
	}
}
