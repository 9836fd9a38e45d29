package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"ukai"
	"ukai/node/store"
	"ukai/node/wire"
)

// Config says how a node runs.
type Config struct {
	Name      string         // unique in the mesh by convention; rules may say node=NAME
	Labels    ukai.Labels    // applied when they differ from those of the last start, so that `place node` is not undone
	Witness   bool           // stores no blocks, only votes
	Listen    string         // UDP host:port; default ":7946"
	Advertise string         // host:port at which peers reach this node; default: see gossip
	Seeds     []string       // host:port or DNS names of nodes to join through; none: begin a mesh
	DataDir   string         // where replicas and the database are
	MountDir  string         // where disks appear; "" if they are not mounted. Only reported here
	Keys      []wire.MeshKey // the first seals, all are accepted
	Reserve   int64          // bytes of the file system that blocks never take; 0: store.DefaultReserve, negative: none
	// Alone lets the node serve although no other node could tell whether its database is the newest: for when all others are lost.
	Alone      bool
	OnLoss     time.Duration                                                // with on-loss=error, how long I/O waits before it fails; default 30 s
	TrashGrace time.Duration                                                // how long a replica that its disk does not need any more is kept; default 1 h
	ScrubEvery time.Duration                                                // how often each disk is scrubbed; default 30 days, negative: only when asked
	ScrubRate  int64                                                        // bytes a second of each replica that scrubs read which nobody asked for; default 20 MiB
	Version    string                                                       // of the program, as others see it
	Log        *slog.Logger                                                 // default: discards
	Resolve    func(ctx context.Context, host string) ([]netip.Addr, error) // of names in Seeds; default: the system's resolver

	// For meshes in virtual time. All three are taken over: Close closes them.
	Conn     net.PacketConn       // default: a UDP socket at Listen
	Store    store.Backend        // default: the store in DataDir
	Boottime func() time.Duration // default: CLOCK_BOOTTIME
}

// DefaultPort is the UDP port of a node.
const DefaultPort = "7946"

func (c Config) withDefaults() (Config, error) {
	if c.Listen == "" {
		c.Listen = ":" + DefaultPort
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnLoss == 0 {
		c.OnLoss = 30 * time.Second
	}
	if c.TrashGrace <= 0 {
		c.TrashGrace = trashGraceDefault
	}
	if c.ScrubEvery == 0 {
		c.ScrubEvery = scrubEveryDefault
	}
	if c.ScrubRate <= 0 {
		c.ScrubRate = scrubRateDefault
	}
	if c.Version == "" {
		c.Version = "unknown"
	}
	if err := ukai.CheckName("node", c.Name); err != nil {
		return c, err
	}
	if len(c.Labels) > ukai.MaxLabels {
		return c, fmt.Errorf("%d labels: %w: at most %d", len(c.Labels), ukai.ErrInvalid, ukai.MaxLabels)
	}
	for k, v := range c.Labels {
		if err := ukai.CheckLabel(k, v); err != nil {
			return c, err
		}
	}
	if len(c.Keys) == 0 {
		return c, fmt.Errorf("mesh key: %w: a node needs one; make it with: ukai-node mesh init", ukai.ErrInvalid)
	}
	if c.Store == nil && c.DataDir == "" {
		return c, fmt.Errorf("data directory: %w: must be given", ukai.ErrInvalid)
	}
	if c.Advertise != "" {
		if _, err := netip.ParseAddrPort(c.Advertise); err != nil {
			addr, err := net.ResolveUDPAddr("udp", c.Advertise)
			if err != nil {
				return c, fmt.Errorf("advertised address %q: %w: write host:port that the other nodes can reach: %w", c.Advertise, ukai.ErrInvalid, err)
			}
			c.Advertise = addr.AddrPort().String()
		}
	}
	return c, nil
}
