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

func (a *app) statusCommand() *cobra.Command {
	return a.asking(&cobra.Command{
		Use:   "status",
		Short: "Show nodes, labels, capacity, round-trip times and health",
		Long: `Show the mesh as the node sees it: its nodes with labels, state and capacity, the round-trip times between them, a
summary of the disks, and what is not as it should be.

Round-trip times are in milliseconds. Those between two other nodes are estimated and marked with ~. In a mesh of more than
` + fmt.Sprint(maxMatrix) + ` nodes the table is per datacenter and shows medians.`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				s, err := node.Status(ctx)
				if err != nil {
					return err
				}
				return a.show(s, func() { a.printStatus(s) })
			})
		},
	})
}

// maxMatrix is the number of nodes up to which round-trip times are shown per node.
const maxMatrix = 12

func (a *app) printStatus(s admin.Status) {
	a.say("mesh %s as %s sees it, %s: %s", s.Mesh, s.Node, s.Time.UTC().Format(time.DateTime+" MST"), a.colour(levelColour(s.Health), string(s.Health)))
	a.say("")
	a.table([]string{"NODE", "STATE", "LABELS", "ROLES", ">FREE", ">CAPACITY", ">REPLICAS", ">CLOCK", "VERSION", "ADDRESS"}, a.nodeRows(s.Nodes))
	if len(s.Nodes) > 1 {
		header, rows, all := matrix(s)
		legend := "round-trip times in ms, ~ estimated"
		if !all {
			legend += ", - not measured yet"
		}
		a.say("\n%s", legend)
		a.table(header, rows)
	}
	d := s.Disks
	if d.Total == 0 {
		a.say("\nno disks")
	} else {
		a.say("\n%s of %s in all: %d attached, %d degraded, %d suspended", count(d.Total, "disk"), formatSize(d.SizeBytes), d.Attached, d.Degraded, d.Suspended)
	}
	if len(s.Warnings) > 0 {
		a.say("")
		a.warnings(s.Warnings)
	}
}

func (a *app) nodeRows(nodes []admin.Node) (rows [][]string) {
	for _, n := range nodes {
		name, state := n.Name, string(n.State)
		if n.Self {
			name += " *"
		}
		if n.State != admin.NodeAlive {
			state += " " + a.ago(n.Since)
		}
		capacity, free := formatSize(n.CapacityBytes), formatSize(n.FreeBytes)
		if n.Witness {
			capacity, free = "-", "-"
		}
		rows = append(rows, []string{
			name, a.colour(stateColour(n.State), state), dash(n.Labels.String()), dash(roles(n)), free, capacity,
			fmt.Sprint(n.Replicas), skew(n.ClockSkewMillis), dash(n.Version), dash(n.Address),
		})
	}
	return rows
}

func stateColour(s admin.NodeState) string {
	switch s {
	case admin.NodeAlive:
		return green
	case admin.NodeSuspect:
		return yellow
	case admin.NodeDead:
		return red
	}
	return ""
}

func roles(n admin.Node) string {
	var list []string
	for _, r := range []struct {
		is   bool
		name string
	}{{n.Witness, "witness"}, {n.Drain, "drain"}, {n.NoNew, "no-new"}} {
		if r.is {
			list = append(list, r.name)
		}
	}
	return strings.Join(list, ",")
}

func skew(millis int64) string {
	if millis == 0 {
		return "0"
	}
	return fmt.Sprintf("%+d ms", millis)
}

// matrix returns the table of round-trip times: per node, or in a large mesh per datacenter. all says that none is missing.
func matrix(s admin.Status) (header []string, rows [][]string, all bool) {
	place := map[string]string{} // node -> what stands for it in the table
	var places []string
	for _, n := range s.Nodes {
		p := n.Name
		if len(s.Nodes) > maxMatrix {
			p = dash(n.Labels[ukai.LabelDC])
		}
		place[n.Name], place[n.ID.String()] = p, p
		if !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	type pair struct{ from, to string }
	times := map[pair][]admin.RTT{}
	for _, r := range s.RTTs {
		from, to := place[r.From], place[r.To]
		times[pair{from, to}] = append(times[pair{from, to}], r)
		if from != to {
			times[pair{to, from}] = append(times[pair{to, from}], r)
		}
	}
	header, all = []string{""}, true
	for _, to := range places {
		header = append(header, ">"+to)
	}
	for _, from := range places {
		row := []string{from}
		for _, to := range places {
			cell := median(times[pair{from, to}])
			switch {
			case cell == "" && from == to:
				cell = "."
			case cell == "":
				cell, all = "-", false
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	return header, rows, all
}

// median writes the middle one of some round-trip times, "" if there is none; measured ones count before estimates.
func median(list []admin.RTT) string {
	measured := slices.DeleteFunc(slices.Clone(list), func(r admin.RTT) bool { return !r.Measured })
	mark := ""
	if len(measured) == 0 {
		measured, mark = slices.Clone(list), "~"
	}
	if len(measured) == 0 {
		return ""
	}
	slices.SortFunc(measured, func(a, b admin.RTT) int { return int(a.RTTMicros - b.RTTMicros) })
	return mark + milliseconds(measured[len(measured)/2].RTTMicros)
}
