package admin

import (
	"fmt"
	"time"

	"ukai"
)

// NewDisk asks for a disk. Zero values take the mesh's defaults.
type NewDisk struct {
	Name           string `json:"name" maxLength:"63"`
	SizeBytes      int64  `json:"sizeBytes" minimum:"1"`
	BlockSizeBytes int    `json:"blockSizeBytes,omitempty" minimum:"0" doc:"power of two from 1 MiB to 64 MiB; 0: 4 MiB"`
	Rule           *Rule  `json:"rule,omitempty" doc:"absent: the mesh's default rule"`
	OnLoss         string `json:"onLoss,omitempty" enum:"wait,error" doc:"what I/O does with too few in-sync replicas; absent: wait"`
	Ack            string `json:"ack,omitempty" enum:"all,local" doc:"which replicas have a write before it is acknowledged; absent: all"`
	DryRun         bool   `json:"dryRun,omitempty"`
}

// DiskCreated is the answer to NewDisk.
type DiskCreated struct {
	Disk      Disk      `json:"disk"`
	Placement Placement `json:"placement"`
}

// DiskState is where a disk is in its life.
type DiskState string

// States of a disk.
const (
	DiskIdle       DiskState = "idle"       // no node has it attached
	DiskAttached   DiskState = "attached"   // its holder serves it
	DiskRecovering DiskState = "recovering" // its holder makes replicas equal before it serves
	DiskSuspended  DiskState = "suspended"  // I/O waits; Why says for what
	DiskFailed     DiskState = "failed"     // I/O fails; Why says why
	DiskConflict   DiskState = "conflict"   // forced takeovers left two records
	DiskRemoved    DiskState = "removed"    // can be restored until Removed.Until
)

// Disk is what a node knows of a disk.
type Disk struct {
	ID             ukai.DiskID `json:"id"`
	Name           string      `json:"name"`
	State          DiskState   `json:"state" enum:"idle,attached,recovering,suspended,failed,conflict,removed"`
	Why            string      `json:"why,omitempty" doc:"the reason of a state that needs one"`
	SizeBytes      int64       `json:"sizeBytes"`
	BlockSizeBytes int         `json:"blockSizeBytes"`
	AllocatedBytes int64       `json:"allocatedBytes" doc:"of the fullest replica on this node; -1: it has none"`
	Rule           string      `json:"rule"`
	Ranges         string      `json:"ranges,omitempty" doc:"blocks with a rule of their own" example:"0-255 dc=osaka:1"`
	RuleMet        bool        `json:"ruleMet" doc:"also the rules of ranges"`
	MinSync        int         `json:"minSync"`
	OnLoss         string      `json:"onLoss"`
	Ack            string      `json:"ack"`
	Quorum         string      `json:"quorum" doc:"majority, preferred NODE or unsafe"`
	Holder         *NodeRef    `json:"holder,omitempty" doc:"the node that has it attached"`
	Epoch          string      `json:"epoch"`
	Version        uint64      `json:"version" doc:"of the quorum record"`
	Replicas       []Replica   `json:"replicas"`
	KeepStale      bool        `json:"keepStale,omitempty" doc:"nodes keep what dropped replicas had"`
	Kept           []OldCopy   `json:"kept,omitempty" doc:"what nodes keep of dropped replicas"`
	Arbiters       []Arbiter   `json:"arbiters"`
	Created        time.Time   `json:"created,omitzero"`
	Removed        *Removed    `json:"removed,omitempty"`
	Path           string      `json:"path,omitempty" doc:"its file on the node that answers"`
	Scrub          *Scrub      `json:"scrub,omitempty" doc:"absent: it never was scrubbed"`
	Histories      []History   `json:"histories,omitempty" doc:"absent: it has one"`
	Warnings       []Warning   `json:"warnings,omitempty"`
}

