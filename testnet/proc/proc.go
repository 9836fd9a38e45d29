//go:build linux

// Package proc runs a mesh of real ukai-node processes for tests: each in a network namespace of its own behind the WAN
// emulator, with a real FUSE mount and a data directory on disk. A test kills, freezes, restarts and cuts off nodes, and talks to them
// as an administrator does, by the command line.
package proc

import (
	"bytes"
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
	"sync"
	"syscall"
	"testing"
	"time"

	"ukai/testnet/wan"
)

// Patience bounds how long Await waits for a condition on a busy machine.
const Patience = 3 * time.Minute

// Spec describes one node.
type Spec struct {
	Name    string
	DC      string
	Witness bool
	Data    string // directory for its data; empty: one of the test's own
	DiskMiB int    // its data are on a file system of this size of its own, see Volume; 0: they are not
}

// Specs reads "t1:tokyo t2:tokyo o1:osaka w1:fukuoka:witness".
func Specs(text string) []Spec {
	var specs []Spec
	for _, word := range strings.Fields(text) {
		parts := strings.Split(word, ":")
		specs = append(specs, Spec{Name: parts[0], DC: parts[1], Witness: len(parts) > 2 && parts[2] == "witness"})
	}
	return specs
}

// Mesh is a running mesh.
type Mesh struct {
	T     testing.TB
	Net   *wan.Network
	Nodes map[string]*Node
	dir   string
	bin   string
	key   string
	seed  string
}

// Node is one process of the mesh.
type Node struct {
	Spec
	Host   *wan.Host
	Socket string
	Mount  string
	Log    string
	Volume *Volume // nil unless Spec.DiskMiB is set
	mesh   *Mesh
	cmd    *exec.Cmd
	exited chan struct{}
}

const port = "7946"

// builds are the binaries built by this test process, by their linker flags.
var builds sync.Map

// binary builds ukai-node once per test process and variant.
func binary(variant, ldflags string) (string, error) {
	build, _ := builds.LoadOrStore(variant, sync.OnceValues(func() (string, error) {
		root, err := Root()
		if err != nil {
			return "", err
		}
		path := filepath.Join(root, "bin", variant)
		cmd := exec.Command("go", "build", "-ldflags", ldflags, "-o", path, "./cmd/ukai-node")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build ukai-node: %w: %s", err, out)
		}
		return path, nil
	}))
	return build.(func() (string, error))()
}

// Root returns the directory of the repository.
func Root() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// Supported says why real meshes cannot run here, or nil.
func Supported() error {
	if err := wan.Supported(); err != nil {
		return err
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		return fmt.Errorf("no FUSE: %w", err)
	} else if err := f.Close(); err != nil {
		return err
	}
	return nil
}

// Start runs a mesh of the given nodes ("t1:tokyo t2:tokyo w1:fukuoka:witness") and waits until they all see each other. The test is skipped where
// root, FUSE or network namespaces are missing.
func Start(t testing.TB, specs string) *Mesh {
	t.Helper()
	return StartNodes(t, Specs(specs))
}

// StartNodes is Start for nodes that need more said about them.
func StartNodes(t testing.TB, specs []Spec) *Mesh {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes")
	}
	if err := Supported(); err != nil {
		t.Skip(err)
	}
	bin, err := binary("ukai-node.test", "")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "ukai-mesh-")
	if err != nil {
		t.Fatal(err)
	}
	m := &Mesh{T: t, Net: wan.New(fmt.Sprintf("uk%d", os.Getpid()%100000), 1), Nodes: map[string]*Node{}, dir: dir, bin: bin, key: filepath.Join(dir, "mesh.key")}
	t.Cleanup(m.close)
	if out, err := exec.Command(bin, "mesh", "init", "--out", m.key).CombinedOutput(); err != nil {
		t.Fatalf("mesh init: %v: %s", err, out)
	}
	for _, s := range specs {
		m.Add(s)
	}
	m.AwaitAlive(len(m.Nodes))
	return m
}

// Add starts one more node.
func (m *Mesh) Add(s Spec) *Node {
	m.T.Helper()
	host, err := m.Net.AddHost(s.Name, s.DC)
	if err != nil {
		m.T.Fatal(err)
	}
	base := filepath.Join(m.dir, s.Name)
	n := &Node{Spec: s, Host: host, Socket: filepath.Join(base, "socket"), Mount: filepath.Join(base, "disks"), Log: filepath.Join(base, "log"), mesh: m}
	if n.Data == "" {
		n.Data = filepath.Join(base, "data")
	}
	if err := os.MkdirAll(base, 0o700); err != nil {
		m.T.Fatal(err)
	}
	if n.DiskMiB > 0 {
		if n.Volume, err = newVolume(base, n.Data, n.DiskMiB); err != nil {
			m.T.Fatal(err)
		}
	}
	m.Nodes[s.Name] = n
	n.Start()
	if m.seed == "" {
		m.seed = host.Addr.String() + ":" + port
	}
	return n
}

