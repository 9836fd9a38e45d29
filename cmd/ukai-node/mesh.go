package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"ukai/node/admin"
	"ukai/node/wire"
)

func (a *app) meshCommand() *cobra.Command {
	return group("mesh", "The mesh: the key that lets nodes join, and nodes that never come back", a.meshInitCommand(), a.meshShowCommand(), a.meshRetireCommand())
}

func (a *app) meshInitCommand() *cobra.Command {
	var out string
	var given func() map[string][]string
	c := a.reading(&cobra.Command{
		Use:   "init",
		Short: "Make a mesh key",
		Long: `Make a mesh key in a new file that only its owner may read. Copy it to each node of the mesh and name it there with --mesh-key-file.
` + "`ukai-node start`" + ` on an empty data directory without a key and seeds does this by itself.`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			if out == "" {
				cfg, _, err := load(a.sources(given()))
				if err != nil {
					return err
				}
				out = cfg.keyFile()
			}
			key, err := writeNewKey(out)
			if err != nil {
				return err
			}
			made := meshKeyInfo{File: absolute(out), Fingerprint: key.ID()}
			return a.show(made, func() {
				a.say("mesh key %s is in %s", made.Fingerprint, made.File)
				a.say("Copy it to each node and start it with --mesh-key-file, or put it into the data directory as mesh.key.")
			})
		},
	})
	c.Flags().StringVar(&out, "out", "", "`FILE` to write; must not exist (default: where start looks for it)")
	given = settingFlags(c, "data", "mesh-key-file")
	return c
}

// meshKeyInfo is what mesh init and mesh show tell.
type meshKeyInfo struct {
	File        string `json:"file,omitempty"`
	Fingerprint string `json:"fingerprint"`
	Key         string `json:"key,omitempty"`
	Join        string `json:"join,omitempty"`
	Address     string `json:"address,omitempty"` // at which the running node is reached
	Mesh        string `json:"mesh,omitempty"`    // fingerprint of the running node's key
}

func (a *app) meshShowCommand() *cobra.Command {
	var secret bool
	var given func() map[string][]string
	c := a.reading(&cobra.Command{
		Use:   "show",
		Short: "Show where the mesh key is, its fingerprint, and how the next node joins",
		Long: `Show where the mesh key is, its fingerprint, and the command with which the next node joins. The key itself is shown only with --secret.
Two nodes are in the same mesh if the fingerprints are the same.`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			info, err := a.meshKeyInfo(c.Context(), given(), secret)
			if err != nil {
				return err
			}
			return a.show(info, func() {
				a.say("mesh key %s is in %s", info.Fingerprint, dash(info.File))
				if info.Key != "" {
					a.say("%s", info.Key)
				}
				if info.Mesh != "" && info.Mesh != info.Fingerprint {
					a.say("%s: the running node uses the key %s", a.colour(yellow, "warning"), info.Mesh)
				}
				a.say("%s", joinHelp(info.Address, info.File))
			})
		},
	})
	c.Flags().BoolVar(&secret, "secret", false, "show the key itself")
	c.Flags().BoolVar(&secret, "key", false, "the same as --secret")
	_ = c.Flags().MarkHidden("key")
	given = settingFlags(c, "data", "mesh-key-file")
	return c
}

// meshKeyInfo finds the mesh key where the configuration says, or else in the data directory of the running node.
func (a *app) meshKeyInfo(ctx context.Context, given map[string][]string, secret bool) (meshKeyInfo, error) {
	cfg, origins, err := load(a.sources(given))
	if err != nil {
		return meshKeyInfo{}, err
	}
	self, selfErr := a.askSelf(ctx)
	if selfErr == nil && origins["data"].rank < byFlag && origins["mesh-key-file"].rank == byDefault && origins["mesh-key"].rank == byDefault {
		cfg.Data = self.DataDir
	}
	keys, err := cfg.meshKeys()
	if errors.Is(err, fs.ErrNotExist) {
		return meshKeyInfo{}, fmt.Errorf("%w; make one with `ukai-node mesh init`, or say where it is with --mesh-key-file", err)
	}
	if err != nil {
		return meshKeyInfo{}, err
	}
	info := meshKeyInfo{Fingerprint: keys[0].ID()}
	if cfg.MeshKey == "" {
		info.File = absolute(cfg.keyFile())
	}
	if secret {
		info.Key = keys[0].String()
	}
	if selfErr == nil {
		info.Mesh, info.Address = self.Mesh, self.Address
	}
	info.Join = joinCommand(info.Address, info.File)
	return info, nil
}

// askSelf asks the node on this machine who it is. That there is none is no error of the caller's.
func (a *app) askSelf(ctx context.Context) (admin.Self, error) {
	client, err := a.client()
	if err != nil {
		return admin.Self{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return client.Self(ctx)
}

// joinHelp tells how the next node joins through this one, whose key is in file.
func joinHelp(address, file string) string {
	if onlyHere(address) {
		return "Only this machine reaches the node at " + address + ". The next node here joins with:\n  " + joinCommand(address, file)
	}
	return "Copy it to the next machine, as mesh.key, and run there:\n  " + joinCommand(address, file)
}

// joinCommand returns the command with which the next node joins through this one. One on the same machine needs places of its own.
func joinCommand(address, file string) string {
	const start = "ukai-node start --name NAME --label dc=DATACENTER --seed "
	switch {
	case address == "":
		address = "HOST:" + defaultPort
	case onlyHere(address):
		return start + address + " --mesh-key-file " + cmp.Or(file, "mesh.key") + " --listen 127.0.0.1:PORT --data DIR --mount DIR --socket FILE"
	}
	return start + address + " --mesh-key-file mesh.key"
}

// onlyHere says whether an address is one of which only this machine knows.
func onlyHere(address string) bool {
	at, err := netip.ParseAddrPort(address)
	return err == nil && at.Addr().IsLoopback()
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// firstKeys returns the mesh keys of a node that starts. A node that begins a mesh of its own on an empty directory makes one, and made is true.
func firstKeys(c config) (keys []wire.MeshKey, made bool, err error) {
	keys, err = c.meshKeys()
	switch {
	case err == nil || !errors.Is(err, fs.ErrNotExist):
		return keys, false, err
	case c.MeshKeyFile != "":
		return nil, false, fmt.Errorf("%w; make one with `ukai-node mesh init --out %s`", err, c.MeshKeyFile)
	case len(c.Seeds) > 0:
		return nil, false, fmt.Errorf("%w; to join a mesh, copy its key from a node that is in it to %s, or say where it is with --mesh-key-file", err, c.keyFile())
	}
	there, err := os.ReadDir(c.Data)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("data directory: %w", err)
	}
	for _, f := range there {
		if f.Name() != "lost+found" {
			return nil, false, fmt.Errorf("mesh key %s: %w; the data directory %s has been in use, and with a new key its node would be in no mesh: bring the key back, or give an empty directory", c.keyFile(), fs.ErrNotExist, c.Data)
		}
	}
	key, err := writeNewKey(c.keyFile())
	if err != nil {
		return nil, false, err
	}
	return []wire.MeshKey{key}, true, nil
}
