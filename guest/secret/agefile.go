package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
)

// Where there is no keychain the values lie in secrets.age, encrypted to the
// key in secrets.key beside it (0600 both). That keeps them out of backups and
// copies of one of the two files, out of a search through the disk for tokens,
// and away from other users. It does not keep them from programs that run as
// this user, nor from whoever has both files: for that a keychain is needed.

// maxAge bounds secrets.age, in bytes.
const maxAge = MaxSecrets*MaxValue*2 + maxIndex

func (s *Store) key() string  { return filepath.Join(s.dir, "secrets.key") }
func (s *Store) safe() string { return filepath.Join(s.dir, "secrets.age") }

// identity reads the key, or makes it if nothing has been encrypted yet.
func (s *Store) identity() (*age.X25519Identity, error) {
	b, err := readPrivate(s.key(), 4<<10)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Lstat(s.safe()); !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("the key %s is gone, and %s cannot be opened without it (restore it, or remove both and set the secrets again)", s.key(), s.safe())
		}
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, err
		}
		return id, writePrivate(s.key(), []byte(id.String()+"\n"))
	}
	if err != nil {
		return nil, fmt.Errorf("read the key of the secrets: %w", err)
	}
	id, err := age.ParseX25519Identity(strings.TrimSpace(string(b)))
	if err != nil {
		// The error may quote what it read.
		return nil, fmt.Errorf("%s is not a key (restore it, or remove it and %s and set the secrets again)", s.key(), s.safe())
	}
	return id, nil
}

// open decrypts the values.
func (s *Store) open() (map[string][]byte, error) {
	id, err := s.identity()
	if err != nil {
		return nil, err
	}
	values := map[string][]byte{}
	sealed, err := readPrivate(s.safe(), maxAge)
	if errors.Is(err, os.ErrNotExist) {
		return values, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	if err == nil {
		err = json.NewDecoder(io.LimitReader(r, maxAge)).Decode(&values)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be opened: it is damaged, or encrypted to another key (restore it, or remove it and set the secrets again)", s.safe())
	}
	return values, nil
}

// change rewrites the values as f leaves them. The caller holds the lock.
func (s *Store) change(f func(map[string][]byte)) error {
	values, err := s.open()
	if err != nil {
		return err
	}
	id, err := s.identity()
	if err != nil {
		return err
	}
	f(values)
	plain, err := json.Marshal(values)
	if err != nil {
		return err
	}
	defer clear(plain)
	var out bytes.Buffer
	w, err := age.Encrypt(&out, id.Recipient())
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = writePrivate(s.safe(), out.Bytes())
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", s.safe(), err)
	}
	return nil
}
