package cell

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/crdt"
)

// node returns the i-th test node's id; ids sort like their numbers.
func node(i int) ukai.NodeID { return ukai.NodeID{0: byte(i)} }

func nodes(is ...int) []ukai.NodeID {
	ids := make([]ukai.NodeID, len(is))
	for k, i := range is {
		ids[k] = node(i)
	}
	return ids
}

var testDisk = ukai.DiskID{1}

// firstRecord returns the record of a new disk with replicas 1 and 2 on nodes 1 and 2.
func firstRecord(arbiters ...int) crdt.Record {
	return crdt.Record{
		Disk: testDisk, Arbiters: nodes(arbiters...), Version: 1, Size: 8 << 20, BlockSize: 4 << 20, MinSync: 1,
		Groups: []crdt.Group{{Members: []crdt.Member{{Replica: 1, Node: node(1)}, {Replica: 2, Node: node(2)}}}},
		Runs:   []crdt.Run{{Count: 2}},
	}
}

// mesh is a Sender: arbiters in memory that can be down, slow, or swallow replies. Every request and reply goes through
// its encoding, and every acceptor through Marshal, as in a real node.
type mesh struct {
	t testing.TB

	mu        sync.Mutex
	durable   map[string][]byte // acceptors by node and instance
	down      map[ukai.NodeID]error
	deaf      map[ukai.NodeID]bool // acts on ACCEPT but its reply is lost
	delay     map[ukai.NodeID]time.Duration
	count     map[Kind]int
	intercept func(to ukai.NodeID, req Request) error // called without the lock
}

func newMesh(t testing.TB) *mesh {
	t.Cleanup(settle)
	return &mesh{
		t: t, durable: map[string][]byte{}, down: map[ukai.NodeID]error{}, deaf: map[ukai.NodeID]bool{},
		delay: map[ukai.NodeID]time.Duration{}, count: map[Kind]int{},
	}
}

// settle lets requests that outlive their Propose end, in virtual time.
func settle() {
	time.Sleep(time.Minute)
	synctest.Wait()
}

func (m *mesh) Send(ctx context.Context, to ukai.NodeID, req Request) (Reply, error) {
	data, err := EncodeRequest(req)
	if err != nil {
		m.t.Errorf("proposer sent a bad request: %v", err)
		return Reply{}, err
	}
	if m.intercept != nil {
		if err := m.intercept(to, req); err != nil {
			return Reply{}, err
		}
	}
	m.mu.Lock()
	down, wait := m.down[to], m.delay[to]
	m.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return Reply{}, ukai.ErrTimeout
		}
	}
	if down != nil {
		return Reply{}, down
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	req, err = DecodeRequest(data)
	if err != nil {
		return Reply{}, err
	}
	m.count[req.Kind]++
	a := m.acceptor(to, req.Instance)
	rep, persist := a.Step(req)
	if persist {
		state, err := a.Marshal()
		if err != nil {
			m.t.Errorf("marshal acceptor: %v", err)
			return Reply{}, err
		}
		m.durable[key(to, req.Instance)] = state
	}
	if m.deaf[to] && req.Kind == Accept {
		return Reply{}, ukai.ErrTimeout
	}
	data, err = EncodeReply(rep)
	if err != nil {
		m.t.Errorf("acceptor made a bad reply: %v", err)
		return Reply{}, err
	}
	return DecodeReply(data)
}

func key(id ukai.NodeID, instance uint32) string { return fmt.Sprint(id, instance) }

func (m *mesh) acceptor(id ukai.NodeID, instance uint32) *Acceptor {
	data, ok := m.durable[key(id, instance)]
	if !ok {
		return NewAcceptor(id, testDisk, instance)
	}
	a, err := UnmarshalAcceptor(id, data)
	if err != nil {
		m.t.Fatalf("unmarshal acceptor: %v", err)
	}
	return a
}

func (m *mesh) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}
