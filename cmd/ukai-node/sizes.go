package main

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strings"

	"github.com/dustin/go-humanize"

	"ukai"
)

// sizeHelp is how sizes are written, for help texts.
const sizeHelp = "Sizes are bytes, or have a suffix K, M, G, T or P of powers of 1024, as for qemu-img: 512M, 20G, 1.5T (20GiB means the same)."

var sizeRule = regexp.MustCompile(`^([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([KMGTPkmgtp]?)(i?[bB])?$`)

// parseSize reads a size in bytes: "4096", "512M", "20G", "20GiB", "1.5T". Suffixes are powers of 1024. "20GB" is refused, as to
// one reader it is 20 * 1000^3 bytes and to the next 20 * 1024^3.
func parseSize(s string) (int64, error) {
	m := sizeRule.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return 0, fmt.Errorf("size %q: %w: write a number of bytes, or a number with K, M, G, T or P, for example 20G", s, ukai.ErrInvalid)
	}
	number, prefix, unit := m[1], strings.ToUpper(m[2]), m[3]
	switch {
	case prefix != "" && strings.EqualFold(unit, "b"):
		return 0, fmt.Errorf("size %q: %w: write %s%s or %s%siB for powers of 1024, or the number of bytes", s, ukai.ErrInvalid, number, prefix, number, prefix)
	case prefix == "" && strings.HasPrefix(unit, "i"):
		return 0, fmt.Errorf("size %q: %w: write a number of bytes, or a number with K, M, G, T or P, for example 20G", s, ukai.ErrInvalid)
	}
	n, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("size %q: %w: not a number", s, ukai.ErrInvalid)
	}
	if prefix != "" {
		n.Mul(n, new(big.Rat).SetInt64(1<<(10*(1+strings.Index("KMGTP", prefix)))))
	}
	switch {
	case !n.IsInt():
		return 0, fmt.Errorf("size %q: %w: that is not a whole number of bytes", s, ukai.ErrInvalid)
	case n.Cmp(new(big.Rat).SetInt64(math.MaxInt64)) > 0:
		return 0, fmt.Errorf("size %q: %w: too large", s, ukai.ErrInvalid)
	}
	return n.Num().Int64(), nil
}

// allocated returns the space that something takes, if the node knows.
func allocated(n int64) string {
	if n < 0 {
		return "-"
	}
	return formatSize(n)
}

// formatSize returns n bytes for people: "20 GiB".
func formatSize(n int64) string {
	if n < 0 {
		return "-" + formatSize(-n)
	}
	return humanize.IBytes(uint64(n))
}
