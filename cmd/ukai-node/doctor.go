package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
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
		Long: `Tell what is not as it should be in the mesh and on this machine, and what would help: nodes that are down, nearly full, or whose
clock is off; nodes that membership holds for alive and that this one does not reach, as behind a firewall or a small MTU; disks below their rule,
with one copy, whose arbiters are in two datacenters, or of which a scrub found something corrupt; space in this node's store that belongs to no disk; different releases; UDP buffers
and libvirt's configuration on this machine. Run it on each machine, or with --node for each node.

The exit code is 1 if something is at least a warning, so that it can be used for monitoring.`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, node *admin.Client) error {
				found, err := node.Doctor(ctx)
				if err != nil {
					return err
				}
				s, err := node.Status(ctx)
				if err != nil {
					return err
				}
				found = append(found, versions(s.Nodes)...)
				if a.node == "" {
					self, err := node.Self(ctx)
					if err != nil {
						return err
					}
					found = slices.Concat(found, sockets(os.ReadFile), libvirt(os.ReadFile, self.MountDir))
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

// qemuConf is where libvirt is configured.
const qemuConf = "/etc/libvirt/qemu.conf"

var sharedFilesystems = regexp.MustCompile(`(?ms)^\s*shared_filesystems\s*=\s*\[(.*?)\]`)

// libvirt finds a libvirt on this machine that takes the directory with the disks for a local one. It then changes the owner of disks that a
// VM on another host uses, and refuses to migrate.
func libvirt(read func(string) ([]byte, error), mount string) []admin.Warning {
	b, err := read(qemuConf)
	if err != nil || mount == "" {
		return nil // no libvirt here, or no disks for it
	}
	if m := sharedFilesystems.FindSubmatch(b); m != nil {
		for _, dir := range strings.FieldsFunc(string(m[1]), func(r rune) bool { return strings.ContainsRune("\"', \t\n", r) }) {
			if dir = strings.TrimRight(dir, "/"); mount == dir || strings.HasPrefix(mount, dir+"/") {
				return nil
			}
		}
	}
	return []admin.Warning{{
		Level: admin.Notice, Code: "libvirt-shared", Text: fmt.Sprintf("libvirt on this machine takes %s for a local directory: it does not migrate VMs whose disks are there", mount),
		Remedy: fmt.Sprintf("write shared_filesystems = [ %q ] into %s and restart libvirtd", mount, qemuConf),
	}}
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
