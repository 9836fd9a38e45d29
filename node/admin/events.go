package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"ukai"
)

const (
	eventsPath = "/v1/events"

	// heartbeatEvery is how often a comment is sent on a quiet event stream, so that either side notices a lost connection.
	heartbeatEvery = 15 * time.Second
)

// events answers with a stream of the backend's events.
func (s *Server) events(context.Context, *struct{}) (*huma.StreamResponse, error) {
	return streaming(s, s.backend.Events, func(e Event) (uint64, string) { return e.Seq, e.Kind }), nil
}

// streaming answers with a stream of what open returns, which ends with the request or when the server closes.
func streaming[T any](s *Server, open func(context.Context) (<-chan T, error), about func(T) (uint64, string)) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(c huma.Context) {
		r, w := humago.Unwrap(c)
		select {
		case s.streams <- struct{}{}:
			defer func() { <-s.streams }()
		default:
			writeProblem(w, fmt.Errorf("%d event streams are open: %w: try again later", maxStreams, ukai.ErrOverloaded))
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		coming, err := open(ctx)
		if err != nil {
			writeProblem(w, err)
			return
		}
		stream(s, w, coming, about)
	}}
}

// stream writes what comes to w until there is no more, the client is gone, or the server closes. about tells the number of what came, and what it is.
func stream[T any](s *Server, w http.ResponseWriter, events <-chan T, about func(T) (uint64, string)) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	send := func(format string, args ...any) bool {
		_ = out.SetWriteDeadline(time.Now().Add(headerTimeout)) // not supported by a recorder in a test
		if _, err := fmt.Fprintf(w, format, args...); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	if !send(": events of this node\n\n") {
		return
	}
	heartbeat := time.NewTicker(heartbeatEvery)
	defer heartbeat.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			seq, what := about(e)
			data, err := json.Marshal(e)
			if err != nil {
				s.log.Error("event left out", "kind", what, "err", err)
				continue
			}
			if !send("id: %d\ndata: %s\n\n", seq, data) {
				return
			}
		case <-heartbeat.C:
			if !send(": still here\n\n") {
				return
			}
		case <-s.closing:
			return
		}
	}
}
