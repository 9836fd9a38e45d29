// Package crdt is the state that every node of a mesh has a copy of: the catalog of nodes, labels, disks and rules,
// and for each disk its block map. It is pure: no I/O, no clock, no goroutine; time comes in as an argument.
//
// Merge of any two states is commutative, associative, idempotent and monotone, so that deltas may be lost, repeated
// and reordered. What the catalog says of a disk's holder and replicas was committed by the disk's arbiters at some
// moment and may be old; see node/cell for what must never be wrong.
package crdt
