package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"ukai"
)

// MemConfig says how a Mem behaves.
type MemConfig struct {
	// Capacity of the imagined disk in bytes. Default 1 PiB; only what is written takes memory.
	Capacity int64
	// ReserveBytes is what Config.ReserveBytes is. Default none.
	ReserveBytes int64
	// Fault is asked before each operation on the imagined disk; the error it returns is that of the disk: wrap
	// syscall.ENOSPC for a full one, anything else is a media error. It may block. Bringing the store up is not asked.
	Fault func(Op) error
	// Log is what Config.Log is.
	Log *slog.Logger
}

// Op is an operation on the imagined disk of a Mem.
type Op struct {
	Kind    OpKind
	Disk    ukai.DiskID    // zero for keys that belong to no replica
	Replica ukai.ReplicaID // zero likewise
	Off     int64          // bytes; of OpRead, OpWrite, OpPunch, OpSeek; of OpTruncate, the new size
	Bytes   int64          // of OpRead, OpWrite, OpPunch
	Key     string         // of OpPut and OpGet: the (first) key as the caller of Put gave it, "" for the store's own
}

// OpKind says what an Op does.
type OpKind uint8

// Kinds of operations.
const (
	OpRead OpKind = iota + 1
	OpWrite
	OpPunch // Zero or Discard
	OpSync  // of a replica's data
	OpSeek  // NextData, NextHole, and a write while space is short
	OpCreate
	OpTruncate // Resize or Shrink
	OpRemove
	OpGet
	OpPut      // a batch; for a replica's header or stamps, Disk and Replica say whose
	OpSyncKeys // of the database
	OpRename   // of a replica's files, in Adopt
)

// Mem is a Backend on an imagined disk, in a machine that can lose its power. It is the same store as Store with other
// ground below it, and costs memory only for what is written.
//
// Its own methods act on the store as it is up now. A node under test is better given Store(), which is dead after the
// next Crash, Restart or Close, as everything is that a process had open when it died.
type Mem struct {
	cfg  MemConfig
	disk memDisk

	turn chan struct{} // lock: held by whoever takes the store down or brings it up
	mu   sync.Mutex
	up   *Store
	past []*Store // their goroutines are joined by Close
}

var _ Backend = (*Mem)(nil)

