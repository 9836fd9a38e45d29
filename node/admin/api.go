package admin

import (
	"context"
	"net"
	"time"

	"ukai"
)

// Backend is what the server asks a node to do. All methods may be called concurrently and return when ctx ends.
//
// A disk is named by its name or, where two disks or a removed one share a name, by its id in 32 hexadecimal digits; a name wins
// over an id. Nodes likewise. No such disk or node: ukai.ErrNotFound. A name that two things share: ukai.ErrInvalid that lists
// their ids. A refusal with reasons per node is a *Refusal.
type Backend interface {
	// Self tells who this node is. It needs no other node.
	Self(ctx context.Context) (Self, error)
	// Status tells all that this node knows of the mesh, without asking another node.
	Status(ctx context.Context) (Status, error)

	// Doctor tells what is not as it should be: what Status warns of, and what takes asking. It asks every node of the mesh whether it
	// answers, and looks through this node's store.
	Doctor(ctx context.Context) ([]Warning, error)

	// ChangeNode sets labels and roles of any node of the mesh, also of one that is down. It moves no data.
	ChangeNode(ctx context.Context, node string, change NodeChange) (NodeChanged, error)

	// RetireNode takes a node out of the mesh for good: what it had is made anew elsewhere at once, its name is free, and it is not let in
	// again. A node that anybody hears from: ukai.ErrRejected.
	RetireNode(ctx context.Context, node string, r RetireNode) (NodeRetired, error)

	// PlaceDisk records a rule for a disk and tells what follows from it; Placement.Doing says what is being done, as moving data
	// takes time. A strict rule that cannot be met: a *Refusal of ukai.ErrUnmet.
	PlaceDisk(ctx context.Context, disk string, p PlaceDisk) (Placement, error)
	// Placement tells a disk's rule, what is true now, and why they differ.
	Placement(ctx context.Context, disk string) (Placement, error)
	// Placements does so for all disks that are not removed, sorted by name.
	Placements(ctx context.Context) ([]Placement, error)

	// Defaults tells what holds for the whole mesh where nothing else is said.
	Defaults(ctx context.Context) (Defaults, error)
	// SetDefaults changes it.
	SetDefaults(ctx context.Context, s SetDefaults) (Defaults, error)

	// Forecast tells what a VM would feel of a disk on the nodes that a selector matches, now and after each step of the plan that leads to its
	// rule, or to the one that the terms make.
	Forecast(ctx context.Context, disk, at string, terms []string) (Forecast, error)
	// Survive tells what becomes of each disk if the nodes that a selector matches were gone, beside those that are down already; with an
	// empty selector, if each node, then each datacenter, were gone in turn.
	Survive(ctx context.Context, without string) (Survival, error)

	// Links lists the links between datacenters with a budget for background copies, sorted by name.
	Links(ctx context.Context) ([]Link, error)
	// SetLink gives the link between two datacenters, or the links within one, a budget that all background copies of the mesh share.
	SetLink(ctx context.Context, link string, s SetLink) (Link, error)

	// Jobs lists what is being done to bring disks to where they shall be, sorted by the disks' names.
	Jobs(ctx context.Context, q JobQuery) ([]Job, error)
	// WatchJobs sends all jobs, also those that ended lately, now and whenever something has changed, until ctx ends; then it closes the channel.
	WatchJobs(ctx context.Context) (<-chan []Job, error)
	// OrderJob has the job of a disk paused, resumed, tried again or cancelled. It has none: ukai.ErrNotFound. What cannot be undone by
	// a rule cannot be cancelled: ukai.ErrRejected.
	OrderJob(ctx context.Context, disk string, o OrderJob) (Job, error)
	// Evacuate has all replicas and quorum records moved off nodes, and returns at once; asked again it tells what is left. It refuses with
	// ukai.ErrUnmet and changes nothing where something could not be moved. A dry run tells so in Problems.
	Evacuate(ctx context.Context, e Evacuate) (Evacuation, error)

	// CreateDisk returns when all chosen replicas exist durably and the disk's quorum record is committed.
	// With DryRun nothing is changed, and the answer's Disk has no id.
	CreateDisk(ctx context.Context, d NewDisk) (DiskCreated, error)
	// Disks lists disks sorted by name: those that are not removed, or with removed only those that still can be restored.
	Disks(ctx context.Context, removed bool) ([]Disk, error)
	// Disk tells everything about one disk.
	Disk(ctx context.Context, disk string) (Disk, error)
	// ResizeDisk grows a disk; its holder sees the new size at once. Shrinking: ukai.ErrUnsupported.
	ResizeDisk(ctx context.Context, disk string, r ResizeDisk) (Disk, error)
	// RemoveDisk takes a disk that no node has attached out of sight; its data stay for the grace time.
	// Attached: *ukai.HeldError. With Force it takes a disk out of sight that has no copy in sync on a node that answers, and only such a one, else
	// ukai.ErrRejected; if nodes with copies come back, those are kept until the disk is restored or, by its id, removed again.
	RemoveDisk(ctx context.Context, disk string, r RemoveDisk) (Disk, error)
	// RestoreDisk undoes RemoveDisk within the grace time. The name was taken meanwhile: ukai.ErrExists; give another.
	RestoreDisk(ctx context.Context, disk string, r RestoreDisk) (Disk, error)
	// RenameDisk renames a disk. The name is taken: ukai.ErrExists.
	RenameDisk(ctx context.Context, disk string, r RenameDisk) (Disk, error)
	// SetDisk changes what a disk does for safety; it takes effect at once, also while the disk is used.
	SetDisk(ctx context.Context, disk string, s SetDisk) (Disk, error)
	// SetQuorum says who decides about a disk: in place of a majority one node alone, or whoever is left.
	SetQuorum(ctx context.Context, disk string, q SetQuorum) (Disk, error)
	// ForceDisk goes on with a disk of whose arbiters a majority is gone for good. Unless all that are silent are named:
	// ukai.ErrPermission. A majority answers: ukai.ErrRejected.
	ForceDisk(ctx context.Context, disk string, f ForceDisk) (Disk, error)
	// PickDisk says with which of its histories a disk with several goes on. The others are set aside and kept; one of them may be picked later.
	// No such history, or too few of its arbiters answer: ukai.ErrNotFound, ukai.ErrNoQuorum.
	PickDisk(ctx context.Context, disk string, p PickDisk) (Disk, error)
	// DiscardHistory gives up a history that a disk does not go on with; the space of its replicas is freed later. The disk goes on with it, or that is
	// not decided: ukai.ErrRejected.
	DiscardHistory(ctx context.Context, disk string, d DiscardHistory) (Disk, error)
	// ScrubDisk has whoever looks after a disk read all of it, compare its copies, and repair what cannot be read or has rotted. It returns when
	// that is asked for; Disk.Scrub tells how far it is.
	ScrubDisk(ctx context.Context, disk string, s ScrubDisk) (Disk, error)
	// Takeover makes this node the holder of a disk whose holder does not let go, and then lets go of it itself, so that the next program may
	// open it. A holder that answers and has the disk open is left alone, with a *ukai.HeldError, unless Fenced is set.
	Takeover(ctx context.Context, disk string, t Takeover) (Disk, error)
	// Handover has a disk's holder let go of it and the node To hold it. A program that has it open: *ukai.HeldError, unless forced.
	Handover(ctx context.Context, disk string, h Handover) (Disk, error)
	// DiskMap tells where each run of blocks of a disk lies.
	DiskMap(ctx context.Context, disk string) (Map, error)

	// Leave announces that this node goes and begins to shut it down; it returns before the node has ended. Data and
	// membership are kept, and the node joins again when it is started. Unless forced it refuses with ukai.ErrRejected while a disk is
	// attached here or would lose its last in-sync replica.
	Leave(ctx context.Context, l Leave) (Leaving, error)

	// Events sends what happens from now on until ctx ends, then closes the channel. A reader that is too slow misses
	// events: the next one's Seq tells how many.
	Events(ctx context.Context) (<-chan Event, error)
	// Counters and Gauges are exported at /metrics. A key is a metric's name, optionally followed by labels as
	// Prometheus writes them: ukai_node_rtt_seconds{peer="o1"}.
	Counters() map[string]uint64
	Gauges() map[string]float64

	// DialAdmin connects to the admin API of another node through the mesh.
	DialAdmin(ctx context.Context, node string) (net.Conn, error)
}

