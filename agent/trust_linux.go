package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
)

// maxSame is how many certificates of one subject OpenSSL is offered.
const maxSame = 16

// Places in the guest, beneath its root.
const (
	// trustFile holds the certificates that the host brought, and no others.
	trustFile = carrelDir + "/trust.pem"
	// bundleCopy is the bundle where the image's own cannot be written.
	bundleCopy = carrelDir + "/ca-certificates.crt"
	// certsDir is OpenSSL's folder: certificates under the hash of their
	// subject.
	certsDir = "/etc/ssl/certs"
	// sourcesDir is what update-ca-certificates reads, which programs that
	// are installed later may run.
	sourcesDir = "/usr/local/share/ca-certificates"
	// sourceFile is certificate n there.
	sourceFile = sourcesDir + "/" + ourName + "%d.crt"
	// ourName begins the name of every certificate's file.
	ourName = "carrel-"
)

// bundles are the files in which the usual distributions have all
// certificates: Debian and Alpine, Fedora, openSUSE. The first is made where
// there is none.
var bundles = []string{
	certsDir + "/ca-certificates.crt",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/var/lib/ca-certificates/ca-bundle.pem",
}

// trust makes the guest's programs trust certificates beside their own, and
// returns the variables by which those learn of it that do not read the
// system's.
//
//   - OpenSSL, GnuTLS, Go, curl, git, cargo, wget, Python's ssl: the bundle
//     and the folder of hashes
//   - Node: NODE_EXTRA_CA_CERTS. It has its own list, and adds that file
//   - requests, pip and what is built on them: they have certifi's list, and
//     take the bundle instead
//   - programs with their own OpenSSL, uv, Ruby, conda: SSL_CERT_FILE
//   - Deno: told to read the system's
//   - Java: its keystores, where there are any. What makes one when Java is
//     installed later reads sourcesDir
func trust(root string, trusted []byte) ([]string, error) {
	certs, err := certificates(trusted)
	if err != nil || len(certs) == 0 {
		return nil, err
	}
	var all strings.Builder
	for _, c := range certs {
		all.WriteString(c.pem)
	}
	var g errgroup.Group
	g.Go(func() error {
		if err := place(root+trustFile, all.String()); err != nil {
			return fmt.Errorf("write the certificates from the host: %w", err)
		}
		return nil
	})
	bundle := ""
	g.Go(func() (err error) {
		bundle, err = trustBundles(root, all.String())
		return err
	})
	g.Go(func() error {
		// These are for programs that the variables do not reach; on a
		// read-only root they have to do.
		if err := trustHashes(root, certs); err != nil && !readOnly(err) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		if err := trustJava(root, certs); err != nil && !readOnly(err) {
			return err
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return []string{
		"NODE_EXTRA_CA_CERTS=" + trustFile,
		"SSL_CERT_FILE=" + bundle,
		"REQUESTS_CA_BUNDLE=" + bundle,
		"PIP_CERT=" + bundle,
		"DENO_TLS_CA_STORE=system,mozilla",
	}, nil
}

// trustBundles puts certs into every bundle that there is, in place of those
// of an earlier start, and returns the one to name to programs.
func trustBundles(root, certs string) (string, error) {
	main := ""
	for i, b := range bundles {
		real, err := filepath.EvalSymlinks(root + b)
		if errors.Is(err, fs.ErrNotExist) && i == 0 && !anyExists(root, bundles[1:]) {
			real, err = root+b, nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("find the bundle of certificates %s: %w", b, err)
		}
		old, err := os.ReadFile(real)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		content := withSection(string(old), certs)
		if main == "" {
			main = b
		}
		if content == string(old) {
			continue
		}
		err = place(real, content)
		if readOnly(err) {
			main = bundleCopy
			err = place(root+bundleCopy, content)
		}
		if err != nil {
			return "", fmt.Errorf("add to the bundle of certificates: %w", err)
		}
	}
	return main, nil
}

func anyExists(root string, files []string) bool {
	for _, f := range files {
		if _, err := os.Stat(root + f); err == nil {
			return true
		}
	}
	return false
}

// trustHashes puts each certificate where OpenSSL looks for it by its
// subject, and where it survives that somebody makes the folder anew.
func trustHashes(root string, certs []certificate) error {
	if err := forgetHashes(root); err != nil {
		return fmt.Errorf("remove the certificates of an earlier start: %w", err)
	}
	if err := os.MkdirAll(root+certsDir, 0o755); err != nil {
		return err
	}
	for i, c := range certs {
		file := fmt.Sprintf(sourceFile, i)
		if err := place(root+file, c.pem); err != nil {
			return fmt.Errorf("write a certificate from the host: %w", err)
		}
		if err := hashLink(root, file, c.hash); err != nil {
			return fmt.Errorf("link a certificate from the host: %w", err)
		}
	}
	return nil
}

// forgetHashes removes what an earlier start of a guest has left on its disk:
// its CA is another one each time.
func forgetHashes(root string) error {
	// They are numbered from 0. In most guests nothing has started before.
	if _, err := os.Lstat(root + fmt.Sprintf(sourceFile, 0)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	old, err := filepath.Glob(root + sourcesDir + "/" + ourName + "*.crt")
	if err != nil {
		return err
	}
	for _, f := range old {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		certs, err := certificates(b)
		if err != nil {
			certs = nil // somebody wrote something else there
		}
		for _, c := range certs {
			for n := range maxSame {
				link := hashName(root, c.hash, n)
				to, err := os.Readlink(link)
				if err == nil && to == strings.TrimPrefix(f, root) {
					if err := os.Remove(link); err != nil {
						return err
					}
				}
			}
		}
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

// hashLink takes the first free of the names that OpenSSL tries: hash.0, .1, …
func hashLink(root, file string, hash uint32) error {
	for n := range maxSame {
		err := os.Symlink(file, hashName(root, hash, n))
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil // one more of the same is not what is missing
}

func hashName(root string, hash uint32, n int) string {
	return fmt.Sprintf("%s%s/%08x.%d", root, certsDir, hash, n)
}
