package sim

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"ukai"
)

// The VM moved before its data: what it reads comes over the link once, and from then on from the replica on its node, which is far from being in sync.
func TestWhatAVMReadsWhereItsDiskIsStillCopiedToCrossesTheLinkOnce(t *testing.T) {
	const size = 16 << 20
	bubble(t, "t1:tokyo o1:osaka w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka", "fukuoka")
		m.filled("t1", "vm1", size)
		want := pattern(uint64(size)+uint64('1'), size)
		ctx := context.Background()
		read := func(off, n int) time.Duration {
			t.Helper()
			p := make([]byte, n)
			began := time.Now()
			if _, err := m.Nodes["o1"].Volume("vm1").ReadAt(ctx, p, int64(off)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, want[off:off+n]) {
				t.Fatalf("other bytes at %d", off)
			}
			return time.Since(began)
		}
		if err := m.Nodes["t1"].Volume("vm1").Detach(ctx); err != nil {
			t.Fatal(err)
		}
		g := m.awaitAttach("o1", "vm1")
		far := read(9<<20, 4096)
		m.limit("w1", "tokyo-osaka", "64KiB/s") // the whole takes four minutes
		copied := func() uint64 { return g.n.Counters()["ukai_resync_bytes_total"] }
		m.place("w1", "vm1", "dc=osaka:1")
		m.Await("it is being copied", func() error {
			if copied() == 0 {
				return fmt.Errorf("nothing was copied")
			}
			return nil
		})
		// Of four reads within a chunk the first crosses the link, with the chunk.
		for _, chunk := range []int{200, 77, 255, 131} {
			before := m.crossing("tokyo", "osaka")
			for i := range 4 {
				took := read(chunk*ukai.ChunkSize+i*ukai.ChunkSize/4, 4096)
				if i == 0 && took < far/2 || i > 0 && took > far/4 {
					t.Errorf("read %d of chunk %d took %v; over the link it is %v", i, chunk, took, far)
				}
			}
			if n := m.crossing("tokyo", "osaka") - before; n < ukai.ChunkSize || n > 3*ukai.ChunkSize {
				t.Errorf("%d bytes crossed the link for a chunk of %d", n, ukai.ChunkSize)
			}
		}
		// What it writes is read where it is, too.
		for i, off := range []int{200 * ukai.ChunkSize, 30 * ukai.ChunkSize} {
			copy(want[off:], pattern(uint64(i), 4096))
			if _, err := g.n.Volume("vm1").WriteAt(ctx, want[off:off+4096], int64(off)); err != nil {
				t.Fatal(err)
			}
			read(off, 4096)
			read(off, ukai.ChunkSize)
		}
		time.Sleep(time.Second)
		before, all := m.crossing("tokyo", "osaka"), time.Duration(0)
		for range 1000 {
			all += read(200*ukai.ChunkSize+8192, 4096) + read(30*ukai.ChunkSize, 4096)
		}
		if n := m.crossing("tokyo", "osaka") - before; all > far || n > ukai.ChunkSize {
			t.Errorf("2000 reads took %v, and %d bytes crossed the link", all, n)
		}
		if got, err := locations(m.Nodes["o1"], "vm1"); err != nil || len(got) != 2 || got[0] != "o1 syncing" {
			t.Errorf("%v: %v", got, err)
		}
		read(0, size) // all of it, and so it is in sync soon
		m.awaitLocations(m.Nodes["w1"], "vm1", "o1 in sync")
		if n := copied(); n > size+16*ukai.ChunkSize {
			t.Errorf("%d bytes were copied of a disk of %d", n, size)
		}
		g.detach()
		m.Nodes["t1"].Crash()
		same(t, m.Nodes["o1"], "vm1", want)
	})
}
