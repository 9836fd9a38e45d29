package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"ukai"
)

// memtableBytes is the size of badger's memtable. There are at most two, and each takes a quarter more in memory. It
// also decides how large a transaction may be: 15 %, which is more than MaxBatchBytes and MaxBatchKeys need.
const memtableBytes = 8 << 20

const (
	// compactEvery is how often keepCompact looks. badger's own compactors look 20 times a second each, and there must be
	// two: that was nearly half of the CPU time of a node at rest.
	compactEvery = 5 * time.Second
	// compactTables is how many full memtables on disk start a compaction. At 15 badger holds up writers until there are
	// fewer: who writes more than 7 memtables in compactEvery waits for the next look.
	compactTables = 8
)

// badgerDB is the database of a real store, and syncs it in its own way.
//
// badger's SyncWrites syncs once per transaction and lets nobody share a sync, so it is off. DB.Sync does not make
// durable everything that was written before it: it syncs the log of the *active* memtable, but not those of memtables
// that were full and have not become a table yet (v4.9.6: DB.Sync, ensureRoomForWrite, handleMemTableFlush). It also
// holds up every reader and writer of the database meanwhile, and syncs the value log, which is not used here: all
// values are far below the size from which badger would put them there.
//
// So sync syncs the logs. A write to badger has been copied into the shared memory map of its log when it returns.
// The logs are numbered; when a memtable is full, its log is left and the next one begun; a log is removed only when
// its table is durable (table.CreateTable and manifestFile.addChanges both sync). Hence what was written before a sync
// is in the log that was active at the sync before it, or in a later one, or durable. A test holds badger to this.
type badgerDB struct {
	db  *badger.DB
	dir string
	log *slog.Logger

	stop, stopped chan struct{} // of keepCompact

	// Only sync uses these, one at a time.
	number int      // of the memtable log that was active at the last sync
	active *os.File // that log
}

func openBadger(dir string, log *slog.Logger) (*badgerDB, error) {
	opt := badger.DefaultOptions(dir)
	opt.Logger = badgerLog{log}
	opt.SyncWrites = false
	opt.BypassLockGuard = true // the data directory is locked as a whole
	opt.DetectConflicts = false
	opt.MetricsEnabled = false
	opt.NumVersionsToKeep = 1
	// Keys are short and values tiny: nothing to compress, hence nothing to cache.
	opt.Compression = options.None
	opt.BlockCacheSize = 0
	opt.IndexCacheSize = 0
	opt.ChecksumVerificationMode = options.OnTableAndBlockRead
	opt.MemTableSize = memtableBytes
	opt.NumMemtables = 2
	opt.NumCompactors = 0 // see keepCompact
	opt.ValueThreshold = 1 << 20
	opt.ValueLogFileSize = 1 << 20
	db, err := badger.Open(opt)
	if err != nil {
		switch {
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
			return nil, fmt.Errorf("database %s: %w: %w", dir, ukai.ErrNoSpace, err)
		case errors.As(err, new(syscall.Errno)): // what is there may be whole
			return nil, fmt.Errorf("database %s: %w: %w", dir, ukai.ErrMedia, err)
		}
		// Not "put it back from a backup": old promises and fences are worse than none.
		return nil, fmt.Errorf("database %s: %w: %w: if it is damaged, move the data directory away and let the node start anew, as a new node",
			dir, ukai.ErrCorrupt, err)
	}
	b := &badgerDB{db: db, dir: dir, log: log, stop: make(chan struct{}), stopped: make(chan struct{})}
	go b.keepCompact()
	if err := b.findLog(); err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", dir, err), b.close())
	}
	return b, nil
}

// findLog notes the active log, and makes durable what badger itself wrote to begin with.
func (b *badgerDB) findLog() (err error) {
	if b.number, err = newestLog(b.dir); err != nil {
		return err
	}
	if b.active, err = os.OpenFile(filepath.Join(b.dir, badgerFileName(b.number)), os.O_RDWR, 0); err != nil {
		return err
	}
	return errors.Join(b.db.Sync(), syncDir(b.dir))
}

