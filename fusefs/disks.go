package fusefs

import (
	"context"
	"time"

	"ukai"
)

// Disks is what fusefs needs of a node: the disks there are. Its methods are called from many goroutines at once.
//
// Contexts handed to Disks and Disk end when the kernel says that the caller was interrupted. They are only valid
// until the method returns: the channel behind Done is used again for other requests. Selecting on Done costs nothing;
// deriving a context from it (context.WithTimeout) costs a goroutine until the derived one is cancelled.
type Disks interface {
	// List returns all live disks, in any order. Of disks that share a name only one is shown.
	List(ctx context.Context) ([]Info, error)
	// Stat returns the facts of the disk of that name, or ukai.ErrNotFound. It is called for every lookup and stat.
	Stat(ctx context.Context, name string) (Info, error)
	// Open returns a handle of the disk, for reading and writing, without attaching it. ukai.ErrNotFound: there is no
	// such disk; ukai.ErrExists: several live disks have this name, and an administrator has to rename one.
	Open(ctx context.Context, name string) (Disk, error)
	// Space returns the figures for statfs.
	Space(ctx context.Context) (Space, error)
}

// Info describes one disk in the directory.
type Info struct {
	Name    string
	ID      ukai.DiskID
	Size    int64     // bytes
	ModTime time.Time // shown as all three times of the file

	// Allocated is how many bytes of the disk hold data, as du counts them; programs take a file that has fewer than
	// its size as sparse and ask for its holes. 0 means not known, and shows a file without holes.
	Allocated int64

	// ReadOnly says that the file can only be read: it is shown without permission to write, and opening it for that fails with EROFS.
	ReadOnly bool
}

// Space is what df shows, in bytes.
type Space struct {
	Total int64 // what the stores could hold
	Free  int64 // what is not used of it
	Avail int64 // what may still be used, without the reserves
}

// Disk is one handle of a disk, as a program that opened the file has it. All methods may be called at once from many
// goroutines; none may touch a buffer after it has returned, also not when ctx ended.
//
// When ctx ends a method returns an error for which errors.Is(err, context.Canceled) or DeadlineExceeded holds; a
// mutation may then have happened in part, and may be tried again.
type Disk interface {
	ID() ukai.DiskID
	// Size returns the present size in bytes; it may grow while the disk is open.
	Size() int64
	// BlockSize returns the unit of placement in bytes.
	BlockSize() int

	// ReadAt fills p from off. It is called only for ranges within Size.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// WriteAt writes p at off, both of any alignment. It is called only for ranges within Size, and while attached.
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	// Flush returns when all writes that were answered before are durable on every in-sync replica.
	Flush(ctx context.Context) error
	// Discard gives up n bytes from off, which read as zeros afterwards.
	Discard(ctx context.Context, off, n int64) error
	// Zero makes n bytes from off read as zeros.
	Zero(ctx context.Context, off, n int64) error
	// NextData returns the first offset at or after off that may hold data; io.EOF or the size mean that there is none.
	NextData(ctx context.Context, off int64) (int64, error)
	// NextHole returns the first offset at or after off that is in a hole; the end of the disk counts as one.
	NextHole(ctx context.Context, off int64) (int64, error)
	// Resize changes the size, to a larger one only.
	Resize(ctx context.Context, size int64) error

	// Attach makes this node the writer of the disk, or returns ukai.ErrHeld if another node is. It is counted: each
	// Attach that returned nil is followed by one Detach of the same handle, and the last Detach of all handles flushes
	// and lets the disk go. An Attach that returned an error does not count. A Detach that returns an error does.
	Attach(ctx context.Context) error
	Detach(ctx context.Context) error

	// Facts returns what the user.ukai.* attributes say: name without that prefix -> value.
	Facts(ctx context.Context) map[string]string
	// Close ends this handle, which is not attached any more.
	Close() error
}

// Elsewhere is what a Disk may have besides: whether another node holds it. QEMU asks this way, before it takes its
// own locks, whether somebody uses an image.
type Elsewhere interface {
	HeldElsewhere(ctx context.Context) bool
}
