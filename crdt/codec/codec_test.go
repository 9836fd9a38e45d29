package codec

import (
	"bytes"
	"errors"
	"testing"

	"ukai"
)

type pair struct {
	A uint64   `cbor:"1,keyasint"`
	B []string `cbor:"2,keyasint,omitempty"`
}

func TestEqualValuesHaveEqualBytes(t *testing.T) {
	var first []byte
	for range 20 { // maps are walked in random order
		data, err := Marshal(map[string]int{"a": 1, "bb": 2, "c": 3, "dd": 4, "e": 5})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = data
		}
		if !bytes.Equal(first, data) {
			t.Fatalf("%x, then %x", first, data)
		}
	}
	if err := CheckCanonical(first); err != nil {
		t.Error(err)
	}
}

func TestStrictness(t *testing.T) {
	for _, c := range []struct {
		name             string
		data             string
		reads, known, ok bool // Unmarshal, UnmarshalKnown, CheckCanonical
	}{
		{"plain", "\xa1\x01\x05", true, true, true},
		{"unknown field", "\xa2\x01\x05\x09\x01", true, false, true},
		{"number in a longer form", "\xa1\x01\x18\x05", true, true, false},
		{"keys out of order", "\xa2\x02\x80\x01\x05", true, true, false},
		{"duplicate key", "\xa2\x01\x05\x01\x06", false, false, false},
		{"indefinite length", "\xbf\x01\x05\xff", false, false, false},
		{"tag", "\xa1\x01\xc1\x05", false, false, false},
		{"trailing byte", "\xa1\x01\x05\x00", false, false, false},
		{"cut off", "\xa1\x01", false, false, false},
		{"empty", "", false, false, false},
		{"wrong type", "\xa1\x01\x61a", false, false, true},
		{"bad text", "\xa1\x02\x81\x61\xff", false, false, false},
		{"too deep", "\xa1\x02" + string(bytes.Repeat([]byte{0x81}, 40)) + "\x00", false, false, false},
		{"huge list", "\xa1\x02\x9a\xff\xff\xff\xff", false, false, false},
	} {
		for _, f := range []struct {
			name string
			do   func() error
			want bool
		}{
			{"Unmarshal", func() error { return Unmarshal([]byte(c.data), new(pair)) }, c.reads},
			{"UnmarshalKnown", func() error { return UnmarshalKnown([]byte(c.data), new(pair)) }, c.known},
			{"CheckCanonical", func() error { return CheckCanonical([]byte(c.data)) }, c.ok},
		} {
			err := f.do()
			if (err == nil) != f.want || err != nil && !errors.Is(err, ukai.ErrCorrupt) {
				t.Errorf("%s: %s: error %v", c.name, f.name, err)
			}
		}
	}
}
