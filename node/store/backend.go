package store

import (
	"context"

	"ukai"
)

// Limits of the key/value part.
const (
	// MaxKey is the longest key in bytes.
	MaxKey = 1 << 10
	// MaxValue is the largest value in bytes.
	MaxValue = 256 << 10
	// MaxBatchKeys and MaxBatchBytes bound one Put: more keys, or more bytes of keys and values together, are refused
	// with ukai.ErrInvalid, since a batch is one atomic record of the database's log. Split what need not be atomic.
	MaxBatchKeys  = 4096
	MaxBatchBytes = 512 << 10
)

// Backend is a node's store. Store and Mem are Backends; all methods may be called concurrently.
//
// Errors match ukai's sentinels: ErrNotFound, ErrExists, ErrInvalid, ErrNoSpace, ErrMedia, ErrCorrupt, ErrClosed.
type Backend interface {
	// Incarnation names the life of this node's volatile memory. It stays the same while the machine is up, whatever
	// becomes of the process, and is another after a reboot or on another store.
	Incarnation() ukai.Incarnation

	// Get returns a copy of a key's value.
	Get(key string) ([]byte, error)
	// Put applies all of kvs or, after an error or a crash, possibly none, never some. With sync it returns after the
	// batch is durable; calls at the same time share one fdatasync. If ctx ends while the batch is on its way to
	// stable storage, Put returns ctx's error and the batch may or may not survive a crash.
	Put(ctx context.Context, sync bool, kvs ...KV) error
	// Scan calls f for the keys with a prefix, in the order of their bytes, as of the moment of the call. f owns v and
	// may use the Backend. The first error of f ends the scan and is returned.
	Scan(prefix string, f func(k string, v []byte) error) error

	// Space tells how full the file system is. Below the reserve, replicas take no new allocations.
	Space() (Space, error)

	// Create makes an empty replica in StateNew, durably. The id must be new to this store.
	Create(ctx context.Context, disk ukai.DiskID, rid ukai.ReplicaID, cfg ReplicaConfig) error
	// Adopt makes a replica of what a retired one has: in StateNew, with its size, data, stamps and checksums, but without its fence and its
	// stable stamp, so that every block that may hold data counts as one that may differ. The old one must not be open, and is gone when Adopt returns.
	// An interrupted Adopt is finished when the store is next opened. to must be new to this store.
	Adopt(ctx context.Context, disk ukai.DiskID, from, to ukai.ReplicaID) error
	// OpenReplica opens a replica; it can be open once at a time (ukai.ErrLocked). A replica that is broken does not
	// open (ukai.ErrMedia).
	OpenReplica(disk ukai.DiskID, rid ukai.ReplicaID) (Replica, error)
	// Replicas lists what the store holds, ordered by disk and replica.
	Replicas() []ReplicaInfo
	// Remove deletes a replica's data and everything known about it. It must not be open. An interrupted Remove is
	// finished when the store is next opened.
	Remove(ctx context.Context, disk ukai.DiskID, rid ukai.ReplicaID) error
	// Orphans lists paths below replicas/ that no header names. The store never deletes them.
	Orphans() []string

	// Close closes every open replica, as Replica.Close does, and then the store.
	Close() error
}

