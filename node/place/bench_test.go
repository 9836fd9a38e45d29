package place

import (
	"fmt"
	"testing"
)

// BenchmarkInitial places one disk in a mesh of 200 nodes in 10 datacenters.
func BenchmarkInitial(b *testing.B) {
	var lines []string
	for i := range 200 {
		lines = append(lines, fmt.Sprintf("n%d dc=dc%d rack=r%d free=%d", i, i%10, i%40, 100+i*7%50))
	}
	nodes, r := mesh(b, lines...), rule(b, "dc=dc3:2 dc=dc4:1 --spread rack")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Initial(r, 20*gib, nodes, nil); err != nil {
			b.Fatal(err)
		}
	}
}
