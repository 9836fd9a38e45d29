package fusefs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ukai"
)

const (
	device     = "/dev/fuse"
	fusermount = "fusermount3"

	// probeTimeout is how long a mount found at our directory may take to say whether it is alive.
	probeTimeout = 5 * time.Second
	// maxStacked bounds how many dead mounts on top of each other are removed.
	maxStacked = 16
	maxLinks   = 40 // as the kernel
)

// CheckSupport says what keeps this machine from mounting, or nil.
func CheckSupport() error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case err == nil:
		_ = f.Close() // nothing was done with it
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s: %w: the kernel has no FUSE; load it with 'modprobe fuse', in a container pass --device %s", device, ukai.ErrUnsupported, device)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w: opening it is not allowed; run as root or let the user in (mode 0666 is usual), in a container pass --device %s", device, ukai.ErrPermission, device)
	default:
		return fmt.Errorf("%s: %w", device, err)
	}
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath(fusermount); err != nil {
			return fmt.Errorf("mounting without being root takes %s: %w: install the package fuse3, or run as root", fusermount, ukai.ErrNotFound)
		}
	}
	return nil
}

// fuseConf is where an administrator says what users may do with FUSE.
const fuseConf = "/etc/fuse.conf"

// checkOthers says why other users cannot be let in, or nil. fusermount3 would say so, but only once the node is up.
func checkOthers(cfg Config) error {
	if os.Geteuid() == 0 || !cfg.AllowOther {
		return nil
	}
	b, err := os.ReadFile(fuseConf)
	if err == nil && slices.Contains(strings.Fields(string(b)), "user_allow_other") {
		return nil
	}
	return fmt.Errorf("mount directory %s: %w: letting other users in takes root, or a line user_allow_other in %s", cfg.Dir, ukai.ErrPermission, fuseConf)
}

// Check says why cfg could not be mounted, as far as that is known beforehand, or nil. It makes the directory and takes away a mount on
// it whose daemon has died.
func Check(cfg Config) error {
	_, err := check(cfg.withDefaults())
	return err
}

// check is Check; it returns the directory without symbolic links.
func check(cfg Config) (string, error) {
	if err := errors.Join(CheckSupport(), checkOthers(cfg)); err != nil {
		return "", err
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return "", fmt.Errorf("mount directory %q: %w", cfg.Dir, err)
	}
	return prepare(dir, cfg.Log, 0)
}

// mountHint says what may help against err.
func mountHint(err error) string {
	if os.Geteuid() == 0 && errors.Is(err, unix.EPERM) {
		return ": mounting takes CAP_SYS_ADMIN; in a container pass --cap-add SYS_ADMIN"
	}
	return ""
}

// prepare makes dir, to which so many symbolic links have led, ready to be mounted on and returns it without them.
func prepare(dir string, log *slog.Logger, links int) (string, error) {
	if links > maxLinks {
		return "", fmt.Errorf("mount directory %s: %w: symbolic links lead in a circle", dir, ukai.ErrInvalid)
	}
	// Only the parent is resolved: of a mount whose daemon died nothing can be asked.
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(dir), 0o755); err == nil {
			parent, err = filepath.EvalSymlinks(filepath.Dir(dir))
		}
	}
	if err != nil {
		return "", fmt.Errorf("mount directory %s: %w", dir, err)
	}
	dir = filepath.Join(parent, filepath.Base(dir))
	if target, err := os.Readlink(dir); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(parent, target)
		}
		return prepare(target, log, links+1)
	}
	if err := removeDead(dir, log); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("mount directory %s: %w", dir, err)
	}
	names, err := readNames(dir)
	if err != nil {
		return "", fmt.Errorf("mount directory %s: %w", dir, err)
	}
	if len(names) > 0 {
		return "", fmt.Errorf("mount directory %s: %w: it is not empty (%s), and mounting would hide what is in it; name another directory or move that away",
			dir, ukai.ErrInvalid, strings.Join(names, ", "))
	}
	return dir, nil
}

// readNames returns a few of the names in dir.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(3)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, errors.Join(err, f.Close())
}

// removeDead takes away mounts of ours on dir whose daemon has died; another mount there is an error.
func removeDead(dir string, log *slog.Logger) error {
	for range maxStacked {
		kind, source, err := mountedAt(dir)
		if err != nil {
			return fmt.Errorf("mount directory %s: %w", dir, err)
		}
		if kind == "" {
			return nil
		}
		err = probe(dir)
		dead := errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
		switch {
		case dead && kind == fsType:
			if err := unmount(dir, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("mount directory %s: removing the mount of a daemon that died: %w", dir, err)
			}
			log.Info("removed the mount of a daemon that died", "dir", dir)
		case dead:
			return fmt.Errorf("mount directory %s: %w: a dead mount of %s (%s) is there; remove it with 'umount -l %s'", dir, ukai.ErrLocked, source, kind, dir)
		case errors.Is(err, ukai.ErrTimeout):
			return fmt.Errorf("mount directory %s: %w: %s (%s) is mounted there and does not answer", dir, ukai.ErrLocked, source, kind)
		case kind == fsType:
			return fmt.Errorf("mount directory %s: %w: another ukai-node has its disks mounted there; stop it or name another directory", dir, ukai.ErrLocked)
		default:
			return fmt.Errorf("mount directory %s: %w: %s (%s) is mounted there; name another directory", dir, ukai.ErrLocked, source, kind)
		}
	}
	return fmt.Errorf("mount directory %s: %w: more than %d dead mounts are on top of each other", dir, ukai.ErrLocked, maxStacked)
}

// probe asks a mount whether it is alive. The goroutine of one that does not answer stays until it does.
func probe(dir string) error {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return err
	case <-time.After(probeTimeout):
		return ukai.ErrTimeout
	}
}

// mountedAt returns type and source of the topmost mount on dir, "" if there is none.
func mountedAt(dir string) (kind, source string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	kind, source, err = findMount(f, dir)
	return kind, source, errors.Join(err, f.Close())
}

// findMount looks for the last mount on dir in text of the form that proc(5) gives /proc/self/mountinfo.
func findMount(r io.Reader, dir string) (kind, source string, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) >= 5 && len(rest) >= 2 && unescape(fields[4]) == dir {
			kind, source = rest[0], unescape(rest[1])
		}
	}
	return kind, source, lines.Err()
}

// unescape turns \040 and the like, as mountinfo writes blanks, into what they stand for.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return '0' <= c && c <= '7' }

// unmount takes the topmost mount off dir. Without root fusermount3 does it, which knows no MNT_FORCE.
func unmount(dir string, flags int) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW)
	}
	args := []string{"-u", dir}
	if flags&unix.MNT_DETACH != 0 {
		args = []string{"-uz", dir}
	}
	out, err := exec.Command(fusermount, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(string(out))
	if strings.Contains(text, "busy") {
		return fmt.Errorf("%s: %w", text, unix.EBUSY)
	}
	return fmt.Errorf("%s: %w", text, err)
}
