package wire

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
)

// The benchmarks run both ends in one process over loopback UDP.
func benchmarkCalls(b *testing.B, depth int, m Message, reply int) {
	mesh := newMesh(b, nil)
	from := mesh.node("a", nil)
	to := mesh.node("b", func(r *Request) {
		if r.Kind == KindRead {
			r.Reply(Reply{Payload: r.Buffer(int(r.Count))}, nil)
			return
		}
		r.Reply(Reply{}, nil)
	}).ID()
	ctx := context.Background()
	if _, err := from.Call(ctx, to, &m, make([]byte, reply)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(m.Payload) + reply))
	b.ReportAllocs()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range depth {
		wg.Go(func() {
			into := make([]byte, reply)
			m := m
			for left.Add(-1) >= 0 {
				if _, err := from.Call(ctx, to, &m, into); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

func BenchmarkPingQD1(b *testing.B) { benchmarkCalls(b, 1, Message{Kind: KindPing}, 0) }
func BenchmarkWrite4KQD1(b *testing.B) {
	benchmarkCalls(b, 1, Message{Kind: KindWrite, Payload: make([]byte, 4096)}, 0)
}
func BenchmarkWrite4KQD16(b *testing.B) {
	benchmarkCalls(b, 16, Message{Kind: KindWrite, Payload: make([]byte, 4096)}, 0)
}
func BenchmarkRead4KQD1(b *testing.B) {
	benchmarkCalls(b, 1, Message{Kind: KindRead, Count: 4096}, 4096)
}
func BenchmarkRead4KQD16(b *testing.B) {
	benchmarkCalls(b, 16, Message{Kind: KindRead, Count: 4096}, 4096)
}
func BenchmarkWrite1MQD4(b *testing.B) {
	benchmarkCalls(b, 4, Message{Kind: KindWrite, Payload: make([]byte, 1<<20)}, 0)
}
func BenchmarkRead1MQD4(b *testing.B) {
	benchmarkCalls(b, 4, Message{Kind: KindRead, Count: 1 << 20}, 1<<20)
}
