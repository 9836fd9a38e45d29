//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ukai/testnet/proc"
)

// What several processes on one host do with locks of one file; on a disk it must be the same as on a local file.
var lockScripts = map[string]string{
	"POSIX locks": `
		a open rw                 ok
		b open rw                 ok
		a posix ex 0 100          ok
		b posix sh 99 1           EAGAIN
		b posix? sh 0 1000        ex:0+100:a
		b posix ex 100 50         ok
		a posix? sh 0 0           ex:100+50:b
		a posix un 40 20          ok
		b posix sh 40 20          ok
		a posix sh 40 20          ok
		a posix ex 40 20          EAGAIN
		a posix sh 0 40           ok
		b posix sh 0 40           ok
		b posix? ex 20 1          sh:0+60:a
		b posix un 0 0            ok
		a posix ex 0 60           ok`,
	"a POSIX lock is waited for": `
		a open rw                 ok
		b open rw                 ok
		c open rw                 ok
		a posix ex 0 10           ok
		b posix-wait sh 5 1       waits
		c posix-wait sh 6 1       waits
		a posix un 5 5            ok
		b                         ok
		c                         ok
		a posix ex 6 1            EAGAIN
		a posix-wait ex 6 1       waits
		c                         killed
		a                         ok`,
	"any close drops the POSIX locks of the process": `
		a open rw                 ok
		b open rw                 ok
		a posix ex 0 10           ok
		a open ro                 ok
		b posix sh 0 1            EAGAIN
		a close                   ok
		b posix sh 0 1            ok`,
	"locks of open files": `
		a open rw                 ok
		b open rw                 ok
		a ofd ex 0 10             ok
		b ofd sh 9 1              EAGAIN
		b posix sh 9 1            EAGAIN
		b ofd? sh 0 0             ex:0+10
		a open rw                 ok
		a ofd sh 0 1              EAGAIN
		a close                   ok
		b ofd sh 0 1              EAGAIN
		a ofd sh 0 10             ok
		b ofd sh 0 1              ok
		a ofd-wait ex 0 1         waits
		b                         killed
		a                         ok
		c open rw                 ok
		c ofd-wait sh 0 1         waits
		a close                   ok
		c                         ok`,
	"flock": `
		a open rw                 ok
		b open rw                 ok
		a flock sh                ok
		b flock sh                ok
		a flock ex                EAGAIN
		b flock ex                ok
		a flock-wait sh           waits
		b posix ex 0 0            ok
		b close                   ok
		a                         ok
		b open rw                 ok
		b flock-wait ex           waits
		a                         killed
		b                         ok`,
	// How SQLite's processes get at a database: many that read, one that is going to write, which keeps new readers away, waits for those
	// there are, and has it alone.
	"SQLite": `
		a open rw                     ok
		b open rw                     ok
		c open rw                     ok
		a posix sh 1073741824 1       ok
		a posix sh 1073741826 510     ok
		a posix un 1073741824 1       ok
		b posix sh 1073741824 1       ok
		b posix sh 1073741826 510     ok
		b posix un 1073741824 1       ok
		b posix ex 1073741825 1       ok
		a posix ex 1073741825 1       EAGAIN
		a posix? ex 1073741825 1      ex:1073741825+1:b
		b posix ex 1073741824 1       ok
		b posix ex 1073741826 510     EAGAIN
		c posix sh 1073741824 1       EAGAIN
		a posix un 1073741826 510     ok
		b posix ex 1073741826 510     ok
		b write                       ok
		c posix sh 1073741824 1       EAGAIN
		b posix sh 1073741826 510     ok
		b posix un 1073741824 2       ok
		c posix sh 1073741824 1       ok
		c posix sh 1073741826 510     ok
		c posix ex 1073741825 1       ok
		c                             killed
		a posix ex 1073741825 1       ok`,
	"a process that is killed has no locks": `
		a open rw                 ok
		b open rw                 ok
		a posix ex 0 0            ok
		a flock ex                ok
		b posix sh 0 1            EAGAIN
		b flock sh                EAGAIN
		a                         killed
		b posix ex 0 0            ok
		b flock ex                ok
		b write                   ok
		c open rw                 ok
		c ofd sh 0 1              EAGAIN
		b                         killed
		c ofd ex 0 0              ok
		c write                   ok`,
}

