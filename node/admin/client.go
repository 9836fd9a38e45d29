package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"ukai"
)

const (
	// maxAnswer bounds an answer in bytes: the status of some thousand nodes.
	maxAnswer = 256 << 20
	// maxEventLine bounds one line of an event stream in bytes.
	maxEventLine = 1 << 20
)

// ClientConfig says which node a Client talks to.
type ClientConfig struct {
	Socket string // path of the local node's socket
	Node   string // name or id of the node that is to answer; "": the local node
	// Dial connects in place of Socket, for tests.
	Dial func(ctx context.Context) (net.Conn, error)
}

// Client asks a node. Its methods are those of Backend, with the same errors; ukai.ErrUnreachable means that the node itself could not
// be asked. A Client may be used concurrently.
type Client struct {
	c    ClientConfig
	http *http.Client
}

// NewClient returns a client; it connects when it is first asked.
func NewClient(c ClientConfig) *Client {
	if c.Dial == nil {
		var d net.Dialer
		c.Dial = func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "unix", c.Socket) }
	}
	return &Client{c: c, http: &http.Client{
		Transport: &http.Transport{
			DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx) },
			DisableCompression: true,
			IdleConnTimeout:    10 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close ends connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Self is Backend.Self.
func (c *Client) Self(ctx context.Context) (Self, error) {
	return ask[Self](ctx, c, http.MethodGet, "/v1/self", nil)
}

// Status is Backend.Status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Doctor is Backend.Doctor.
func (c *Client) Doctor(ctx context.Context) ([]Warning, error) {
	return ask[[]Warning](ctx, c, http.MethodGet, "/v1/doctor", nil)
}

// ChangeNode is Backend.ChangeNode.
func (c *Client) ChangeNode(ctx context.Context, node string, change NodeChange) (NodeChanged, error) {
	if err := ukai.CheckName("node", node); err != nil {
		return NodeChanged{}, err
	}
	return ask[NodeChanged](ctx, c, http.MethodPatch, "/v1/nodes/"+url.PathEscape(node), change)
}

// RetireNode is Backend.RetireNode.
func (c *Client) RetireNode(ctx context.Context, node string, r RetireNode) (NodeRetired, error) {
	if err := ukai.CheckName("node", node); err != nil {
		return NodeRetired{}, err
	}
	return ask[NodeRetired](ctx, c, http.MethodPost, "/v1/nodes/"+url.PathEscape(node)+"/retire", r)
}

// PlaceDisk is Backend.PlaceDisk.
func (c *Client) PlaceDisk(ctx context.Context, disk string, p PlaceDisk) (Placement, error) {
	return askDisk[Placement](ctx, c, http.MethodPut, disk, "/placement", p)
}

// Placement is Backend.Placement.
func (c *Client) Placement(ctx context.Context, disk string) (Placement, error) {
	return askDisk[Placement](ctx, c, http.MethodGet, disk, "/placement", nil)
}

// Placements is Backend.Placements.
func (c *Client) Placements(ctx context.Context) ([]Placement, error) {
	return ask[[]Placement](ctx, c, http.MethodGet, "/v1/placements", nil)
}

// Defaults is Backend.Defaults.
func (c *Client) Defaults(ctx context.Context) (Defaults, error) {
	return ask[Defaults](ctx, c, http.MethodGet, "/v1/defaults", nil)
}

// SetDefaults is Backend.SetDefaults.
func (c *Client) SetDefaults(ctx context.Context, s SetDefaults) (Defaults, error) {
	return ask[Defaults](ctx, c, http.MethodPatch, "/v1/defaults", s)
}

// Forecast is Backend.Forecast.
func (c *Client) Forecast(ctx context.Context, disk, at string, terms []string) (Forecast, error) {
	query := url.Values{"at": {at}}
	if len(terms) > 0 {
		query.Set("term", strings.Join(terms, ","))
	}
	return askDisk[Forecast](ctx, c, http.MethodGet, disk, "/forecast?"+query.Encode(), nil)
}

// Survive is Backend.Survive.
func (c *Client) Survive(ctx context.Context, without string) (Survival, error) {
	path := "/v1/survive"
	if without != "" {
		path += "?without=" + url.QueryEscape(without)
	}
	return ask[Survival](ctx, c, http.MethodGet, path, nil)
}

// Links is Backend.Links.
func (c *Client) Links(ctx context.Context) ([]Link, error) {
	return ask[[]Link](ctx, c, http.MethodGet, "/v1/links", nil)
}

// SetLink is Backend.SetLink.
func (c *Client) SetLink(ctx context.Context, link string, s SetLink) (Link, error) {
	return ask[Link](ctx, c, http.MethodPut, "/v1/links/"+url.PathEscape(link), s)
}

// CreateDisk is Backend.CreateDisk.
func (c *Client) CreateDisk(ctx context.Context, d NewDisk) (DiskCreated, error) {
	return ask[DiskCreated](ctx, c, http.MethodPost, "/v1/disks", d)
}

// Disks is Backend.Disks.
func (c *Client) Disks(ctx context.Context, removed bool) ([]Disk, error) {
	path := "/v1/disks"
	if removed {
		path += "?removed=true"
	}
	return ask[[]Disk](ctx, c, http.MethodGet, path, nil)
}

// Disk is Backend.Disk.
func (c *Client) Disk(ctx context.Context, disk string) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodGet, disk, "", nil)
}

