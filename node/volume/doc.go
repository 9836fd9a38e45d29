// Package volume is the data path: a disk as this node sees it.
//
// A Host is the holder's side of a node. It opens Disks; a Disk reads and writes, and at the first need claims the disk:
// it becomes the holder of a new epoch, seals the in-sync replicas, makes them equal where a holder before it may have
// left them different, and then serves. Replicas is the other side: this node's replicas, which admit only operations of
// the epoch and session they were last sealed for.
//
// # Guarantees (the unit is a sector of 512 bytes)
//
//   - WriteAt returns nil after every replica that may be in sync has the data. A replica that does not answer is dropped
//     from the in-sync set by the disk's arbiters before that, never silently passed over.
//   - ReadAt returns what the last completed write left there, on whichever node it is called, and across any change of
//     holder: a write that its holder could not finish took effect before the next holder serves, or never.
//   - Flush returns nil after all writes completed before it are on stable storage on every in-sync replica.
//   - A holder that was deposed completes no write once one in-sync replica is sealed for its successor, and answers no
//     read once its lease has run out, which the successor awaits if it could not seal them all.
//
// # Where decisions are made
//
// sets.go, rangelock.go (the queue), lease.go, checkpoint.go, takeover.go, replica.go, follow.go, returning.go and judge.go decide: no goroutine, clock,
// randomness or I/O, time is an argument. Everything else acts.
package volume
