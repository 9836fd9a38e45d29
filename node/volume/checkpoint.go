package volume

import (
	"sync/atomic"
	"time"

	"ukai"
)

// A checkpoint makes all writes so far durable on every in-sync replica and then tells them so (protocol 3.4): blocks
// whose stamp is not newer than `stable` are equal and durable on all of them, and a takeover need not look at them.
const (
	checkpointEvery  = 60 * time.Second
	checkpointBlocks = 1024 // newly touched blocks after which a checkpoint does not wait for its time
)

// check is the part of an epoch between two checkpoints. Every write of it carries the same stamp.
type check struct {
	stamp   ukai.BlockStamp
	writes  *gate // closed when the checkpoint begins; empty when all writes with this stamp are on their replicas
	touched touched
}

func newCheck(epoch ukai.Epoch, n uint32, blocks uint64) *check {
	return &check{stamp: ukai.BlockStamp{Epoch: epoch, Check: n}, writes: newGate(), touched: newTouched(blocks)}
}

// due says whether it is time for the next checkpoint, given how long ago this one began.
func (c *check) due(age time.Duration) bool {
	n := c.touched.count.Load()
	return n >= checkpointBlocks || n > 0 && age >= checkpointEvery
}

// touched counts the blocks written since a checkpoint, each once. It grows with the blocks touched, not with the disk,
// and takes no lock.
type touched struct {
	count atomic.Int64
	pages []atomic.Pointer[touchedPage]
}

const touchedPageBlocks = 4096

type touchedPage [touchedPageBlocks / 64]atomic.Uint64

func newTouched(blocks uint64) touched {
	return touched{pages: make([]atomic.Pointer[touchedPage], (blocks+touchedPageBlocks-1)/touchedPageBlocks)}
}

// add notes that a block is written, and says whether it was the first time. Blocks beyond the size the disk had when
// the checkpoint began count each time: that only brings the next checkpoint forward.
func (t *touched) add(i ukai.Index) bool {
	at := uint64(i) / touchedPageBlocks
	if at >= uint64(len(t.pages)) {
		t.count.Add(1)
		return true
	}
	page := t.pages[at].Load()
	for page == nil {
		t.pages[at].CompareAndSwap(nil, new(touchedPage))
		page = t.pages[at].Load()
	}
	word, bit := &page[uint64(i)%touchedPageBlocks/64], uint64(1)<<(uint64(i)%64)
	if word.Load()&bit != 0 || word.Or(bit)&bit != 0 {
		return false
	}
	t.count.Add(1)
	return true
}

// slots is how many ticks back the age of outstanding requests is known.
const slots = 64

// outstanding tells how old the oldest unanswered request is without keeping a list or reading a clock per request:
// each is counted in the slot of the tick in which it was sent.
type outstanding struct {
	tick  atomic.Uint32
	count [slots]atomic.Int32
}

// begin counts a request and returns its slot, which end wants back.
func (o *outstanding) begin() uint32 {
	slot := o.tick.Load() % slots
	o.count[slot].Add(1)
	return slot
}

func (o *outstanding) end(slot uint32) { o.count[slot].Add(-1) }

// advance begins the next tick and returns how many ticks ago the oldest request was sent, or -1 if none is
// unanswered. A request older than slots ticks counts as younger; it has been noticed long before.
func (o *outstanding) advance() int {
	now := o.tick.Load()
	age := -1
	for back := range uint32(slots) {
		if o.count[(now-back)%slots].Load() > 0 {
			age = int(back)
		}
	}
	o.tick.Store(now + 1)
	return age
}
