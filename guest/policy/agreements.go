package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxAgreements bounds the file; the oldest go first.
const maxAgreements = 4096

// Agreements are the yeses that the user gave to repositories' requests. A yes
// is to one content in one folder: another byte, or the same file elsewhere, is
// a new question.
type Agreements struct {
	path string

	mu     sync.Mutex
	agreed []agreement
}

type agreement struct {
	Folder string    `json:"folder"`
	SHA256 string    `json:"sha256"`
	Time   time.Time `json:"time"`
}

type agreementFile struct {
	Version int         `json:"version"`
	Agreed  []agreement `json:"agreed"`
}

// Hash is how agreements know a content: SHA-256 in hex.
func Hash(content []byte) string {
	h := sha256.Sum256(content)
	return hex.EncodeToString(h[:])
}

// LoadAgreements reads the file of agreements. One that is not there is empty;
// one that cannot be read is an error, and nothing is agreed to.
func LoadAgreements(path string) (*Agreements, error) {
	a := &Agreements{path: path}
	content, err := readPlain(path, false)
	if errors.Is(err, os.ErrNotExist) {
		return a, nil
	}
	var f agreementFile
	if err == nil {
		err = json.Unmarshal(content, &f)
	}
	if err == nil && f.Version != 1 {
		err = fmt.Errorf("its version is %d, not 1", f.Version)
	}
	if err != nil {
		return nil, refuse("agreements_unreadable", "remove it: each request is then asked about again", "the file of agreements %s cannot be read: %v", path, err)
	}
	a.agreed = f.Agreed
	return a, nil
}

// Has says whether the user agreed to the content with this hash in this folder.
func (a *Agreements) Has(folder, hash string) bool {
	if a == nil || folder == "" || hash == "" {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range a.agreed {
		if g.Folder == folder && g.SHA256 == hash {
			return true
		}
	}
	return false
}

// Add records a yes. When it returns without an error, it is on disk.
func (a *Agreements) Add(folder, hash string) error {
	if raw, err := hex.DecodeString(hash); err != nil || len(raw) != sha256.Size || hex.EncodeToString(raw) != hash {
		return refuse("bad_request", "", "%q is not a SHA-256 in hex", clip(hash))
	}
	if why := badText(folder); why != "" || !filepath.IsAbs(folder) || filepath.Clean(folder) != folder {
		return refuse("bad_request", "", "folder %q is not an absolute, clean path", clip(folder))
	}
	if a.Has(folder, hash) {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	next := append(append([]agreement(nil), a.agreed...), agreement{folder, hash, time.Now().UTC().Truncate(time.Second)})
	if len(next) > maxAgreements {
		next = next[len(next)-maxAgreements:]
	}
	content, err := json.MarshalIndent(agreementFile{1, next}, "", "  ")
	if err != nil {
		return err
	}
	if err := WriteFile(a.path, append(content, '\n')); err != nil {
		return fmt.Errorf("the agreement is not kept: %w", err)
	}
	a.agreed = next
	return nil
}

// WriteFile replaces a file by a whole new one, for its user only: a reader, or
// a crash, meets the old one or the new one.
func WriteFile(path string, content []byte) (err error) {
	// A user's own file may be a link to where they keep it.
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(content); err != nil {
		return err
	}
	if err = tmp.Sync(); err != nil {
		return err
	}
	if err = tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
