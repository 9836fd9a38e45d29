package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

// defaultGrace is how long a removed disk can be restored.
const defaultGrace = 24 * time.Hour

// maxGrace bounds how long the space of a removed disk stays taken.
const maxGrace = 365 * 24 * time.Hour

func (a *app) diskRmCommand() *cobra.Command {
	var (
		grace      time.Duration
		yes, force bool
	)
	c := a.asking(&cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a disk; for a day it can be restored",
		Long: `Remove a disk that no node has attached. Its file disappears at once; its data stays for the grace time, in which disk restore brings
it back. With --grace 0 the data is given up at once, which needs --yes.

With --force --yes a disk is removed of which nothing is left: no node that answers has a copy in sync, so that nobody can attach it. Its name is free, and
status and doctor do not speak of it any more. Nothing is deleted by that: should a node with a copy come back, doctor tells of it there, and the disk can be
restored, or removed again by its id to free the space.`,
		Args:              exactly("the NAME of a disk"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			if force {
				return a.forceRemove(c, args[0], yes)
			}
			switch {
			case grace < 0 || grace > maxGrace || grace%time.Second != 0:
				return fmt.Errorf("grace %v: %w: whole seconds from 0 to %v", grace, ukai.ErrInvalid, maxGrace)
			case grace == 0 && !yes:
				return usageError{fmt.Errorf("with --grace 0 nothing brings %s back: add --yes if that is meant", args[0])}
			}
			seconds := int64(grace / time.Second)
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.RemoveDisk(ctx, args[0], admin.RemoveDisk{GraceSeconds: &seconds})
			}, func(d admin.Disk) string {
				if grace == 0 || d.Removed == nil {
					return "removed " + d.Name + " for good"
				}
				return fmt.Sprintf("removed %s; until %s it can be brought back with: ukai-node disk restore %s", d.Name, d.Removed.Until.UTC().Format(time.DateTime+" MST"), d.Name)
			})
		},
	})
	c.Flags().DurationVar(&grace, "grace", defaultGrace, "`DURATION` for which the disk can be restored, for example 1h")
	c.Flags().BoolVar(&yes, "yes", false, "with --grace 0 or --force: yes, give up the data")
	c.Flags().BoolVar(&force, "force", false, "remove a disk of which no copy can be had")
	c.MarkFlagsMutuallyExclusive("force", "grace")
	return c
}

// forceRemove removes a disk whose copies are gone, or without yes tells what would be lost.
func (a *app) forceRemove(c *cobra.Command, name string, yes bool) error {
	if yes {
		return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
			return node.RemoveDisk(ctx, name, admin.RemoveDisk{Force: true})
		}, func(d admin.Disk) string {
			return fmt.Sprintf("removed %s by force, its id is %v; should a node with a copy come back: ukai-node disk restore %s, or to delete it: ukai-node disk rm %v", d.Name, d.ID, d.Name, d.ID)
		})
	}
	return a.ask(c, func(ctx context.Context, node *admin.Client) error {
		d, err := node.Disk(ctx, name)
		if err != nil {
			return err
		}
		if err := a.show(d, func() {
			a.say("%s, %s, is lost with these copies:", d.Name, formatSize(d.SizeBytes))
			a.table([]string{"  REPLICA ON", "DC", "ROLE", "NODE"}, lostRows(d.Replicas))
		}); err != nil {
			return err
		}
		return usageError{fmt.Errorf("nothing was changed: add --yes if none of these nodes comes back")}
	})
}

func lostRows(replicas []admin.Replica) (rows [][]string) {
	for _, r := range replicas {
		rows = append(rows, []string{"  " + r.Node.String(), dash(r.Labels[ukai.LabelDC]), string(r.Role), string(r.NodeState)})
	}
	return rows
}
