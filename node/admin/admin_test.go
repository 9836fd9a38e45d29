package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node/admin"
	"ukai/node/admin/admintest"
)

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func listenPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }
func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case p.conns <- b:
		return a, nil
	case <-p.done:
		return nil, fmt.Errorf("closed: %w", ukai.ErrUnreachable)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serve starts a server for b and returns what dials it.
func serve(t *testing.T, b admin.Backend) *pipes {
	t.Helper()
	l := listenPipes()
	s := admin.NewServer(admin.ServerConfig{Backend: b, Version: "v0.1.0"})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l
}

func client(t *testing.T, l *pipes, node string) *admin.Client {
	c := admin.NewClient(admin.ClientConfig{Dial: l.dial, Node: node})
	t.Cleanup(c.Close)
	return c
}

// mustBe fails unless a client got what the backend says.
func mustBe[T any](t *testing.T, what string, got T, err error, want T, wantErr error) {
	t.Helper()
	if err != nil || wantErr != nil {
		t.Fatalf("%s: client %v, backend %v", what, err, wantErr)
	}
	g, _ := json.Marshal(got)
	w, _ := json.Marshal(want)
	// A list that is nil in the node is empty at the client.
	if w = bytes.ReplaceAll(w, []byte("null"), []byte("[]")); !bytes.Equal(g, w) {
		t.Errorf("%s:\nclient  %s\nbackend %s", what, g, w)
	}
}

