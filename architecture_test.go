package ukai_test

import (
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the import table in ARCHITECTURE.md")

// homes says where each third-party library that has one home lives.
var homes = map[string]string{
	"github.com/hashicorp/memberlist":     "gossip",
	"github.com/hashicorp/serf":           "gossip",
	"github.com/quic-go/quic-go":          "node/wire",
	"github.com/dgraph-io/badger/v4":      "node/store",
	"github.com/hanwen/go-fuse/v2":        "fusefs",
	"github.com/zeebo/xxh3":               "node/store",
	"github.com/fxamacker/cbor/v2":        "crdt/codec",
	"github.com/danielgtaylor/huma/v2":    "node/admin",
	"github.com/prometheus/client_golang": "node/admin",
	"github.com/spf13/cobra":              "cmd/ukai-node",
	"github.com/goccy/go-yaml":            "cmd/ukai-node",
	"github.com/jedib0t/go-pretty/v6":     "cmd/ukai-node",
	"github.com/coreos/go-systemd/v22":    "cmd/ukai-node",
	"github.com/vishvananda/netlink":      "testnet/wan",
	"github.com/anishathalye/porcupine":   "testnet/history",
	"pgregory.net/rapid":                  "tests only",
	"github.com/rogpeppe/go-internal":     "tests only",
	"go.uber.org/goleak":                  "tests only",
}

// importTable lists, for every package of the module, which packages of the module it imports.
func importTable(t *testing.T) (table []string, foreign map[string][]string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}|{{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	foreign = map[string][]string{}
	for line := range strings.Lines(string(out)) {
		name, imports, _ := strings.Cut(strings.TrimSpace(line), "|")
		room := strings.TrimPrefix(strings.TrimPrefix(name, "ukai"), "/")
		if room == "" {
			room = "ukai"
		}
		var ours []string
		for _, imp := range strings.Fields(imports) {
			switch {
			case imp == "ukai":
				ours = append(ours, "ukai")
			case strings.HasPrefix(imp, "ukai/"):
				ours = append(ours, strings.TrimPrefix(imp, "ukai/"))
			case strings.Contains(strings.SplitN(imp, "/", 2)[0], "."):
				foreign[room] = append(foreign[room], imp)
			}
		}
		slices.Sort(ours)
		table = append(table, strings.TrimSpace(room+": "+strings.Join(ours, " ")))
	}
	slices.Sort(table)
	return table, foreign
}

const fenceStart, fenceEnd = "```imports\n", "```\n"

func TestTheImportTableOfTheDocumentIsTheRealOne(t *testing.T) {
	table, _ := importTable(t)
	real := strings.Join(table, "\n") + "\n"
	doc, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), fenceStart)
	written, after, ok2 := strings.Cut(rest, fenceEnd)
	if !ok || !ok2 {
		t.Fatal("ARCHITECTURE.md has no block that begins with ```imports")
	}
	if written == real {
		return
	}
	if *update {
		if err := os.WriteFile("ARCHITECTURE.md", []byte(before+fenceStart+real+fenceEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the import table differs from `go list`.\nwritten:\n%s\nreal:\n%s\nIf the new imports are right: go test . -run ImportTable -update", written, real)
}

func TestEachLibraryIsUsedOnlyInItsHome(t *testing.T) {
	_, foreign := importTable(t)
	for room, imports := range foreign {
		for _, imp := range imports {
			for lib, home := range homes {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && room != home && !strings.HasPrefix(room, home+"/") {
					t.Errorf("%s imports %s, whose home is %s", room, imp, home)
				}
			}
		}
	}
}

// levels orders the rooms: a room imports only rooms of lower levels. Rooms on one level do not know each other.
var levels = []map[string]bool{
	{"ukai": true},
	{"crdt/codec": true},
	{"crdt": true},
	{"node/cell": true, "node/place": true, "gossip": true, "node/store": true, "node/wire": true, "node/admin": true},
	{"node/volume": true},
	{"node": true},
	{"fusefs": true},
	{"cmd/ukai-node": true},
}

func TestRoomsImportOnlyDownwards(t *testing.T) {
	level := map[string]int{}
	for i, rooms := range levels {
		for room := range rooms {
			level[room] = i
		}
	}
	table, _ := importTable(t)
	for _, line := range table {
		room, imports, _ := strings.Cut(line, ": ")
		room = strings.TrimSuffix(room, ":")
		own, ok := level[room]
		if !ok {
			continue
		}
		for _, imp := range strings.Fields(imports) {
			if l, ok := level[imp]; ok && l >= own {
				t.Errorf("%s imports %s, which is not below it", room, imp)
			}
		}
	}
}
