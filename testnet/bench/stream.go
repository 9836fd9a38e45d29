//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"

	"ukai"
	"ukai/node/wire"
)

// chunk is how much is written to the stream at a time: as much as the largest write of a guest.
const chunk = ukai.MaxIO

// openWire opens an endpoint that reaches no node by its id.
func openWire(key wire.MeshKey, address string) (*wire.Endpoint, error) {
	udp, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp", udp)
	if err != nil {
		return nil, err
	}
	identity, err := wire.NewIdentity()
	if err != nil {
		return nil, err
	}
	return wire.Open(wire.Config{Conn: conn, Keys: []wire.MeshKey{key}, Identity: identity, Addr: func(ukai.NodeID) (net.Addr, bool) { return nil, false }})
}

// serveSink takes what comes on one raw stream after another, and answers each with one byte at its end.
func serveSink(ctx context.Context, address, keyText string) error {
	key, err := wire.ParseMeshKey(keyText)
	if err != nil {
		return err
	}
	e, err := openWire(key, address)
	if err != nil {
		return err
	}
	for {
		stream, _, err := e.AcceptStream(ctx, wire.ProtoAdmin)
		if err != nil {
			return errors.Join(err, e.Close())
		}
		buf := make([]byte, chunk)
		for err == nil {
			_, err = stream.Read(buf)
		}
		if errors.Is(err, io.EOF) {
			_, err = stream.Write(buf[:1])
		}
		if err = errors.Join(err, stream.Close()); err != nil {
			return errors.Join(err, e.Close())
		}
	}
}

// rawStream measures what one QUIC stream carries from one process to another, in MB/s: the bound of one connection.
func rawStream(ctx context.Context, port int, d time.Duration) (float64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	key := wire.NewMeshKey()
	address := "127.0.0.1:" + strconv.Itoa(port)
	sink := exec.Command(self, serveStreamSink, address, key.String())
	sink.Stderr = os.Stderr
	if err := sink.Start(); err != nil {
		return 0, err
	}
	defer func() { _ = sink.Process.Kill(); _ = sink.Wait() }() // it has nothing to save
	e, err := openWire(key, "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = e.Close() }() // nothing is measured any more
	to, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return 0, err
	}
	var stream net.Conn
	if err := await(ctx, "the stream", func() error { stream, err = e.DialStream(ctx, to, wire.ProtoAdmin); return err }); err != nil {
		return 0, err
	}
	buf := make([]byte, chunk)
	began, sent := time.Now(), 0
	for time.Since(began) < d {
		n, err := stream.Write(buf)
		if sent += n; err != nil {
			return 0, err
		}
	}
	if err := stream.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(stream, buf[:1]); err != nil {
		return 0, fmt.Errorf("the end of the stream: %w", err)
	}
	return float64(sent) / time.Since(began).Seconds() / 1e6, stream.Close()
}
