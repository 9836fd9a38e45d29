package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"ukai"
)

// DefaultReserve is how much of the file system a Store leaves free unless told otherwise.
const DefaultReserve = 1 << 30

// Config says where a Store is and how it behaves.
type Config struct {
	// Dir is the data directory; it is made if it does not exist. One process at a time can have it.
	Dir string
	// ReserveBytes of the file system stay free: below, replicas take no new allocations (ukai.ErrNoSpace). Default
	// DefaultReserve; negative means none.
	ReserveBytes int64
	// BootID names the present life of this machine's memory. Default: the kernel's boot id.
	BootID string
	// Log gets what an operator should know. Default: nowhere.
	Log *slog.Logger
}

// Store is a Backend in a directory. See the package comment for what is where.
type Store struct {
	keys        *keeper
	files       files
	space       *spaceGauge
	log         *slog.Logger
	incarnation ukai.Incarnation
	orphans     []string
	release     func() error // gives back the directory

	closing chan struct{} // lock: held by Close
	closed  bool          // under closing
	ending  atomic.Bool   // no replica may be opened any more

	mu       sync.Mutex
	replicas map[replicaKey]*entry
}

// entry is a replica the store knows of.
type entry struct {
	turn chan struct{} // lock: held by Create, OpenReplica, Remove and Close of this replica

	mu     sync.Mutex
	header header
	err    error    // why the header cannot be read
	open   *replica // nil if closed
	gone   bool     // removed, or never came to be
}

var _ Backend = (*Store)(nil)

// bootIDFile is the kernel's boot id, another after each reboot. Tests that cut the power of a process have it replaced by the linker.
var bootIDFile = "/proc/sys/kernel/random/boot_id"

// Open opens the store in cfg.Dir, makes it if there is none, and finishes what a crash interrupted. It fails with
// ukai.ErrLocked if another process has the directory and with ukai.ErrVersion if a newer release wrote it.
func Open(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.BootID == "" {
		id, err := os.ReadFile(bootIDFile)
		if err != nil {
			return nil, fmt.Errorf("kernel's boot id: %w: it is needed to tell a restart of the node from a reboot: mount /proc", err)
		}
		cfg.BootID = strings.TrimSpace(string(id))
	}
	dir, err := openDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	files := dirFiles{dir.replicas()}
	if _, free, err := files.space(); err == nil && free < openFree {
		return nil, errors.Join(fmt.Errorf("data directory %s: %w: %d MiB free, the database needs %d MiB to be opened: free space there",
			dir.path, ukai.ErrNoSpace, free>>20, int64(openFree)>>20), dir.release())
	}
	db, err := openBadger(dir.db(), cfg.Log)
	if err != nil {
		return nil, errors.Join(err, dir.release())
	}
	s, err := newStore(cfg, db, files, dir.release)
	if err != nil {
		return nil, errors.Join(err, db.close(), dir.release())
	}
	return s, nil
}

