package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"ukai"
)

// An error crosses the wire as its code, in the header's status, and a detail: the text it had on the peer and what
// the typed errors of package ukai carry.
//
//	1  flags: 1 fenced, 2 held, 4 node
//	8  epoch                       if fenced
//	16 node, 1+n name              if held
//	16 node, 1+n name              if node
//	   text, to the end
const (
	maxDetail     = 4 << 10
	maxDetailText = 2 << 10

	detailFenced = 1
	detailHeld   = 2
	detailNode   = 4
)

// remoteError is an error as a peer told it: its text, and what it is.
type remoteError struct {
	text string
	is   []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.is }

// statusOf returns the code by which err crosses the wire. An expired context of the peer's is a timeout here.
func statusOf(err error) uint16 {
	code := ukai.Code(err)
	if code == ukai.CodeUnknown && errors.Is(err, context.DeadlineExceeded) {
		code = ukai.Code(ukai.ErrTimeout)
	}
	return code
}

// appendDetail encodes what of err does not fit into the status.
func appendDetail(b []byte, err error) []byte {
	at := len(b)
	b = append(b, 0)
	if fenced, ok := errors.AsType[*ukai.FencedError](err); ok {
		b[at] |= detailFenced
		b = binary.BigEndian.AppendUint64(b, uint64(fenced.Epoch))
	}
	if held, ok := errors.AsType[*ukai.HeldError](err); ok {
		b[at] |= detailHeld
		b = appendNode(b, held.Node, held.Name)
	}
	if node, ok := errors.AsType[*ukai.NodeError](err); ok {
		b[at] |= detailNode
		b = appendNode(b, node.Node, node.Name)
	}
	text := err.Error()
	if len(text) > maxDetailText {
		text = strings.ToValidUTF8(text[:maxDetailText-3], "") + "..."
	}
	return append(b, text...)
}

func appendNode(b []byte, id ukai.NodeID, name string) []byte {
	name = name[:min(len(name), ukai.MaxNameLen)]
	b = append(b, id[:]...)
	b = append(b, byte(len(name)))
	return append(b, name...)
}

// parseDetail rebuilds the peer's error. errors.Is holds for its sentinel, and errors.As for the typed errors, as
// they held on the peer. The second result says what is wrong with the detail itself.
func parseDetail(status uint16, b []byte) (remote, bad error) {
	d := detailReader{rest: b}
	flags := d.bytes(1)
	if d.short || flags[0]&^(detailFenced|detailHeld|detailNode) != 0 {
		return nil, fmt.Errorf("detail of status %d: %w: % .8x", status, ukai.ErrInvalid, b)
	}
	e := &remoteError{}
	if s := ukai.Sentinel(status); s != nil {
		e.is = append(e.is, s)
	}
	if flags[0]&detailFenced != 0 {
		if epoch := d.bytes(8); !d.short {
			e.is = append(e.is, &ukai.FencedError{Epoch: ukai.Epoch(binary.BigEndian.Uint64(epoch))})
		}
	}
	if flags[0]&detailHeld != 0 {
		id, name := d.node()
		e.is = append(e.is, &ukai.HeldError{Node: id, Name: name})
	}
	if flags[0]&detailNode != 0 {
		id, name := d.node()
		e.is = append(e.is, &ukai.NodeError{Node: id, Name: name, Err: sentinelOr(status)})
	}
	if d.short || !utf8.Valid(d.rest) {
		return nil, fmt.Errorf("detail of status %d, %d bytes: %w: cut short or not text", status, len(b), ukai.ErrInvalid)
	}
	e.text = string(d.rest)
	if e.text == "" {
		e.text = sentinelOr(status).Error()
	}
	return e, nil
}

func sentinelOr(status uint16) error {
	if s := ukai.Sentinel(status); s != nil {
		return s
	}
	return fmt.Errorf("error with status %d", status)
}

type detailReader struct {
	rest  []byte
	short bool
}

func (d *detailReader) bytes(n int) []byte {
	if d.short || len(d.rest) < n {
		d.short = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *detailReader) node() (id ukai.NodeID, name string) {
	copy(id[:], d.bytes(len(id)))
	if n := d.bytes(1); !d.short {
		if n[0] > ukai.MaxNameLen {
			d.short = true
			return id, ""
		}
		name = string(d.bytes(int(n[0])))
	}
	return id, name
}
