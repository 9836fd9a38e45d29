package gossip

import (
	"encoding/binary"
	"time"

	"ukai"
)

// memberlist tells nobody that it suspects a node. It does tell other nodes, though, exactly when it has come to that opinion or changed it
// again; so the packets it sends are looked through for its suspect and alive messages. What cannot be read is passed over:
// at worst a suspect node is shown as alive.

// Kinds of memberlist's messages and the encodings around them; they are its wire protocol and never change.
const (
	messageSuspect  = 3
	messageAlive    = 4
	messageCompound = 7
	messageCRC      = 12

	maxCompoundDepth = 2
)

// opinions calls f for each node that a packet of memberlist calls suspect or alive.
func opinions(b []byte, f func(node []byte, suspect bool)) { opinionsIn(b, 0, f) }

func opinionsIn(b []byte, depth int, f func(node []byte, suspect bool)) {
	if len(b) > 5 && b[0] == messageCRC {
		b = b[5:]
	}
	if len(b) < 2 {
		return
	}
	switch kind, body := b[0], b[1:]; kind {
	case messageSuspect, messageAlive:
		if node := nodeOf(body); node != nil {
			f(node, kind == messageSuspect)
		}
	case messageCompound:
		n := int(body[0])
		lengths := body[1:]
		if depth == maxCompoundDepth || len(lengths) < 2*n {
			return
		}
		parts := lengths[2*n:]
		for i := range n {
			size := int(binary.BigEndian.Uint16(lengths[2*i:]))
			if size > len(parts) {
				return
			}
			opinionsIn(parts[:size], depth+1, f)
			parts = parts[size:]
		}
	}
}

// nodeOf returns the value of "Node" in a MessagePack map with text keys and flat values, or nil.
func nodeOf(b []byte) []byte {
	n, b, ok := packHead(b, 0x80, 0x8f, 0xde)
	if !ok {
		return nil
	}
	for range n {
		var key, value []byte
		if key, b, ok = packText(b); !ok {
			return nil
		}
		if value, b, ok = packValue(b); !ok {
			return nil
		}
		if string(key) == "Node" {
			return value
		}
	}
	return nil
}

// packHead reads the size of a map, list or text that is either in the first byte, between low and high, or in two bytes after long.
func packHead(b []byte, low, high, long byte) (n int, rest []byte, ok bool) {
	switch {
	case len(b) >= 1 && b[0] >= low && b[0] <= high:
		return int(b[0] - low), b[1:], true
	case len(b) >= 3 && b[0] == long:
		return int(binary.BigEndian.Uint16(b[1:])), b[3:], true
	}
	return 0, nil, false
}

func packText(b []byte) (text, rest []byte, ok bool) {
	n, rest, ok := packHead(b, 0xa0, 0xbf, 0xda)
	if !ok && len(b) >= 2 && (b[0] == 0xd9 || b[0] == 0xc4) {
		n, rest, ok = int(b[1]), b[2:], true
	}
	if !ok || n > len(rest) {
		return nil, nil, false
	}
	return rest[:n], rest[n:], true
}

// packValue returns a text, or passes over a number or a list of numbers.
func packValue(b []byte) (text, rest []byte, ok bool) {
	if text, rest, ok = packText(b); ok {
		return text, rest, true
	}
	if n, rest, ok := packHead(b, 0x90, 0x9f, 0xdc); ok {
		for range n {
			if _, rest, ok = packValue(rest); !ok {
				return nil, nil, false
			}
		}
		return nil, rest, true
	}
	if len(b) == 0 {
		return nil, nil, false
	}
	size := 1
	switch c := b[0]; {
	case c <= 0x7f, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3:
	case c == 0xcc, c == 0xd0:
		size = 2
	case c == 0xcd, c == 0xd1:
		size = 3
	case c == 0xce, c == 0xd2, c == 0xca:
		size = 5
	case c == 0xcf, c == 0xd3, c == 0xcb:
		size = 9
	default:
		return nil, nil, false
	}
	if size > len(b) {
		return nil, nil, false
	}
	return nil, b[size:], true
}

// opinion notes that memberlist now has a node as suspect or as alive.
func (m *Mesh) opinion(node []byte, suspect bool) {
	var id ukai.NodeID
	if err := id.UnmarshalText(node); err != nil {
		return // parseNode refuses such members
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.members[id]; p != nil && p.alive && p.suspect != suspect {
		p.suspect, p.since = suspect, time.Now()
		m.wakeSubscribers()
	}
}
