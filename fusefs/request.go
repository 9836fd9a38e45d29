package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// interruptGrace is how long a request may go on after a signal that does not end its caller.
const interruptGrace = time.Second

// request is the context of one kernel request: it ends when the kernel interrupts it. A channel is a pointer, so that
// making a context.Context of it does not allocate.
type request <-chan struct{}

// Deadline implements context.Context: there is none.
func (r request) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (r request) Done() <-chan struct{} { return r }

// Value implements context.Context: there are none.
func (r request) Value(any) any { return nil }

// Err implements context.Context.
func (r request) Err() error {
	select {
	case <-r:
		return context.Canceled
	default:
		return nil
	}
}

// again decides what becomes of a request that ended with err. If that was because its caller was interrupted, and
// the caller lives on, op gets one more chance of interruptGrace: regular files do not return EINTR elsewhere, and
// what would become of it is a failed flush in one program and SIGBUS in another that faulted a mapped page in.
func (fs *filesystem) again(err error, r request, caller uint32, op func(ctx context.Context) error) error {
	if err == nil || r.Err() == nil || !errors.Is(err, context.Canceled) || dying(caller) {
		return err
	}
	ctx, stop := context.WithTimeout(fs.life, interruptGrace)
	defer stop()
	if err = op(ctx); errors.Is(err, context.DeadlineExceeded) {
		return context.Canceled
	}
	return err
}

// dying says whether the thread has SIGKILL pending; the kernel gives it that also for other signals that end it.
// A thread of another pid namespace (0), or one that cannot be asked, counts as living.
func dying(tid uint32) bool {
	const sigkill = 1 << (9 - 1)
	if tid == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		if hex, ok := bytes.CutPrefix(line, []byte("SigPnd:")); ok {
			pending, err := strconv.ParseUint(string(bytes.TrimSpace(hex)), 16, 64)
			return err == nil && pending&sigkill != 0
		}
	}
	return false
}
