package store

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"ukai"
)

// Size implements Replica.
func (r *replica) Size() int64 { return r.size.Load() }

// BlockSize implements Replica.
func (r *replica) BlockSize() int { return r.blockSize }

// ReadAt implements Replica.
func (r *replica) ReadAt(p []byte, off int64) error {
	if err := r.check(off, int64(len(p))); err != nil {
		return err
	}
	if err := r.usable(); err != nil {
		return err
	}
	if _, err := r.file.ReadAt(p, off); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("read %s at %d: %w: the file ends before: something other than ukai-node cut it", r.path, off, ukai.ErrCorrupt)
		}
		return r.ioError("read", off, err)
	}
	return nil
}

// ReadStored implements Replica.
func (r *replica) ReadStored(p []byte, off int64) error {
	if fd, ok := r.file.fd(); ok {
		_ = unix.Fadvise(int(fd), off, int64(len(p)), unix.FADV_DONTNEED) // advice: where it is not taken, memory is read
	}
	return r.ReadAt(p, off)
}

// WriteAt implements Replica.
func (r *replica) WriteAt(p []byte, off int64) error {
	n := int64(len(p))
	if err := r.check(off, n); err != nil {
		return err
	}
	if err := r.void(off, n); err != nil {
		return err
	}
	return r.write(p, off)
}

// write is WriteAt for what leaves the block's checksums true.
func (r *replica) write(p []byte, off int64) error {
	n := int64(len(p))
	if err := r.admit(); err != nil {
		return err
	}
	defer r.writes.leave()
	if !r.store.space.plenty(n) {
		if err := r.mayAllocate(off, n); err != nil {
			return err
		}
	}
	_, err := r.file.WriteAt(p, off)
	// Counted only now: a Sync that began in between would otherwise take this write for synced.
	r.written.Add(1)
	if err != nil {
		return r.writeError("write", off, err)
	}
	return nil
}

// mayAllocate returns nil if n bytes from off are allocated already, or may be. It asks the file system, which costs
// two calls, but only while space is short.
func (r *replica) mayAllocate(off, n int64) error {
	data, err := r.file.nextData(off)
	if err != nil {
		return r.ioError("seek", off, err)
	}
	hole, err := r.file.nextHole(off)
	if err != nil {
		return r.ioError("seek", off, err)
	}
	if data == off && hole >= off+n {
		return nil
	}
	if err := r.store.space.allow(n); err != nil {
		return fmt.Errorf("write %s at %d: %w", r.path, off, err)
	}
	return nil
}

// Zero implements Replica.
func (r *replica) Zero(off, n int64) error { return r.punch("zero", off, n) }

// Discard implements Replica.
func (r *replica) Discard(off, n int64) error { return r.punch("discard", off, n) }

func (r *replica) punch(doing string, off, n int64) error {
	if err := r.check(off, n); err != nil || n == 0 {
		return err
	}
	if err := r.void(off, n); err != nil {
		return err
	}
	if err := r.admit(); err != nil {
		return err
	}
	defer r.writes.leave()
	err := r.file.punch(off, n)
	r.written.Add(1)
	if err != nil {
		return r.writeError(doing, off, err)
	}
	return nil
}

// Sync implements Replica.
func (r *replica) Sync(ctx context.Context) error {
	if err := r.usable(); err != nil {
		return err
	}
	if r.written.Load() == r.synced.Load() {
		return nil
	}
	return r.syncs.wait(ctx)
}

// syncFile is one run of the group commit.
func (r *replica) syncFile() error {
	if err := r.failed.err(); err != nil {
		return err
	}
	written := r.written.Load()
	if written == r.synced.Load() {
		return nil
	}
	if err := r.file.datasync(); err != nil {
		if errors.Is(err, ukai.ErrClosed) {
			return mediaError("sync "+r.path, err)
		}
		// Also when the file system merely had no room: what was to be written may be gone from the page cache.
		return r.breakWith(fmt.Errorf("sync %s: %w: %w", r.path, ukai.ErrMedia, err))
	}
	r.synced.Store(written)
	return nil
}

// NextData implements Replica.
func (r *replica) NextData(off int64) (int64, error) { return r.seek(off, r.file.nextData) }

// NextHole implements Replica.
func (r *replica) NextHole(off int64) (int64, error) { return r.seek(off, r.file.nextHole) }

func (r *replica) seek(off int64, find func(int64) (int64, error)) (int64, error) {
	size := r.size.Load()
	if off < 0 {
		return 0, fmt.Errorf("%s: offset %d: %w: may not be negative", r.path, off, ukai.ErrInvalid)
	}
	if err := r.usable(); err != nil {
		return 0, err
	}
	if off >= size {
		return size, nil
	}
	pos, err := find(off)
	if err != nil {
		return 0, r.ioError("seek", off, err)
	}
	return min(pos, size), nil
}

// AllocatedBytes implements Replica.
func (r *replica) AllocatedBytes() int64 {
	n, err := r.file.allocated()
	if err != nil {
		return 0
	}
	return n
}

// check refuses a range that is not within the disk.
func (r *replica) check(off, n int64) error {
	if size := r.size.Load(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%v: %d bytes at %d: %w: the disk has %d bytes", r.key, n, off, ukai.ErrInvalid, size)
	}
	return nil
}

// ioError tells the story of an operation that leaves the replica usable.
func (r *replica) ioError(doing string, off int64, err error) error {
	if r.closed.Load() {
		return fmt.Errorf("%v: %w", r.key, ukai.ErrClosed)
	}
	return mediaError(fmt.Sprintf("%s %s at %d", doing, r.path, off), err)
}

// writeError breaks the replica unless there was merely no space: then the caller knows which data is not there.
func (r *replica) writeError(doing string, off int64, err error) error {
	err = r.ioError(doing, off, err)
	if errors.Is(err, ukai.ErrMedia) {
		return r.breakWith(err)
	}
	return err
}
