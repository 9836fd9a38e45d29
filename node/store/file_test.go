package store

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"ukai"
)

// TestPunchWithoutHoles uses the way that file systems without holes take.
func TestPunchWithoutHoles(t *testing.T) {
	k := replicaKey{ukai.NewDiskID(), 1}
	files := dirFiles{t.TempDir()}
	const size = 4 << 20
	if err := files.create(k, 0, size); err != nil {
		t.Fatal(err)
	}
	f, err := files.open(k, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.(*osFile).noPunch.Store(true)
	want := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 30 {
		off := rng.IntN(size - 100_000)
		n := 1 + rng.IntN(100_000)
		if rng.IntN(2) == 0 {
			p := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, n)
			copy(want[off:], p)
			if _, err := f.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		clear(want[off : off+n])
		if err := f.punch(int64(off), int64(n)); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs (%v)", err)
	}
	before, err := f.allocated()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.punch(0, size); err != nil {
		t.Fatal(err)
	}
	if after, err := f.allocated(); err != nil || after > before {
		t.Errorf("zeros were written into holes: %d bytes allocated before, %d after, %v", before, after, err)
	}
}
