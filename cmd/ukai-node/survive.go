package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) surviveCommand() *cobra.Command {
	var without string
	c := a.asking(&cobra.Command{
		Use:   "survive [--without SELECTOR]",
		Short: "Show what becomes of the disks when nodes are gone",
		Long: `Show what becomes of each disk if nodes were gone for good, beside those that are down already: it keeps running, loses redundancy, waits, or
loses data; why; and what mends it beforehand. Nothing is changed.

Without --without each node and then each datacenter is taken away in turn, and only disks that wait or lose data are listed.
SELECTOR is the name of a node, or conditions as in a rule: dc=osaka, rack=r1+dc=osaka.`,
		Example: `  ukai-node survive
  ukai-node survive --without dc=osaka
  ukai-node survive --without t1`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				s, err := node.Survive(ctx, without)
				if err != nil {
					return err
				}
				return a.show(s, func() { a.printSurvival(s) })
			})
		},
	})
	c.Flags().StringVar(&without, "without", "", "`SELECTOR` of the nodes that are gone")
	_ = c.RegisterFlagCompletionFunc("without", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.completeLabels(c, "")
	})
	return c
}

func (a *app) printSurvival(s admin.Survival) {
	var rows [][]string
	for _, c := range s.Cases {
		rows = append(rows, []string{
			c.Without, fmt.Sprint(c.Nodes), fmt.Sprint(c.KeepRunning), fmt.Sprint(c.LoseRedundancy),
			a.some(yellow, c.Wait), a.some(red, c.LoseData),
		})
	}
	a.table([]string{"WITHOUT", ">NODES", ">KEEP RUNNING", ">LOSE REDUNDANCY", ">WAIT", ">LOSE DATA"}, rows)
	for _, c := range s.Cases {
		if len(c.Disks) == 0 {
			continue
		}
		a.say("\nwithout %s", c.Without)
		for _, d := range c.Disks {
			why := strings.Join(d.Why, "; ")
			if why != "" {
				why = ": " + why
			}
			a.say("  %s %s%s", d.Disk.Name, a.colour(fateColour(d.Fate), d.Fate), why)
			if d.Then != "" {
				a.say("    then: %s", d.Then)
			}
			if d.Remedy != "" {
				a.say("    remedy: %s", d.Remedy)
			}
		}
	}
}

// some paints a number that is not zero.
func (a *app) some(colour string, n int) string {
	if n == 0 {
		return "0"
	}
	return a.colour(colour, fmt.Sprint(n))
}

func fateColour(fate string) string {
	switch fate {
	case "waits":
		return yellow
	case "loses data":
		return red
	}
	return ""
}
