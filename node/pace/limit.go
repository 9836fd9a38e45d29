package pace

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ukai"
)

// Rate is bytes per second. Zero lets nothing pass.
type Rate int64

// Unlimited is the rate of a link without a budget.
const Unlimited Rate = -1

// maxRate bounds rates, so that sums of bytes stay within an int64.
const maxRate Rate = 1e12

// none is how Unlimited is written.
const none = "none"

// units are what rates may be written in, those that String prefers first.
var units = []struct {
	name  string
	bytes float64
}{
	{"GB/s", 1e9}, {"MB/s", 1e6}, {"kB/s", 1e3}, {"GiB/s", 1 << 30}, {"MiB/s", 1 << 20}, {"KiB/s", 1 << 10},
	{"Gbit/s", 1e9 / 8}, {"Mbit/s", 1e6 / 8}, {"kbit/s", 1e3 / 8}, {"B/s", 1},
}

// ParseRate reads "50MB/s", "400Mbit/s", "0" or "none". Errors match ukai.ErrInvalid.
func ParseRate(s string) (Rate, error) {
	switch s {
	case none:
		return Unlimited, nil
	case "0":
		return 0, nil
	}
	for _, u := range units {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil || number[0] < '0' || number[0] > '9' {
			break
		}
		if r := n * u.bytes; r >= 0 && r <= float64(maxRate) {
			return Rate(r), nil
		}
		break
	}
	return 0, fmt.Errorf("rate %q: %w: write for example 50MB/s, 20MiB/s or 400Mbit/s, at most 1000GB/s; 0 lets nothing pass, none is no limit", s, ukai.ErrInvalid)
}

