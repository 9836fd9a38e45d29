package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) placeDiskCommand() *cobra.Command {
	var flags ruleFlags
	var dryRun, wait, fewer, keep, drop bool
	c := a.asking(&cobra.Command{
		Use:   "disk NAME TERM...",
		Short: "Give a disk a rule: where its replicas shall lie",
		Long: `Give a disk a rule: where its replicas shall lie.

` + termHelp + `

On a disk that has data the rule is carried out while the disk is used: replicas that suit it stay, new ones are made and brought up to date,
then the others are dropped, and the arbiters follow. Nodes that die meanwhile do no harm: whoever is left goes on. --dry-run shows the steps,
what each of them copies on which way, how long that takes, and how many copies are in sync then; what crosses each link, and the space it takes on each
node. Place show tells how far it is. The space of a dropped replica is freed an hour later.

At no moment fewer copies are in sync than before, unless --allow-fewer is said: then replicas that are not wanted are dropped before new ones are made,
so that no space is needed for both. At least one stays in sync, and as many as writes need (--min-sync). That ends when the disk is where the rule wants
it, or gets another rule.

With --keep-stale nodes keep the data of dropped replicas of the disk as long as they have space, as old copies. They are no replicas and never read. When the
disk comes back to such a node, the new replica there begins with the old copy: both are compared, and only what differs is copied. That is so until
--no-keep-stale is said; then the space is freed, as it is when the disk is removed, or less than a tenth of the node's space is left.`,
		Example: `  ukai-node place disk vm1 dc=tokyo:2 dc=osaka:1 --spread rack
  ukai-node place disk vm1 dc=osaka:2 --dry-run
  ukai-node place disk vm1 'dc=$here:2' --follow 10m`,
		Args: atLeast("the NAME of a disk", "a TERM such as dc=tokyo:2"),
		ValidArgsFunction: func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.completeDisk(c, args, typed)
			}
			return a.completeLabels(c, ":")
		},
		RunE: func(c *cobra.Command, args []string) error {
			rule, err := flags.rule(args[1:])
			if err != nil {
				return err
			}
			change := admin.PlaceDisk{Rule: rule, AllowFewer: fewer, DryRun: dryRun}
			if keep || drop {
				change.KeepStale = &keep
			}
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				p, err := node.PlaceDisk(ctx, args[0], change)
				if err != nil {
					return err
				}
				err = a.show(p, func() {
					if p.DryRun {
						a.say("dry run: nothing was changed")
					}
					a.printPlacement(p)
				})
				if err != nil || !wait {
					return err
				}
				return a.awaitPlaced(c.Context(), node, p)
			})
		},
	})
	flags.add(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "tell what would follow, change nothing")
	c.Flags().BoolVar(&fewer, "allow-fewer", false, "drop replicas before others are made: fewer copies are in sync until the move is done")
	c.Flags().BoolVar(&wait, "wait", false, "wait until the disk is where the rule wants it; Ctrl-C leaves the job running")
	c.Flags().BoolVar(&keep, "keep-stale", false, "from now on nodes keep the data of dropped replicas as long as they have space")
	c.Flags().BoolVar(&drop, "no-keep-stale", false, "end that, and free the space")
	c.MarkFlagsMutuallyExclusive("dry-run", "wait")
	c.MarkFlagsMutuallyExclusive("keep-stale", "no-keep-stale")
	return c
}

// placedEvery is how often it is looked whether a disk is where its rule wants it.
const placedEvery = time.Second

// awaitPlaced waits until a disk is where its rule wants it, and tells how far that is. If it gets another rule meanwhile, the error matches
// ukai.ErrRejected.
func (a *app) awaitPlaced(ctx context.Context, node *admin.Client, p admin.Placement) error {
	s := jobScreen{app: a}
	rule := p.Rule
	for {
		var err error
		if p, err = node.Placement(ctx, p.Disk.ID.String()); err != nil {
			return err
		}
		switch {
		case p.Rule != rule:
			return fmt.Errorf("disk %s: %w: it was given another rule meanwhile: %s", p.Disk.Name, ukai.ErrRejected, p.Rule)
		case p.Met && len(p.Steps) == 0:
			if a.output == "table" {
				a.say("%s is where its rule wants it", p.Disk.Name)
			}
			return nil
		}
		if a.output == "table" {
			jobs, err := node.Jobs(ctx, admin.JobQuery{})
			if err != nil {
				return err
			}
			if err := s.show(slices.DeleteFunc(jobs, func(j admin.Job) bool { return j.Disk.ID != p.Disk.ID })); err != nil {
				return err
			}
		}
		timer := time.NewTimer(placedEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			a.note("it goes on without this command; see: ukai-node jobs watch %s", p.Disk.Name)
			return ctx.Err()
		}
	}
}