// ResizeDisk is Backend.ResizeDisk.
func (c *Client) ResizeDisk(ctx context.Context, disk string, r ResizeDisk) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/resize", r)
}

// RemoveDisk is Backend.RemoveDisk.
func (c *Client) RemoveDisk(ctx context.Context, disk string, r RemoveDisk) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/remove", r)
}

// RestoreDisk is Backend.RestoreDisk.
func (c *Client) RestoreDisk(ctx context.Context, disk string, r RestoreDisk) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/restore", r)
}

// RenameDisk is Backend.RenameDisk.
func (c *Client) RenameDisk(ctx context.Context, disk string, r RenameDisk) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/rename", r)
}

// SetDisk is Backend.SetDisk.
func (c *Client) SetDisk(ctx context.Context, disk string, s SetDisk) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/set", s)
}

// SetQuorum is Backend.SetQuorum.
func (c *Client) SetQuorum(ctx context.Context, disk string, q SetQuorum) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPut, disk, "/quorum", q)
}

// ForceDisk is Backend.ForceDisk.
func (c *Client) ForceDisk(ctx context.Context, disk string, f ForceDisk) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/force", f)
}

// PickDisk is Backend.PickDisk.
func (c *Client) PickDisk(ctx context.Context, disk string, p PickDisk) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/pick", p)
}

// DiscardHistory is Backend.DiscardHistory.
func (c *Client) DiscardHistory(ctx context.Context, disk string, d DiscardHistory) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/discard", d)
}

// ScrubDisk is Backend.ScrubDisk.
func (c *Client) ScrubDisk(ctx context.Context, disk string, s ScrubDisk) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/scrub", s)
}

// Takeover is Backend.Takeover.
func (c *Client) Takeover(ctx context.Context, disk string, t Takeover) (Disk, error) {
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/takeover", t)
}

// Handover is Backend.Handover.
func (c *Client) Handover(ctx context.Context, disk string, h Handover) (Disk, error) {
	if err := ukai.CheckName("node", h.To); err != nil {
		return Disk{}, err
	}
	return askDisk[Disk](ctx, c, http.MethodPost, disk, "/handover", h)
}

// DiskMap is Backend.DiskMap.
func (c *Client) DiskMap(ctx context.Context, disk string) (Map, error) {
	return askDisk[Map](ctx, c, http.MethodGet, disk, "/map", nil)
}

// Leave is Backend.Leave.
func (c *Client) Leave(ctx context.Context, l Leave) (Leaving, error) {
	return ask[Leaving](ctx, c, http.MethodPost, "/v1/leave", l)
}

// Events calls f with each event from now on, until ctx ends (nil), f returns an error (that error), or the stream breaks.
func (c *Client) Events(ctx context.Context, f func(Event) error) error {
	return follow(ctx, c, eventsPath, f)
}

// follow calls f with what a stream of server-sent events brings.
func follow[T any](ctx context.Context, c *Client, path string, f func(T) error) error {
	r, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, maxEventLine)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e T
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("event %q: %w: %w", data, ukai.ErrCorrupt, err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case lines.Err() != nil:
		return c.broken(lines.Err())
	}
	return fmt.Errorf("the node ended the event stream: %w", ukai.ErrClosed)
}

// askDisk asks about one disk, which is named by its name or id.
func askDisk[T any](ctx context.Context, c *Client, method, disk, what string, in any) (T, error) {
	if err := ukai.CheckName("disk", disk); err != nil {
		return *new(T), err
	}
	return ask[T](ctx, c, method, "/v1/disks/"+url.PathEscape(disk)+what, in)
}

// ask sends in, if not nil, and reads the answer.
func ask[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	r, err := c.do(ctx, method, path, in)
	if err != nil {
		return out, err
	}
	defer r.Body.Close()
	if err := json.NewDecoder(io.LimitReader(r.Body, maxAnswer)).Decode(&out); err != nil {
		if ctx.Err() != nil {
			return out, c.broken(ctx.Err())
		}
		return out, fmt.Errorf("answer of the node to %s %s: %w: %w", method, path, ukai.ErrCorrupt, err)
	}
	return out, nil
}

// do sends a request and returns the response to it if its status is a good one.
func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://node"+path, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json")
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.c.Node != "" {
		if err := ukai.CheckName("node", c.c.Node); err != nil {
			return nil, err
		}
		r.Header.Set(NodeHeader, c.c.Node)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, c.broken(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, readProblem(resp)
}

// readProblem makes an error of a response whose status is not a good one.
func readProblem(r *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("node answered %s: %w", r.Status, err)
	}
	var p Problem
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "application/problem+json" && json.Unmarshal(b, &p) == nil && p.Code != "" {
		return p.err()
	}
	if len(b) > 200 {
		b = b[:200]
	}
	return fmt.Errorf("node answered %s: %q", r.Status, b)
}

// broken tells why the local node could not be asked.
func (c *Client) broken(err error) error {
	var u *url.Error // names the method and a made-up address: noise
	if errors.As(err, &u) {
		err = u.Err
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, ukai.ErrInvalid):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("node at %s: %w: %w", c.c.Socket, ukai.ErrTimeout, err)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no node runs at %s: %w; start one with `ukai-node start`, or name its socket with --socket or UKAI_SOCKET", c.c.Socket, ukai.ErrUnreachable)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("node at %s: %w: only the user that runs it may use its socket", c.c.Socket, ukai.ErrPermission)
	}
	return fmt.Errorf("node at %s: %w: %w", c.c.Socket, ukai.ErrUnreachable, err)
}
