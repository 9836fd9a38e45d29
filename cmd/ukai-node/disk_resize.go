package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) diskResizeCommand() *cobra.Command {
	return a.asking(&cobra.Command{
		Use:   "resize NAME SIZE",
		Short: "Grow a disk, also while it is in use",
		Long: `Grow a disk, also while it is in use; the VM sees the new size when its hypervisor is told (virsh blockresize). A disk cannot shrink.

` + sizeHelp,
		Args:              exactly("the NAME of a disk", "the new SIZE"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			size, err := parseSize(args[1])
			if err != nil {
				return err
			}
			if err := ukai.CheckDiskSize(size); err != nil {
				return err
			}
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.ResizeDisk(ctx, args[0], admin.ResizeDisk{SizeBytes: size})
			}, func(d admin.Disk) string { return fmt.Sprintf("%s has %s", d.Name, formatSize(d.SizeBytes)) })
		},
	})
}
