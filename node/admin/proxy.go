package admin

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"ukai"
)

// NodeHeader names the node that is to answer a request: its name or its id. Absent: the node that the client is connected to.
const NodeHeader = "Ukai-Node"

// proxy hands requests to other nodes.
type proxy struct {
	transport *http.Transport
	reverse   *httputil.ReverseProxy
}

// newProxy returns a proxy that reaches a node through dial.
func newProxy(dial func(ctx context.Context, node string) (net.Conn, error)) *proxy {
	p := &proxy{}
	p.transport = &http.Transport{
		// Connections are kept per host, so the host is the node's name.
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return dial(ctx, nodeOf(host))
		},
		MaxIdleConns:          16,
		MaxConnsPerHost:       maxStreams,
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: requestTimeout,
		DisableCompression:    true,
	}
	p.reverse = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: hostOf(r.In.Header.Get(NodeHeader))})
			r.Out.Header.Del(NodeHeader) // the other node answers itself: requests cannot go round in circles
			r.Out.Host = "node"
		},
		Transport:     p.transport,
		FlushInterval: -1, // events go out as they come
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if kindOf(err) == internal {
				err = fmt.Errorf("%w: %w", ukai.ErrUnreachable, err)
			}
			writeProblem(w, fmt.Errorf("ask node %s: %w", nodeOf(r.URL.Host), err))
		},
	}
	return p
}

// hostOf makes a host of a node's name, in hexadecimal: a name may hold what a host may not.
func hostOf(node string) string { return hex.EncodeToString([]byte(node)) }

// nodeOf returns the name of which hostOf made host.
func nodeOf(host string) string {
	name, err := hex.DecodeString(host)
	if err != nil {
		return host // not made by hostOf: will name no node
	}
	return string(name)
}

// to has the named node answer r.
func (p *proxy) to(name string, w http.ResponseWriter, r *http.Request) {
	if err := ukai.CheckName("node", name); err != nil {
		writeProblem(w, err)
		return
	}
	p.reverse.ServeHTTP(w, r)
}

// close ends connections that are not in use.
func (p *proxy) close() { p.transport.CloseIdleConnections() }
