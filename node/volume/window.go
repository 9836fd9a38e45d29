package volume

import (
	"math/bits"
	"sync"
	"time"
)

// With ack=local a guest is answered when the replica on its own node has a write (protocol, 12). The window is the
// mutations whose guest was answered and that other in-sync replicas may lack yet.

// Bounds of a disk's window. At either of them a guest waits until all replicas have what it writes.
const (
	maxWindowBytes = 8 << 20
	maxWindowAge   = time.Second // of the oldest mutation in it
)

// window keeps mutations in the order in which their guests were answered. Pure: the time is an argument.
type window struct {
	first, last *mutation
	bytes       int64
	number      uint64 // of the last one admitted
	bars        int    // nothing is admitted while this is not 0
	drains      []drain
}

// windowed is a mutation's place in the window.
type windowed struct {
	prev, next *mutation
	number     uint64 // 0: not in the window
	bytes      int64
	since      time.Duration
}

// drain is somebody who waits until all mutations up to a number are on all replicas.
type drain struct {
	upTo uint64
	done chan struct{}
}

// admit takes a mutation in, if there is room.
func (w *window) admit(op *mutation, bytes int64, now time.Duration) bool {
	if w.bars > 0 || w.bytes+bytes > maxWindowBytes || w.first != nil && now-w.first.window.since > maxWindowAge {
		return false
	}
	w.number++
	op.window = windowed{prev: w.last, number: w.number, bytes: bytes, since: now}
	if w.last == nil {
		w.first = op
	} else {
		w.last.window.next = op
	}
	w.last = op
	w.bytes += bytes
	return true
}

// remove takes a mutation out.
func (w *window) remove(op *mutation) {
	at := op.window
	op.window = windowed{}
	if at.prev == nil {
		w.first = at.next
	} else {
		at.prev.window.next = at.next
	}
	if at.next == nil {
		w.last = at.prev
	} else {
		at.next.window.prev = at.prev
	}
	w.bytes -= at.bytes
	kept := w.drains[:0]
	for _, d := range w.drains {
		if w.first == nil || w.first.window.number > d.upTo {
			close(d.done)
		} else {
			kept = append(kept, d)
		}
	}
	w.drains = kept
}

// drained returns a channel that is closed when everything admitted so far has been removed, nil if it has.
func (w *window) drained() <-chan struct{} {
	if w.first == nil {
		return nil
	}
	d := drain{upTo: w.number, done: make(chan struct{})}
	w.drains = append(w.drains, d)
	return d.done
}

// payloads pools the copies of what is written by mutations in the window: their guests' buffers are their own again.
// Sizes are powers of two.
var payloads [bits.UintSize]sync.Pool

const minPayload = 4096 // bytes

// payloadClass returns which pool has room for n bytes, and how much a buffer from there has.
func payloadClass(n int) (class, size int) {
	class = bits.Len(uint(max(n, minPayload) - 1))
	return class, 1 << class
}

func getPayload(n int) *[]byte {
	class, size := payloadClass(n)
	p, _ := payloads[class].Get().(*[]byte)
	if p == nil {
		q := make([]byte, size)
		p = &q
	}
	*p = (*p)[:n]
	return p
}

func putPayload(p *[]byte) {
	class, _ := payloadClass(cap(*p))
	payloads[class].Put(p)
}
