package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"ukai"
)

// advertised returns the address that other nodes are given: the configured one, else the one the transport listens on, else, for a
// wildcard, that of the interface towards the first seed that can be resolved or towards the default route, else, on a network that leads nowhere
// else, an address of any interface, else loopback.
func advertised(ctx context.Context, cfg Config) (netip.AddrPort, error) {
	listen, err := netip.ParseAddrPort(cfg.Transport.LocalAddr().String())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("mesh: listen address %q: %w: want ip:port", cfg.Transport.LocalAddr(), ukai.ErrInvalid)
	}
	if cfg.Advertise != "" {
		return checkAdvertise(cfg.Advertise, listen.Port())
	}
	if !listen.Addr().IsUnspecified() {
		return netip.AddrPortFrom(listen.Addr().Unmap(), listen.Port()), nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for _, seed := range cfg.Seeds[:min(len(cfg.Seeds), 3)] {
		host, port, err := splitSeed(seed, listen.Port())
		if err != nil {
			continue // check has looked at it
		}
		ips := []netip.Addr{}
		if ip, err := netip.ParseAddr(host); err == nil {
			ips = append(ips, ip)
		} else if found, err := cfg.Resolve(ctx, host); err == nil {
			ips = found
		}
		for _, ip := range ips {
			if own, ok := towards(netip.AddrPortFrom(ip.Unmap(), port)); ok && !own.IsLoopback() {
				return netip.AddrPortFrom(own, listen.Port()), nil
			}
		}
	}
	for _, far := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // documentation addresses: nothing is sent to them
		if own, ok := towards(netip.MustParseAddrPort(far)); ok {
			return netip.AddrPortFrom(own, listen.Port()), nil
		}
	}
	if own, ok := anyOf(ownAddrs()); ok {
		cfg.Log.Info("no route to anywhere: other nodes are given the address of an interface", "address", own)
		return netip.AddrPortFrom(own, listen.Port()), nil
	}
	cfg.Log.Warn("no route to anywhere: other machines cannot reach this node until it is started with an address to advertise")
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), listen.Port()), nil
}

// ownAddrs returns the addresses of this machine's interfaces that are up.
func ownAddrs() (list []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil // then it is as if there were none
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			list = append(list, p.Addr().Unmap())
		}
	}
	return list
}

// anyOf returns one of some addresses that may be reached from another machine, IPv4 before IPv6.
func anyOf(list []netip.Addr) (netip.Addr, bool) {
	best := netip.Addr{}
	for _, a := range list {
		if a.IsGlobalUnicast() && (!best.IsValid() || a.Is4() && !best.Is4()) {
			best = a
		}
	}
	return best, best.IsValid()
}

// seenAt takes in the address a peer sees this node at. It may rightly differ, on a machine with several; behind address translation it is
// the one to advertise.
func (m *Mesh) seenAt(peer ukai.NodeID, seen string) {
	addr, err := netip.ParseAddrPort(seen)
	if err != nil || addr.Addr().Unmap() == m.advertise.Addr() {
		return
	}
	m.quiet.write(slog.LevelInfo, "a peer sees this node at another address than it advertises; if others cannot reach it, set the address to advertise",
		"seen", addr.Addr().Unmap().String(), "advertised", m.advertise.String(), "peer", peer.Short())
}

func checkAdvertise(s string, port uint16) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		ip, e := netip.ParseAddr(s)
		if e != nil {
			return a, fmt.Errorf("advertised address %q: %w: write ip:port, for example 10.0.0.2:7946", s, ukai.ErrInvalid)
		}
		a = netip.AddrPortFrom(ip, port)
	}
	if a.Addr().IsUnspecified() || a.Addr().IsMulticast() || a.Port() == 0 {
		return a, fmt.Errorf("advertised address %q: %w: others must be able to send to it", s, ukai.ErrInvalid)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

// towards returns the address this machine would send from. Connecting a UDP socket asks the kernel for it and sends nothing.
func towards(far netip.AddrPort) (netip.Addr, bool) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(far))
	if err != nil {
		return netip.Addr{}, false
	}
	own := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	_ = conn.Close() // nothing was sent
	return own, !own.IsUnspecified()
}
