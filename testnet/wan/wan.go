//go:build linux

// Package wan joins network namespaces by a wide-area network in user space: every host is a namespace with one TUN
// device, and this process carries the packets between them with the delay, jitter, loss, duplication, reordering, rate
// and one-way cuts of package link. It needs root and /dev/net/tun, and no queueing discipline of the kernel.
package wan

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ukai/testnet/link"
)

const (
	device = "wan0"
	mtu    = 1500
	// maxQueue is how many packets may be under way to one host; more are dropped, as at a router whose buffer is full.
	maxQueue = 16384
	// maxHosts is how many hosts fit into the network 10.98.0.0/24, less its network and broadcast addresses.
	maxHosts = 250
)

// Link describes one direction between two places.
type Link = link.Link

// Supported says why this machine cannot emulate a network, or nil.
func Supported() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("no TUN device: %w", err)
	}
	for _, tool := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: %w", tool, err)
		}
	}
	return nil
}

// Network is the emulated network. Close removes its namespaces.
type Network struct {
	prefix string
	wg     sync.WaitGroup

	mu    sync.Mutex
	rng   *rand.Rand
	hosts []*Host
	byIP  map[netip.Addr]*Host
	links link.Table
	sent  map[[2]string]uint64
}

// New returns a network without hosts. Its namespaces are called after prefix, which must be unique on the machine.
func New(prefix string, seed uint64) *Network {
	return &Network{
		prefix: prefix,
		rng:    rand.New(rand.NewPCG(seed, 0x77616e)),
		byIP:   map[netip.Addr]*Host{},
		sent:   map[[2]string]uint64{},
	}
}

// Host is one machine of the network.
type Host struct {
	Name      string
	DC        string
	Addr      netip.Addr
	Namespace string

	net    *Network
	tun    *os.File
	wake   chan struct{}
	closed chan struct{}
	queue  link.Queue[[]byte] // guarded by net.mu, as is paths
	paths  map[*Host]*link.Path
}

// AddHost makes a namespace for a host in a datacenter and joins it to the network.
func (n *Network) AddHost(name, dc string) (*Host, error) {
	n.mu.Lock()
	index := len(n.hosts) + 1
	n.mu.Unlock()
	if index > maxHosts {
		return nil, fmt.Errorf("add host %s: the network has room for %d hosts", name, maxHosts)
	}
	h := &Host{
		Name: name, DC: dc, Addr: netip.AddrFrom4([4]byte{10, 98, 0, byte(index)}), Namespace: n.prefix + "-" + name,
		net: n, wake: make(chan struct{}, 1), closed: make(chan struct{}),
		paths: map[*Host]*link.Path{},
	}
	_ = run("ip", "netns", "delete", h.Namespace) // left over from a run that was killed
	if err := run("ip", "netns", "add", h.Namespace); err != nil {
		return nil, err
	}
	var err error
	if h.tun, err = openTUN(h.Namespace); err == nil {
		for _, args := range [][]string{
			{"addr", "add", h.Addr.String() + "/24", "dev", device},
			{"link", "set", "dev", device, "mtu", fmt.Sprint(mtu), "txqueuelen", "5000", "up"},
			{"link", "set", "dev", "lo", "up"},
		} {
			if err = run("ip", append([]string{"-n", h.Namespace}, args...)...); err != nil {
				_ = h.tun.Close()
				break
			}
		}
	}
	if err != nil {
		_ = run("ip", "netns", "delete", h.Namespace)
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	n.mu.Lock()
	n.hosts = append(n.hosts, h)
	n.byIP[h.Addr] = h
	n.mu.Unlock()
	n.wg.Go(h.receive)
	n.wg.Go(h.deliver)
	return h, nil
}

// SetDefault sets the link between all places that have none of their own.
func (n *Network) SetDefault(l Link) { n.mu.Lock(); n.links.SetDefault(l); n.mu.Unlock() }

// SetLink sets the link from one place to another, in that direction only. A place is the name of a host or of a datacenter; a
// link between hosts goes before one between their datacenters, but a cut of any level cuts.
func (n *Network) SetLink(from, to string, l Link) {
	n.mu.Lock()
	n.links.Set(from, to, l)
	n.mu.Unlock()
}

// SetBoth sets the link in both directions.
func (n *Network) SetBoth(a, b string, l Link) { n.SetLink(a, b, l); n.SetLink(b, a, l) }

// Sent returns the bytes that left one host for another.
func (n *Network) Sent(from, to string) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent[[2]string{from, to}]
}

