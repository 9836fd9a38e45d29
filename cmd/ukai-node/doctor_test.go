package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"ukai/node/admin"
)

// machine reads files of a machine that has only these.
func machine(files map[string]string) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		text, ok := files[path]
		if !ok {
			return nil, fmt.Errorf("open %s: %w", path, os.ErrNotExist)
		}
		return []byte(text), nil
	}
}

func TestLibvirtThatTakesTheMountForLocalIsFound(t *testing.T) {
	for _, test := range []struct {
		name, conf, mount string
		found             bool
	}{
		{"not configured", "user = \"libvirt-qemu\"\n", "/ukai", true},
		{"commented out", "#shared_filesystems = [\n# \"/ukai\"\n#]\n", "/ukai", true},
		{"another directory", `shared_filesystems = [ "/ukai2", "/srv" ]`, "/ukai", true},
		{"in one line", `shared_filesystems = [ "/srv", "/ukai/" ]`, "/ukai", false},
		{"in several lines", "shared_filesystems = [\n  \"/srv\",\n  \"/mnt\"\n]\n", "/mnt/ukai", false},
		{"no mount", "", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := libvirt(machine(map[string]string{qemuConf: test.conf}), test.mount)
			if len(found) > 0 != test.found {
				t.Fatalf("found %v", found)
			}
			if test.found && !strings.Contains(found[0].Remedy, `shared_filesystems = [ "`+test.mount+`" ]`) {
				t.Errorf("remedy %q", found[0].Remedy)
			}
		})
	}
	if found := libvirt(machine(nil), "/ukai"); len(found) > 0 {
		t.Errorf("without libvirt: %v", found)
	}
}

func TestSmallUDPBuffersAreFound(t *testing.T) {
	found := sockets(machine(map[string]string{"/proc/sys/net/core/rmem_max": "212992\n", "/proc/sys/net/core/wmem_max": "7500000\n"}))
	if len(found) != 1 || !strings.Contains(found[0].Text, "net.core.rmem_max is 212992") || !strings.Contains(found[0].Remedy, "sysctl -w net.core.rmem_max=7500000") {
		t.Errorf("found %v", found)
	}
}

func TestDifferentReleasesAreFound(t *testing.T) {
	nodes := []admin.Node{{Name: "t1", Version: "v1", State: admin.NodeAlive}, {Name: "t2", Version: "v2", State: admin.NodeAlive}, {Name: "t3", Version: "v3", State: admin.NodeDead}}
	found := versions(nodes)
	if len(found) != 1 || !strings.Contains(found[0].Text, "v1 on t1; v2 on t2") || strings.Contains(found[0].Text, "v3") {
		t.Errorf("found %v", found)
	}
	if found := versions(nodes[:1]); len(found) > 0 {
		t.Errorf("one release: %v", found)
	}
}

func TestTheSameWarningOfSeveralDisksIsPrintedOnce(t *testing.T) {
	var out bytes.Buffer
	a := app{stdout: &out}
	var list []admin.Warning
	for i := range 7 {
		list = append(list, admin.Warning{Level: admin.Notice, Disk: fmt.Sprintf("vm%d", i), Text: fmt.Sprintf("disk vm%d: one copy", i), Remedy: "make two"})
	}
	list = append(list, admin.Warning{Level: admin.Warn, Disk: "vm0", Text: "disk vm0: no rule"}, admin.Warning{Level: admin.Warn, Node: "t1", Text: "node t1 is dead"})
	a.warnings(list)
	want := "notice: disks vm0, vm1, vm2, vm3, vm4 and 2 more: one copy\n  remedy: make two\nwarning: disk vm0: no rule\nwarning: node t1 is dead\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
}
