// Package store keeps what one node has: its replicas of disks, and everything small that must survive a restart.
//
// Store is the real one, in a directory:
//
//	format                             the version of this layout
//	lock                               held (flock) by the one process that uses the directory; names its pid
//	db/                                badger: all keys below
//	replicas/<disk>/<rid>/<layer>.img  a sparse file per layer with the disk's own offsets; a hole reads as zeros
//
// The database holds four key spaces. Callers see only the first; see keys.go for the others:
//
//	k<key>                    what callers Put: identity, quorum records, the catalog's journal, peers
//	r<disk><rid>              the replica's header: fence, stable, unclean, incarnation, state
//	b<disk><rid><layer><index>  the stamp of a block, and its checksums while it is quiet
//	s<name>                   what the store knows about itself
//
// A replica that its disk does not name any more can become the first content of a new one: Adopt gives its files and stamps another name.
//
// # What is durable when
//
// Put with sync, Create, Adopt, SetFence, SetState and Raise return after their change is on stable storage. Data written by
// WriteAt, Zero and Discard is in the page cache: it survives the end of the process, but not of the machine, until a
// Sync that was called afterwards has returned. Put without sync, SetStable and SetVersion are likewise lazy; a power
// cut may keep any subset of the lazy changes, each Put batch wholly or not at all. A later durable change makes every
// earlier lazy one durable too.
//
// # Failure
//
// A replica whose file system fails a write, an allocation change or an fdatasync is broken for ever: after a failed
// fdatasync the kernel has marked the pages clean, so a second one would report success about data that is not there.
// Every later operation on it fails with ukai.ErrMedia, also after a restart. A failed read breaks nothing, because the
// block can be repaired from another replica. A database that fails to write takes the whole store with it.
//
// Mem is the same store on memory that can crash: it keeps only what was synced, and fails when told to.
package store
