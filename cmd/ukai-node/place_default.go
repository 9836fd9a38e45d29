package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) placeDefaultCommand() *cobra.Command {
	var flags ruleFlags
	var after time.Duration
	c := a.asking(&cobra.Command{
		Use:   "default [TERM...]",
		Short: "Show or set the rule of new disks, and when what is lost is made anew",
		Long: `Show, or set for the whole mesh, the rule of disks that are created without one, and for how long a node may be down before the replicas and quorum
records on it are made anew on other nodes. A node that returns before is brought up to date, which copies only what changed. Disks that exist keep their rules.

` + termHelp,
		Example: `  ukai-node place default dc=tokyo:1 dc=osaka:1
  ukai-node place default --repair-after 1h
  ukai-node place default --repair-after 0`,
		Args: atLeast(),
		ValidArgsFunction: func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.completeLabels(c, ":")
		},
		RunE: func(c *cobra.Command, args []string) error {
			var set admin.SetDefaults
			switch {
			case len(args) > 0:
				rule, err := flags.rule(args)
				if err != nil {
					return err
				}
				set.Rule = &rule
			case flags.given():
				return usageError{errRuleFlagsWithoutTerms}
			}
			if c.Flags().Changed("repair-after") {
				if after%time.Second != 0 {
					return usageError{fmt.Errorf("--repair-after %v: whole seconds only", after)}
				}
				seconds := int64(after / time.Second)
				set.RepairAfterSeconds = &seconds
			}
			return a.ask(c, func(ctx context.Context, node *admin.Client) (err error) {
				var d admin.Defaults
				if set == (admin.SetDefaults{}) {
					d, err = node.Defaults(ctx)
				} else {
					d, err = node.SetDefaults(ctx, set)
				}
				if err != nil {
					return err
				}
				return a.show(d, func() {
					a.say("rule of new disks: %s", d.Rule)
					if d.RepairAfterSeconds == 0 {
						a.say("what is lost is not made anew by itself")
						return
					}
					a.say("what is lost is made anew after %v", time.Duration(d.RepairAfterSeconds)*time.Second)
				})
			})
		},
	})
	flags.add(c)
	c.Flags().DurationVar(&after, "repair-after", 0, "`DURATION` for which a node may be down before what it had is made anew elsewhere; 0: never")
	c.Flags().Lookup("repair-after").DefValue = ""
	return c
}
