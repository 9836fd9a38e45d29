package fusefs

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"ukai"
)

// openFlags go with every open. FOPEN_DIRECT_IO: no page cache that another host's writes would leave stale. With
// FOPEN_PARALLEL_DIRECT_WRITES besides, the kernel does not hold the inode locked for the length of each write; with
// either alone all writers of a disk would queue behind one another.
const openFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES

// Open opens a file. The kernel has checked permissions, and sends O_TRUNC as a SetAttr of its own.
func (r *raw) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f, err := r.file(in.NodeId)
	if err == nil {
		var h *handle
		if h, err = r.open(request(cancel), f, in.Flags&syscall.O_ACCMODE == syscall.O_RDONLY); err == nil {
			out.Fh, out.OpenFlags = h.fh, openFlags
		}
	}
	return r.status("open", f, err)
}

// Release ends an open file; nobody waits for it.
func (r *raw) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { r.release(in.Fh) }

// Flush is told of each close of a descriptor.
func (r *raw) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h, err := r.handle(in.Fh)
	if err != nil {
		return fuse.EBADF
	}
	return r.status("close", h.file, h.flush(request(cancel), caller{owner: in.LockOwner, tid: in.Pid}))
}

// Read reads straight into the buffer that goes to the kernel. Nothing is spliced: that needs a file descriptor that
// holds the data, which a disk has at best for some of its blocks, and for requests of 1 MiB a pipe larger than
// fs.pipe-max-size allows by default.
func (r *raw) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, err := r.handle(in.Fh)
	if err != nil {
		return nil, fuse.EBADF
	}
	n, err := h.read(request(cancel), in.Pid, buf, int64(in.Offset))
	if err != nil {
		return nil, r.status("read", h.file, err)
	}
	if n == len(buf) {
		return nil, fuse.OK // all of buf is the answer, without an object that says so
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write writes straight from the buffer that came from the kernel.
func (r *raw) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, err := r.handle(in.Fh)
	if err != nil {
		return 0, fuse.EBADF
	}
	c := caller{tid: in.Pid}
	if in.WriteFlags&fuse.WRITE_LOCKOWNER != 0 {
		c.owner = in.LockOwner
	}
	n, err := h.write(request(cancel), c, data, int64(in.Offset))
	if err != nil {
		return 0, r.status("write", h.file, err)
	}
	return uint32(n), fuse.OK
}

// Fsync is fsync and fdatasync alike: a disk's size is never volatile.
func (r *raw) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := r.handle(in.Fh)
	if err != nil {
		return fuse.EBADF
	}
	return r.status("flush", h.file, h.sync(request(cancel), in.Pid))
}

// Fallocate punches holes and zeroes ranges.
func (r *raw) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h, err := r.handle(in.Fh)
	if err != nil {
		return fuse.EBADF
	}
	return r.status("fallocate", h.file, h.fallocate(request(cancel), in.Pid, in.Mode, int64(in.Offset), int64(in.Length)))
}

// Lseek finds data and holes; other kinds of seeking the kernel does itself.
func (r *raw) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h, err := r.handle(in.Fh)
	if err != nil {
		return fuse.EBADF
	}
	off, err := h.seek(request(cancel), in.Whence, int64(in.Offset))
	out.Offset = uint64(off)
	return r.status("seek", h.file, err)
}

// Ioctl knows none. ENOTTY, not ENOSYS, which would be told to the program.
func (r *raw) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(syscall.ENOTTY)
}

// SetAttr is truncate, chmod, chown and utimes.
func (r *raw) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return r.no("change the directory's attributes", in.Pid, "the mount options of ukai-node start")
	}
	f, err := r.file(in.NodeId)
	if err != nil {
		return r.status("set attributes", nil, err)
	}
	if err = r.setAttr(request(cancel), f, in); err == nil {
		err = r.fileAttr(request(cancel), f, out)
	}
	return r.status("set attributes", f, err)
}

// GetLk asks who is in the way of a lock.
func (r *raw) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	h, err := r.handle(in.Fh)
	if err != nil {
		return fuse.EBADF
	}
	l, whole := lockOf(in)
	other, err := h.query(request(cancel), l, whole)
	out.Lk = fileLock(other)
	return r.status("query lock", h.file, err)
}

// SetLk locks or unlocks, without waiting for others.
func (r *raw) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return r.lk(cancel, in, false)
}

// SetLkw locks and waits until it can.
func (r *raw) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return r.lk(cancel, in, true)
}

func (r *raw) lk(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	h, err := r.handle(in.Fh)
	if err != nil {
		return fuse.EBADF
	}
	l, whole := lockOf(in)
	if in.Lk.Typ == syscall.F_UNLCK {
		err = h.unlock(request(cancel), l, whole)
	} else {
		err = h.setLock(request(cancel), l, whole, wait)
	}
	return r.status("lock", h.file, err)
}

func lockOf(in *fuse.LkIn) (l lock, whole bool) {
	return lock{
		start: in.Lk.Start, end: min(in.Lk.End, lastByte), write: in.Lk.Typ == syscall.F_WRLCK,
		owner: in.Owner, fh: in.Fh, pid: in.Lk.Pid,
	}, in.LkFlags&fuse.LK_FLOCK != 0
}

