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
		grace time.Duration
		yes   bool
	)
	c := a.asking(&cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a disk; for a day it can be restored",
		Long: `Remove a disk that no node has attached. Its file disappears at once; its data stays for the grace time, in which disk restore brings
it back. With --grace 0 the data is given up at once, which needs --yes.`,
		Args:              exactly("the NAME of a disk"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
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
	c.Flags().BoolVar(&yes, "yes", false, "with --grace 0: yes, give up the data at once")
	return c
}
