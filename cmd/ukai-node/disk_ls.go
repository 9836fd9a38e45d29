package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) diskLsCommand() *cobra.Command {
	var removed bool
	c := a.asking(&cobra.Command{
		Use:               "ls",
		Aliases:           []string{"list"},
		Short:             "List disks",
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				disks, err := node.Disks(ctx, removed)
				if err != nil {
					return err
				}
				return a.show(disks, func() { a.printDisks(disks, removed) })
			})
		},
	})
	c.Flags().BoolVar(&removed, "removed", false, "list those that were removed and can be restored")
	return c
}

func (a *app) printDisks(disks []admin.Disk, removed bool) {
	var rows [][]string
	switch {
	case len(disks) == 0 && removed:
		a.say("no removed disks")
	case len(disks) == 0:
		a.say("no disks; create one with: ukai-node disk create NAME SIZE TERM...")
	case removed:
		for _, d := range disks {
			since, until := "-", "-"
			if d.Removed != nil {
				since, until = a.ago(d.Removed.Since), untilText(d.Removed.Until)
			}
			rows = append(rows, []string{d.Name, formatSize(d.SizeBytes), since, until, d.ID.String()})
		}
		a.table([]string{"DISK", ">SIZE", "REMOVED", "RESTORABLE UNTIL", "ID"}, rows)
	default:
		for _, d := range disks {
			rule := dash(d.Rule)
			if d.Ranges != "" {
				rule += "; " + d.Ranges
			}
			if !d.RuleMet && d.Rule != "" {
				rule += a.colour(yellow, " (not met)")
			}
			rows = append(rows, []string{d.Name, formatSize(d.SizeBytes), allocated(d.AllocatedBytes), a.colour(diskColour(d.State), string(d.State)), holderOf(d.Holder), replicaSummary(d), rule})
			for _, h := range d.Histories {
				if h.Name != "" {
					rows = append(rows, historyRow(d, h))
				}
			}
		}
		a.table([]string{"DISK", ">SIZE", ">ALLOCATED", "STATE", "NODE", "REPLICAS", "RULE"}, rows)
		names := map[string]int{}
		for _, d := range disks {
			names[d.Name]++
		}
		for _, d := range disks {
			if n := names[d.Name]; n > 1 {
				a.say("%s", fmt.Sprintf("warning: %d disks are called %s; rename one by its id: ukai-node disk rename %s NEW", n, d.Name, d.ID))
			}
		}
	}
}

// historyRow tells of a history that the disk does not go on with.
func historyRow(d admin.Disk, h admin.History) []string {
	space, inSync := int64(-1), 0
	for _, r := range h.Replicas {
		space = max(space, r.AllocatedBytes)
		if r.Role == admin.InSync {
			inSync++
		}
	}
	return []string{h.Name, formatSize(h.SizeBytes), allocated(space), historyState(d, h), "-", fmt.Sprintf("%d/%d in sync", inSync, len(h.Replicas)), "-"}
}

// untilText says until when a removed disk can be restored.
func untilText(t time.Time) string {
	if t.IsZero() {
		return "its nodes are back"
	}
	return t.UTC().Format(time.DateTime + " MST")
}
