package place

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"ukai"
	"ukai/crdt"
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

// hundred is a mesh of 100 nodes in four datacenters.
func hundred(b *testing.B, more string) []Node {
	var lines []string
	for i := range 100 {
		line := fmt.Sprintf("n%d dc=dc%d rack=r%d", i, i%4, i%20)
		if i == 1 {
			line += more
		}
		lines = append(lines, line)
	}
	return mesh(b, lines...)
}

// BenchmarkRelocate plans for one disk that moves and one of 1 TiB that does not.
func BenchmarkRelocate(b *testing.B) {
	nodes := hundred(b, "")
	for name, at := range map[string]string{"moves": "n0 n4", "stays": "n1 n5 n2"} {
		b.Run(name, func(b *testing.B) {
			in := Input{Rule: rule(b, "dc=dc1:2 dc=dc2:1"), Rec: placed(b, nodes, at), Nodes: nodes, Now: noon}
			in.Rec.Size = 1 << 40
			b.ReportAllocs()
			for b.Loop() {
				must(Relocate(in))
			}
		})
	}
}

// cpu is how long this process has been at work, which tells more than the clock where machines are shared.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkOneChange plans for 10,000 disks on 100 nodes after one change: of a node that is drained, or down, which holds replicas of a hundredth of
// them, or of a rule that moves a replica of each disk.
func BenchmarkOneChange(b *testing.B) {
	for _, bench := range []struct{ name, node, rule string }{
		{"node drained", " drain", "dc=dc1:2 dc=dc2:1"},
		{"node down for a moment", " down", "dc=dc1:2 dc=dc2:1"},
		{"rule of every disk changed", "", "dc=dc1:1 dc=dc2:1 dc=dc3:1"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			nodes := hundred(b, bench.node)
			before := hundred(b, "")
			r := rule(b, bench.rule)
			random := rand.New(rand.NewPCG(1, 1))
			recs := make([]crdt.Record, 10_000)
			for i := range recs {
				first := random.IntN(25)
				at := []int{1 + 4*first, 1 + 4*((first+1+random.IntN(24))%25), 2 + 4*random.IntN(25)}
				recs[i] = crdt.Record{Size: 10 * gib, BlockSize: ukai.DefaultBlockSize, MinSync: 1, Groups: []crdt.Group{{}}, Runs: []crdt.Run{{Count: 2560}}}
				for j, n := range at {
					recs[i].Groups[0].Members = append(recs[i].Groups[0].Members, crdt.Member{Replica: ukai.ReplicaID(1 + j), Node: nodes[n].ID})
				}
			}
			elect := newPlanner(before, nil)
			for i := range recs {
				var on []ukai.NodeID
				for _, m := range recs[i].Groups[0].Members {
					on = append(on, m.Node)
				}
				e := elect.election(elect.find(on))
				recs[i].Arbiters = e.ids(e.best)
			}
			b.ReportAllocs()
			began := cpu(b)
			for b.Loop() {
				p := NewPlanner(nodes, nil, noon, 3*time.Hour)
				steps := 0
				for i := range recs {
					steps += len(must(p.Plan(r, recs[i], 0)).Steps)
				}
				b.ReportMetric(float64(steps), "steps")
			}
			b.ReportMetric(float64(cpu(b)-began)/1e6/float64(b.N), "cpu-ms/op")
		})
	}
}