// NewMem returns an empty store.
func NewMem(cfg MemConfig) *Mem {
	if cfg.Capacity == 0 {
		cfg.Capacity = 1 << 50
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Mem{cfg: cfg, turn: make(chan struct{}, 1)}
	m.disk = memDisk{capacity: cfg.Capacity, fault: cfg.Fault, live: map[string][]byte{}, durable: map[string][]byte{}, data: map[memFileKey]*memData{}}
	m.start()
	return m
}

// start brings the store up on what the disk holds.
func (m *Mem) start() {
	m.disk.mu.Lock()
	m.disk.life++
	at := memAccess{&m.disk, m.disk.life}
	boot := fmt.Sprint(m.disk.boot)
	m.disk.starting = true
	m.disk.mu.Unlock()
	reserve := m.cfg.ReserveBytes
	if reserve == 0 {
		reserve = -1
	}
	s, err := newStore(Config{ReserveBytes: reserve, BootID: boot, Log: m.cfg.Log}, memDB{at}, memFiles{at}, func() error { return nil })
	if err != nil {
		panic(err) // nothing fails while starting, and what the store wrote it can read
	}
	m.disk.mu.Lock()
	m.disk.starting = false
	m.disk.mu.Unlock()
	m.mu.Lock()
	m.up = s
	m.mu.Unlock()
}

// Store returns the store as it is up now.
func (m *Mem) Store() *Store {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up
}

// Crash cuts the power and starts the machine again: whatever was not synced is gone, and the incarnation is a new one.
func (m *Mem) Crash() { m.CrashKeeping(nil) }

// CrashKeeping cuts the power like Crash, but of what was not synced, each sector and each Put's batch survives or not
// as r decides.
func (m *Mem) CrashKeeping(r *rand.Rand) {
	m.turn <- struct{}{}
	defer func() { <-m.turn }()
	m.disk.cutPower(r)
	m.replace()
}

// Restart kills the process and starts it again: nothing is lost, and the incarnation is the same.
func (m *Mem) Restart() {
	m.turn <- struct{}{}
	defer func() { <-m.turn }()
	m.replace()
}

func (m *Mem) replace() {
	m.mu.Lock()
	m.past = append(m.past, m.up)
	m.mu.Unlock()
	m.start()
}

// Close implements Backend; Restart or Crash bring the store up again.
func (m *Mem) Close() error {
	m.turn <- struct{}{}
	defer func() { <-m.turn }()
	err := m.Store().Close()
	m.mu.Lock()
	past := m.past
	m.past = nil
	m.mu.Unlock()
	for _, s := range past {
		s.abandon()
	}
	return err
}

// Rot flips a bit of a byte of a replica's data as the device might: no one is told, and no power cut brings it back. It says whether anything
// is stored there.
func (m *Mem) Rot(disk ukai.DiskID, rid ukai.ReplicaID, off int64) bool {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	for key, data := range m.disk.data {
		if p := data.pages[off/memPageBytes]; key.replicaKey == (replicaKey{disk, rid}) && p != nil && p.live != nil {
			p.live[off%memPageBytes] ^= 0x10
			if p.durable != nil {
				p.durable[off%memPageBytes] ^= 0x10
			}
			return true
		}
	}
	return false
}

// Incarnation implements Backend.
func (m *Mem) Incarnation() ukai.Incarnation { return m.Store().Incarnation() }

// Get implements Backend.
func (m *Mem) Get(key string) ([]byte, error) { return m.Store().Get(key) }

// Put implements Backend.
func (m *Mem) Put(ctx context.Context, sync bool, kvs ...KV) error {
	return m.Store().Put(ctx, sync, kvs...)
}

// Scan implements Backend.
func (m *Mem) Scan(prefix string, f func(k string, v []byte) error) error {
	return m.Store().Scan(prefix, f)
}

// Space implements Backend.
func (m *Mem) Space() (Space, error) { return m.Store().Space() }

// Create implements Backend.
func (m *Mem) Create(ctx context.Context, disk ukai.DiskID, rid ukai.ReplicaID, cfg ReplicaConfig) error {
	return m.Store().Create(ctx, disk, rid, cfg)
}

// Adopt implements Backend.
func (m *Mem) Adopt(ctx context.Context, disk ukai.DiskID, from, to ukai.ReplicaID) error {
	return m.Store().Adopt(ctx, disk, from, to)
}

// OpenReplica implements Backend.
func (m *Mem) OpenReplica(disk ukai.DiskID, rid ukai.ReplicaID) (Replica, error) {
	return m.Store().OpenReplica(disk, rid)
}

// Replicas implements Backend.
func (m *Mem) Replicas() []ReplicaInfo { return m.Store().Replicas() }

// Remove implements Backend.
func (m *Mem) Remove(ctx context.Context, disk ukai.DiskID, rid ukai.ReplicaID) error {
	return m.Store().Remove(ctx, disk, rid)
}

// Orphans implements Backend.
func (m *Mem) Orphans() []string { return m.Store().Orphans() }

// memDisk is what survives: the imagined disk, and the memory of the machine before it.
type memDisk struct {
	capacity int64
	fault    func(Op) error

	mu       sync.Mutex // never held over fault
	life     int        // of the process; what an earlier one had open is dead
	boot     int
	starting bool

	live    map[string][]byte
	durable map[string][]byte
	pending [][]KV   // applied to live, not to durable
	sorted  []string // keys of live; nil if not known

	data map[memFileKey]*memData
	used int64 // bytes
}

type memFileKey struct {
	replicaKey
	layer uint16
}

// cutPower makes the disk hold what it had synced, and of the rest what r keeps.
func (d *memDisk) cutPower(r *rand.Rand) {
	keep := func() bool { return r != nil && r.IntN(2) == 0 }
	d.mu.Lock()
	defer d.mu.Unlock()
	d.boot++
	d.life++ // at once: no operation of the old life may come in between
	for _, kvs := range d.pending {
		if keep() {
			applyTo(d.durable, kvs)
		}
	}
	d.pending, d.sorted = nil, nil
	d.live = maps.Clone(d.durable)
	// In order, so that one seed keeps the same sectors each time.
	for _, k := range slices.SortedFunc(maps.Keys(d.data), func(a, b memFileKey) int {
		return strings.Compare(a.stampPrefix(a.layer), b.stampPrefix(b.layer))
	}) {
		d.used += d.data[k].revert(keep)
	}
}

func applyTo(m map[string][]byte, kvs []KV) {
	for _, kv := range kvs {
		if kv.V == nil {
			delete(m, kv.K)
		} else {
			m[kv.K] = kv.V
		}
	}
}

// memAccess is the disk as one life of the process sees it.
type memAccess struct {
	disk *memDisk
	life int
}

// do asks for a fault and then runs f with the disk locked, unless the life is over.
func (a memAccess) do(op Op, f func(d *memDisk) error) error {
	if a.disk.fault != nil && op.Kind != 0 {
		a.disk.mu.Lock()
		starting := a.disk.starting
		a.disk.mu.Unlock()
		if !starting {
			if err := a.disk.fault(op); err != nil {
				return err
			}
		}
	}
	a.disk.mu.Lock()
	defer a.disk.mu.Unlock()
	if a.disk.life != a.life {
		return fmt.Errorf("the process that had this open is gone: %w", ukai.ErrClosed)
	}
	return f(a.disk)
}

// memDB is the database on a memDisk.
type memDB struct{ memAccess }

// keyOp describes an operation on a key of the database.
func keyOp(kind OpKind, key string) Op {
	op := Op{Kind: kind}
	switch {
	case key[0] == spaceUser:
		op.Key = key[1:]
	case len(key) >= headerKeyLen:
		// Headers and stamps both begin with the replica's ids.
		if k, err := parseHeaderKey(string(spaceHeader) + key[1:headerKeyLen]); err == nil {
			op.Disk, op.Replica = k.disk, k.rid
		}
	}
	return op
}

func (m memDB) get(key string) (v []byte, err error) {
	err = m.do(keyOp(OpGet, key), func(d *memDisk) error {
		value, ok := d.live[key]
		if !ok {
			return ukai.ErrNotFound
		}
		v = append([]byte{}, value...)
		return nil
	})
	return v, err
}

func (m memDB) apply(kvs []KV) error {
	if len(kvs) == 0 {
		return nil
	}
	own := make([]KV, len(kvs))
	for i, kv := range kvs {
		own[i] = kv
		if kv.V != nil {
			own[i].V = append([]byte{}, kv.V...)
		}
	}
	return m.do(keyOp(OpPut, kvs[0].K), func(d *memDisk) error {
		applyTo(d.live, own)
		d.pending, d.sorted = append(d.pending, own), nil
		return nil
	})
}

func (m memDB) sync() error {
	return m.do(Op{Kind: OpSyncKeys}, func(d *memDisk) error {
		for _, kvs := range d.pending {
			applyTo(d.durable, kvs)
		}
		d.pending = nil
		return nil
	})
}

func (m memDB) scan(prefix string, f func(k string, v []byte) error) error {
	var kvs []KV
	err := m.do(keyOp(OpGet, prefix), func(d *memDisk) error {
		if d.sorted == nil {
			d.sorted = slices.Sorted(maps.Keys(d.live))
		}
		i, _ := slices.BinarySearch(d.sorted, prefix)
		for ; i < len(d.sorted) && strings.HasPrefix(d.sorted[i], prefix); i++ {
			kvs = append(kvs, KV{d.sorted[i], append([]byte{}, d.live[d.sorted[i]]...)})
		}
		return nil
	})
	for _, kv := range kvs {
		if err = f(kv.K, kv.V); err != nil {
			break
		}
	}
	return err
}

func (m memDB) close() error {
	err := m.do(Op{}, func(d *memDisk) error {
		// As when a process ends in good order: its database has written everything out.
		for _, kvs := range d.pending {
			applyTo(d.durable, kvs)
		}
		d.pending = nil
		return nil
	})
	if errors.Is(err, ukai.ErrClosed) {
		return nil
	}
	return err
}
