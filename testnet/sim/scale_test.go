package sim

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// SCALE_NODES says how many nodes there are (make bench-scale: 200).
func TestANodeOfManySaysLittle(t *testing.T) {
	count := 30
	if n, err := strconv.Atoi(os.Getenv("SCALE_NODES")); err == nil && n > 0 {
		count = n
	}
	var specs strings.Builder
	for i := range count {
		fmt.Fprintf(&specs, "n%d:dc%d ", i, i%4)
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		m := Start(t, 1, specs.String())
		defer m.Stop()
		t.Logf("%d nodes see each other after %v", count, time.Since(began))
		for i := range 20 {
			m.Create(fmt.Sprintf("vm%d", i), 1<<30, "dc=dc0:1 dc=dc1:1")
		}
		time.Sleep(time.Minute) // connections that are not needed any more are closed
		const span = 30 * time.Second
		sent := func() float64 { // by a node, per second
			before := m.Net.Stats().Bytes
			time.Sleep(span)
			return float64(m.Net.Stats().Bytes-before) / span.Seconds() / float64(count)
		}
		rest := sent()
		began = time.Now()
		m.Create("another", 1<<30, "dc=dc0:1 dc=dc1:1")
		known := time.Since(began)
		change := (sent() - rest) * span.Seconds()
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		t.Logf("a node of %d sends %.0f bytes per second at rest, and %.0f more when a disk is created, which all know after %v; %.1f MiB of heap per node",
			count, rest, change, known, float64(mem.HeapInuse)/float64(count)/(1<<20))
		if rest > 2000 || change > 100_000 {
			t.Errorf("a node of %d sends %.0f bytes per second at rest, want at most 2000, and %.0f at a change, want at most 100000", count, rest, change)
		}
	})
}
