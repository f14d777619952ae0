//go:build unix

package agent

import (
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Bounds of Setup.trust: what the host may bring.
const (
	maxTrust   = 512 << 10
	maxTrusted = 512
)

// What stands around our part of a bundle. Readers of PEM ignore it.
const (
	bundleBegin = "# carrel: certificates from the host of this guest\n"
	bundleEnd   = "# carrel: end\n"
)

// certificate is one of those that the host brought.
type certificate struct {
	pem  string
	der  []byte
	hash uint32
}

// certificates checks what the host brought.
func certificates(b []byte) ([]certificate, error) {
	if len(b) > maxTrust {
		return nil, fmt.Errorf("%d bytes of certificates, %d is the limit", len(b), maxTrust)
	}
	var all []certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return all, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %.40q among the certificates to trust", block.Type)
		}
		if len(all) == maxTrusted {
			return nil, fmt.Errorf("more than %d certificates to trust", maxTrusted)
		}
		hash, err := subjectHash(block.Bytes)
		if err != nil {
			return nil, err
		}
		block.Headers = nil
		all = append(all, certificate{string(pem.EncodeToMemory(block)), block.Bytes, hash})
	}
}

// withSection returns bundle with certs as our part of it.
func withSection(bundle, certs string) string {
	if before, rest, ok := strings.Cut(bundle, bundleBegin); ok {
		_, after, _ := strings.Cut(rest, bundleEnd)
		bundle = before + after
	}
	if bundle != "" && !strings.HasSuffix(bundle, "\n") {
		bundle += "\n"
	}
	return bundle + bundleBegin + certs + bundleEnd
}

// place writes a file for all to read, and the folders it is in.
func place(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return writeAtomically(path, content, 0o644)
}
