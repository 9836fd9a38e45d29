package wire

import (
	"bytes"
	"net"
	"testing"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

func batchOf(n int) []ipv4.Message {
	ms := make([]ipv4.Message, n)
	for i := range ms {
		ms[i].Buffers, ms[i].OOB = [][]byte{make([]byte, 1452)}, make([]byte, 128)
	}
	return ms
}

func TestDatagramsThatTheKernelKeepsTogetherComeOneByOne(t *testing.T) {
	for _, network := range []string{"udp4", "udp"} {
		address := &net.UDPAddr{} // dual stack, where there is IPv6
		if network == "udp4" {
			address.IP = net.IPv4(127, 0, 0, 1)
		}
		to, err := net.ListenUDP(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		reader, ok := coalesced(to).(*groConn)
		if !ok {
			t.Skip("this kernel has no UDP_GRO")
		}
		raw, err := to.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			// As QUIC asks for it; errors mean that the socket is of the other family.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}); err != nil {
			t.Fatal(err)
		}
		from, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		target := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: to.LocalAddr().(*net.UDPAddr).Port}

		// One call with 11 datagrams of 1000 bytes and one of 300, then two that go alone, one of them empty.
		var want [][]byte
		all := make([]byte, 11*1000+300)
		for i := range all {
			all[i] = byte(i / 7)
		}
		for rest := all; len(rest) > 0; rest = rest[min(1000, len(rest)):] {
			want = append(want, rest[:min(1000, len(rest))])
		}
		segment := make([]byte, unix.CmsgSpace(2))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&segment[0]))
		h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
		segment[unix.CmsgLen(0)], segment[unix.CmsgLen(0)+1] = byte(1000&0xff), byte(1000>>8)
		if _, _, err := from.WriteMsgUDP(all, segment, target); err != nil {
			t.Skipf("this kernel does not segment: %v", err)
		}
		for _, alone := range [][]byte{{}, []byte("alone")} {
			want = append(want, alone)
			if _, err := from.WriteToUDP(alone, target); err != nil {
				t.Fatal(err)
			}
		}

		for ms := batchOf(5); len(want) > 0; {
			n, err := reader.ReadBatch(ms, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range ms[:n] {
				if got := m.Buffers[0][:m.N]; len(want) == 0 || !bytes.Equal(got, want[0]) {
					t.Fatalf("%s: got a datagram of %d bytes, %d are still to come, the next one of %d", network, len(got), len(want), len(want[0]))
				}
				want = want[1:]
				if a := m.Addr.(*net.UDPAddr); a.Port != from.LocalAddr().(*net.UDPAddr).Port {
					t.Errorf("%s: sender %v", network, a)
				}
				found := false
				for data := m.OOB[:m.NN]; len(data) > 0; {
					h, _, next, err := unix.ParseOneSocketControlMessage(data)
					if err != nil {
						t.Fatal(err)
					}
					found = found || h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS
					if h.Level == unix.SOL_UDP {
						t.Error("QUIC is shown the size of the datagrams")
					}
					data = next
				}
				if !found {
					t.Errorf("%s: the ECN bits are lost", network)
				}
			}
		}
	}
}
