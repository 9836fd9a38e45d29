package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
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

func TestWhatIsWrittenInPiecesIsAllThere(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "img"))
	if err != nil {
		t.Fatal(err)
	}
	o := &osFile{File: f}
	p := make([]byte, 3*folioBytes)
	for i := range p {
		p[i] = byte(i>>8) ^ byte(i)
	}
	for _, off := range []int64{0, 1, 512, folioBytes - 1, folioBytes, 5*folioBytes + 4096} {
		for _, n := range []int{0, 1, folioBytes - 512, folioBytes, folioBytes + 1, len(p)} {
			if w, err := o.WriteAt(p[:n], off); w != n || err != nil {
				t.Fatalf("%d bytes at %d: %d written, %v", n, off, w, err)
			}
			got := make([]byte, n)
			if _, err := f.ReadAt(got, off); err != nil && n > 0 || !bytes.Equal(got, p[:n]) {
				t.Fatalf("%d bytes at %d are not what was written: %v", n, off, err)
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := o.WriteAt(p, 0); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed file: %d written, %v", n, err)
	}
}