// String returns the rate as ParseRate reads it.
func (r Rate) String() string {
	switch {
	case r < 0:
		return none
	case r == 0:
		return "0"
	}
	for _, u := range units {
		if n := int64(r); u.bytes >= 1 && float64(r) >= u.bytes && n%int64(u.bytes) == 0 {
			return strconv.FormatInt(n/int64(u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(r), 10) + "B/s"
}

// Window is a part of each day in which another rate holds.
type Window struct {
	From, To int // minutes since midnight; a window that ends before it begins goes over midnight
	Rate     Rate
}

// String returns "22:00-06:00=200MB/s".
func (w Window) String() string {
	return fmt.Sprintf("%02d:%02d-%02d:%02d=%v", w.From/60, w.From%60, w.To/60, w.To%60, w.Rate)
}

func (w Window) holds(minute int) bool {
	if w.From < w.To {
		return w.From <= minute && minute < w.To
	}
	return minute >= w.From || minute < w.To
}

// Limit is the budget of a link.
type Limit struct {
	Rate    Rate     // where no window holds
	Windows []Window // the first that holds decides
	Zone    int      // of the windows, seconds east of UTC
}

// maxWindows bounds the windows of a budget, which every node keeps.
const maxWindows = 16

// ParseLimit reads a budget as the command line takes it: a rate, windows "22:00-06:00=200MB/s", and an offset from UTC such as "+09:00", ""
// for UTC. Errors match ukai.ErrInvalid.
func ParseLimit(rate string, windows []string, zone string) (l Limit, err error) {
	if l.Rate, err = ParseRate(rate); err != nil {
		return Limit{}, err
	}
	if len(windows) > maxWindows {
		return Limit{}, fmt.Errorf("%d windows: %w: at most %d", len(windows), ukai.ErrInvalid, maxWindows)
	}
	for _, text := range windows {
		w, err := parseWindow(text)
		if err != nil {
			return Limit{}, err
		}
		l.Windows = append(l.Windows, w)
	}
	if zone != "" {
		at, err := time.Parse("-07:00", zone)
		if err != nil {
			return Limit{}, fmt.Errorf("time zone %q: %w: write the offset from UTC, for example +09:00", zone, ukai.ErrInvalid)
		}
		_, l.Zone = at.Zone()
	}
	return l, nil
}

func parseWindow(text string) (w Window, err error) {
	span, rate, ok := strings.Cut(text, "=")
	from, to, ok2 := strings.Cut(span, "-")
	if ok && ok2 {
		a, errA := time.Parse("15:04", from)
		b, errB := time.Parse("15:04", to)
		w.From, w.To = 60*a.Hour()+a.Minute(), 60*b.Hour()+b.Minute()
		ok = errA == nil && errB == nil && w.From != w.To
	}
	if !ok || !ok2 {
		return w, fmt.Errorf("window %q: %w: write HH:MM-HH:MM=RATE, for example 22:00-06:00=200MB/s", text, ukai.ErrInvalid)
	}
	w.Rate, err = ParseRate(rate)
	return w, err
}

// String returns the budget in the form that ParseText reads, which is how it is stored.
func (l Limit) String() string {
	parts := []string{l.Rate.String()}
	for _, w := range l.Windows {
		parts = append(parts, w.String())
	}
	if l.Zone != 0 {
		parts = append(parts, l.ZoneText())
	}
	return strings.Join(parts, " ")
}

// ZoneText returns the offset from UTC in which the windows are, "+00:00" for none.
func (l Limit) ZoneText() string {
	return time.Time{}.In(time.FixedZone("", l.Zone)).Format("-07:00")
}

// ParseText reads what String made.
func ParseText(text string) (Limit, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return Limit{}, fmt.Errorf("budget: %w: it is empty", ukai.ErrInvalid)
	}
	zone := ""
	if last := words[len(words)-1]; last[0] == '+' || last[0] == '-' {
		zone, words = last, words[:len(words)-1]
	}
	return ParseLimit(words[0], words[1:], zone)
}

// At returns the rate that holds at a time.
func (l Limit) At(t time.Time) Rate {
	t = t.In(time.FixedZone("", l.Zone))
	minute := 60*t.Hour() + t.Minute()
	if i := slices.IndexFunc(l.Windows, func(w Window) bool { return w.holds(minute) }); i >= 0 {
		return l.Windows[i].Rate
	}
	return l.Rate
}

// Until returns when the rate that holds at a time ends; false if it never does.
func (l Limit) Until(t time.Time) (time.Time, bool) {
	now := l.At(t)
	for m := t.Truncate(time.Minute); m.Sub(t) <= 24*time.Hour; {
		if m = m.Add(time.Minute); l.At(m) != now {
			return m, true
		}
	}
	return time.Time{}, false
}

// Pair is two datacenters, or twice the same: the ends of a link. A comes first in the alphabet.
type Pair struct{ A, B string }

// NewPair returns the pair of two datacenters, whichever is first.
func NewPair(a, b string) Pair {
	if b < a {
		a, b = b, a
	}
	return Pair{A: a, B: b}
}

// String returns "osaka-tokyo".
func (p Pair) String() string { return p.A + "-" + p.B }

// Key returns a text that no other pair has: a name may hold '-', and none holds '~'.
func (p Pair) Key() string { return p.A + "~" + p.B }

// ParsePair reads "tokyo-osaka". Names may hold '-' themselves: of several ways to divide the text the one counts whose halves are both known.
// Errors match ukai.ErrInvalid.
func ParsePair(text string, known []string) (Pair, error) {
	var all, both []Pair
	for i := range len(text) {
		if text[i] != '-' {
			continue
		}
		a, b := text[:i], text[i+1:]
		if ukai.CheckLabel(ukai.LabelDC, a) != nil || ukai.CheckLabel(ukai.LabelDC, b) != nil {
			continue
		}
		all = append(all, NewPair(a, b))
		if slices.Contains(known, a) && slices.Contains(known, b) {
			both = append(both, NewPair(a, b))
		}
	}
	switch {
	case len(both) == 1:
		return both[0], nil
	case len(all) == 1:
		return all[0], nil
	}
	return Pair{}, fmt.Errorf("link %q: %w: write two datacenters, the values of the label dc, joined by -: tokyo-osaka, or tokyo-tokyo for the links within one; known are %s",
		text, ukai.ErrInvalid, strings.Join(known, ", "))
}