func TestEveryMethodAnswersAtTheClientAsInTheNode(t *testing.T) {
	here, there := admintest.New("t1", nil), admintest.New("t1", nil) // the same calls on both
	c, ctx := client(t, serve(t, there), ""), t.Context()

	self, err := c.Self(ctx)
	wantSelf, wantErr := here.Self(ctx)
	mustBe(t, "self", self, err, wantSelf, wantErr)

	yes := true
	change := admin.NodeChange{Set: ukai.Labels{"rack": "r2"}, Unset: []string{"none"}, Drain: &yes}
	changed, err := c.ChangeNode(ctx, "o1", change)
	wantChanged, wantErr := here.ChangeNode(ctx, "o1", change)
	mustBe(t, "change node", changed, err, wantChanged, wantErr)

	here.Kill("w1")
	there.Kill("w1")
	retired, err := c.RetireNode(ctx, "w1", admin.RetireNode{})
	wantRetired, wantErr := here.RetireNode(ctx, "w1", admin.RetireNode{})
	mustBe(t, "retire node", retired, err, wantRetired, wantErr)

	disk := admin.NewDisk{Name: "vm1", SizeBytes: 20 << 30, Rule: &admin.Rule{Terms: []string{"dc=tokyo:2"}, MinSync: 1}, OnLoss: "error", Ack: "all"}
	created, err := c.CreateDisk(ctx, disk)
	wantCreated, wantErr := here.CreateDisk(ctx, disk)
	mustBe(t, "create", created, err, wantCreated, wantErr)
	here.Attach("vm1", "t1")
	there.Attach("vm1", "t1")

	status, err := c.Status(ctx)
	wantStatus, wantErr := here.Status(ctx)
	mustBe(t, "status", status, err, wantStatus, wantErr)

	place := admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=tokyo:1"}}, DryRun: true}
	placed, err := c.PlaceDisk(ctx, "vm1", place)
	wantPlaced, wantErr := here.PlaceDisk(ctx, "vm1", place)
	mustBe(t, "place disk", placed, err, wantPlaced, wantErr)

	placement, err := c.Placement(ctx, "vm1")
	wantPlacement, wantErr := here.Placement(ctx, "vm1")
	mustBe(t, "placement", placement, err, wantPlacement, wantErr)
	placements, err := c.Placements(ctx)
	wantPlacements, wantErr := here.Placements(ctx)
	mustBe(t, "placements", placements, err, wantPlacements, wantErr)

	survival, err := c.Survive(ctx, "dc=tokyo+rack=r 1")
	wantSurvival, wantErr := here.Survive(ctx, "dc=tokyo+rack=r 1")
	mustBe(t, "survive", survival, err, wantSurvival, wantErr)

	hour := int64(3600)
	change2 := admin.SetDefaults{Rule: &admin.Rule{Terms: []string{"any:2"}}, RepairAfterSeconds: &hour}
	defaults, err := c.SetDefaults(ctx, change2)
	wantDefaults, wantErr := here.SetDefaults(ctx, change2)
	mustBe(t, "set defaults", defaults, err, wantDefaults, wantErr)
	defaults, err = c.Defaults(ctx)
	mustBe(t, "defaults", defaults, err, wantDefaults, nil)

	budget := admin.SetLink{Limit: "50MB/s", At: []string{"22:00-06:00=none"}, Zone: "+09:00"}
	link, err := c.SetLink(ctx, "tokyo-osaka", budget)
	wantLink, wantErr := here.SetLink(ctx, "tokyo-osaka", budget)
	mustBe(t, "set link", link, err, wantLink, wantErr)
	links, err := c.Links(ctx)
	wantLinks, wantErr := here.Links(ctx)
	mustBe(t, "links", links, err, wantLinks, wantErr)

	for _, f := range []*admintest.Fake{here, there} { // a rule that is not met is a job
		if _, err := f.PlaceDisk(ctx, "vm1", admin.PlaceDisk{Rule: admin.Rule{Terms: []string{"dc=osaka:1"}, Prefer: true}}); err != nil {
			t.Fatal(err)
		}
	}
	paused, err := c.OrderJob(ctx, "vm1", admin.OrderJob{Order: admin.OrderPause})
	wantPaused, wantErr := here.OrderJob(ctx, "vm1", admin.OrderJob{Order: admin.OrderPause})
	mustBe(t, "pause", paused, err, wantPaused, wantErr)
	jobs, err := c.Jobs(ctx, admin.JobQuery{Ended: true, Local: true})
	wantJobs, wantErr := here.Jobs(ctx, admin.JobQuery{Ended: true, Local: true})
	mustBe(t, "jobs", jobs, err, wantJobs, wantErr)
	var watched []admin.Job
	enough := errors.New("enough")
	if err := c.WatchJobs(ctx, func(list []admin.Job) error { watched = list; return enough }); !errors.Is(err, enough) {
		t.Errorf("watching jobs ended with %v", err)
	}
	mustBe(t, "watched jobs", watched, nil, wantJobs, nil)
	evacuate := admin.Evacuate{Nodes: "t1", DryRun: true}
	evacuation, err := c.Evacuate(ctx, evacuate)
	wantEvacuation, wantErr := here.Evacuate(ctx, evacuate)
	mustBe(t, "evacuate", evacuation, err, wantEvacuation, wantErr)

	byID, err := c.Disk(ctx, created.Disk.ID.String())
	wantDisk, wantErr := here.Disk(ctx, "vm1")
	mustBe(t, "disk", byID, err, wantDisk, wantErr)
	disks, err := c.Disks(ctx, false)
	wantDisks, wantErr := here.Disks(ctx, false)
	mustBe(t, "disks", disks, err, wantDisks, wantErr)
	found, err := c.Doctor(ctx)
	wantFound, wantErr := here.Doctor(ctx)
	mustBe(t, "doctor", found, err, wantFound, wantErr)
	moved, err := c.Handover(ctx, "vm1", admin.Handover{To: "o1", Force: true})
	wantMoved, wantErr := here.Handover(ctx, "vm1", admin.Handover{To: "o1", Force: true})
	mustBe(t, "handover", moved, err, wantMoved, wantErr)
	there.Rot("vm1", 2)
	here.Rot("vm1", 2)
	scrubbed, err := c.ScrubDisk(ctx, "vm1", admin.ScrubDisk{VerifyOnly: true})
	wantScrubbed, wantErr := here.ScrubDisk(ctx, "vm1", admin.ScrubDisk{VerifyOnly: true})
	mustBe(t, "scrub", scrubbed, err, wantScrubbed, wantErr)
	taken, err := c.Takeover(ctx, "vm1", admin.Takeover{Fenced: true})
	wantTaken, wantErr := here.Takeover(ctx, "vm1", admin.Takeover{Fenced: true})
	mustBe(t, "takeover", taken, err, wantTaken, wantErr)
	here.Attach("vm1", "t1")
	there.Attach("vm1", "t1")
	m, err := c.DiskMap(ctx, "vm1")
	wantMap, wantErr := here.DiskMap(ctx, "vm1")
	mustBe(t, "map", m, err, wantMap, wantErr)

	resized, err := c.ResizeDisk(ctx, "vm1", admin.ResizeDisk{SizeBytes: 30 << 30})
	wantResized, wantErr := here.ResizeDisk(ctx, "vm1", admin.ResizeDisk{SizeBytes: 30 << 30})
	mustBe(t, "resize", resized, err, wantResized, wantErr)
	renamed, err := c.RenameDisk(ctx, "vm1", admin.RenameDisk{Name: "vm2"})
	wantRenamed, wantErr := here.RenameDisk(ctx, "vm1", admin.RenameDisk{Name: "vm2"})
	mustBe(t, "rename", renamed, err, wantRenamed, wantErr)

	if _, err := c.CreateDisk(ctx, admin.NewDisk{Name: "old", SizeBytes: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	_, _ = here.CreateDisk(ctx, admin.NewDisk{Name: "old", SizeBytes: 1 << 30})
	grace := int64(3600)
	removed, err := c.RemoveDisk(ctx, "old", admin.RemoveDisk{GraceSeconds: &grace})
	wantRemoved, wantErr := here.RemoveDisk(ctx, "old", admin.RemoveDisk{GraceSeconds: &grace})
	mustBe(t, "remove", removed, err, wantRemoved, wantErr)
	trash, err := c.Disks(ctx, true)
	wantTrash, wantErr := here.Disks(ctx, true)
	mustBe(t, "removed disks", trash, err, wantTrash, wantErr)
	restored, err := c.RestoreDisk(ctx, "old", admin.RestoreDisk{Name: "new"})
	wantRestored, wantErr := here.RestoreDisk(ctx, "old", admin.RestoreDisk{Name: "new"})
	mustBe(t, "restore", restored, err, wantRestored, wantErr)

	if _, err := c.Leave(ctx, admin.Leave{}); !errors.Is(err, ukai.ErrRejected) {
		t.Errorf("leave with an attached disk: %v", err)
	}
	leaving, err := c.Leave(ctx, admin.Leave{Force: true})
	wantLeaving, wantErr := here.Leave(ctx, admin.Leave{Force: true})
	mustBe(t, "leave", leaving, err, wantLeaving, wantErr)
	if !there.Left() {
		t.Error("the node was not told to leave")
	}
}

// failing is a backend whose Self fails.
type failing struct {
	admin.Backend
	err error
}

func (f failing) Self(context.Context) (admin.Self, error) { return admin.Self{}, f.err }

func TestEachSentinelKeepsItsKindAndText(t *testing.T) {
	words := map[string]bool{}
	for code := uint16(1); ukai.Sentinel(code) != nil; code++ {
		sentinel := ukai.Sentinel(code)
		sent := fmt.Errorf("write vm1 block 7: peer o1 (osaka): %w", sentinel)
		_, got := client(t, serve(t, failing{err: sent}), "").Self(t.Context())
		if !errors.Is(got, sentinel) || got.Error() != sent.Error() {
			t.Errorf("sent %q, got %v", sent, got)
		}
		for other := uint16(1); ukai.Sentinel(other) != nil; other++ {
			if other != code && errors.Is(got, ukai.Sentinel(other)) {
				t.Errorf("%v is also %v", got, ukai.Sentinel(other))
			}
		}
		if w := admin.Code(sent); words[w] || w == "" || w == "internal" {
			t.Errorf("%v has the code %q, which is not its own", sentinel, w)
		} else {
			words[w] = true
		}
	}
}

func TestErrorsKeepWhatTheyCarry(t *testing.T) {
	get := func(err error) error {
		_, got := client(t, serve(t, failing{err: err}), "").Self(t.Context())
		if got == nil {
			t.Fatalf("%v became no error", err)
		}
		return got
	}
	id := ukai.NodeID{1, 2, 3}

	var held *ukai.HeldError
	if err := get(fmt.Errorf("disk vm1: %w", &ukai.HeldError{Node: id, Name: "o1"})); !errors.As(err, &held) || held.Node != id || held.Name != "o1" || err.Error() != "disk vm1: attached on node o1" {
		t.Errorf("held: %v", err)
	}
	var fenced *ukai.FencedError
	if err := get(fmt.Errorf("disk vm1: %w", &ukai.FencedError{Epoch: ukai.NewEpoch(3, 12)})); !errors.As(err, &fenced) || fenced.Epoch != ukai.NewEpoch(3, 12) {
		t.Errorf("fenced: %v", err)
	}
	var node *ukai.NodeError
	if err := get(&ukai.NodeError{Node: id, Name: "t2", Err: fmt.Errorf("pwrite: %w", ukai.ErrNoSpace)}); !errors.As(err, &node) || node.Name != "t2" || !errors.Is(err, ukai.ErrNoSpace) || err.Error() != "node t2: pwrite: no space" {
		t.Errorf("node: %v", err)
	}

	sent := &admin.Refusal{
		Err:     fmt.Errorf("rule dc=tokyo:3: %w", ukai.ErrUnmet),
		Reasons: []admin.Reason{{Node: admin.NodeRef{ID: id, Name: "o1"}, Labels: ukai.Labels{"dc": "osaka"}, Why: "is in dc osaka"}}, Remedy: "label another node",
	}
	var refusal *admin.Refusal
	err := get(fmt.Errorf("create vm1: %w", sent))
	if !errors.As(err, &refusal) || !reflect.DeepEqual(refusal.Reasons, sent.Reasons) || refusal.Remedy != sent.Remedy || !errors.Is(err, ukai.ErrUnmet) {
		t.Errorf("refusal: %v", err)
	}
	if want := "create vm1: rule dc=tokyo:3: placement rule cannot be met\n  o1 (osaka): is in dc osaka\n  remedy: label another node"; err.Error() != want {
		t.Errorf("refusal reads\n%s\nwant\n%s", err, want)
	}

	if err := get(context.DeadlineExceeded); !errors.Is(err, ukai.ErrTimeout) {
		t.Errorf("deadline: %v", err)
	}
	if err := get(errors.New("some bug")); ukai.Code(err) != ukai.CodeUnknown || err.Error() != "some bug" {
		t.Errorf("an error of no kind: %v", err)
	}
}

func TestAnotherNodeAnswersARequestThatNamesIt(t *testing.T) {
	o1 := admintest.New("o1", nil)
	far := serve(t, o1)
	t1 := admintest.New("t1", func(ctx context.Context, node string) (net.Conn, error) {
		if node != "o1" {
			return nil, &ukai.NodeError{Name: node, Err: ukai.ErrUnreachable}
		}
		return far.dial(ctx)
	})
	near, ctx := serve(t, t1), t.Context()

	for _, node := range []string{"", "t1"} {
		if self, err := client(t, near, node).Self(ctx); err != nil || self.Name != "t1" {
			t.Errorf("node %q: %s answered, %v", node, self.Name, err)
		}
	}
	self, err := client(t, near, "o1").Self(ctx)
	if err != nil || self.Name != "o1" {
		t.Fatalf("asked o1: %s answered, %v", self.Name, err)
	}
	if byID, err := client(t, near, self.ID.String()).Self(ctx); err == nil || !errors.Is(err, ukai.ErrUnreachable) {
		t.Errorf("by id: the dialer above knows names only, yet %s answered, %v", byID.Name, err)
	}
	if _, err := client(t, near, "o1").Disk(ctx, "none"); !errors.Is(err, ukai.ErrNotFound) || err.Error() != `disk "none": not found` {
		t.Errorf("an error of the other node: %v", err)
	}
	if _, err := client(t, near, "t2").Self(ctx); !errors.Is(err, ukai.ErrUnreachable) || !strings.Contains(err.Error(), "ask node t2: ") {
		t.Errorf("a node that cannot be reached: %v", err)
	}
	if _, err := client(t, near, "t9").Self(ctx); !errors.Is(err, ukai.ErrNotFound) {
		t.Errorf("a node that does not exist: %v", err)
	}
	if _, err := client(t, near, "bad/name").Self(ctx); !errors.Is(err, ukai.ErrInvalid) {
		t.Errorf("a name that cannot be: %v", err)
	}

	streamed := make(chan admin.Event)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error)
	go func() {
		ended <- client(t, near, "o1").Events(ctx, func(e admin.Event) error { streamed <- e; return nil })
	}()
	awaitReaders(o1, 1)
	o1.Emit(admin.Event{Kind: "replica-out", Disk: "vm1"})
	if e := <-streamed; e.Kind != "replica-out" || e.Seq != 1 {
		t.Errorf("event through another node: %+v", e)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("events after cancel: %v", err)
	}
	awaitReaders(o1, 0)
}

// awaitReaders waits until n event streams are open.
func awaitReaders(f *admintest.Fake, n int) {
	for f.Readers() != n {
		time.Sleep(time.Millisecond)
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	s := admin.NewServer(admin.ServerConfig{Backend: admintest.New("t1", nil)})
	for _, c := range []struct {
		method, path, body string
		status             int
		code, says         string
	}{
		{"POST", "/v1/disks", `{"name":"vm1","sizeBytes":4096,"colour":"red"}`, 422, "invalid", "colour"},
		{"POST", "/v1/disks", `{"name":"vm1"}`, 422, "invalid", "sizeBytes"},
		{"POST", "/v1/disks", `{`, 400, "invalid", "unexpected end"},
		{"POST", "/v1/disks", `{"name":"` + strings.Repeat("x", 70<<10) + `"}`, 413, "invalid", "too large"},
		{"POST", "/v1/disks", `{"name":"-x","sizeBytes":4096}`, 400, "invalid", "disk name"},
		{"GET", "/v1/disks?remove=true", "", 422, "invalid", "remove"},
		{"GET", "/v1/nothing", "", 404, "not-found", "/openapi.json"},
		{"DELETE", "/v1/status", "", 404, "not-found", "DELETE /v1/status"},
		{"GET", "/debug/pprof/", "", 404, "not-found", "pprof"},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		var p admin.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Errorf("%s %s: %v: %s", c.method, c.path, err, w.Body)
			continue
		}
		if w.Code != c.status || p.Status != c.status || p.Code != c.code || !strings.Contains(p.Detail, c.says) || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %d %s %+v", c.method, c.path, w.Code, w.Header().Get("Content-Type"), p)
		}
	}
}

