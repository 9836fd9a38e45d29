// Package codec is the one encoding of everything UKAI keeps or sends that is not block data: records, deltas,
// catalog entries, control messages. It is CBOR in the deterministic form of RFC 8949 section 4.2, so equal values have
// equal bytes, and its decoder is strict: unknown sizes, duplicate keys, deep nesting and trailing bytes are refused.
//
// Struct fields carry `cbor:"N,keyasint"` tags. A number is never given a second meaning; a decoder ignores numbers it
// does not know, so that a mesh may run two releases at once.
package codec

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"ukai"
)

// Limits of the decoder.
const (
	maxNesting  = 16
	maxElements = 1 << 17
)

var (
	enc = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, IndefLength: cbor.IndefLengthForbidden}.EncMode())
	dec = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, MaxNestedLevels: maxNesting,
		MaxArrayElements: maxElements, MaxMapPairs: maxElements, TagsMd: cbor.TagsForbidden,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only if the constants above contradict each other
	}
	return v
}

// Marshal encodes v. It fails only for types that CBOR cannot express.
func Marshal(v any) ([]byte, error) { return enc.Marshal(v) }

// Unmarshal decodes all of data into v. Errors match ukai.ErrCorrupt.
func Unmarshal(data []byte, v any) error {
	if err := dec.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %T: %w: %v", v, ukai.ErrCorrupt, err)
	}
	return nil
}