// newestLog returns the number of the active memtable's log.
func newestLog(dir string) (int, error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	names, err := d.Readdirnames(-1)
	if err := errors.Join(err, d.Close()); err != nil {
		return 0, err
	}
	newest := 0
	for _, name := range names {
		number, isLog := strings.CutSuffix(name, ".mem")
		if n, err := strconv.Atoi(number); err == nil && isLog && badgerFileName(n) == name {
			newest = max(newest, n)
		}
	}
	if newest == 0 {
		return 0, fmt.Errorf("%w: this release of badger names its logs in a way that is not known here", ukai.ErrUnsupported)
	}
	return newest, nil
}

func (b *badgerDB) get(key string) (v []byte, err error) {
	err = b.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get([]byte(key))
		if err != nil {
			return err
		}
		v, err = item.ValueCopy([]byte{})
		return err
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, ukai.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("database %s: %w: %w", b.dir, ukai.ErrMedia, err)
	}
	return v, nil
}

func (b *badgerDB) apply(kvs []KV) error {
	return b.db.Update(func(txn *badger.Txn) error {
		for _, kv := range kvs {
			var err error
			if kv.V == nil {
				err = txn.Delete([]byte(kv.K))
			} else {
				err = txn.Set([]byte(kv.K), kv.V)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// sync makes durable whatever apply had done when it was called.
func (b *badgerDB) sync() error {
	if err := datasync(b.active); err != nil {
		return err
	}
	// Looked at after the sync: if no log is newer now, then none was before.
	newest, err := newestLog(b.dir)
	if err != nil || newest == b.number {
		return err
	}
	for n := b.number + 1; n <= newest; n++ {
		f, err := os.OpenFile(filepath.Join(b.dir, badgerFileName(n)), os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) && n < newest {
			continue // it is a table by now
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), b.active.Close()); err != nil {
			return errors.Join(err, f.Close())
		}
		b.number, b.active = n, f
	}
	return syncDir(b.dir)
}

func (b *badgerDB) scan(prefix string, f func(k string, v []byte) error) error {
	return b.db.View(func(txn *badger.Txn) error {
		opt := badger.DefaultIteratorOptions
		opt.Prefix = []byte(prefix)
		opt.PrefetchSize = 16
		it := txn.NewIterator(opt)
		defer it.Close()
		for it.Seek(opt.Prefix); it.ValidForPrefix(opt.Prefix); it.Next() {
			item := it.Item()
			v, err := item.ValueCopy([]byte{})
			if err != nil {
				return fmt.Errorf("database %s: key %q: %w: %w", b.dir, clip(item.Key()), ukai.ErrMedia, err)
			}
			if err := f(string(item.Key()), v); err != nil {
				return err
			}
		}
		return nil
	})
}

// keepCompact merges the tables of full memtables until close.
func (b *badgerDB) keepCompact() {
	defer close(b.stopped)
	tick := time.NewTicker(compactEvery)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
		}
		b.compact()
	}
}

// compact merges the tables of full memtables if there are many. The database is small - some 60 bytes per block, and 64 per MiB of quiet data - so that all of
// it is merged into one level.
func (b *badgerDB) compact() {
	if b.db.Levels()[0].NumTables < compactTables {
		return
	}
	if err := b.db.Flatten(1); err != nil {
		b.log.Warn("the database could not be compacted, and grows; it is tried again", "dir", b.dir, "every", compactEvery, "err", err)
	}
}

func (b *badgerDB) close() error {
	close(b.stop)
	<-b.stopped
	b.compact() // badger writes its last memtables out now, and would wait for room for ever
	err := b.db.Close()
	if b.active != nil {
		err = errors.Join(err, b.active.Close())
	}
	if err != nil {
		return fmt.Errorf("close database %s: %w: %w", b.dir, ukai.ErrMedia, err)
	}
	return nil
}

// badgerLog passes on what badger says: its worries as they are, the rest at debug.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(format string, args ...any)   { l.say(l.log.Error, format, args) }
func (l badgerLog) Warningf(format string, args ...any) { l.say(l.log.Warn, format, args) }
func (l badgerLog) Infof(format string, args ...any)    { l.say(l.log.Debug, format, args) }
func (l badgerLog) Debugf(format string, args ...any)   { l.say(l.log.Debug, format, args) }

func (l badgerLog) say(level func(string, ...any), format string, args []any) {
	level("badger: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// badgerFileName is how badger names the log of the memtable with a number.
func badgerFileName(number int) string { return fmt.Sprintf("%05d.mem", number) }
