//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ukai/testnet/proc"
)

// lockProcessOf is the environment variable that makes the test program a process that locks the file it names.
const lockProcessOf = "UKAI_TEST_LOCKS"

func TestMain(m *testing.M) {
	path := os.Getenv(lockProcessOf)
	if path == "" {
		os.Exit(m.Run())
	}
	p := lockProcess{path: path}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(p.do(strings.Fields(in.Text())))
	}
}

// lockProcess is what such a process has.
type lockProcess struct {
	path string
	open []*os.File
}

// do obeys one command, and says "ok", the name of the errno, or what was asked for:
//
//	open rw|ro                                 another descriptor, which the commands after it use
//	close                                      the newest descriptor
//	write                                      one sector
//	posix|ofd[-wait] sh|ex|un START LENGTH     fcntl(2)
//	posix?|ofd? sh|ex START LENGTH             what is in the way: "nothing", or its kind, range and, if it can be told, process
//	flock[-wait] sh|ex|un                      flock(2)
func (p *lockProcess) do(words []string) string {
	kinds := map[string]int16{"sh": unix.F_RDLCK, "ex": unix.F_WRLCK, "un": unix.F_UNLCK}
	commands := map[string]int{"posix": unix.F_SETLK, "posix-wait": unix.F_SETLKW, "posix?": unix.F_GETLK, "ofd": unix.F_OFD_SETLK, "ofd-wait": unix.F_OFD_SETLKW, "ofd?": unix.F_OFD_GETLK}
	f := (*os.File)(nil)
	if len(p.open) > 0 {
		f = p.open[len(p.open)-1]
	}
	switch words[0] {
	case "open":
		f, err := os.OpenFile(p.path, map[string]int{"rw": os.O_RDWR, "ro": os.O_RDONLY}[words[1]], 0)
		if err == nil {
			p.open = append(p.open, f)
		}
		return answer(err)
	case "close":
		p.open = p.open[:len(p.open)-1]
		return answer(f.Close())
	case "write":
		_, err := f.WriteAt(make([]byte, 512), 4096)
		return answer(err)
	case "flock", "flock-wait":
		how := map[string]int{"sh": unix.LOCK_SH, "ex": unix.LOCK_EX, "un": unix.LOCK_UN}[words[1]]
		if words[0] == "flock" {
			how |= unix.LOCK_NB
		}
		return answer(persist(func() error { return unix.Flock(int(f.Fd()), how) }))
	}
	start, _ := strconv.ParseInt(words[2], 10, 64)
	length, _ := strconv.ParseInt(words[3], 10, 64)
	lk := unix.Flock_t{Type: kinds[words[1]], Start: start, Len: length}
	err := persist(func() error { return unix.FcntlFlock(f.Fd(), commands[words[0]], &lk) })
	if err != nil || !strings.HasSuffix(words[0], "?") {
		return answer(err)
	}
	for name, kind := range kinds {
		if kind == lk.Type && kind != unix.F_UNLCK {
			return fmt.Sprintf("%s:%d+%d:%d", name, lk.Start, lk.Len, lk.Pid)
		}
	}
	return "nothing"
}

// persist repeats what a signal of the Go runtime interrupted.
func persist(f func() error) error {
	err := f()
	for errors.Is(err, unix.EINTR) {
		err = f()
	}
	return err
}

func answer(err error) string {
	errno := unix.Errno(0)
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// locker is a lock process as the test sees it.
type locker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startLocker(t *testing.T, path string) *locker {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), lockProcessOf+"="+path)
	return startProgram(t, cmd)
}

// startProgram starts a program that obeys the lines it reads.
func startProgram(t *testing.T, cmd *exec.Cmd) *locker {
	t.Helper()
	l := &locker{cmd: cmd}
	l.cmd.Stderr = os.Stderr
	var out io.ReadCloser
	var err error
	if l.in, err = l.cmd.StdinPipe(); err == nil {
		if out, err = l.cmd.StdoutPipe(); err == nil {
			err = l.cmd.Start()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	l.out = bufio.NewReader(out)
	t.Cleanup(l.kill)
	return l
}

func (l *locker) send(command string) { _, _ = fmt.Fprintln(l.in, command) }

// answer returns what the process said to the last command. One that says nothing is ended.
func (l *locker) answer() string {
	patience := time.AfterFunc(proc.Patience, func() { _ = l.cmd.Process.Kill() })
	defer patience.Stop()
	line, err := l.out.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func (l *locker) do(command string) string {
	l.send(command)
	return l.answer()
}

// kill ends the process as kill -9 does.
func (l *locker) kill() {
	_ = l.cmd.Process.Kill()
	_ = l.cmd.Wait()
}

// waits says whether a thread of the process waits in the kernel for a lock.
func (l *locker) waits() error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", l.cmd.Process.Pid))
	for _, path := range threads {
		call, _ := os.ReadFile(path) // a thread that has ended waits for nothing
		if f := strings.Fields(string(call)); len(f) > 2 && (f[0] == fmt.Sprint(unix.SYS_FLOCK) ||
			f[0] == fmt.Sprint(unix.SYS_FCNTL) && (f[2] == fmt.Sprintf("%#x", unix.F_SETLKW) || f[2] == fmt.Sprintf("%#x", unix.F_OFD_SETLKW))) {
			return nil
		}
	}
	return errors.Join(err, errors.New("no thread of it waits"))
}

// play has processes lock a file as a script says: a line per step, PROCESS COMMAND and then what it answers. "waits" says that it
// does not answer yet; it does so in a later step without a command. "killed" ends the process. A process is started when it is first named;
// what answers as "ex:0+10:a" names the process a.
func play(t *testing.T, m *proc.Mesh, script string, path func(process string) string) {
	t.Helper()
	procs := map[string]*locker{}
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		name, command, want := words[0], strings.Join(words[1:len(words)-1], " "), words[len(words)-1]
		p := procs[name]
		if p == nil {
			p = startLocker(t, path(name))
			procs[name] = p
		}
		if want == "killed" {
			p.kill()
			continue
		}
		if command != "" {
			p.send(command)
		}
		if want == "waits" {
			m.Await(name+" waits for a lock", p.waits)
			continue
		}
		got := p.answer()
		for other, q := range procs {
			got = strings.ReplaceAll(got, fmt.Sprintf(":%d", q.cmd.Process.Pid), ":"+other)
		}
		if strings.HasPrefix(command, "ofd?") { // nobody's, as a local file system has it; a mount knows the process
			got = got[:max(strings.LastIndex(got, ":"), 0)]
			if got == "" {
				got = "nothing"
			}
		}
		if got != want {
			t.Fatalf("%s: got %q in step %q", filepath.Dir(path(name)), got, strings.TrimSpace(line))
		}
	}
}
