package admin

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"ukai"
)

// Refusal is a request that was refused with a reason per node that was considered, and what would help. errors.Is
// sees through it to Err, also at the client.
type Refusal struct {
	Err     error // the refusal in one sentence; wraps a sentinel of package ukai, such as ukai.ErrUnmet
	Reasons []Reason
	Remedy  string
}

// Error returns the sentence, then each reason and the remedy on lines of their own.
func (r *Refusal) Error() string {
	var b strings.Builder
	b.WriteString(r.Err.Error())
	for _, reason := range r.Reasons {
		b.WriteString("\n  " + reason.Node.String())
		if dc := reason.Labels[ukai.LabelDC]; dc != "" {
			b.WriteString(" (" + dc + ")")
		}
		b.WriteString(": " + reason.Why)
	}
	if r.Remedy != "" {
		b.WriteString("\n  remedy: " + r.Remedy)
	}
	return b.String()
}

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }

// kind is how a sentinel of package ukai looks in a problem document.
type kind struct {
	word   string // stable: programs test for it
	status int
}

// kinds is indexed by ukai.Code.
var kinds = [...]kind{
	1:  {"invalid", http.StatusBadRequest},
	2:  {"not-found", http.StatusNotFound},
	3:  {"exists", http.StatusConflict},
	4:  {"fenced", http.StatusConflict},
	5:  {"replica-restarted", http.StatusServiceUnavailable},
	6:  {"no-quorum", http.StatusServiceUnavailable},
	7:  {"in-doubt", http.StatusInternalServerError},
	8:  {"rejected", http.StatusConflict},
	9:  {"held", http.StatusConflict},
	10: {"not-attached", http.StatusConflict},
	11: {"no-space", http.StatusInsufficientStorage},
	12: {"media", http.StatusInternalServerError},
	13: {"corrupt", http.StatusInternalServerError},
	14: {"unreachable", http.StatusBadGateway},
	15: {"timeout", http.StatusGatewayTimeout},
	16: {"overloaded", http.StatusServiceUnavailable},
	17: {"closed", http.StatusServiceUnavailable},
	18: {"suspended", http.StatusServiceUnavailable},
	19: {"lost", http.StatusInternalServerError},
	20: {"clock-skew", http.StatusConflict},
	21: {"version", http.StatusNotImplemented},
	22: {"locked", http.StatusLocked},
	23: {"not-permitted", http.StatusForbidden},
	24: {"unmet", http.StatusConflict},
	25: {"quarantined", http.StatusServiceUnavailable},
	26: {"unavailable", http.StatusServiceUnavailable},
	27: {"unsupported", http.StatusNotImplemented},
}

// internal is the kind of an error that wraps no sentinel.
var internal = kind{"internal", http.StatusInternalServerError}

// Code returns the word by which err's sentinel crosses the API: "not-found", "held". It is "internal" for an
// error that wraps none.
func Code(err error) string { return kindOf(err).word }

func kindOf(err error) kind {
	if c := ukai.Code(err); int(c) < len(kinds) && kinds[c].word != "" {
		return kinds[c]
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return kinds[ukai.Code(ukai.ErrTimeout)]
	case errors.Is(err, context.Canceled):
		return kinds[ukai.Code(ukai.ErrClosed)]
	}
	return internal
}

// Problem is an error as it crosses the API: a problem document (RFC 9457) with members of ours.
type Problem struct {
	Title   string   `json:"title" doc:"the HTTP status in words"`
	Status  int      `json:"status"`
	Detail  string   `json:"detail" doc:"what went wrong, to be shown to a person"`
	Code    string   `json:"code" doc:"kind of the error, stable, for programs" example:"not-found"`
	Reasons []Reason `json:"reasons,omitempty" doc:"of a refusal, per node considered"`
	Remedy  string   `json:"remedy,omitempty" doc:"what would help"`
	Node    *NodeRef `json:"node,omitempty" doc:"where it arose (code held: the node that has the disk)"`
	Epoch   uint64   `json:"epoch,omitempty" doc:"code fenced: the epoch that owns the replica"`
}

// problemOf tells err to a client.
func problemOf(err error) *Problem {
	k := kindOf(err)
	p := &Problem{Title: http.StatusText(k.status), Status: k.status, Code: k.word, Detail: err.Error()}
	var (
		refusal *Refusal
		held    *ukai.HeldError
		fenced  *ukai.FencedError
		node    *ukai.NodeError
	)
	if errors.As(err, &refusal) {
		// Reasons and remedy have members of their own; the sentence keeps what was wrapped around it.
		p.Detail = strings.Replace(p.Detail, refusal.Error(), refusal.Err.Error(), 1)
		p.Reasons, p.Remedy = refusal.Reasons, refusal.Remedy
	}
	switch {
	case errors.As(err, &held):
		p.Node = &NodeRef{ID: held.Node, Name: held.Name}
	case errors.As(err, &fenced):
		p.Epoch = uint64(fenced.Epoch)
	case errors.As(err, &node):
		p.Node = &NodeRef{ID: node.Node, Name: node.Name}
	}
	return p
}

// Error makes a Problem the error that a route returns.
func (p *Problem) Error() string { return p.Detail }

// GetStatus gives the response its status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType says that the body is a problem document.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// err rebuilds the error that problemOf was given: same text, and errors.Is and errors.As hold as they did there.
func (p *Problem) err() error {
	var cause error
	for c, k := range kinds {
		if k.word != "" && k.word == p.Code {
			cause = ukai.Sentinel(uint16(c))
		}
	}
	switch {
	case cause == nil && p.Code == internal.word:
		cause = errInternal
	case cause == nil: // a newer node knows more kinds
		cause = errors.New(p.Code)
	case errors.Is(cause, ukai.ErrHeld) && p.Node != nil:
		cause = &ukai.HeldError{Node: p.Node.ID, Name: p.Node.Name}
	case errors.Is(cause, ukai.ErrFenced) && p.Epoch != 0:
		cause = &ukai.FencedError{Epoch: ukai.Epoch(p.Epoch)}
	case p.Node != nil:
		cause = &ukai.NodeError{Node: p.Node.ID, Name: p.Node.Name, Err: cause}
	}
	err := error(&toldError{text: p.Detail, cause: cause})
	if len(p.Reasons) > 0 || p.Remedy != "" {
		err = &Refusal{Err: err, Reasons: p.Reasons, Remedy: p.Remedy}
	}
	return err
}

// errInternal is the cause of an error that wrapped no sentinel in the node.
var errInternal = errors.New("internal error")

// toldError is an error of the node: the node's text, and a cause of the node's kind.
type toldError struct {
	text  string
	cause error
}

func (e *toldError) Error() string {
	if e.text == "" {
		return e.cause.Error()
	}
	return e.text
}
func (e *toldError) Unwrap() error { return e.cause }
