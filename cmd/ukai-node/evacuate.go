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

// evacuateEvery is how often it is looked what is left.
const evacuateEvery = time.Second

func (a *app) evacuateCommand() *cobra.Command {
	var e admin.Evacuate
	var detach bool
	c := a.asking(&cobra.Command{
		Use:   "evacuate SELECTOR",
		Short: "Move everything off nodes, so that they can be turned off",
		Long: `Move all replicas and quorum records off the nodes that SELECTOR names - a node, or conditions as in a rule: dc=osaka, rack=r1+dc=osaka - to others that
the disks' rules allow, while the disks are used. It ends when nothing is left there, and says that it is safe to turn them off. The nodes get the role drain,
so that it goes on whoever dies, also without this command: Ctrl-C leaves it running. Where a disk could not leave, all is refused, and nothing is changed.

--cancel ends it: the nodes take replicas again; what has left them comes back only where a rule asks for it.`,
		Example: `  ukai-node evacuate t1 --dry-run
  ukai-node evacuate dc=osaka`,
		Args: exactly("a SELECTOR of nodes, such as t1 or dc=osaka"),
		ValidArgsFunction: func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			return a.completeNodes(c, args, typed)
		},
		RunE: func(c *cobra.Command, args []string) error {
			e.Nodes = args[0]
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				ev, err := node.Evacuate(ctx, e)
				if err != nil {
					return err
				}
				if e.DryRun || e.Cancel || detach {
					if err := a.show(ev, func() { a.printEvacuation(ev, e.Cancel) }); err != nil {
						return err
					}
					if len(ev.Problems) > 0 && e.DryRun {
						return fmt.Errorf("evacuate %s: %w", e.Nodes, ukai.ErrUnmet)
					}
					return nil
				}
				return a.awaitEvacuation(c.Context(), node, e, ev)
			})
		},
	})
	c.Flags().BoolVar(&e.DryRun, "dry-run", false, "tell what would follow, change nothing")
	c.Flags().BoolVar(&e.Cancel, "cancel", false, "let the nodes take replicas again")
	c.Flags().BoolVar(&detach, "no-wait", false, "do not wait until nothing is left")
	c.MarkFlagsMutuallyExclusive("dry-run", "cancel", "no-wait")
	return c
}

// awaitEvacuation waits until nothing is left on the nodes, and tells how far it is.
func (a *app) awaitEvacuation(ctx context.Context, node *admin.Client, e admin.Evacuate, ev admin.Evacuation) error {
	s := jobScreen{app: a}
	quiet := a.output != "table"
	last := ""
	for !ev.Safe && (ev.Replicas > 0 || ev.Seats > 0) {
		if !ev.Draining {
			return fmt.Errorf("evacuate %s: %w: somebody cancelled it", e.Nodes, ukai.ErrRejected)
		}
		if text := leftText(ev); !quiet && !a.terminal && text != last {
			a.say("%s left: %s", a.now().UTC().Format(time.TimeOnly), text)
			last = text
		}
		if !quiet {
			jobs, err := node.Jobs(ctx, admin.JobQuery{})
			if err != nil {
				return err
			}
			jobs = slices.DeleteFunc(jobs, func(j admin.Job) bool {
				return !slices.ContainsFunc(ev.Moves, func(m admin.Evacuating) bool { return m.Disk.ID == j.Disk.ID })
			})
			if err := s.show(jobs); err != nil {
				return err
			}
		}
		timer := time.NewTimer(evacuateEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			a.note("it goes on without this command; see: ukai-node jobs")
			return ctx.Err()
		}
		var err error
		if ev, err = node.Evacuate(ctx, admin.Evacuate{Nodes: e.Nodes, DryRun: true}); err != nil {
			return err
		}
	}
	ev.DryRun = false
	if err := a.show(ev, func() { a.printEvacuation(ev, false) }); err != nil {
		return err
	}
	if !ev.Safe {
		return fmt.Errorf("evacuate %s: %w: disks are used there", e.Nodes, ukai.ErrHeld)
	}
	return nil
}

func leftText(ev admin.Evacuation) string {
	return fmt.Sprintf("%s with something there: %s, %s", count(ev.DisksTotal, "disk"), count(ev.Replicas, "replica"), count(ev.Seats, "quorum record"))
}

func (a *app) printEvacuation(ev admin.Evacuation, cancelled bool) {
	var names []string
	for _, n := range ev.Nodes {
		names = append(names, n.String())
	}
	on := strings.Join(names, ", ")
	if ev.DryRun {
		a.say("dry run: nothing was changed")
	}
	var rows [][]string
	for _, m := range ev.Moves {
		for _, s := range m.Steps {
			copied := ""
			if s.Bytes > 0 {
				copied = "up to " + formatSize(s.Bytes)
			}
			rows = append(rows, []string{m.Disk.Name, s.Text, dash(copied)})
		}
	}
	if len(rows) > 0 && !cancelled {
		a.table([]string{"DISK", "STEP", "COPIED"}, rows)
		a.say("in all up to %s are copied", formatSize(ev.CopyBytes))
	}
	a.warnings(ev.Problems)
	a.warnings(ev.Warnings)
	for _, d := range ev.Attached {
		a.say("%s: a program there uses %s: stop it, or migrate the VM", a.colour(yellow, "warning"), d.Name)
	}
	switch {
	case cancelled:
		a.say("%s: replicas may be placed there again", on)
	case ev.Safe:
		a.say("%s: nothing is left there, it is safe to turn off", on)
	case ev.Replicas > 0 || ev.Seats > 0:
		a.say("%s: %s", on, leftText(ev))
	}
}