func get(t *testing.T, s *admin.Server, path string) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	if w.Code != 200 {
		t.Fatalf("GET %s: %d %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

func TestTheAPIDescribesItself(t *testing.T) {
	s := admin.NewServer(admin.ServerConfig{Backend: admintest.New("t1", nil), Version: "v0.1.0"})
	var spec struct {
		OpenAPI string
		Paths   map[string]map[string]struct{ OperationID string }
	}
	if err := json.Unmarshal([]byte(get(t, s, "/openapi.json")), &spec); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ path, method, id string }{
		{"/v1/status", "get", "status"}, {"/v1/disks/{disk}/placement", "put", "disk-place"}, {"/v1/events", "get", "events"}, {"/v1/nodes/{node}", "patch", "node-change"},
	} {
		if got := spec.Paths[want.path][want.method].OperationID; got != want.id {
			t.Errorf("%s %s is %q, want %q", want.method, want.path, got, want.id)
		}
	}
	page := get(t, s, "/docs")
	if !strings.Contains(page, "/v1/disks/{disk}/map") || strings.Contains(page, "http://") || strings.Contains(page, "https://") {
		t.Errorf("the page about the API lacks a route, or loads something from elsewhere:\n%s", page)
	}
}

func TestMetricsReadAsPrometheusReadsThem(t *testing.T) {
	var logged bytes.Buffer
	s := admin.NewServer(admin.ServerConfig{Backend: admintest.New("t1", nil), Log: slog.New(slog.NewTextHandler(&logged, nil))})
	get(t, s, "/metrics")
	text := get(t, s, "/metrics") // twice: what is left out is logged once
	for _, line := range []string{
		"# TYPE ukai_wire_frames_sent_total counter", "ukai_wire_frames_sent_total 7", `ukai_wire_refused_total{why="bad \"key\""} 2`,
		"# TYPE ukai_node_rtt_seconds gauge", `ukai_node_rtt_seconds{peer="o1"} 0.0082`, "go_goroutines ",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no line %q", line)
		}
	}
	if n := strings.Count(logged.String(), "not a metric"); n != 2 { // key and err name it, in one line
		t.Errorf("a malformed metric was named %d times in the log:\n%s", n, &logged)
	}
}

