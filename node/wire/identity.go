package wire

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"ukai"
)

// Identity is a node's own key pair. It lives as long as the node's store: a node with a new identity is a new node.
type Identity struct{ private ed25519.PrivateKey }

const identityBlock = "PRIVATE KEY" // PKCS #8 in PEM, so that common tools can read it

// NewIdentity returns a fresh identity.
func NewIdentity() (Identity, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Identity{}, fmt.Errorf("make a node identity: %w", err)
	}
	return Identity{private}, nil
}

// ParseIdentity reads what Marshal wrote.
func ParseIdentity(text []byte) (Identity, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != identityBlock {
		return Identity{}, fmt.Errorf("node identity: %w: not a PEM block of type %q; restore the file from a backup of this node", ukai.ErrInvalid, identityBlock)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Identity{}, fmt.Errorf("node identity: %w: %w; restore the file from a backup of this node", ukai.ErrInvalid, err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return Identity{}, fmt.Errorf("node identity: %w: key of type %T, want ed25519", ukai.ErrInvalid, key)
	}
	return Identity{private}, nil
}

// Marshal returns the identity as text for a file that only the node may read.
func (i Identity) Marshal() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(i.private)
	if err != nil {
		panic("wire: marshal identity: " + err.Error()) // the zero Identity
	}
	return pem.EncodeToMemory(&pem.Block{Type: identityBlock, Bytes: der})
}

// ID returns the node's id. The zero Identity has the zero id.
func (i Identity) ID() ukai.NodeID {
	if i.IsZero() {
		return ukai.NodeID{}
	}
	return nodeID(i.private.Public().(ed25519.PublicKey))
}

// IsZero says whether i is no identity.
func (i Identity) IsZero() bool { return len(i.private) != ed25519.PrivateKeySize }

func nodeID(public ed25519.PublicKey) ukai.NodeID {
	sum := sha256.Sum256(public)
	return ukai.NodeID(sum[:len(ukai.NodeID{})])
}
