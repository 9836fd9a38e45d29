package place

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
)

// Limits on rules.
const (
	// MaxReplicas bounds the copies that a rule may ask for.
	MaxReplicas = crdt.MaxMembers
	// MaxRuleBytes bounds the text of a rule, which every node keeps for every disk.
	MaxRuleBytes = 2048

	maxConditions = 8
	maxSpread     = 4

	// DefaultMinSync is how many replicas must be in sync for writes to go on, where a rule does not say. One: a VM
	// whose rule keeps a second copy goes on when all copies but one are lost, and nothing acknowledged is lost then.
	DefaultMinSync = 1
)

// Mode says what happens to a rule that cannot be met.
type Mode uint8

// Modes of a rule.
const (
	Strict Mode = iota // it is refused
	Prefer             // as many copies as can be are placed by it, none elsewhere, and the rest is a standing alarm
)

// String returns "strict" or "prefer".
func (m Mode) String() string {
	if m == Prefer {
		return "prefer"
	}
	return "strict"
}

// Rule is the placement that an administrator asked for. Each term wants replicas of its own: "dc=tokyo:2 ssd=yes:1"
// are three, on three nodes. Make one with ParseRule or ParseText; its zero value asks for nothing.
type Rule struct {
	Terms   []Term
	Spread  []string // label keys of which no two replicas may share a value; sorted
	Mode    Mode
	MinSync int // 0: DefaultMinSync
	// Follow is for how long the disk must have been used elsewhere before $here stands for that place; 0: no term says $here.
	Follow time.Duration
}

// Term asks for Count replicas on nodes of which all conditions hold: any node if there are none.
type Term struct {
	Conditions []Condition // sorted
	Count      int
}

// Condition is key=value or key!=value, about a node's label or, with the key "node", its name. The value $here stands for that of the node where
// the disk is used, see Rule.At.
type Condition struct {
	Key, Value string
	Not        bool
}

const (
	nodeKey = "node"
	// anyNode is the selector of a term without conditions.
	anyNode = "any"

	examples = "for example dc=tokyo:2, dc=osaka+ssd=yes:1, dc!=tokyo:1, node=t1:1 or any:2"
)

// Replicas returns how many copies the rule asks for.
func (r Rule) Replicas() int {
	n := 0
	for _, t := range r.Terms {
		n += t.Count
	}
	return n
}

// InSync returns the fewest replicas in sync with which writes go on.
func (r Rule) InSync() int {
	if r.MinSync == 0 {
		return DefaultMinSync
	}
	return r.MinSync
}

// String returns the rule in the one form that ParseText reads back to an equal rule. A rule is stored as this.
func (r Rule) String() string {
	parts := make([]string, 0, len(r.Terms)+4)
	for _, t := range r.Terms {
		parts = append(parts, t.String())
	}
	for _, key := range r.Spread {
		parts = append(parts, "--spread", key)
	}
	if r.Mode == Prefer {
		parts = append(parts, "--prefer")
	}
	if r.MinSync != 0 {
		parts = append(parts, "--min-sync", strconv.Itoa(r.MinSync))
	}
	if r.Follow != 0 {
		parts = append(parts, "--follow", r.Follow.String())
	}
	return strings.Join(parts, " ")
}

// String returns the term as it is written.
func (t Term) String() string { return t.selector() + ":" + strconv.Itoa(t.Count) }

func (t Term) selector() string {
	if len(t.Conditions) == 0 {
		return anyNode
	}
	parts := make([]string, len(t.Conditions))
	for i, c := range t.Conditions {
		parts[i] = c.String()
	}
	return strings.Join(parts, "+")
}

// String returns key=value or key!=value.
func (c Condition) String() string {
	if c.Not {
		return c.Key + "!=" + c.Value
	}
	return c.Key + "=" + c.Value
}

// holds says whether c is true of a node. A node without the label differs from every value.
func (c Condition) holds(n Node) bool { return (n.value(c.Key) == c.Value) != c.Not }

// matches says whether all conditions are true of a node.
func (t Term) matches(n Node) bool {
	return !slices.ContainsFunc(t.Conditions, func(c Condition) bool { return !c.holds(n) })
}

