package ukai

import (
	"errors"
	"fmt"
)

// Sentinel errors. Test for them with errors.Is; the same holds whether the error arose on this node or on a peer,
// because each has a Code that crosses the wire.
var (
	ErrInvalid     = errors.New("invalid")                           // the request can never succeed as it is
	ErrNotFound    = errors.New("not found")                         // no such disk, node, replica or key
	ErrExists      = errors.New("already exists")                    // the name or id is taken
	ErrFenced      = errors.New("fenced")                            // a newer epoch or session owns the replica (see FencedError)
	ErrRestarted   = errors.New("replica restarted")                 // the replica's volatile memory is not the one that was sealed
	ErrNoQuorum    = errors.New("no majority of arbiters")           // the quorum record cannot be read or changed now
	ErrInDoubt     = errors.New("outcome unknown")                   // a change may or may not have been committed
	ErrRejected    = errors.New("refused by the quorum record")      // the change's guard does not hold
	ErrHeld        = errors.New("attached elsewhere")                // another node holds the disk (see HeldError)
	ErrNotAttached = errors.New("not attached")                      // this node does not hold the disk
	ErrNoSpace     = errors.New("no space")                          // a node's store has reached its reserve (see NodeError)
	ErrMedia       = errors.New("media error")                       // the file system below a replica returned an error
	ErrCorrupt     = errors.New("corrupt")                           // a checksum or structure does not hold
	ErrUnreachable = errors.New("unreachable")                       // no connection to the peer
	ErrTimeout     = errors.New("timed out")                         // no answer in time; the outcome at the peer is unknown
	ErrOverloaded  = errors.New("overloaded")                        // a named bound was reached; try again later
	ErrClosed      = errors.New("closed")                            // the object was closed
	ErrSuspended   = errors.New("suspended")                         // too few in-sync replicas; I/O waits
	ErrLost        = errors.New("acknowledged writes were lost")     // poisoned: the last copy of unflushed data is gone
	ErrClockSkew   = errors.New("clock too far ahead")               // a stamp from more than a minute in the future
	ErrVersion     = errors.New("unsupported version")               // written by a newer release
	ErrLocked      = errors.New("locked")                            // a lock or data directory is in use
	ErrPermission  = errors.New("not permitted")                     // the operation exists but not here
	ErrUnmet       = errors.New("placement rule cannot be met")      // see the reasons per node in the text
	ErrQuarantined = errors.New("quarantined")                       // the node's database is older than what peers remember of it, or it was retired
	ErrUnavailable = errors.New("no in-sync replica can be reached") // data cannot be read now
	ErrUnsupported = errors.New("unsupported")                       // this release does not do that
)

// codes gives each sentinel its number on the wire. Numbers are never reused.
var codes = [...]error{
	1: ErrInvalid, 2: ErrNotFound, 3: ErrExists, 4: ErrFenced, 5: ErrRestarted, 6: ErrNoQuorum, 7: ErrInDoubt, 8: ErrRejected,
	9: ErrHeld, 10: ErrNotAttached, 11: ErrNoSpace, 12: ErrMedia, 13: ErrCorrupt, 14: ErrUnreachable, 15: ErrTimeout,
	16: ErrOverloaded, 17: ErrClosed, 18: ErrSuspended, 19: ErrLost, 20: ErrClockSkew, 21: ErrVersion, 22: ErrLocked,
	23: ErrPermission, 24: ErrUnmet, 25: ErrQuarantined, 26: ErrUnavailable, 27: ErrUnsupported,
}

// CodeUnknown is the code of an error that is none of the sentinels.
const CodeUnknown = 0xffff

// Code returns the number by which err's sentinel crosses the wire: 0 for nil, CodeUnknown for an error of no kind.
func Code(err error) uint16 {
	if err == nil {
		return 0
	}
	for c, s := range codes {
		if s != nil && errors.Is(err, s) {
			return uint16(c)
		}
	}
	return CodeUnknown
}

// Sentinel returns the error that Code gave this number, or nil if it is not known here.
func Sentinel(code uint16) error {
	if int(code) < len(codes) {
		return codes[code]
	}
	return nil
}

// FencedError is ErrFenced with the epoch that owns the replica now.
type FencedError struct{ Epoch Epoch }

func (e *FencedError) Error() string { return fmt.Sprintf("fenced by epoch %v", e.Epoch) }

// Is makes errors.Is(err, ErrFenced) hold.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// HeldError is ErrHeld with the node that holds the disk.
type HeldError struct {
	Node NodeID
	Name string // the node's name, "" if not known
}

func (e *HeldError) Error() string {
	if e.Name != "" {
		return "attached on node " + e.Name
	}
	return "attached on node " + e.Node.Short()
}

// Is makes errors.Is(err, ErrHeld) hold.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// NodeError says on which node an error arose. Its text begins with the node's name.
type NodeError struct {
	Node NodeID
	Name string // the node's name, "" if not known
	Err  error
}

func (e *NodeError) Error() string {
	if e.Name != "" {
		return "node " + e.Name + ": " + e.Err.Error()
	}
	return "node " + e.Node.Short() + ": " + e.Err.Error()
}
func (e *NodeError) Unwrap() error { return e.Err }