// NodeRef names a node in an answer.
type NodeRef struct {
	ID   ukai.NodeID `json:"id"`
	Name string      `json:"name" doc:"empty if the node was never heard of"`
}

// String returns the name, or the short id of a node without one.
func (n NodeRef) String() string {
	switch {
	case n.Name != "":
		return n.Name
	case n.ID.IsZero():
		return ""
	}
	return n.ID.Short()
}

// DiskRef names a disk in an answer.
type DiskRef struct {
	ID   ukai.DiskID `json:"id"`
	Name string      `json:"name"`
}

// Self is what a node says of itself.
type Self struct {
	ID       ukai.NodeID `json:"id"`
	Name     string      `json:"name"`
	Labels   ukai.Labels `json:"labels,omitempty"`
	Version  string      `json:"version" doc:"release of the running node"`
	Go       string      `json:"go" doc:"Go release it was built with"`
	Mesh     string      `json:"mesh" doc:"fingerprint of the mesh key"`
	Address  string      `json:"address" doc:"host:port at which peers reach this node"`
	DataDir  string      `json:"dataDir"`
	MountDir string      `json:"mountDir" doc:"empty if disks are not mounted here"`
	PID      int         `json:"pid"`
	Started  time.Time   `json:"started"`
}

// NodeState is what gossip says of a node. It never decides who may read or write.
type NodeState string

