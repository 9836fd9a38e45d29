package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) diskCommand() *cobra.Command {
	return group("disk", "Create, list, grow, rename, set, remove, restore and take over disks",
		a.diskCreateCommand(), a.diskLsCommand(), a.diskShowCommand(), a.diskMapCommand(), a.diskResizeCommand(), a.diskRenameCommand(), a.diskSetCommand(), a.diskRmCommand(), a.diskRestoreCommand(), a.diskTakeoverCommand(),
		a.diskQuorumCommand(), a.diskForceCommand(), a.diskPickCommand(), a.diskDiscardCommand())
}

// changeDisk runs a change of one disk and prints the disk after it.
func (a *app) changeDisk(c *cobra.Command, change func(context.Context, *admin.Client) (admin.Disk, error), say func(admin.Disk) string) error {
	return a.ask(c, func(ctx context.Context, node *admin.Client) error {
		d, err := change(ctx, node)
		if err != nil {
			return err
		}
		return a.show(d, func() {
			a.say("%s", say(d))
			// What is only noticed was so before: status and disk show tell.
			a.warnings(slices.DeleteFunc(d.Warnings, func(w admin.Warning) bool { return w.Level == admin.Notice }))
		})
	})
}

func diskColour(s admin.DiskState) string {
	switch s {
	case admin.DiskAttached:
		return green
	case admin.DiskRecovering:
		return yellow
	case admin.DiskSuspended, admin.DiskFailed, admin.DiskConflict:
		return red
	}
	return ""
}

// replicaSummary counts the replicas that are in sync, and names the others.
func replicaSummary(d admin.Disk) string {
	lacks := map[ukai.ReplicaID]bool{} // one of several ranges is told of once for each
	var others []string
	for _, r := range d.Replicas {
		lacks[r.ID] = lacks[r.ID] || r.Role != admin.InSync
		if r.Role == admin.InSync {
			continue
		}
		others = append(others, r.Node.String()+" "+string(r.Role))
	}
	inSync := 0
	for _, l := range lacks {
		if !l {
			inSync++
		}
	}
	s := fmt.Sprintf("%d/%d in sync", inSync, len(lacks))
	if len(others) > 0 {
		s += ", " + strings.Join(others, ", ")
	}
	return s
}

func holderOf(n *admin.NodeRef) string {
	if n == nil {
		return "-"
	}
	return n.String()
}

func (a *app) printDisk(d admin.Disk) {
	state := a.colour(diskColour(d.State), string(d.State))
	if d.Holder != nil {
		state += " to " + d.Holder.String()
	}
	if d.Why != "" {
		state += ": " + d.Why
	}
	if d.Removed != nil {
		state += " " + a.ago(d.Removed.Since) + ", can be restored until " + untilText(d.Removed.Until)
	}
	met := ""
	if !d.RuleMet && d.Rule != "" {
		met = a.colour(yellow, " (not met: see place show)")
	}
	space := ""
	if d.AllocatedBytes >= 0 {
		space = ", " + formatSize(d.AllocatedBytes) + " allocated"
	}
	rows := [][2]string{
		{"name", d.Name},
		{"id", d.ID.String()},
		{"state", state},
		{"size", fmt.Sprintf("%s (%d bytes)%s", formatSize(d.SizeBytes), d.SizeBytes, space)},
		{"blocks", fmt.Sprintf("%d of %s", ukai.Blocks(d.SizeBytes, max(1, d.BlockSizeBytes)), formatSize(int64(d.BlockSizeBytes)))},
		{"rule", dash(d.Rule) + met},
		{"safety", fmt.Sprintf("min-sync %d, on-loss %s, ack %s, quorum %s", d.MinSync, d.OnLoss, d.Ack, d.Quorum)},
		{"record", fmt.Sprintf("epoch %s, version %d", d.Epoch, d.Version)},
		{"arbiters", dash(arbiters(d.Arbiters))},
	}
	if text := a.keptText(d.KeepStale, d.Kept); text != "" {
		rows = append(rows, [2]string{"old", text})
	}
	if d.Ranges != "" {
		rows = slices.Insert(rows, 5, [2]string{"ranges", d.Ranges}) // after the rule
	}
	if d.Path != "" {
		rows = append(rows, [2]string{"file", d.Path})
	}
	if !d.Created.IsZero() {
		rows = append(rows, [2]string{"created", d.Created.UTC().Format(time.DateTime+" MST") + ", " + a.ago(d.Created)})
	}
	if d.Scrub != nil {
		rows = append(rows, [2]string{"scrub", a.scrubText(*d.Scrub)})
	}
	for _, r := range rows {
		a.say("%-10s%s", r[0], r[1])
	}
	if len(d.Replicas) > 0 {
		a.say("")
		var table [][]string
		for _, r := range d.Replicas {
			row := []string{r.Node.String(), dash(r.Labels[ukai.LabelDC]), a.colour(roleColour(r.Role), string(r.Role)), allocated(r.AllocatedBytes), r.ID.String(), dash(a.whyNot(r))}
			if r.Blocks != "" {
				row[2] = row[2] + " of blocks " + r.Blocks
			}
			table = append(table, row)
		}
		a.table([]string{"REPLICA ON", "DC", "ROLE", ">ALLOCATED", "ID", "WHY"}, table)
	}
	if len(d.Histories) > 0 {
		a.say("")
		a.printHistories(d)
	}
	if len(d.Warnings) > 0 {
		a.say("")
		a.warnings(d.Warnings)
	}
}
