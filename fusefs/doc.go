// Package fusefs shows this node's disks to the machine: a flat directory with one regular file per disk, whose name
// is the disk's name and whose size is the disk's size. It turns kernel calls into calls of a Disk and errors into
// errno values, and it knows nothing of how a disk keeps its data.
//
// # What a file does
//
// A file behaves like a block device that happens to be a regular file:
//
//   - Reads end at the disk's size. A write across the end is cut short, a write past it fails with ENOSPC.
//   - fsync and fdatasync return after Disk.Flush did. close does not sync, but see "Attaching".
//   - ftruncate to a larger size resizes the disk. To a smaller one it is refused with EPERM and a log line that
//     names the command.
//   - Opening with O_TRUNC, as cp, dd and a shell's > do, changes neither size nor content, as for a block device.
//     A program that skips holes because it trusts the truncation (cp of a sparse image without --sparse=never or
//     --sparse=always) leaves old data in them, so a warning is logged when the disk was not empty.
//     Config.RefuseTruncate makes such an open fail instead. truncate(2) by path to size 0 cannot be told apart from
//     O_TRUNC and is treated alike.
//   - fallocate punches holes (Discard) and zeroes ranges (Zero); plain allocation inside the disk succeeds and
//     does nothing. lseek finds data and holes. copy_file_range and reflinks are left to the kernel's own copying.
//   - chmod and chown to what is there already succeed, others fail with EPERM; times are accepted and ignored.
//   - user.ukai.* attributes tell the facts of a disk and cannot be set.
//   - Creating, removing, renaming and linking files fail with EPERM and a log line that names the command to use.
//
// All files are opened for direct I/O: the kernel keeps no pages that could be stale when the disk moves to another
// host, and writes to one file run in parallel. The exception is mmap, see Mount.Stale.
//
// # Attaching
//
// Opening and reading need no right to the disk. A node attaches a disk, that is, becomes its only writer, when
//
//   - a program locks byte 101 or 103 of the file, as QEMU does for an image that it may write. The disk is
//     detached when the last handle that holds such a byte lets go, by unlocking or by being released; or
//   - a handle that holds no such lock writes, discards, zeroes or resizes. The handle then counts as a writer until
//     the process that wrote first closes it (see handle.flush) or the kernel releases it.
//
// Attaching ends within a bounded time, with EIO if the disk cannot be had: a hypervisor that starts wants an error, not a
// hang. I/O of a disk that is attached waits for lost replicas as long as the disk's setting on-loss says.
//
// # Locks
//
// POSIX, open-file-description and flock locks are kept here, per node; only bytes 101 and 103 reach other nodes, by
// attaching. A lock of these bytes is refused while another node has the disk; a shared one on a file opened for reading
// only is granted without attaching, and who asks through it next is told of the conflict, which is how QEMU comes to say
// 'Failed to get "write" lock'. There is no deadlock detection: F_SETLKW waits until the lock is free or a signal comes. It
// does not wait for another node that has the disk: that is EAGAIN, too.
//
// # Signals
//
// A request whose caller dies ends at once with EINTR. Another signal does not disturb a request that ends within
// interruptGrace, so that programs with timers see a disk and not a terminal; a longer one then ends with EINTR.
//
// # Threads
//
// go-fuse reads requests with blocking system calls in up to GOMAXPROCS goroutines, each of which keeps a processor
// of the Go scheduler for a while. A daemon that serves a Mount should run with GOMAXPROCS of at least 8.
package fusefs
