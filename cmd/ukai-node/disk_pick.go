package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) diskPickCommand() *cobra.Command {
	var yes bool
	c := a.asking(&cobra.Command{
		Use:   "pick NAME [HISTORY]",
		Short: "Say with which of its histories a disk goes on",
		Long: `Say with which of its histories a disk goes on that was taken over by force on both sides of a cut. Without HISTORY they are listed.

HISTORY is the begin of an id that is listed, the name of its file, or the name of a node that only that history has an in-sync replica on.
Each history that the disk does not go on with has a file in the mount, NAME~conflict-ID, which can only be read; to decide, look at those.
Nothing is merged or deleted: the other histories are set aside with their replicas, and one of them can be picked later, which sets this
one aside. Programs that have the disk open get I/O errors and open it anew. A disk with histories set aside that is removed can be
restored for ever; their space is given up by disk discard alone.`,
		Example:           "  ukai-node disk pick vm1\n  ukai-node disk pick vm1 t1 --yes",
		Args:              between([]string{"the NAME of a disk"}, 2),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return a.ask(c, func(ctx context.Context, node *admin.Client) error {
					d, err := node.Disk(ctx, args[0])
					if err != nil {
						return err
					}
					return a.show(d, func() { a.printHistories(d) })
				})
			}
			if !yes {
				return usageError{errors.New("what was written in the other histories will not be seen in the disk any more: add --yes if that is meant")}
			}
			return a.changeDisk(c, func(ctx context.Context, node *admin.Client) (admin.Disk, error) {
				return node.PickDisk(ctx, args[0], admin.PickDisk{History: args[1]})
			}, func(d admin.Disk) string {
				return fmt.Sprintf("%s goes on with the history picked; set aside and kept: %d", d.Name, max(0, len(d.Histories)-1))
			})
		},
	})
	c.Flags().BoolVar(&yes, "yes", false, "yes, go on without what was written in the other histories")
	return c
}

func (a *app) printHistories(d admin.Disk) {
	if len(d.Histories) == 0 {
		a.say("%s has one history", d.Name)
		return
	}
	var table [][]string
	for _, h := range d.Histories {
		held := holderOf(h.LastHeld)
		if h.Attached {
			held += ", still"
		}
		table = append(table, []string{h.ID, historyState(d, h), dash(h.Name), strings.Join(replicasOf(h), ", "), held, h.Epoch, fmt.Sprint(h.Version)})
	}
	a.table([]string{"HISTORY", "STATE", "TO BE READ AS", "REPLICAS", "LAST HELD BY", "EPOCH", ">VERSION"}, table)
}

func historyState(d admin.Disk, h admin.History) string {
	switch {
	case h.Picked:
		return "picked"
	case h.Ended:
		return "discarded, being freed"
	case h.Discarded:
		return "discarded, awaits its arbiters"
	case d.State == admin.DiskConflict:
		return "conflict"
	}
	return "set aside"
}

// replicasOf says where the replicas of a history are, which are not in sync, and what space they take.
func replicasOf(h admin.History) (list []string) {
	for _, r := range h.Replicas {
		text := r.Node.String()
		if r.Role != admin.InSync {
			text += " " + string(r.Role)
		}
		if r.AllocatedBytes >= 0 {
			text += " " + formatSize(r.AllocatedBytes)
		}
		list = append(list, text)
	}
	return list
}
