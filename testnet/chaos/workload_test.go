//go:build linux

package chaos

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ukai/testnet/history"
	"ukai/testnet/proc"
)

const (
	diskBytes        = 16 << 20
	diskSectors      = diskBytes / history.SectorBytes
	workersPerNode   = 2
	maxSectors       = 16                     // of one operation
	window           = 96                     // sectors that are used at a time, so that operations meet
	windowFor        = 8 * time.Second        // then other sectors are used, so that no sector's history is too long to check
	pause            = 30 * time.Millisecond  // between two operations of a worker, at most; a quarter of it at home
	pauseAfterError  = 250 * time.Millisecond // so that a node that fails does not fill the history with writes of unknown outcome
	stallWorthTold   = time.Second
	flushesAtHome    = 64 // every so many operations there a worker flushes what it wrote
	writesAwayOfHome = 50 // every so many operations a worker tries to write where another node has the disk
)

// hand is a thread that uses files of the mounts. Its table of open files is its own: a process that has such files open cannot start
// programs while the node behind one is frozen, for the child closes its copies, which asks the node.
type hand struct {
	jobs chan func()
}

// newHands returns n hands. It is called before anything is open that others need to see closed.
func newHands(n int) ([]*hand, error) {
	hands := make([]*hand, n)
	for i := range hands {
		h := &hand{jobs: make(chan func())}
		hands[i] = h
		ready := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlock: the thread ends with this goroutine
			ready <- unix.Unshare(unix.CLONE_FILES)
			for job := range h.jobs {
				job()
			}
		}()
		if err := <-ready; err != nil {
			return nil, fmt.Errorf("a table of open files for a thread: %w", err)
		}
	}
	return hands, nil
}

// do runs f on the hand's thread.
func (h *hand) do(f func()) {
	done := make(chan struct{})
	h.jobs <- func() { defer close(done); f() }
	<-done
}

// handFile is a file that is open on a hand.
type handFile struct {
	hand *hand
	fd   int
}

func (h *hand) open(path string, flags int) (f *handFile, err error) {
	h.do(func() {
		var fd int
		if fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0); err == nil {
			f = &handFile{h, fd}
		}
	})
	return f, err
}

func (f *handFile) at(op func(fd int, p []byte, off int64) (int, error), p []byte, off int64) (err error) {
	f.hand.do(func() {
		for len(p) > 0 && err == nil {
			var n int
			switch n, err = op(f.fd, p, off); {
			case errors.Is(err, unix.EINTR): // again, as package os does
				n, err = 0, nil
			case n == 0 && err == nil:
				err = io.ErrUnexpectedEOF
			}
			p, off = p[max(n, 0):], off+int64(max(n, 0))
		}
	})
	return err
}

func (f *handFile) read(p []byte, off int64) error  { return f.at(unix.Pread, p, off) }
func (f *handFile) write(p []byte, off int64) error { return f.at(unix.Pwrite, p, off) }

func (f *handFile) sync() (err error) {
	f.hand.do(func() {
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Fsync(f.fd)
		}
	})
	return err
}

func (f *handFile) close() (err error) {
	f.hand.do(func() { err = unix.Close(f.fd) })
	return err
}

// recorder reads and writes one disk through the mounts of several nodes and records all of it. One node is the disk's home at a
// time; the workers of the others mostly read. The home moves, at times while the old one is down.
type recorder struct {
	history.History
	disk   uint32
	name   string
	nodes  []*proc.Node
	hands  []*hand // workersPerNode for each node
	begin  time.Time
	home   atomic.Int32
	stop   chan struct{}
	wg     sync.WaitGroup
	nextID *atomic.Uint64

	faulty  atomic.Pointer[string] // a sector that is garbage
	stalled sync.Map               // *history.Op under way -> struct{}
}

func newRecorder(disk uint32, name string, nodes []*proc.Node, hands []*hand, nextID *atomic.Uint64) *recorder {
	return &recorder{disk: disk, name: name, nodes: nodes, hands: hands, begin: time.Now(), stop: make(chan struct{}), nextID: nextID}
}

func (r *recorder) start(seed uint64) {
	for i := range r.nodes {
		for k := range workersPerNode {
			w := &worker{r: r, at: i, number: i*workersPerNode + k, rng: rand.New(rand.NewPCG(seed, uint64(i*workersPerNode+k)))}
			r.wg.Go(w.run)
		}
	}
	r.wg.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 0x686f6d65))
		for r.sleep(2*time.Second + rand.N(7*time.Second)) {
			r.home.Store(int32(rng.IntN(len(r.nodes))))
		}
	})
}

// flee moves the home, as a program is started elsewhere when its machine is gone.
func (r *recorder) flee() {
	r.home.Store((r.home.Load() + 1) % int32(len(r.nodes)))
}

// sleep returns false when the recorder stops.
func (r *recorder) sleep(d time.Duration) bool {
	select {
	case <-r.stop:
		return false
	case <-time.After(d):
		return true
	}
}

// finish ends the workers, and says which operations do not return within a time.
func (r *recorder) finish(within time.Duration) (hanging []*history.Op) {
	close(r.stop)
	done := make(chan struct{})
	go func() { r.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(within):
		r.stalled.Range(func(op, _ any) bool { hanging = append(hanging, op.(*history.Op)); return true })
	}
	return hanging
}