// Options are what a rule says beside its terms.
type Options struct {
	Spread  []string      // of --spread
	Mode    Mode          // of --strict and --prefer
	MinSync int           // of --min-sync; 0: not said
	Follow  time.Duration // of --follow; 0: not said
}

// ParseRule reads the terms of a rule as the command line takes them. Errors match ukai.ErrInvalid and name the term,
// what is wrong with it, and an example.
func ParseRule(terms []string, o Options) (Rule, error) {
	r := Rule{Mode: o.Mode, MinSync: o.MinSync, Follow: o.Follow}
	if len(terms) == 0 {
		return Rule{}, fmt.Errorf("rule: %w: no term; say where the copies go, %s", ukai.ErrInvalid, examples)
	}
	for _, text := range terms {
		t, err := parseTerm(text)
		if err != nil {
			return Rule{}, err
		}
		for _, u := range r.Terms {
			if slices.Equal(t.Conditions, u.Conditions) {
				return Rule{}, bad(text, "%s stands twice; write %s:%d", t.selector(), t.selector(), t.Count+u.Count)
			}
		}
		r.Terms = append(r.Terms, t)
	}
	for _, key := range o.Spread {
		if err := checkSpread(key); err != nil {
			return Rule{}, err
		}
		r.Spread = append(r.Spread, key)
	}
	slices.Sort(r.Spread)
	r.Spread = slices.Compact(r.Spread)
	return r, r.check()
}

// check holds a rule as a whole to its limits.
func (r Rule) check() error {
	n, text := r.Replicas(), r.String()
	switch {
	case n > MaxReplicas:
		return fmt.Errorf("rule %q: %w: asks for %d copies, at most %d", text, ukai.ErrInvalid, n, MaxReplicas)
	case r.MinSync < 0 || r.MinSync > n:
		return fmt.Errorf("rule %q: %w: --min-sync %d must be from 1 to %d, the copies it asks for", text, ukai.ErrInvalid, r.MinSync, n)
	case r.Mode > Prefer:
		return fmt.Errorf("rule %q: %w: mode %d is neither strict nor prefer", text, ukai.ErrInvalid, r.Mode)
	case len(r.Spread) > maxSpread:
		return fmt.Errorf("rule %q: %w: --spread names %d keys, at most %d", text, ukai.ErrInvalid, len(r.Spread), maxSpread)
	case len(text) > MaxRuleBytes:
		return fmt.Errorf("rule: %w: %d characters, at most %d", ukai.ErrInvalid, len(text), MaxRuleBytes)
	}
	return r.checkFollow()
}

func checkSpread(key string) error {
	if key == nodeKey {
		return fmt.Errorf("--spread node: %w: replicas are always on different nodes; leave it out", ukai.ErrInvalid)
	}
	if err := ukai.CheckLabel(key, "x"); err != nil {
		return fmt.Errorf("--spread %q: %w; for example --spread rack", key, err)
	}
	return nil
}

func bad(term, format string, args ...any) error {
	return fmt.Errorf("term %q: %w: %s; %s", term, ukai.ErrInvalid, fmt.Sprintf(format, args...), examples)
}

func parseTerm(text string) (Term, error) {
	if len(text) > MaxRuleBytes {
		return Term{}, fmt.Errorf("term of %d characters: %w: at most %d", len(text), ukai.ErrInvalid, MaxRuleBytes)
	}
	at := strings.LastIndexByte(text, ':')
	if at < 0 {
		return Term{}, bad(text, "the count is missing; write SELECTOR:COUNT")
	}
	selector, number := text[:at], text[at+1:]
	// Atoi would also take "+2" and "02".
	count, err := strconv.Atoi(number)
	if err != nil || strconv.Itoa(count) != number || count < 1 || count > MaxReplicas {
		return Term{}, bad(text, "count %q must be a number from 1 to %d", number, MaxReplicas)
	}
	t := Term{Count: count}
	if selector == anyNode {
		return t, nil
	}
	for part := range strings.SplitSeq(selector, "+") {
		c, err := parseCondition(text, part)
		if err != nil {
			return Term{}, err
		}
		t.Conditions = append(t.Conditions, c)
	}
	sortConditions(&t)
	return t, t.check(text)
}

