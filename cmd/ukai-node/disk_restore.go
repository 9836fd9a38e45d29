package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) diskRestoreCommand() *cobra.Command {
	var name string
	c := a.asking(&cobra.Command{
		Use:               "restore NAME",
		Short:             "Bring back a removed disk",
		Long:              "Bring back a disk that was removed, within its grace time. Where several removed disks have the name, give the id that disk ls --removed shows.",
		Args:              exactly("the NAME or id of a removed disk"),
		ValidArgsFunction: a.completeRemoved,
		RunE: func(c *cobra.Command, args []string) error {
			if name != "" {
				if err := ukai.CheckName("disk", name); err != nil {
					return err
				}
			}
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.RestoreDisk(ctx, args[0], admin.RestoreDisk{Name: name})
			}, func(d admin.Disk) string {
				return fmt.Sprintf("%s, %s, is back", d.Name, formatSize(d.SizeBytes))
			})
		},
	})
	c.Flags().StringVar(&name, "name", "", "`NAME` to give it, if the old one is taken")
	return c
}
