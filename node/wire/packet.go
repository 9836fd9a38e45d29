package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/crypto/chacha20poly1305"

	"ukai"
)

// A sealed packet is
//
//	1  zero     tells it from QUIC, whose packets begin with 0x40 or more
//	1  version  packetVersion
//	4  key id
//	16 sender   random, chosen when the endpoint was opened
//	8  counter  of the sender, from 1
//	   payload, XChaCha20-Poly1305; the nonce is sender and counter, all before it is authenticated
//
// sender and counter never repeat together, so neither does the nonce.
const (
	packetVersion  = 1
	packetHeader   = 1 + 1 + len(keyID{}) + chacha20poly1305.NonceSizeX
	packetOverhead = packetHeader + chacha20poly1305.Overhead

	// MaxPacket is the most that WritePacket takes. It makes 1,446 bytes of UDP.
	MaxPacket = 1400

	// maxQueuedPackets bounds opened packets that ReadPacket has not taken; more are dropped, as networks do.
	maxQueuedPackets = 512
	// maxSenders bounds the senders whose counters are remembered; the one not heard for longest is forgotten.
	maxSenders = 4096
	// replayWindow is how many packets of one sender may overtake another one.
	replayWindow = 2048
)

type senderID [16]byte

// Reasons for which a packet is refused.
var (
	errNotSealed = errors.New("not a packet of this protocol")
	errOtherMesh = errors.New("sealed with another mesh key")
	errReplayed  = errors.New("replayed or far too late")
)

type packet struct {
	payload []byte
	from    net.Addr
}

// WritePacket seals b and sends it to addr. Like any datagram it may be lost, repeated or overtaken; a repeated one
// is not delivered. b holds at most MaxPacket bytes.
func (e *Endpoint) WritePacket(b []byte, addr net.Addr) error {
	if len(b) > MaxPacket {
		return fmt.Errorf("packet of %d bytes: %w: at most %d", len(b), ukai.ErrInvalid, MaxPacket)
	}
	to, err := e.resolved(addr)
	if err != nil {
		return err
	}
	if e.ctx.Err() != nil {
		return errClosing
	}
	f := e.pool.get(len(b) + packetOverhead)
	defer e.pool.put(f)
	sealed := e.ring.Load().seal(f.b[:0], e.sender, e.sent.Add(1), b)
	if _, err := e.transport.WriteTo(sealed, to); err != nil {
		return fmt.Errorf("send packet to %v: %w: %w", addr, ukai.ErrUnreachable, err)
	}
	e.counts.packetsSent.Add(1)
	return nil
}

// ReadPacket returns the next packet that was sealed with a mesh key. b is the caller's.
func (e *Endpoint) ReadPacket(ctx context.Context) (b []byte, from net.Addr, err error) {
	select {
	case p := <-e.packets:
		return p.payload, p.from, nil
	case <-ctx.Done():
		return nil, nil, contextError(ctx)
	case <-e.ctx.Done():
		return nil, nil, errClosing
	}
}

// seal appends the sealed packet to dst.
func (r *keyring) seal(dst []byte, sender senderID, counter uint64, payload []byte) []byte {
	key := r.keys[0]
	dst = append(dst, 0, packetVersion)
	dst = append(dst, key.id[:]...)
	dst = append(dst, sender[:]...)
	dst = binary.BigEndian.AppendUint64(dst, counter)
	return key.packet.Seal(dst, dst[packetHeader-chacha20poly1305.NonceSizeX:], payload, dst[:packetHeader])
}

// open returns what was sealed. It reads nothing but b and changes nothing.
func (r *keyring) open(b []byte) (payload []byte, sender senderID, counter uint64, err error) {
	if len(b) < packetOverhead || len(b) > MaxPacket+packetOverhead || b[0] != 0 || b[1] != packetVersion {
		return nil, sender, 0, errNotSealed
	}
	id := keyID(b[2:])
	nonce := b[packetHeader-chacha20poly1305.NonceSizeX : packetHeader]
	for _, key := range r.keys {
		if key.id != id {
			continue
		}
		payload, err = key.packet.Open(nil, nonce, b[packetHeader:], b[:packetHeader])
		if err != nil {
			return nil, sender, 0, errNotSealed
		}
		return payload, senderID(nonce), binary.BigEndian.Uint64(nonce[len(senderID{}):]), nil
	}
	return nil, sender, 0, errOtherMesh
}

