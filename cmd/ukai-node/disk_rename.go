package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) diskRenameCommand() *cobra.Command {
	return a.asking(&cobra.Command{
		Use:               "rename NAME NEW",
		Short:             "Rename a disk",
		Long:              "Rename a disk. Programs that have its file open keep it; afterwards the file has the new name on all nodes.",
		Args:              exactly("the NAME of a disk", "the NEW name"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			if err := ukai.CheckName("disk", args[1]); err != nil {
				return err
			}
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.RenameDisk(ctx, args[0], admin.RenameDisk{Name: args[1]})
			}, func(d admin.Disk) string { return fmt.Sprintf("%s is now called %s", args[0], d.Name) })
		},
	})
}