func TestLocksOfSeveralProcessesOnOneHostAreAsOnALocalFile(t *testing.T) {
	m := proc.Start(t, "t1:tokyo t2:tokyo w1:fukuoka:witness")
	m.Nodes["t1"].Must("disk", "create", "vm1", "16M", "dc=tokyo:2")
	m.AwaitDisk("vm1")
	local := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(local, nil, 0o600), os.Truncate(local, 16<<20)); err != nil {
		t.Fatal(err)
	}
	for name, script := range lockScripts {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{local, m.Nodes["t1"].Path("vm1")} {
				play(t, m, script, func(string) string { return path })
			}
		})
	}
	t.Run("the program flock", func(t *testing.T) {
		need(t, "flock")
		for _, path := range []string{local, m.Nodes["t1"].Path("vm1")} {
			a := startLocker(t, path)
			if got := a.do("open rw") + a.do("flock ex"); got != "okok" {
				t.Fatalf("%s: %s", path, got)
			}
			if err := exec.Command("flock", "-n", path, "true").Run(); err == nil {
				t.Errorf("%s: flock -n got what another process has", path)
			}
			a.kill()
			if out, err := exec.Command("flock", "-n", path, "true").CombinedOutput(); err != nil {
				t.Errorf("%s: flock -n after that was killed: %v: %s", path, err, out)
			}
		}
	})
	t.Run("qemu-img", func(t *testing.T) {
		need(t, "qemu-img", "qemu-io", "qemu-system-x86_64")
		for _, path := range []string{local, m.Nodes["t1"].Path("vm1")} {
			q := startQEMU(t, path)
			for _, c := range qemuWriters(path) {
				if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err == nil || !strings.Contains(string(out), `Failed to get "write" lock`) {
					t.Errorf("%s beside a virtual machine: %v: %s", strings.Join(c, " "), err, out)
				}
			}
			if out, err := exec.Command("qemu-img", "info", "-U", "-f", "raw", path).CombinedOutput(); err != nil {
				t.Errorf("qemu-img info -U beside a virtual machine: %v: %s", err, out)
			}
			q.kill()
			for _, c := range qemuWriters(path) {
				sh(t, c[0], c[1:]...)
			}
		}
	})
}

// startQEMU starts a virtual machine that has a raw image.
func startQEMU(t *testing.T, path string) *locker {
	t.Helper()
	l := startProgram(t, exec.Command("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-monitor", "stdio", "-S",
		"-drive", "if=virtio,format=raw,cache=none,file="+path))
	l.send("info block")
	for {
		switch line := l.answer(); {
		case strings.Contains(line, path+" (raw)"):
			return l
		case line == "EOF":
			t.Fatalf("QEMU with %s ended", path)
		}
	}
}

// qemuWriters are commands that need an image for themselves.
func qemuWriters(path string) [][]string {
	return [][]string{
		{"qemu-io", "-f", "raw", "-c", "write -P 9 8192 4096", path},
		{"qemu-img", "bench", "-f", "raw", "-w", "-c", "1", "-d", "1", path},
	}
}

