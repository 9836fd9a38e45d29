package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) placeShowCommand() *cobra.Command {
	return a.asking(&cobra.Command{
		Use:               "show [NAME]",
		Short:             "Show rules, what is true now, and why they differ",
		Long:              "Show the rule of a disk, what is true now, why they differ and what is being done about it; without a name one line per disk.",
		Args:              optional(),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				if len(args) == 1 {
					p, err := node.Placement(ctx, args[0])
					if err != nil {
						return err
					}
					return a.show(p, func() { a.printPlacement(p) })
				}
				all, err := node.Placements(ctx)
				if err != nil {
					return err
				}
				return a.show(all, func() { a.printPlacements(all) })
			})
		},
	})
}

func (a *app) printPlacements(all []admin.Placement) {
	if len(all) == 0 {
		a.say("no disks")
		return
	}
	var rows [][]string
	for _, p := range all {
		met := a.colour(green, "met")
		if !p.Met {
			met = a.colour(yellow, "not met")
		}
		var where, have []string
		for _, r := range p.Replicas {
			s := r.Node.String()
			if r.Blocks != "" {
				s += " " + r.Blocks
			}
			if r.Role != admin.InSync {
				s += " (" + string(r.Role) + ")"
			}
			where = append(where, s)
		}
		for _, w := range p.Wanted {
			have = append(have, fmt.Sprintf("%d/%d", w.Have, w.Count))
		}
		for _, r := range p.Ranges {
			for _, w := range r.Wanted {
				have = append(have, fmt.Sprintf("%d/%d", w.Have, w.Count))
			}
		}
		rows = append(rows, []string{p.Disk.Name, dash(rules(p)), met, dash(strings.Join(have, " ")), dash(strings.Join(where, ", ")), dash(strings.Join(p.Differences, "; "))})
	}
	a.table([]string{"DISK", "RULE", "IS", "HAVE", "REPLICAS ON", "DIFFERENCES"}, rows)
}
