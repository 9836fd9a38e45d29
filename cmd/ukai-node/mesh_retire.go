package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) meshRetireCommand() *cobra.Command {
	var yes bool
	c := a.asking(&cobra.Command{
		Use:   "retire NODE",
		Short: "Take a node that never comes back out of the mesh, for good",
		Long: `Take a node whose machine is lost out of the mesh, for good. Its replicas and its places as arbiter are made anew on other nodes at once, without
waiting for --repair-after, its name can be used again, and status and doctor do not speak of it any more. This cannot be undone: should the machine come back it is
not let in, unless it is started as a new node with an empty data directory; what is stored on it can then not be used by the mesh.

Without --yes it only tells what would follow. A node that anybody in the mesh hears from is refused: evacuate it, then have it leave. Where a disk's
last copy or most of its arbiters are lost, the command says so and what is left to do.`,
		Example:           "  ukai-node mesh retire t2\n  ukai-node mesh retire t2 --yes",
		Args:              exactly("the NAME of a node"),
		ValidArgsFunction: a.completeNodes,
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				r, err := node.RetireNode(ctx, args[0], admin.RetireNode{DryRun: !yes})
				if err != nil {
					return err
				}
				if err := a.show(r, func() { a.printRetired(r) }); err != nil || yes {
					return err
				}
				return usageError{fmt.Errorf("nothing was changed: add --yes if node %s never comes back", r.Node)}
			})
		},
	})
	c.Flags().BoolVar(&yes, "yes", false, "yes, the machine never comes back")
	return c
}

func (a *app) printRetired(r admin.NodeRetired) {
	had := fmt.Sprintf("%s and %s", count(r.Replicas, "replica"), count(r.Seats, "quorum record"))
	if r.DryRun {
		a.say("node %s has %s, to be made anew on other nodes", r.Node, had)
	} else {
		a.say("node %s was retired; %s are made anew on other nodes: see ukai-node jobs", r.Node, had)
	}
	a.warnings(r.Warnings)
}
