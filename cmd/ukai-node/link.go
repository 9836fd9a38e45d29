package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) linkCommand() *cobra.Command {
	var set admin.SetLink
	c := a.asking(&cobra.Command{
		Use:   "link [DC-DC]",
		Short: "Limit what background copies take of the links between datacenters",
		Long: `Give the link between two datacenters a budget: how many bytes per second all background copies of the mesh together may carry over it, in both
directions. tokyo-tokyo is the links between the nodes within tokyo. Without --limit it shows the budget, without a link those of all links.

What guests read and write is not limited, and never waits for a copy that waits. The nodes that copy over a link each have an equal part of its budget,
and on a node the disks that are being copied. A node that begins to copy over a link waits 3 seconds, until the others know of it.

RATE is 50MB/s, 20MiB/s or 400Mbit/s; 0 lets nothing pass, none takes the budget away. --at gives other rates at times of the day: HH:MM-HH:MM=RATE, in
UTC or in the --zone that is given; the first window that holds counts.`,
		Example: `  ukai-node link tokyo-osaka --limit 50MB/s
  ukai-node link tokyo-osaka --limit 50MB/s --at 22:00-06:00=200MB/s --zone +09:00
  ukai-node link tokyo-osaka --limit none
  ukai-node link`,
		Args:              optional(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			changes := c.Flags().Changed("limit")
			if !changes && (len(set.At) > 0 || set.Zone != "") {
				return usageError{errors.New("--at and --zone belong to a budget: give --limit")}
			}
			if changes && len(args) == 0 {
				return usageError{errors.New("which link? name two datacenters: tokyo-osaka")}
			}
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				if changes {
					l, err := node.SetLink(ctx, args[0], set)
					if err != nil {
						return err
					}
					return a.show(l, func() {
						a.printLinks([]admin.Link{l})
						if l.Notice != "" {
							a.say("notice: %s", l.Notice)
						}
					})
				}
				links, err := node.Links(ctx)
				if err != nil {
					return err
				}
				if len(args) == 1 {
					l, err := linkByName(links, args[0])
					if err != nil {
						return err
					}
					return a.show(l, func() { a.printLinks([]admin.Link{l}) })
				}
				return a.show(links, func() { a.printLinks(links) })
			})
		},
	})
	c.Flags().StringVar(&set.Limit, "limit", "", "`RATE` of all background copies together")
	c.Flags().StringArrayVar(&set.At, "at", nil, "another rate at a time of the day, `HH:MM-HH:MM=RATE` (may be repeated)")
	c.Flags().StringVar(&set.Zone, "zone", "", "`OFFSET` from UTC of the times, for example +09:00 (default UTC)")
	return c
}

// linkByName finds a link, whichever of its ends is named first.
func linkByName(links []admin.Link, name string) (admin.Link, error) {
	for _, l := range links {
		if l.Name == name {
			return l, nil
		}
		for i := range l.Name {
			if l.Name[i] == '-' && l.Name[i+1:]+"-"+l.Name[:i] == name {
				return l, nil
			}
		}
	}
	return admin.Link{}, fmt.Errorf("link %s: %w: it has no budget, copies go over it as fast as they can; give it one with --limit", name, ukai.ErrNotFound)
}

func (a *app) printLinks(links []admin.Link) {
	if len(links) == 0 {
		a.say("no link has a budget: background copies go as fast as they can")
		return
	}
	var rows [][]string
	for _, l := range links {
		at := strings.Join(l.At, " ")
		if at != "" {
			at += " (" + zone(l.Zone) + ")"
		}
		now := l.Now
		if !l.Until.IsZero() {
			now += " until " + l.Until.UTC().Format("15:04 UTC")
		}
		rows = append(rows, []string{l.Name, l.Limit, dash(at), now, dash(strings.Join(l.Copying, ", "))})
	}
	a.table([]string{"LINK", ">LIMIT", "AT", "NOW", "COPYING"}, rows)
}

// zone writes an offset from UTC.
func zone(offset string) string {
	if offset == "" || offset == "+00:00" {
		return "UTC"
	}
	return "UTC" + offset
}
