package sim

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"ukai"
	"ukai/node"
	"ukai/node/volume"
	"ukai/testnet/history"
)

const (
	diskBytes  = 4 << 20
	maxSectors = 8  // of one operation
	window     = 24 // sectors in use at a time, so that operations meet
	windowFor  = 6 * time.Second
	writers    = 2 // of the program that has the disk
	readers    = 2 // elsewhere
	thinking   = 120 * time.Millisecond
	afterError = 400 * time.Millisecond
)

// use starts the programs of a disk: one that has it attached, on one node or another, and some that read it elsewhere.
func (c *campaign) use(d *disk, seed uint64) {
	c.work.Go(func() { c.own(d, rand.New(rand.NewPCG(seed, 0))) })
	for i := range readers {
		c.work.Go(func() { c.read(d, 10+i, rand.New(rand.NewPCG(seed, uint64(1+i)))) })
	}
}

// wait returns false when the programs are to end.
func (c *campaign) wait(d time.Duration) bool {
	select {
	case <-c.stop:
		return false
	case <-time.After(d):
		return true
	}
}

// volume returns a disk as a node sees it, nil while it cannot.
func (c *campaign) volume(n *node.Node, d *disk) *volume.Disk {
	if n == nil {
		return nil
	}
	v, err := n.OpenDisk(d.name)
	if err != nil {
		return nil
	}
	return v
}

