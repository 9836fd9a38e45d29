package main

import (
	"context"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

func (a *app) diskCreateCommand() *cobra.Command {
	var (
		flags     ruleFlags
		blockSize string
		disk      admin.NewDisk
	)
	c := a.asking(&cobra.Command{
		Use:   "create NAME SIZE [TERM...]",
		Short: "Create a disk",
		Long: `Create a disk. It is there, on all nodes, when the command ends; space is taken as data is written.

` + sizeHelp + `

` + termHelp + `
Without terms the mesh's default rule holds.`,
		Example: `  ukai-node disk create vm1 20G dc=tokyo:2
  ukai-node disk create vm2 1.5T dc=tokyo:1 dc=osaka:1 --min-sync 2 --on-loss error
  ukai-node disk create vm3 20G dc=tokyo:3 --dry-run`,
		Args: atLeast("the NAME of the disk", "the SIZE of the disk"),
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) < 2 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeLabels(c, ":")
		},
		RunE: func(c *cobra.Command, args []string) (err error) {
			disk.Name = args[0]
			if err := ukai.CheckName("disk", disk.Name); err != nil {
				return err
			}
			if disk.SizeBytes, err = parseSize(args[1]); err != nil {
				return err
			}
			if err := ukai.CheckDiskSize(disk.SizeBytes); err != nil {
				return err
			}
			if blockSize != "" {
				n, err := parseSize(blockSize)
				if err != nil {
					return err
				}
				disk.BlockSizeBytes = int(min(n, 2*ukai.MaxBlockSize)) // more is refused just the same
				if err := ukai.CheckBlockSize(disk.BlockSizeBytes); err != nil {
					return err
				}
			}
			switch {
			case len(args) > 2:
				rule, err := flags.rule(args[2:])
				if err != nil {
					return err
				}
				disk.Rule = &rule
			case flags.given():
				return usageError{errRuleFlagsWithoutTerms}
			}
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				created, err := node.CreateDisk(ctx, disk)
				if err != nil {
					return err
				}
				return a.show(created, func() { a.printCreated(created) })
			})
		},
	})
	flags.add(c)
	c.Flags().StringVar(&blockSize, "block-size", "", "`SIZE` of a block, the unit of placement: a power of two from 1M to 64M (default 4M)")
	c.Flags().StringVar(&disk.OnLoss, "on-loss", "", "what I/O does with fewer than min-sync replicas in sync, `WHAT`: wait for them, or error after a while (default wait)")
	c.Flags().StringVar(&disk.Ack, "ack", "", "`WHEN` a write is acknowledged: local, when the in-sync replica on the node that uses the disk has it, or all; see disk set (default local)")
	c.Flags().BoolVar(&disk.DryRun, "dry-run", false, "tell which nodes would be chosen and why, change nothing")
	_ = c.RegisterFlagCompletionFunc("on-loss", fixed("wait", "error"))
	_ = c.RegisterFlagCompletionFunc("ack", fixed("all", "local"))
	return c
}

func (a *app) printCreated(created admin.DiskCreated) {
	d, p := created.Disk, created.Placement
	if p.DryRun {
		a.say("dry run: nothing was changed")
		a.printPlacement(p)
		return
	}
	a.say("created %s, %s", d.Name, formatSize(d.SizeBytes))
	for _, r := range d.Replicas {
		dc := r.Labels[ukai.LabelDC]
		a.say("  replica on %s (%s)", r.Node, dash(dc))
	}
	a.say("  arbiters: %s", dash(arbiters(d.Arbiters)))
	if d.Path != "" {
		a.say("  file: %s", d.Path)
	}
	a.warnings(p.Warnings)
	if p.Notice != "" {
		a.say("notice: %s", p.Notice)
	}
}
