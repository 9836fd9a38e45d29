package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ukai"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestSyncLeavesNothingVolatile asks the kernel which pages of badger's logs are not on disk. Without it nothing would
// tell if a new release of badger wrote its logs elsewhere or otherwise: the loss shows only in a power cut.
func TestSyncLeavesNothingVolatile(t *testing.T) {
	dir := t.TempDir()
	db, err := openBadger(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	first, seen := db.number, 0
	for round := range 3 {
		// The last round leaves several memtables full since the sync before.
		for i := range 1 + 35*round {
			kvs := []KV{{fmt.Sprint(round, i), make([]byte, MaxValue)}, {fmt.Sprint(round, "+", i), make([]byte, 100)}}
			if err := db.apply(kvs); err != nil {
				t.Fatal(err)
			}
		}
		dirty, files := dirtyLogPages(t, dir)
		if dirty == 0 {
			t.Logf("round %d: all of %s was written out already", round, files)
		} else {
			seen++
		}
		if err := db.sync(); err != nil {
			t.Fatal(err)
		}
		if dirty, files := dirtyLogPages(t, dir); dirty != 0 {
			t.Errorf("round %d: %d pages of %s are volatile after sync", round, dirty, files)
		}
	}
	if db.number < first+3 {
		t.Errorf("the log went from %d to %d only: the test did not fill memtables", first, db.number)
	}
	if seen == 0 {
		t.Error("no page was ever dirty before a sync: the test shows nothing")
	}
}

// TestManyFullMemtablesAreMerged writes so many that badger, which is not given compactors, would hold up the last ones and the
// close for ever.
func TestManyFullMemtablesAreMerged(t *testing.T) {
	dir := t.TempDir()
	db, err := openBadger(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	const keys = 20 * memtableBytes / MaxValue
	value := make([]byte, MaxValue)
	for i := range keys {
		if i%(keys/10) == 0 {
			db.compact() // the ticker's part
		}
		if err := db.apply([]KV{{fmt.Sprintf("%05d", i%(keys/20)), append(value[:MaxValue-8], fmt.Sprintf("%08d", i)...)}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := db.db.Levels()[0].NumTables; n > compactTables+3 {
		t.Errorf("%d tables of full memtables have not been merged", n)
	}
	if err := db.close(); err != nil {
		t.Fatal(err)
	}
	if db, err = openBadger(dir, quiet()); err != nil {
		t.Fatal(err)
	}
	defer db.close()
	for i := keys - keys/20; i < keys; i++ {
		v, err := db.get(fmt.Sprintf("%05d", i%(keys/20)))
		if err != nil || !strings.HasSuffix(string(v), fmt.Sprintf("%08d", i)) {
			t.Fatalf("key %d: %d bytes that end in %q, %v", i, len(v), v[max(0, len(v)-8):], err)
		}
	}
}

// dirtyLogPages counts the pages of badger's logs that are not on disk.
func dirtyLogPages(t *testing.T, dir string) (pages uint64, files string) {
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			f, err := os.Open(name)
			if errors.Is(err, os.ErrNotExist) {
				continue // it became a table
			}
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Cachestat_t
			err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0)
			f.Close()
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
				t.Skipf("cachestat: %v: this kernel does not tell which pages are dirty", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			if st.Dirty+st.Writeback > 0 {
				pages += st.Dirty + st.Writeback
				files += " " + filepath.Base(name)
			}
		}
	}
	return pages, files
}

func TestLogsAreFoundByNumber(t *testing.T) {
	dir := t.TempDir()
	if _, err := newestLog(dir); !errors.Is(err, ukai.ErrUnsupported) {
		t.Errorf("newestLog of an empty directory = %v, want ErrUnsupported", err)
	}
	for _, name := range []string{"00002.mem", "00010.mem", "7.mem", "00099.sst", "99999999.memo", "x.mem"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := newestLog(dir); n != 10 || err != nil {
		t.Errorf("newestLog = %d, %v, want 10", n, err)
	}
}

func TestDamagedDatabaseIsRefused(t *testing.T) {
	dir := t.TempDir()
	db, err := openBadger(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := db.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = openBadger(dir, quiet())
	if !errors.Is(err, ukai.ErrCorrupt) || !strings.Contains(err.Error(), dir) {
		t.Errorf("openBadger = %v, want ErrCorrupt that names %s", err, dir)
	}
}
