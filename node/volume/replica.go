package volume

import (
	"fmt"

	"ukai"
)

// fence is what a replica admits: operations of one epoch, and within it of one session of the holder's. The epoch is
// durable. The session is not: after a restart of the process there is none, and the holder must say hello, so that
// requests sent before the restart cannot be applied after newer ones. Pure.
type fence struct {
	epoch   ukai.Epoch
	session uint32 // 0: none
}

// admits says why an operation may not run, or nil. FencedError names the epoch that owns the replica now; when that is
// the caller's own epoch, the session was replaced by a newer one or lost.
func (f fence) admits(epoch ukai.Epoch, session uint32) error {
	if f.epoch != epoch || f.session != session || session == 0 {
		return &ukai.FencedError{Epoch: f.epoch}
	}
	return nil
}

// sealing is what a replica does with a seal.
type sealing uint8

const (
	sealRefuse  sealing = iota // a newer epoch owns the replica
	sealAgain                  // this epoch already owns it: answer once more, change nothing
	sealAdvance                // drain, make the epoch durable, begin session 1
)

func (f fence) onSeal(epoch ukai.Epoch) sealing {
	switch {
	case epoch < f.epoch || epoch == 0:
		return sealRefuse
	case epoch == f.epoch:
		return sealAgain
	}
	return sealAdvance
}

// onHello says why a new session may not begin, or nil. The holder names the incarnation it sealed: if the machine has
// restarted since, writes that were acknowledged may be gone, and this replica must not go on as if they were there.
func (f fence) onHello(epoch ukai.Epoch, session uint32, sealed, now ukai.Incarnation) error {
	switch {
	case epoch != f.epoch || epoch == 0:
		return &ukai.FencedError{Epoch: f.epoch}
	case sealed != now:
		return fmt.Errorf("incarnation %v was sealed and %v runs: %w", sealed, now, ukai.ErrRestarted)
	case session <= f.session:
		return &ukai.FencedError{Epoch: f.epoch}
	}
	return nil
}

// onHeartbeat says whether a replica confirms a holder's epoch, and whether it takes over the stable stamp that came
// along: only within the session in which the flush behind it was answered, for a machine that restarted since has lost
// newer writes and must stay unclean. A holder that names a session must know when that is over, or it counts on what the machine has lost. One that
// names none asks for the epoch alone, which is all that a lease needs: the fence is durable.
func (f fence) onHeartbeat(epoch ukai.Epoch, session uint32) (confirm, stable bool) {
	confirm = f.epoch == epoch && (session == 0 || f.session == session)
	return confirm, confirm && session != 0
}
