//go:build linux

// Package passthrough mounts a directory with one file, whose reads and writes go to a file on disk and nowhere else, asked of
// the kernel as package fusefs asks: direct I/O, parallel direct writes, the same sizes. It is the floor that benchmarks hold
// UKAI's mount against: what FUSE and go-fuse cost by themselves.
package passthrough

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Name is that of the file.
const Name = "disk"

const (
	node          = 2 // the file's inode; 1 is the directory's
	maxTransfer   = 1 << 20
	maxBackground = 128
	congestion    = 96
	validSeconds  = 60
)

// Mount is a mounted directory.
type Mount struct{ server *fuse.Server }

// Open mounts dir, which must exist, and serves backing as the file in it.
func Open(dir string, backing *os.File) (*Mount, error) {
	info, err := backing.Stat()
	if err != nil {
		return nil, err
	}
	server, err := fuse.NewServer(&raw{fuse.NewDefaultRawFileSystem(), backing, uint64(info.Size())}, dir, &fuse.MountOptions{
		FsName: "passthrough", Name: "passthrough", DirectMountStrict: true, MaxWrite: maxTransfer, MaxBackground: maxBackground,
		CongestionThreshold: congestion, DisableSplice: true, IgnoreSecurityLabels: true, ExtraCapabilities: fuse.CAP_ASYNC_DIO,
	})
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	go server.Serve()
	return &Mount{server}, server.WaitMount()
}

// Close unmounts.
func (m *Mount) Close() error { return m.server.Unmount() }

type raw struct {
	fuse.RawFileSystem
	file *os.File
	size uint64
}

func (r *raw) attr(out *fuse.Attr) {
	*out = fuse.Attr{Ino: node, Size: r.size, Mode: syscall.S_IFREG | 0o600, Nlink: 1, Blksize: 4096}
}

func (r *raw) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if in.NodeId != fuse.FUSE_ROOT_ID || name != Name {
		return fuse.ENOENT
	}
	out.NodeId, out.EntryValid, out.AttrValid = node, validSeconds, validSeconds
	r.attr(&out.Attr)
	return fuse.OK
}

func (r *raw) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = validSeconds
	if in.NodeId == fuse.FUSE_ROOT_ID {
		out.Attr = fuse.Attr{Ino: fuse.FUSE_ROOT_ID, Mode: syscall.S_IFDIR | 0o700, Nlink: 2}
		return fuse.OK
	}
	r.attr(&out.Attr)
	return fuse.OK
}

func (r *raw) SetAttr(_ <-chan struct{}, _ *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = validSeconds
	r.attr(&out.Attr)
	return fuse.OK
}

func (r *raw) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	return fuse.OK
}

func (r *raw) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := r.file.ReadAt(buf, int64(in.Offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fuse.ToStatus(err)
	}
	if n == len(buf) {
		return nil, fuse.OK
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (r *raw) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	const piece = 64 << 10 // as package node/store writes
	n, off := 0, int64(in.Offset)
	for {
		part := min(len(data)-n, piece-int(off%piece))
		w, err := r.file.WriteAt(data[n:n+part], off)
		n, off = n+w, off+int64(w)
		if err != nil || n == len(data) {
			return uint32(n), fuse.ToStatus(err)
		}
	}
}

func (r *raw) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status {
	return fuse.ToStatus(unix.Fdatasync(int(r.file.Fd())))
}