// Start runs the node's process; it must not be running.
func (n *Node) Start() {
	n.mesh.T.Helper()
	args := []string{"start", "--name", n.Name, "--label", "dc=" + n.DC, "--listen", n.Host.Addr.String() + ":" + port,
		"--data", n.Data, "--mount", n.Mount, "--socket", n.Socket, "--mesh-key-file", n.mesh.key, "--log-level", "debug"}
	if n.Witness {
		args = append(args, "--witness")
	}
	if n.mesh.seed != "" {
		args = append(args, "--seed", n.mesh.seed)
	}
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.mesh.T.Fatal(err)
	}
	bin := n.mesh.bin
	if n.Volume != nil {
		args = append(args, "--reserve", fmt.Sprint(Reserve))
		if bin, err = binary("ukai-node.reboots.test", "-X ukai/node/store.bootIDFile="+bootIDFile); err != nil {
			n.mesh.T.Fatal(err)
		}
	}
	cmd := n.Host.Command(context.Background(), bin, args...)
	cmd.Dir = filepath.Dir(n.Log)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		n.mesh.T.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); _ = log.Close(); close(exited) }()
	n.cmd, n.exited = cmd, exited
	n.mesh.Await("the admin socket of "+n.Name, func() error {
		select {
		case <-exited:
			n.mesh.T.Fatalf("%s ended: %s", n.Name, n.Tail(20))
		default:
		}
		_, err := n.Run("status", "-o", "json")
		return err
	})
}

// Signal sends a signal to the process.
func (n *Node) Signal(s syscall.Signal) {
	n.mesh.T.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.mesh.T.Fatalf("signal %v to %s: %v", s, n.Name, err)
	}
}

// PID returns the process id of the daemon.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Kill ends the process as a crash does, and waits for it.
func (n *Node) Kill() {
	n.mesh.T.Helper()
	n.Signal(syscall.SIGKILL)
	<-n.exited
}

// Stop ends the process in an orderly way, and waits for it.
func (n *Node) Stop() {
	n.mesh.T.Helper()
	n.Signal(syscall.SIGTERM)
	select {
	case <-n.exited:
	case <-time.After(Patience):
		n.mesh.T.Fatalf("%s does not stop: %s", n.Name, n.Tail(20))
	}
}

// Running says whether the process lives.
func (n *Node) Running() bool {
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// Path returns the file of a disk in the node's mount.
func (n *Node) Path(disk string) string { return filepath.Join(n.Mount, disk) }

// Run runs a ukai-node command at this node and returns what it printed.
func (n *Node) Run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.mesh.bin, append([]string{"--socket", n.Socket}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("ukai-node %s at %s: %w: %s", strings.Join(args, " "), n.Name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Must is Run that ends the test on an error.
func (n *Node) Must(args ...string) string {
	n.mesh.T.Helper()
	out, err := n.Run(args...)
	if err != nil {
		n.mesh.T.Fatal(err)
	}
	return out
}

// JSON runs a command with -o json and decodes what it printed.
func (n *Node) JSON(into any, args ...string) error {
	out, err := n.Run(append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// Metric returns a metric without labels, as the node tells it to Prometheus.
func (n *Node) Metric(name string) (float64, error) {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.Socket)
	}}}
	answer, err := client.Get("http://node/metrics")
	if err != nil {
		return 0, err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key == name {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s tells no %s", n.Name, name)
}

// Tail returns the last lines of the node's log.
func (n *Node) Tail(lines int) string {
	data, err := os.ReadFile(n.Log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Await waits until the condition holds.
func (m *Mesh) Await(what string, condition func() error) {
	m.T.Helper()
	var err error
	for deadline := time.Now().Add(Patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = condition(); err == nil {
			return
		}
	}
	m.T.Fatalf("%s did not come true in %v: %v", what, Patience, err)
}

// AwaitAlive waits until every running node sees count nodes alive.
func (m *Mesh) AwaitAlive(count int) {
	m.T.Helper()
	for _, n := range m.Nodes {
		if !n.Running() {
			continue
		}
		m.Await(fmt.Sprintf("%d nodes alive as %s sees it", count, n.Name), func() error {
			var status struct {
				Nodes []struct{ Name, State string }
			}
			if err := n.JSON(&status, "status"); err != nil {
				return err
			}
			alive := 0
			for _, other := range status.Nodes {
				if other.State == "alive" {
					alive++
				}
			}
			if alive != count {
				return fmt.Errorf("%s sees %d alive: %+v", n.Name, alive, status.Nodes)
			}
			return nil
		})
	}
}

// AwaitDisk waits until every running node that mounts disks shows the disk's file.
func (m *Mesh) AwaitDisk(disk string) {
	m.T.Helper()
	for _, n := range m.Nodes {
		if n.Running() {
			m.Await("file "+disk+" at "+n.Name, func() error { _, err := os.Stat(n.Path(disk)); return err })
		}
	}
}

func (m *Mesh) close() {
	for _, n := range m.Nodes {
		if n.cmd == nil {
			continue
		}
		_ = n.cmd.Process.Signal(syscall.SIGCONT)
		_ = n.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, n := range m.Nodes {
		if n.cmd == nil {
			continue
		}
		select {
		case <-n.exited:
		case <-time.After(20 * time.Second):
			m.T.Errorf("%s did not stop on SIGTERM:\n%s", n.Name, n.Tail(10))
			_ = n.cmd.Process.Kill()
			<-n.exited
		}
		if err := syscall.Unmount(n.Mount, syscall.MNT_DETACH); err == nil {
			m.T.Logf("%s had left its mount behind", n.Name)
		} else if !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
			m.T.Errorf("unmount %s: %v", n.Mount, err)
		}
	}
	for _, n := range m.Nodes {
		if n.Volume != nil {
			if err := n.Volume.close(); err != nil {
				m.T.Error(err)
			}
		}
	}
	if m.T.Failed() {
		for _, n := range m.Nodes {
			m.T.Logf("the end of %s's log:\n%s", n.Name, n.Tail(60))
		}
	}
	if err := m.Net.Close(); err != nil {
		m.T.Error(err)
	}
	if err := os.RemoveAll(m.dir); err != nil {
		m.T.Error(err)
	}
}
