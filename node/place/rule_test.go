package place

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ukai"
)

func TestParseRule(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"dc=tokyo:2", "dc=tokyo:2"},
		{"dc=tokyo:2 dc=osaka:1", "dc=tokyo:2 dc=osaka:1"},
		{"ssd=yes+dc=tokyo:2", "dc=tokyo+ssd=yes:2"},
		{"dc=tokyo+dc=tokyo:2", "dc=tokyo:2"},
		{"dc!=tokyo+dc!=osaka:2", "dc!=osaka+dc!=tokyo:2"},
		{"node=t1:1 node!=t1+dc=tokyo:1", "node=t1:1 dc=tokyo+node!=t1:1"},
		{"--min-sync 2 --spread rack dc=tokyo:3 --spread=dc --spread rack --prefer", "dc=tokyo:3 --spread dc --spread rack --prefer --min-sync 2"},
		{"  dc=tokyo:1\n--prefer --strict ", "dc=tokyo:1"},
		{"node=vm~conflict:1", "node=vm~conflict:1"},
		{"dc=$here:2 dc!=$here:1 --follow 10m", "dc=$here:2 dc!=$here:1 --follow 10m0s"},
		{"node=$here:1 any:1 --follow=90s --prefer", "node=$here:1 any:1 --prefer --follow 1m30s"},
	} {
		r, err := ParseText(test.text)
		if err != nil || r.String() != test.want {
			t.Errorf("%q: %q, %v; want %q", test.text, r, err, test.want)
		}
	}
}

func TestParseRuleSaysWhatIsWrong(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", "no term"},
		{"dc=tokyo", `term "dc=tokyo": invalid: the count is missing`},
		{"tokyo:2", `"tokyo" must be key=value`},
		{":2", `"" must be key=value`},
		{"dc=tokyo+:2", `"" must be key=value`},
		{"dc=:2", `label dc=""`},
		{"=tokyo:2", `label key ""`},
		{"dc==tokyo:2", `label dc="=tokyo"`},
		{"dc=tokyo:0", `count "0" must be a number from 1 to 8`},
		{"dc=tokyo:9", `count "9"`},
		{"dc=tokyo:+2", `count "+2"`},
		{"dc=tokyo:02", `count "02"`},
		{"dc=tokyo:two", `count "two"`},
		{"dc=tokyo:5 dc=osaka:4", "asks for 9 copies, at most 8"},
		{"dc=tokyo:1 dc=tokyo:2", "stands twice; write dc=tokyo:3"},
		{"dc=tokyo+ssd=yes:1 ssd=yes+dc=tokyo:1", "stands twice"},
		{"dc=tokyo+dc=osaka:1", "no node has both dc=osaka and dc=tokyo"},
		{"dc=osaka+dc!=osaka:1", "no node has both dc=osaka and dc!=osaka"},
		{"node=t1:2", "node t1 can have one copy only; write node=t1:1"},
		{"node=-x:1", `node name "-x"`},
		{"dc=$here:2", `dc=$here means where the VM has run for some time: say for how long, for example --follow 10m`},
		{"dc=$there:2 --follow 10m", `label dc="$there"`},
		{"$here=dc:2 --follow 10m", `label key "$here"`},
		{"dc=tokyo:2 --follow 10m", "no term does; for example dc=$here:2"},
		{"dc=$here:2 --follow 9s", "--follow 9s must be whole seconds from 10s to 720h0m0s"},
		{"dc=$here:2 --follow 721h", "--follow 721h0m0s must be"},
		{"dc=$here:2 --follow 10.5s", "--follow 10.5s must be whole seconds"},
		{"dc=$here:2 --follow -10m", "--follow -10m0s must be"},
		{"dc=$here:2 --follow 0", `--follow "0" must be a time such as 10m`},
		{"dc=$here:2 --follow soon", `--follow "soon"`},
		{"dc=$here+dc!=$here:2 --follow 10m", "no node has both dc=$here and dc!=$here"},
		{"node=$here:2 --follow 10m", "node $here can have one copy only"},
		{"dc=tokyo:2 --spread", "--spread needs a value"},
		{"dc=tokyo:2 --spread node", "always on different nodes"},
		{"dc=tokyo:2 --spread ra/ck", "--spread rack"},
		{"dc=tokyo:2 --min-sync 3", "--min-sync 3 must be from 1 to 2"},
		{"dc=tokyo:2 --min-sync 0", `--min-sync "0"`},
		{"dc=tokyo:2 --prefer=yes", "--prefer takes no value"},
		{"dc=tokyo:2 --sperad rack", "--sperad is none of --spread KEY"},
		{"dc=tokyo:1 --spread a --spread b --spread c --spread d --spread e", "names 5 keys"},
		{"a=1+b=1+c=1+d=1+e=1+f=1+g=1+h=1+i=1:1", "9 conditions"},
		{strings.Repeat("x", 5000), "5000 characters"},
	} {
		_, err := ParseText(test.text)
		if !errors.Is(err, ukai.ErrInvalid) || !strings.Contains(fmt.Sprint(err), test.want) {
			t.Errorf("%.60q: %v; want %q", test.text, err, test.want)
		}
	}
}

func anyRule(t *rapid.T) Rule {
	return ruleOf(t, rapid.SampledFrom([]string{"a", "b", "c"}), 0)
}

func ruleOf(t *rapid.T, value *rapid.Generator[string], follow int) Rule {
	key := rapid.SampledFrom([]string{"dc", "rack", "ssd", nodeKey})
	condition := rapid.Custom(func(t *rapid.T) string {
		return key.Draw(t, "key") + rapid.SampledFrom([]string{"=", "!="}).Draw(t, "op") + value.Draw(t, "value")
	})
	term := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(condition, 1, 3).Draw(t, "conditions"), "+") + fmt.Sprintf(":%d", rapid.IntRange(1, 3).Draw(t, "count"))
	})
	for {
		r, err := ParseRule(rapid.SliceOfN(term, 1, 3).Draw(t, "terms"), Options{
			Spread: rapid.SliceOfN(rapid.SampledFrom([]string{"dc", "rack"}), 0, 2).Draw(t, "spread"),
			Mode:   rapid.SampledFrom([]Mode{Strict, Prefer}).Draw(t, "mode"), MinSync: rapid.IntRange(0, 2).Draw(t, "min-sync"),
			Follow: time.Duration(rapid.IntRange(0, follow).Draw(t, "follow")) * time.Minute,
		})
		if err == nil {
			return r
		}
	}
}

func TestRuleTextRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := ruleOf(t, rapid.SampledFrom([]string{"a", "b", "c", hereValue}), 1)
		again, err := ParseText(r.String())
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%q became %q, %v", r, again, err)
		}
	})
}

func FuzzParseText(f *testing.F) {
	for _, s := range []string{"dc=tokyo:2 dc!=osaka+ssd=yes:1 --spread rack --prefer --min-sync 2", "node=t1:1", "dc=$here:2 --follow 10m", "a=b:", ":::", "--spread"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseText(text)
		if err != nil {
			if !errors.Is(err, ukai.ErrInvalid) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		again, err := ParseText(r.String())
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%q: %q became %q, %v", text, r, again, err)
		}
	})
}
