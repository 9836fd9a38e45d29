package main

import (
	"context"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) diskShowCommand() *cobra.Command {
	return a.asking(&cobra.Command{
		Use:   "show NAME",
		Short: "Show everything about one disk",
		Long: `Show everything about one disk, on any node the same. Of a replica that is not in sync it tells since when, why, how much is to be compared
and copied at most, and while that is done how far it is and when it will be in sync. The node that holds the disk is asked for this; what it does not
tell within a few seconds is left out.`,
		Args:              exactly("the NAME of a disk"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				d, err := node.Disk(ctx, args[0])
				if err != nil {
					return err
				}
				return a.show(d, func() { a.printDisk(d) })
			})
		},
	})
}
