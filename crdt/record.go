package crdt

import "ukai"

// Limits on a Record. The largest that keeps all of them stays below MaxRecordBytes.
const (
	MaxGroups      = 16
	MaxRuns        = 256
	MaxMembers     = 8 // per group
	MaxArbiters    = 5
	MaxForks       = 32  // forced takeovers in one disk's history
	MaxLayers      = 33  // the head and 32 snapshots below it
	MaxPins        = 256 // clones that hold on to this disk
	MaxRecordBytes = 16 << 10
)

// Record is the committed state of a disk: who holds it, which replicas are in sync, where each run of blocks
// lies. The disk's arbiters agree on it (node/cell); afterwards it spreads by gossip and is the block map that every
// node has. A gossiped Record is true of some moment, never a permission to read or write.
//
// Assigning a Record copies the slice headers only: take a Clone before changing one that others may see.
type Record struct {
	Disk      ukai.DiskID   `cbor:"1,keyasint" json:"disk"`
	Instance  uint32        `cbor:"2,keyasint" json:"instance"`                    // counts changes of the arbiter set
	Lineage   []Fork        `cbor:"3,keyasint,omitempty" json:"lineage,omitempty"` // forced takeovers that led here, oldest first
	Arbiters  []ukai.NodeID `cbor:"4,keyasint" json:"arbiters"`                    // sorted; 1, 2, 3 or 5
	Version   uint64        `cbor:"5,keyasint" json:"version"`                     // +1 per commit, from 1
	Epoch     ukai.Epoch    `cbor:"6,keyasint" json:"epoch"`
	Holder    ukai.NodeID   `cbor:"7,keyasint,omitzero" json:"holder,omitzero"` // of Epoch; stays named after a release
	Nonce     ukai.Nonce    `cbor:"8,keyasint,omitzero" json:"-"`
	Phase     Phase         `cbor:"9,keyasint" json:"phase"`
	Clean     bool          `cbor:"10,keyasint,omitempty" json:"clean,omitempty"` // in PhaseRecovering: the epoch before was released cleanly
	Size      int64         `cbor:"11,keyasint" json:"size"`                      // bytes
	BlockSize int           `cbor:"12,keyasint" json:"blockSize"`                 // bytes
	Groups    []Group       `cbor:"13,keyasint" json:"groups"`                    // sorted by ID
	Runs      []Run         `cbor:"14,keyasint" json:"runs"`                      // sorted, gapless, from block 0 to the end
	Layers    []Layer       `cbor:"15,keyasint,omitempty" json:"layers,omitempty"`
	MinSync   int           `cbor:"16,keyasint" json:"minSync"` // fewest in-sync members of a group with which writes go on; >= 1
	OnLoss    OnLoss        `cbor:"17,keyasint" json:"onLoss"`
	Quorum    Quorum        `cbor:"18,keyasint" json:"quorum"`
	Preferred ukai.NodeID   `cbor:"19,keyasint,omitzero" json:"preferred,omitzero"` // the arbiter that decides, with PreferredNode
	Ack       Ack           `cbor:"20,keyasint" json:"ack"`
	Pins      []ukai.DiskID `cbor:"21,keyasint,omitempty" json:"pins,omitempty"` // sorted
	// Ahead is the in-sync replica that may have writes which its guest was told of and other in-sync replicas lack: that on the
	// holder's own node, with AckLocal. A takeover copies from it. 0: none may.
	Ahead ukai.ReplicaID `cbor:"22,keyasint,omitempty" json:"ahead,omitempty"`
}

// Fork is one forced takeover: the new lineage's id and the record of the old one it left from.
type Fork struct {
	ID       ukai.Nonce `cbor:"1,keyasint"`
	Instance uint32     `cbor:"2,keyasint"`
	Version  uint64     `cbor:"3,keyasint"`
}

// Phase is where a disk is in the life of its epoch.
type Phase uint8

// Phases of a disk.
const (
	PhaseReleased   Phase = iota // nobody holds it; all in-sync members are equal and durable
	PhaseRecovering              // claimed; the holder seals and equalises, and serves nothing yet
	PhaseActive                  // the holder serves
	PhaseDeleted                 // terminal
)

// Group is a set of replicas that hold the same blocks.
type Group struct {
	ID         uint8    `cbor:"1,keyasint" json:"id"`
	Generation uint32   `cbor:"2,keyasint" json:"generation"` // counts changes of the in-sync set
	Members    []Member `cbor:"3,keyasint" json:"members"`    // sorted by Replica
}

// Member is one replica of a group.
type Member struct {
	Replica ukai.ReplicaID `cbor:"1,keyasint" json:"replica"`
	Node    ukai.NodeID    `cbor:"2,keyasint" json:"node"`
	Role    Role           `cbor:"3,keyasint" json:"role"`
	// Fresh: a replica of other groups that has not been in sync in this one since it joined it. What it says it has of everything up to some moment it says
	// of those, and nothing of this one.
	Fresh bool `cbor:"4,keyasint,omitempty" json:"fresh,omitempty"`
}

// Role says what a replica may be used for.
type Role uint8

// Roles of a replica.
const (
	InSync  Role = iota // may be read; every write waits for it
	Syncing             // gets every new write, is not waited for
	Out                 // must be resynced first
	Async               // remote copy that lags by design
)

// Run says that Count blocks, following those of the run before it, belong to a group.
type Run struct {
	Count uint64 `cbor:"1,keyasint" json:"count"`
	Group uint8  `cbor:"2,keyasint" json:"group"`
}

// Layer is one level of a disk's content: the head, or a snapshot below it.
type Layer struct {
	ID     uint16 `cbor:"1,keyasint" json:"id"`
	Parent uint16 `cbor:"2,keyasint,omitempty" json:"parent,omitempty"`
	Name   string `cbor:"3,keyasint,omitempty" json:"name,omitempty"` // of a snapshot
}

// OnLoss says what guest I/O does while fewer than MinSync replicas are in sync or no majority of arbiters answers.
type OnLoss uint8

// What I/O does on loss.
const (
	Wait  OnLoss = iota // until replicas return
	Error               // fail with EIO once the wait has reached its limit
)

// Quorum says how many arbiters decide.
type Quorum uint8

// Quorum modes.
const (
	Majority       Quorum = iota
	PreferredNode         // the one arbiter named in Preferred decides alone
	UnsafeSurvivor        // a survivor may force; split brain is possible and was accepted
)

// Ack says when a guest's write is acknowledged.
type Ack uint8

// Acknowledgement modes.
const (
	AckAll   Ack = iota // when every in-sync replica has it
	AckLocal            // when the in-sync replica on the holder's own node has it; a flush waits for all
)
