package ukai

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Limits on names and labels, so that every node's facts stay small enough to gossip.
const (
	MaxNameLen  = 63
	MaxLabels   = 32
	MaxLabelLen = 63
)

// LabelDC is the label key that names a node's datacenter. Links, budgets and forecasts are per pair of its values.
const LabelDC = "dc"

// Labels are what administrators say about a node: "dc=tokyo", "rack=r2", "ssd=yes".
type Labels map[string]string

// Clone returns a copy of l; nil stays nil.
func (l Labels) Clone() Labels { return maps.Clone(l) }

// String returns the labels sorted by key, as "dc=tokyo rack=r2".
func (l Labels) String() string {
	parts := make([]string, 0, len(l))
	for _, k := range slices.Sorted(maps.Keys(l)) {
		parts = append(parts, k+"="+l[k])
	}
	return strings.Join(parts, " ")
}

var (
	nameRule  = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._~-]{0,61}[a-zA-Z0-9])?$`)
	labelRule = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)
)

// CheckName says what is wrong with the name of a disk or node, or nil. A name is also a file name, so it may not
// hold a slash nor begin with a dot.
func CheckName(what, name string) error {
	if !nameRule.MatchString(name) {
		return fmt.Errorf("%s name %q: %w: use 1 to %d letters, digits, '.', '_', '~' or '-', with a letter or digit first and last",
			what, name, ErrInvalid, MaxNameLen)
	}
	return nil
}

// CheckLabel says what is wrong with one label, or nil. The key "node" is taken: rules use it to name a node.
func CheckLabel(key, value string) error {
	switch {
	case !labelRule.MatchString(key):
		return fmt.Errorf("label key %q: %w: use 1 to %d letters, digits, '.', '_' or '-', with a letter or digit first and last", key, ErrInvalid, MaxLabelLen)
	case key == "node":
		return fmt.Errorf("label key %q: %w: reserved; a rule may already say node=NAME", key, ErrInvalid)
	case !labelRule.MatchString(value):
		return fmt.Errorf("label %s=%q: %w: use 1 to %d letters, digits, '.', '_' or '-' in the value, with a letter or digit first and last", key, value, ErrInvalid, MaxLabelLen)
	}
	return nil
}

// ParseLabel reads "key=value" and checks both.
func ParseLabel(s string) (key, value string, err error) {
	key, value, ok := strings.Cut(s, "=")
	if !ok {
		return "", "", fmt.Errorf("label %q: %w: write key=value, for example dc=tokyo", s, ErrInvalid)
	}
	return key, value, CheckLabel(key, value)
}
