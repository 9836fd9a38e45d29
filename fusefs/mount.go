package fusefs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"ukai"
)

const (
	// maxTransfer is the largest read or write that the kernel sends in one piece.
	maxTransfer = ukai.MaxIO
	// maxBackground bounds the asynchronous requests (direct I/O of QEMU's aio=native and io_uring, releases) that the
	// kernel sends before it makes others wait; requests of threads that wait themselves are not counted.
	maxBackground = 128
	// congestion is how many of them make the kernel take the mount for a busy device.
	congestion = 96

	fsType = "fuse.ukai"
)

// Config says what to mount and where.
type Config struct {
	// Dir is the directory to mount on. It is made if it is not there, and has to be empty.
	Dir string
	// Disks are shown in it.
	Disks Disks
	// Log gets refusals and errors; nil means slog.Default().
	Log *slog.Logger

	// AllowOther lets other users in than the one who runs the daemon, as far as Mode lets them. Hypervisors usually
	// run as a user of their own. Without being root it takes user_allow_other in /etc/fuse.conf.
	AllowOther bool
	// Mode, UID and GID are those of all files. Mode 0 means 0600; 0 for both ids means the daemon's own.
	Mode     fs.FileMode
	UID, GID uint32

	// AttrTimeout is how long the kernel believes names and attributes before it asks again; 0 means 1 s. It bounds
	// how long a change goes unseen that nobody told Mount of.
	AttrTimeout time.Duration
	// RequireLocks refuses, with EPERM, to write through a handle that does not hold one of QEMU's image locks.
	RequireLocks bool
	// RefuseTruncate refuses, with EPERM, to open a disk that holds data with O_TRUNC, instead of ignoring O_TRUNC.
	RefuseTruncate bool
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.UID == 0 && c.GID == 0 {
		c.UID, c.GID = uint32(os.Geteuid()), uint32(os.Getegid())
	}
	c.Mode = cmp.Or(c.Mode, 0o600)
	c.AttrTimeout = cmp.Or(c.AttrTimeout, time.Second)
	return c
}

// Mount is a mounted directory.
type Mount struct {
	dir    string
	fs     *filesystem
	server *fuse.Server
	end    context.CancelFunc
	done   chan struct{}
}

// Open mounts the disks and serves them until Unmount, Abort or umount(8). An old mount of ours whose daemon died is
// removed before; anything else that is in the way is an error that says what.
func Open(cfg Config) (*Mount, error) {
	cfg = cfg.withDefaults()
	dir, err := check(cfg)
	if err != nil {
		return nil, err
	}
	m := &Mount{dir: dir, done: make(chan struct{})}
	m.fs = &filesystem{cfg: cfg, born: time.Now()}
	m.fs.init()
	m.fs.life, m.end = context.WithCancel(context.Background())
	m.server, err = fuse.NewServer(&raw{fuse.NewDefaultRawFileSystem(), m.fs}, dir, m.options())
	if err != nil {
		m.end()
		_ = removeDead(dir, cfg.Log) // if it came to a mount that nobody serves; the error that counts is err
		return nil, fmt.Errorf("mount on %s: %w%s", dir, err, mountHint(err))
	}
	m.fs.news = newNews(m.server, m.fs)
	go m.serve()
	if err := m.server.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount on %s: %w", dir, err), m.Abort(context.Background()))
	}
	return m, nil
}

// options are what is asked of the kernel.
func (m *Mount) options() *fuse.MountOptions {
	root := os.Geteuid() == 0
	return &fuse.MountOptions{
		FsName:              "ukai",
		Name:                strings.TrimPrefix(fsType, "fuse."),
		AllowOther:          m.fs.cfg.AllowOther,
		DirectMountStrict:   root, // else through fusermount3
		Options:             []string{"default_permissions", "noexec"},
		MaxWrite:            maxTransfer,
		MaxBackground:       maxBackground,
		CongestionThreshold: congestion,
		EnableLocks:         true,
		DisableSplice:       true, // see raw.Read
		// Else each getxattr of a security label or ACL, of which there are none, would come to us.
		IgnoreSecurityLabels: true,
		// ASYNC_DIO: io_submit and io_uring do not wait for each request in turn, and large requests are cut in pieces
		// that are under way together. ALLOW_MMAP: shared mappings work although files are opened for direct I/O.
		// ATOMIC_O_TRUNC is left out on purpose: with it the kernel takes an opened file for empty without asking, and
		// asynchronous reads by others would meet an end at 0 until it asks again.
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		Logger:            slog.NewLogLogger(m.fs.cfg.Log.Handler(), slog.LevelDebug),
		PanicHandler: func(what any) fuse.Status {
			m.fs.cfg.Log.Error("panic in a file operation", "panic", what, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
}

func (m *Mount) serve() {
	m.server.Serve()
	m.end()
	m.fs.shutdown()
	m.fs.news.close()
	close(m.done)
}

// Dir returns where the disks are mounted.
func (m *Mount) Dir() string { return m.dir }

// Wait returns when the directory is no longer mounted and all its disks are let go.
func (m *Mount) Wait() { <-m.done }

// Done is closed when Wait would return.
func (m *Mount) Done() <-chan struct{} { return m.done }

// Unmount ends the mount as soon as no file is open, and waits for that until ctx ends. Then the error, for which
// errors.Is(err, ukai.ErrLocked) holds, names the disks that are in use, and the mount goes on as before.
func (m *Mount) Unmount(ctx context.Context) error {
	const pause = 20 * time.Millisecond
	for {
		err := unmount(m.dir, 0)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EBUSY) {
			select {
			case <-m.done:
				return nil // somebody else was faster
			default:
				return fmt.Errorf("unmount %s: %w", m.dir, err)
			}
		}
		select {
		case <-m.done:
			return nil
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("unmount %s: %w: open: %s", m.dir, ukai.ErrLocked, m.inUse())
		}
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("unmount %s: %w", m.dir, ctx.Err())
	}
}

// inUse lists the disks that are open.
func (m *Mount) inUse() string {
	var names []string
	for _, h := range m.fs.opened(nil) {
		names = append(names, h.file.label())
	}
	if len(names) == 0 {
		return "the directory itself, by a program that works in it"
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

// Abort ends the mount at once: programs that have files open get errors from then on. It waits until ctx ends for the
// disks to be let go. Not being root, it can only take the directory out of sight: files that are open go on
// until they are closed or the daemon ends.
func (m *Mount) Abort(ctx context.Context) error {
	if err := unmount(m.dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("abort %s: %w", m.dir, err)
	}
	m.end()
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("abort %s: %w", m.dir, ctx.Err())
	}
}

// Invalidate makes the kernel look up a name anew that was created, removed or renamed. It does not block, and may be
// called while methods of Disks run.
func (m *Mount) Invalidate(name string) { m.fs.news.add(name, staleName|staleAttr) }

// Resized makes the kernel ask for a disk's size anew.
func (m *Mount) Resized(name string) { m.fs.news.add(name, staleAttr) }

// Stale makes the kernel drop the pages of a disk that programs have mapped: another node may have written to it.
// Everything but mmap is never cached.
func (m *Mount) Stale(name string) { m.fs.news.add(name, staleData) }
