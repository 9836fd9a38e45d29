package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) diskMapCommand() *cobra.Command {
	return a.asking(&cobra.Command{
		Use:               "map NAME",
		Short:             "Show where the blocks of a disk lie",
		Long:              "Show each run of blocks of a disk with the nodes that hold it, the role of each replica, and how much of the run is allocated.",
		Args:              exactly("the NAME of a disk"),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				m, err := node.DiskMap(ctx, args[0])
				if err != nil {
					return err
				}
				return a.show(m, func() { a.printMap(m) })
			})
		},
	})
}

func (a *app) printMap(m admin.Map) {
	holder := "not attached"
	if m.Holder != nil {
		holder = "attached to " + m.Holder.String()
	}
	a.say("%s  %s, %d blocks of %s, %s, epoch %s, record version %d", m.Disk.Name, formatSize(m.SizeBytes), m.Blocks, formatSize(int64(m.BlockSizeBytes)), holder, m.Epoch, m.Version)
	var rows [][]string
	for _, run := range m.Runs {
		size := int64(run.Count) * int64(m.BlockSizeBytes)
		if rest := m.SizeBytes - int64(run.First)*int64(m.BlockSizeBytes); size > rest {
			size = rest // the last block may be partly used
		}
		var where []string
		for _, r := range run.Locations {
			s := r.Node.String()
			if dc := r.Labels[ukai.LabelDC]; dc != "" {
				s += " (" + dc + ")"
			}
			where = append(where, s+" "+a.colour(roleColour(r.Role), string(r.Role)))
		}
		rows = append(rows, []string{ukai.Range{First: run.First, Count: run.Count}.String(), formatSize(size), allocated(run.AllocatedBytes), fmt.Sprint(run.Group), dash(strings.Join(where, ", "))})
	}
	a.table([]string{"BLOCKS", ">SIZE", ">ALLOCATED", ">GROUP", "LOCATIONS"}, rows)
}
