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

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"ukai"
)

// memtableBytes is the size of badger's memtable. There are at most two, and each takes a quarter more in memory. It
// also decides how large a transaction may be: 15 %, which is more than MaxBatchBytes and MaxBatchKeys need.
const memtableBytes = 8 << 20

// badgerDB is the database of a real store.
//
// badger's SyncWrites syncs once per transaction and so lets nobody share a sync; it is off, and the keeper's group
// commit calls sync. DB.Sync alone would not do for that: it syncs the log of the *active* memtable only, but not those
// of memtables that were full and have not reached a table yet (v4.9.6: DB.Sync, ensureRoomForWrite). A change that
// was the last to fit would not be durable although the Sync after it succeeded. So sync does that part itself: badger
// numbers the logs, a new one begins when a memtable is full, and a log is removed only once its table is durable
// (table.CreateTable and the manifest sync). All values stay in the log and the tables, far below the threshold from
// which badger would write them to its value log; hence no value log needs to be synced, nor collected.
type badgerDB struct {
	db  *badger.DB
	dir string
	// log is the number of the newest memtable log that the last sync knew of. Only sync uses it, one at a time.
	log int
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
	opt.NumCompactors = 2 // the fewest it takes
	opt.ValueThreshold = 1 << 20
	opt.ValueLogFileSize = 1 << 20
	db, err := badger.Open(opt)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w: %v: put it back from a backup, or move the data directory away and let the node start anew",
			dir, ukai.ErrCorrupt, err)
	}
	b := &badgerDB{db: db, dir: dir}
	if b.log, err = newestLog(dir); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", dir, err), db.Close())
	}
	return b, nil
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
		return 0, fmt.Errorf("database %s: %w: this release of badger names its logs in a way that is not known here", dir, ukai.ErrUnsupported)
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
		return nil, fmt.Errorf("database %s: %w: %v", b.dir, ukai.ErrMedia, err)
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

// sync makes durable whatever apply had done when it was called. That is in the logs with numbers from b.log up.
func (b *badgerDB) sync() error {
	if err := b.db.Sync(); err != nil {
		return err
	}
	// Looked at after the Sync: if no log is newer than b.log now, then none was when Sync chose which one to sync.
	newest, err := newestLog(b.dir)
	if err != nil || newest == b.log {
		return err
	}
	for n := b.log; n <= newest; n++ {
		if err := syncLog(filepath.Join(b.dir, badgerFileName(n))); err != nil {
			return err
		}
	}
	if err := syncDir(b.dir); err != nil {
		return err
	}
	b.log = newest
	return nil
}

// syncLog makes a file's content durable, also what was written through a memory map. A file that is gone was
// replaced by something durable.
func syncLog(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
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
				return fmt.Errorf("database %s: key %q: %w: %v", b.dir, clip(item.Key()), ukai.ErrMedia, err)
			}
			if err := f(string(item.Key()), v); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *badgerDB) close() error {
	if err := b.db.Close(); err != nil {
		return fmt.Errorf("close database %s: %w: %v", b.dir, ukai.ErrMedia, err)
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
