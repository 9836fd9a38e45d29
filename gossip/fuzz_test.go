package gossip

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/crdt/codec"
)

// bare returns a mesh with a catalog and nothing running.
func bare(t testing.TB, id ukai.NodeID) *Mesh {
	t.Helper()
	cfg := Config{Transport: &endpoint{addr: addrOf(1, 1)}, ID: id, Info: crdt.NodeInfo{Name: "n"}}
	if err := check(&cfg); err != nil {
		t.Fatal(err)
	}
	m, err := newMesh(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.advertise = addrOf(1, 1)
	if err := m.load(); err != nil {
		t.Fatal(err)
	}
	m.membershipConfig()
	return m
}

// conversation is a net.Conn whose peer has said all it will say.
type conversation struct {
	net.Conn
	io.Reader
	said bytes.Buffer
}

func (c *conversation) Read(p []byte) (int, error)       { return c.Reader.Read(p) }
func (c *conversation) Write(p []byte) (int, error)      { return c.said.Write(p) }
func (c *conversation) Close() error                     { return nil }
func (c *conversation) RemoteAddr() net.Addr             { return net.UDPAddrFromAddrPort(addrOf(1, 2)) }
func (c *conversation) SetReadDeadline(time.Time) error  { return nil }
func (c *conversation) SetWriteDeadline(time.Time) error { return nil }

func frames(t testing.TB, list ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, f := range list {
		var k frameKind
		switch f.(type) {
		case hello:
			k = frameHello
		case welcome:
			k = frameWelcome
		case digestFrame:
			k = frameDigest
		case bucketsFrame:
			k = frameList
		case versionsFrame:
			k = frameVersions
		case wantFrame:
			k = frameWant
		case deltaFrame:
			k = frameDelta
		case byeFrame:
			k = frameBye
		}
		if err := writeFrame(&b, k, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func settingDelta(t testing.TB, name, value string) []byte {
	t.Helper()
	c := crdt.NewCatalog()
	d, err := c.SetSetting(name, &value, crdt.Stamp{Wall: 1, Node: ukai.NodeID{7}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzServe(f *testing.F) {
	hi := hello{Protocol: protocol, From: ukai.NodeID{2}, Wall: 1}
	numbers := bucketsFrame{Numbers: []uint16{0, 1, 1023}}
	f.Add(frames(f, hi, byeFrame{}))
	f.Add(frames(f, hi, digestFrame{Digest: make([]byte, digestBytes)}, numbers, wantFrame{Keys: []crdt.Key{crdt.NodeKey(ukai.NodeID{1}), crdt.SettingKey("a")}}, byeFrame{}))
	f.Add(frames(f, hi, deltaFrame{Delta: settingDelta(f, "a", "1")}, byeFrame{}))
	f.Add(frames(f, digestFrame{Digest: make([]byte, digestBytes)}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := bare(t, ukai.NodeID{1})
		c := &conversation{Reader: bytes.NewReader(b)}
		before := m.count.messagesRefused.Load()
		err := m.answer(c)
		m.serve(&conversation{Reader: bytes.NewReader(b)})
		if errors.Is(err, ukai.ErrCorrupt) && m.count.messagesRefused.Load() == before {
			t.Error("a refusal was not counted")
		}
		if c.said.Len() > 100*len(b)+16<<10 {
			t.Errorf("%d bytes answered to %d", c.said.Len(), len(b))
		}
		if n, ok := m.catalogNode(m.id); !ok || n.Info.Name == "" {
			t.Error("a peer changed what this node says of itself")
		}
	})
}

// FuzzAsk lets a mesh ask a peer that answers anything.
func FuzzAsk(f *testing.F) {
	hi := welcome{Protocol: protocol, From: ukai.NodeID{2}, Wall: 1, Root: 5, Boot: 1, Seq: 1, Seen: "1.2.3.4:5"}
	differing := frames(f, bucketsFrame{Numbers: []uint16{uint16(crdt.SettingKey("a").Bucket()), 7}})
	differing[4] = byte(frameDiffering)
	all := bytes.Join([][]byte{
		frames(f, hi), differing, frames(f, versionsFrame{Items: []crdt.KeyVersion{{Key: crdt.SettingKey("a"), Version: 3}}}),
		frames(f, deltaFrame{Delta: settingDelta(f, "a", "1")}, byeFrame{Changed: 1}),
	}, nil)
	f.Add(all)
	f.Add(frames(f, hi))
	f.Add(frames(f, hello{Protocol: protocol, From: ukai.NodeID{2}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := bare(t, ukai.NodeID{1})
		x, err := m.greetOn(&conversation{Reader: bytes.NewReader(b)})
		if err != nil {
			return
		}
		defer x.close()
		err = x.reconcile()
		if bytes.Equal(b, all) {
			v := ""
			m.View(func(c *crdt.Catalog) { v, _ = c.Setting("a") })
			if err != nil || v != "1" {
				t.Errorf("a correct exchange: %q, %v", v, err)
			}
		}
	})
}

func FuzzTake(f *testing.F) {
	f.Add(append([]byte{packetDelta}, settingDelta(f, "a", "1")...))
	a, err := codec.Marshal(announcement{From: ukai.NodeID{2}, Version: crdt.KeyVersion{Key: crdt.DiskKey(ukai.DiskID{3}), Version: 4}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte{packetAnnounce}, a...))
	f.Add(append([]byte{packetRoot}, make([]byte, 24)...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := bare(t, ukai.NodeID{1})
		was := bytes.Clone(b)
		err := m.take(b)
		if !bytes.Equal(b, was) {
			t.Error("the message was changed")
		}
		if err != nil && !errors.Is(err, ukai.ErrCorrupt) && !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("untyped error: %v", err)
		}
		(delegate{m}).MergeRemoteState(b, true)
	})
}

func FuzzPlace(f *testing.F) {
	v, err := newVivaldi()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(appendPlace(nil, false, v.GetCoordinate()))
	f.Add(appendPlace(nil, true, nil))
	nan := appendPlace(nil, false, v.GetCoordinate())
	binary.BigEndian.PutUint32(nan[placeShort:], math.Float32bits(float32(math.NaN())))
	f.Add(nan)
	f.Fuzz(func(t *testing.T, b []byte) {
		left, c, err := parsePlace(b)
		if err != nil {
			return
		}
		if c == nil {
			return
		}
		if !c.IsValid() || c.Height < 0 {
			t.Fatalf("accepted %+v", c)
		}
		again := appendPlace(nil, left, c)
		if left2, c2, err := parsePlace(again); err != nil || left2 != left || c2.DistanceTo(c) != c.DistanceTo(c) {
			t.Errorf("does not come back: %v", err)
		}
		if _, err := v.Update("x", c, time.Millisecond); err != nil {
			t.Errorf("an accepted coordinate cannot be used: %v", err)
		}
		if !v.GetCoordinate().IsValid() {
			t.Error("an accepted coordinate spoils this node's")
		}
	})
}

func FuzzOpinions(f *testing.F) {
	f.Add([]byte{messageSuspect, 0x81, 0xa4, 'N', 'o', 'd', 'e', 0xa1, 'x'})
	f.Add([]byte{messageCompound, 1, 0, 9, messageAlive, 0x81, 0xa4, 'N', 'o', 'd', 'e', 0xa1, 'x'})
	f.Add([]byte{messageCRC, 0, 0, 0, 0, messageSuspect, 0x82, 0xa1, 'I', 0xce, 0, 0, 0, 1, 0xa4, 'N', 'o', 'd', 'e', 0xda, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		opinions(b, func(node []byte, _ bool) {
			if len(node) > len(b) {
				t.Error("longer than the packet")
			}
		})
	})
}

func TestCoordinatesThatCannotBeAreRefused(t *testing.T) {
	v, err := newVivaldi()
	must(t, err)
	good := appendPlace(nil, false, v.GetCoordinate())
	for what, bad := range map[string]float32{"NaN": float32(math.NaN()), "infinite": float32(math.Inf(1)), "far out": 1e30, "just too far": 10.1} {
		b := bytes.Clone(good)
		binary.BigEndian.PutUint32(b[placeShort:], math.Float32bits(bad))
		if _, _, err := parsePlace(b); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b := bytes.Clone(good)
	binary.BigEndian.PutUint32(b[len(b)-4:], math.Float32bits(-1)) // height
	if _, _, err := parsePlace(b); !errors.Is(err, ukai.ErrInvalid) {
		t.Errorf("negative height: %v", err)
	}
	for _, b := range [][]byte{good[:20], append(bytes.Clone(good), 0), {2, 0}} {
		if _, _, err := parsePlace(b); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

func TestFramesHaveLimits(t *testing.T) {
	if err := writeFrame(io.Discard, frameDelta, deltaFrame{Delta: make([]byte, maxFrame)}); !errors.Is(err, ukai.ErrInvalid) {
		t.Errorf("too long to write: %v", err)
	}
	for _, head := range [][]byte{{0, 0, 0, 0, 1}, {0, 8, 0, 1, 1}, {0xff, 0xff, 0xff, 0xff, 1}} {
		if _, _, err := readFrame(bytes.NewReader(head)); !errors.Is(err, ukai.ErrCorrupt) {
			t.Errorf("head %x: %v", head, err)
		}
	}
	for what, f := range map[string][2]any{
		"too many keys":     {wantFrame{Keys: make([]crdt.Key, maxKeysAsked+1)}, new(wantFrame)},
		"too many versions": {versionsFrame{Items: make([]crdt.KeyVersion, maxVersions+1)}, new(versionsFrame)},
		"too many buckets":  {bucketsFrame{Numbers: make([]uint16, maxBuckets+1)}, new(bucketsFrame)},
		"no such bucket":    {bucketsFrame{Numbers: []uint16{crdt.Buckets}}, new(bucketsFrame)},
		"short digest":      {digestFrame{Digest: make([]byte, digestBytes-1)}, new(digestFrame)},
		"long address":      {welcome{Protocol: protocol, From: ukai.NodeID{1}, Seen: string(make([]byte, 65))}, new(welcome)},
	} {
		b, err := codec.Marshal(f[0])
		must(t, err)
		if err := decodeFrame(b, f[1]); !errors.Is(err, ukai.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, f := range map[string]hello{"another protocol": {Protocol: 2, From: ukai.NodeID{1}}, "nobody": {Protocol: protocol}} {
		b, err := codec.Marshal(f)
		must(t, err)
		if err := decodeFrame(b, new(hello)); !errors.Is(err, ukai.ErrVersion) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestSeedsAreReadAsWritten(t *testing.T) {
	for _, c := range []struct {
		in, host string
		port     uint16
	}{
		{"10.0.0.2:7946", "10.0.0.2", 7946}, {"10.0.0.2", "10.0.0.2", 1}, {"seed.example.org", "seed.example.org", 1},
		{"seed.example.org:80", "seed.example.org", 80}, {"[2001:db8::1]:7946", "2001:db8::1", 7946}, {"2001:db8::1", "2001:db8::1", 1},
		{"[2001:db8::1]", "2001:db8::1", 1},
	} {
		host, port, err := splitSeed(c.in, 1)
		if err != nil || host != c.host || port != c.port {
			t.Errorf("%q: %q %d %v", c.in, host, port, err)
		}
	}
	for _, in := range []string{"", ":7946", "host:0", "host:65536", "host:http", "a:b:c", "host:-1"} {
		if _, _, err := splitSeed(in, 1); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestConfigsAreChecked(t *testing.T) {
	good := Config{Transport: &endpoint{addr: addrOf(1, 1)}, ID: ukai.NodeID{1}, Info: crdt.NodeInfo{Name: "n"}}
	for what, change := range map[string]func(*Config){
		"no transport": func(c *Config) { c.Transport = nil },
		"no id":        func(c *Config) { c.ID = ukai.NodeID{} },
		"bad seed":     func(c *Config) { c.Seeds = []string{"host:http"} },
		"many seeds":   func(c *Config) { c.Seeds = make([]string, maxSeeds+1) },
		"profile":      func(c *Config) { c.Profile = 7 },
		"advertise":    func(c *Config) { c.Advertise = "example.org:7946" },
		"wildcard":     func(c *Config) { c.Advertise = "0.0.0.0:7946" },
		"name":         func(c *Config) { c.Info.Name = "no/slash" },
	} {
		c := good
		change(&c)
		if _, err := Open(c); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTheAdvertisedAddressIsOneToSendTo(t *testing.T) {
	at := func(listen, advertise string) string {
		cfg := Config{Transport: &endpoint{addr: netip.MustParseAddrPort(listen)}, ID: ukai.NodeID{1}, Advertise: advertise}
		must(t, check(&cfg))
		a, err := advertised(context.Background(), cfg)
		must(t, err)
		return a.String()
	}
	for _, c := range [][3]string{
		{"10.0.0.1:7946", "", "10.0.0.1:7946"}, {"10.0.0.1:7946", "192.0.2.9:80", "192.0.2.9:80"},
		{"0.0.0.0:7946", "192.0.2.9", "192.0.2.9:7946"}, {"[::]:7946", "2001:db8::1", "[2001:db8::1]:7946"},
	} {
		if got := at(c[0], c[1]); got != c[2] {
			t.Errorf("listen %s, advertise %q: %s", c[0], c[1], got)
		}
	}
	for _, listen := range []string{"0.0.0.0:7946", "[::]:7946"} {
		a := netip.MustParseAddrPort(at(listen, ""))
		if a.Addr().IsUnspecified() || a.Port() != 7946 {
			t.Errorf("listen %s: %v", listen, a)
		}
	}
}
