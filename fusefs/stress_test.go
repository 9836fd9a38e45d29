package fusefs

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unmounted returns the core behind a mount of a node's disks, without the kernel.
func unmounted(t testing.TB, n *node) *filesystem {
	fs := &filesystem{cfg: Config{Disks: n, Log: slog.New(slog.DiscardHandler)}.withDefaults(), life: t.Context(), born: time.Now()}
	fs.init()
	return fs
}

func openCore(t testing.TB, fs *filesystem, name string) *handle {
	t.Helper()
	f, err := fs.lookup(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	h, err := fs.open(t.Context(), f, false)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Programs lock, write, close duplicates and end, all at once, with interrupts and with another node that has the disk
// now and then. Whatever happens: a write is never let through to a disk that is not attached, attaching and
// detaching balance (the test's disk panics otherwise), and in the end nothing is held.
func TestLocksWritesAndClosesAtOnce(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	n := newNode()
	d := n.create("vm1", 1<<20)
	fs := unmounted(t, n)
	var wg sync.WaitGroup
	for who := range uint64(6) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, who))
			for range 40 {
				h := openCore(t, fs, "vm1")
				var inner sync.WaitGroup
				for thread := range uint64(2) {
					rnd := rand.New(rand.NewPCG(rnd.Uint64(), thread))
					inner.Go(func() {
						for range 12 {
							program(t, h, who, rnd)
						}
					})
				}
				inner.Wait()
				fs.release(h.fh)
			}
		})
	}
	stop := make(chan struct{})
	var other sync.WaitGroup
	other.Go(func() {
		for held := false; ; held = !held {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				d.hold(held)
			}
		}
	})
	wg.Wait()
	close(stop)
	other.Wait()
	fs.background.Wait()
	if d.isAttached() || d.opens.Load() != 0 || d.attaches.Load() != d.detaches.Load() || d.attaches.Load() == 0 {
		t.Errorf("in the end: attached %v, %d handles open, %d attaches, %d detaches", d.isAttached(), d.opens.Load(), d.attaches.Load(), d.detaches.Load())
	}
	for _, f := range fs.byNode {
		if len(f.locks.ranges.locks)+len(f.locks.whole.locks)+len(f.locks.closing) != 0 {
			t.Errorf("in the end locks are held: %+v", &f.locks)
		}
	}
}

// program does one thing.
func program(t *testing.T, h *handle, who uint64, rnd *rand.Rand) {
	cancel := make(chan struct{})
	if rnd.IntN(4) == 0 {
		timer := time.AfterFunc(time.Duration(rnd.IntN(500))*time.Microsecond, func() { close(cancel) })
		defer timer.Stop()
	}
	r := request(cancel)
	c := caller{owner: who, tid: 0}
	start := uint64(98 + rnd.IntN(8))
	l := lock{start: start, end: start + uint64(rnd.IntN(4)), owner: who, fh: h.fh, write: rnd.IntN(10) == 0}
	if rnd.IntN(2) == 0 {
		l.owner = h.fh + 1000 // an open-file-description lock
	}
	var err error
	switch rnd.IntN(6) {
	case 0, 1:
		_, err = h.write(r, c, make([]byte, 512), 0)
	case 2:
		err = h.setLock(r, l, false, false)
	case 3:
		err = h.unlock(r, l, false)
	case 4:
		err = h.flush(r, c)
	case 5:
		err = h.fallocate(r, 0, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
	}
	if n, known := errno(err); !known || n == unix.EIO {
		t.Errorf("%v", err)
	}
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended with a deadline: %v", err)
	}
}
