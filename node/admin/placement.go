package admin

import (
	"time"

	"ukai"
)

// Rule says where an administrator wants a disk's replicas.
type Rule struct {
	Terms   []string `json:"terms" minItems:"1" maxItems:"16" doc:"SELECTOR:COUNT each" example:"[\"dc=tokyo:2\",\"dc=osaka:1\"]"`
	Spread  []string `json:"spread,omitempty" maxItems:"8" doc:"label keys of which no two replicas share a value"`
	Prefer  bool     `json:"prefer,omitempty" doc:"accept the rule with a standing warning where it cannot be met"`
	MinSync int      `json:"minSync,omitempty" minimum:"0" maximum:"8" doc:"fewest in-sync replicas with which writes go on; 0: 1"`
	// FollowSeconds is wanted where a term says $here, and only there.
	FollowSeconds int64 `json:"followSeconds,omitempty" minimum:"0" maximum:"2592000" doc:"for how long the disk must have been used elsewhere before key=$here means that place; 0: no term says $here, else at least 10"`
}

// PlaceDisk gives a disk a rule, or some of its blocks.
type PlaceDisk struct {
	Rule       Rule   `json:"rule,omitzero" doc:"absent: with remove"`
	Blocks     string `json:"blocks,omitempty" maxLength:"40" doc:"that get the rule in place of the disk's, as FIRST-LAST; absent: all that have none of their own" example:"0-255"`
	Remove     bool   `json:"remove,omitempty" doc:"with blocks: they have no rule of their own any more"`
	AllowFewer bool   `json:"allowFewer,omitempty" doc:"until the disk is there fewer copies than before may be in sync, at least one, and as many as writes need: what is not wanted is dropped before others are made"`
	// KeepStale stays as it is until it is said otherwise.
	KeepStale *bool `json:"keepStale,omitempty" doc:"nodes keep what dropped replicas of the disk had, as long as they have space, and a replica that is made there again begins with it; absent: as before"`
	DryRun    bool  `json:"dryRun,omitempty" doc:"tell what would be, change nothing"`
}

// OldCopy is what a node keeps of a disk whose replica there was dropped. It is never read; a replica that is made there again begins with it, and is
// compared with the others before it counts.
type OldCopy struct {
	Node  NodeRef   `json:"node"`
	Bytes int64     `json:"bytes" doc:"it takes"`
	Since time.Time `json:"since" doc:"when it became one"`
}

// Placement compares what is wanted of a disk with what is true.
type Placement struct {
	Disk        DiskRef   `json:"disk"`
	Rule        string    `json:"rule" doc:"as text; empty if the disk has none"`
	Here        *Here     `json:"here,omitempty" doc:"what $here stands for; absent: the rule does not say it"`
	AllowFewer  bool      `json:"allowFewer,omitempty" doc:"until the disk is where the rule wants it fewer copies than before may be in sync"`
	KeepStale   bool      `json:"keepStale,omitempty" doc:"nodes keep what dropped replicas had"`
	Kept        []OldCopy `json:"kept,omitempty"`
	Met         bool      `json:"met" doc:"also the rules of ranges"`
	Ranges      []Range   `json:"ranges,omitempty" doc:"blocks with a rule of their own, sorted"`
	Wanted      []Want    `json:"wanted" doc:"one per term of the rule, about the blocks that have none of their own"`
	Replicas    []Replica `json:"replicas" doc:"true now"`
	Arbiters    []Arbiter `json:"arbiters,omitempty"`
	Differences []string  `json:"differences,omitempty" doc:"one sentence each"`
	Reasons     []Reason  `json:"reasons,omitempty" doc:"per node considered, why it was or was not chosen"`
	Steps       []Step    `json:"steps,omitempty" doc:"what leads to the rule, in the order in which it is done"`
	Costs       *Costs    `json:"costs,omitempty" doc:"of all steps together"`
	Forecast    *Forecast `json:"forecast,omitempty" doc:"what the VM feels where it runs, now and after each step"`
	Doing       string    `json:"doing,omitempty" doc:"what is being done about the differences"`
	Notice      string    `json:"notice,omitempty" doc:"what the administrator should know of the request just made"`
	Warnings    []Warning `json:"warnings,omitempty"`
	DryRun      bool      `json:"dryRun,omitempty"`
}

// Range is blocks of a disk that have a rule of their own.
type Range struct {
	Blocks      string   `json:"blocks" example:"0-255"`
	Bytes       int64    `json:"bytes"`
	Rule        string   `json:"rule"`
	Met         bool     `json:"met"`
	Wanted      []Want   `json:"wanted" doc:"one per term of the rule"`
	Now         string   `json:"now" doc:"the replicas and their roles"`
	Differences []string `json:"differences,omitempty" doc:"one sentence each"`
}

