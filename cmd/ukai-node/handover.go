package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) handoverCommand() *cobra.Command {
	var h admin.Handover
	c := a.asking(&cobra.Command{
		Use:   "handover NAME --to NODE",
		Short: "Move the right to write a disk to a node by hand",
		Long: `Have the host that holds a disk let go of it, and the node that is named hold it until the disk has not been used for a while. Nothing has to be
handed over by hand for a live migration or for a VM that is stopped here and started there: the host that opens a disk asks for it.

If a program has the disk open, such as the VM that uses it, that is refused; with --force that program gets I/O errors.`,
		Example:           "  ukai-node handover vm1 --to o1",
		Args:              exactly("the NAME of a disk"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			if h.To == "" {
				return usageError{fmt.Errorf("--to is missing: name the node that is to hold %s", args[0])}
			}
			if err := ukai.CheckName("node", h.To); err != nil {
				return err
			}
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.Handover(ctx, args[0], h)
			}, func(d admin.Disk) string {
				return fmt.Sprintf("%s was handed over to %s, epoch %s", d.Name, h.To, d.Epoch)
			})
		},
	})
	c.Flags().StringVar(&h.To, "to", "", "`NODE` that is to hold the disk")
	c.Flags().BoolVar(&h.Force, "force", false, "also if a program has the disk open, whose I/O then fails")
	_ = c.RegisterFlagCompletionFunc("to", a.completeNodes)
	return c
}
