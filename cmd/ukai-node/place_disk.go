package main

import (
	"context"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) placeDiskCommand() *cobra.Command {
	var flags ruleFlags
	var dryRun bool
	c := a.asking(&cobra.Command{
		Use:   "disk NAME TERM...",
		Short: "Give a disk a rule: where its replicas shall lie",
		Long: `Give a disk a rule: where its replicas shall lie.

` + termHelp + `

On a disk that has data the rule is carried out while the disk is used: replicas that suit it stay, new ones are made and brought up to date,
then the others are dropped, and the arbiters follow. Nodes that die meanwhile do no harm: whoever is left goes on. --dry-run shows the steps;
place show tells how far it is. The space of a dropped replica is freed an hour later.`,
		Example: `  ukai-node place disk vm1 dc=tokyo:2 dc=osaka:1 --spread rack
  ukai-node place disk vm1 dc=osaka:2 --dry-run`,
		Args: atLeast("the NAME of a disk", "a TERM such as dc=tokyo:2"),
		ValidArgsFunction: func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.completeDisk(c, args, typed)
			}
			return a.completeLabels(c, ":")
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				p, err := node.PlaceDisk(ctx, args[0], admin.PlaceDisk{Rule: flags.rule(args[1:]), DryRun: dryRun})
				if err != nil {
					return err
				}
				return a.show(p, func() {
					if p.DryRun {
						a.say("dry run: nothing was changed")
					}
					a.printPlacement(p)
				})
			})
		},
	})
	flags.add(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "tell what would follow, change nothing")
	return c
}
