package main

import (
	"context"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) versionCommand() *cobra.Command {
	return a.asking(&cobra.Command{
		Use:               "version",
		Short:             "Show the release of this program and of the running node",
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			v := struct {
				Version string      `json:"version"`
				Go      string      `json:"go"`
				Node    *admin.Self `json:"node,omitempty"`
			}{Version: a.version, Go: goVersion()}
			err := a.ask(c, func(ctx context.Context, node *admin.Client) error {
				self, err := node.Self(ctx)
				if err == nil {
					v.Node = &self
				}
				return err
			})
			if err != nil && (a.node != "" || exitCode(err) == exitUsage) {
				return err
			}
			return a.show(v, func() {
				a.say("ukai-node %s, %s", v.Version, v.Go)
				if v.Node == nil {
					a.say("no node runs here")
					return
				}
				a.say("node %s runs %s, built with %s", v.Node.Name, v.Node.Version, v.Node.Go)
			})
		},
	})
}
