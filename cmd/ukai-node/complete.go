package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

// completionTimeout bounds how long a shell waits for names.
const completionTimeout = time.Second

// complete is a function that a shell asks, through cobra, for what may come next.
type complete = func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

// names asks the node for words; where it cannot be asked there are none.
func (a *app) names(c *cobra.Command, f func(ctx context.Context, node *admin.Client) []string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp
	client, err := a.client()
	if err != nil {
		return nil, directive
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.Context(), completionTimeout)
	defer cancel()
	return f(ctx, client), directive
}

// completeDisk completes the first argument to the name of a disk.
func (a *app) completeDisk(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.disks(c, false)
}

// completeRemoved completes the first argument to the name of a disk that can be restored.
func (a *app) completeRemoved(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.disks(c, true)
}

func (a *app) disks(c *cobra.Command, removed bool) ([]string, cobra.ShellCompDirective) {
	return a.names(c, func(ctx context.Context, node *admin.Client) (list []string) {
		disks, err := node.Disks(ctx, removed)
		if err != nil {
			return nil
		}
		for _, d := range disks {
			list = append(list, cobra.CompletionWithDesc(d.Name, formatSize(d.SizeBytes)+", "+d.Rule))
		}
		return list
	})
}

// completeNodes completes to the name of a node.
func (a *app) completeNodes(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.names(c, func(ctx context.Context, node *admin.Client) (list []string) {
		status, err := node.Status(ctx)
		if err != nil {
			return nil
		}
		for _, n := range status.Nodes {
			list = append(list, cobra.CompletionWithDesc(n.Name, n.Labels.String()))
		}
		return list
	})
}

// completeLabels completes to labels that nodes have, followed by what comes after a label here.
func (a *app) completeLabels(c *cobra.Command, after string) ([]string, cobra.ShellCompDirective) {
	list, directive := a.names(c, func(ctx context.Context, node *admin.Client) []string {
		status, err := node.Status(ctx)
		if err != nil {
			return nil
		}
		labels := map[string]bool{}
		for _, n := range status.Nodes {
			for k, v := range n.Labels {
				labels[k+"="+v+after] = true
			}
		}
		return slices.Sorted(maps.Keys(labels))
	})
	if after != "" {
		directive |= cobra.ShellCompDirectiveNoSpace
	}
	return list, directive
}

// fixed completes a flag to one of some words.
func fixed(words ...string) complete {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}
