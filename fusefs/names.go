package fusefs

import (
	"cmp"
	"context"
	"slices"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// raw answers the kernel's requests: each method takes a request apart, calls one method of the core and puts the
// answer together. names.go has those about the directory, data.go those about files.
type raw struct {
	fuse.RawFileSystem // ENOSYS, with which the kernel stops asking
	*filesystem
}

// directory is an open root directory: what it held when reading began.
type directory struct{ infos []Info }

// status turns err into what the kernel gets, and logs it if that does not say enough.
func (r *raw) status(what string, f *file, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	n, _ := errno(err)
	if worthLog(n, err) {
		r.failed(what, f, err)
	}
	return fuse.Status(n)
}

func (r *raw) String() string { return "ukai" }

// Lookup finds a disk by name.
func (r *raw) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f, err := r.lookup(request(cancel), name)
	if err != nil {
		return r.status("look up "+name, nil, err)
	}
	r.entry(f, out)
	return fuse.OK
}

// Forget is told that the kernel dropped a file from its caches.
func (r *raw) Forget(node, n uint64) { r.forget(node, n) }

// GetAttr is stat.
func (r *raw) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		r.rootAttr(&out.Attr)
		out.SetTimeout(r.cfg.AttrTimeout)
		return fuse.OK
	}
	f, err := r.file(in.NodeId)
	if err == nil {
		err = r.fileAttr(request(cancel), f, out)
	}
	return r.status("stat", f, err)
}

// Access is only asked of when the kernel does not check permissions itself, which it was told to.
func (r *raw) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

// StatFs is what df shows.
func (r *raw) StatFs(cancel <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	space, err := r.cfg.Disks.Space(request(cancel))
	if err != nil {
		return r.status("statfs", nil, err)
	}
	const unit = 4096
	out.Bsize, out.Frsize, out.NameLen = unit, unit, 255
	out.Blocks = uint64(max(space.Total, 0)) / unit
	out.Bfree = uint64(max(space.Free, 0)) / unit
	out.Bavail = uint64(max(space.Avail, 0)) / unit
	return fuse.OK
}

// OpenDir begins to read the directory.
func (r *raw) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId != fuse.FUSE_ROOT_ID {
		return fuse.ENOTDIR
	}
	out.Fh = r.addDir()
	return fuse.OK
}

// ReadDir lists names.
func (r *raw) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	infos, err := r.list(request(cancel), in.Fh, in.Offset)
	for _, info := range infos {
		if !out.AddDirEntry(dirEntry(info)) {
			break
		}
	}
	return r.status("list disks", nil, err)
}

// ReadDirPlus lists names with attributes, and counts as a lookup of each.
func (r *raw) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	infos, err := r.list(request(cancel), in.Fh, in.Offset)
	for _, info := range infos {
		e := out.AddDirLookupEntry(dirEntry(info))
		if e == nil {
			break
		}
		if isDisk(info) {
			r.entry(r.remember(info), e)
		}
	}
	return r.status("list disks", nil, err)
}

// ReleaseDir ends reading the directory.
func (r *raw) ReleaseDir(in *fuse.ReleaseIn) { r.removeDir(in.Fh) }

// FsyncDir has nothing to do: no name is made through the directory.
func (r *raw) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// What cannot be done by file operation, with what can be done instead.

// Create refuses to make a file.
func (r *raw) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, _ *fuse.CreateOut) fuse.Status {
	return r.no("create "+name, in.Pid, "ukai-node disk create "+name+" SIZE")
}

// Tmpfile refuses to make a file without a name. EOPNOTSUPP makes programs use another directory.
func (r *raw) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}

// Mknod refuses to make a file or device.
func (r *raw) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, _ *fuse.EntryOut) fuse.Status {
	return r.no("create "+name, in.Pid, "ukai-node disk create "+name+" SIZE")
}

// Mkdir refuses to make a directory.
func (r *raw) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, _ *fuse.EntryOut) fuse.Status {
	return r.no("make directory "+name, in.Pid, "names with a dot or dash instead: all disks are in one directory")
}

// Unlink refuses to remove a disk.
func (r *raw) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return r.no("remove "+name, in.Pid, "ukai-node disk rm "+name)
}

// Rmdir has no directory to remove.
func (r *raw) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.ENOTDIR }

// Rename refuses to rename a disk.
func (r *raw) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	return r.no("rename "+from+" to "+to, in.Pid, "ukai-node disk rename "+from+" "+to)
}

