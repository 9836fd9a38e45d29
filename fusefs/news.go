package fusefs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// What the kernel may know of a disk that is no longer so.
type staleness uint8

const (
	staleName staleness = 1 << iota // what disk has the name
	staleAttr                       // its size and times
	staleData                       // pages of it
)

// news tells the kernel what to forget. Telling it may wait for the very requests that whoever has news is about to
// answer, so it is done by a goroutine of its own. What waits to be told is at most one entry per name.
type news struct {
	server *fuse.Server
	fs     *filesystem

	mu      sync.Mutex
	pending map[string]staleness
	wake    chan struct{} // of size 1
	stop    chan struct{}
	done    chan struct{}
}

func newNews(server *fuse.Server, fs *filesystem) *news {
	n := &news{
		server: server, fs: fs,
		pending: make(map[string]staleness),
		wake:    make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go n.run()
	return n
}

// add does not block. A nil news, as in a file system that is not mounted, tells nobody.
func (n *news) add(name string, s staleness) {
	if n == nil {
		return
	}
	n.mu.Lock()
	n.pending[name] |= s
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default: // it is awake already
	}
}

func (n *news) run() {
	defer close(n.done)
	for {
		select {
		case <-n.stop:
			return
		case <-n.wake:
		}
		n.mu.Lock()
		pending := n.pending
		n.pending = make(map[string]staleness)
		n.mu.Unlock()
		for name, s := range pending {
			n.tell(name, s)
		}
	}
}

// tell ignores what the kernel says: that it knows no such name or file is as good as having forgotten.
func (n *news) tell(name string, s staleness) {
	if s&staleName != 0 {
		n.server.EntryNotify(fuse.FUSE_ROOT_ID, name)
	}
	f := n.fs.named(name)
	if f == nil {
		return
	}
	switch {
	case s&staleData != 0:
		n.server.InodeNotify(f.node, 0, 0) // from 0 to the end
	case s&staleAttr != 0:
		n.server.InodeNotify(f.node, -1, 0) // no data
	}
}

// close ends it; the mount is gone, so that nothing it may be telling waits.
func (n *news) close() {
	close(n.stop)
	<-n.done
}
