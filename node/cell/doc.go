// Package cell is a disk's quorum record: one small compare-and-swap register per disk, kept by 1, 2, 3 or 5 arbiters.
// It decides what gossip may only tell of: who holds the disk, in which epoch, and which replicas are in sync.
//
// The register is CASPaxos (Rystsov 2018, arXiv:1802.07000): a Proposer asks a majority of arbiters to promise its
// ballot, takes the record accepted under the highest ballot, applies a Change to it, and has a majority accept the
// result. There is no log, no leader and no traffic while nothing changes.
//
// The set of arbiters is replaced by a chain of instances. The last value chosen in an instance is its FINAL: a record
// whose Instance is one higher and whose Arbiters are the next set. Once it is chosen, and not before, the arbiters of
// the next instance are INITialised with it. A proposer that meets an accepted FINAL first has it chosen, then goes on
// in the next instance. The two sets need not overlap.
//
// Acceptor, Proposer and the changes are pure: no I/O, clock, goroutine or randomness, so that the tests explore every
// order of their messages. Only Propose, Create and Force (propose.go) wait and send.
//
// Three things the caller must guarantee. An acceptor's state is durable before its reply leaves. An acceptor's state
// is never lost while its NodeID lives: a node with a new database is a new node. A record that Propose returned is
// published by gossip only after Propose returned it without error.
package cell