// Link refuses a second name for a disk.
func (r *raw) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, _ *fuse.EntryOut) fuse.Status {
	return r.no("link "+name, in.Pid, "ukai-node disk rename: a disk has one name")
}

// Symlink refuses a link.
func (r *raw) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, _ *fuse.EntryOut) fuse.Status {
	return r.no("symlink "+name, in.Pid, "a link in another directory")
}

// no refuses with EPERM.
func (r *raw) no(what string, tid uint32, remedy string) fuse.Status {
	r.refuse(what, tid, remedy)
	return fuse.EPERM
}

// The core of it.

// list returns what is left of the directory from offset on, as it was when reading began at 0.
func (fs *filesystem) list(ctx context.Context, fh, offset uint64) ([]Info, error) {
	if offset == 0 {
		infos, err := fs.cfg.Disks.List(ctx)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(infos, func(a, b Info) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.ID[:], b.ID[:]))
		})
		infos = slices.CompactFunc(infos, func(a, b Info) bool { return a.Name == b.Name })
		infos = append([]Info{{Name: "."}, {Name: ".."}}, infos...)
		fs.setDir(fh, infos)
	}
	infos := fs.dir(fh)
	return infos[min(offset, uint64(len(infos))):], nil
}

func (t *tree) addDir() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.dirs[t.last] = &directory{}
	return t.last
}

func (t *tree) setDir(fh uint64, infos []Info) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := t.dirs[fh]; d != nil {
		d.infos = infos
	}
}

func (t *tree) dir(fh uint64) []Info {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if d := t.dirs[fh]; d != nil {
		return d.infos
	}
	return nil
}

func (t *tree) removeDir(fh uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.dirs, fh)
}

func isDisk(info Info) bool { return info.Name != "." && info.Name != ".." }

func dirEntry(info Info) fuse.DirEntry {
	if !isDisk(info) {
		return fuse.DirEntry{Name: info.Name, Mode: syscall.S_IFDIR, Ino: fuse.FUSE_ROOT_ID}
	}
	return fuse.DirEntry{Name: info.Name, Mode: syscall.S_IFREG, Ino: inode(info.ID)}
}

// entry tells the kernel of a file.
func (fs *filesystem) entry(f *file, out *fuse.EntryOut) {
	info := *f.info.Load()
	if open := fs.opened(f); len(open) > 0 {
		info.Size = open[0].disk.Size()
	}
	out.NodeId, out.Generation = f.node, 1
	out.SetEntryTimeout(fs.cfg.AttrTimeout)
	out.SetAttrTimeout(fs.cfg.AttrTimeout)
	fs.attr(info, &out.Attr)
}

func (fs *filesystem) fileAttr(ctx context.Context, f *file, out *fuse.AttrOut) error {
	info, err := fs.stat(ctx, f)
	if err == nil {
		fs.attr(info, &out.Attr)
		out.SetTimeout(fs.cfg.AttrTimeout)
	}
	return err
}

func (fs *filesystem) attr(info Info, out *fuse.Attr) {
	allocated := info.Size
	if info.Allocated > 0 {
		allocated = min(info.Allocated, info.Size)
	}
	*out = fuse.Attr{
		Ino:     inode(info.ID),
		Size:    uint64(info.Size),
		Blocks:  uint64(allocated+511) / 512,
		Mode:    syscall.S_IFREG | uint32(fs.cfg.Mode.Perm()),
		Nlink:   1,
		Owner:   fuse.Owner{Uid: fs.cfg.UID, Gid: fs.cfg.GID},
		Blksize: maxTransfer,
	}
	if info.ReadOnly {
		out.Mode &^= 0o222
	}
	if !info.ModTime.IsZero() {
		out.SetTimes(&info.ModTime, &info.ModTime, &info.ModTime)
	}
}

func (fs *filesystem) rootAttr(out *fuse.Attr) {
	// Searchable by those who may read the files; writable by the owner only so that a refused create reaches us and
	// can be explained.
	mode := uint32(fs.cfg.Mode.Perm()) | 0o200
	mode |= mode & 0o444 >> 2
	*out = fuse.Attr{
		Ino:     fuse.FUSE_ROOT_ID,
		Mode:    syscall.S_IFDIR | mode,
		Nlink:   2,
		Owner:   fuse.Owner{Uid: fs.cfg.UID, Gid: fs.cfg.GID},
		Blksize: 4096,
	}
	out.SetTimes(&fs.born, &fs.born, &fs.born)
}
