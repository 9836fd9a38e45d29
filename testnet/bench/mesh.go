//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ukai/testnet/wan"
)

const (
	patience = 3 * time.Minute // for anything that has to come true
	wanPort  = 7946
)

// mesh is a running mesh of real processes: on loopback, or in network namespaces behind the WAN emulator.
type mesh struct {
	bin   string
	dir   string
	net   *wan.Network // nil: loopback
	nodes []*node
}

// spec describes a node.
type spec struct {
	name, dc string
	witness  bool
}

type node struct {
	spec
	mesh    *mesh
	base    string
	addr    string
	command func() *exec.Cmd
	cmd     *exec.Cmd
	exited  chan struct{}
	http    *http.Client
}

// startMesh starts one process per spec and waits until all see each other. port is the first one on loopback.
func startMesh(ctx context.Context, bin, dir string, network *wan.Network, port int, specs ...spec) (*mesh, error) {
	m := &mesh{bin: bin, dir: dir, net: network}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, bin, "mesh", "init", "--out", filepath.Join(dir, "mesh.key")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mesh init: %w: %s", err, out)
	}
	for i, s := range specs {
		if err := m.start(ctx, s, port+i); err != nil {
			return nil, errors.Join(err, m.close())
		}
	}
	for _, n := range m.nodes {
		if err := await(ctx, fmt.Sprintf("%d nodes alive as %s sees it", len(specs), n.name), func() error { return n.sees(ctx, len(specs)) }); err != nil {
			return nil, errors.Join(err, m.close())
		}
	}
	return m, nil
}

func (m *mesh) start(ctx context.Context, s spec, port int) error {
	n := &node{spec: s, mesh: m, base: filepath.Join(m.dir, s.name), addr: "127.0.0.1:" + strconv.Itoa(port)}
	if err := os.MkdirAll(n.base, 0o700); err != nil {
		return err
	}
	command := exec.Command
	if m.net != nil {
		host, err := m.net.AddHost(s.name, s.dc)
		if err != nil {
			return err
		}
		n.addr = net.JoinHostPort(host.Addr.String(), strconv.Itoa(wanPort))
		command = func(name string, args ...string) *exec.Cmd {
			return host.Command(context.WithoutCancel(ctx), name, args...)
		}
	}
	args := []string{"start", "--name", s.name, "--label", "dc=" + s.dc, "--listen", n.addr, "--data", filepath.Join(n.base, "data"),
		"--mount", n.mount(), "--socket", n.socket(), "--mesh-key-file", filepath.Join(m.dir, "mesh.key"), "--pprof"}
	if s.witness {
		args = append(args, "--witness")
	}
	if len(m.nodes) > 0 {
		args = append(args, "--seed", m.nodes[0].addr)
	}
	n.command = func() *exec.Cmd { return command(m.bin, args...) }
	n.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.socket())
	}}}
	if err := n.run(); err != nil {
		return err
	}
	m.nodes = append(m.nodes, n)
	return await(ctx, "the admin socket of "+s.name, func() error { return n.sees(ctx, 1) })
}

// run starts the node's process.
func (n *node) run() error {
	log, err := os.OpenFile(filepath.Join(n.base, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd, exited := n.command(), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, log.Close())
	}
	n.cmd, n.exited = cmd, exited
	go func() { _ = cmd.Wait(); _ = log.Close(); close(exited) }()
	return nil
}

// kill ends the process as a crash does. Its mount is gone when kill returns.
func (n *node) kill() error {
	if err := n.cmd.Process.Kill(); err != nil {
		return err
	}
	<-n.exited
	_ = syscall.Unmount(n.mount(), syscall.MNT_DETACH)
	return nil
}

func (n *node) socket() string          { return filepath.Join(n.base, "socket") }
func (n *node) mount() string           { return filepath.Join(n.base, "disks") }
func (n *node) file(disk string) string { return filepath.Join(n.mount(), disk) }

// get asks the admin API.
func (n *node) get(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("GET %s at %s: %s", path, n.name, resp.Status)
	}
	return resp.Body, nil
}

// sees returns nil if the node sees at least count nodes alive.
func (n *node) sees(ctx context.Context, count int) error {
	select {
	case <-n.exited:
		return fmt.Errorf("%s has ended; see %s/log", n.name, n.base)
	default:
	}
	body, err := n.get(ctx, "/v1/status")
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	var status struct{ Nodes []struct{ State string } }
	if err := json.NewDecoder(body).Decode(&status); err != nil {
		return err
	}
	alive := 0
	for _, other := range status.Nodes {
		if other.State == "alive" {
			alive++
		}
	}
	if alive < count {
		return fmt.Errorf("%d of %d nodes are alive", alive, count)
	}
	return nil
}

// counter returns a counter of the node, 0 if it cannot be had.
func (n *node) counter(ctx context.Context, name string) uint64 {
	body, err := n.get(ctx, "/metrics")
	if err != nil {
		return 0
	}
	defer func() { _ = body.Close() }()
	for lines := bufio.NewScanner(body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0
			}
			return uint64(f)
		}
	}
	return 0
}

// profile writes a CPU profile of the next seconds.
func (n *node) profile(ctx context.Context, seconds int, path string) error {
	body, err := n.get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds))
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, body)
	return errors.Join(err, out.Close())
}

// create makes a disk and waits until it is a file at the node.
func (m *mesh) create(ctx context.Context, at *node, disk string, size int64, rule ...string) error {
	args := append([]string{"--socket", m.nodes[0].socket(), "disk", "create", disk, strconv.FormatInt(size, 10)}, rule...)
	if out, err := exec.CommandContext(ctx, m.bin, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("disk create: %w: %s", err, out)
	}
	return await(ctx, at.file(disk), func() error { _, err := os.Stat(at.file(disk)); return err })
}

func (m *mesh) pids() []int {
	var pids []int
	for _, n := range m.nodes {
		pids = append(pids, n.cmd.Process.Pid)
	}
	return pids
}

// wire adds up what all nodes have sent by QUIC.
func (m *mesh) wire() (sum uint64) {
	for _, n := range m.nodes {
		sum += n.counter(context.Background(), "ukai_wire_quic_sent_bytes_total")
	}
	return sum
}

func (m *mesh) close() error {
	var errs []error
	for _, n := range m.nodes {
		_ = n.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, n := range m.nodes {
		select {
		case <-n.exited:
		case <-time.After(patience):
			errs = append(errs, fmt.Errorf("%s did not stop; see %s/log", n.name, n.base), n.cmd.Process.Kill())
			<-n.exited
		}
		_ = syscall.Unmount(n.mount(), syscall.MNT_DETACH) // only there after a kill
	}
	if m.net != nil {
		errs = append(errs, m.net.Close())
	}
	return errors.Join(errs...)
}

// await waits until the condition holds.
func await(ctx context.Context, what string, condition func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not come true: %w", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
