//go:build linux

package guest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
)

// Guest is a running virtual machine, or one that waits for a migration to it.
type Guest struct {
	cmd    *exec.Cmd
	keys   io.WriteCloser
	exited chan struct{}
	err    error // once it has exited

	mu      sync.Mutex
	console bytes.Buffer
}

// Start starts the guest.
func (c Config) Start(ctx context.Context) (*Guest, error) {
	g := &Guest{cmd: c.Command(ctx), exited: make(chan struct{})}
	g.cmd.Stdout, g.cmd.Stderr = g, g
	keys, err := g.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	g.keys = keys
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { g.err = g.cmd.Wait(); close(g.exited) }()
	return g, nil
}

// Write takes in what the guest says on its console.
func (g *Guest) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.console.Write(p)
}

// Console returns what the guest has said so far.
func (g *Guest) Console() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.console.String()
}

// Rounds returns how many rounds the guest has finished, as its console tells.
func (g *Guest) Rounds() (n int) {
	for line := range strings.Lines(g.Console()) {
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "guest: round %d of", &n); err != nil {
			continue
		}
	}
	return n
}

// Stop tells the guest to end after this round.
func (g *Guest) Stop() error {
	_, err := io.WriteString(g.keys, "stop\n")
	return err
}

// Kill ends the virtual machine at once.
func (g *Guest) Kill() {
	_ = g.cmd.Process.Kill() // it may have ended
	<-g.exited
}

// Exited is closed when the virtual machine has ended.
func (g *Guest) Exited() <-chan struct{} { return g.exited }

// Wait waits until the virtual machine ends.
func (g *Guest) Wait() error {
	<-g.exited
	return g.err
}
