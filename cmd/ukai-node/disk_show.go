package main

import (
	"context"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) diskShowCommand() *cobra.Command {
	return a.asking(&cobra.Command{
		Use:               "show NAME",
		Short:             "Show everything about one disk",
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