// worker is one program that uses the disk through one node's mount.
type worker struct {
	r      *recorder
	at     int
	number int
	rng    *rand.Rand
	file   *handFile
	wrote  bool // file has the disk attached, maybe
}

func (w *worker) run() {
	defer w.close()
	buf := make([]byte, maxSectors*history.SectorBytes)
	for home := false; ; {
		rest := rand.N(pause)
		if home {
			rest /= 4
		}
		if !w.r.sleep(rest) {
			return
		}
		home = int(w.r.home.Load()) == w.at
		if w.wrote && !home {
			w.close()
		}
		if w.file == nil {
			f, err := w.r.hands[w.number].open(w.r.nodes[w.at].Path(w.r.name), unix.O_RDWR)
			if err != nil {
				if !w.r.sleep(pauseAfterError) {
					return
				}
				continue
			}
			w.file = f
		}
		kind := history.Read
		switch {
		case home && w.wrote && w.rng.IntN(flushesAtHome) == 0:
			kind = history.Flush
		case home && w.rng.IntN(2) == 0, !home && w.rng.IntN(writesAwayOfHome) == 0:
			kind = history.Write
		}
		count := 1 + w.rng.IntN(maxSectors)
		if w.rng.IntN(2) == 0 {
			count = 1
		}
		if err := w.do(buf[:count*history.SectorBytes], kind, w.sector(count)); err != nil {
			w.close()
			if !w.r.sleep(pauseAfterError) {
				return
			}
		}
	}
}

// sector chooses where to read or write. All workers use the same few sectors for a while; some lie across the border of two blocks.
func (w *worker) sector(count int) int64 {
	generation := int64(time.Since(w.r.begin) / windowFor)
	first := generation * 1021 * window % (diskSectors - window)
	if generation%3 == 0 {
		first = (generation/3+1)*(1<<20)/history.SectorBytes%diskSectors - window/2 // the disk has blocks of 1 MiB
	}
	first = min(max(first, 0), diskSectors-window)
	return first + w.rng.Int64N(int64(window-count+1))
}

// do runs one operation and records it.
func (w *worker) do(p []byte, kind history.Kind, sector int64) error {
	o := &history.Op{Kind: kind, Node: w.r.nodes[w.at].Name, Worker: w.number, Sector: sector, Count: len(p) / history.SectorBytes}
	switch kind {
	case history.Write:
		w.wrote = true
		o.ID = history.ID(w.r.nextID.Add(1))
		history.Fill(p, w.r.disk, sector, o.ID)
	case history.Flush: // through a node that has lost the disk since, it says nothing of what others wrote
		o.Sector, o.Count, o.Own = 0, 0, true
	case history.Read:
	}
	o.Call = time.Now()
	w.r.stalled.Store(o, nil)
	switch kind {
	case history.Write:
		o.Err = w.file.write(p, sector*history.SectorBytes)
	case history.Flush:
		o.Err = w.file.sync()
	case history.Read:
		o.Err = w.file.read(p, sector*history.SectorBytes)
	}
	o.Ret = time.Now()
	w.r.stalled.Delete(o)
	switch {
	case errors.Is(o.Err, syscall.EBUSY):
		o.End = history.Refused
	case o.Err != nil:
		o.End = history.Maybe
	case kind == history.Read:
		o.Saw = w.r.see(p, sector)
	}
	w.r.Add(o)
	return o.Err
}

// see names the writes that sectors are from.
func (r *recorder) see(p []byte, sector int64) []history.ID {
	ids := make([]history.ID, len(p)/history.SectorBytes)
	for i := range ids {
		id, err := history.Saw(p[i*history.SectorBytes:][:history.SectorBytes], r.disk, sector+int64(i))
		if err != nil {
			text := err.Error()
			r.faulty.CompareAndSwap(nil, &text)
		}
		ids[i] = id
	}
	return ids
}

func (w *worker) close() {
	if w.file != nil {
		_ = w.file.close() // it flushes; what that fails at, the history will tell
		w.file, w.wrote = nil, false
	}
}

// readAll reads the whole disk through one mount and records it.
func (r *recorder) readAll(n *proc.Node, worker int) ([]byte, error) {
	f, err := os.Open(n.Path(r.name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	o := &history.Op{Node: n.Name, Worker: worker, Count: diskSectors, Call: time.Now()}
	all := make([]byte, diskBytes)
	if _, err := f.ReadAt(all, 0); err != nil {
		return nil, fmt.Errorf("read %s through %s: %w", r.name, n.Name, err)
	}
	o.Ret = time.Now()
	o.Saw = r.see(all, 0)
	r.Add(o)
	return all, nil
}

// summary counts operations and tells the longest.
func (r *recorder) summary() (counts map[string]int, longest []*history.Op) {
	counts = map[string]int{}
	for _, o := range r.Ops() {
		kind := [...]string{"reads", "writes", "flushes"}[o.Kind]
		switch {
		case o.Err == nil:
			counts[kind]++
		default:
			if no := syscall.Errno(0); errors.As(o.Err, &no) {
				counts[kind+" failed, "+no.Error()]++
			} else {
				counts[kind+" failed"]++
			}
		}
		if o.Took() > stallWorthTold {
			longest = append(longest, o)
		}
	}
	slices.SortFunc(longest, func(a, b *history.Op) int { return int(b.Took() - a.Took()) })
	return counts, longest
}
