package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// jobsWatchPath is where jobs are told of as a stream.
const jobsWatchPath = "/v1/jobs/watch"

// JobState is how a job is getting on.
type JobState string

// States of a job.
const (
	JobRunning   JobState = "running"
	JobWaiting   JobState = "waiting" // Why says for what
	JobFailing   JobState = "failing" // the last attempt failed, and is repeated; Why says how
	JobPaused    JobState = "paused"
	JobDone      JobState = "done"
	JobCancelled JobState = "cancelled"
)

// Ended says whether the job is over.
func (s JobState) Ended() bool { return s == JobDone || s == JobCancelled }

// Job is what is being done to bring one disk to where it shall be, or to find corruption in it. A disk has at most one, which is called by the disk's name. It belongs to the
// mesh: when the node that does it dies, another goes on.
type Job struct {
	Disk           DiskRef   `json:"disk"`
	Kind           string    `json:"kind" enum:"relocation,repair,evacuation,resync,scrub"`
	State          JobState  `json:"state" enum:"running,waiting,failing,paused,done,cancelled"`
	Doing          string    `json:"doing,omitempty" doc:"what is being done now, or next"`
	Why            string    `json:"why,omitempty" doc:"it stands still, or is slow"`
	Node           NodeRef   `json:"node,omitzero" doc:"the node that does it"`
	StepsLeft      int       `json:"stepsLeft"`
	DoneBytes      int64     `json:"doneBytes" doc:"compared and copied, never less than before"`
	TotalBytes     int64     `json:"totalBytes" doc:"to compare and copy, at most"`
	Percent        int       `json:"percent" doc:"never less than before"`
	BytesPerSecond int64     `json:"bytesPerSecond,omitempty"`
	ETASeconds     int64     `json:"etaSeconds,omitempty" doc:"until all is copied, if that can be told"`
	Since          time.Time `json:"since,omitzero"`
	Ended          time.Time `json:"ended,omitzero"`
}

// JobQuery says which jobs are asked for.
type JobQuery struct {
	Ended bool // also those that ended within the last hour
	Local bool // only those that the node that answers does
}

// Orders that an administrator gives about a job. They are kept by the mesh.
const (
	OrderPause  = "pause"
	OrderResume = "resume"
	OrderRetry  = "retry"  // do not wait for the next attempt
	OrderCancel = "cancel" // of a relocation: give the disk the rule that it had before; of a scrub that was asked for: call it off
)

// OrderJob gives an order about a job.
type OrderJob struct {
	Order string `json:"order" enum:"pause,resume,retry,cancel"`
}

// Evacuate asks to move everything off some nodes.
type Evacuate struct {
	Nodes  string `json:"nodes" maxLength:"2048" doc:"name of a node, or a selector such as dc=osaka"`
	DryRun bool   `json:"dryRun,omitempty" doc:"tell what would be, change nothing"`
	Cancel bool   `json:"cancel,omitempty" doc:"let the nodes take replicas again"`
}

// Evacuation is what is left on nodes that are being evacuated.
type Evacuation struct {
	Nodes      []NodeRef    `json:"nodes"`
	Draining   bool         `json:"draining" doc:"all of them are being drained"`
	Replicas   int          `json:"replicas" doc:"copies of disks that are left there"`
	Seats      int          `json:"seats" doc:"disks whose quorum records are kept there"`
	Attached   []DiskRef    `json:"attached" doc:"disks that programs use there"`
	Safe       bool         `json:"safe" doc:"nothing is left: the nodes can be turned off"`
	Moves      []Evacuating `json:"moves" doc:"what is left, disk by disk"`
	CopyBytes  int64        `json:"copyBytes" doc:"to be copied, at most"`
	Problems   []Warning    `json:"problems,omitempty" doc:"why the nodes cannot be evacuated"`
	Warnings   []Warning    `json:"warnings,omitempty"`
	DryRun     bool         `json:"dryRun,omitempty"`
	DisksTotal int          `json:"disksTotal" doc:"that have anything there"`
}

// Evacuating is what moves one disk off.
type Evacuating struct {
	Disk  DiskRef `json:"disk"`
	Steps []Step  `json:"steps"`
}

// watchJobs answers with a stream of lists of all jobs, one whenever something has changed.
func (s *Server) watchJobs(context.Context, *struct{}) (*huma.StreamResponse, error) {
	seq := uint64(0)
	return streaming(s, s.backend.WatchJobs, func([]Job) (uint64, string) { seq++; return seq, "jobs" }), nil
}

// Jobs is Backend.Jobs.
func (c *Client) Jobs(ctx context.Context, q JobQuery) ([]Job, error) {
	return ask[[]Job](ctx, c, http.MethodGet, fmt.Sprintf("/v1/jobs?ended=%t&local=%t", q.Ended, q.Local), nil)
}

// OrderJob is Backend.OrderJob.
func (c *Client) OrderJob(ctx context.Context, disk string, o OrderJob) (Job, error) {
	return askDisk[Job](ctx, c, http.MethodPost, disk, "/job", o)
}

// WatchJobs calls f with all jobs, now and whenever something has changed, until ctx ends (nil), f returns an error (that error), or the stream
// breaks.
func (c *Client) WatchJobs(ctx context.Context, f func([]Job) error) error {
	return follow(ctx, c, jobsWatchPath, f)
}

// Evacuate is Backend.Evacuate.
func (c *Client) Evacuate(ctx context.Context, e Evacuate) (Evacuation, error) {
	return ask[Evacuation](ctx, c, http.MethodPost, "/v1/evacuate", e)
}