// own moves a program from node to node, as virtual machines are moved: cleanly, or by starting it elsewhere while the old one
// runs on where nobody sees it.
func (c *campaign) own(d *disk, rng *rand.Rand) {
	var left sync.WaitGroup
	defer left.Wait()
	s := c.machines[rng.IntN(len(c.machines))]
	for refused := 0; c.wait(time.Duration(rng.Int64N(int64(thinking)))); {
		n := s.live.Load()
		v := c.volume(n, d)
		if v == nil {
			s = c.machines[rng.IntN(len(c.machines))]
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		var err error
		if force := refused > 3 && rng.IntN(3) == 0; force {
			c.logf("%s is taken over at %s", d.name, s.Name)
			err = v.Takeover(ctx, false)
		} else {
			err = v.Attach(ctx)
		}
		cancel()
		if err != nil {
			refused++
			if rng.IntN(3) == 0 {
				s = c.machines[rng.IntN(len(c.machines))]
			}
			if !c.wait(afterError) {
				return
			}
			continue
		}
		refused = 0
		h := &hold{c: c, d: d, s: s, n: n, v: v, end: make(chan struct{})}
		for i := range writers {
			seed := rng.Uint64()
			h.work.Go(func() { h.write(i, rand.New(rand.NewPCG(seed, 0))) })
		}
		c.wait(time.Second + time.Duration(rng.Int64N(int64(9*time.Second))))
		if rng.IntN(3) == 0 {
			// Left behind: it goes on until it is told that it lost the disk.
			refused = 10
			left.Go(h.close)
		} else {
			close(h.end)
			h.close()
		}
		if rng.IntN(4) > 0 {
			s = c.machines[rng.IntN(len(c.machines))]
		}
	}
}

// hold is a program that has the disk attached.
type hold struct {
	c    *campaign
	d    *disk
	s    *machine
	n    *node.Node
	v    *volume.Disk
	end  chan struct{}
	work sync.WaitGroup
}

// close waits for the program to end, flushes and lets the disk go.
func (h *hold) close() {
	h.work.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	o := &history.Op{Node: h.s.Name}
	h.flush(ctx, o)
	h.finish(o)
	if err := h.v.Detach(ctx); err != nil {
		h.c.logf("%s lets %s go: %v", h.s.Name, h.d.name, err)
	}
}

// errDown: of a node that has ended a flush says nothing, as nobody can ask it.
var errDown = errors.New("the node is down")

func (h *hold) flush(ctx context.Context, o *history.Op) {
	o.Kind, o.Call = history.Flush, h.c.clock.now()
	if o.Err = h.v.Flush(ctx); o.Err == nil && h.s.live.Load() != h.n {
		o.Err = errDown
	}
}

// finish records an operation.
func (h *hold) finish(o *history.Op) {
	o.Ret = h.c.clock.now()
	switch {
	case errors.Is(o.Err, ukai.ErrHeld), errors.Is(o.Err, ukai.ErrInvalid):
		o.End = history.Refused
	case o.Err != nil:
		o.End = history.Maybe
	}
	h.d.Add(o)
}

// ended says whether the program is to end.
func (h *hold) ended(rest time.Duration) bool {
	select {
	case <-h.end:
		return true
	case <-h.c.stop:
		return true
	case <-time.After(rest):
		return false
	}
}

// write reads and writes until it is told to end, or an operation fails.
func (h *hold) write(worker int, rng *rand.Rand) {
	buf := make([]byte, maxSectors*history.SectorBytes)
	ctx := context.Background()
	for !h.ended(time.Duration(rng.Int64N(int64(thinking)))) {
		count := 1 + rng.IntN(maxSectors)
		if rng.IntN(2) == 0 {
			count = 1
		}
		o := &history.Op{Node: h.s.Name, Worker: worker, Sector: h.c.sector(h.d, rng, count), Count: count}
		p, off := buf[:count*history.SectorBytes], o.Sector*history.SectorBytes
		switch pick := rng.IntN(20); {
		case pick < 10:
			o.Kind, o.ID = history.Write, history.ID(h.c.nextID.Add(1))
			history.Fill(p, h.d.number, o.Sector, o.ID)
			o.Call = h.c.clock.now()
			_, o.Err = h.v.WriteAt(ctx, p, off)
		case pick < 11:
			o.Kind = history.Write
			zero := h.v.Zero
			if rng.IntN(2) == 0 {
				zero = h.v.Discard
			}
			o.Call = h.c.clock.now()
			o.Err = zero(ctx, off, int64(len(p)))
		case pick < 13:
			o.Sector, o.Count = 0, 0
			h.flush(ctx, o)
		default:
			o.Call = h.c.clock.now()
			if _, o.Err = h.v.ReadAt(ctx, p, off); o.Err == nil {
				o.Saw = h.c.see(h.d, p, o.Sector)
			}
		}
		h.finish(o)
		if o.Err != nil {
			return
		}
	}
}

// sector chooses where an operation happens. All programs use the same few sectors for a while; some lie across the border of
// two blocks, some at the end of the disk.
func (c *campaign) sector(d *disk, rng *rand.Rand, count int) int64 {
	generation := time.Now().Unix() / int64(windowFor/time.Second)
	sectors, perBlock := d.size.Load()/history.SectorBytes, int64(ukai.MinBlockSize/history.SectorBytes)
	first := generation*1021*window%(sectors-window) + 1
	switch generation % 3 {
	case 0:
		first = (generation/3+1)*perBlock%sectors - window/2
	case 1:
		if generation%2 == 0 {
			first = sectors - window
		}
	}
	first = min(max(first, 0), sectors-window)
	return first + rng.Int64N(int64(window-count+1))
}

// see names the writes that sectors are from.
func (c *campaign) see(d *disk, p []byte, sector int64) []history.ID {
	ids := make([]history.ID, len(p)/history.SectorBytes)
	for i := range ids {
		id, err := history.Saw(p[i*history.SectorBytes:][:history.SectorBytes], d.number, sector+int64(i))
		if err != nil {
			c.journal.add(c.clock.now(), "VIOLATION: %s: %v", d.name, err)
		}
		ids[i] = id
	}
	return ids
}

// read reads on nodes that do not have the disk attached.
func (c *campaign) read(d *disk, worker int, rng *rand.Rand) {
	buf := make([]byte, maxSectors*history.SectorBytes)
	s := c.machines[rng.IntN(len(c.machines))]
	for c.wait(time.Duration(rng.Int64N(int64(2 * thinking)))) {
		if rng.IntN(20) == 0 {
			s = c.machines[rng.IntN(len(c.machines))]
		}
		v := c.volume(s.live.Load(), d)
		if v == nil {
			s = c.machines[rng.IntN(len(c.machines))]
			continue
		}
		count := 1 + rng.IntN(maxSectors)
		o := &history.Op{Node: s.Name, Worker: worker, Sector: c.sector(d, rng, count), Count: count, Call: c.clock.now()}
		p := buf[:count*history.SectorBytes]
		if _, o.Err = v.ReadAt(context.Background(), p, o.Sector*history.SectorBytes); o.Err == nil {
			o.Saw = c.see(d, p, o.Sector)
		} else {
			o.End = history.Maybe
		}
		o.Ret = c.clock.now()
		d.Add(o)
		if o.Err != nil && !c.wait(afterError) {
			return
		}
	}
}
