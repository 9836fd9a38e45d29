package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) placeNodeCommand() *cobra.Command {
	var drain, noNew, witness bool
	c := a.asking(&cobra.Command{
		Use:   "node NAME [KEY=VALUE | KEY-]...",
		Short: "Set labels and roles of a node",
		Long: `Set labels of any node of the mesh, KEY=VALUE, or remove them, KEY-. The label dc names its datacenter. A node that is down gets them when it returns.
No data is moved by this: rules that are no longer met are shown by place show.`,
		Example: `  ukai-node place node t1 dc=tokyo rack=r2
  ukai-node place node t1 rack- --no-new
  ukai-node place node t1 --drain=false`,
		Args: atLeast("the NAME of a node"),
		ValidArgsFunction: func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.completeNodes(c, args, typed)
			}
			return a.completeLabels(c, "")
		},
		RunE: func(c *cobra.Command, args []string) error {
			change, err := labelChange(args[1:])
			if err != nil {
				return err
			}
			for _, r := range []struct {
				flag string
				v    *bool
				to   **bool
			}{{"drain", &drain, &change.Drain}, {"no-new", &noNew, &change.NoNew}, {"witness", &witness, &change.Witness}} {
				if c.Flags().Changed(r.flag) {
					*r.to = r.v
				}
			}
			if len(change.Set)+len(change.Unset) == 0 && change.Drain == nil && change.NoNew == nil && change.Witness == nil {
				return usageError{fmt.Errorf("nothing to change: give labels KEY=VALUE or KEY-, or a role")}
			}
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				n, err := node.ChangeNode(ctx, args[0], change)
				if err != nil {
					return err
				}
				return a.show(n, func() {
					a.say("node %s: labels %s, roles %s", n.Node.Name, dash(n.Node.Labels.String()), dash(roles(n.Node)))
					a.warnings(n.Warnings)
				})
			})
		},
	})
	c.Flags().BoolVar(&drain, "drain", false, "rules are planned as if the node were not there; --drain=false ends it")
	c.Flags().BoolVar(&noNew, "no-new", false, "the node keeps what it has and gets no new replicas")
	c.Flags().BoolVar(&witness, "witness", false, "the node gets no blocks, only votes")
	return c
}

// labelChange reads KEY=VALUE and KEY-.
func labelChange(args []string) (change admin.NodeChange, err error) {
	for _, arg := range args {
		if key, ok := strings.CutSuffix(arg, "-"); ok && !strings.Contains(arg, "=") {
			if err := ukai.CheckLabel(key, "x"); err != nil {
				return change, err
			}
			change.Unset = append(change.Unset, key)
			continue
		}
		key, value, err := ukai.ParseLabel(arg)
		if err != nil {
			return change, err
		}
		if change.Set == nil {
			change.Set = ukai.Labels{}
		}
		if _, twice := change.Set[key]; twice {
			return change, fmt.Errorf("label %s: %w: given twice", key, ukai.ErrInvalid)
		}
		change.Set[key] = value
	}
	for _, key := range change.Unset {
		if _, both := change.Set[key]; both {
			return change, fmt.Errorf("label %s: %w: both set and removed", key, ukai.ErrInvalid)
		}
	}
	return change, nil
}
