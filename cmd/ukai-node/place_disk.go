package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) placeDiskCommand() *cobra.Command {
	var flags ruleFlags
	var dryRun, wait, fewer, remove, keep, drop bool
	var blocks string
	c := a.asking(&cobra.Command{
		Use:   "disk NAME [TERM...]",
		Short: "Give a disk, or some of its blocks, a rule: where the replicas shall lie",
		Long: `Give a disk, or some of its blocks, a rule: where the replicas shall lie.

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
--no-keep-stale is said; then the space is freed, as it is when the disk is removed, or less than a tenth of the node's space is left. Of a node that keeps
other blocks of the disk nothing is kept.

With --blocks the rule is that of a range of blocks, in place of the disk's: numbers of blocks as disk map shows them, first and last, such as 0-255, or
bytes with a unit, such as 0-10G. What it overlaps is replaced, neighbours with the same rule become one range, and --remove gives the blocks back to the
rule of the disk. A disk can have 64 ranges with 8 different rules. Min-sync, the arbiters and what follows a VM are a matter of the whole disk, and all of it
waits when some of its blocks have no copy that answers.`,
		Example: `  ukai-node place disk vm1 dc=tokyo:2 dc=osaka:1 --spread rack
  ukai-node place disk vm1 dc=osaka:2 --dry-run
  ukai-node place disk vm1 'dc=$here:2' --follow 10m
  ukai-node place disk vm1 --blocks 0-10G dc=tokyo+ssd=yes:2
  ukai-node place disk vm1 --blocks 0-10G --remove`,
		Args: func(c *cobra.Command, args []string) error {
			switch {
			case !remove:
				return atLeast("the NAME of a disk", "a TERM such as dc=tokyo:2")(c, args)
			case blocks == "":
				return usageError{errors.New("--remove takes the rule of a range away: say which, for example --blocks 0-255")}
			case flags.given():
				return usageError{errRuleFlagsWithoutTerms}
			}
			return exactly("the NAME of a disk")(c, args)
		},
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
				change.Remove = remove
				if remove {
					change.Rule = admin.Rule{}
				}
				if change.Blocks, err = rangeOf(ctx, node, args[0], blocks); err != nil {
					return err
				}
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
	c.MarkFlagsMutuallyExclusive("keep-stale", "no-keep-stale")
	c.Flags().StringVar(&blocks, "blocks", "", "the rule is that of these blocks, `FIRST-LAST`, or of bytes such as 0-10G")
	c.Flags().BoolVar(&remove, "remove", false, "with --blocks: they have no rule of their own any more")
	c.MarkFlagsMutuallyExclusive("dry-run", "wait")
	c.MarkFlagsMutuallyExclusive("blocks", "allow-fewer")
	return c
}

var blockNumbers = regexp.MustCompile(`^[0-9]+(-[0-9]+)?$`)

// rangeOf returns a range of blocks of a disk, FIRST-LAST, of one that may be given in bytes, FROM-TO without TO itself.
func rangeOf(ctx context.Context, node *admin.Client, disk, text string) (string, error) {
	if text == "" || blockNumbers.MatchString(text) {
		return text, nil
	}
	from, to, ok := strings.Cut(text, "-")
	first, err := parseSize(from)
	if !ok || err != nil {
		return "", usageError{fmt.Errorf("--blocks %q: write FIRST-LAST, the numbers of blocks from 0, or bytes such as 0-10G", text)}
	}
	end, err := parseSize(to)
	if err != nil {
		return "", usageError{fmt.Errorf("--blocks %q: write FIRST-LAST, the numbers of blocks from 0, or bytes such as 0-10G", text)}
	}
	d, err := node.Disk(ctx, disk)
	if err != nil {
		return "", err
	}
	size := int64(d.BlockSizeBytes)
	switch {
	case end > d.SizeBytes:
		return "", usageError{fmt.Errorf("--blocks %s: disk %s has %s (%d bytes): make it larger first, or say --blocks %s-%d", text, d.Name, formatSize(d.SizeBytes), d.SizeBytes, from, d.SizeBytes)}
	case first >= end:
		return "", usageError{fmt.Errorf("--blocks %s: it ends before it begins", text)}
	case first%size != 0 || end%size != 0 && end != d.SizeBytes:
		return "", usageError{fmt.Errorf("--blocks %s: blocks of disk %s have %s each: begin and end at a multiple of that", text, d.Name, formatSize(size))}
	}
	return ukai.Range{First: ukai.Index(first / size), Count: ukai.Blocks(end-first, int(size))}.String(), nil
}

// rules returns the rules of a disk and of its ranges as text.
func rules(p admin.Placement) string {
	parts := []string{p.Rule}
	for _, r := range p.Ranges {
		parts = append(parts, r.Blocks+" "+r.Rule)
	}
	return strings.Join(parts, "; ")
}

// placedEvery is how often it is looked whether a disk is where its rule wants it.
const placedEvery = time.Second

// awaitPlaced waits until a disk is where its rule wants it, and tells how far that is. If it gets another rule meanwhile, the error matches
// ukai.ErrRejected.
func (a *app) awaitPlaced(ctx context.Context, node *admin.Client, p admin.Placement) error {
	s := jobScreen{app: a}
	rule := rules(p)
	for {
		var err error
		if p, err = node.Placement(ctx, p.Disk.ID.String()); err != nil {
			return err
		}
		switch {
		case rules(p) != rule:
			return fmt.Errorf("disk %s: %w: it was given another rule meanwhile: %s", p.Disk.Name, ukai.ErrRejected, rules(p))
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
