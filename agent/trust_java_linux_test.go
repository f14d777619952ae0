package agent

import (
	"bytes"
	"crypto/x509/pkix"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTrustedByJava has the real keytool read what was added to both forms of
// its keystore, and what was there before.
func TestTrustedByJava(t *testing.T) {
	tool, err := exec.LookPath("keytool")
	if err != nil {
		t.Skip("no Java here")
	}
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/jvm/some/lib/security")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "cacerts")
	image := filepath.Join(root, "image.pem")
	if err := os.WriteFile(image, inPEM(authority(t, nil, pkix.Name{CommonName: "of the image"})), 0o600); err != nil {
		t.Fatal(err)
	}
	certs, err := certificates(inPEM(authority(t, nil, pkix.Name{CommonName: "first"}), authority(t, nil, pkix.Name{CommonName: "second"})))
	if err != nil {
		t.Fatal(err)
	}
	for form, flags := range map[string][]string{
		"JKS":    {"-storetype", "JKS"},
		"PKCS12": {"-storetype", "PKCS12", "-J-Dkeystore.pkcs12.certProtectionAlgorithm=NONE", "-J-Dkeystore.pkcs12.macAlgorithm=NONE"},
	} {
		t.Run(form, func(t *testing.T) {
			_ = os.Remove(store)
			args := append([]string{"-importcert", "-noprompt", "-alias", "image", "-file", image, "-keystore", store, "-storepass", "changeit"}, flags...)
			if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for n := 2; n > 0; n-- { // the second start has one certificate less
				if err := trustJava(root, certs[:n]); err != nil {
					t.Fatal(err)
				}
				args := append([]string{"-list", "-rfc", "-keystore", store, "-storepass", "changeit"}, flags[2:]...)
				out, err := exec.Command(tool, args...).Output()
				got := strings.ReplaceAll(string(out), "\r", "")
				if err != nil || strings.Count(got, "trustedCertEntry") != n+1 {
					t.Fatalf("%v: %s", err, out)
				}
				for i, c := range certs {
					// keytool breaks lines elsewhere than we do.
					body := strings.Join(strings.Split(strings.TrimSpace(c.pem), "\n")[1:2], "")
					if strings.Contains(got, body) != (i < n) {
						t.Errorf("with %d certificates, number %d is listed: %t", n, i, i >= n)
					}
				}
			}
		})
	}
	for _, odd := range []string{"", "\xfe\xed\xfe\xed", "\x30\x80", strings.Repeat("\xfe\xed\xfe\xed\x00\x00\x00\x02", 9)} {
		if err := os.WriteFile(store, []byte(odd), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := trustJava(root, certs); err != nil {
			t.Error(err)
		}
		if b, _ := os.ReadFile(store); string(b) != odd {
			t.Errorf("%q was changed to %q", odd, b)
		}
	}
}

func FuzzKeystore(f *testing.F) {
	c := []certificate{{der: []byte("\x30\x00")}}
	empty := append([]byte("\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x00"), make([]byte, jksDigest)...)
	one, ok := jks(empty, c)
	if !ok {
		f.Fatal("control: an empty keystore was refused")
	}
	f.Add(one)
	f.Add([]byte("\x30\x16\x02\x01\x03\x30\x11\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01\xa0\x04\x04\x02\x30\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if again, ok := jks(b, c); ok {
			if twice, ok := jks(again, c); !ok || !bytes.Equal(twice, again) {
				t.Fatalf("%x becomes %x", again, twice)
			}
		}
		if again, ok := pkcs12(b, c); ok {
			if twice, ok := pkcs12(again, c); !ok || !bytes.Equal(twice, again) {
				t.Fatalf("%x becomes %x", again, twice)
			}
		}
	})
}
