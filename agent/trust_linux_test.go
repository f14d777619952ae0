package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	stdsha1 "crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// authority makes a CA's certificate in DER with this subject.
func authority(t testing.TB, rawSubject []byte, subject pkix.Name) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), RawSubject: rawSubject, Subject: subject, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func inPEM(der ...[]byte) []byte {
	var b []byte
	for _, d := range der {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
	}
	return b
}

// TestSubjectHash compares with what OpenSSL said ("openssl x509 -hash"), and
// with what it says where it is installed.
func TestSubjectHash(t *testing.T) {
	// A subject of one set per value; each has a type of text and bytes.
	subject := func(values ...any) []byte {
		var b cryptobyte.Builder
		b.AddASN1(0x30, func(b *cryptobyte.Builder) {
			for i := 0; i < len(values); i += 2 {
				b.AddASN1(0x31, func(b *cryptobyte.Builder) {
					b.AddASN1(0x30, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 5, 4, 10 + i/2})
						b.AddASN1(cbasn1.Tag(values[i].(int)), func(b *cryptobyte.Builder) { b.AddBytes([]byte(values[i+1].(string))) })
					})
				})
			}
		})
		return b.BytesOrPanic()
	}
	for name, c := range map[string]struct {
		raw  []byte
		want uint32
	}{
		"utf8":      {subject(12, "Carrel guest CA"), 0x97d7e196},
		"printable": {subject(19, "  Carrel \t guest   CA "), 0x97d7e196},
		"latin":     {subject(20, "B\xfccher CA"), 0x4e941d9b},
		"bmp":       {subject(30, "\x00B\x00\xfc\x00C"), 0xf144efb7},
		"universal": {subject(28, "\x00\x00\x00B\x00\x00\x00\xfc"), 0x3e01a056},
		"several":   {subject(12, "A", 22, "B@example", 19, "C"), 0x35a2b7e2},
		"empty":     {subject(12, ""), 0x348bf054},
		"not text":  {subject(18, "1 2"), 0x3b42bdae},
		"no name":   {subject(), 0xeea339da},
	} {
		der := authority(t, c.raw, pkix.Name{})
		got, err := subjectHash(der)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got != c.want {
			t.Errorf("%s: %08x, want %08x", name, got, c.want)
		}
		tool, err := exec.LookPath("openssl")
		if err != nil {
			continue
		}
		cmd := exec.Command(tool, "x509", "-noout", "-hash")
		cmd.Stdin = bytes.NewReader(inPEM(der))
		out, err := cmd.Output()
		if s := strings.TrimSpace(string(out)); err != nil || s != fmt.Sprintf("%08x", got) {
			t.Errorf("%s: %08x, openssl says %s, %v", name, got, s, err)
		}
	}
}

func TestSHA1(t *testing.T) {
	r := mathrand.New(mathrand.NewPCG(1, 2))
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if sha1(b) != stdsha1.Sum(b) {
			t.Fatalf("of %d bytes: %x, want %x", n, sha1(b), stdsha1.Sum(b))
		}
	}
}

func FuzzSubjectHash(f *testing.F) {
	f.Add(authority(f, nil, pkix.Name{CommonName: "a", Organization: []string{"b", "c"}}))
	f.Fuzz(func(t *testing.T, der []byte) {
		if _, err := subjectHash(der); err != nil {
			return
		}
		_, _ = certificates(inPEM(der))
	})
}

func TestTrust(t *testing.T) {
	first := authority(t, nil, pkix.Name{CommonName: "first"})
	second := authority(t, nil, pkix.Name{CommonName: "second"})
	image := string(inPEM(authority(t, nil, pkix.Name{CommonName: "of the image"})))
	write := func(path, content string) {
		t.Helper()
		if err := place(path, content); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	for name, bundle := range map[string]string{"debian": bundles[0], "fedora": bundles[1], "none": ""} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			before := ""
			if bundle != "" {
				before = image
				write(root+bundle, before)
			}
			for i, c := range [][]byte{inPEM(first, second), inPEM(first, second), inPEM(second)} {
				env, err := trust(root, c)
				if err != nil {
					t.Fatal(err)
				}
				want := bundle
				if want == "" {
					want = bundles[0]
				}
				if s := strings.Join(env, " "); !strings.Contains(s, "SSL_CERT_FILE="+want) || !strings.Contains(s, "NODE_EXTRA_CA_CERTS="+trustFile) {
					t.Errorf("variables %s", s)
				}
				if got := read(root + want); got != before+bundleBegin+string(c)+bundleEnd {
					t.Errorf("start %d: the bundle is\n%s", i, got)
				}
				if got := read(root + trustFile); got != string(c) {
					t.Errorf("start %d: trust.pem is\n%s", i, got)
				}
				links, _ := filepath.Glob(root + certsDir + "/*.0")
				sources, _ := filepath.Glob(root + sourcesDir + "/*.crt")
				if n := bytes.Count(c, []byte("BEGIN")); len(links) != n || len(sources) != n {
					t.Errorf("start %d: links %q, sources %q", i, links, sources)
				}
				for _, l := range links {
					to, err := os.Readlink(l)
					if err != nil || !strings.Contains(string(c), read(root+to)) {
						t.Errorf("%s leads to %s, %v", l, to, err)
					}
				}
			}
		})
	}
	// Nothing to trust: nothing is touched.
	root := t.TempDir()
	if env, err := trust(root, nil); env != nil || err != nil {
		t.Errorf("%q, %v", env, err)
	}
	if e, _ := os.ReadDir(root); len(e) != 0 {
		t.Errorf("%v was written", e)
	}
	for name, b := range map[string][]byte{
		"a key":      pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}),
		"too much":   bytes.Repeat([]byte("x"), maxTrust+1),
		"no subject": inPEM([]byte("\x30\x02\x30\x00")),
	} {
		if _, err := trust(root, b); err == nil {
			t.Errorf("%s is trusted", name)
		}
	}
}

// TestTrustedByOpenSSL has the real program find a certificate in the folder of
// hashes and in the bundle.
func TestTrustedByOpenSSL(t *testing.T) {
	tool, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl here; TestSubjectHash has what it said")
	}
	root := t.TempDir()
	ca := authority(t, nil, pkix.Name{CommonName: "Carrel guest", Organization: []string{"Carrel  Test"}})
	if _, err := trust(root, inPEM(ca)); err != nil {
		t.Fatal(err)
	}
	// The links are absolute, for the guest's root.
	links, _ := filepath.Glob(root + certsDir + "/*.0")
	for _, l := range links {
		to, _ := os.Readlink(l)
		_ = os.Remove(l)
		if err := os.Symlink(root+to, l); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(args ...string) error {
		cmd := exec.Command(tool, append([]string{"verify"}, args...)...)
		cmd.Stdin = bytes.NewReader(inPEM(ca))
		cmd.Env = []string{"SSL_CERT_DIR=/nonexistent", "SSL_CERT_FILE=/nonexistent"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := verify("-no-CAfile", "-no-CApath"); err == nil {
		t.Error("control: it is trusted by itself")
	}
	if err := verify("-no-CAfile", "-CApath", root+certsDir); err != nil {
		t.Errorf("by hash: %v", err)
	}
	if err := verify("-no-CApath", "-CAfile", root+bundles[0]); err != nil {
		t.Errorf("in the bundle: %v", err)
	}
}
