package admission

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// The life of a certificate.
const (
	lifetime = 90 * 24 * time.Hour
	renewal  = 60 * 24 * time.Hour // after so much of it the next one is made
	overlap  = time.Hour           // for so long the next one is trusted before it is used
	urgent   = 10 * 24 * time.Hour // what is left of a certificate that is replaced whether the next one is trusted or not
	skew     = time.Hour           // what clocks may differ by
)

// pair is a certificate with its key, in PEM.
type pair struct{ cert, key []byte }

func (p pair) isZero() bool { return len(p.cert) == 0 && len(p.key) == 0 }

// material is what the Secret holds.
type material struct {
	serving pair
	next    pair      // what will serve; zero while there is none
	staged  time.Time // when next was made
	roots   []byte    // PEM: the authorities to trust, the newest first
}

// mint makes a certificate for the names, and the authority that signed it. The authority's
// key signs this one certificate and is gone: nobody can make another.
func mint(names []string, now time.Time) (pair, []byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return pair{}, nil, err
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, nil, err
	}
	authority := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "stile webhooks " + serial.Text(36)},
		NotBefore: now.Add(-skew), NotAfter: now.Add(lifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return pair{}, nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: new(big.Int).Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, name)
		}
	}
	parent, err := x509.ParseCertificate(authorityDER)
	if err != nil {
		return pair{}, nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, parent, leafKey.Public(), authorityKey)
	if err != nil {
		return pair{}, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return pair{}, nil, err
	}
	return pair{cert: encode("CERTIFICATE", leafDER), key: encode("PRIVATE KEY", keyDER)}, encode("CERTIFICATE", authorityDER), nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// usable returns the pair ready to serve, or why it may not: it is not what it should be,
// it is over, or one of the roots does not vouch for it under every name.
func (p pair) usable(roots []byte, names []string, now time.Time) (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		return nil, errors.New("the certificate and its key do not belong together") // the cause could show parts of a key
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(roots)
	for _, name := range names {
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: trusted, DNSName: name, CurrentTime: now}); err != nil {
			return nil, fmt.Errorf("the certificate: %w", err)
		}
	}
	return &c, nil
}

// vouching returns those of the roots that vouch for the pair at now.
func (p pair) vouching(roots []byte, now time.Time) []byte {
	block, _ := pem.Decode(p.cert)
	if block == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	var kept []byte
	for rest := roots; ; {
		if block, rest = pem.Decode(rest); block == nil {
			return kept
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue
		}
		only := x509.NewCertPool()
		only.AddCert(root)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: only, CurrentTime: now}); err == nil {
			kept = append(kept, encode("CERTIFICATE", root.Raw)...)
		}
	}
}

// advance returns what should be there instead of m at now, and whether that differs.
// trusted says that the API server has been told of all of m's roots.
func (m material) advance(names []string, now time.Time, trusted bool) (material, bool, error) {
	serving, err := m.serving.usable(m.roots, names, now)
	if err != nil {
		// There is none, it is over, or it has other names: nothing is lost by using the next at once.
		if _, err := m.next.usable(m.roots, names, now); err == nil {
			return m.promote(), true, nil
		}
		fresh, root, err := mint(names, now)
		if err != nil {
			return m, false, fmt.Errorf("make a certificate: %w", err)
		}
		return material{serving: fresh, roots: bytes.Join([][]byte{root, m.serving.vouching(m.roots, now)}, nil)}, true, nil
	}
	if !m.next.isZero() {
		if _, err := m.next.usable(m.roots, names, now); err != nil {
			m.next = pair{} // falls through: a new one is made if it is time
		} else {
			settled := trusted && !now.Before(m.staged.Add(overlap))
			if settled || serving.Leaf.NotAfter.Sub(now) < urgent {
				return m.promote(), true, nil
			}
			return m, false, nil
		}
	}
	if now.Before(serving.Leaf.NotBefore.Add(skew + renewal)) {
		return m, false, nil
	}
	fresh, root, err := mint(names, now)
	if err != nil {
		return m, false, fmt.Errorf("make a certificate: %w", err)
	}
	m.next, m.staged = fresh, now
	m.roots = bytes.Join([][]byte{root, m.serving.vouching(m.roots, now)}, nil)
	return m, true, nil
}

// promote lets next serve. Who serves the last one still is trusted still.
func (m material) promote() material {
	return material{serving: m.next, roots: m.roots}
}
