package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"
	"syscall"

	"ukai"
)

// database is the ordered key/value store below a Store: badger, or the one that Mem can crash.
type database interface {
	get(key string) ([]byte, error) // a copy; ukai.ErrNotFound
	// apply makes all of kvs visible, or none. They are volatile until the next sync.
	apply(kvs []KV) error
	// sync makes everything durable that was applied before it was called.
	sync() error
	scan(prefix string, f func(k string, v []byte) error) error
	close() error
}

// files is the set of data files below a Store. Its methods return the file system's errors.
type files interface {
	// create makes a file of size bytes, all hole, durably, with the directories it needs.
	create(k replicaKey, layer uint16, size int64) error
	// exists says whether there is anything in the place of a replica's files.
	exists(k replicaKey) (bool, error)
	open(k replicaKey, layer uint16) (file, error)
	// remove deletes all files of a replica, durably. It is no error if there are none.
	remove(k replicaKey) error
	// rename gives the files of a replica to another, durably. It is no error if that has been done already.
	rename(from, to replicaKey) error
	// strays lists the paths of replicas that known does not have, and of anything else found among them.
	strays(known func(replicaKey) bool) ([]string, error)
	// path names a file in errors.
	path(k replicaKey, layer uint16) string
	// root names all of them.
	root() string
	// space returns the size of the file system and what is free in it, in bytes.
	space() (total, free int64, err error)
}

// file is one layer of a replica.
type file interface {
	io.ReaderAt
	io.WriterAt
	// punch makes n bytes from off read as zeros, as holes where possible.
	punch(off, n int64) error
	// datasync makes the content durable.
	datasync() error
	// truncate changes the size, durably.
	truncate(size int64) error
	size() (int64, error)
	allocated() (int64, error)
	// nextData and nextHole return an offset of at least off, or the file's size if there is none.
	nextData(off int64) (int64, error)
	nextHole(off int64) (int64, error)
	fd() (uintptr, bool)
	io.Closer
}

// failure remembers the first error that broke something, for ever.
type failure struct{ first atomic.Pointer[error] }

// err returns what broke it, or nil.
func (f *failure) err() error {
	if e := f.first.Load(); e != nil {
		return *e
	}
	return nil
}

// set breaks it with err, unless it is broken already, and returns the first error.
func (f *failure) set(err error) error {
	f.first.CompareAndSwap(nil, &err)
	return *f.first.Load()
}

// mediaError gives a file system's error its sentinel. doing says what was done to which file.
func mediaError(doing string, err error) error {
	sentinel := ukai.ErrMedia
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		sentinel = ukai.ErrNoSpace
	case errors.Is(err, syscall.EFBIG):
		// Nothing is wrong with the device: ext4 for one takes no file of 16 TiB.
		sentinel = ukai.ErrUnsupported
	case errors.Is(err, fs.ErrClosed):
		sentinel = ukai.ErrClosed
	case errors.Is(err, ukai.ErrClosed), errors.Is(err, ukai.ErrMedia), errors.Is(err, ukai.ErrNoSpace):
		return fmt.Errorf("%s: %w", doing, err)
	}
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		err = pe.Err // doing names the path
	}
	return fmt.Errorf("%s: %w: %w", doing, sentinel, err)
}