// States of a node.
const (
	NodeAlive   NodeState = "alive"
	NodeSuspect NodeState = "suspect" // did not answer lately
	NodeDead    NodeState = "dead"
	NodeLeft    NodeState = "left" // said that it goes
)

// Node is what the mesh knows of a node.
type Node struct {
	ID              ukai.NodeID `json:"id"`
	Name            string      `json:"name"`
	Labels          ukai.Labels `json:"labels,omitempty"`
	Address         string      `json:"address,omitempty"`
	State           NodeState   `json:"state" enum:"alive,suspect,dead,left"`
	Since           time.Time   `json:"since,omitzero" doc:"when it entered that state, as this node saw it"`
	Version         string      `json:"version,omitempty"`
	Self            bool        `json:"self,omitempty" doc:"this is the node that answers"`
	Witness         bool        `json:"witness,omitempty" doc:"keeps quorum records, stores no blocks"`
	Drain           bool        `json:"drain,omitempty" doc:"rules are planned as if it were not there"`
	NoNew           bool        `json:"noNew,omitempty" doc:"keeps what it has, gets no new replicas"`
	CapacityBytes   int64       `json:"capacityBytes" doc:"size of the file system of its data directory"`
	FreeBytes       int64       `json:"freeBytes"`
	ReserveBytes    int64       `json:"reserveBytes" doc:"of FreeBytes, never used for blocks"`
	Replicas        int         `json:"replicas" doc:"copies of disks that it holds"`
	ClockSkewMillis int64       `json:"clockSkewMillis" doc:"its clock minus ours"`
}

// RTT is a round-trip time between two nodes. Each pair appears once.
type RTT struct {
	From      string `json:"from" doc:"a node's name, or its id if two nodes share the name"`
	To        string `json:"to"`
	RTTMicros int64  `json:"rttMicros" doc:"smoothed"`
	P99Micros int64  `json:"p99Micros,omitempty" doc:"0 if not measured"`
	Measured  bool   `json:"measured" doc:"by the node that answers; otherwise estimated from coordinates"`
}

// Level grades a warning, an event or the health of the mesh.
type Level string

// Levels, least first. Critical means that a disk does not serve, or would lose data with the next failure.
const (
	Fine     Level = "ok"
	Notice   Level = "notice"
	Warn     Level = "warning"
	Critical Level = "critical"
)

// Warning says what is not as it should be, and what would help.
type Warning struct {
	Level  Level  `json:"level" enum:"notice,warning,critical"`
	Code   string `json:"code" doc:"stable word for programs" example:"clock-skew"`
	Node   string `json:"node,omitempty" doc:"name of the node it is about"`
	Disk   string `json:"disk,omitempty" doc:"name of the disk it is about"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty" doc:"what to do, if possible a command"`
}

// Status is the mesh as one node sees it.
type Status struct {
	Node     string      `json:"node" doc:"name of the node that answers"`
	Mesh     string      `json:"mesh" doc:"fingerprint of the mesh key"`
	Time     time.Time   `json:"time" doc:"clock of the node that answers"`
	Health   Level       `json:"health" enum:"ok,notice,warning,critical" doc:"the worst of the warnings"`
	Nodes    []Node      `json:"nodes" doc:"sorted by name"`
	RTTs     []RTT       `json:"rtts"`
	Disks    DiskSummary `json:"disks"`
	Warnings []Warning   `json:"warnings" doc:"worst first"`
}

// DiskSummary counts the disks of the mesh that are not removed.
type DiskSummary struct {
	Total     int   `json:"total"`
	Attached  int   `json:"attached"`
	Degraded  int   `json:"degraded" doc:"with replicas that are not in sync, or a rule that is not met"`
	Suspended int   `json:"suspended" doc:"whose I/O waits, as far as this node knows"`
	SizeBytes int64 `json:"sizeBytes" doc:"sum of the disks' sizes"`
}

// NodeChange is what an administrator changes about a node. What is nil or absent stays.
type NodeChange struct {
	Set     ukai.Labels `json:"set,omitempty" maxProperties:"32" doc:"labels to set"`
	Unset   []string    `json:"unset,omitempty" maxItems:"32" doc:"keys of labels to remove"`
	Drain   *bool       `json:"drain,omitempty"`
	NoNew   *bool       `json:"noNew,omitempty"`
	Witness *bool       `json:"witness,omitempty"`
}