// receivePackets opens what arrives beside QUIC until the endpoint closes.
func (e *Endpoint) receivePackets() {
	seen := newReplayFilter(maxSenders)
	buf := make([]byte, MaxPacket+packetOverhead+1)
	for {
		n, from, err := e.transport.ReadNonQUICPacket(e.ctx, buf)
		if err != nil {
			return
		}
		payload, sender, counter, err := e.ring.Load().open(buf[:n])
		switch {
		case errors.Is(err, errOtherMesh):
			e.refuse(&e.counts.packetsOtherKey, from, "packet", err)
			continue
		case err != nil:
			e.refuse(&e.counts.packetsGarbage, from, "packet", err)
			continue
		case !seen.fresh(sender, counter):
			e.refuse(&e.counts.packetsReplayed, from, "packet", errReplayed)
			continue
		}
		e.counts.packetsReceived.Add(1)
		select {
		case e.packets <- packet{payload, from}:
		default:
			e.counts.packetsDropped.Add(1)
		}
	}
}

// replayFilter lets each packet through once. It needs no clock: a sender is one life of one endpoint, under a random
// name, and counts its packets. What it cannot know is what was said before it was made, or by senders it has
// forgotten: such a packet, recorded and sent again, comes through once more. Gossip is idempotent and bears that.
type replayFilter struct {
	max     int
	clock   uint64 // counts packets let through
	senders map[senderID]*window
}

// window remembers which of the newest replayWindow counters of a sender have been seen.
type window struct {
	heard  uint64 // replayFilter.clock when it was last used
	newest uint64
	bits   [replayWindow / 64]uint64 // bit of counter c is c mod replayWindow
}

func newReplayFilter(maxSenders int) *replayFilter {
	return &replayFilter{max: maxSenders, senders: make(map[senderID]*window)}
}

func (f *replayFilter) fresh(sender senderID, counter uint64) bool {
	w := f.senders[sender]
	if w == nil {
		if len(f.senders) >= f.max {
			f.forget()
		}
		w = &window{}
		f.senders[sender] = w
	}
	if !w.take(counter) {
		return false
	}
	f.clock++
	w.heard = f.clock
	return true
}

// forget drops the sender that was not heard for longest.
func (f *replayFilter) forget() {
	var oldest senderID
	heard := ^uint64(0)
	for id, w := range f.senders {
		if w.heard < heard {
			oldest, heard = id, w.heard
		}
	}
	delete(f.senders, oldest)
}

// take marks counter as seen; false if it was seen before or is too old to know.
func (w *window) take(counter uint64) bool {
	if counter == 0 || w.newest >= replayWindow && counter <= w.newest-replayWindow {
		return false
	}
	if counter > w.newest {
		if counter-w.newest >= replayWindow {
			w.bits = [replayWindow / 64]uint64{}
		} else {
			for c := w.newest + 1; c < counter; c++ {
				w.bits[c%replayWindow/64] &^= 1 << (c % 64)
			}
		}
		w.newest = counter
		w.bits[counter%replayWindow/64] |= 1 << (counter % 64)
		return true
	}
	word, bit := &w.bits[counter%replayWindow/64], uint64(1)<<(counter%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

// resolved returns addr in the form that the socket takes.
func (e *Endpoint) resolved(addr net.Addr) (net.Addr, error) {
	if addr == nil {
		return nil, fmt.Errorf("address: %w: none given", ukai.ErrInvalid)
	}
	if _, ok := addr.(*net.UDPAddr); ok || !e.udp {
		return addr, nil
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return nil, fmt.Errorf("address %v: %w: want an IP address and a port", addr, ukai.ErrInvalid)
	}
	return net.UDPAddrFromAddrPort(ap), nil
}