func fileLock(l *lock) fuse.FileLock {
	switch {
	case l == nil:
		return fuse.FileLock{Typ: syscall.F_UNLCK}
	case l.write:
		return fuse.FileLock{Start: l.start, End: l.end, Typ: syscall.F_WRLCK, Pid: l.pid}
	}
	return fuse.FileLock{Start: l.start, End: l.end, Typ: syscall.F_RDLCK, Pid: l.pid}
}

// The core of the rarer ones.

func (h *handle) fallocate(r request, tid uint32, mode uint32, off, n int64) error {
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	size := h.disk.Size()
	if off < 0 || n <= 0 || off+n < off {
		return ukai.ErrInvalid
	}
	if mode&keep == 0 && off+n > size {
		return errPastEnd
	}
	n = min(n, max(size-off, 0)) // beyond the end there is nothing to punch, to zero or to keep
	switch mode &^ keep {
	case 0:
		return nil // there is space for the disk or there is not, but it is not set aside per range
	case punch, zero:
		if n == 0 {
			return nil
		}
		return h.mutate(r, caller{tid: tid}, func(ctx context.Context) error {
			if mode&punch != 0 {
				return h.disk.Discard(ctx, off, n)
			}
			return h.disk.Zero(ctx, off, n)
		})
	}
	return ukai.ErrUnsupported
}

func (h *handle) seek(r request, whence uint32, off int64) (int64, error) {
	size := h.disk.Size()
	if off < 0 || off >= size {
		return 0, errNoMatch
	}
	find := h.disk.NextData
	switch whence {
	case unix.SEEK_DATA:
	case unix.SEEK_HOLE:
		find = h.disk.NextHole
	default:
		return 0, ukai.ErrInvalid
	}
	found, err := find(r, off)
	if whence == unix.SEEK_HOLE {
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		return min(found, size), err
	}
	if errors.Is(err, io.EOF) || err == nil && found >= size {
		return 0, errNoMatch
	}
	return found, err
}

// setAttr does what can be done of in.
func (fs *filesystem) setAttr(r request, f *file, in *fuse.SetAttrIn) error {
	mode, uid, gid := fs.cfg.Mode.Perm(), fs.cfg.UID, fs.cfg.GID
	if m, ok := in.GetMode(); ok && m != uint32(mode) {
		return fs.cannot("chmod "+f.label(), in.Pid, "the file mode in the mount options of ukai-node start")
	}
	if u, ok := in.GetUID(); ok && u != uid {
		return fs.cannot("chown "+f.label(), in.Pid, "the owner in the mount options of ukai-node start")
	}
	if g, ok := in.GetGID(); ok && g != gid {
		return fs.cannot("chgrp "+f.label(), in.Pid, "the group in the mount options of ukai-node start")
	}
	if size, ok := in.GetSize(); ok {
		return fs.truncate(r, f, int64(size), in)
	}
	return nil
}

// truncate makes a disk larger, and knows what to answer to those who want it smaller.
func (fs *filesystem) truncate(r request, f *file, size int64, in *fuse.SetAttrIn) error {
	fh, opened := in.GetFh()
	if !opened {
		return fs.borrow(r, f, func(h *handle) error { return h.truncate(r, in, size, false) })
	}
	h, err := fs.handle(fh)
	if err != nil {
		return err
	}
	return h.truncate(r, in, size, true)
}

func (h *handle) truncate(r request, in *fuse.SetAttrIn, size int64, opened bool) error {
	now, name := h.disk.Size(), h.file.label()
	switch {
	case size == now:
		return nil
	case size > now:
		c := caller{tid: in.Pid}
		if in.Valid&fuse.FATTR_LOCKOWNER != 0 {
			c.owner = in.LockOwner
		}
		return h.resize(r, c, size)
	case size == 0 && !opened:
		return h.ignoreTruncation(r, in.Pid)
	}
	return h.fs.cannot("truncate "+name, in.Pid, "a smaller disk and qemu-img convert -n: this release makes no disk smaller; with dd, conv=notrunc")
}

// ignoreTruncation is what opening with O_TRUNC does: nothing, but it tells if that may not be what was meant.
func (h *handle) ignoreTruncation(r request, tid uint32) error {
	if _, err := h.seek(r, unix.SEEK_DATA, 0); errors.Is(err, errNoMatch) {
		return nil
	}
	name := h.file.label()
	const remedy = "dd conv=notrunc, cp --sparse=never or qemu-img convert -n to write over it, or blkdiscard/fallocate -p to empty it first"
	if h.fs.cfg.RefuseTruncate {
		return h.fs.cannot("truncate "+name+", which holds data", tid, remedy)
	}
	h.fs.say("ignored "+name, "truncation of "+name+" on opening it was ignored, what it held is still there where nothing is written", "use", remedy, "pid", tid)
	return nil
}

func (fs *filesystem) cannot(what string, tid uint32, remedy string) error {
	fs.refuse(what, tid, remedy)
	return errRefused
}