// newStore makes a Store of its parts and brings it up.
func newStore(cfg Config, db database, f files, release func() error) (*Store, error) {
	switch {
	case cfg.ReserveBytes == 0:
		cfg.ReserveBytes = DefaultReserve
	case cfg.ReserveBytes < 0:
		cfg.ReserveBytes = 0
	}
	s := &Store{
		files: f, log: cfg.Log, space: newSpaceGauge(f, cfg.ReserveBytes, cfg.Log), release: release,
		closing: make(chan struct{}, 1), replicas: make(map[replicaKey]*entry),
	}
	s.keys = newKeeper(db, s.space)
	if err := s.identify(cfg.BootID); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

// identify computes the incarnation from the machine's boot and the store's own id.
func (s *Store) identify(boot string) error {
	id, err := s.keys.get(storeIDKey)
	if errors.Is(err, ukai.ErrNotFound) {
		id = make([]byte, 16)
		_, _ = rand.Read(id) // never fails: it ends the program instead
		err = s.keys.put(context.Background(), true, true, []KV{{storeIDKey, id}})
	}
	if err != nil {
		return err
	}
	sum := sha256.Sum256(append([]byte(boot+"\x00"), id...))
	copy(s.incarnation[:], sum[:])
	return nil
}

// load reads all headers, finishes interrupted creations and removals, and looks for files nobody knows.
func (s *Store) load() error {
	var unfinished []replicaKey
	err := s.keys.scan(string(spaceHeader), func(key string, v []byte) error {
		k, err := parseHeaderKey(key)
		if err != nil {
			s.log.Error("database holds a key that is not understood", "err", err)
			return nil
		}
		e := newEntry()
		if e.header, e.err = decodeHeader(key, v); e.err != nil {
			s.log.Error("replica cannot be used", "disk", k.disk, "replica", k.rid, "err", e.err)
		}
		if e.header.State > StateRetired {
			unfinished = append(unfinished, k)
		}
		s.replicas[k] = e
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range unfinished {
		if e := s.replicas[k]; e.header.State == stateAdopting {
			if err := s.finishAdopt(context.Background(), k, e); err != nil {
				s.log.Error("a replica cannot be made of what another one had: this is tried again at the next start", "disk", k.disk, "replica", k.rid, "err", err)
			}
			continue
		}
		s.log.Info("removing a replica whose creation or removal was interrupted", "disk", k.disk, "replica", k.rid)
		if err := s.erase(context.Background(), k); err != nil {
			// It stays unfinished, and its space taken; the other replicas are none the worse for it.
			s.log.Error("a replica cannot be removed: this is tried again at the next start", "disk", k.disk, "replica", k.rid, "err", err)
			continue
		}
		delete(s.replicas, k)
	}
	s.orphans, err = s.files.strays(func(k replicaKey) bool { return s.replicas[k] != nil })
	if err != nil {
		return mediaError("list "+s.files.root(), err)
	}
	for _, path := range s.orphans {
		s.log.Warn("file that belongs to no known replica: left alone; delete it if it is not needed", "path", path)
	}
	return nil
}

func newEntry() *entry { return &entry{turn: make(chan struct{}, 1)} }

// Incarnation implements Backend.
func (s *Store) Incarnation() ukai.Incarnation { return s.incarnation }

// Orphans implements Backend.
func (s *Store) Orphans() []string { return slices.Clone(s.orphans) }

// Get implements Backend.
func (s *Store) Get(key string) ([]byte, error) {
	v, err := s.keys.get(string(spaceUser) + key)
	if err != nil {
		return nil, fmt.Errorf("get key %q: %w", clip([]byte(key)), err)
	}
	return v, nil
}

// Put implements Backend.
func (s *Store) Put(ctx context.Context, sync bool, kvs ...KV) error {
	if err := checkBatch(kvs); err != nil {
		return err
	}
	own := make([]KV, len(kvs))
	for i, kv := range kvs {
		own[i] = KV{string(spaceUser) + kv.K, kv.V}
	}
	return s.keys.put(ctx, sync, false, own)
}

// Scan implements Backend.
func (s *Store) Scan(prefix string, f func(k string, v []byte) error) error {
	return s.keys.scan(string(spaceUser)+prefix, func(k string, v []byte) error { return f(k[1:], v) })
}

// Space implements Backend.
func (s *Store) Space() (Space, error) {
	total, free, err := s.files.space()
	if err != nil {
		return Space{}, mediaError("free space of "+s.files.root(), err)
	}
	return Space{Total: total, Free: free, Reserve: s.space.reserve}, nil
}

// Create implements Backend.
func (s *Store) Create(ctx context.Context, disk ukai.DiskID, rid ukai.ReplicaID, cfg ReplicaConfig) error {
	k := replicaKey{disk, rid}
	if disk.IsZero() || rid == 0 {
		return fmt.Errorf("create %v: %w: the zero id names nothing", k, ukai.ErrInvalid)
	}
	if err := errors.Join(ukai.CheckDiskSize(cfg.Size), ukai.CheckBlockSize(cfg.BlockSize)); err != nil {
		return fmt.Errorf("create %v: %w", k, err)
	}
	e := newEntry()
	e.turn <- struct{}{} // nobody else has it yet
	defer func() { <-e.turn }()
	s.mu.Lock()
	if s.replicas[k] != nil {
		s.mu.Unlock()
		return fmt.Errorf("create %v: %w", k, ukai.ErrExists)
	}
	s.replicas[k] = e
	s.mu.Unlock()

	h := header{Size: cfg.Size, BlockSize: cfg.BlockSize, State: stateCreating}
	err := s.create(ctx, k, h, e)
	if err != nil {
		s.forget(k, e)
		return fmt.Errorf("create %v: %w", k, err)
	}
	return nil
}

// create writes the header, then the file, then the header again, so that a crash in between leaves nothing unknown.
func (s *Store) create(ctx context.Context, k replicaKey, h header, e *entry) error {
	if err := s.space.allow(int64(h.BlockSize)); err != nil { // else not even one block could be written
		return err
	}
	// Data that nobody knows of is never touched, and what follows would remove it after a crash.
	if there, err := s.files.exists(k); err != nil {
		return mediaError(s.files.path(k, 0), err)
	} else if there {
		return fmt.Errorf("%s: %w: it was left by something else: move it away", s.files.path(k, 0), ukai.ErrExists)
	}
	if err := s.putHeader(ctx, k, h, true, false); err != nil {
		return err
	}
	err := s.files.create(k, 0, h.Size)
	if err != nil {
		err = mediaError(s.files.path(k, 0), err)
	} else {
		h.State = StateNew
		// From here on the caller's ctx no longer decides: the replica must be wholly there or not at all.
		err = s.putHeader(context.WithoutCancel(ctx), k, h, true, false)
	}
	if err != nil {
		if undo := s.erase(context.WithoutCancel(ctx), k); undo != nil {
			s.log.Warn("what is left of a replica that could not be created stays until the next start", "replica", k.String(), "err", undo)
		}
		return err
	}
	e.mu.Lock()
	e.header = h
	e.mu.Unlock()
	return nil
}

func (s *Store) putHeader(ctx context.Context, k replicaKey, h header, sync, force bool) error {
	v, err := encodeHeader(h)
	if err != nil {
		return err
	}
	return s.keys.put(ctx, sync, force, []KV{{k.headerKey(), v}})
}

// erase removes everything there is of a replica, in an order that can be repeated after a crash.
func (s *Store) erase(ctx context.Context, k replicaKey) error {
	if err := s.files.remove(k); err != nil {
		return mediaError("remove "+s.files.path(k, 0), err)
	}
	if err := s.keys.deleteAll(ctx, k.stampsPrefix()); err != nil {
		return err
	}
	return s.keys.put(ctx, true, true, []KV{{K: k.headerKey()}})
}

func (s *Store) forget(k replicaKey, e *entry) {
	e.mu.Lock()
	e.gone = true
	e.mu.Unlock()
	s.mu.Lock()
	delete(s.replicas, k)
	s.mu.Unlock()
}

// take returns a replica's entry with its turn taken; the caller gives it back.
func (s *Store) take(ctx context.Context, k replicaKey) (*entry, error) {
	s.mu.Lock()
	e := s.replicas[k]
	s.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("%v: %w", k, ukai.ErrNotFound)
	}
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	e.mu.Lock()
	gone := e.gone
	e.mu.Unlock()
	if gone {
		<-e.turn
		return nil, fmt.Errorf("%v: %w", k, ukai.ErrNotFound)
	}
	return e, nil
}

// OpenReplica implements Backend.
func (s *Store) OpenReplica(disk ukai.DiskID, rid ukai.ReplicaID) (Replica, error) {
	k := replicaKey{disk, rid}
	e, err := s.take(context.Background(), k)
	if err != nil {
		return nil, fmt.Errorf("open %w", err)
	}
	defer func() { <-e.turn }()
	e.mu.Lock()
	h, headerErr, open := e.header, e.err, e.open
	e.mu.Unlock()
	switch {
	case headerErr != nil:
		return nil, fmt.Errorf("open %v: %w", k, headerErr)
	case h.State > StateRetired:
		return nil, fmt.Errorf("open %v: %w: it is being made or removed", k, ukai.ErrNotFound)
	case open != nil:
		return nil, fmt.Errorf("open %v: %w: it is open already", k, ukai.ErrLocked)
	case h.Broken != "":
		return nil, fmt.Errorf("open %v: %w: broken since: %s: remove it; its disk's other replicas have the data", k, ukai.ErrMedia, h.Broken)
	}
	r, err := openReplica(s, k, e, h)
	if err != nil {
		return nil, fmt.Errorf("open %v: %w", k, err)
	}
	e.mu.Lock()
	e.open = r
	e.mu.Unlock()
	if s.ending.Load() { // Close may not have seen it
		return nil, errors.Join(errStoreClosed(), r.end())
	}
	return r, nil
}

// Replicas implements Backend.
func (s *Store) Replicas() []ReplicaInfo {
	s.mu.Lock()
	infos := make([]ReplicaInfo, 0, len(s.replicas))
	for k, e := range s.replicas {
		e.mu.Lock()
		h := e.header
		infos = append(infos, ReplicaInfo{
			Disk: k.disk, Replica: k.rid, Size: h.Size, BlockSize: h.BlockSize, Header: h.public(),
			Open: e.open != nil, Broken: h.Broken, Err: e.err,
		})
		e.mu.Unlock()
	}
	s.mu.Unlock()
	// Not those that are being created or removed.
	infos = slices.DeleteFunc(infos, func(i ReplicaInfo) bool { return i.Header.State > StateRetired || i.Err == nil && i.Size == 0 })
	slices.SortFunc(infos, func(a, b ReplicaInfo) int {
		return cmp.Or(slices.Compare(a.Disk[:], b.Disk[:]), cmp.Compare(a.Replica, b.Replica))
	})
	return infos
}

// Remove implements Backend.
func (s *Store) Remove(ctx context.Context, disk ukai.DiskID, rid ukai.ReplicaID) error {
	k := replicaKey{disk, rid}
	e, err := s.take(ctx, k)
	if err != nil {
		return fmt.Errorf("remove %w", err)
	}
	defer func() { <-e.turn }()
	e.mu.Lock()
	h, open := e.header, e.open != nil
	e.mu.Unlock()
	if open {
		return fmt.Errorf("remove %v: %w: it is open", k, ukai.ErrLocked)
	}
	h.State = stateRemoving
	if h.Size == 0 { // the header was not readable: any that is will do
		h.Size, h.BlockSize = ukai.DefaultBlockSize, ukai.DefaultBlockSize
	}
	if err := s.putHeader(ctx, k, h, true, true); err != nil {
		return fmt.Errorf("remove %v: %w", k, err)
	}
	e.mu.Lock()
	e.header, e.err = h, nil
	e.mu.Unlock()
	if err := s.erase(context.WithoutCancel(ctx), k); err != nil {
		return fmt.Errorf("remove %v: %w", k, err)
	}
	s.forget(k, e)
	return nil
}

// closeParallel is how many replicas Close closes at a time, so that they share the database's syncs.
const closeParallel = 16

// Close implements Backend. A second Close does nothing.
func (s *Store) Close() error {
	s.closing <- struct{}{}
	defer func() { <-s.closing }()
	if s.closed {
		return nil
	}
	s.closed = true
	s.ending.Store(true)
	var g errgroup.Group
	g.SetLimit(closeParallel)
	s.mu.Lock()
	entries := slices.Collect(maps.Values(s.replicas))
	s.mu.Unlock()
	for _, e := range entries {
		e.mu.Lock()
		r := e.open
		e.mu.Unlock()
		if r != nil {
			g.Go(r.Close)
		}
	}
	return errors.Join(g.Wait(), s.keys.close(), s.release())
}

// abandon ends the store as the death of its process would: nothing is synced and nothing is marked. It waits for what
// is under way.
func (s *Store) abandon() {
	s.closing <- struct{}{}
	defer func() { <-s.closing }()
	if s.closed {
		return
	}
	s.closed = true
	s.ending.Store(true)
	s.mu.Lock()
	entries := slices.Collect(maps.Values(s.replicas))
	s.mu.Unlock()
	for _, e := range entries {
		e.mu.Lock()
		r := e.open
		e.mu.Unlock()
		if r != nil {
			_ = r.end() // there is no one left to tell
		}
	}
	_ = s.keys.close()
	_ = s.release()
}
