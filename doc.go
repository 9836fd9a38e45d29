// Package ukai holds the words that all rooms of UKAI share: the identifiers of nodes, disks and
// replicas, block indexes and ranges, epochs and block stamps, labels, and every sentinel error.
//
// It imports only the standard library, does no I/O, reads no clock and starts no goroutine.
// ARCHITECTURE.md tells how the rooms fit together; package comments give their contracts.
package ukai
