package admin

import (
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