func TestPprofIsServedOnlyOnDemand(t *testing.T) {
	s := admin.NewServer(admin.ServerConfig{Backend: admintest.New("t1", nil), Pprof: true})
	if page := get(t, s, "/debug/pprof/"); !strings.Contains(page, "goroutine") {
		t.Errorf("pprof page: %s", page)
	}
}

// stuck is a backend that answers Self only when it is told to, or when the request is given up.
type stuck struct {
	admin.Backend
	entered chan struct{}
	proceed chan struct{}
}

func (s stuck) Self(ctx context.Context) (admin.Self, error) {
	s.entered <- struct{}{}
	select {
	case <-s.proceed:
		return admin.Self{Name: "t1"}, nil
	case <-ctx.Done():
		return admin.Self{}, ctx.Err()
	}
}

func TestARequestThatTakesTooLongTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := listenPipes()
		b := stuck{entered: make(chan struct{}, 1), proceed: make(chan struct{})}
		s := admin.NewServer(admin.ServerConfig{Backend: b})
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		c := admin.NewClient(admin.ClientConfig{Dial: l.dial})
		if _, err := c.Self(t.Context()); !errors.Is(err, ukai.ErrTimeout) {
			t.Errorf("got %v", err)
		}
		c.Close()
		if err := s.Close(t.Context()); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func TestCloseWaitsForRequestsAndEndsEventStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := listenPipes()
		b := stuck{Backend: admintest.New("t1", nil), entered: make(chan struct{}, 1), proceed: make(chan struct{})}
		s := admin.NewServer(admin.ServerConfig{Backend: b})
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		c := admin.NewClient(admin.ClientConfig{Dial: l.dial})

		streamed := make(chan error, 1)
		go func() { streamed <- c.Events(t.Context(), func(admin.Event) error { return nil }) }()
		asked := make(chan error, 1)
		go func() { _, err := c.Self(t.Context()); asked <- err }()
		<-b.entered
		time.Sleep(time.Minute) // heartbeats keep the stream, in virtual time

		closed := make(chan error, 1)
		go func() { closed <- s.Close(t.Context()) }()
		if err := <-streamed; !errors.Is(err, ukai.ErrClosed) {
			t.Errorf("event stream: %v", err)
		}
		synctest.Wait()
		select {
		case err := <-closed:
			t.Errorf("closed under a request: %v", err)
		default:
		}
		close(b.proceed)
		if err := <-asked; err != nil {
			t.Errorf("request during close: %v", err)
		}
		if err := <-closed; err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		c.Close()
	})
}

