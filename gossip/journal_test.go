package gossip

import (
	"context"
	"errors"
	"testing"

	"ukai"
	"ukai/crdt"
)

// diary is a Journal that knows whether all that was put is durable.
type diary struct {
	forgetful
	durable bool
	err     error
}

func (d *diary) Put(_ context.Context, sync bool, _ ...KV) error {
	if d.err == nil {
		d.durable = sync
	}
	return d.err
}

func TestAFailedSyncIsMadeUpFor(t *testing.T) {
	m := bare(t, ukai.NodeID{1})
	d := &diary{}
	m.cfg.Journal = d
	value := "1"
	delta, err := m.catalog.SetSetting("a", &value, crdt.Stamp{Wall: 1, Node: m.id})
	must(t, err)
	m.changed(delta.Keys())
	must(t, m.flush(t.Context(), false))
	d.err = errors.New("disk on fire")
	if err := m.flush(t.Context(), true); !errors.Is(err, d.err) {
		t.Fatalf("flush: %v", err)
	}
	d.err = nil
	must(t, m.flush(t.Context(), true))
	if !d.durable {
		t.Error("what was written before is taken for durable after a sync that failed")
	}
}
