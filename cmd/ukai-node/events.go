package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) eventsCommand() *cobra.Command {
	c := a.asking(&cobra.Command{
		Use:   "events",
		Short: "Follow what happens at the node",
		Long: `Print each event of the node as it happens, until Ctrl-C. With -o json each is one line, with -o yaml a document.
A line "N missed" says that the node had more to tell than could be sent.`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(_ context.Context, node *admin.Client) error {
				var last uint64
				return node.Events(c.Context(), func(e admin.Event) error {
					if missed := e.Seq - last - 1; last != 0 && e.Seq > last && missed > 0 {
						a.note("%d missed", missed)
					}
					last = e.Seq
					return a.printEvent(e)
				})
			})
		},
	})
	_ = c.Flags().MarkHidden("timeout") // is there for all commands that ask; events are followed for ever
	return c
}

func (a *app) printEvent(e admin.Event) error {
	switch a.output {
	case "json":
		return json.NewEncoder(a.stdout).Encode(e)
	case "yaml":
		if _, err := fmt.Fprintln(a.stdout, "---"); err != nil {
			return err
		}
		return a.show(e, nil)
	}
	about := strings.TrimSpace(e.Node + " " + e.Disk)
	_, err := fmt.Fprintf(a.stdout, "%s %-8s %-20s %s\n", e.Time.UTC().Format(time.RFC3339), a.colour(levelColour(e.Level), string(e.Level)), e.Kind, strings.TrimSpace(about+" "+e.Text))
	return err
}
