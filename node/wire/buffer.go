package wire

import "sync"

// buffer is a pooled piece of memory for one frame: header and payload in one, or a payload alone.
type buffer struct {
	b        []byte
	class    int
	owed     *budget // taken back with the buffer, may be nil
	cost     int     // of the request
	borrowed int     // bytes beyond it
}

// buffers pools frames by size, so that a reply of 90 bytes does not hold on to a mebibyte.
type buffers struct{ class [len(bufferSizes)]sync.Pool }

var bufferSizes = [...]int{512, headerSize + 4<<10, headerSize + 16<<10, headerSize + 64<<10, headerSize + 256<<10, headerSize + MaxPayload}

// get returns a buffer of n bytes with any content; n is at most headerSize+MaxPayload.
func (p *buffers) get(n int) *buffer {
	class := 0
	for bufferSizes[class] < n {
		class++
	}
	b, _ := p.class[class].Get().(*buffer)
	if b == nil {
		b = &buffer{b: make([]byte, bufferSizes[class]), class: class}
	}
	b.b = b.b[:n]
	return b
}

// put takes b back and returns what its owner owes. The buffer must not be touched any more.
func (p *buffers) put(b *buffer) {
	if b == nil {
		return
	}
	if b.owed != nil {
		b.owed.release(b.cost)
		if b.borrowed > 0 {
			b.owed.repay(b.borrowed)
		}
		b.owed, b.borrowed = nil, 0
	}
	p.class[b.class].Put(b)
}
