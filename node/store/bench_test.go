package store_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"ukai"
	"ukai/node/store"
)

const benchSize = 256 << 20

func benchReplica(b *testing.B) store.Replica {
	s, err := store.Open(store.Config{Dir: b.TempDir(), ReserveBytes: -1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	disk := ukai.NewDiskID()
	if err := s.Create(context.Background(), disk, 1, store.ReplicaConfig{Size: benchSize, BlockSize: 1 << 20}); err != nil {
		b.Fatal(err)
	}
	r, err := s.OpenReplica(disk, 1)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

func BenchmarkWriteAt4K(b *testing.B) {
	pages(b, 1, benchReplica(b).WriteAt)
}

// fill writes all of the replica, as much at once as a guest can.
func fill(b *testing.B, r store.Replica) {
	p := make([]byte, 1<<20)
	for off := int64(0); off < benchSize; off += 1 << 20 {
		if err := r.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
}

// pages calls f with pages of the replica, so many apart.
func pages(b *testing.B, apart int64, f func(p []byte, off int64) error) {
	p := make([]byte, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	for i := int64(0); b.Loop(); i++ {
		if err := f(p, i*apart*4096%benchSize); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteAt4KAfterBulk(b *testing.B) {
	r := benchReplica(b)
	fill(b, r)
	pages(b, 40507, r.WriteAt) // prime, so that all are visited
}

func BenchmarkReadAt4K(b *testing.B) {
	r := benchReplica(b)
	fill(b, r)
	pages(b, 1, r.ReadAt)
}

func BenchmarkRaiseAlreadyHigh(b *testing.B) {
	r := benchReplica(b)
	ctx := context.Background()
	s := ukai.BlockStamp{Epoch: 1, Check: 1}
	if err := r.Raise(ctx, 0, 255, s); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := r.Raise(ctx, ukai.Index(i%256), ukai.Index(i%256), s); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRaise raises the stamp of another block, or to another stamp, each time: one durable put for all at once.
func BenchmarkRaise(b *testing.B) {
	for _, depth := range []int{1, 16} {
		b.Run(fmt.Sprintf("qd%d", depth), func(b *testing.B) {
			r := benchReplica(b)
			var n atomic.Int64
			b.SetParallelism(depth) // times GOMAXPROCS, hence:
			limit := make(chan struct{}, depth)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					limit <- struct{}{}
					i := n.Add(1)
					if err := r.Raise(context.Background(), ukai.Index(i%256), ukai.Index(i%256), ukai.BlockStamp{Epoch: 1, Check: uint32(i)}); err != nil {
						b.Error(err)
					}
					<-limit
				}
			})
		})
	}
}

func BenchmarkWriteSync4K(b *testing.B) {
	r := benchReplica(b)
	p := make([]byte, 4096)
	for i := 0; b.Loop(); i++ {
		if err := r.WriteAt(p, int64(i)*4096%benchSize); err != nil {
			b.Fatal(err)
		}
		if err := r.Sync(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSyncNothingWritten(b *testing.B) {
	r := benchReplica(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Sync(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPutSync(b *testing.B) {
	s, err := store.Open(store.Config{Dir: b.TempDir(), ReserveBytes: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for i := 0; b.Loop(); i++ {
		if err := s.Put(context.Background(), true, store.KV{K: fmt.Sprint(i), V: make([]byte, 128)}); err != nil {
			b.Fatal(err)
		}
	}
}