// RetireNode asks to take a node out of the mesh for good.
type RetireNode struct {
	DryRun bool `json:"dryRun,omitempty" doc:"tell what would follow, change nothing"`
}

// NodeRetired tells what a node had that was retired.
type NodeRetired struct {
	Node     NodeRef   `json:"node"`
	Replicas int       `json:"replicas" doc:"disks with a copy on it"`
	Seats    int       `json:"seats" doc:"disks whose quorum records it kept"`
	Warnings []Warning `json:"warnings,omitempty" doc:"disks that lose more by it than a copy or an arbiter"`
	DryRun   bool      `json:"dryRun,omitempty"`
}

// NodeChanged is a node after a change.
type NodeChanged struct {
	Node     Node      `json:"node"`
	Warnings []Warning `json:"warnings,omitempty" doc:"disks whose rules are no longer met, for example"`
}

// Link is the budget of the link between two datacenters.
type Link struct {
	Name           string    `json:"name" example:"osaka-tokyo"`
	Limit          string    `json:"limit" doc:"of all background copies together, where no window holds" example:"50MB/s"`
	At             []string  `json:"at,omitempty" doc:"windows with another limit" example:"[\"22:00-06:00=200MB/s\"]"`
	Zone           string    `json:"zone,omitempty" doc:"offset from UTC in which the windows are"`
	Now            string    `json:"now" doc:"the limit that holds"`
	BytesPerSecond int64     `json:"bytesPerSecond" doc:"likewise; -1: none"`
	Until          time.Time `json:"until,omitzero" doc:"when another one holds"`
	Copying        []string  `json:"copying" doc:"names of the nodes that copy over it; each has an equal share"`
	Notice         string    `json:"notice,omitempty" doc:"what the administrator should know of the request just made"`
}

// SetLink gives a link a budget.
type SetLink struct {
	Limit string   `json:"limit" maxLength:"32" doc:"bytes per second: 50MB/s, 20MiB/s, 400Mbit/s; 0: nothing is copied; none: no limit"`
	At    []string `json:"at,omitempty" maxItems:"16" doc:"windows HH:MM-HH:MM=RATE with another limit; the first that holds counts"`
	Zone  string   `json:"zone,omitempty" maxLength:"6" doc:"offset from UTC in which the windows are, such as +09:00; absent: UTC"`
}

// Survival tells what disks survive.
type Survival struct {
	Cases []SurvivalCase `json:"cases"`
}

// SurvivalCase is one loss of nodes, and what becomes of the disks.
type SurvivalCase struct {
	Without        string     `json:"without" doc:"selector of the nodes that are gone" example:"dc=osaka"`
	Nodes          int        `json:"nodes" doc:"how many that are"`
	KeepRunning    int        `json:"keepRunning" doc:"disks that lose nothing they need"`
	LoseRedundancy int        `json:"loseRedundancy"`
	Wait           int        `json:"wait" doc:"disks whose I/O waits, or that cannot be attached"`
	LoseData       int        `json:"loseData"`
	Disks          []DiskFate `json:"disks" doc:"worst first; where each node is lost in turn, only those that wait or lose data"`
}

// DiskFate is what becomes of a disk.
type DiskFate struct {
	Disk   DiskRef  `json:"disk"`
	Fate   string   `json:"fate" enum:"keeps running,loses redundancy,waits,loses data"`
	Why    []string `json:"why,omitempty" doc:"one sentence each"`
	Then   string   `json:"then,omitempty" doc:"what is done about it by itself"`
	Remedy string   `json:"remedy,omitempty" doc:"what to do beforehand, a command if there is one"`
}

// Leave asks a node to go.
type Leave struct {
	Force bool `json:"force,omitempty" doc:"also if disks are attached here or would lose their last in-sync replica"`
}

// Leaving is the answer to Leave.
type Leaving struct {
	Node     NodeRef   `json:"node"`
	Warnings []Warning `json:"warnings,omitempty" doc:"disks that have fewer replicas while the node is away"`
}

// Event is something that happened.
type Event struct {
	Seq   uint64    `json:"seq" doc:"counts the events of this node since it started"`
	Time  time.Time `json:"time"`
	Level Level     `json:"level" enum:"ok,notice,warning,critical"`
	Kind  string    `json:"kind" doc:"stable word for programs" example:"replica-out"`
	Node  string    `json:"node,omitempty"`
	Disk  string    `json:"disk,omitempty"`
	Text  string    `json:"text"`
}
