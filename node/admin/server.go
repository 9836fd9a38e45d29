package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"ukai"
)

// Bounds of the server.
const (
	maxBody       = 64 << 10 // bytes of a request; more is refused with status 413
	maxHeader     = 16 << 10 // bytes of a request's header; more is refused with status 431
	maxRequests   = 256      // being answered at once; more are refused as overloaded
	maxStreams    = 64       // event streams at once; more are refused as overloaded
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute

	// requestTimeout bounds the answer to one request, except for event streams and profiles. It is well above the time
	// in which the quorum record of a disk is changed over a WAN.
	requestTimeout = 2 * time.Minute
)

// ServerConfig says what a Server serves.
type ServerConfig struct {
	Backend Backend
	Version string       // of this release, for the OpenAPI document
	Pprof   bool         // also serve /debug/pprof; it can show secrets in memory, hence off by default
	Log     *slog.Logger // default: discards
}

// Server answers the admin API on any number of listeners.
type Server struct {
	backend Backend
	version string
	log     *slog.Logger

	http    *http.Server
	proxy   *proxy
	running chan struct{} // one token per request being answered
	streams chan struct{} // one token per event stream
	closing chan struct{} // closed by Close: event streams end
	once    sync.Once
}

// NewServer returns a server that serves nothing yet.
func NewServer(c ServerConfig) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		backend: c.Backend,
		version: c.Version,
		log:     c.Log,
		running: make(chan struct{}, maxRequests),
		streams: make(chan struct{}, maxStreams),
		closing: make(chan struct{}),
	}
	s.proxy = newProxy(c.Backend.DialAdmin)

	mux := http.NewServeMux()
	api := newAPI(mux, c.Version)
	s.routes(api)
	mux.Handle("GET /docs", docs(api.OpenAPI()))
	mux.Handle("GET /metrics", metrics(c.Backend, c.Log))
	if c.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, fmt.Errorf("%s %s: %w: see /openapi.json for what there is", r.Method, r.URL.Path, ukai.ErrNotFound))
	})

	s.http = &http.Server{
		Handler:           s.bound(s.route(mux)),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers requests that come in on l until Close, and closes l. It returns nil after Close.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve admin API on %s: %w", l.Addr(), err)
	}
	return nil
}

// Close ends the listeners and event streams and waits for the requests being answered. When ctx ends first it cuts them off.
func (s *Server) Close(ctx context.Context) error {
	s.once.Do(func() { close(s.closing) })
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests cut off: %w", err), s.http.Close())
	}
	s.proxy.close()
	return err
}

// ServeHTTP answers one request, without a listener.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.http.Handler.ServeHTTP(w, r) }

// bound keeps the number and duration of requests within their limits.
func (s *Server) bound(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case s.running <- struct{}{}:
			defer func() { <-s.running }()
		default:
			writeProblem(w, fmt.Errorf("%d requests are being answered: %w: try again later", maxRequests, ukai.ErrOverloaded))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if !unhurried(r) {
			ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
			defer cancel()
			r = r.WithContext(ctx)
			// The margin lets an answer that says "timed out" still reach the client.
			deadline := time.Now().Add(requestTimeout + headerTimeout)
			_ = http.NewResponseController(w).SetWriteDeadline(deadline) // not supported by a recorder in a test
		}
		next.ServeHTTP(w, r)
	})
}

// unhurried says whether r may take as long as it likes.
func unhurried(r *http.Request) bool {
	return r.URL.Path == eventsPath || r.URL.Path == jobsWatchPath || len(r.URL.Path) > len("/debug/") && r.URL.Path[:len("/debug/")] == "/debug/"
}

// route sends a request for another node there.
func (s *Server) route(local http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.Header.Get(NodeHeader)
		if name == "" {
			local.ServeHTTP(w, r)
			return
		}
		self, err := s.backend.Self(r.Context())
		if err != nil {
			writeProblem(w, err)
			return
		}
		if name == self.Name || name == self.ID.String() {
			local.ServeHTTP(w, r)
			return
		}
		s.proxy.to(name, w, r)
	})
}

// newAPI returns an API without routes. Its documents are at /openapi.json and /openapi.yaml.
func newAPI(mux *http.ServeMux, version string) huma.API {
	c := huma.DefaultConfig("UKAI node", version)
	c.Info.Description = "Every node of a mesh answers this API on its unix socket. The header " + NodeHeader +
		" sends a request on to another node. Errors are problem documents whose member \"code\" programs may test."
	c.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	c.CreateHooks = nil // no "$schema" member in every answer
	c.SchemasPath = ""
	c.DocsPath = "" // the ready-made pages load scripts from elsewhere; see docs.go
	c.RejectUnknownQueryParameters = true
	c.Transformers = []huma.Transformer{asProblem}
	return humago.New(mux, c)
}

// asProblem turns what huma says of a malformed request into a Problem.
func asProblem(_ huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := &Problem{Title: e.Title, Status: e.Status, Detail: e.Detail, Code: "invalid"}
	if e.Status == http.StatusInternalServerError {
		p.Code = internal.word
	}
	for _, d := range e.Errors {
		p.Detail += "; " + d.Error()
	}
	return p, nil
}

// writeProblem answers err where huma does not.
func writeProblem(w http.ResponseWriter, err error) {
	p := problemOf(err)
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client is gone: nobody to tell
}

// statuses lists the statuses that a route's errors can have, for the OpenAPI document.
func statuses() []int {
	list := []int{internal.status}
	for _, k := range kinds {
		if k.word != "" && !slices.Contains(list, k.status) {
			list = append(list, k.status)
		}
	}
	slices.Sort(list)
	return list
}
