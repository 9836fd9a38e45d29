package wire

import (
	"errors"
	"slices"
	"sync"

	"github.com/quic-go/quic-go"
)

// sendStream is what the writer needs of a QUIC stream.
type sendStream interface {
	TryWriteAll([]byte) error
	Write([]byte) (int, error)
}

const (
	// inlineFrame is the largest frame that its sender hands to QUIC itself: QUIC copies it and never blocks the
	// sender. Larger frames are left to a goroutine that QUIC may block: no copy, and the sender goes on.
	inlineFrame = headerSize + 16<<10
	// crowdedFrame is the same while other requests of the stream are under way: then it is cheaper to gather
	// frames than to have QUIC copy one behind the other.
	crowdedFrame = 1 << 10
	// inlineRounds is how often a sender carries on with what others have left behind in the meantime, before it
	// leaves the rest to a goroutine: a sender must not become the servant of all others.
	inlineRounds = 4
	// combineBytes is how much the goroutine gathers from small frames for one call of QUIC.
	combineBytes = 64 << 10
)

// writer sends frames on one stream, in the order of send. Whoever finds it idle writes at once; frames that arrive
// while someone is writing are queued, and go out together with the next write. How much can be queued is bounded
// by the budgets that the frames were taken from.
type writer struct {
	stream sendStream
	pool   *buffers
	spawn  func(func()) bool // runs f on a goroutine that Close waits for; false if the endpoint is closed
	broken func(error)       // called at most once, when the stream cannot be written any more

	mu    sync.Mutex
	busy  bool // someone is writing, and looks at queue before leaving
	queue []*buffer
	err   error
}

// send takes f and returns without waiting for the network. crowded says that more is about to be sent.
func (w *writer) send(f *buffer, crowded bool) {
	inline := inlineFrame
	if crowded {
		inline = crowdedFrame
	}
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		w.pool.put(f)
		return
	}
	if w.busy {
		w.queue = append(w.queue, f)
		w.mu.Unlock()
		return
	}
	w.busy = true
	w.mu.Unlock()

	for range inlineRounds {
		if len(f.b) > inline {
			break
		}
		err := w.stream.TryWriteAll(f.b)
		if errors.Is(err, quic.ErrWouldBlock) {
			break // no room in the peer's window
		}
		w.pool.put(f)
		if err != nil {
			w.fail(err)
			return
		}
		if f = w.next(); f == nil {
			return
		}
	}
	if !w.spawn(func() { w.flush(f) }) {
		w.pool.put(f)
		w.fail(errClosing)
	}
}

// next takes the first queued frame, or ends the turn of whoever is writing.
func (w *writer) next() *buffer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		w.busy = false
		return nil
	}
	f := w.queue[0]
	w.queue = slices.Delete(w.queue, 0, 1)
	return f
}

// flush writes f and then all that is queued, until nothing is.
func (w *writer) flush(f *buffer) {
	batch := []*buffer{f}
	scratch := w.pool.get(combineBytes)
	defer w.pool.put(scratch)
	for {
		joined := scratch.b[:0]
		for i, f := range batch {
			var err error
			if len(joined)+len(f.b) > cap(scratch.b) {
				_, err = w.stream.Write(joined)
				joined = joined[:0]
			}
			switch {
			case err != nil:
			case len(f.b) > inlineFrame:
				if len(joined) > 0 {
					_, err = w.stream.Write(joined)
					joined = joined[:0]
				}
				if err == nil {
					_, err = w.stream.Write(f.b)
				}
			default:
				joined = append(joined, f.b...)
			}
			w.pool.put(f)
			batch[i] = nil
			if err != nil {
				for _, f := range batch[i+1:] {
					w.pool.put(f)
				}
				w.fail(err)
				return
			}
		}
		if len(joined) > 0 {
			if _, err := w.stream.Write(joined); err != nil {
				w.fail(err)
				return
			}
		}
		w.mu.Lock()
		if len(w.queue) == 0 {
			w.busy = false
			w.mu.Unlock()
			return
		}
		batch, w.queue = w.queue, batch[:0]
		w.mu.Unlock()
	}
}

// fail drops what is queued and everything that comes.
func (w *writer) fail(err error) {
	w.mu.Lock()
	first := w.err == nil
	if first {
		w.err = err
	}
	queue := w.queue
	w.queue = nil
	w.busy = false
	w.mu.Unlock()
	for _, f := range queue {
		w.pool.put(f)
	}
	if first {
		w.broken(err)
	}
}
