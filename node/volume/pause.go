package volume

import "context"

// pausing is whether replicas of a disk are brought back. Disk.mu guards it.
type pausing struct {
	paused  bool
	going   context.Context // ends when it is paused
	stop    context.CancelFunc
	flipped chan struct{} // closed and replaced at each change
}

func newPausing() pausing {
	p := pausing{flipped: make(chan struct{})}
	p.going, p.stop = context.WithCancel(context.Background())
	return p
}

// Pause stops bringing replicas of the disk back, or lets it go on, whoever holds the disk from here. A replica that is being brought up to date stays
// syncing, which promises nothing; going on, only what differs is copied.
func (d *Disk) Pause(paused bool) {
	d.mu.Lock()
	if d.pausing.paused == paused {
		d.mu.Unlock()
		return
	}
	d.pausing.stop()
	old := d.pausing.flipped
	d.pausing = newPausing()
	if d.pausing.paused = paused; paused {
		d.pausing.stop()
	} else {
		d.tries.hurry()
	}
	close(old)
	d.mu.Unlock()
}

// Hurry has replicas that could not be brought back tried again at once.
func (d *Disk) Hurry() {
	d.mu.Lock()
	d.tries.hurry()
	close(d.pausing.flipped)
	d.pausing.flipped = make(chan struct{})
	d.mu.Unlock()
}

// pauses returns whether replicas are brought back now, and until when that holds.
func (d *Disk) pauses() pausing {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pausing
}
