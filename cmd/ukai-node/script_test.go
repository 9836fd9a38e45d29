package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"ukai/fusefs"
	"ukai/node/admin"
	"ukai/node/admin/admintest"
)

var update = flag.Bool("update", false, "rewrite COMMANDS.md, and what scripts expect, to what is")

// TestScripts runs the scripts in testdata/script against a mesh that is a fake, as the node t1. In a script
//
//	ukai-node ARGS...        runs the program in this process, at noon of 2026-03-01; "!" before it: it fails
//	exits CODE ARGS...       the same, and compares the exit code
//	attach DISK NODE, crash NODE, rot DISK, split DISK
//	                         change the mesh
//	[fuse]                   this user may mount
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           filepath.Join("testdata", "script"),
		UpdateScripts: *update,
		Setup:         setupMesh,
		Condition: func(name string) (bool, error) {
			if name != "fuse" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return fusefs.CheckSupport() == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ukai-node": func(ts *testscript.TestScript, neg bool, args []string) {
				if code := run(ts, args); neg != (code != 0) {
					ts.Fatalf("exit code %d", code)
				}
			},
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				if code := run(ts, args[1:]); code != want {
					ts.Fatalf("exit code %d, want %d", code, want)
				}
			},
			"attach": func(ts *testscript.TestScript, _ bool, args []string) { mesh(ts).Attach(args[0], args[1]) },
			"rot":    func(ts *testscript.TestScript, _ bool, args []string) { mesh(ts).Rot(args[0], 2) },
			"split":  func(ts *testscript.TestScript, _ bool, args []string) { mesh(ts).Split(args[0]) },
			"crash":  func(ts *testscript.TestScript, _ bool, args []string) { mesh(ts).Kill(args[0]) },
		},
	})
}

type meshKey struct{}

func mesh(ts *testscript.TestScript) *admintest.Fake { return ts.Value(meshKey{}).(*admintest.Fake) }

// setupMesh serves a fake mesh at a socket of the script's own. The node o1 is reached through t1.
func setupMesh(env *testscript.Env) error {
	far := admin.NewServer(admin.ServerConfig{Backend: admintest.New("o1", nil), Version: "v0.1.0"})
	near := admintest.New("t1", func(ctx context.Context, node string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(env.WorkDir, node+".sock"))
	})
	env.Values[meshKey{}] = near
	for path, s := range map[string]*admin.Server{
		"o1.sock": far,
		"t1.sock": admin.NewServer(admin.ServerConfig{Backend: near, Version: "v0.1.0"}),
	} {
		l, err := net.Listen("unix", filepath.Join(env.WorkDir, path))
		if err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		env.Defer(func() {
			if err := s.Close(context.Background()); err != nil {
				env.T().Fatal(err)
			}
			if err := <-ended; err != nil {
				env.T().Fatal(err)
			}
		})
	}
	env.Setenv("UKAI_SOCKET", filepath.Join(env.WorkDir, "t1.sock"))
	env.Setenv("UKAI_CONFIG", filepath.Join(env.WorkDir, "ukai.yaml"))
	return nil
}

func run(ts *testscript.TestScript, args []string) int {
	a := app{
		stdout: ts.Stdout(), stderr: ts.Stderr(), args: args, version: "v0.1.0", now: func() time.Time { return admintest.Epoch },
		env: func(k string) (string, bool) { v := ts.Getenv(k); return v, v != "" },
	}
	a.open = openNode
	return a.main()
}

func runApp(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	a := app{stdout: &out, stderr: &errs, args: args, version: "v0.1.0", now: func() time.Time { return admintest.Epoch }, env: func(string) (string, bool) { return "", false }}
	code = a.main()
	return code, out.String(), errs.String()
}

func TestColoursOnlyWhereTheyAreWanted(t *testing.T) {
	a := app{paint: true}
	if got := a.colour(red, "dead"); got != "\x1b[31mdead\x1b[0m" {
		t.Errorf("painted: %q", got)
	}
	if got := (&app{}).colour(red, "dead"); got != "dead" {
		t.Errorf("not painted: %q", got)
	}
	// Cells line up although some are painted.
	var plain, painted bytes.Buffer
	for w, a := range map[*bytes.Buffer]*app{&plain: {}, &painted: {paint: true}} {
		a.stdout = w
		a.table([]string{"A", "B"}, [][]string{{a.colour(red, "x"), "1"}, {"longer", "2"}})
	}
	if got := bytes.ReplaceAll(bytes.ReplaceAll(painted.Bytes(), []byte("\x1b[31m"), nil), []byte("\x1b[0m"), nil); !bytes.Equal(got, plain.Bytes()) {
		t.Errorf("painted\n%s\nplain\n%s", got, &plain)
	}
}

func TestWithoutANodeTheExitCodeSaysSo(t *testing.T) {
	code, _, stderr := runApp("status", "--socket", filepath.Join(t.TempDir(), "none.sock"))
	if code != exitUnreachable {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestALargeMeshShowsRoundTripTimesPerDatacenter(t *testing.T) {
	var s admin.Status
	for i := range maxMatrix + 2 {
		dc := []string{"osaka", "tokyo"}[i%2]
		s.Nodes = append(s.Nodes, admin.Node{Name: fmt.Sprintf("n%d", i), Labels: map[string]string{"dc": dc}})
	}
	s.RTTs = []admin.RTT{
		{From: "n0", To: "n2", RTTMicros: 300}, {From: "n0", To: "n4", RTTMicros: 900, Measured: true}, // both in osaka: the measured one counts
		{From: "n0", To: "n1", RTTMicros: 8000, Measured: true}, {From: "n3", To: "n2", RTTMicros: 9000, Measured: true}, {From: "n5", To: "n2", RTTMicros: 10000, Measured: true},
	}
	header, rows, all := matrix(s)
	if got, want := fmt.Sprint(header, rows, all), "[ >osaka >tokyo] [[osaka 0.90 9.0] [tokyo 9.0 .]] true"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAnEventIsOneLineOfJSONOrOneDocumentOfYAML(t *testing.T) {
	e := admin.Event{Seq: 7, Time: admintest.Epoch, Level: admin.Warn, Kind: "node-dead", Node: "t2", Text: "node t2 is dead"}
	for output, want := range map[string]string{
		"json":  `{"seq":7,"time":"2026-03-01T12:00:00Z","level":"warning","kind":"node-dead","node":"t2","text":"node t2 is dead"}` + "\n",
		"yaml":  "---\nseq: 7\ntime: \"2026-03-01T12:00:00Z\"\nlevel: warning\nkind: node-dead\nnode: t2\ntext: node t2 is dead\n",
		"table": "2026-03-01T12:00:00Z warning  node-dead            t2 node t2 is dead\n",
	} {
		var out bytes.Buffer
		if err := (&app{stdout: &out, output: output}).printEvent(e); err != nil || out.String() != want {
			t.Errorf("%s: %v\n%swant\n%s", output, err, &out, want)
		}
	}
}