// sortConditions brings the conditions of a term into order, each once.
func sortConditions(t *Term) {
	slices.SortFunc(t.Conditions, func(a, b Condition) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), compareBool(a.Not, b.Not), cmp.Compare(a.Value, b.Value))
	})
	t.Conditions = slices.Compact(t.Conditions)
}

func parseCondition(term, part string) (Condition, error) {
	key, value, ok := strings.Cut(part, "=")
	if !ok {
		return Condition{}, bad(term, "%q must be key=value, key!=value or node=NAME", part)
	}
	c := Condition{Key: key, Value: value}
	c.Key, c.Not = strings.CutSuffix(key, "!")
	if value == hereValue {
		value = "x" // what it stands for is a label's value, or a node's name
	}
	if c.Key == nodeKey {
		if err := ukai.CheckName("node", value); err != nil {
			return Condition{}, fmt.Errorf("term %q: %w; %s", term, err, examples)
		}
		return c, nil
	}
	if err := ukai.CheckLabel(c.Key, value); err != nil {
		return Condition{}, fmt.Errorf("term %q: %w; %s", term, err, examples)
	}
	return c, nil
}

// check finds what no node can ever satisfy.
func (t Term) check(text string) error {
	if len(t.Conditions) > maxConditions {
		return bad(text, "%d conditions, at most %d", len(t.Conditions), maxConditions)
	}
	is := map[string]string{}
	for _, c := range t.Conditions { // for one key, = comes before !=
		was, known := is[c.Key]
		switch {
		case !c.Not && known:
			return bad(text, "no node has both %s=%s and %v", c.Key, was, c)
		case c.Not && known && was == c.Value:
			return bad(text, "no node has both %s=%s and %v", c.Key, was, c)
		case !c.Not:
			is[c.Key] = c.Value
		}
	}
	if name, ok := is[nodeKey]; ok && t.Count > 1 {
		return bad(text, "node %s can have one copy only; write node=%s:1", name, name)
	}
	return nil
}

// ParseText reads a rule as one text: terms and --spread KEY, --strict, --prefer, --min-sync N, --follow DURATION in any order, separated
// by blanks. It reads whatever String wrote.
func ParseText(text string) (Rule, error) {
	if len(text) > MaxRuleBytes {
		return Rule{}, fmt.Errorf("rule: %w: %d characters, at most %d", ukai.ErrInvalid, len(text), MaxRuleBytes)
	}
	var terms []string
	var o Options
	words := strings.Fields(text)
	for i := 0; i < len(words); i++ {
		flag, value, inline := strings.Cut(words[i], "=")
		if !strings.HasPrefix(flag, "-") {
			terms = append(terms, words[i])
			continue
		}
		if flag == "--spread" || flag == "--min-sync" || flag == "--follow" {
			if !inline {
				if i++; i == len(words) {
					return Rule{}, fmt.Errorf("rule %q: %w: %s needs a value", text, ukai.ErrInvalid, flag)
				}
				value = words[i]
			}
		} else if inline {
			return Rule{}, fmt.Errorf("rule %q: %w: %s takes no value", text, ukai.ErrInvalid, flag)
		}
		switch flag {
		case "--spread":
			o.Spread = append(o.Spread, value)
		case "--min-sync":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return Rule{}, fmt.Errorf("rule %q: %w: --min-sync %q must be a number of copies, at least 1", text, ukai.ErrInvalid, value)
			}
			o.MinSync = n
		case "--follow":
			d, err := time.ParseDuration(value)
			if err != nil || d == 0 {
				return Rule{}, fmt.Errorf("rule %q: %w: --follow %q must be a time such as 10m", text, ukai.ErrInvalid, value)
			}
			o.Follow = d
		case "--strict":
			o.Mode = Strict
		case "--prefer":
			o.Mode = Prefer
		default:
			return Rule{}, fmt.Errorf("rule %q: %w: %s is none of --spread KEY, --strict, --prefer, --min-sync N, --follow DURATION", text, ukai.ErrInvalid, flag)
		}
	}
	return ParseRule(terms, o)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
