package admin

import (
	"encoding/json"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

func FuzzParseMetric(f *testing.F) {
	f.Add(`ukai_x{a="b",c="\""}`)
	f.Add("x{")
	f.Fuzz(func(t *testing.T, key string) {
		name, labels, err := parseMetric(key)
		if err == nil && name == "" {
			t.Errorf("%q: no name, labels %v", key, labels)
		}
	})
}

func FuzzProblem(f *testing.F) {
	f.Add([]byte(`{"code":"held","detail":"x","node":{"id":"00000000000000000000000000000001","name":"a"}}`))
	f.Add([]byte(`{"code":"fenced","epoch":3}`))
	f.Add([]byte(`{"code":"newer-kind","reasons":[{"why":"x"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Problem
		if json.Unmarshal(b, &p) != nil || p.Code == "" {
			return
		}
		err := p.err()
		if err == nil || err.Error() == "" {
			t.Fatalf("%s: error without a text", b)
		}
		// What is sent on is the same kind of error again. A code that this release does not know becomes an internal error.
		if again := problemOf(err); again.Code != p.Code && again.Code != internal.word {
			t.Errorf("%s: code %q became %q", b, p.Code, again.Code)
		}
	})
}

func TestParseMetricReadsWhatPrometheusWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z_][a-z0-9_]{0,20}`).Draw(t, "name")
		labels := rapid.MapOfN(rapid.StringMatching(`[a-z_][a-z0-9_]{0,10}`), rapid.StringMatching(`[ -~]{0,20}`), 0, 4).Draw(t, "labels")
		key := name
		sep := "{"
		for k, v := range labels {
			key += sep + k + "=" + strconv.Quote(v)
			sep = ","
		}
		if len(labels) > 0 {
			key += "}"
		}
		gotName, got, err := parseMetric(key)
		if err != nil || gotName != name || len(got) != len(labels) {
			t.Fatalf("%s: %q %v %v", key, gotName, got, err)
		}
		for k, v := range labels {
			if got[k] != v {
				t.Fatalf("%s: label %s is %q", key, k, got[k])
			}
		}
	})
}
