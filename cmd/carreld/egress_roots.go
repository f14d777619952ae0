package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/carrel-vm/carrel/guest/egress/link"
)

// addedRoots are where a host's administrator puts certificates of the
// organisation's own, such as that of a gateway that inspects TLS: Debian and
// Fedora.
var addedRoots = []string{"/usr/local/share/ca-certificates", "/etc/pki/ca-trust/source/anchors", "/etc/ca-certificates/trust-source/anchors"}

// Bounds of what is taken from them.
const (
	maxRootFiles = 256
	maxRootFile  = 512 << 10
	// roomForOwn is left for the guest's own certificate.
	roomForOwn = 16 << 10
)

// ownRoots returns, in PEM, the certificates of authorities that this host
// trusts beside those that come with every system: the guest is to trust them,
// too.
func ownRoots() ([]byte, error) {
	var out []byte
	seen := map[string]bool{}
	add := func(file string) error {
		f, err := os.Open(file)
		if err != nil {
			return nil // not for us to read: then it is not trusted by this user's programs either
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxRootFile))
		if err != nil {
			return nil
		}
		for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil || block.Type != "CERTIFICATE" || !c.IsCA || seen[string(c.Raw)] {
				continue
			}
			seen[string(c.Raw)] = true
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
			if len(out) > link.MaxTrust-roomForOwn {
				return fmt.Errorf("the host's own certificate authorities have more than %d bytes (see %s)", link.MaxTrust-roomForOwn, strings.Join(addedRoots, ", "))
			}
		}
		return nil
	}
	n := 0
	for _, dir := range addedRoots {
		err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			ext := strings.ToLower(filepath.Ext(p))
			if err != nil || d.IsDir() || ext != ".crt" && ext != ".pem" && ext != ".cer" {
				return nil
			}
			if n++; n > maxRootFiles {
				return filepath.SkipAll
			}
			return add(p)
		})
		if err != nil {
			return nil, err
		}
	}
	// Somebody who sets this means that programs trust what is in it. The usual
	// bundle is no news to a guest, and large.
	if f := os.Getenv("SSL_CERT_FILE"); filepath.IsAbs(f) && !usualBundle(f) {
		if err := add(f); err != nil {
			return nil, err
		}
	}
	return bytes.Clone(out), nil
}

// readRoots has the host's roots read, all of which takes some milliseconds, once
// and for all later connections.
func readRoots() error {
	if _, err := x509.SystemCertPool(); err != nil {
		return fmt.Errorf("read the host's certificate authorities: %w (sudo apt-get install ca-certificates)", err)
	}
	return nil
}

// usualBundle says whether a file is one of the bundles that every system has.
func usualBundle(f string) bool {
	for _, b := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/cacert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem"} {
		if same(f, b) {
			return true
		}
	}
	return false
}

func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
