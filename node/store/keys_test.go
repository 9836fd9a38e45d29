package store

import (
	"context"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ukai"
	"ukai/crdt/codec"
)

func TestKeysRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k replicaKey
		copy(k.disk[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "disk"))
		k.rid = ukai.ReplicaID(rapid.Uint64().Draw(t, "rid"))
		layer := rapid.Uint16().Draw(t, "layer")
		i, j := ukai.Index(rapid.Uint64().Draw(t, "i")), ukai.Index(rapid.Uint64().Draw(t, "j"))
		if got, err := parseHeaderKey(k.headerKey()); err != nil || got != k {
			t.Fatalf("header key of %v gives %v, %v", k, got, err)
		}
		a, b := k.stampKey(layer, i), k.stampKey(layer, j)
		if got, err := parseStampIndex(a); err != nil || got != i {
			t.Fatalf("stamp key of block %d gives %d, %v", i, got, err)
		}
		if (a < b) != (i < j) {
			t.Fatalf("keys of blocks %d and %d sort the other way", i, j)
		}
		if !strings.HasPrefix(a, k.stampPrefix(layer)) || !strings.HasPrefix(a, k.stampsPrefix()) {
			t.Fatal("a stamp key lies outside of its prefix")
		}
		s := ukai.BlockStamp{Epoch: ukai.Epoch(rapid.Uint64().Draw(t, "epoch")), Check: rapid.Uint32().Draw(t, "check")}
		if got, _, err := decodeStamp(a, encodeStamp(s, nil)); err != nil || got != s {
			t.Fatalf("stamp %v gives %v, %v", s, got, err)
		}
	})
}

func FuzzDecodeStamp(f *testing.F) {
	f.Add(encodeStamp(ukai.BlockStamp{Epoch: 1, Check: 2}, nil))
	f.Add(encodeStamp(ukai.BlockStamp{Epoch: 1, Check: 2}, []Sum{{1}, {2}}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, v []byte) {
		s, sums, err := decodeStamp("key", v)
		if err == nil && string(encodeStamp(s, sums)) != string(v) {
			t.Errorf("%x decodes to %v, which is not what it encodes", v, s)
		}
		if err != nil && !errors.Is(err, ukai.ErrCorrupt) {
			t.Errorf("%v is not ErrCorrupt", err)
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	good, err := encodeHeader(header{Size: 1 << 30, BlockSize: 4 << 20, Fence: 3, Unclean: true, Broken: "sync"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, v []byte) {
		h, err := decodeHeader("key", v)
		if err != nil {
			if !errors.Is(err, ukai.ErrCorrupt) && !errors.Is(err, ukai.ErrVersion) {
				t.Errorf("%v is neither ErrCorrupt nor ErrVersion", err)
			}
			return
		}
		again, err := encodeHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeHeader("key", again); err != nil || back != h {
			t.Errorf("%+v came back as %+v, %v", h, back, err)
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	f.Add(replicaKey{rid: 1}.headerKey())
	f.Add(replicaKey{rid: 1}.stampKey(0, 7))
	f.Fuzz(func(t *testing.T, key string) {
		if k, err := parseHeaderKey(key); err == nil && k.headerKey() != key {
			t.Errorf("%q is taken for the header key of %v", key, k)
		}
		if _, err := parseStampIndex(key); err != nil && !errors.Is(err, ukai.ErrCorrupt) {
			t.Errorf("%v is not ErrCorrupt", err)
		}
	})
}

// TestRubbishInTheDatabase puts what no release writes where the store's own keys are.
func TestRubbishInTheDatabase(t *testing.T) {
	newer, err := codec.Marshal(header{Form: headerForm + 1, Size: 1 << 30, BlockSize: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ctx, disk := context.Background(), ukai.NewDiskID()
	k := replicaKey{disk, 1}
	for name, tt := range map[string]struct {
		key  string
		v    []byte
		want error
	}{
		"header":              {k.headerKey(), []byte("rubbish"), ukai.ErrCorrupt},
		"empty header":        {k.headerKey(), []byte{}, ukai.ErrCorrupt},
		"newer header":        {k.headerKey(), newer, ukai.ErrVersion},
		"stamp":               {k.stampKey(0, 3), []byte("rubbish"), ukai.ErrCorrupt},
		"stamp key":           {k.stampPrefix(0) + "x", encodeStamp(ukai.BlockStamp{}, nil), ukai.ErrCorrupt},
		"nobody's header key": {string(spaceHeader) + "x", []byte("rubbish"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMem(MemConfig{})
			cfg := ReplicaConfig{Size: 1 << 30, BlockSize: 4 << 20}
			for rid := range ukai.ReplicaID(2) {
				if err := m.Create(ctx, disk, rid+1, cfg); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.Store().keys.put(ctx, true, false, []KV{{tt.key, tt.v}}); err != nil {
				t.Fatal(err)
			}
			m.Restart()
			_, err := m.OpenReplica(disk, 1)
			if !errors.Is(err, tt.want) {
				t.Errorf("OpenReplica = %v, want %v", err, tt.want)
			}
			if err != nil && (!strings.Contains(err.Error(), "key") || !strings.Contains(err.Error(), "remove") && !strings.Contains(err.Error(), "upgrade")) {
				t.Errorf("%q names no key or no remedy", err)
			}
			if infos := m.Replicas(); len(infos) != 2 {
				t.Errorf("replicas %+v", infos)
			}
			// The others are not affected, and it can be removed.
			r, err := m.OpenReplica(disk, 2)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(r.Close(), closeIfOpen(m, k), m.Remove(ctx, disk, 1)); err != nil {
				t.Error(err)
			}
			m.Restart()
			if infos := m.Replicas(); len(infos) != 1 || len(m.Orphans()) != 0 {
				t.Errorf("after the removal: %+v, orphans %q", infos, m.Orphans())
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func closeIfOpen(m *Mem, k replicaKey) error {
	if r := m.Store().replicas[k].open; r != nil {
		return r.Close()
	}
	return nil
}
