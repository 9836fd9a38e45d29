package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) diskSetCommand() *cobra.Command {
	var set admin.SetDisk
	c := a.asking(&cobra.Command{
		Use:   "set NAME",
		Short: "Change when writes are acknowledged, and what happens with too few replicas",
		Long: `Change when writes are acknowledged, and what happens with too few replicas. It takes effect at once, also while the disk is used.

  --ack local    a write is acknowledged when the in-sync replica on the node that uses the disk has it. It is sent to the others at the
                 same time; when they lack 8 MiB, or something a second old, further writes wait for all. A flush always does. What was
                 acknowledged and not flushed may be lost when that node's machine is lost, or is unreachable at a takeover.
                 Without an in-sync replica on that node, as all
  --ack all      when every in-sync replica has it

How many replicas must be in sync is part of the disk's rule: place disk --min-sync.`,
		Example:           "  ukai-node disk set vm1 --ack local",
		Args:              exactly("the NAME of a disk"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			if set == (admin.SetDisk{}) {
				return usageError{errors.New("nothing to change: give --ack or --on-loss")}
			}
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.SetDisk(ctx, args[0], set)
			}, func(d admin.Disk) string { return fmt.Sprintf("%s: on-loss %s, ack %s", d.Name, d.OnLoss, d.Ack) })
		},
	})
	c.Flags().StringVar(&set.OnLoss, "on-loss", "", "what I/O does with fewer than min-sync replicas in sync, `WHAT`: wait for them, or error after a while")
	c.Flags().StringVar(&set.Ack, "ack", "", "`WHEN` a write is acknowledged: all, or local")
	_ = c.RegisterFlagCompletionFunc("on-loss", fixed("wait", "error"))
	_ = c.RegisterFlagCompletionFunc("ack", fixed("all", "local"))
	return c
}
