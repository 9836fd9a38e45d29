package main

import (
	"context"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) leaveCommand() *cobra.Command {
	var force bool
	c := a.asking(&cobra.Command{
		Use:   "leave",
		Short: "Have the node announce that it goes, and end",
		Long: `Have the node announce to the mesh that it goes, let its disks go, unmount, and end. Its data stays, and the node joins
again when it is started. It refuses while a disk is attached to it or would lose its last in-sync replica; --force does it all the same.`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				l, err := node.Leave(ctx, admin.Leave{Force: force})
				if err != nil {
					return err
				}
				return a.show(l, func() {
					a.say("node %s leaves the mesh and ends", l.Node)
					a.warnings(l.Warnings)
				})
			})
		},
	})
	c.Flags().BoolVar(&force, "force", false, "also if disks are attached to it, or would lose their last in-sync replica")
	return c
}