// History is one of several that a disk has after forced takeovers on both sides of a cut.
type History struct {
	ID       string    `json:"id" doc:"what disk pick takes"`
	Picked   bool      `json:"picked,omitempty" doc:"the disk goes on with it; the others are set aside, untouched"`
	Forced   int       `json:"forced" doc:"forced takeovers in it"`
	Epoch    string    `json:"epoch"`
	Version  uint64    `json:"version" doc:"of the quorum record"`
	LastHeld *NodeRef  `json:"lastHeld,omitempty" doc:"the node that had the disk attached last"`
	Attached bool      `json:"attached,omitempty" doc:"that node has it attached still"`
	Nodes    []NodeRef `json:"nodes" doc:"with replicas in sync"`

	Name      string    `json:"name,omitempty" doc:"of the file in which it can be read; absent: the disk goes on with it, or it was given up"`
	SizeBytes int64     `json:"sizeBytes" doc:"of the disk in this history"`
	Replicas  []Replica `json:"replicas" doc:"that its quorum record names; allocatedBytes of those on other nodes are there if one disk is asked for"`
	Discarded bool      `json:"discarded,omitempty" doc:"it was given up for good"`
	Ended     bool      `json:"ended,omitempty" doc:"most of its arbiters have noted that it was given up; it is told of as long as there are replicas of it"`
}

// PickDisk says which history of a disk to go on with.
type PickDisk struct {
	History string `json:"history" maxLength:"127" doc:"its id or the begin of it, the name of its file, or the name of a node that only that history has an in-sync replica on"`
}

// DiscardHistory says which history of a disk to give up for good.
type DiscardHistory struct {
	History string `json:"history" maxLength:"127" doc:"as for a pick"`
}

// Removed says since when a disk is removed and until when it can be restored.
type Removed struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero" doc:"absent: it was removed by force, and is kept until an administrator removes it again"`
}

// Role says what a replica may be used for.
type Role string

// Roles of a replica.
const (
	InSync  Role = "in sync" // may be read; every write waits for it
	Syncing Role = "syncing" // gets new writes and catches up
	Out     Role = "out"     // must be resynced first
	Async   Role = "async"   // lags by design
)

// Replica is one node's copy of a disk, or of the part of it that belongs to a group.
type Replica struct {
	ID             ukai.ReplicaID `json:"id"`
	Node           NodeRef        `json:"node"`
	Labels         ukai.Labels    `json:"labels,omitempty" doc:"of the node"`
	Blocks         string         `json:"blocks,omitempty" doc:"for which it has that role; absent: for all" example:"0-255"`
	Role           Role           `json:"role" enum:"in sync,syncing,out,async"`
	NodeState      NodeState      `json:"nodeState" enum:"alive,suspect,dead,left"`
	AllocatedBytes int64          `json:"allocatedBytes" doc:"-1: not known here, as it is on another node"`
	BehindBytes    int64          `json:"behindBytes,omitempty" doc:"still to compare and copy, if known here"`
	CopiedBytes    int64          `json:"copiedBytes,omitempty" doc:"by the resync that runs"`
	Percent        int            `json:"percent,omitempty" doc:"of the resync that runs"`
	ETASeconds     int64          `json:"etaSeconds,omitempty" doc:"until the resync that runs is done, if that can be told"`
	Since          time.Time      `json:"since,omitzero" doc:"when it took that role, if known"`
	Why            string         `json:"why,omitempty" doc:"it is not in sync"`
}

// Arbiter is a node that keeps a disk's quorum record.
type Arbiter struct {
	Node      NodeRef     `json:"node"`
	Labels    ukai.Labels `json:"labels,omitempty" doc:"of the node"`
	Reachable bool        `json:"reachable"`
}

// ResizeDisk asks for a new size.
type ResizeDisk struct {
	SizeBytes int64 `json:"sizeBytes" minimum:"1"`
}

// RemoveDisk says how long a removed disk can be restored.
type RemoveDisk struct {
	GraceSeconds *int64 `json:"graceSeconds,omitempty" minimum:"0" doc:"absent: 86400; 0: the data is given up at once"`
	Force        bool   `json:"force,omitempty" doc:"of a disk of which nothing can be had: take it out of sight without its arbiters and replicas"`
}

// RestoreDisk asks for a removed disk.
type RestoreDisk struct {
	Name string `json:"name,omitempty" maxLength:"63" doc:"absent: the name it had"`
}

// RenameDisk asks for another name.
type RenameDisk struct {
	Name string `json:"name" maxLength:"63"`
}

// SetDisk changes what is not empty of it.
type SetDisk struct {
	OnLoss string `json:"onLoss,omitempty" enum:"wait,error" doc:"what I/O does with too few in-sync replicas"`
	Ack    string `json:"ack,omitempty" enum:"all,local" doc:"which replicas have a write before it is acknowledged"`
}

// Quorum modes of a disk.
const (
	QuorumMajority  = "majority"
	QuorumPreferred = "preferred"
	QuorumUnsafe    = "unsafe"
)

