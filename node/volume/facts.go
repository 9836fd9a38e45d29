package volume

import (
	"context"
	"fmt"

	"ukai"
	"ukai/crdt"
	"ukai/node/wire"
)

// Held returns what this node says of a disk that it holds; false if it does not hold it.
func (h *Host) Held(id ukai.DiskID) (Status, bool) {
	h.mu.Lock()
	d := h.disks[id]
	h.mu.Unlock()
	if d == nil || d.holding.Load() == nil {
		return Status{}, false
	}
	s := d.Status()
	return s, s.Here
}

// Yield lets go of the disk if this node holds it and nobody here writes it. Errors match ukai.ErrHeld if somebody does, and
// ukai.ErrNotAttached if this node does not hold it.
func (d *Disk) Yield(ctx context.Context) error {
	if d.holding.Load() == nil {
		return fmt.Errorf("disk %s: %w", d.Name(), ukai.ErrNotAttached)
	}
	return d.yield(ctx)
}

// Allocated returns the space that a disk's replicas on this node take, in bytes, as far as they are open.
func (rs *Replicas) Allocated(disk ukai.DiskID) map[ukai.ReplicaID]int64 {
	all := map[ukai.ReplicaID]int64{}
	for key, h := range *rs.open.Load() {
		if key.disk == disk {
			all[key.replica] = h.data.AllocatedBytes()
		}
	}
	return all
}

// CreateReplica returns the request that makes an empty replica of a disk on another node.
func CreateReplica(rec *crdt.Record, replica ukai.ReplicaID) *wire.Message {
	return &wire.Message{
		Kind: wire.KindCreateReplica, Disk: rec.Disk, Replica: replica,
		Payload: encode(createRequest{Size: rec.Size, BlockSize: rec.BlockSize}),
	}
}
