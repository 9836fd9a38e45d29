//go:build !linux

package wire

import "net"

// coalesced is only for Linux.
func coalesced(conn net.PacketConn) net.PacketConn { return conn }
