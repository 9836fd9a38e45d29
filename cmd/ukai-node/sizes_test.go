package main

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ukai"
)

func TestSizesAreReadAsQEMUReadsThem(t *testing.T) {
	for s, want := range map[string]int64{
		"4096": 4096, "512B": 512, "1k": 1 << 10, "512M": 512 << 20, "20G": 20 << 30, "20GiB": 20 << 30, "20 gib": 20 << 30, " 1T ": 1 << 40,
		"1.5T": 3 << 39, "0.5G": 1 << 29, "64T": 64 << 40, "0": 0, "7P": 7 << 50,
	} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for s, says := range map[string]string{
		"": "write a number", "G": "write a number", "-1G": "write a number", "1e9": "write a number", "20GB": "20G or 20GiB", "20gb": "20G or 20GiB", "1.5": "whole number",
		"0.3K": "whole number", "99999999P": "too large", "9223372036854775808": "write a number", "0x10": "write a number", "1 2": "write a number", "1iB": "write a number", "１G": "write a number",
	} {
		if got, err := parseSize(s); !errors.Is(err, ukai.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %d, %v; want an error that says %q", s, got, err, says)
		}
	}
}

func TestAWholeSizeSurvivesBeingWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.SampledFrom([]struct {
			suffix string
			bytes  int64
		}{{"", 1}, {"K", 1 << 10}, {"MiB", 1 << 20}, {"g", 1 << 30}, {"TiB", 1 << 40}}).Draw(t, "unit")
		n := rapid.Int64Range(0, math.MaxInt64/unit.bytes/16).Draw(t, "n")
		s := strings.TrimSpace(rapid.SampledFrom([]string{"", " "}).Draw(t, "space") + strconv.FormatInt(n, 10) + unit.suffix)
		got, err := parseSize(s)
		if len(strconv.FormatInt(n, 10)) > 18 {
			return // more digits than are taken
		}
		if err != nil || got != n*unit.bytes {
			t.Fatalf("%q: %d, %v", s, got, err)
		}
	})
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"20G", "1.5TiB", "20GB", "9.999999999P", "0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		switch {
		case err == nil && n < 0:
			t.Errorf("%q is %d", s, n)
		case err != nil && !errors.Is(err, ukai.ErrInvalid):
			t.Errorf("%q: %v", s, err)
		case err == nil && formatSize(n) == "":
			t.Errorf("%q has no text", s)
		}
	})
}
