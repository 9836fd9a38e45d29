package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"ukai"
	"ukai/node/store"
	"ukai/node/wire"
)

// Keys of the store that belong to the node as a whole. The identity lives in the same database as the quorum records: a node that
// lost its promises must not be taken for the one that made them.
const (
	keyIdentity = "id"
	keyBoot     = "boot"
	keyLabels   = "labels" // as given at the last start
)

// identify returns the node's identity, made at its first start, and counts this start. Both are durable.
func identify(ctx context.Context, s store.Backend) (wire.Identity, uint64, error) {
	var id wire.Identity
	switch text, err := s.Get(keyIdentity); {
	case errors.Is(err, ukai.ErrNotFound):
		if id, err = wire.NewIdentity(); err != nil {
			return id, 0, err
		}
		if err := s.Put(ctx, true, store.KV{K: keyIdentity, V: id.Marshal()}); err != nil {
			return id, 0, fmt.Errorf("store the node's identity: %w", err)
		}
	case err != nil:
		return id, 0, err
	default:
		if id, err = wire.ParseIdentity(text); err != nil {
			return id, 0, err
		}
	}
	boot := uint64(1)
	switch b, err := s.Get(keyBoot); {
	case errors.Is(err, ukai.ErrNotFound):
	case err != nil:
		return id, 0, err
	case len(b) != 8:
		return id, 0, fmt.Errorf("boot counter of %d bytes: %w: want 8", len(b), ukai.ErrCorrupt)
	default:
		boot = binary.BigEndian.Uint64(b) + 1
	}
	if err := s.Put(ctx, true, store.KV{K: keyBoot, V: binary.BigEndian.AppendUint64(nil, boot)}); err != nil {
		return id, 0, fmt.Errorf("store the boot counter: %w", err)
	}
	return id, boot, nil
}
