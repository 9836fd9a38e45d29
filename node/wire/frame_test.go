package wire

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"ukai"
)

func anyHeader(t *rapid.T, reply bool) header {
	h := header{
		kind: Kind(rapid.Uint8Range(1, 255).Draw(t, "kind")), reply: reply,
		id:    rapid.Uint64Range(1, ^uint64(0)).Draw(t, "id"),
		epoch: ukai.Epoch(rapid.Uint64().Draw(t, "epoch")),
		stamp: ukai.BlockStamp{Epoch: ukai.Epoch(rapid.Uint64().Draw(t, "stamp epoch")), Check: rapid.Uint32().Draw(t, "check")},
		count: rapid.Uint32().Draw(t, "count"), offset: rapid.Int64Range(0, ukai.MaxDiskSize).Draw(t, "offset"),
	}
	if reply {
		h.status = rapid.Uint16().Draw(t, "status")
		return h
	}
	h.layer, h.session = rapid.Uint16().Draw(t, "layer"), rapid.Uint32().Draw(t, "session")
	h.replica = ukai.ReplicaID(rapid.Uint64().Draw(t, "replica"))
	copy(h.disk[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "disk"))
	return h
}

func TestHeadersComeBackAsTheyWent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyHeader(t, rapid.Bool().Draw(t, "reply"))
		rest := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "rest")
		var b [headerSize]byte
		want.put(b[:], rest)
		var got header
		if err := got.parse(b[:]); err != nil {
			t.Fatal(err)
		}
		if err := got.verify(rest); err != nil {
			t.Fatal(err)
		}
		want.size, want.crc = len(rest), castagnoli(rest)
		if got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	})
}

func TestEveryBitFlipIsNoticed(t *testing.T) {
	rest := []byte("what follows the header")
	h := header{kind: KindWrite, id: 7, offset: 4096, epoch: 3}
	frame := make([]byte, headerSize+len(rest))
	copy(frame[headerSize:], rest)
	h.put(frame, frame[headerSize:])
	for bit := range 8 * len(frame) {
		b := bytes.Clone(frame)
		b[bit/8] ^= 1 << (bit % 8)
		var got header
		err := got.parse(b)
		if err == nil {
			err = got.verify(b[headerSize:])
		}
		if !errors.Is(err, ukai.ErrCorrupt) {
			t.Fatalf("bit %d flipped: %v, want %v", bit, err, ukai.ErrCorrupt)
		}
	}
}

// reseal makes b's header checksum right again after a test has changed it.
func reseal(b []byte) []byte {
	sum := castagnoli(b[:84])
	b[84], b[85], b[86], b[87] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	return b
}

func TestFieldsOutOfBoundsAreRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b []byte)
		reply  bool
		want   error
	}{
		{"payload too large", func(b []byte) { b[0], b[1], b[2], b[3] = 0, 0x11, 0, 1 }, false, ukai.ErrInvalid},
		{"largest size", func(b []byte) { b[0], b[1], b[2], b[3] = 255, 255, 255, 255 }, false, ukai.ErrInvalid},
		{"detail too large", func(b []byte) { b[2], b[3], b[7] = 16, 1, 1 }, true, ukai.ErrInvalid},
		{"version", func(b []byte) { b[4] = 2 }, false, ukai.ErrVersion},
		{"kind 0", func(b []byte) { b[5] = 0 }, false, ukai.ErrInvalid},
		{"status in a request", func(b []byte) { b[7] = 1 }, false, ukai.ErrInvalid},
		{"unknown flag", func(b []byte) { b[8] |= 2 }, false, ukai.ErrInvalid},
		{"byte that is zero", func(b []byte) { b[9] = 1 }, false, ukai.ErrInvalid},
		{"id 0", func(b []byte) { b[23] = 0 }, false, ukai.ErrInvalid},
		{"offset above any disk", func(b []byte) { b[73] = 0x40; b[79] = 1 }, false, ukai.ErrInvalid},
		{"negative offset", func(b []byte) { b[72] = 0x80 }, false, ukai.ErrInvalid},
		{"reply with a layer", func(b []byte) { b[11] = 1 }, true, ukai.ErrInvalid},
		{"reply with a session", func(b []byte) { b[15] = 1 }, true, ukai.ErrInvalid},
		{"reply with a disk", func(b []byte) { b[30] = 1 }, true, ukai.ErrInvalid},
		{"reply with a replica", func(b []byte) { b[47] = 1 }, true, ukai.ErrInvalid},
	} {
		h := header{kind: KindWrite, id: 7, reply: c.reply}
		var b [headerSize]byte
		h.put(b[:], nil)
		c.change(b[:])
		var got header
		if err := got.parse(reseal(b[:])); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// FuzzDecodeFrame feeds the decoder with frames whose checksums hold, as a peer with a fault would send them.
func FuzzDecodeFrame(f *testing.F) {
	h := requestHeader(1, &Message{Kind: KindWrite, Disk: ukai.DiskID{1}, Offset: 4096})
	seed := make([]byte, headerSize+5)
	copy(seed[headerSize:], "hello")
	h.put(seed, seed[headerSize:])
	f.Add(seed, true)
	f.Add(seed, false)
	detail := appendDetail(nil, &ukai.NodeError{Name: "t1", Err: &ukai.FencedError{Epoch: 12}})
	h = replyHeader(2, KindWrite, ukai.Code(ukai.ErrFenced), &Reply{Epoch: 12})
	seed = append(make([]byte, headerSize), detail...)
	h.put(seed, detail)
	f.Add(seed, true)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if len(b) < headerSize {
			return
		}
		b = bytes.Clone(b)
		rest := b[headerSize:]
		if fix {
			size, sum := uint32(len(rest)), castagnoli(rest)
			b[0], b[1], b[2], b[3] = byte(size>>24), byte(size>>16), byte(size>>8), byte(size)
			b[80], b[81], b[82], b[83] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
			reseal(b)
		}
		var h header
		if h.parse(b) != nil {
			return
		}
		if h.size > MaxPayload || h.offset < 0 || h.offset > ukai.MaxDiskSize || h.id == 0 || h.kind == 0 {
			t.Fatalf("out of bounds: %+v", h)
		}
		if h.size != len(rest) || h.verify(rest) != nil {
			return
		}
		again := make([]byte, headerSize)
		h.put(again, rest)
		if !bytes.Equal(again, b[:headerSize]) {
			t.Fatalf("% x\nencodes again as\n% x", b[:headerSize], again)
		}
		if h.status != 0 {
			if remote, bad := parseDetail(h.status, rest); bad == nil && remote.Error() == "" {
				t.Fatal("error without text")
			}
		}
	})
}

func TestLanesSeparateSmallFromLarge(t *testing.T) {
	for _, c := range []struct {
		m    Message
		into int
		want lane
	}{
		{Message{Kind: KindHeartbeat}, 100, laneControl},
		{Message{Kind: KindFlush}, 0, laneControl},
		{Message{Kind: KindWrite, Payload: make([]byte, 4096)}, 0, laneWrite},
		{Message{Kind: KindDiscard}, 0, laneWrite},
		{Message{Kind: KindRead}, 4096, laneRead},
		{Message{Kind: KindRead}, smallTransfer + 1, laneBulk},
		{Message{Kind: KindWrite, Payload: make([]byte, smallTransfer+1)}, 0, laneBulk},
	} {
		if got := c.m.lane(c.into); got != c.want {
			t.Errorf("%v of %d into %d travels in %v, want %v", c.m.Kind, len(c.m.Payload), c.into, got, c.want)
		}
	}
}

func BenchmarkFrame4K(b *testing.B) {
	frame := make([]byte, headerSize+4096)
	for i := range frame {
		frame[i] = byte(rand.Uint32())
	}
	h := header{kind: KindWrite, id: 7}
	b.ReportAllocs()
	for b.Loop() {
		h.put(frame, frame[headerSize:])
		var got header
		if got.parse(frame) != nil || got.verify(frame[headerSize:]) != nil {
			b.Fatal("does not hold")
		}
	}
}
