package egress

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/policy"
)

func mustHost(t testing.TB, s string) policy.Host {
	t.Helper()
	h, err := policy.ParseHost(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// verify checks a leaf as a client that trusts a does.
func verify(a *authority, c *tls.Certificate, name string, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.pem())
	_, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: at})
	return err
}

func TestLeafIsForOneHost(t *testing.T) {
	a, err := newAuthority("g")
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]string{"api.example.org": "www.example.org", "192.0.2.7": "192.0.2.8", "2001:db8::1": "2001:db8::2"} {
		c, err := a.leaf(mustHost(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(a, c, name, time.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := verify(a, c, other, time.Now()); err == nil {
			t.Errorf("the certificate of %s is good for %s", name, other)
		}
		if c.Leaf.IsCA || len(c.Leaf.DNSNames)+len(c.Leaf.IPAddresses) != 1 {
			t.Errorf("%s: %v %v", name, c.Leaf.DNSNames, c.Leaf.IPAddresses)
		}
	}
	// A clock that is behind, one that is ahead, and their limits.
	c, _ := a.leaf(mustHost(t, "api.example.org"))
	for d, good := range map[time.Duration]bool{-20 * time.Hour: true, 20 * time.Hour: true, -30 * time.Hour: false, 30 * time.Hour: false} {
		if err := verify(a, c, "api.example.org", time.Now().Add(d)); (err == nil) != good {
			t.Errorf("%v from now: %v", d, err)
		}
	}
}

// C11: what the guest gets holds a certificate and no key, and no guest trusts
// another's authority, even of the same name.
func TestAuthorityKeepsItsKey(t *testing.T) {
	a, err := newAuthority("g")
	if err != nil {
		t.Fatal(err)
	}
	b, err := newAuthority("g")
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(a.pem())
	if block == nil || block.Type != "CERTIFICATE" || len(rest) != 0 {
		t.Fatalf("not one certificate: %s", a.pem())
	}
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := a.key.Bytes()
	if bytes.Contains(block.Bytes, raw) || bytes.Contains(block.Bytes, key) {
		t.Error("the key is in what the guest gets")
	}
	if !bytes.Contains(key, raw) {
		t.Fatal("control: the search finds no key at all")
	}
	c, err := a.leaf(mustHost(t, "api.example.org"))
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(a, c, "api.example.org", time.Now()); err != nil {
		t.Fatalf("control: %v", err)
	}
	if err := verify(b, c, "api.example.org", time.Now()); err == nil {
		t.Error("another guest's authority vouches for it")
	}
	if bytes.Equal(a.cert.RawSubject, b.cert.RawSubject) {
		t.Error("two authorities have one subject")
	}
	if life := time.Until(a.cert.NotAfter); life > caLife || !a.cert.MaxPathLenZero {
		t.Errorf("life %v, path %d", life, a.cert.MaxPathLen)
	}
}

func TestLeafsAreKeptAndRenewed(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	a, err := newAuthorityAt("g", func() time.Time { mu.Lock(); defer mu.Unlock(); return now })
	if err != nil {
		t.Fatal(err)
	}
	h := mustHost(t, "api.example.org")
	first, _ := a.leaf(h)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if c, err := a.leaf(h); err != nil || c != first {
				t.Errorf("another certificate: %v", err)
			}
		})
	}
	wg.Wait()
	mu.Lock()
	now = now.Add(leafLife/2 + time.Minute)
	mu.Unlock()
	if c, _ := a.leaf(h); c == first {
		t.Error("a certificate past half of its life is given out")
	}
	for i := range 2 * maxLeafs {
		if _, err := a.leaf(mustHost(t, fmt.Sprintf("h%d.example.org", i))); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(a.leafs); n > maxLeafs {
		t.Errorf("%d certificates are kept", n)
	}
	mu.Lock()
	now = now.Add(caLife - leafLife/2 - time.Hour)
	mu.Unlock()
	if c, _ := a.leaf(h); c.Leaf.NotAfter.After(a.cert.NotAfter) {
		t.Error("a certificate outlives its authority")
	}
}
