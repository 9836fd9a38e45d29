// Package codec is the one encoding of everything UKAI keeps or sends that is not block data: records, deltas,
// catalog entries, control messages. It is CBOR in the deterministic form of RFC 8949 section 4.2, so equal values have
// equal bytes, and its decoder is strict: unknown sizes, duplicate keys, deep nesting and trailing bytes are refused.
//
// Struct fields carry `cbor:"N,keyasint"` tags. A number is never given a second meaning; a decoder ignores numbers it
// does not know, so that a mesh may run two releases at once.
package codec

import (
	"bytes"
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
	dec = must(decOptions(cbor.ExtraDecErrorNone).DecMode())
	// known also refuses map keys that the target has no field for.
	known = must(decOptions(cbor.ExtraDecErrorUnknownField).DecMode())
)

func decOptions(extra cbor.ExtraDecErrorCond) cbor.DecOptions {
	return cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, MaxNestedLevels: maxNesting,
		MaxArrayElements: maxElements, MaxMapPairs: maxElements, TagsMd: cbor.TagsForbidden, ExtraReturnErrors: extra,
	}
}

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
		return fmt.Errorf("decode %T: %w: %w", v, ukai.ErrCorrupt, err)
	}
	return nil
}

// UnmarshalKnown is Unmarshal, but refuses fields that v does not have.
func UnmarshalKnown(data []byte, v any) error {
	if err := known.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %T: %w: %w", v, ukai.ErrCorrupt, err)
	}
	return nil
}

// CheckCanonical says whether data, of whatever type, is in the deterministic form that Marshal writes; if not, the
// error matches ukai.ErrCorrupt.
func CheckCanonical(data []byte) error {
	var v any
	if err := dec.Unmarshal(data, &v); err != nil {
		return fmt.Errorf("%w: %w", ukai.ErrCorrupt, err)
	}
	again, err := enc.Marshal(v)
	if err != nil {
		return fmt.Errorf("%w: %w", ukai.ErrCorrupt, err)
	}
	if !bytes.Equal(again, data) {
		return fmt.Errorf("%w: not in canonical form", ukai.ErrCorrupt)
	}
	return nil
}
