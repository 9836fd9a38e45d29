package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) forecastCommand() *cobra.Command {
	var at string
	c := a.asking(&cobra.Command{
		Use:   "forecast NAME --at SELECTOR [TERM...]",
		Short: "Show what a VM would feel of a disk elsewhere",
		Long: `Show how long reads, writes and flushes of a disk would take for a VM on other nodes: now, and after each step of what leads to the disk's rule,
or to the rule that TERMs make. Nothing is changed.

The forecast is made from the places of the replicas, measured round trips, what the stores of these nodes take, and what the disk's guest did of
late: how large its requests are and where in the disk. It tells all that, and what of it is not measured but estimated.
SELECTOR is the name of a node, or conditions as in a rule: dc=osaka, rack=r1+dc=osaka.`,
		Example: `  ukai-node forecast vm1 --at dc=osaka
  ukai-node forecast vm1 --at o1 dc=osaka:2`,
		Args: atLeast("the NAME of a disk"),
		ValidArgsFunction: func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.completeDisk(c, args, typed)
			}
			return a.completeLabels(c, ":")
		},
		RunE: func(c *cobra.Command, args []string) error {
			if at == "" {
				return usageError{fmt.Errorf("say where: --at NODE, or a selector such as --at dc=osaka")}
			}
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				f, err := node.Forecast(ctx, args[0], at, args[1:])
				if err != nil {
					return err
				}
				return a.show(f, func() { a.printForecast(f) })
			})
		},
	})
	c.Flags().StringVar(&at, "at", "", "`SELECTOR` of the nodes where the VM would run")
	_ = c.RegisterFlagCompletionFunc("at", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.completeLabels(c, "")
	})
	return c
}

func (a *app) printForecast(f admin.Forecast) {
	if r := f.Recorded; r != nil {
		a.say("recorded I/O of %s", f.Disk.Name)
		var rows [][]string
		for _, k := range []struct {
			kind string
			admin.RecordedRequests
		}{{"reads", r.Reads}, {"writes", r.Writes}} {
			var sizes []string
			for _, s := range k.Sizes {
				sizes = append(sizes, fmt.Sprintf("%d %% up to %s", 100*int64(s.Count)/int64(max(k.Count, 1)), formatSize(s.UpToBytes)))
			}
			rows = append(rows, []string{"  " + k.kind, fmt.Sprint(k.Count), dash(strings.Join(sizes, ", ")), fmt.Sprintf("%d %%", k.HotPercent), latency(k.Felt)})
		}
		rows = append(rows, []string{"  flushes", fmt.Sprint(r.Flushes), "-", "-", latency(r.FlushFelt)})
		a.table([]string{"  KIND", ">COUNT", "SIZES", ">IN THE HOTTEST TENTH", "FELT P50 / P99"}, rows)
	}
	for _, at := range f.At {
		a.say("%s for a VM on %s, within %d %%", f.Disk.Name, at.Node, at.WithinPercent)
		var rows [][]string
		for _, x := range at.Felt {
			rows = append(rows, []string{"  " + x.When, latency(x.Read), latency(x.Write), latency(x.Flush)})
		}
		a.table([]string{"  WHEN", "READ P50 / P99", "WRITE", "FLUSH"}, rows)
		rows = nil
		for _, in := range at.Inputs {
			measured := "measured"
			if !in.Measured {
				measured = a.colour(yellow, "estimated")
			}
			rows = append(rows, []string{"  " + in.Node.String(), latency(in.RTT), measured, latency(in.Read), latency(in.Write), latency(in.Flush)})
		}
		a.table([]string{"  REPLICA ON", "ROUND TRIP P50 / P99", "IS", "ITS STORE READS", "WRITES", "FLUSHES"}, rows)
		for _, why := range at.Why {
			a.say("  uncertain: %s", why)
		}
	}
}

// latency returns the median and the 99th percentile in milliseconds.
func latency(l admin.Latency) string {
	ms := func(us int64) string { return fmt.Sprintf("%.3g", (time.Duration(us)*time.Microsecond).Seconds()*1e3) }
	return ms(l.P50Micros) + " / " + ms(l.P99Micros) + " ms"
}
