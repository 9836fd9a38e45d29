package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"ukai/fusefs"
	"ukai/node"
	"ukai/node/wire"
)

// openNode opens the node that the configuration describes, and mounts its disks.
func openNode(ctx context.Context, c config, keys []wire.MeshKey, version string, log *slog.Logger) (parts, error) {
	n, err := node.Open(ctx, node.Config{
		Name: c.Name, Labels: c.Labels, Witness: c.Witness, Listen: c.Listen, Advertise: c.Advertise, Seeds: c.Seeds,
		DataDir: c.Data, MountDir: c.Mount, Keys: keys, Reserve: c.Reserve, OnLoss: c.OnLossTimeout, ScrubEvery: c.ScrubEvery, ScrubRate: c.ScrubRate, Version: version, Log: log,
	})
	if err != nil {
		return parts{}, err
	}
	p := parts{node: n, peers: listenPeers(n.AdminListener())}
	if c.Mount == "" {
		return p, nil
	}
	if p.mount, err = mountDisks(c, n, log); err != nil {
		stop, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		return parts{}, errors.Join(err, n.Close(stop))
	}
	return p, nil
}

// checkMount says why the disks could not be mounted. It is asked before other nodes hear of this one, and before anything is made.
func (c config) checkMount(log *slog.Logger) error {
	if c.Mount == "" {
		return nil
	}
	cfg, err := c.mount(log)
	if err != nil {
		return err
	}
	return fusefs.Check(cfg)
}

// mount returns how disks are to be mounted.
func (c config) mount(log *slog.Logger) (cfg fusefs.Config, err error) {
	cfg = fusefs.Config{
		Dir: c.Mount, Log: log, Mode: c.MountMode, AllowOther: c.MountMode&0o077 != 0 || c.MountOwner != "",
		RequireLocks: c.RequireLocks, RefuseTruncate: c.RefuseTruncate,
	}
	if c.MountOwner != "" {
		cfg.UID, cfg.GID, err = owner(c.MountOwner)
	}
	return cfg, err
}

// mountDisks shows the disks of the mesh in a directory.
func mountDisks(c config, n *node.Node, log *slog.Logger) (mounted, error) {
	cfg, err := c.mount(log)
	if err != nil {
		return nil, err
	}
	cfg.Disks = disks{n}
	m, err := fusefs.Open(cfg)
	if err != nil {
		return nil, err
	}
	w := &watchedMount{Mount: m, ended: make(chan struct{})}
	var watching context.Context
	watching, w.end = context.WithCancel(context.Background())
	go func() {
		defer close(w.ended)
		watch(watching, n, m)
	}()
	return w, nil
}

// watchedMount is a mount whose kernel is told of what changed elsewhere.
type watchedMount struct {
	*fusefs.Mount
	end   context.CancelFunc
	ended chan struct{}
}

// Unmount ends the watching once the mount has ended.
func (w *watchedMount) Unmount(ctx context.Context) error {
	if err := w.Mount.Unmount(ctx); err != nil {
		return err
	}
	return w.stopWatching()
}

// Abort ends the watching, too.
func (w *watchedMount) Abort(ctx context.Context) error {
	return errors.Join(w.Mount.Abort(ctx), w.stopWatching())
}

func (w *watchedMount) stopWatching() error {
	w.end()
	<-w.ended
	return nil
}

// watchPause is how long changes are gathered before the directory is compared.
const watchPause = 100 * time.Millisecond

// directory is what watch asks of a node.
type directory interface {
	LiveDisks() []node.DiskInfo
	Changed() (<-chan struct{}, func())
}

// shown is what watch tells of changes.
type shown interface {
	Invalidate(name string)
	Resized(name string)
}

// watch tells the kernel of disks that came, went or grew, until ctx ends.
func watch(ctx context.Context, n directory, m shown) {
	changed, cancel := n.Changed()
	defer cancel()
	before := byName(n.LiveDisks())
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-changed:
			if !ok {
				return
			}
		}
		pause.Reset(watchPause)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		after := byName(n.LiveDisks())
		tell(m, before, after)
		before = after
	}
}

func byName(list []node.DiskInfo) map[string]node.DiskInfo {
	m := make(map[string]node.DiskInfo, len(list))
	for _, d := range list {
		m[d.Name] = d
	}
	return m
}

func tell(m shown, before, after map[string]node.DiskInfo) {
	for name, old := range before {
		switch now, there := after[name]; {
		case !there || now.ID != old.ID:
			m.Invalidate(name)
		case now.Size != old.Size:
			m.Resized(name)
		}
	}
	for name := range after {
		if _, there := before[name]; !there {
			m.Invalidate(name) // the kernel may remember that there was none
		}
	}
}