// Close removes all hosts. Programs still running in a namespace lose their network.
func (n *Network) Close() error {
	n.mu.Lock()
	hosts := n.hosts
	n.hosts = nil
	n.mu.Unlock()
	var errs []error
	for _, h := range hosts {
		close(h.closed)
		errs = append(errs, h.tun.Close())
	}
	n.wg.Wait()
	for _, h := range hosts {
		errs = append(errs, run("ip", "netns", "delete", h.Namespace))
	}
	return errors.Join(errs...)
}

// Command is exec.CommandContext inside the host's network namespace. Mounts made by it are seen outside, unlike with
// `ip netns exec`.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + h.Namespace, name}, args...)...)
}

// receive carries what the host sends to the queues of the hosts it is for.
func (h *Host) receive() {
	buf := make([]byte, mtu+64)
	for {
		k, err := h.tun.Read(buf)
		if err != nil {
			return // closed
		}
		if k < 20 || buf[0]>>4 != 4 {
			continue // IPv6 router solicitations and the like
		}
		dst := netip.AddrFrom4([4]byte(buf[16:20]))
		h.net.forward(h, dst, buf[:k])
	}
}

func (n *Network) forward(from *Host, dst netip.Addr, p []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	to, ok := n.byIP[dst]
	if !ok {
		return
	}
	n.sent[[2]string{from.Name, to.Name}] += uint64(len(p))
	path := to.paths[from]
	if path == nil {
		path = &link.Path{}
		to.paths[from] = path
	}
	due, copies := n.links.Between(from.places(), to.places()).Schedule(path, n.rng, time.Now(), len(p))
	for i := range copies {
		if to.queue.Len() >= maxQueue {
			return
		}
		to.queue.Push(due[i], append([]byte(nil), p...))
	}
	select {
	case to.wake <- struct{}{}:
	default:
	}
}

func (h *Host) places() []string { return []string{h.DC, h.Name} }

// deliver writes packets to the host when they are due.
func (h *Host) deliver() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		h.net.mu.Lock()
		wait := time.Hour
		var due [][]byte
		for now := time.Now(); ; {
			next, ok := h.queue.Next()
			if !ok {
				break
			}
			if next.After(now) {
				wait = next.Sub(now)
				break
			}
			due = append(due, h.queue.Pop())
		}
		h.net.mu.Unlock()
		for _, p := range due {
			if _, err := h.tun.Write(p); errors.Is(err, os.ErrClosed) {
				return
			} // other errors: the device's queue is full, and the packet is lost as on a wire
		}
		if len(due) > 0 {
			continue
		}
		timer.Reset(wait)
		select {
		case <-h.wake:
		case <-timer.C:
		case <-h.closed:
			return
		}
	}
}

// openTUN makes a TUN device inside a namespace and returns its file, which keeps working from outside.
func openTUN(namespace string) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		// The thread enters the namespace and is never given back: it ends with this goroutine.
		runtime.LockOSThread()
		file, err := func() (*os.File, error) {
			ns, err := os.Open("/run/netns/" + namespace)
			if err != nil {
				return nil, err
			}
			defer func() { _ = ns.Close() }()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, fmt.Errorf("enter namespace %s: %w", namespace, err)
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil, fmt.Errorf("open /dev/net/tun: %w", err)
			}
			ifr, err := unix.NewIfreq(device)
			if err == nil {
				ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
				err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
			}
			if err != nil {
				_ = unix.Close(fd)
				return nil, fmt.Errorf("make TUN device: %w", err)
			}
			return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
		}()
		done <- result{file, err}
	}()
	r := <-done
	return r.file, r.err
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
