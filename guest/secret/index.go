package secret

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrel-vm/carrel/guest/api"
)

// index is secrets.json. Every value that is set gets an item of its own, so
// that the one rename that changes the index changes value and definition
// together: no crash can leave a credential with another one's hosts.
type index struct {
	Version int `json:"version"`
	// ID is in the name of every item in the keychain, because two homes of
	// Carrel share one keychain.
	ID      string  `json:"id"`
	Secrets []entry `json:"secrets"`
	// Leftover are items that nothing names: they were about to be written, or
	// to be removed. The next change removes them.
	Leftover []item `json:"leftover,omitempty"`
}

type entry struct {
	Secret json.RawMessage `json:"secret"` // api.Secret as protojson
	Item   string          `json:"item"`

	secret *api.Secret
}

// item is where a value lies.
type item struct {
	Store string `json:"store"`
	Name  string `json:"name"`
}

// maxIndex bounds secrets.json, and secrets.age beside its values.
const maxIndex = 8 << 20

func (s *Store) load() (*index, error) {
	path := filepath.Join(s.dir, "secrets.json")
	bad := func(err error) (*index, error) {
		return nil, fmt.Errorf("read the list of secrets: %w (repair or move away %s)", err, path)
	}
	b, err := readPrivate(path, maxIndex)
	if errors.Is(err, os.ErrNotExist) {
		return &index{Version: 1, ID: random(), Secrets: []entry{}}, nil
	}
	if err != nil {
		return bad(err)
	}
	x := new(index)
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(x); err != nil {
		return bad(err)
	}
	if x.Version != 1 || !isRandom(x.ID) || len(x.Secrets) > MaxSecrets {
		return bad(errors.New("it is of another version, or damaged"))
	}
	for _, i := range x.Leftover {
		if i.Store != inFile && i.Store != inKeychain || !strings.HasPrefix(i.Name, x.ID+"/") {
			return bad(errors.New("it names an item that is not its own"))
		}
	}
	for i := range x.Secrets {
		e := &x.Secrets[i]
		one := new(api.Secret)
		if err := protojson.Unmarshal(e.Secret, one); err != nil {
			return bad(err)
		}
		err := CheckName(one.Name)
		if err == nil {
			err = check(one.GetDefinition())
		}
		if err == nil && (one.Store != inFile && one.Store != inKeychain || !isRandom(e.Item) || x.find(one.Name) != nil) {
			err = errors.New("it stands twice, or nowhere")
		}
		if err != nil {
			return bad(fmt.Errorf("secret %.40q: %w", one.Name, err))
		}
		e.secret = one
	}
	return x, nil
}

// random makes a name that has not been used.
func random() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func isRandom(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 16
}

func (s *Store) save(x *index) error {
	slices.SortFunc(x.Secrets, func(a, b entry) int { return strings.Compare(a.secret.Name, b.secret.Name) })
	for i := range x.Secrets {
		b, err := protojson.Marshal(x.Secrets[i].secret)
		if err != nil {
			return err
		}
		x.Secrets[i].Secret = b
	}
	b, err := json.MarshalIndent(x, "", " ")
	if err == nil {
		err = writePrivate(filepath.Join(s.dir, "secrets.json"), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write the list of secrets: %w", err)
	}
	return nil
}

func (x *index) find(name string) *entry {
	for i := range x.Secrets {
		if e := &x.Secrets[i]; e.secret != nil && e.secret.Name == name {
			return e
		}
	}
	return nil
}

// put makes e the secret of its name.
func (x *index) put(e entry) {
	x.drop(e.secret.Name)
	x.Secrets = append(x.Secrets, e)
}

func (x *index) drop(name string) {
	x.Secrets = slices.DeleteFunc(x.Secrets, func(e entry) bool { return e.secret.Name == name })
}

// at is where a secret's value lies; the name in the keychain is for people,
// too.
func (x *index) at(e *entry) item {
	return item{e.secret.Store, x.ID + "/" + e.secret.Name + "/" + e.Item}
}

// fits says why a new secret cannot stand beside the others.
func (x *index) fits(name string, d *api.SecretDefinition, value []byte) error {
	if bytes.Contains(value, []byte(d.Placeholder)) {
		return fmt.Errorf("secret %s: the value is the placeholder that stands for it in a guest (give the credential itself)", name)
	}
	for _, o := range x.Secrets {
		if o.secret.Name != name && o.secret.Definition.Placeholder == d.Placeholder {
			return fmt.Errorf("secret %s: secret %s has the same placeholder (choose another)", name, o.secret.Name)
		}
	}
	if x.find(name) == nil && len(x.Secrets) >= MaxSecrets {
		return fmt.Errorf("there are %d secrets, which is the limit (carrel secret rm NAME)", len(x.Secrets))
	}
	return nil
}

// readPrivate reads a file of at most max bytes that only this user may read.
func readPrivate(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := private(f); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%s has more than %d bytes", path, max)
	}
	return b, err
}

// writePrivate replaces a file as a whole, or not at all.
func writePrivate(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails when it has been renamed
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	// The rename is durable when the folder is; Windows cannot open one, and
	// does this by itself.
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		d.Sync()
		d.Close()
	}
	return nil
}
