package fusefs

import (
	"context"
	"errors"
	"syscall"

	"ukai"
)

// errnos says which errno each error becomes. The first that matches counts.
//
// Programs on a regular file expect few errors. ENOSPC makes QEMU pause the guest (werror=enospc), EBUSY and EPERM
// tell a person what to look for; all that is about data that cannot be had now is EIO, as from a broken disk.
var errnos = [...]struct {
	err   error
	errno syscall.Errno
}{
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
	{errRefused, syscall.EPERM},
	{errPastEnd, syscall.ENOSPC},
	{errNoMatch, syscall.ENXIO},
	{errConflict, syscall.EAGAIN},
	{errTooManyLocks, syscall.ENOLCK},
	{errBadHandle, syscall.EBADF},
	{errReadOnly, syscall.EROFS},
	// It makes the kernel look the name up anew and try again, before a program gets to see it.
	{errStale, syscall.ESTALE},
	{errPanic, syscall.EIO},

	{ukai.ErrHeld, syscall.EBUSY},
	{ukai.ErrNoSpace, syscall.ENOSPC},
	{ukai.ErrFenced, syscall.EIO},
	{ukai.ErrSuspended, syscall.EIO},
	{ukai.ErrLost, syscall.EIO},
	{ukai.ErrMedia, syscall.EIO},
	{ukai.ErrCorrupt, syscall.EIO},
	{ukai.ErrUnavailable, syscall.EIO},
	{ukai.ErrNotAttached, syscall.EIO},
	{ukai.ErrRestarted, syscall.EIO},
	{ukai.ErrNoQuorum, syscall.EIO},
	{ukai.ErrInDoubt, syscall.EIO},
	{ukai.ErrQuarantined, syscall.EIO},
	{ukai.ErrUnmet, syscall.EIO},
	{ukai.ErrClockSkew, syscall.EIO},
	{ukai.ErrVersion, syscall.EIO},
	{ukai.ErrClosed, syscall.EIO},
	{ukai.ErrUnreachable, syscall.EIO},
	{ukai.ErrTimeout, syscall.ETIMEDOUT},
	{ukai.ErrNotFound, syscall.ENOENT},
	// The only way in which this reaches a file operation is that two live disks have one name.
	{ukai.ErrExists, syscall.EBUSY},
	{ukai.ErrLocked, syscall.EBUSY},
	{ukai.ErrOverloaded, syscall.EBUSY},
	{ukai.ErrRejected, syscall.EPERM},
	{ukai.ErrPermission, syscall.EPERM},
	{ukai.ErrInvalid, syscall.EINVAL},
	{ukai.ErrUnsupported, syscall.EOPNOTSUPP},
}

// Errors of this package's own making.
var (
	errRefused      = errors.New("not by file operation")
	errPastEnd      = errors.New("past the end of the disk")
	errNoMatch      = errors.New("no data or hole from there on")
	errConflict     = errors.New("lock conflicts")
	errTooManyLocks = errors.New("too many locks on one file")
	errBadHandle    = errors.New("no such open file")
	errReadOnly     = errors.New("can only be read")
	errStale        = errors.New("the name is another disk's now, or nobody's")
	errPanic        = errors.New("panic")
)

// worthLog says whether an error belongs in the log because a program's "I/O error" does not say enough. What the
// program did wrong itself, and what was explained already, does not.
func worthLog(n syscall.Errno, err error) bool {
	switch n {
	case syscall.EIO, syscall.ETIMEDOUT, syscall.EBUSY:
		return true
	}
	return errors.Is(err, ukai.ErrNoSpace)
}

// errno returns the errno for err and whether err was of a known kind; one that is not becomes EIO.
func errno(err error) (syscall.Errno, bool) {
	if err == nil {
		return 0, true
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno, true
		}
	}
	return syscall.EIO, false
}
