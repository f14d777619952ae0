package egress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/policy"
)

const (
	// caLife is how long a guest's authority is good for. Its key is never written
	// down and dies with the process, so this bounds only what a stolen copy of the
	// memory could do; a guest that runs for longer has to be started again.
	caLife = 30 * 24 * time.Hour
	// leafLife is how long a certificate made for one host is good for; it is made
	// again when half of that is over.
	leafLife = 24 * time.Hour
	// backdate allows for a guest's clock that is behind: one that slept, or that
	// has not been set yet.
	backdate = 24 * time.Hour
	// maxLeafs bounds the certificates that are kept.
	maxLeafs = 256
)

// authority is the certificate authority of one guest, which trusts it and which
// alone does. It vouches for the hosts whose TLS is terminated here. Its key
// stays in the memory of this process: the guest gets the certificate only.
//
// It has no name constraints: what a guest may reach changes while it runs,
// and a certificate cannot.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	now  func() time.Time

	mu    sync.Mutex
	leafs map[string]*leaf
}

// leaf is a certificate for one host.
type leaf struct {
	cert *tls.Certificate
	made time.Time
}

// newAuthority makes an authority for a guest.
func newAuthority(guest string) (*authority, error) { return newAuthorityAt(guest, time.Now) }

// newAuthorityAt is newAuthority with a clock.
func newAuthorityAt(guest string, now func() time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := now()
	c := &x509.Certificate{
		SerialNumber: serial,
		// The serial number keeps the subjects of two lives of one guest apart:
		// trust stores look certificates up by subject.
		Subject:   pkix.Name{CommonName: "Carrel, guest " + guest, SerialNumber: serial.Text(16)},
		NotBefore: t.Add(-backdate), NotAfter: t.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:    x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return &authority{key: key, cert: c, now: now, leafs: map[string]*leaf{}}, nil
}

// pem is the authority's certificate, and nothing else.
func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// leaf is a certificate for exactly one host. Making one takes a fraction of a
// millisecond: it is done under the lock, so that no two are made for one host.
func (a *authority) leaf(h policy.Host) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name, t := h.String(), a.now()
	if l := a.leafs[name]; l != nil && t.Sub(l.made) < leafLife/2 && !t.Before(l.made) {
		return l.cert, nil
	}
	cert, err := a.sign(h, t)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", name, err)
	}
	a.leafs[name] = &leaf{cert: cert, made: t}
	if len(a.leafs) > maxLeafs {
		a.forgetLocked()
	}
	return cert, nil
}

// forgetLocked drops the certificate that was made first.
func (a *authority) forgetLocked() {
	oldest := ""
	for name, l := range a.leafs {
		if oldest == "" || l.made.Before(a.leafs[oldest].made) {
			oldest = name
		}
	}
	delete(a.leafs, oldest)
}

func (a *authority) sign(h policy.Host, t time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := t.Add(leafLife)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	c := &x509.Certificate{
		SerialNumber: serial, NotBefore: t.Add(-backdate), NotAfter: end, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	// The name stands in the SAN alone: the subject has no room for long ones.
	if addr, ok := h.Addr(); ok {
		c.IPAddresses = append(c.IPAddresses, addr.AsSlice())
	} else {
		c.DNSNames = []string{h.String()}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}, nil
}

// newSerial is 127 random bits: unique without a counter, and positive.
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}
