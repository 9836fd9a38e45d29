package fusefs

import (
	"context"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// attrPrefix begins the names of the attributes that tell a disk's facts.
const attrPrefix = "user.ukai."

// GetXAttr returns one of a disk's facts.
func (r *raw) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	name, ours := strings.CutPrefix(name, attrPrefix)
	if !ours || in.NodeId == fuse.FUSE_ROOT_ID {
		return 0, fuse.ENODATA
	}
	facts, status := r.factsOf(cancel, in.NodeId)
	if !status.Ok() {
		return 0, status
	}
	value, ok := facts[name]
	if !ok {
		return 0, fuse.ENODATA
	}
	return fill(dest, value)
}

// ListXAttr lists the names of a disk's facts.
func (r *raw) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return 0, fuse.OK
	}
	facts, status := r.factsOf(cancel, in.NodeId)
	if !status.Ok() {
		return 0, status
	}
	var names strings.Builder
	for _, name := range slices.Sorted(maps.Keys(facts)) {
		names.WriteString(attrPrefix + name + "\x00")
	}
	return fill(dest, names.String())
}

// SetXAttr refuses to change facts, and knows no other attributes.
func (r *raw) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, _ []byte) fuse.Status {
	return r.noXAttr("set attribute "+name, name, in.Pid)
}

// RemoveXAttr refuses to remove facts, and knows no other attributes.
func (r *raw) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return r.noXAttr("remove attribute "+name, name, in.Pid)
}

func (r *raw) noXAttr(what, name string, tid uint32) fuse.Status {
	if !strings.HasPrefix(name, attrPrefix) {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	return r.no(what, tid, "ukai-node place disk, or ukai-node disk: these attributes only tell what is so")
}

func (r *raw) factsOf(cancel <-chan struct{}, node uint64) (map[string]string, fuse.Status) {
	f, err := r.file(node)
	if err != nil {
		return nil, fuse.ENOENT
	}
	facts, err := r.facts(request(cancel), f)
	return facts, r.status("get attributes", f, err)
}

// facts asks the disk.
func (fs *filesystem) facts(ctx context.Context, f *file) (facts map[string]string, err error) {
	if open := fs.opened(f); len(open) > 0 {
		// It may be closed meanwhile, but facts can be told of a closed handle as well.
		return open[0].disk.Facts(ctx), nil
	}
	err = fs.borrow(ctx, f, func(h *handle) error {
		facts = h.disk.Facts(ctx)
		return nil
	})
	return facts, err
}

// fill puts an attribute into dest as getxattr(2) wants it: if dest is too small, it is told how much it takes.
func fill(dest []byte, value string) (uint32, fuse.Status) {
	n := uint32(len(value))
	if len(dest) < len(value) {
		return n, fuse.ERANGE
	}
	copy(dest, value)
	return n, fuse.OK
}
