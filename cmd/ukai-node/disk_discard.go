package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) diskDiscardCommand() *cobra.Command {
	var yes bool
	c := a.asking(&cobra.Command{
		Use:   "discard NAME HISTORY",
		Short: "Give up a history that a disk does not go on with, and free its space",
		Long: `Give up for good a history that a disk does not go on with, after disk pick has set it aside. HISTORY is as for disk pick, which lists them.

Its file, NAME~conflict-ID, disappears. When most of its arbiters have noted that it ended it cannot be picked any more, and each node frees the
space of the replicas that it has of it, an hour later, as it does with all that are not needed; one that is down does so when it is back. If most
of its arbiters do not answer, that waits for them, and until then disk pick takes it back; if they never come back, retire their nodes (mesh
retire). Without other histories the disk can be removed for good.`,
		Example:           "  ukai-node disk discard vm1 o1 --yes\n  ukai-node disk discard vm1 vm1~conflict-8659008c --yes",
		Args:              exactly("the NAME of a disk", "the HISTORY"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			if !yes {
				return usageError{fmt.Errorf("what was written in history %s of %s is lost for good: add --yes if that is meant", args[1], args[0])}
			}
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.DiscardHistory(ctx, args[0], admin.DiscardHistory{History: args[1]})
			}, func(d admin.Disk) string {
				for _, h := range d.Histories {
					if h.Discarded && !h.Ended {
						return fmt.Sprintf("history %s of %s is given up; it ends when most of its arbiters answer", h.ID, d.Name)
					}
				}
				return fmt.Sprintf("the history of %s is discarded; the space of its replicas is freed in a while", d.Name)
			})
		},
	})
	c.Flags().BoolVar(&yes, "yes", false, "yes, give up what was written in it")
	return c
}
