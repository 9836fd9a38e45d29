package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) jobsCommand() *cobra.Command {
	var all bool
	c := a.asking(&cobra.Command{
		Use:   "jobs",
		Short: "Show what is being moved, repaired and brought up to date",
		Long: `Show what is being done to bring disks to where they shall be: relocations after a changed rule, repairs of what is lost, evacuations, resyncs of
replicas that were away, and scrubs, of disks for which nothing else is to be done. A disk has at most one job, which is called by the disk's name. Jobs belong to the mesh: when the node that does one dies, another goes on,
and what was ordered about it holds.`,
		Example:           "  ukai-node jobs\n  ukai-node jobs watch vm1\n  ukai-node jobs pause vm1",
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				jobs, err := node.Jobs(ctx, admin.JobQuery{Ended: all})
				if err != nil {
					return err
				}
				return a.show(jobs, func() { a.printJobs(jobs) })
			})
		},
	})
	c.Flags().BoolVar(&all, "all", false, "also those that ended within the last hour")
	c.AddCommand(a.jobsWatchCommand(),
		a.jobOrderCommand(admin.OrderPause, "Let a disk's job stand still until it is resumed", `Let a disk's job stand still until it is resumed. What has been copied stays; nothing else is begun. It also stops the repair of that disk, and scrubs of it.`),
		a.jobOrderCommand(admin.OrderResume, "Let a disk's job go on", "Let a disk's job that was paused go on."),
		a.jobOrderCommand(admin.OrderRetry, "Try at once what failed", "Try a disk's job again at once, where it waits after a failure."),
		a.jobOrderCommand(admin.OrderCancel, "Give a disk back the rule that it had before, or call its scrub off", `Give a disk back the rule that it had before its relocation. What was copied for the newer rule is dropped; what was dropped already is
made again. A scrub that was asked for is called off; what it has repaired stays. A repair, a resync, an evacuation or a scrub that was due is not cancelled by this: the text says what ends it.`))
	return c
}

func (a *app) jobOrderCommand(order, short, long string) *cobra.Command {
	return a.asking(&cobra.Command{
		Use:               order + " DISK",
		Short:             short,
		Long:              long,
		Args:              exactly("the NAME of a disk"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				j, err := node.OrderJob(ctx, args[0], admin.OrderJob{Order: order})
				if err != nil {
					return err
				}
				return a.show(j, func() { a.say("%s", a.jobLine(j)) })
			})
		},
	})
}

func (a *app) jobsWatchCommand() *cobra.Command {
	c := a.asking(&cobra.Command{
		Use:   "watch [DISK...]",
		Short: "Follow jobs: bars on a terminal, lines elsewhere",
		Long: `Follow all jobs until Ctrl-C, or those of some disks until they have ended. On a terminal each has a bar with its rate and the time that is left; elsewhere
a line is printed when something has changed. With -o json each change is one line with a list of all jobs. Ctrl-C leaves the jobs running.`,
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(_ context.Context, node *admin.Client) error {
				return a.watchJobs(c.Context(), node, args)
			})
		},
	})
	_ = c.Flags().MarkHidden("timeout") // is there for all commands that ask; jobs are followed for as long as they take
	return c
}

// errEnough ends a stream that has told what was waited for.
var errEnough = errors.New("enough")

