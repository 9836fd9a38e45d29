package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
	"ukai/node/wire"
)

// Bounds of an orderly stop.
const (
	// stopTimeout bounds the whole of it; then what is left is cut off. It is below the 90 s after which systemd kills a service.
	stopTimeout = 80 * time.Second
	// unmountTimeout is how long programs that have disks open are given to close them; then their files fail.
	unmountTimeout = 10 * time.Second
	// requestsTimeout is how long admin requests that are being answered are given.
	requestsTimeout = 5 * time.Second
)

// minProcs is the least GOMAXPROCS: reading from FUSE and file I/O block threads, and each blocked thread keeps one of them for a while.
const minProcs = 8

// parts are what start runs. open makes them; a test has parts of its own.
type parts struct {
	node  running
	mount mounted      // nil: disks are not mounted
	peers net.Listener // admin requests of other nodes; nil: none
}

// running is a node.
type running interface {
	admin.Backend
	// Leaving is closed when an administrator asked the node to go.
	Leaving() <-chan struct{}
	// Close lets disks go, tells the mesh, and ends the node.
	Close(ctx context.Context) error
}

// mounted is the directory in which disks appear.
type mounted interface {
	// Done is closed when it is no longer mounted.
	Done() <-chan struct{}
	// Unmount waits until ctx ends for programs to close their files.
	Unmount(ctx context.Context) error
	// Abort makes files that are still open fail.
	Abort(ctx context.Context) error
}

// opener starts a node and mounts its disks.
type opener func(ctx context.Context, c config, keys []wire.MeshKey, version string, log *slog.Logger) (parts, error)

func (a *app) startCommand() *cobra.Command {
	var given func() map[string][]string
	c := &cobra.Command{
		Use:   "start",
		Short: "Run a node",
		Long: `Run a node: join the mesh through the seeds, or begin a mesh without them; store blocks in the data directory; show the disks of the mesh as files in the mount directory; answer
the other commands at the socket.

Without seeds and mesh key, and with an empty data directory, the node makes a mesh key and prints how the next node joins.

Settings come from flags, else from variables of the environment, else from the configuration file (see config sample). SIGTERM, SIGINT
or the command leave end the node in an orderly way: disks are flushed and let go, the directory is unmounted, the mesh is told. Programs
that still have disks open after ` + unmountTimeout.String() + ` get errors. A second signal ends the node at once.`,
		Example: `  ukai-node start --name t1 --label dc=tokyo --data /var/lib/ukai --mount /ukai
  ukai-node start --name o1 --label dc=osaka --seed 10.0.0.2:7946 --mesh-key-file /etc/ukai/mesh.key`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, _, err := load(a.sources(given()))
			if err != nil {
				return err
			}
			return a.start(c.Context(), cfg)
		},
	}
	given = settingFlags(c)
	return c
}

