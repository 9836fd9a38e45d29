package main

import (
	"context"
	"fmt"

	"ukai"
	"ukai/fusefs"
	"ukai/node"
	"ukai/node/volume"
)

// disks shows a node's disks to fusefs.
type disks struct{ node *node.Node }

var _ fusefs.Disks = disks{}

// List implements fusefs.Disks, as do the methods below.
func (d disks) List(context.Context) ([]fusefs.Info, error) {
	live := d.node.LiveDisks()
	list := make([]fusefs.Info, 0, len(live))
	for _, i := range live {
		list = append(list, info(i))
	}
	return list, nil
}

// Stat tells of one disk.
func (d disks) Stat(_ context.Context, name string) (fusefs.Info, error) {
	i, err := d.node.StatDisk(name)
	return info(i), err
}

// Open returns a handle of a disk; opening has no effect on it.
func (d disks) Open(ctx context.Context, name string) (fusefs.Disk, error) {
	if i, err := d.node.StatDisk(name); err == nil && i.ReadOnly {
		p, err := d.node.OpenPast(ctx, name)
		if err != nil {
			return nil, err
		}
		return past{p}, nil
	}
	v, err := d.node.OpenDisk(name)
	if err != nil {
		return nil, err
	}
	return handle{v, d.node}, nil
}

// Space sums up the mesh.
func (d disks) Space(context.Context) (fusefs.Space, error) {
	total, free, available := d.node.Capacity()
	return fusefs.Space{Total: total, Free: free, Avail: available}, nil
}

func info(i node.DiskInfo) fusefs.Info {
	return fusefs.Info{Name: i.Name, ID: i.ID, Size: i.Size, ModTime: i.Created, Allocated: i.Allocated, ReadOnly: i.ReadOnly}
}

// handle is an open file's disk.
type handle struct {
	*volume.Disk
	node *node.Node
}

var _ fusefs.Elsewhere = handle{}

// Facts are what attributes of the file say.
func (h handle) Facts(context.Context) map[string]string { return h.node.Facts(h.ID()) }

// HeldElsewhere says whether another node has the disk attached.
func (h handle) HeldElsewhere(ctx context.Context) bool { return h.node.HeldElsewhere(ctx, h.ID()) }

// Close has nothing to end: a handle that is not attached holds nothing.
func (h handle) Close() error { return nil }

// past is an open file of a history that its disk does not go on with.
type past struct{ *node.Past }

var _ fusefs.Disk = past{}

func (p past) readOnly() error {
	return fmt.Errorf("%s: %w: it is a history that was not picked, and can only be read", p.Name(), ukai.ErrPermission)
}

// Facts are what attributes of the file say.
func (p past) Facts(context.Context) map[string]string { return p.Past.Facts() }

// WriteAt is refused, as is all that follows up to Attach.
func (p past) WriteAt(context.Context, []byte, int64) (int, error) { return 0, p.readOnly() }

// Discard is refused.
func (p past) Discard(context.Context, int64, int64) error { return p.readOnly() }

// Zero is refused.
func (p past) Zero(context.Context, int64, int64) error { return p.readOnly() }

// Resize is refused.
func (p past) Resize(context.Context, int64) error { return p.readOnly() }

// Attach is refused.
func (p past) Attach(context.Context) error { return p.readOnly() }

// Detach has nothing to end.
func (p past) Detach(context.Context) error { return nil }

// Flush has nothing to make durable.
func (p past) Flush(context.Context) error { return nil }

// Close has nothing to end.
func (p past) Close() error { return nil }
