package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) diskQuorumCommand() *cobra.Command {
	var accept string
	c := a.asking(&cobra.Command{
		Use:   "quorum NAME majority | preferred NODE | unsafe",
		Short: "Say who decides about a disk when nodes are lost",
		Long: `Say who decides about a disk when nodes are lost.

  majority        a majority of its arbiters (the default): safe; in a mesh of two nodes the loss of either stops degraded disks
  preferred NODE  that node alone: it goes on when all others are gone, and none of the others goes on without it. Safe. For a
                  mesh of two nodes, or two datacenters, without a witness
  unsafe          a survivor goes on by itself: when most arbiters have been dead for 30 s and somebody wants the disk, or its I/O waits, a new
                  quorum record begins. Programs that had it open get errors once, and open it anew. After a cut both sides go on,
                  and there are two histories; it must be meant: --accept-split-brain NAME`,
		Args:              between([]string{"the NAME of a disk", "the MODE"}, 3),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			q := admin.SetQuorum{Mode: args[1], AcceptSplitBrain: accept}
			switch preferred := q.Mode == admin.QuorumPreferred; {
			case preferred && len(args) < 3:
				return usageError{errors.New("the NODE that decides alone is missing")}
			case preferred:
				q.Node = args[2]
			case len(args) > 2:
				return usageError{fmt.Errorf("one argument too many: %s", args[2])}
			case q.Mode != admin.QuorumMajority && q.Mode != admin.QuorumUnsafe:
				return usageError{fmt.Errorf("quorum mode %q: majority, preferred or unsafe", q.Mode)}
			}
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.SetQuorum(ctx, args[0], q)
			}, func(d admin.Disk) string {
				return fmt.Sprintf("%s: quorum %s, its record is kept by %s", d.Name, d.Quorum, arbiters(d.Arbiters))
			})
		},
	})
	c.Flags().StringVar(&accept, "accept-split-brain", "", "with unsafe: the `NAME` of the disk again")
	return c
}

func (a *app) diskForceCommand() *cobra.Command {
	var gone []string
	c := a.asking(&cobra.Command{
		Use:   "force NAME --gone NODE,...",
		Short: "Go on with a disk when most of its arbiters are gone for good",
		Long: `Go on with a disk when most of its arbiters are gone for good: a new quorum record begins on nodes that are alive.

Nodes that only are cut off, or come back later, would still have the old one: then there are two histories of the disk, and one
side's writes are lost. So first make sure that they are off for good, then name all that do not answer with --gone.`,
		Args:              exactly("the NAME of a disk"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.ForceDisk(ctx, args[0], admin.ForceDisk{Gone: gone})
			}, func(d admin.Disk) string {
				return fmt.Sprintf("%s goes on; its record is kept by %s", d.Name, arbiters(d.Arbiters))
			})
		},
	})
	c.Flags().StringSliceVar(&gone, "gone", nil, "`NODES` that are gone for good: all arbiters that do not answer")
	return c
}