func TestTooManyRequestsAtOnceAreRefused(t *testing.T) {
	b := stuck{entered: make(chan struct{}), proceed: make(chan struct{})}
	s := admin.NewServer(admin.ServerConfig{Backend: b})
	var wg sync.WaitGroup
	for range 256 {
		wg.Go(func() {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest("GET", "/v1/self", nil))
			if w.Code != 200 {
				t.Errorf("one of the first 256: %d %s", w.Code, w.Body)
			}
		})
	}
	for range 256 {
		<-b.entered
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("GET", "/v1/self", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), `"code":"overloaded"`) {
		t.Errorf("request 257: %d %s", w.Code, w.Body)
	}
	close(b.proceed)
	wg.Wait()
}

func TestAClientWithoutANodeSaysSo(t *testing.T) {
	_, err := admin.NewClient(admin.ClientConfig{Socket: t.TempDir() + "/s"}).Self(t.Context())
	if !errors.Is(err, ukai.ErrUnreachable) || !strings.Contains(err.Error(), "ukai-node start") {
		t.Errorf("got %v", err)
	}
}

func TestAnAnswerThatIsNoneIsAnError(t *testing.T) {
	for _, raw := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{",
		"HTTP/1.1 500 No\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
		"SSH-2.0-OpenSSH\r\n",
	} {
		c := admin.NewClient(admin.ClientConfig{Dial: func(context.Context) (net.Conn, error) {
			a, b := net.Pipe()
			go func() {
				buf := make([]byte, 4096)
				_, _ = b.Read(buf)
				_, _ = io.WriteString(b, raw)
				_ = b.Close()
			}()
			return a, nil
		}})
		if _, err := c.Self(t.Context()); err == nil {
			t.Errorf("%q was taken for an answer", raw)
		}
		if _, err := c.Disk(t.Context(), ".."); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("a disk called '..': %v", err)
		}
	}
}