// watchJobs follows jobs: of the named disks until none of them has one, or all for ever. A job that was cancelled is an error.
func (a *app) watchJobs(ctx context.Context, node *admin.Client, disks []string) error {
	for _, disk := range disks {
		if _, err := node.Disk(ctx, disk); err != nil {
			return err
		}
	}
	s := jobScreen{app: a}
	cancelled := ""
	err := node.WatchJobs(ctx, func(jobs []admin.Job) error {
		if len(disks) > 0 {
			jobs = slices.DeleteFunc(jobs, func(j admin.Job) bool {
				return !slices.Contains(disks, j.Disk.Name) && !slices.Contains(disks, j.Disk.ID.String())
			})
		}
		if err := s.show(jobs); err != nil {
			return err
		}
		open := false
		for _, j := range jobs {
			open = open || !j.State.Ended()
			if j.State == admin.JobCancelled {
				cancelled = j.Disk.Name
			}
		}
		if len(disks) > 0 && !open {
			return errEnough
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnough) && cancelled != "":
		return fmt.Errorf("the job of disk %s was cancelled: %w", cancelled, ukai.ErrRejected)
	case errors.Is(err, errEnough):
		return nil
	case err == nil:
		return ctx.Err()
	}
	return err
}

func (a *app) printJobs(jobs []admin.Job) {
	if len(jobs) == 0 {
		a.say("no jobs: all disks are where they shall be")
		return
	}
	var rows [][]string
	for _, j := range jobs {
		rows = append(rows, []string{
			j.Disk.Name, j.Kind, a.colour(jobColour(j.State), string(j.State)), fmt.Sprintf("%d %%", j.Percent), jobBytes(j), dash(rate(j.BytesPerSecond)), dash(eta(j)),
			dash(j.Node.String()), dash(jobText(j)),
		})
	}
	a.table([]string{"DISK", "JOB", "STATE", ">DONE", ">BYTES", ">RATE", ">LEFT", "BY", "WHAT"}, rows)
}

func jobColour(s admin.JobState) string {
	switch s {
	case admin.JobRunning, admin.JobDone:
		return green
	case admin.JobFailing:
		return red
	case admin.JobWaiting, admin.JobPaused, admin.JobCancelled:
		return yellow
	}
	return ""
}

// jobText tells what is done, and why it does not get on.
func jobText(j admin.Job) string {
	switch {
	case j.Doing == "":
		return j.Why
	case j.Why == "":
		return j.Doing
	}
	return j.Doing + "; " + j.Why
}

func jobBytes(j admin.Job) string {
	if j.TotalBytes == 0 {
		return "-"
	}
	return formatSize(j.DoneBytes) + " of " + formatSize(j.TotalBytes)
}

func rate(n int64) string {
	if n == 0 {
		return ""
	}
	return formatSize(n) + "/s"
}

func eta(j admin.Job) string {
	if j.ETASeconds == 0 {
		return ""
	}
	return (time.Duration(j.ETASeconds) * time.Second).String()
}

// jobLine is a job on one line.
func (a *app) jobLine(j admin.Job) string {
	parts := []string{fmt.Sprintf("%s: %s %s, %d %%", j.Disk.Name, j.Kind, a.colour(jobColour(j.State), string(j.State)), j.Percent)}
	if b := jobBytes(j); b != "-" {
		parts = append(parts, b)
	}
	if r := rate(j.BytesPerSecond); r != "" {
		parts = append(parts, r)
	}
	if e := eta(j); e != "" {
		parts = append(parts, e+" left")
	}
	if t := jobText(j); t != "" && !j.State.Ended() {
		parts = append(parts, t)
	}
	return strings.Join(parts, ", ")
}

// barWidth is how many characters a bar has between its brackets.
const barWidth = 24

// bar draws how far a job is.
func bar(percent int) string {
	full := min(max(percent, 0), 100) * barWidth / 100
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "]"
}

// jobScreen shows jobs again and again: in place on a terminal, else as lines where something has changed.
type jobScreen struct {
	*app
	lines int               // on the terminal, to be drawn over
	told  map[string]string // disk -> what its last line was about
}

func (s *jobScreen) show(jobs []admin.Job) error {
	switch {
	case s.output == "json":
		return json.NewEncoder(s.stdout).Encode(jobs)
	case s.output == "yaml":
		if _, err := fmt.Fprintln(s.stdout, "---"); err != nil {
			return err
		}
		return s.app.show(jobs, nil)
	case s.terminal:
		if s.lines > 0 {
			fmt.Fprintf(s.stdout, "\x1b[%dA\x1b[J", s.lines)
		}
		s.lines = 0
		for _, j := range jobs {
			s.say("%s %s", bar(j.Percent), s.jobLine(j))
			s.lines++
		}
		return nil
	}
	if s.told == nil {
		s.told = map[string]string{}
	}
	for _, j := range jobs {
		if about := fmt.Sprint(j.State, j.Doing, j.Why, j.Percent/10); s.told[j.Disk.Name] != about {
			s.told[j.Disk.Name] = about
			s.say("%s %s", s.now().UTC().Format(time.TimeOnly), s.jobLine(j))
		}
	}
	return nil
}
