package secret

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/gofrs/flock"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
)

// ErrNotFound means that there is no secret of that name.
var ErrNotFound = errors.New("there is no such secret")

// Where a value can lie; Secret.store in the API.
const (
	inKeychain = "keychain"
	inFile     = "file"
)

// Store keeps secrets: names and definitions in <dir>/secrets.json, values in
// the system's keychain or, where there is none, in <dir>/secrets.age. Which of
// the two holds a value is written down with it and never guessed: a keychain
// that does not answer is an error, not a reason to look elsewhere.
//
// A Store may be used by several goroutines and processes at once.
type Store struct {
	dir   string
	file  bool // new values go to the file though there may be a keychain
	chain keychain
}

// Options say where a Store lies.
type Options struct {
	// Dir is the user's config folder. It must be private.
	Dir string
	// Kind is where new values go: "file", "keychain", or empty for the
	// keychain where one answers, else the file.
	Kind string
}

// Open returns the store; it reads nothing yet.
func Open(o Options) (*Store, error) {
	if o.Kind != "" && o.Kind != inFile && o.Kind != inKeychain {
		return nil, fmt.Errorf("%.40q is no place for secrets (CARREL_SECRET_STORE may be file or keychain)", o.Kind)
	}
	if err := place.CheckPrivate(o.Dir); err != nil {
		return nil, fmt.Errorf("the folder of the secrets: %w", err)
	}
	s := &Store{dir: o.Dir, file: o.Kind == inFile, chain: system{}}
	if o.Kind == inKeychain {
		s.chain = always{s.chain}
	}
	return s, nil
}

// lockTime bounds the wait for another process that changes the store. It holds
// the lock while the keychain asks a person for a password.
const lockTime = 2 * keychainTime

func (s *Store) lock(ctx context.Context) (func(), error) {
	l := flock.New(filepath.Join(s.dir, "secrets.lock"), flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	if _, err := l.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return nil, fmt.Errorf("wait for another process that changes the secrets: %w", err)
	}
	return func() { l.Close() }, nil
}

// Set keeps a value. Without a definition it keeps the one that the secret has,
// or takes the ready-made one of the secret's name. The value is durable when
// Set returns. The caller keeps value, and may clear it.
func (s *Store) Set(ctx context.Context, name string, d *api.SecretDefinition, value []byte) (*api.Secret, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := CheckValue(value); err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	x, err := s.load()
	if err != nil {
		return nil, err
	}
	old := x.find(name)
	if d == nil {
		switch {
		case old != nil:
			d = old.secret.Definition
		case presets[name] != nil:
			d = &api.SecretDefinition{Preset: name}
		}
	}
	if d, err = Complete(name, d); err != nil {
		return nil, err
	}
	if err := x.fits(name, d, value); err != nil {
		return nil, err
	}
	e := entry{Item: random(), secret: &api.Secret{Name: name, Definition: d, Updated: timestamppb.Now()}}
	if old != nil {
		e.secret.Store = old.secret.Store
	} else if e.secret.Store, err = s.where(ctx); err != nil {
		return nil, err
	}
	at := x.at(&e)
	x.Leftover = append(x.Leftover, at)
	if err := s.save(x); err != nil {
		return nil, err
	}
	if err := s.write(ctx, at, value); err != nil {
		return nil, fmt.Errorf("keep secret %s: %w", name, err)
	}
	x.Leftover = slices.DeleteFunc(x.Leftover, func(i item) bool { return i == at })
	if old != nil {
		x.Leftover = append(x.Leftover, x.at(old))
	}
	x.put(e)
	if err := s.save(x); err != nil {
		return nil, err
	}
	s.sweep(ctx, x)
	return e.secret, nil
}

// where says where a new secret's value goes.
func (s *Store) where(ctx context.Context) (string, error) {
	if s.file {
		return inFile, nil
	}
	answers, err := s.chain.answers(ctx)
	if err != nil {
		return "", err
	}
	if answers {
		return inKeychain, nil
	}
	return inFile, nil
}

func (s *Store) write(ctx context.Context, at item, value []byte) error {
	if at.Store == inKeychain {
		return s.chain.set(ctx, at.Name, string(value))
	}
	return s.change(func(values map[string][]byte) { values[at.Name] = value })
}

func (s *Store) erase(ctx context.Context, at item) error {
	if at.Store == inKeychain {
		return s.chain.remove(ctx, at.Name)
	}
	return s.change(func(values map[string][]byte) { delete(values, at.Name) })
}

// sweep removes leftovers. What cannot be removed now stays on the list.
func (s *Store) sweep(ctx context.Context, x *index) {
	n := len(x.Leftover)
	x.Leftover = slices.DeleteFunc(x.Leftover, func(i item) bool { return s.erase(ctx, i) == nil })
	if len(x.Leftover) != n {
		s.save(x) // if it fails, they are removed once more
	}
}

// List returns what is known of all secrets but their values, by name.
func (s *Store) List() ([]*api.Secret, error) {
	x, err := s.load()
	if err != nil {
		return nil, err
	}
	var out []*api.Secret
	for _, e := range x.Secrets {
		out = append(out, e.secret)
	}
	return out, nil
}

// Get returns secrets with their values, for an edge. Each name must be there.
func (s *Store) Get(ctx context.Context, names ...string) (out []*api.EdgeSecret, err error) {
	for _, name := range names {
		one, err := s.get(ctx, name)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

func (s *Store) get(ctx context.Context, name string) (*api.EdgeSecret, error) {
	for seen := ""; ; {
		x, err := s.load()
		if err != nil {
			return nil, err
		}
		e := x.find(name)
		if e == nil {
			return nil, fmt.Errorf("secret %.40q: %w (carrel secret set %.40s)", name, ErrNotFound, name)
		}
		v, err := s.read(ctx, x.at(e))
		if err == nil {
			return &api.EdgeSecret{Name: name, Definition: e.secret.Definition, Value: v}, nil
		}
		// It may have been replaced between the two looks.
		if e.Item == seen || ctx.Err() != nil {
			return nil, fmt.Errorf("read secret %s: %w", name, err)
		}
		seen = e.Item
	}
}

func (s *Store) read(ctx context.Context, at item) (v []byte, err error) {
	if at.Store == inKeychain {
		var text string
		text, err = s.chain.get(ctx, at.Name)
		v = []byte(text)
	} else {
		var values map[string][]byte
		values, err = s.open()
		v = values[at.Name]
	}
	if err == nil && CheckValue(v) != nil {
		err = fmt.Errorf("what the %s holds is not its value (set the secret again)", at.Store)
	}
	return v, err
}

// Remove forgets a secret, its value first.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	x, err := s.load()
	if err != nil {
		return err
	}
	e := x.find(name)
	if e == nil {
		return fmt.Errorf("secret %s: %w", name, ErrNotFound)
	}
	if err := s.erase(ctx, x.at(e)); err != nil {
		return fmt.Errorf("remove secret %s: %w", name, err)
	}
	x.drop(name)
	if err := s.save(x); err != nil {
		return err
	}
	s.sweep(ctx, x)
	return nil
}
