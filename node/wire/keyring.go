package wire

import (
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"ukai"
)

const (
	alpn = "ukai/1"
	// serverName is the same for all nodes: which node it is, its public key says.
	serverName = "node.ukai.invalid"
	// maxKeys bounds the mesh keys accepted at one time; a rotation needs two.
	maxKeys = 8
)

// keyring is what follows from the mesh keys: who is believed, and with what packets are sealed. It never changes;
// a rotation makes a new one.
type keyring struct {
	keys  []ringKey // the first one seals
	roots *x509.CertPool
	cert  tls.Certificate // this node's, signed with the first key
}

type ringKey struct {
	id     keyID
	ca     *x509.Certificate
	roots  *x509.CertPool // only ca
	packet cipher.AEAD
}

func newKeyring(keys []MeshKey, self Identity) (*keyring, error) {
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, fmt.Errorf("mesh keys: %w: %d given, want 1 to %d; make one with `ukai-node mesh init`", ukai.ErrInvalid, len(keys), maxKeys)
	}
	r := &keyring{roots: x509.NewCertPool()}
	for n, key := range keys {
		if key == (MeshKey{}) {
			return nil, fmt.Errorf("mesh key %d: %w: it is all zeros; make one with `ukai-node mesh init`", n+1, ukai.ErrInvalid)
		}
		if slices.ContainsFunc(r.keys, func(k ringKey) bool { return k.id == key.id() }) {
			continue
		}
		private := ed25519.NewKeyFromSeed(derive(key[:], "mesh ca", ed25519.SeedSize))
		ca, err := newCA(key.id(), private)
		if err != nil {
			return nil, fmt.Errorf("mesh key %v: CA certificate: %w", key.id(), err)
		}
		packet, err := chacha20poly1305.NewX(derive(key[:], "gossip packets", chacha20poly1305.KeySize))
		if err != nil {
			return nil, fmt.Errorf("mesh key %v: packet key: %w", key.id(), err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca)
		r.roots.AddCert(ca)
		r.keys = append(r.keys, ringKey{id: key.id(), ca: ca, roots: roots, packet: packet})
		if n == 0 {
			if r.cert, err = newCertificate(self, ca, private); err != nil {
				return nil, fmt.Errorf("node certificate: %w", err)
			}
		}
	}
	return r, nil
}

// Certificates say nothing about time: clocks of nodes may be wrong by any amount, and what ends a node's membership
// is a new mesh key. So they are valid from before any clock to the last day that X.509 can express, and are verified
// as of certificateTime whatever the clock says.
func validity() (from, until time.Time) {
	return time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
}

func certificateTime() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// newCA returns the same bytes on every node: nothing in it is random, and ed25519 signatures are not either.
func newCA(id keyID, private ed25519.PrivateKey) (*x509.Certificate, error) {
	from, until := validity()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "ukai mesh " + id.String()},
		NotBefore:             from,
		NotAfter:              until,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func newCertificate(self Identity, ca *x509.Certificate, caKey ed25519.PrivateKey) (tls.Certificate, error) {
	from, until := validity()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "ukai node " + self.ID().String()},
		DNSNames:     []string{serverName},
		NotBefore:    from,
		NotAfter:     until,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, self.private.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: self.private, Leaf: leaf}, nil
}

// Reasons for which a peer is not believed.
var (
	errNoCertificate = errors.New("shows no certificate")
	errWrongKey      = errors.New("its certificate was not made with a mesh key of this node; give both nodes the same mesh key")
	errWrongNode     = errors.New("another node answers at this address")
	errGivenUp       = errors.New("the other end gave up before it had shown a certificate; it may have another mesh key, or the network between may lose much")
)

// identify says which node showed certs, and which mesh key vouches for it.
func (r *keyring) identify(certs []*x509.Certificate) (ukai.NodeID, keyID, error) {
	if len(certs) == 0 {
		return ukai.NodeID{}, keyID{}, errNoCertificate
	}
	leaf := certs[0]
	public, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return ukai.NodeID{}, keyID{}, fmt.Errorf("its certificate has a key of type %T, want ed25519", leaf.PublicKey)
	}
	for _, k := range r.keys {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: k.roots, CurrentTime: certificateTime(), DNSName: serverName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err == nil {
			return nodeID(public), k.id, nil
		}
	}
	return ukai.NodeID{}, keyID{}, errWrongKey
}

// accepts says whether the key is still in the ring.
func (r *keyring) accepts(id keyID) bool {
	return slices.ContainsFunc(r.keys, func(k ringKey) bool { return k.id == id })
}

func (r *keyring) tls() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		Certificates:           []tls.Certificate{r.cert},
		SessionTicketsDisabled: true, // every connection proves who its ends are
		Time:                   certificateTime,
	}
}

// serverTLS verifies in VerifyConnection and not through ClientCAs, because a refusal has to be counted and logged
// whatever its reason: VerifyConnection also sees clients without a certificate.
func (r *keyring) serverTLS(judged func(error)) *tls.Config {
	c := r.tls()
	c.ClientAuth = tls.RequestClientCert
	c.VerifyConnection = func(state tls.ConnectionState) error {
		_, _, err := r.identify(state.PeerCertificates)
		judged(err)
		return err
	}
	return c
}

// clientTLS accepts the node want, or any node of the mesh if want is zero.
func (r *keyring) clientTLS(want ukai.NodeID) *tls.Config {
	c := r.tls()
	c.ServerName = serverName
	c.RootCAs = r.roots
	c.VerifyConnection = func(state tls.ConnectionState) error {
		id, _, err := r.identify(state.PeerCertificates)
		if err == nil && !want.IsZero() && id != want {
			err = fmt.Errorf("%w: node %v, want %v", errWrongNode, id.Short(), want.Short())
		}
		return err
	}
	return c
}
