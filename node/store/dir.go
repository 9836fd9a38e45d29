package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ukai"
)

// formatVersion is the version of the directory's layout and of the meaning of its keys.
const formatVersion = 1

const formatPrefix = "ukai-store "

// dataDir is a store's directory, locked.
type dataDir struct {
	path string
	lock *os.File
}

// openDir locks a data directory and checks its format; a directory without one gets this release's.
func openDir(path string) (*dataDir, error) {
	if path == "" {
		return nil, fmt.Errorf("data directory: %w: no path given", ukai.ErrInvalid)
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := errors.Join(os.MkdirAll(path, 0o700), syncDir(filepath.Dir(path))); err != nil {
			return nil, fmt.Errorf("data directory: %w", err)
		}
	}
	d := &dataDir{path: path}
	if err := d.take(); err != nil {
		return nil, err
	}
	if err := d.prepare(); err != nil {
		return nil, errors.Join(err, d.release())
	}
	return d, nil
}

func (d *dataDir) db() string       { return filepath.Join(d.path, "db") }
func (d *dataDir) replicas() string { return filepath.Join(d.path, "replicas") }

// take locks the directory. The lock is on an open file, so it ends with the process, however that ends.
func (d *dataDir) take() error {
	f, err := os.OpenFile(filepath.Join(d.path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", d.path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0) // only for the message
		err = fmt.Errorf("data directory %s: %w: in use by process %s: stop it, or choose another directory",
			d.path, ukai.ErrLocked, bytes.TrimSpace(pid[:n]))
		return errors.Join(err, f.Close())
	}
	d.lock = f
	if err := f.Truncate(0); err != nil {
		return errors.Join(fmt.Errorf("data directory %s: %w", d.path, err), d.release())
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return errors.Join(fmt.Errorf("data directory %s: %w", d.path, err), d.release())
	}
	return nil
}

func (d *dataDir) release() error { return d.lock.Close() }

// prepare checks the format and makes what is missing.
func (d *dataDir) prepare() error {
	name := filepath.Join(d.path, "format")
	text, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		for _, dir := range []string{d.db(), d.replicas()} {
			if names, err := os.ReadDir(dir); err == nil && len(names) > 0 {
				return fmt.Errorf("data directory %s: %w: %s is not empty but the file format is missing: use an empty directory, or, if only that file was lost, write %q into it",
					d.path, ukai.ErrCorrupt, dir, formatPrefix+strconv.Itoa(formatVersion))
			}
		}
		if err := writeDurably(name, fmt.Sprintf("%s%d\n", formatPrefix, formatVersion)); err != nil {
			return fmt.Errorf("data directory %s: %w", d.path, err)
		}
	case err != nil:
		return fmt.Errorf("data directory %s: %w", d.path, err)
	default:
		if err := checkFormat(d.path, text); err != nil {
			return err
		}
	}
	for _, dir := range []string{d.db(), d.replicas()} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("data directory %s: %w", d.path, err)
		}
	}
	if err := syncDir(d.path); err != nil {
		return fmt.Errorf("data directory %s: %w", d.path, err)
	}
	return nil
}

func checkFormat(path string, text []byte) error {
	rest, ok := strings.CutPrefix(strings.TrimSpace(string(text)), formatPrefix)
	version, err := strconv.Atoi(rest)
	if !ok || err != nil || version < 1 {
		return fmt.Errorf("data directory %s: %w: the file format says %q, expected %q",
			path, ukai.ErrCorrupt, clip(text), formatPrefix+strconv.Itoa(formatVersion))
	}
	if version > formatVersion {
		return fmt.Errorf("data directory %s: %w: it has format %d, this release knows up to %d: upgrade ukai-node, or use another directory",
			path, ukai.ErrVersion, version, formatVersion)
	}
	return nil
}

// writeDurably writes a small file so that after a crash it is there wholly or not at all.
func writeDurably(name, text string) error {
	tmp := name + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// syncDir makes the entries of a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
