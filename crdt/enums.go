package crdt

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"ukai"
)

// The words that people read and write for the enums of a Record. Position is the value.
var (
	phaseWords  = []string{"released", "recovering", "active", "deleted"}
	roleWords   = []string{"in sync", "syncing", "out", "async"}
	onLossWords = []string{"wait", "error"}
	quorumWords = []string{"majority", "preferred", "unsafe"}
	ackWords    = []string{"all", "local"}
)

// String returns "released", "recovering", "active" or "deleted".
func (p Phase) String() string { return word("phase", phaseWords, p) }

// MarshalText makes phases readable in JSON and YAML.
func (p Phase) MarshalText() ([]byte, error) { return marshalWord("phase", phaseWords, p) }

// UnmarshalText accepts what MarshalText made.
func (p *Phase) UnmarshalText(text []byte) error { return unmarshalWord("phase", phaseWords, text, p) }

// String returns "in sync", "syncing", "out" or "async".
func (r Role) String() string { return word("role", roleWords, r) }

// MarshalText makes roles readable in JSON and YAML.
func (r Role) MarshalText() ([]byte, error) { return marshalWord("role", roleWords, r) }

// UnmarshalText accepts what MarshalText made.
func (r *Role) UnmarshalText(text []byte) error { return unmarshalWord("role", roleWords, text, r) }

// String returns "wait" or "error".
func (o OnLoss) String() string { return word("on-loss", onLossWords, o) }

// MarshalText makes the choice readable in JSON and YAML.
func (o OnLoss) MarshalText() ([]byte, error) { return marshalWord("on-loss", onLossWords, o) }

// UnmarshalText accepts what MarshalText made, which is also what the command line takes.
func (o *OnLoss) UnmarshalText(text []byte) error {
	return unmarshalWord("on-loss", onLossWords, text, o)
}

// String returns "majority", "preferred" or "unsafe".
func (q Quorum) String() string { return word("quorum", quorumWords, q) }

// MarshalText makes the mode readable in JSON and YAML.
func (q Quorum) MarshalText() ([]byte, error) { return marshalWord("quorum", quorumWords, q) }

// UnmarshalText accepts what MarshalText made.
func (q *Quorum) UnmarshalText(text []byte) error {
	return unmarshalWord("quorum", quorumWords, text, q)
}

// String returns "all" or "local".
func (a Ack) String() string { return word("ack", ackWords, a) }

// MarshalText makes the mode readable in JSON and YAML.
func (a Ack) MarshalText() ([]byte, error) { return marshalWord("ack", ackWords, a) }

// UnmarshalText accepts what MarshalText made.
func (a *Ack) UnmarshalText(text []byte) error { return unmarshalWord("ack", ackWords, text, a) }

func word[T ~uint8](what string, words []string, v T) string {
	if int(v) < len(words) {
		return words[v]
	}
	return fmt.Sprintf("%s %d", what, v)
}

func checkWord[T ~uint8](what string, words []string, v T) error {
	if int(v) < len(words) {
		return nil
	}
	return fmt.Errorf("%s %d: %w: this release knows %s", what, v, ukai.ErrInvalid, strings.Join(words, ", "))
}

func marshalWord[T ~uint8](what string, words []string, v T) ([]byte, error) {
	if err := checkWord(what, words, v); err != nil {
		return nil, err
	}
	return []byte(words[v]), nil
}

func unmarshalWord[T ~uint8](what string, words []string, text []byte, v *T) error {
	for i, w := range words {
		if string(text) == w {
			*v = T(i)
			return nil
		}
	}
	return fmt.Errorf("%s %q: %w: want one of %s", what, text, ukai.ErrInvalid, strings.Join(words, ", "))
}

// String returns "id@instance/version", where the last two name the record the fork left from.
func (f Fork) String() string {
	return fmt.Sprintf("%s@%d/%d", hex.EncodeToString(f.ID[:]), f.Instance, f.Version)
}

// MarshalText makes forks readable in JSON and YAML.
func (f Fork) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText accepts what MarshalText made.
func (f *Fork) UnmarshalText(text []byte) error {
	id, at, ok1 := strings.Cut(string(text), "@")
	instance, version, ok2 := strings.Cut(at, "/")
	raw, err1 := hex.DecodeString(id)
	i, err2 := strconv.ParseUint(instance, 10, 32)
	v, err3 := strconv.ParseUint(version, 10, 64)
	if !ok1 || !ok2 || err1 != nil || err2 != nil || err3 != nil || len(raw) != len(f.ID) {
		return fmt.Errorf("fork %q: %w: want id@instance/version", text, ukai.ErrInvalid)
	}
	*f = Fork{ID: ukai.Nonce(raw), Instance: uint32(i), Version: v}
	return nil
}