// SetQuorum says who decides about a disk.
type SetQuorum struct {
	Mode             string `json:"mode" enum:"majority,preferred,unsafe"`
	Node             string `json:"node,omitempty" maxLength:"63" doc:"with preferred: the node that decides alone"`
	AcceptSplitBrain string `json:"acceptSplitBrain,omitempty" maxLength:"63" doc:"with unsafe: the name of the disk, as a sign that its risk is understood"`
}

// ForceDisk says which of a disk's arbiters are gone for good.
type ForceDisk struct {
	Gone []string `json:"gone,omitempty" maxItems:"5" doc:"names of all arbiters that do not answer"`
}

// ScrubDisk asks for a scrub.
type ScrubDisk struct {
	VerifyOnly bool `json:"verifyOnly,omitempty" doc:"only tell what is corrupt, change nothing"`
}

// Scrub tells of the scrubs of a disk.
type Scrub struct {
	Asked   string `json:"asked,omitempty" doc:"the request that was made last"`
	Waiting bool   `json:"waiting,omitempty" doc:"it has not been begun"`
	Paused  bool   `json:"paused,omitempty" doc:"it stands still until the job of the disk is resumed"`
	// Cancelled says that the last one that was asked for was called off.
	Cancelled bool      `json:"cancelled,omitempty" doc:"what was asked for before was called off; asked is that order"`
	Running   *ScrubRun `json:"running,omitempty"`
	Last      *ScrubRun `json:"last,omitempty" doc:"the one that came to its end last"`
}

// ScrubRun is one scrub. It counts pieces of 256 KiB of the disk, each once however many replicas there are.
type ScrubRun struct {
	Request    string    `json:"request,omitempty" doc:"that it is for; absent: it was due"`
	VerifyOnly bool      `json:"verifyOnly,omitempty"`
	Began      time.Time `json:"began"`
	Ended      time.Time `json:"ended,omitzero"`
	Percent    int       `json:"percent,omitempty" doc:"of the disk, while it runs"`
	Verified   int64     `json:"verified" doc:"of those that were ever written"`
	Corrupt    int64     `json:"corrupt" doc:"of these, with a copy that cannot be read or has rotted"`
	Repaired   int64     `json:"repaired" doc:"of these"`
	Unrepaired int64     `json:"unrepaired" doc:"of these, the rest"`
}

// String tells what was found.
func (r ScrubRun) String() string {
	s := fmt.Sprintf("%d pieces of 256 KiB verified", r.Verified)
	switch {
	case r.Corrupt == 0:
		return s + ", all are well"
	case r.VerifyOnly:
		return fmt.Sprintf("%s, %d corrupt", s, r.Corrupt)
	}
	return fmt.Sprintf("%s, %d corrupt: %d repaired, %d not", s, r.Corrupt, r.Repaired, r.Unrepaired)
}

// Takeover says how sure the administrator is that a disk's holder is gone.
type Takeover struct {
	Fenced bool `json:"fenced,omitempty" doc:"its machine is certainly off or cut off: depose it even if it seems to answer"`
}

// Handover names a disk's next holder.
type Handover struct {
	To    string `json:"to" maxLength:"63" doc:"name or id of the node"`
	Force bool   `json:"force,omitempty" doc:"also if a program has the disk open, whose I/O then fails"`
}

// Map says where the blocks of a disk lie.
type Map struct {
	Disk           DiskRef  `json:"disk"`
	SizeBytes      int64    `json:"sizeBytes"`
	BlockSizeBytes int      `json:"blockSizeBytes"`
	Blocks         uint64   `json:"blocks"`
	Holder         *NodeRef `json:"holder,omitempty"`
	Epoch          string   `json:"epoch"`
	Version        uint64   `json:"version"`
	Runs           []MapRun `json:"runs" doc:"sorted, gapless"`
}

// MapRun is a run of blocks with the same locations.
type MapRun struct {
	First          ukai.Index `json:"first"`
	Count          uint64     `json:"count"`
	Group          int        `json:"group"`
	Generation     uint32     `json:"generation" doc:"counts changes of the group's in-sync set"`
	Locations      []Replica  `json:"locations" doc:"allocatedBytes is that of the run"`
	AllocatedBytes int64      `json:"allocatedBytes" doc:"of the fullest location on this node; -1: not known here"`
}