// Locks are kept per host. What hosts know of each other is who writes: whoever has a lock on byte 101 or 103, as QEMU has, or has written and
// not closed the file.
func TestLocksOfProcessesOnTwoHostsKeepWithinTheirLimits(t *testing.T) {
	m := proc.Start(t, "t1:tokyo t2:tokyo w1:fukuoka:witness")
	t1, t2 := m.Nodes["t1"], m.Nodes["t2"]
	t1.Must("disk", "create", "vm1", "16M", "dc=tokyo:2")
	m.AwaitDisk("vm1")
	path := func(process string) string {
		return m.Nodes[map[byte]string{'a': "t1", 'b': "t2"}[process[0]]].Path("vm1")
	}
	log := func() string {
		data, err := os.ReadFile(t2.Log)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	told := func(t *testing.T, before int, what string) {
		t.Helper()
		m.Await("a line in the log of t2 that names the holder", func() error {
			for line := range strings.Lines(log()[before:]) {
				if strings.Contains(line, what) && strings.Contains(line, "vm1") && strings.Contains(line, "t1") {
					return nil
				}
			}
			return fmt.Errorf("none among %d bytes", len(log())-before)
		})
	}

	for _, kind := range []string{"posix", "ofd"} {
		t.Run("a "+kind+" lock of QEMU's bytes", func(t *testing.T) {
			before := len(log())
			a, b := startLocker(t, path("a")), startLocker(t, path("b"))
			for _, step := range []struct {
				p             *locker
				command, want string
			}{
				{a, "open rw", "ok"}, {b, "open rw", "ok"},
				{a, kind + " ex 101 1", "ok"},
				{b, kind + " ex 101 1", "EAGAIN"},
				{b, kind + " ex 0 0", "EAGAIN"},
				{b, kind + "-wait ex 101 1", "EAGAIN"}, // whoever waits for another host tries again
				{b, kind + " ex 0 100", "ok"},          // not what t1 is asked for
				{b, "write", "EBUSY"},
			} {
				if got := step.p.do(step.command); got != step.want {
					t.Fatalf("%s: got %s, want %s", step.command, got, step.want)
				}
			}
			told(t, before, "attach")
			a.kill()
			m.Await("the lock when its process was killed", func() error { return want(b.do(kind+" ex 101 1"), "ok") })
			if err := want(b.do("write"), "ok"); err != nil {
				t.Error(err)
			}
			b.kill()
		})
	}

	t.Run("a program without locks", func(t *testing.T) {
		before := len(log())
		a, b := startLocker(t, path("a")), startLocker(t, path("b"))
		a.do("open rw")
		b.do("open rw")
		m.Await("t2 has let go", func() error { return want(a.do("write"), "ok") })
		if err := errors.Join(want(b.do("flock ex"), "ok"), want(b.do("posix ex 0 10"), "ok"), want(b.do("write"), "EBUSY")); err != nil {
			t.Error(err)
		}
		told(t, before, "write")
		a.kill()
		m.Await("a write when the writer was killed", func() error { return want(b.do("write"), "ok") })
		b.kill()
	})

	t.Run("QEMU", func(t *testing.T) {
		need(t, "qemu-img", "qemu-io", "qemu-system-x86_64")
		m.Await("t2 has let go", func() error {
			a := startLocker(t, path("a"))
			defer a.kill()
			return errors.Join(want(a.do("open rw"), "ok"), want(a.do("write"), "ok"))
		})
		q := startQEMU(t, t1.Path("vm1"))
		for _, c := range qemuWriters(t2.Path("vm1")) {
			// It says "Failed to lock byte 101" or "Failed to get "write" lock": on another host the lock itself is refused.
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err == nil || !strings.Contains(string(out), "Failed to") || !strings.Contains(string(out), "lock") {
				t.Errorf("%s on t2 beside a virtual machine on t1: %v: %s", strings.Join(c, " "), err, out)
			}
		}
		q.kill()
		for _, c := range qemuWriters(t2.Path("vm1")) {
			m.Await(strings.Join(c, " ")+" when QEMU on t1 was killed", func() error {
				out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
				if err != nil {
					err = fmt.Errorf("%w: %s", err, out)
				}
				return err
			})
		}
	})
}

func want(got, want string) error {
	if got != want {
		return fmt.Errorf("it answers %s, not %s", got, want)
	}
	return nil
}