// Replica is this node's copy of one disk: data, and a stamp for each block that was ever written.
//
// Sectors (ukai.SectorSize) are atomic, larger writes are not. Concurrent operations on overlapping ranges are the
// caller's to order. No slice is kept after a call returns.
type Replica interface {
	Size() int64
	BlockSize() int

	// ReadAt fills p from off; what was never written reads as zeros. A read error does not break the replica.
	ReadAt(p []byte, off int64) error
	// ReadStored is ReadAt of what the device has, not of what was read or written before and is still in memory, as far as the kernel can be
	// told so: what is not on the device yet comes from memory.
	ReadStored(p []byte, off int64) error
	// WriteAt writes p at off, to the page cache. The caller has raised the stamps of the blocks it touches. A write
	// that needs new space fails with ukai.ErrNoSpace while the file system is below its reserve; overwriting goes on.
	// After an error any of the sectors may have been written.
	WriteAt(p []byte, off int64) error
	// Zero makes n bytes from off read as zeros.
	Zero(off, n int64) error
	// Discard does what Zero does, and gives back the space of every whole file system block in the range. Stamps stay.
	Discard(off, n int64) error
	// Sync makes everything durable that was written by calls that returned before Sync was called. Calls at the same
	// time share one fdatasync; none is issued if nothing was written since the last. A failure breaks the replica
	// for ever. Stamps need no Sync: they are durable when Raise returns.
	Sync(ctx context.Context) error

	// Raise makes sure that the stamps of blocks from through to are at least s, durably, before it returns. Blocks
	// that have such a stamp already cost no I/O, no lock and no memory. After an error no block counts as raised
	// unless Stamp says so.
	Raise(ctx context.Context, from, to ukai.Index, s ukai.BlockStamp) error
	// Stamp returns a block's stamp, and whether it has one.
	Stamp(index ukai.Index) (ukai.BlockStamp, bool)
	// Newer lists the blocks whose stamp is newer than a given one, in order; with the zero stamp, all that have one.
	Newer(than ukai.BlockStamp) []BlockInfo
	// Quiet returns a block's stamp, and whether the block is quiet: its stamp is not newer than the stable one, so that no write to it is
	// under way, and none will be without a newer stamp. Any change of its data from here on makes SetChecksums refuse.
	Quiet(index ukai.Index) (ukai.BlockStamp, bool)
	// SetChecksums notes, lazily, the checksums of a quiet block, one per SumBytes, of data that was read after Quiet returned the stamp s. It
	// keeps nothing if anything has changed since. Checksums end when the block's stamp is raised, or its data is changed otherwise: then
	// durably before it is.
	SetChecksums(ctx context.Context, index ukai.Index, s ukai.BlockStamp, sums []Sum) (kept bool, err error)
	// Checksums returns the checksums that the data of a block must have, nil if they are not known.
	Checksums(index ukai.Index) ([]Sum, error)
	// Restore writes back what was there: WriteAt of all that one checksum is of, which leaves the checksums of the block if p has it.
	Restore(p []byte, off int64) error
	// DropBlock makes a block as if it had never been written: its data is discarded durably, then its stamp goes.
	DropBlock(ctx context.Context, index ukai.Index) error

	// NextData returns the first offset at or after off that may hold data, or Size if there is none.
	NextData(off int64) (int64, error)
	// NextHole returns the first offset at or after off that reads as zeros because nothing is stored, or Size.
	NextHole(off int64) (int64, error)
	// AllocatedBytes is the space the replica's data takes in the file system, 0 if that cannot be told.
	AllocatedBytes() int64

	// Header returns what must be known about the replica as a whole.
	Header() Header
	// Failed returns what broke the replica for ever (ukai.ErrMedia), nil if it works.
	Failed() error
	// SetFence raises the fence epoch, durably. A lower epoch is refused with ukai.FencedError. The first SetFence
	// turns StateNew into StateOpen.
	SetFence(ctx context.Context, epoch ukai.Epoch) error
	// SetStable notes that blocks stamped no later than s are equal and durable on all in-sync replicas, lazily; a
	// stamp older than the one noted changes nothing. The caller has had a Sync since those blocks were written. With
	// clearUnclean it also says that the replica's content is known to be good again.
	SetStable(s ukai.BlockStamp, clearUnclean bool) error
	// SetVersion notes the highest version of the disk's record seen here, lazily. Lower ones change nothing.
	SetVersion(version uint64) error
	// SetState changes the state, durably. StateRetired is final.
	SetState(ctx context.Context, state State) error
	// MarkClean syncs and then notes, durably, that nothing volatile is left, so that a power cut from here on does
	// not make the replica unclean. The next write takes the note back, durably, before it changes anything: use it
	// when a disk goes quiet, not between writes.
	MarkClean(ctx context.Context) error

	// Resize grows the replica to size bytes, durably. A smaller size is refused: see Shrink.
	Resize(ctx context.Context, size int64) error
	// Shrink cuts the replica to size bytes, durably, together with the data and stamps of the blocks beyond.
	Shrink(ctx context.Context, size int64) error

	// Fd returns the file descriptor of the data for handing reads to the kernel. It is valid until Close; ok is
	// false where there is none.
	Fd() (fd uintptr, ok bool)
	// Close waits for calls under way, marks the replica clean as MarkClean does, and closes it.
	Close() error
}

// KV is one change of a Put. A nil V deletes K; an empty one is a value.
type KV struct {
	K string
	V []byte
}

// Space is the state of the file system below a store, in bytes. Free is what an unprivileged process could take.
type Space struct {
	Total, Free, Reserve int64
}

// Full says whether new allocations are refused.
func (s Space) Full() bool { return s.Free < s.Reserve }

// ReplicaConfig says what a new replica is like.
type ReplicaConfig struct {
	Size      int64 // bytes; a multiple of 4096
	BlockSize int   // bytes; a power of two
}

// ReplicaInfo describes a replica, open or not.
type ReplicaInfo struct {
	Disk      ukai.DiskID
	Replica   ukai.ReplicaID
	Size      int64 // bytes
	BlockSize int   // bytes
	Header    Header
	Open      bool
	Broken    string // the failure that broke it, "" if none
	Err       error  // why its header cannot be read; then everything above except the ids is zero
}

// Header is what must be known about a replica as a whole.
type Header struct {
	// Fence is the highest epoch the replica was sealed with.
	Fence ukai.Epoch
	// Stable: blocks stamped no later are equal and durable on all in-sync replicas.
	Stable ukai.BlockStamp
	// Unclean means that volatile data may be gone: the replica was written in one incarnation, not marked clean, and
	// then opened in another. Everything synced is there; any of the sectors written after the last Sync may be as
	// they were before. Stamps are not affected. It stays until SetStable clears it.
	Unclean bool
	// Incarnation is the one in which the replica was last written.
	Incarnation ukai.Incarnation
	// Version is the highest version of the disk's record seen here.
	Version uint64
	State   State
	// Adopted means that the replica began with what another one had: see Backend.Adopt.
	Adopted bool
}

// State is where a replica is in its life.
type State uint8

// States of a replica.
const (
	StateNew      State = iota // created, never sealed
	StateOpen                  // in use
	StateRetired               // no longer in the disk's record; to be removed after the grace period
	stateCreating              // Create was interrupted: removed at the next Open
	stateRemoving              // Remove was interrupted: finished at the next Open
	stateAdopting              // Adopt likewise
)

// String returns the state in a word.
func (s State) String() string {
	switch s {
	case StateNew:
		return "new"
	case StateOpen:
		return "open"
	case StateRetired:
		return "retired"
	case stateCreating:
		return "creating"
	case stateRemoving:
		return "removing"
	case stateAdopting:
		return "adopting"
	}
	return "unknown"
}

// BlockInfo is a block and its stamp.
type BlockInfo struct {
	Index ukai.Index
	Stamp ukai.BlockStamp
}
