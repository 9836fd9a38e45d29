package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"ukai"
)

const (
	joinFirst = 500 * time.Millisecond // back-off while nobody is there
	joinMost  = 30 * time.Second
	joinAtOne = 4                // addresses tried at a time
	joinTime  = 15 * time.Second // for one address, or one name

	// rejoinEvery is about how often a node that has company looks for those that are missing, and rejoinPeers how many of them it
	// asks then: in a mesh of 2 x 50 nodes that lost sight of each other some pair meets within seconds, without a storm.
	rejoinEvery = 45 * time.Second
	rejoinPeers = 3

	// maxSeedAddrs bounds the addresses taken from one DNS name; others are taken another time, as the order is random.
	maxSeedAddrs = 64
)

// errSelf says that an address leads to this node itself.
var errSelf = errors.New("that is this node")

// keepJoined looks for peers for ever: with back-off while this node is alone, and now and then for those it misses.
func (m *Mesh) keepJoined() {
	defer m.loops.Done()
	var (
		lonely  bool
		backoff time.Duration
		next    time.Time
	)
	for {
		switch alone := len(m.alivePeers()) == 0; {
		case alone && !lonely:
			lonely, backoff, next = true, joinFirst, time.Now()
		case !alone && lonely:
			lonely, next = false, time.Now().Add(jitter(rejoinEvery))
			m.setJoined()
		}
		if !time.Now().Before(next) {
			if lonely {
				began := time.Now()
				m.lookForAnybody()
				next = began.Add(backoff/2 + rand.N(backoff/2))
				backoff = min(2*backoff, joinMost)
			} else {
				m.lookForMissing()
				next = time.Now().Add(jitter(rejoinEvery))
			}
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-m.joinWake: // somebody came or went
			timer.Stop()
		case <-m.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// jitter spreads what many nodes do at the same interval: it returns from 2/3 to 4/3 of d.
func jitter(d time.Duration) time.Duration { return d*2/3 + rand.N(d*2/3+1) }

// lookForAnybody tries seeds and remembered peers until one answers.
func (m *Mesh) lookForAnybody() {
	if m.isLeaving() {
		return
	}
	missing := m.missing(4 * joinAtOne)
	seeds, all := m.resolveSeeds(m.cfg.Seeds)
	if m.joinAny(append(seeds, missing...), slog.LevelWarn) {
		return
	}
	m.mu.Lock()
	other := slices.ContainsFunc(seeds, func(a netip.AddrPort) bool { return !m.isOwn(a) })
	m.mu.Unlock()
	if all && !other && len(missing) == 0 { // a mesh of its own
		m.setRecalled()
		m.setJoined()
	}
}

// isOwn says whether an address leads to this node. The caller holds m.mu.
func (m *Mesh) isOwn(a netip.AddrPort) bool { return a == m.advertise || m.ownAddrs[a] }

// lookForMissing tries a few remembered peers that are not alive, and a seed that is none of the peers.
func (m *Mesh) lookForMissing() {
	if m.isLeaving() {
		return
	}
	addrs := m.missing(rejoinPeers)
	if n := len(m.cfg.Seeds); n > 0 {
		found, _ := m.resolveSeeds(m.cfg.Seeds[rand.IntN(n):][:1])
		addrs = append(addrs, found[:min(len(found), rejoinPeers)]...)
	}
	if m.joinAny(addrs, slog.LevelDebug) {
		m.count.rejoins.Add(1)
	}
}

// joinAny tries addresses of which no alive peer is known, a few at a time, until one could be joined.
func (m *Mesh) joinAny(addrs []netip.AddrPort, level slog.Level) bool {
	m.mu.Lock()
	known := make(map[netip.AddrPort]bool)
	for _, p := range m.members {
		if p.alive {
			known[p.addr] = true
		}
	}
	var todo []netip.AddrPort
	for _, a := range addrs {
		if !known[a] && !m.isOwn(a) {
			known[a] = true
			todo = append(todo, a)
		}
	}
	m.mu.Unlock()
	joined := false
	var exchanged atomic.Bool
	for batch := range slices.Chunk(todo, joinAtOne) {
		if joined || m.ctx.Err() != nil {
			break
		}
		results := make([]error, len(batch))
		parallel(len(batch), func(i int) {
			ctx, cancel := context.WithTimeout(m.ctx, joinTime)
			defer cancel()
			results[i] = m.join(ctx, batch[i], &exchanged)
		})
		for i, err := range results {
			switch {
			case err == nil:
				joined = true
				m.count.joins.Add(1)
			case errors.Is(err, errSelf):
				m.mu.Lock()
				m.ownAddrs[batch[i]] = true
				m.mu.Unlock()
			case m.ctx.Err() == nil:
				m.count.joinsFailed.Add(1)
				m.quiet.write(level, "peer not reached, will be tried again", "peer", batch[i].String(), "error", err)
			}
		}
	}
	return joined
}

// join makes the node at addr and this one members of one mesh and, for the first of several, their catalogs equal. The others have most
// likely the same to tell.
func (m *Mesh) join(ctx context.Context, addr netip.AddrPort, exchanged *atomic.Bool) error {
	x, err := m.greet(ctx, addr)
	if err != nil {
		return err
	}
	defer x.close()
	if x.peer == m.id {
		return errSelf
	}
	if _, err := m.ml.Join([]string{x.peer.String() + "/" + addr.String()}); err != nil {
		return fmt.Errorf("join %s at %v: %w", x.peer.Short(), addr, err)
	}
	m.log.Info("peer joined", "peer", x.peer.Short(), "addr", addr.String())
	if !exchanged.CompareAndSwap(false, true) {
		return nil
	}
	m.mu.Lock()
	m.comparing, m.comparingSince = m.comparing+1, time.Now()
	m.mu.Unlock()
	err = x.reconcile()
	m.mu.Lock()
	m.comparing--
	m.mu.Unlock()
	if err != nil {
		m.log.Debug("catalogs not exchanged yet", "peer", x.peer.Short(), "error", err)
	}
	return nil
}

// resolveSeeds returns the addresses of seeds, those of each in random order, and whether it could resolve all.
func (m *Mesh) resolveSeeds(seeds []string) (addrs []netip.AddrPort, all bool) {
	found := make([][]netip.AddrPort, len(seeds))
	var failed atomic.Bool
	parallel(len(seeds), func(i int) {
		ctx, cancel := context.WithTimeout(m.ctx, joinTime)
		defer cancel()
		addrs, err := m.resolve(ctx, seeds[i])
		if err != nil {
			failed.Store(true)
			m.count.joinsFailed.Add(1)
			m.quiet.warn("seed not resolved, will be tried again", "seed", seeds[i], "error", err)
		}
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
		found[i] = addrs[:min(len(addrs), maxSeedAddrs)]
	})
	return slices.Concat(found...), !failed.Load()
}

func (m *Mesh) resolve(ctx context.Context, seed string) ([]netip.AddrPort, error) {
	host, port, err := splitSeed(seed, m.advertise.Port())
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), port)}, nil
	}
	ips, err := m.cfg.Resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.AddrPort, 0, len(ips))
	for _, ip := range ips {
		addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), port))
	}
	return addrs, nil
}

// splitSeed reads "host:port", "host", "[ipv6]:port" or "ipv6"; without a port it is this node's own.
func splitSeed(seed string, own uint16) (host string, port uint16, err error) {
	if ip, err := netip.ParseAddr(seed); err == nil {
		return ip.String(), own, nil
	}
	host, text, err := net.SplitHostPort(seed)
	if err != nil {
		host, text, err = net.SplitHostPort(seed + ":" + strconv.Itoa(int(own)))
	}
	if err != nil || host == "" {
		return "", 0, fmt.Errorf("seed %q: %w: write host:port, for example 10.0.0.2:7946", seed, ukai.ErrInvalid)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("seed %q: %w: port must be 1 to 65535", seed, ukai.ErrInvalid)
	}
	return host, uint16(n), nil
}

// parallel calls f for 0 to n-1, all at once, and returns when all have.
func parallel(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}
