package main

import (
	"net"
	"sync"
)

// peerListener gives a listener whose Accept ends only with its node a Close that ends Accept, as http.Server.Shutdown needs it:
// admin requests end before the node does.
type peerListener struct {
	net.Listener
	conns chan accepted
	done  chan struct{}
	once  sync.Once
}

type accepted struct {
	conn net.Conn
	err  error
}

// listenPeers takes over l. The goroutine ends with l's node.
func listenPeers(l net.Listener) *peerListener {
	p := &peerListener{Listener: l, conns: make(chan accepted), done: make(chan struct{})}
	go p.run()
	return p
}

func (p *peerListener) run() {
	for {
		conn, err := p.Listener.Accept()
		select {
		case p.conns <- accepted{conn, err}:
			if err != nil {
				return
			}
		case <-p.done:
			if err == nil {
				_ = conn.Close() // came too late
			}
			return
		}
	}
}

// Accept waits for the next peer.
func (p *peerListener) Accept() (net.Conn, error) {
	select {
	case a := <-p.conns:
		return a.conn, a.err
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (p *peerListener) Close() error {
	p.once.Do(func() { close(p.done) })
	return p.Listener.Close()
}
