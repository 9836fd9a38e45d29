package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ukai"
	"ukai/node/store"
)

// sector is what a sector may hold: anything from the newest content known to be durable on.
type sector []byte // values; the last is what a read sees now

const (
	modelSectors  = 64
	modelBlock    = 1 << 20
	modelBlocks   = 4
	sectorPerBlok = modelSectors / modelBlocks
)

// at returns where in the disk a sector of the model is: a few at the beginning of each block.
func at(s int) int64 {
	return int64(s/sectorPerBlok)*modelBlock + int64(s%sectorPerBlok)*ukai.SectorSize
}

// TestReplicaAgainstModel makes random changes and power cuts, and holds the replica and the values to what the
// contract says may be there.
func TestReplicaAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx, disk := context.Background(), ukai.NewDiskID()
		m := store.NewMem(store.MemConfig{})
		defer m.Close()
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		check(m.Create(ctx, disk, 1, store.ReplicaConfig{Size: modelBlocks * modelBlock, BlockSize: modelBlock}))
		var r store.Replica
		watched := make([]bool, modelBlocks) // a change of the block's data removes checksums, durably
		reopen := func() {
			var err error
			r, err = m.OpenReplica(disk, 1)
			check(err)
			for i := range watched {
				list, err := r.Checksums(ukai.Index(i))
				check(err)
				watched[i] = list != nil
			}
		}
		reopen()
		sectors := make([]sector, modelSectors)
		for i := range sectors {
			sectors[i] = sector{0}
		}
		dirty, unclean := false, false
		stamps := make([]ukai.BlockStamp, modelBlocks)
		values := map[string]sector{"a": {0}, "b": {0}} // 0: no such key
		settle := func(s sector) sector { return s[len(s)-1:] }
		settleAll := func() {
			for i := range sectors {
				sectors[i] = settle(sectors[i])
			}
		}
		settleKeys := func() {
			for k := range values {
				values[k] = settle(values[k])
			}
		}
		serial := byte(0)
		span := func() (int, int) {
			from := rapid.IntRange(0, modelSectors-1).Draw(t, "from")
			return from, rapid.IntRange(from, min(from+8, from/sectorPerBlok*sectorPerBlok+sectorPerBlok-1)).Draw(t, "to") // within a block
		}
		touch := func(sector int) {
			if i := sector / sectorPerBlok; !dirty || watched[i] {
				settleKeys() // marking it, or removing checksums, is a durable put
				watched[i] = false
			}
			dirty = true
		}
		step := 0
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				from, to := span()
				serial = serial%250 + 1
				touch(from)
				check(r.WriteAt(bytes.Repeat([]byte{serial}, (to-from+1)*ukai.SectorSize), at(from)))
				for i := from; i <= to; i++ {
					sectors[i] = append(sectors[i], serial)
				}
			},
			"discard": func(t *rapid.T) {
				from, to := span()
				touch(from)
				check(r.Discard(at(from), int64(to-from+1)*ukai.SectorSize))
				for i := from; i <= to; i++ {
					sectors[i] = append(sectors[i], 0)
				}
			},
			"sync": func(*rapid.T) { check(r.Sync(ctx)); settleAll() },
			"raise": func(t *rapid.T) {
				from := rapid.IntRange(0, modelBlocks-1).Draw(t, "from")
				to := rapid.IntRange(from, modelBlocks-1).Draw(t, "to")
				s := ukai.BlockStamp{Epoch: ukai.Epoch(rapid.IntRange(1, 3).Draw(t, "epoch")), Check: uint32(rapid.IntRange(0, 3).Draw(t, "check"))}
				check(r.Raise(ctx, ukai.Index(from), ukai.Index(to), s))
				for i := from; i <= to; i++ {
					if stamps[i].Less(s) {
						stamps[i] = s
						settleKeys()
						watched[i] = false
					}
				}
			},
			"checksum": func(t *rapid.T) {
				i := ukai.Index(rapid.IntRange(0, modelBlocks-1).Draw(t, "block"))
				if stamps[i] == (ukai.BlockStamp{}) {
					return
				}
				check(r.Sync(ctx))
				settleAll()
				check(r.SetStable(stamps[i], false))
				s, quiet := r.Quiet(i)
				watched[i] = watched[i] || quiet // a block that is not quiet costs its next write nothing
				if unclean == quiet {
					t.Fatalf("block %d is quiet: %v, unclean: %v", i, quiet, unclean)
				}
				list := blockSums(t, r, i)
				if rapid.Bool().Draw(t, "written meanwhile") {
					serial = serial%250 + 1
					touch(int(i) * sectorPerBlok)
					check(r.WriteAt(bytes.Repeat([]byte{serial}, ukai.SectorSize), int64(i)*modelBlock))
					sectors[int(i)*sectorPerBlok] = append(sectors[int(i)*sectorPerBlok], serial)
					quiet = false
				}
				kept, err := r.SetChecksums(ctx, i, s, list)
				check(err)
				if kept != quiet {
					t.Fatalf("block %d: checksums kept: %v, want %v", i, kept, quiet)
				}
			},
			"put": func(t *rapid.T) {
				sync := rapid.Bool().Draw(t, "sync")
				serial = serial%250 + 1
				check(m.Put(ctx, sync, store.KV{K: "a", V: []byte{serial}}, store.KV{K: "b", V: []byte{serial}}))
				for k := range values {
					values[k] = append(values[k], serial)
				}
				if sync {
					settleKeys()
				}
			},
			"clean": func(*rapid.T) {
				check(r.MarkClean(ctx))
				if dirty {
					settleAll()
					settleKeys()
				}
				dirty = false
			},
			"good again": func(*rapid.T) {
				check(r.SetStable(ukai.BlockStamp{}, true))
				check(r.SetFence(ctx, r.Header().Fence+1))
				settleKeys()
				unclean = false
			},
			"restart": func(*rapid.T) { m.Restart(); reopen() },
			"close": func(*rapid.T) {
				check(m.Close())
				settleAll()
				settleKeys()
				dirty = false
				m.Restart()
				reopen()
			},
			"power cut": func(t *rapid.T) {
				if rapid.Bool().Draw(t, "keep nothing") {
					m.Crash()
					for i := range sectors {
						sectors[i] = sectors[i][:1]
					}
					for k := range values {
						values[k] = values[k][:1]
					}
				} else {
					m.CrashKeeping(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
				}
				unclean = unclean || dirty
				reopen()
				if dirty {
					settleNow(t, m, values) // what was left is durable, and opening made it so
				}
				p := make([]byte, ukai.SectorSize)
				for i := range sectors {
					check(r.ReadAt(p, at(i)))
					if !bytes.Contains(sectors[i], p[:1]) {
						t.Fatalf("sector %d holds %d after the power cut, may be any of %v", i, p[0], sectors[i])
					}
					sectors[i] = sector{p[0]}
				}
				settleNow(t, m, values)
			},
			"": func(t *rapid.T) {
				p := make([]byte, ukai.SectorSize)
				for i := range sectors {
					check(r.ReadAt(p, at(i)))
					if now := settle(sectors[i])[0]; !bytes.Equal(p, bytes.Repeat([]byte{now}, len(p))) {
						t.Fatalf("sector %d holds %d, want %d", i, p[0], now)
					}
				}
				for i, want := range stamps {
					if s, has := r.Stamp(ukai.Index(i)); s != want || has != (want != ukai.BlockStamp{}) {
						t.Fatalf("block %d has stamp %v, %v, want %v", i, s, has, want)
					}
				}
				for k, v := range values {
					if got := value(t, m, k); got != settle(v)[0] {
						t.Fatalf("%s = %d, want %d", k, got, settle(v)[0])
					}
				}
				step++
				i := ukai.Index(step % modelBlocks) // one at a time: it is the costly part
				list, err := r.Checksums(i)
				check(err)
				if list != nil && !slices.Equal(list, blockSums(t, r, i)) {
					t.Fatalf("block %d has checksums that are not of its data", i)
				}
				if got := r.Header().Unclean; got != unclean {
					t.Fatalf("unclean is %v, want %v", got, unclean)
				}
			},
		})
	})
}

func blockSums(t *rapid.T, r store.Replica, i ukai.Index) (list []store.Sum) {
	p := make([]byte, modelBlock)
	if err := r.ReadAt(p, int64(i)*modelBlock); err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(p, store.SumBytes) {
		list = append(list, store.SumOf(part))
	}
	return list
}

func value(t *rapid.T, b store.Backend, key string) byte {
	v, err := b.Get(key)
	if errors.Is(err, ukai.ErrNotFound) {
		return 0
	}
	if err != nil || len(v) != 1 {
		t.Fatal(fmt.Sprint(key, v, err))
	}
	return v[0]
}

// settleNow checks the values after a power cut and takes what is there for durable. Both keys are always put together.
func settleNow(t *rapid.T, b store.Backend, values map[string]sector) {
	first := value(t, b, "a")
	for k, may := range values {
		got := value(t, b, k)
		if !bytes.Contains(may, []byte{got}) || got != first {
			t.Fatalf("%s = %d after the power cut, a = %d, may be any of %v", k, got, first, may)
		}
		values[k] = sector{got}
	}
}
