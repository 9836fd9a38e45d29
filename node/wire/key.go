package wire

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"

	"ukai"
)

// MeshKey is the secret that all nodes of a mesh share. Whoever has it may join. The zero MeshKey is no key.
type MeshKey [32]byte

const (
	meshKeyPrefix   = "ukai1-"
	meshKeyChecksum = 4
)

// NewMeshKey returns a random key.
func NewMeshKey() (k MeshKey) {
	_, _ = rand.Read(k[:]) // never fails: it ends the program instead
	return k
}

// ParseMeshKey reads what String wrote. Spaces around it and the case of letters do not matter.
func ParseMeshKey(s string) (k MeshKey, err error) {
	const remedy = "copy the whole line that `ukai-node mesh show --key` prints on a node of the mesh"
	text := strings.ToLower(strings.TrimSpace(s))
	rest, ok := strings.CutPrefix(text, meshKeyPrefix)
	if !ok {
		return MeshKey{}, fmt.Errorf("mesh key: %w: does not begin with %q; %s", ukai.ErrInvalid, meshKeyPrefix, remedy)
	}
	raw, err := meshKeyText().DecodeString(strings.ToUpper(rest))
	if err != nil || len(raw) != len(k)+meshKeyChecksum {
		return MeshKey{}, fmt.Errorf("mesh key: %w: %d letters and digits after %q, want %d of a-z and 2-7; %s", ukai.ErrInvalid,
			len(rest), meshKeyPrefix, meshKeyText().EncodedLen(len(k)+meshKeyChecksum), remedy)
	}
	copy(k[:], raw)
	if !bytes.Equal(raw[len(k):], k.checksum()) {
		return MeshKey{}, fmt.Errorf("mesh key: %w: its checksum does not hold, so a letter is wrong; %s", ukai.ErrInvalid, remedy)
	}
	if k == (MeshKey{}) {
		return MeshKey{}, fmt.Errorf("mesh key: %w: it is all zeros; make one with `ukai-node mesh init`", ukai.ErrInvalid)
	}
	return k, nil
}

// String returns the key itself, as text with a checksum. Do not log it: a Logger given the MeshKey writes its ID.
func (k MeshKey) String() string {
	return meshKeyPrefix + strings.ToLower(meshKeyText().EncodeToString(append(k[:], k.checksum()...)))
}

// ID returns 8 hexadecimal digits that tell keys apart and give nothing of the key away.
func (k MeshKey) ID() string {
	id := k.id()
	return hex.EncodeToString(id[:])
}

// LogValue keeps the key out of logs.
func (k MeshKey) LogValue() slog.Value { return slog.StringValue("mesh key " + k.ID()) }

func (k MeshKey) checksum() []byte {
	sum := sha256.Sum256(append([]byte("ukai mesh key"), k[:]...))
	return sum[:meshKeyChecksum]
}

// keyID names a mesh key on the wire.
type keyID [4]byte

func (id keyID) String() string { return hex.EncodeToString(id[:]) }

func (k MeshKey) id() keyID { return keyID(derive(k[:], "key id", len(keyID{}))) }

// derive makes a key of n bytes for one use from a secret (HKDF, RFC 5869).
func derive(secret []byte, use string, n int) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, "ukai/1 "+use, n)
	if err != nil {
		panic("wire: derive " + use + ": " + err.Error()) // only for n above 8160
	}
	return key
}

func meshKeyText() *base32.Encoding { return base32.StdEncoding.WithPadding(base32.NoPadding) }
