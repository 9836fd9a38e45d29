package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) diskTakeoverCommand() *cobra.Command {
	var fenced bool
	c := a.asking(&cobra.Command{
		Use:   "takeover NAME",
		Short: "Take a disk from a host that does not answer",
		Long: `Take a disk from the host that holds it and does not answer, so that its VM can be started here. A program that opens a disk does so by
itself once a majority of the arbiters takes that host for dead; this is for those who know earlier.

The old host can write no more, whatever becomes of it: every replica refuses it from then on. A host that answers and on which a program has
the disk open is left alone; --fenced deposes it too, and that program gets I/O errors.`,
		Example:           "  ukai-node disk takeover vm1\n  ukai-node disk takeover vm1 --fenced",
		Args:              exactly("the NAME of a disk"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.Takeover(ctx, args[0], admin.Takeover{Fenced: fenced})
			}, func(d admin.Disk) string {
				if d.Holder != nil {
					return fmt.Sprintf("%s is attached to %s, epoch %s", d.Name, d.Holder, d.Epoch)
				}
				return fmt.Sprintf("%s is free, epoch %s: start its VM", d.Name, d.Epoch)
			})
		},
	})
	c.Flags().BoolVar(&fenced, "fenced", false, "the machine that holds it is certainly off or cut off: depose it even if it seems to answer")
	return c
}
