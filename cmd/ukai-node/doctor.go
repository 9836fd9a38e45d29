package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ukai/node/admin"
)

func (a *app) doctorCommand() *cobra.Command {
	return a.asking(&cobra.Command{
		Use:   "doctor",
		Short: "Tell what is not as it should be, and what would help",
		Long: `Tell what is not as it should be in the mesh and on this machine, and what would help.
The exit code is 1 if something is at least a warning, so that it can be used for monitoring.`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				s, err := node.Status(ctx)
				if err != nil {
					return err
				}
				found := append(s.Warnings, versions(s.Nodes)...)
				if a.node == "" {
					found = append(found, sockets(os.ReadFile)...)
				}
				return a.verdict(found)
			})
		},
	})
}

// verdict prints what was found. Its error has no text: all is said.
func (a *app) verdict(found []admin.Warning) error {
	if found == nil {
		found = []admin.Warning{}
	}
	if err := a.show(found, func() {
		a.warnings(found)
		if len(found) == 0 {
			a.say("%s", a.colour(green, "all is well"))
		}
	}); err != nil {
		return err
	}
	if slices.ContainsFunc(found, func(w admin.Warning) bool { return w.Level == admin.Warn || w.Level == admin.Critical }) {
		return errors.New("")
	}
	return nil
}

// versions finds nodes of different releases.
func versions(nodes []admin.Node) []admin.Warning {
	by := map[string][]string{}
	for _, n := range nodes {
		if n.Version != "" && n.State == admin.NodeAlive {
			by[n.Version] = append(by[n.Version], n.Name)
		}
	}
	if len(by) < 2 {
		return nil
	}
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, v+" on "+strings.Join(by[v], ", "))
	}
	return []admin.Warning{{Level: admin.Notice, Code: "versions", Text: "nodes run different releases: " + strings.Join(parts, "; "), Remedy: "upgrade them one after another"}}
}

// wantBuffer is the size in bytes of the UDP buffers that QUIC asks for.
const wantBuffer = 7_500_000

// sockets finds UDP buffers of this machine that are too small for bulk traffic.
func sockets(read func(string) ([]byte, error)) (found []admin.Warning) {
	for _, name := range []string{"net.core.rmem_max", "net.core.wmem_max"} {
		b, err := read("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			continue // not to be seen in a container: not to be changed there either
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n < wantBuffer {
			found = append(found, admin.Warning{Level: admin.Notice, Code: "udp-buffer", Text: fmt.Sprintf("%s is %d on this machine: packets are lost under bulk traffic", name, n),
				Remedy: fmt.Sprintf("sysctl -w %s=%d, and the same in /etc/sysctl.d/ukai.conf", name, wantBuffer)})
		}
	}
	return found
}
