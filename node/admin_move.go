package node

import (
	"context"
	"errors"
	"fmt"
	"net"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
)

// Takeover implements admin.Backend.
func (n *Node) Takeover(ctx context.Context, disk string, t admin.Takeover) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	fail := func(err error) (admin.Disk, error) {
		return admin.Disk{}, fmt.Errorf("take over disk %s: %w", d.Name.Value, err)
	}
	if err := n.letGo(ctx, d); err != nil {
		return fail(fmt.Errorf("%w, where you are: stop the program that has it open", err))
	}
	rec, err := n.cells.Read(ctx, d.ID)
	switch {
	case err != nil:
		return fail(err)
	case rec.Phase != crdt.PhaseActive && rec.Phase != crdt.PhaseRecovering:
		return n.Disk(ctx, d.ID.String()) // nobody to depose
	}
	silent := func(err error) bool {
		return errors.Is(err, ukai.ErrUnreachable) || errors.Is(err, ukai.ErrTimeout) || errors.Is(err, ukai.ErrClosed)
	}
	held, err := n.attach(ctx, d, t.Fenced, func(err error) bool { return t.Fenced || silent(err) })
	if errors.Is(err, ukai.ErrHeld) {
		err = fmt.Errorf("%w, which answers, and a program there has it open; stop it there, or if that machine is certainly off or cut off say --fenced", err)
	}
	if err != nil {
		return fail(err)
	}
	if err := held(ctx); err != nil {
		return fail(err)
	}
	n.events.add(admin.Event{Level: admin.Warn, Kind: "disk-taken-over", Disk: d.Name.Value, Text: fmt.Sprintf("disk %s was taken over from %s", d.Name.Value, n.people().ref(rec.Holder))})
	return n.Disk(ctx, d.ID.String())
}

// Handover implements admin.Backend.
func (n *Node) Handover(ctx context.Context, disk string, h admin.Handover) (admin.Disk, error) {
	d, err := n.find(disk, false)
	if err != nil {
		return admin.Disk{}, err
	}
	to, err := n.nodeID(h.To)
	if err != nil {
		return admin.Disk{}, err
	}
	if to != n.id {
		return n.handoverAt(ctx, to, d, h)
	}
	held, err := n.attach(ctx, d, false, func(error) bool { return h.Force })
	if errors.Is(err, ukai.ErrHeld) {
		err = fmt.Errorf("%w; stop the program that has it open there, or say --force: its I/O then fails", err)
	}
	if err == nil {
		err = held(ctx)
	}
	if err == nil {
		// Held for the time being: the next program that opens it, here or elsewhere, gets it at once.
		_, err = n.host.Disk(d.ID, d.Name.Value).ReadAt(ctx, make([]byte, ukai.SectorSize), 0)
	}
	if err != nil {
		return admin.Disk{}, fmt.Errorf("hand over disk %s to %s: %w", d.Name.Value, n.cfg.Name, err)
	}
	n.events.add(admin.Event{Level: admin.Fine, Kind: "disk-handed-over", Disk: d.Name.Value, Text: fmt.Sprintf("disk %s was handed over to %s", d.Name.Value, n.cfg.Name)})
	return n.Disk(ctx, d.ID.String())
}

// handoverAt lets the node that is to hold the disk do it.
func (n *Node) handoverAt(ctx context.Context, to ukai.NodeID, d *crdt.Disk, h admin.Handover) (admin.Disk, error) {
	client := admin.NewClient(admin.ClientConfig{Dial: func(ctx context.Context) (net.Conn, error) { return n.DialAdmin(ctx, to.String()) }})
	defer client.Close()
	there, err := client.Handover(ctx, d.ID.String(), admin.Handover{To: to.String(), Force: h.Force})
	if err != nil {
		return admin.Disk{}, err
	}
	if _, err := n.cells.Read(ctx, d.ID); err != nil { // learn what was committed there
		return there, err
	}
	return n.Disk(ctx, d.ID.String())
}

// attach makes this node the holder of a disk. When the holder before it does not let go, it is deposed if depose says so of the error;
// fenced says that it is certainly off. What attach returns lets go again.
func (n *Node) attach(ctx context.Context, d *crdt.Disk, fenced bool, depose func(error) bool) (letGo func(context.Context) error, err error) {
	v := n.host.Disk(d.ID, d.Name.Value)
	if err = v.Attach(ctx); errors.Is(err, ukai.ErrHeld) && depose(err) {
		err = v.Takeover(ctx, fenced)
	}
	return v.Detach, err
}

// nodeID finds a node by its name or id.
func (n *Node) nodeID(name string) (id ukai.NodeID, err error) {
	n.mesh.View(func(c *crdt.Catalog) {
		var found *crdt.Node
		if found, err = nodeByName(c, name); err == nil {
			id = found.ID
		}
	})
	return id, err
}