// Here is what $here stands for in the rule of a disk: of each label the value on the node where the disk has been used for long enough.
type Here struct {
	Values        ukai.Labels `json:"values"`
	Node          *NodeRef    `json:"node,omitempty" doc:"on which it was used then; absent: on none, most copies in sync have these values"`
	Since         time.Time   `json:"since,omitzero"`
	FollowSeconds int64       `json:"followSeconds"`
	Next          *HereNext   `json:"next,omitempty" doc:"absent: the disk is not used elsewhere"`
}

// HereNext is the use of a disk elsewhere, for not long enough yet.
type HereNext struct {
	Values ukai.Labels `json:"values"`
	Node   NodeRef     `json:"node" doc:"on which that began"`
	Since  time.Time   `json:"since"`
	At     time.Time   `json:"at" doc:"when the disk follows, if it is not used here again before"`
}

// Step is one part of a plan that leads a disk to its rule.
type Step struct {
	Kind        string    `json:"kind" enum:"add,drop,move arbiters,set min-sync,split,merge"`
	Node        NodeRef   `json:"node,omitzero" doc:"where a replica is made or dropped"`
	From        NodeRef   `json:"from,omitzero" doc:"node that the data of a new replica comes from"`
	Path        []NodeRef `json:"path,omitempty" doc:"of the data: its source, the node that copies, where the replica is made"`
	Bytes       int64     `json:"bytes,omitempty" doc:"copied, at most: holes are not, nor what both sides have"`
	ReusesBytes int64     `json:"reusesBytes,omitempty" doc:"of these the node has kept an old copy, and what is equal in it is not copied"`
	InSync      int       `json:"inSync,omitempty" doc:"replicas in sync when it is done"`
	Copies      []Copies  `json:"copies,omitempty" doc:"in sync of all blocks when it is done"`
	Seconds     float64   `json:"seconds,omitempty" doc:"it takes, estimated"`
	Text        string    `json:"text"`
}

// Copies is how many copies in sync blocks have.
type Copies struct {
	Blocks string `json:"blocks" example:"0-2559"`
	InSync int    `json:"inSync"`
}

// Costs is what steps take together.
type Costs struct {
	Bytes       int64       `json:"bytes" doc:"copied, at most"`
	Seconds     float64     `json:"seconds" doc:"estimated"`
	LeastInSync int         `json:"leastInSync" doc:"fewest copies in sync that any block has at any moment"`
	Links       []LinkBytes `json:"links" doc:"what crosses between datacenters, and within one"`
	Pairs       []LinkBytes `json:"pairs" doc:"what crosses between nodes"`
	Space       []NodeSpace `json:"space"`
	Assumed     []string    `json:"assumed,omitempty" doc:"what is not known, and what was taken instead"`
}

// LinkBytes is what crosses a link in one direction.
type LinkBytes struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Bytes int64  `json:"bytes" doc:"at most"`
}

// NodeSpace is the space that steps take on a node.
type NodeSpace struct {
	Node       NodeRef `json:"node"`
	PeakBytes  int64   `json:"peakBytes" doc:"taken at most at any moment, beside what is taken now"`
	FreedBytes int64   `json:"freedBytes,omitempty" doc:"given back an hour after a replica is dropped, about"`
	LeftBytes  int64   `json:"leftBytes" doc:"free beyond the reserve at the peak; negative: too little"`
}

// Defaults is what holds for the whole mesh where nothing else is said.
type Defaults struct {
	Rule               string `json:"rule" doc:"of disks that are created without one"`
	RepairAfterSeconds int64  `json:"repairAfterSeconds" doc:"how long a node may be down before what it had is made anew elsewhere; 0: for ever"`
}

// SetDefaults changes what is not absent.
type SetDefaults struct {
	Rule               *Rule  `json:"rule,omitempty"`
	RepairAfterSeconds *int64 `json:"repairAfterSeconds,omitempty" minimum:"0" doc:"at least 10; 0: never"`
}

// Want is one term of a rule and how far it is met.
type Want struct {
	Term  string   `json:"term" example:"dc=tokyo:2"`
	Count int      `json:"count"`
	Have  int      `json:"have"`
	Nodes []string `json:"nodes,omitempty" doc:"names of the nodes that meet it; in a dry run those that would be chosen"`
}

// Reason says why a node was or was not chosen.
type Reason struct {
	Node   NodeRef     `json:"node"`
	Labels ukai.Labels `json:"labels,omitempty"`
	Chosen bool        `json:"chosen,omitempty"`
	Why    string      `json:"why"`
}
