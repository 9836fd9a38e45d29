package wire

import (
	"encoding/binary"
	"net"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// groReads is how many reads of the socket one system call fills, as with QUIC's own reading.
	groReads = 8
	// groBytes is the most the kernel hands over in one read: datagrams of one sender and one size, one behind the other.
	groBytes = 64 << 10
	// groControl has room for what comes with a read: the size of its datagrams, where they were sent to, and ECN bits.
	groControl = 256
)

// groConn reads datagrams that the kernel keeps together (UDP_GRO), and gives them to QUIC one by one. What a sender hands over in
// one system call then passes the receiver's network stack once, instead of once per datagram, which is most of what receiving
// costs. QUIC reads from one goroutine only.
type groConn struct {
	*net.UDPConn
	batch *ipv4.PacketConn
	read  []ipv4.Message // as the kernel filled them
	rest  []ipv4.Message // of read: what has not been given out
	taken int            // bytes of rest[0] that have been
	size  int            // of each datagram in rest[0] but the last, which may be shorter
}

// coalesced makes conn read that way if it is a socket whose kernel can; else it returns conn.
func coalesced(conn net.PacketConn) net.PacketConn {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return conn
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return conn
	}
	var refused error
	if err := raw.Control(func(fd uintptr) { refused = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) }); err != nil || refused != nil {
		return conn // Linux before 5.0
	}
	c := &groConn{UDPConn: udp, batch: ipv4.NewPacketConn(udp), read: make([]ipv4.Message, groReads)}
	for i := range c.read {
		c.read[i].Buffers, c.read[i].OOB = [][]byte{make([]byte, groBytes)}, make([]byte, groControl)
	}
	return c
}

// ReadBatch is what QUIC reads with: it waits for a datagram, fills ms with one each, and returns how many.
func (c *groConn) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	if len(c.rest) == 0 {
		n, err := c.batch.ReadBatch(c.read, flags)
		if n <= 0 || err != nil {
			return 0, err
		}
		c.rest = c.read[:n]
		c.begin()
	}
	for i := range ms {
		from, to := &c.rest[0], &ms[i]
		end := min(c.taken+c.size, from.N)
		to.N = copy(to.Buffers[0], from.Buffers[0][c.taken:end]) // cut like a read into a buffer that is too short
		to.NN = copy(to.OOB, from.OOB[:from.NN])
		to.Addr, to.Flags = from.Addr, from.Flags
		if c.taken = end; c.taken < from.N {
			continue
		}
		if c.rest = c.rest[1:]; len(c.rest) == 0 {
			return i + 1, nil
		}
		c.begin()
	}
	return len(ms), nil
}

// begin looks at the next read: what the kernel says of the size of its datagrams is taken out of the control data, so that these
// are no longer than QUIC expects.
func (c *groConn) begin() {
	m := &c.rest[0]
	c.taken, c.size = 0, max(m.N, 1)
	kept := m.OOB[:0]
	for rest := m.OOB[:m.NN]; len(rest) > 0; {
		h, body, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break // cut off by the kernel, and of no use
		}
		if h.Level != unix.SOL_UDP || h.Type != unix.UDP_GRO {
			kept = append(kept, rest[:len(rest)-len(next)]...)
		} else if len(body) >= 4 {
			c.size = max(int(binary.NativeEndian.Uint32(body)), 1)
		}
		rest = next
	}
	m.NN = len(kept)
}
