package wire

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
)

func TestErrorsAreTheSameHereAndThere(t *testing.T) {
	holder := ukai.NodeID{1, 2, 3}
	full := &ukai.NodeError{Node: ukai.NodeID{4}, Name: "t2", Err: fmt.Errorf("%w: 12 bytes left", ukai.ErrNoSpace)}
	sent := []error{
		&ukai.FencedError{Epoch: ukai.NewEpoch(1, 12)},
		&ukai.HeldError{Node: holder, Name: "t1"},
		&ukai.HeldError{Node: holder},
		full,
		fmt.Errorf("disk vm1: %w", &ukai.NodeError{Name: "o1", Err: &ukai.FencedError{Epoch: 3}}),
		errors.New("something of no kind"),
		errors.New(strings.Repeat("long ", 2000)),
		fmt.Errorf("waiting: %w", context.DeadlineExceeded),
	}
	for code := uint16(1); ukai.Sentinel(code) != nil; code++ {
		sent = append(sent, fmt.Errorf("disk vm1: %w: code %d", ukai.Sentinel(code), code))
	}
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, newMemNet(time.Millisecond))
		a := m.node("a", nil)
		b := m.node("b", func(r *Request) { r.Reply(Reply{Epoch: 77, Payload: []byte("not sent")}, sent[r.Count]) })
		for i, want := range sent {
			r, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindSeal, Count: uint32(i)}, nil)
			if err == nil {
				t.Fatalf("%v: came as no error", want)
			}
			for code := uint16(1); ukai.Sentinel(code) != nil; code++ {
				s := ukai.Sentinel(code)
				if is := errors.Is(want, s); errors.Is(err, s) != is && !errors.Is(want, context.DeadlineExceeded) {
					t.Errorf("%v: errors.Is(%v) = %v after crossing the wire", want, s, !is)
				}
			}
			if text := want.Error(); len(text) <= maxDetailText && err.Error() != text {
				t.Errorf("text %q, want %q", err, text)
			}
			if len(err.Error()) > maxDetailText {
				t.Errorf("text of %d bytes", len(err.Error()))
			}
			if r.Epoch != 77 || r.Payload != nil {
				t.Errorf("with error %v: reply %+v", want, r)
			}
		}
		_, err := a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindSeal, Count: 0}, nil)
		if fenced, ok := errors.AsType[*ukai.FencedError](err); !ok || fenced.Epoch != ukai.NewEpoch(1, 12) {
			t.Errorf("fenced error came as %#v", err)
		}
		_, err = a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindSeal, Count: 1}, nil)
		if held, ok := errors.AsType[*ukai.HeldError](err); !ok || held.Node != holder || held.Name != "t1" {
			t.Errorf("held error came as %#v", err)
		}
		_, err = a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindSeal, Count: 3}, nil)
		if node, ok := errors.AsType[*ukai.NodeError](err); !ok || node.Node != full.Node || node.Name != "t2" || !errors.Is(node, ukai.ErrNoSpace) {
			t.Errorf("node error came as %#v", err)
		}
		_, err = a.Call(within(t, time.Second), b.ID(), &Message{Kind: KindSeal, Count: 7}, nil)
		if !errors.Is(err, ukai.ErrTimeout) {
			t.Errorf("the peer's expired context came as %v, want %v", err, ukai.ErrTimeout)
		}
	})
}

func FuzzDecodeDetail(f *testing.F) {
	f.Add(uint16(4), appendDetail(nil, &ukai.FencedError{Epoch: 5}))
	f.Add(uint16(9), appendDetail(nil, &ukai.HeldError{Name: "t1"}))
	f.Add(uint16(11), appendDetail(nil, &ukai.NodeError{Name: "t1", Err: ukai.ErrNoSpace}))
	f.Add(uint16(0xffff), []byte{7})
	f.Fuzz(func(t *testing.T, status uint16, b []byte) {
		if status == 0 || len(b) > maxDetail {
			return
		}
		remote, bad := parseDetail(status, b)
		if bad != nil {
			if !errors.Is(bad, ukai.ErrInvalid) {
				t.Fatal(bad)
			}
			return
		}
		again, bad := parseDetail(status, appendDetail(nil, remote))
		if bad != nil {
			t.Fatalf("%v does not survive a second hop: %v", remote, bad)
		}
		if s := ukai.Sentinel(status); s != nil && !errors.Is(again, s) {
			t.Fatalf("%v lost its kind %v", again, s)
		}
	})
}
