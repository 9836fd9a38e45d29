package wire

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ukai"
)

func TestMeshKeysSurviveAsText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k MeshKey
		copy(k[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))
		k[0] |= 1
		got, err := ParseMeshKey("  " + strings.ToUpper(k.String()) + "\n")
		if err != nil || got != k {
			t.Fatalf("%v: %v", k, err)
		}
		text := []byte(k.String())
		at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		text[at] = rapid.SampledFrom([]byte("abcdefghijklmnopqrstuvwxyz234567 10")).Draw(t, "letter")
		if wrong, err := ParseMeshKey(string(text)); err == nil && wrong != k {
			t.Fatalf("%s is taken for a key", text)
		}
	})
}

func TestMeshKeysStayOutOfLogs(t *testing.T) {
	k := NewMeshKey()
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("start", "key", k)
	if strings.Contains(out.String(), k.String()) || strings.Contains(out.String(), fmt.Sprintf("%x", k[:])) || !strings.Contains(out.String(), k.ID()) {
		t.Errorf("logged as %s", out.String())
	}
}

func TestMeshKeysThatAreNone(t *testing.T) {
	for _, s := range []string{"", "ukai1-", "ukai2-aaaa", MeshKey{}.String(), NewMeshKey().String() + "aa", strings.Repeat("a", 1<<16)} {
		if _, err := ParseMeshKey(s); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%.40q: %v, want %v", s, err, ukai.ErrInvalid)
		}
	}
}

func TestIdentitiesSurviveInFiles(t *testing.T) {
	i, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseIdentity(i.Marshal())
	if err != nil || got.ID() != i.ID() || !got.private.Equal(i.private) {
		t.Fatalf("came back as %v: %v", got.ID(), err)
	}
	sum := sha256.Sum256(i.private.Public().(ed25519.PublicKey))
	if want := ukai.NodeID(sum[:16]); i.ID() != want {
		t.Errorf("id %v, want %v", i.ID(), want)
	}
	for _, text := range []string{"", "PRIVATE KEY", strings.Replace(string(i.Marshal()), "M", "N", 1), strings.ReplaceAll(string(i.Marshal()), "PRIVATE", "PUBLIC")} {
		if _, err := ParseIdentity([]byte(text)); !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%.60q: %v, want %v", text, err, ukai.ErrInvalid)
		}
	}
}

func TestTheCAIsTheSameOnEveryNode(t *testing.T) {
	key := NewMeshKey()
	ring := func() *keyring {
		i, err := NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		r, err := newKeyring([]MeshKey{key}, i)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	a, b := ring(), ring()
	if !bytes.Equal(a.keys[0].ca.Raw, b.keys[0].ca.Raw) {
		t.Error("two nodes made different CA certificates from one key")
	}
	if _, id, err := a.identify([]*x509.Certificate{b.cert.Leaf}); err != nil || id != key.id() {
		t.Errorf("a does not believe b: %v", err)
	}
}
