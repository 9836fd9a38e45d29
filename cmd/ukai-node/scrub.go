package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

// scrubPoll is how often a scrub is asked how far it is.
const scrubPoll = 500 * time.Millisecond

func (a *app) scrubCommand() *cobra.Command {
	var s admin.ScrubDisk
	c := a.asking(&cobra.Command{
		Use:   "scrub [NAME]",
		Short: "Look for corruption in a disk or in all, and repair it",
		Long: `Read all that is stored of a disk, or of all disks, from every in-sync replica, compare, and repair from another replica what cannot be read or is not what
was written. It disturbs nobody who uses the disk, and notes checksums of what is well, so that later it can be told which of two copies is the good one.

Each disk is scrubbed by itself every 30 days (start --scrub-every). This command asks for it now, and waits. If it is interrupted the scrub goes on; disk show
tells how far it is. --timeout bounds each question to the node, not the scrub. The exit code is 1 if something is corrupt and not repaired.`,
		Example:           "  ukai-node scrub vm1\n  ukai-node scrub --verify-only",
		Args:              optional(),
		ValidArgsFunction: a.completeDisk,
		RunE:              func(c *cobra.Command, args []string) error { return a.scrub(c, args, s) },
	})
	c.Flags().BoolVar(&s.VerifyOnly, "verify-only", false, "only tell what is corrupt, change nothing")
	return c
}

// scrub asks for scrubs of the disks that are named, or of all, and waits for them.
func (a *app) scrub(c *cobra.Command, names []string, s admin.ScrubDisk) error {
	if len(names) == 0 {
		err := a.ask(c, func(ctx context.Context, node *admin.Client) error {
			all, err := node.Disks(ctx, false)
			for _, d := range all {
				names = append(names, d.ID.String())
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	asked := make([]admin.Disk, len(names))
	for i, name := range names {
		if err := a.ask(c, func(ctx context.Context, node *admin.Client) (err error) {
			asked[i], err = node.ScrubDisk(ctx, name, s)
			return err
		}); err != nil {
			return err
		}
	}
	done := make([]admin.Disk, 0, len(asked))
	rotten := false
	for _, d := range asked {
		d, err := a.awaitScrub(c, d)
		if err != nil {
			return err
		}
		rotten = rotten || d.Scrub.Last.Unrepaired > 0
		done = append(done, d)
		if a.output == "table" {
			a.say("%s: %v", d.Name, *d.Scrub.Last)
		}
	}
	if err := a.show(done, func() {
		if len(done) == 0 {
			a.say("no disks")
		}
	}); err != nil {
		return err
	}
	if rotten {
		return errors.New("") // all is said
	}
	return nil
}

// awaitScrub waits until the scrub of a disk that was asked for has ended, and tells how far it is meanwhile.
func (a *app) awaitScrub(c *cobra.Command, d admin.Disk) (admin.Disk, error) {
	asked, told := d.Scrub.Asked, ""
	for {
		switch {
		case d.Scrub != nil && d.Scrub.Last != nil && d.Scrub.Last.Request == asked:
			return d, nil
		case d.Scrub != nil && d.Scrub.Cancelled && d.Scrub.Asked != asked:
			return d, fmt.Errorf("scrub %s: it was cancelled", d.Name)
		case d.Scrub == nil || d.Scrub.Asked != asked:
			return d, fmt.Errorf("scrub %s: another scrub of it has been asked for, and this one was given up", d.Name)
		}
		if now := a.scrubText(*d.Scrub); now != told {
			a.note("%s: %s", d.Name, now)
			told = now
		}
		t := time.NewTimer(scrubPoll)
		select {
		case <-t.C:
		case <-c.Context().Done():
			t.Stop()
			return d, c.Context().Err()
		}
		if err := a.ask(c, func(ctx context.Context, node *admin.Client) (err error) {
			d, err = node.Disk(ctx, d.ID.String())
			return err
		}); err != nil {
			return d, err
		}
	}
}

// scrubText tells how far the scrubs of a disk are.
func (a *app) scrubText(s admin.Scrub) string {
	switch {
	case s.Paused && s.Running != nil:
		return fmt.Sprintf("paused at %d %% of the disk; ukai-node jobs resume lets it go on", s.Running.Percent)
	case s.Paused:
		return "paused before its begin; ukai-node jobs resume lets it go on"
	case s.Waiting:
		return "waits for the node that looks after the disk"
	case s.Running != nil:
		return fmt.Sprintf("%d %% of the disk: %v", s.Running.Percent, *s.Running)
	case s.Last == nil:
		return "-"
	}
	text := fmt.Sprintf("%s: %v", a.ago(s.Last.Ended), *s.Last)
	if s.Last.Unrepaired > 0 {
		return a.colour(red, text)
	}
	return text
}