// start runs a node until ctx ends, it is told to leave, or a part of it ends by itself.
func (a *app) start(ctx context.Context, cfg config) (err error) {
	raiseProcs(a.env)
	log := newLog(a.stderr, cfg)
	socket, err := listenSocket(cfg.Socket)
	if err != nil {
		return err
	}
	defer socket.remove()
	if err := cfg.checkMount(log); err != nil {
		return err
	}
	keys, made, err := firstKeys(cfg)
	if err != nil {
		return err
	}
	p, err := a.open(ctx, cfg, keys, a.version, log)
	if err != nil {
		return err
	}
	server := admin.NewServer(admin.ServerConfig{Backend: p.node, Version: a.version, Pprof: cfg.Pprof, Log: log})
	served := make(chan error, 2)
	var listeners sync.WaitGroup
	listeners.Go(func() { served <- server.Serve(socket) })
	if p.peers != nil {
		listeners.Go(func() { served <- server.Serve(p.peers) })
	}
	defer listeners.Wait()

	a.welcome(ctx, p.node, cfg, keys[0], made)
	stopWatchdog := a.ready(p.node, log)
	why, err := p.await(ctx, served)
	notify(log, daemon.SdNotifyStopping)
	log.Info("stopping", "why", why)
	err = errors.Join(err, p.stop(server, log))
	stopWatchdog()
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// await returns why the node is to stop, with an error if a part of it ended by itself.
func (p parts) await(ctx context.Context, served <-chan error) (why string, err error) {
	var unmounted <-chan struct{}
	if p.mount != nil {
		unmounted = p.mount.Done()
	}
	select {
	case <-ctx.Done():
		return "signal", nil
	case <-p.node.Leaving():
		return "told to leave", nil
	case <-unmounted:
		return "unmounted", fmt.Errorf("the mount directory was unmounted by someone else: %w", ukai.ErrClosed)
	case err := <-served:
		return "admin API", err
	}
}

// stop ends the parts in the order in which they need each other.
func (p parts) stop(server *admin.Server, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var errs []error
	if p.mount != nil {
		patient, cancel := context.WithTimeout(ctx, unmountTimeout)
		if err := p.mount.Unmount(patient); err != nil {
			log.Warn("programs have disks open, and get errors now", "err", err)
			errs = append(errs, p.mount.Abort(ctx))
		}
		cancel()
	}
	requests, cancelRequests := context.WithTimeout(ctx, requestsTimeout)
	defer cancelRequests()
	if err := server.Close(requests); err != nil {
		log.Warn("admin API", "err", err)
	}
	errs = append(errs, p.node.Close(ctx))
	return errors.Join(errs...)
}

// welcome tells how the next node joins the mesh that this one began, as long as there is no other.
func (a *app) welcome(ctx context.Context, node admin.Backend, cfg config, key wire.MeshKey, made bool) {
	status, err := node.Status(ctx)
	if len(cfg.Seeds) > 0 || err != nil || len(status.Nodes) > 1 {
		return
	}
	began, where := "This node is alone in its mesh.", "in the configuration"
	if made {
		began = "This node began a mesh of its own."
	}
	if cfg.MeshKey == "" {
		where = absolute(cfg.keyFile())
	}
	address := ""
	if self, err := node.Self(ctx); err == nil {
		address = self.Address
	}
	a.say("%s Its mesh key %s is in\n  %s\nWho has it may join the mesh, and nobody else. %s", began, key.ID(), where, joinHelp(address, where))
}

// ready tells systemd that the node serves, and from then on that it is well. The function it returns ends that.
func (a *app) ready(node admin.Backend, log *slog.Logger) (stop func()) {
	notify(log, daemon.SdNotifyReady)
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not served", "err", err)
	}
	if err != nil || every == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// A node whose locks hang does not answer, and is started anew.
			if _, err := node.Self(ctx); err == nil {
				notify(log, daemon.SdNotifyWatchdog)
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// notify tells systemd, where there is one.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd was not told", "state", state, "err", err)
	}
}

// newLog returns the log of a node.
func newLog(w io.Writer, c config) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// raiseProcs sets GOMAXPROCS to its floor, unless the environment sets it.
func raiseProcs(env func(string) (string, bool)) {
	if v, ok := env("GOMAXPROCS"); ok && v != "" {
		return
	}
	if runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
}

// socketListener is the admin socket.
type socketListener struct {
	net.Listener
	path string
	mine os.FileInfo
}

// listenSocket listens on a unix socket that only this user may connect to. What a dead node left at path is replaced; a
// node that lives there is ukai.ErrLocked.
func listenSocket(path string) (*socketListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("admin socket: %w; run as root, or name another place with --socket", err)
	}
	if old, err := os.Lstat(path); err == nil && old.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("admin socket %s: %w: there is something that is no socket; name another place with --socket", path, ukai.ErrExists)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("admin socket %s: %w: another node runs there; give this one another --socket", path, ukai.ErrLocked)
	}
	// Made under another name, and moved when its permissions are right: there is no moment at which others may connect.
	made := path + socketSuffix
	_ = os.Remove(made) // of a node that died just here
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w; name another place with --socket", err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(made, 0o600)
	if err == nil {
		err = os.Rename(made, path)
	}
	mine, statErr := os.Lstat(path)
	if err = errors.Join(err, statErr); err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), l.Close())
	}
	return &socketListener{l, path, mine}, nil
}

// remove removes the socket, unless it is another node's by now.
func (l *socketListener) remove() {
	_ = l.Close() // the server closed it already, unless it never served
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.mine) {
		_ = os.Remove(l.path) // a dead socket does no harm
	}
}
