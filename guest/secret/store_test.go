package secret

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

func TestMain(m *testing.M) {
	// No test may touch the keychain of the person who runs it.
	if os.Getenv(insideBus) == "" {
		os.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/carrel-test")
	}
	os.Exit(m.Run())
}

func fileStore(t testing.TB) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir, Kind: inFile})
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// memory is a keychain in memory that can be locked and broken.
type memory struct {
	mu    sync.Mutex
	items map[string]string
	none  bool
	err   error
}

func (m *memory) answers(context.Context) (bool, error) { return !m.none, nil }

func (m *memory) set(_ context.Context, item, value string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.items[item] = value
	}
	return m.err
}

func (m *memory) get(_ context.Context, item string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.items[item], m.err
}

func (m *memory) remove(_ context.Context, item string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		delete(m.items, item)
	}
	return m.err
}

func chainStore(t testing.TB) (*Store, *memory, string) {
	s, dir := fileStore(t)
	m := &memory{items: map[string]string{}}
	s.file, s.chain = false, m
	return s, m, dir
}

// values looks the store's values up.
func values(t testing.TB, s *Store, names ...string) (out []string) {
	t.Helper()
	got, err := s.Get(t.Context(), names...)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range got {
		out = append(out, string(e.Value))
	}
	return out
}

func testStore(t *testing.T, s *Store, kind string) {
	ctx := t.Context()
	one, err := s.Set(ctx, "anthropic", nil, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	if one.Store != kind || one.Definition.Preset != "anthropic" || one.Definition.Hosts[0] != "api.anthropic.com" || one.Updated == nil {
		t.Errorf("%v", one)
	}
	own := &api.SecretDefinition{Hosts: []string{"a.example"}, Kind: api.SecretKind_SECRET_KIND_BEARER, Methods: []string{"GET"}, Paths: []string{"/x"}}
	odd := "späte \xff Wörter \"' $x %41"
	if _, err := s.Set(ctx, "own", own, []byte(odd)); err != nil {
		t.Fatal(err)
	}
	if got := values(t, s, "own", "anthropic"); got[0] != odd || got[1] != value {
		t.Errorf("%q", got)
	}
	// Rotation keeps the definition.
	if _, err := s.Set(ctx, "own", nil, []byte("another-value")); err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(ctx, "own")
	if err != nil || string(got[0].Value) != "another-value" || got[0].Definition.Hosts[0] != "a.example" {
		t.Errorf("%v, %v", got, err)
	}
	if x, err := s.load(); err != nil || len(x.Leftover) != 0 {
		t.Errorf("leftovers: %v, %v", x, err)
	}
	if l, err := s.List(); err != nil || len(l) != 2 || l[0].Name != "anthropic" || l[1].Name != "own" {
		t.Errorf("%v, %v", l, err)
	}
	if err := s.Remove(ctx, "own"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "own"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after its removal: %v", err)
	}
	if err := s.Remove(ctx, "own"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if got := values(t, s, "anthropic"); got[0] != value {
		t.Errorf("the other one: %q", got)
	}
	if err := s.Remove(ctx, "anthropic"); err != nil {
		t.Fatal(err)
	}
}

func TestFileStore(t *testing.T) {
	s, _ := fileStore(t)
	testStore(t, s, inFile)
}

func TestKeychainStore(t *testing.T) {
	s, m, dir := chainStore(t)
	testStore(t, s, inKeychain)
	if len(m.items) != 0 {
		t.Errorf("left in the keychain: %v", m.items)
	}
	if _, err := os.Stat(filepath.Join(dir, "secrets.age")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file beside the keychain: %v", err)
	}
}

// TestLeftovers is C02 for what the store writes: no file holds a value in any
// form, and no file can be read by others.
func TestLeftovers(t *testing.T) {
	for _, kind := range []string{inFile, inKeychain} {
		s, dir := fileStore(t)
		if kind == inKeychain {
			s, _, dir = chainStore(t)
		}
		if _, err := s.Set(t.Context(), "openai", nil, []byte(value)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Set(t.Context(), "openai", nil, []byte(value+"2")); err != nil {
			t.Fatal(err)
		}
		names, err := os.ReadDir(dir)
		if err != nil || len(names) < 2 {
			t.Fatal(names, err)
		}
		for _, n := range names {
			b, err := os.ReadFile(filepath.Join(dir, n.Name()))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range encoded(value) {
				if bytes.Contains(b, []byte(f)) {
					t.Errorf("%s: %s holds the value", kind, n.Name())
				}
			}
			f, err := os.Open(filepath.Join(dir, n.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(private(f), f.Close()); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
			if strings.HasPrefix(n.Name(), ".") {
				t.Errorf("%s: left over: %s", kind, n.Name())
			}
		}
		if values(t, s, "openai")[0] != value+"2" {
			t.Errorf("%s: control", kind)
		}
	}
}

// TestNoFallBack: a keychain that holds a value and does not answer is an error.
func TestNoFallBack(t *testing.T) {
	s, m, dir := chainStore(t)
	ctx := t.Context()
	if _, err := s.Set(ctx, "npm", nil, []byte(value)); err != nil {
		t.Fatal(err)
	}
	locked := errors.New("locked")
	m.err = locked
	if _, err := s.Get(ctx, "npm"); !errors.Is(err, locked) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Set(ctx, "npm", nil, []byte(value+"new")); !errors.Is(err, locked) {
		t.Errorf("set: %v", err)
	}
	if _, err := s.Set(ctx, "pypi", nil, []byte(value+"new")); !errors.Is(err, locked) {
		t.Errorf("set another: %v", err)
	}
	if err := s.Remove(ctx, "npm"); !errors.Is(err, locked) {
		t.Errorf("remove: %v", err)
	}
	m.none = true
	if _, err := s.Set(ctx, "npm", nil, []byte(value+"new")); !errors.Is(err, locked) {
		t.Errorf("set without a keychain: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "secrets.age")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it went to the file: %v", err)
	}
	// What failed has changed nothing, and what it left is cleared away later.
	m.none, m.err = false, nil
	if got := values(t, s, "npm"); got[0] != value {
		t.Errorf("after the failures: %q", got)
	}
	m.items["not ours"] = "x"
	if _, err := s.Set(ctx, "npm", nil, []byte(value+"3")); err != nil || len(m.items) != 2 {
		t.Errorf("%v; in the keychain: %v", err, m.items)
	}
	// Where none answers, a new secret goes to the file, and is said to.
	m.none = true
	if one, err := s.Set(ctx, "pypi", nil, []byte(value)); err != nil || one.Store != inFile {
		t.Errorf("%v, %v", one, err)
	}
	always := &Store{dir: dir, chain: always{m}}
	if _, err := always.Set(ctx, "openai", nil, []byte(value)); err == nil {
		t.Error("a store that wants the keychain did without")
	}
}

// TestCrashBetween stops Set between any two of its writes: afterwards the
// secret is what it was, with its own hosts, or what it was to become.
func TestCrashBetween(t *testing.T) {
	ctx := t.Context()
	d := func(host string) *api.SecretDefinition {
		return &api.SecretDefinition{Hosts: []string{host}, Kind: api.SecretKind_SECRET_KIND_BEARER, Methods: []string{"GET"}, Paths: []string{"/x"}}
	}
	for at := range 4 {
		s, m, _ := chainStore(t)
		if _, err := s.Set(ctx, "own", d("old.example"), []byte("old-credential")); err != nil {
			t.Fatal(err)
		}
		c := &crashing{memory: m, left: at}
		s.chain = c
		func() {
			defer func() { recover() }()
			s.Set(ctx, "own", d("new.example"), []byte("new-credential"))
		}()
		s.chain = m
		got, err := s.Get(ctx, "own")
		if err != nil {
			t.Fatalf("at %d: %v", at, err)
		}
		if pair := got[0].Definition.Hosts[0] + " " + string(got[0].Value); pair != "old.example old-credential" && pair != "new.example new-credential" {
			t.Errorf("at %d: %s", at, pair)
		}
		if _, err := s.Set(ctx, "own", nil, []byte("next-credential")); err != nil || len(m.items) != 1 {
			t.Errorf("at %d: %v; in the keychain: %v", at, err, m.items)
		}
	}
}

// crashing is a keychain in front of which the process dies.
type crashing struct {
	*memory
	left int
}

func (c *crashing) tick() {
	if c.left--; c.left < 0 {
		panic("crash")
	}
}

func (c *crashing) set(ctx context.Context, item, value string) error {
	c.tick()
	err := c.memory.set(ctx, item, value)
	c.tick()
	return err
}

func (c *crashing) remove(ctx context.Context, item string) error {
	c.tick()
	return c.memory.remove(ctx, item)
}

func TestDamagedStore(t *testing.T) {
	for what, c := range map[string]struct {
		file, content string
		mode          os.FileMode
	}{
		"an index that is no JSON":     {"secrets.json", "{", 0o600},
		"an index of another version":  {"secrets.json", `{"version":2,"id":"0011223344556677","secrets":[]}`, 0o600},
		"an index with another field":  {"secrets.json", `{"version":1,"id":"0011223344556677","secrets":[],"x":1}`, 0o600},
		"an index that others read":    {"secrets.json", "", 0o644},
		"a key that others read":       {"secrets.key", "", 0o640},
		"a key that is none":           {"secrets.key", "AGE-SECRET-KEY-1QQQ", 0o600},
		"a key that is gone":           {"secrets.key", "", 0},
		"values that are damaged":      {"secrets.age", "age-encryption.org/v1\n", 0o600},
		"values that others may read":  {"secrets.age", "", 0o604},
		"values that were moved away":  {"secrets.age", "", 0},
		"an index that was moved away": {"secrets.json", "", 0},
	} {
		s, dir := fileStore(t)
		if _, err := s.Set(t.Context(), "npm", nil, []byte(value)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, c.file)
		var err error
		switch {
		case c.mode == 0:
			err = os.Remove(path)
		case c.content == "":
			err = openToOthers(path, c.mode)
		default:
			err = os.WriteFile(path, []byte(c.content), c.mode)
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Get(t.Context(), "npm")
		if err == nil || len(got) > 0 {
			t.Errorf("%s: %v", what, got)
			continue
		}
		if strings.Contains(err.Error(), "AGE-SECRET") || !strings.HasSuffix(err.Error(), ")") {
			t.Errorf("%s: %v: it quotes a key, or has no cure", what, err)
		}
	}
}

func TestSetChecks(t *testing.T) {
	s, _ := fileStore(t)
	ctx := t.Context()
	good := func() *api.SecretDefinition {
		return &api.SecretDefinition{Hosts: []string{"a.example"}, Kind: api.SecretKind_SECRET_KIND_HEADER, Header: "x-key", Methods: []string{"GET"}, Paths: []string{"/x/**"}, Env: "KEY", PassHeaders: []string{"x-y"}, RefuseFields: []string{"a.*.b=c*|d"}}
	}
	for _, v := range []string{"", "short", "two\nlines-of-it", "carriage\rreturn", "nul\x00nul-nul", " a leading space", "a trailing space ", "delete\x7fdelete", strings.Repeat("x", MaxValue+1), "carrel-placeholder-own"} {
		if _, err := s.Set(ctx, "own", good(), []byte(v)); err == nil || len(v) > 7 && strings.Contains(err.Error(), v) {
			t.Errorf("value %.20q: %v", v, err)
		}
	}
	for _, n := range []string{"", "-a", "A", "a b", "../x", strings.Repeat("a", 32), "ä"} {
		if _, err := s.Set(ctx, n, good(), []byte(value)); err == nil {
			t.Errorf("name %q", n)
		}
	}
	for what, change := range map[string]func(*api.SecretDefinition){
		"no host":             func(d *api.SecretDefinition) { d.Hosts = nil },
		"a pattern":           func(d *api.SecretDefinition) { d.Hosts = []string{"*.a.example"} },
		"upper case":          func(d *api.SecretDefinition) { d.Hosts = []string{"A.example"} },
		"an address":          func(d *api.SecretDefinition) { d.Hosts = []string{"192.0.2.1"} },
		"an address, v6":      func(d *api.SecretDefinition) { d.Hosts = []string{"::1"} },
		"a trailing dot":      func(d *api.SecretDefinition) { d.Hosts = []string{"a.example."} },
		"a port in the host":  func(d *api.SecretDefinition) { d.Hosts = []string{"a.example:443"} },
		"a NUL":               func(d *api.SecretDefinition) { d.Hosts = []string{"a.example\x00b"} },
		"port 0":              func(d *api.SecretDefinition) { d.Ports = []uint32{0} },
		"port 80":             func(d *api.SecretDefinition) { d.Ports = []uint32{80} },
		"port 65536":          func(d *api.SecretDefinition) { d.Ports = []uint32{65536} },
		"no kind":             func(d *api.SecretDefinition) { d.Kind = 0 },
		"no header":           func(d *api.SecretDefinition) { d.Header = "" },
		"a header's value":    func(d *api.SecretDefinition) { d.Header = "x: y" },
		"the host's header":   func(d *api.SecretDefinition) { d.Header = "Host" },
		"bearer and header":   func(d *api.SecretDefinition) { d.Kind = api.SecretKind_SECRET_KIND_BEARER },
		"basic, no user":      func(d *api.SecretDefinition) { d.Kind, d.Header = api.SecretKind_SECRET_KIND_BASIC, "" },
		"basic, a colon":      func(d *api.SecretDefinition) { d.Kind, d.Header, d.User = api.SecretKind_SECRET_KIND_BASIC, "", "a:b" },
		"no method":           func(d *api.SecretDefinition) { d.Methods = nil },
		"CONNECT":             func(d *api.SecretDefinition) { d.Methods = []string{"CONNECT"} },
		"no path":             func(d *api.SecretDefinition) { d.Paths = nil },
		"a relative path":     func(d *api.SecretDefinition) { d.Paths = []string{"x"} },
		"PATH":                func(d *api.SecretDefinition) { d.Env = "PATH" },
		"LD_PRELOAD":          func(d *api.SecretDefinition) { d.Env = "LD_PRELOAD" },
		"a variable's value":  func(d *api.SecretDefinition) { d.Env = "A=b" },
		"a short placeholder": func(d *api.SecretDefinition) { d.Placeholder = "x" },
		"a credential passes": func(d *api.SecretDefinition) { d.PassHeaders = []string{"X-Api_Key"} },
		"cookies pass":        func(d *api.SecretDefinition) { d.PassHeaders = []string{"cookie"} },
		"host passes":         func(d *api.SecretDefinition) { d.PassHeaders = []string{"host"} },
		"an empty segment":    func(d *api.SecretDefinition) { d.RefuseFields = []string{"a..b"} },
		"a glob in a name":    func(d *api.SecretDefinition) { d.RefuseFields = []string{"a*.b"} },
		"a glob of all":       func(d *api.SecretDefinition) { d.RefuseFields = []string{"a=*"} },
		"no such preset":      func(d *api.SecretDefinition) { d.Preset = "aws" },
		"a preset elsewhere":  func(d *api.SecretDefinition) { d.Preset = "openai" },
		"repositories":        func(d *api.SecretDefinition) { d.Repositories = []string{"a/b"} },
		"too many hosts":      func(d *api.SecretDefinition) { d.Hosts = strings.Fields(strings.Repeat("a.example ", 65)) },
	} {
		d := good()
		change(d)
		if _, err := s.Set(ctx, "own", d, []byte(value)); err == nil {
			t.Errorf("%s: it was taken", what)
		}
	}
	for _, r := range []string{"", "a", "a/b/c", "a/..", "../b", "a/b.git", "a /b", "a/*", "-a/b", "a%2f/b"} {
		if _, err := s.Set(ctx, "github", &api.SecretDefinition{Preset: "github", Repositories: []string{r}}, []byte(value)); err == nil {
			t.Errorf("repository %q was taken", r)
		}
	}
	if _, err := s.Set(ctx, "github", nil, []byte(value)); err == nil {
		t.Error("github without a repository was taken")
	}
	if _, err := s.Set(ctx, "own", nil, []byte(value)); err == nil {
		t.Error("a secret without a definition was taken")
	}
	if _, err := s.Set(ctx, "own", good(), []byte(value)); err != nil {
		t.Errorf("control: %v", err)
	}
	if _, err := s.Set(ctx, "github", &api.SecretDefinition{Preset: "github", Repositories: []string{"octo-org/a.b_c"}}, []byte(value)); err != nil {
		t.Errorf("control: %v", err)
	}
	d := good()
	d.Placeholder = "carrel-placeholder-own"
	if _, err := s.Set(ctx, "other", d, []byte(value)); err == nil {
		t.Error("two secrets with one placeholder")
	}
}

// TestSlowKeychain: a keychain that waits for a person holds up one question,
// for a bounded time.
func TestSlowKeychain(t *testing.T) {
	release := make(chan struct{})
	slow := func() (string, error) { <-release; return "late", nil }
	for range 3 {
		if v, err := inTime(t.Context(), 10*time.Millisecond, slow); !errors.Is(err, context.DeadlineExceeded) || v != "" {
			t.Errorf("%q, %v", v, err)
		}
	}
	close(release)
	if v, err := inTime(t.Context(), 10*time.Second, func() (string, error) { return "v", nil }); v != "v" || err != nil {
		t.Errorf("control: %q, %v", v, err)
	}
}

func TestManySetters(t *testing.T) {
	s, dir := fileStore(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			s, err := Open(Options{Dir: dir, Kind: inFile})
			if err != nil {
				t.Error(err)
				return
			}
			d := &api.SecretDefinition{Hosts: []string{"a.example"}, Kind: api.SecretKind_SECRET_KIND_BEARER, Methods: []string{"GET"}, Paths: []string{"/"}}
			for range 3 {
				if _, err := s.Set(t.Context(), fmt.Sprintf("s%d", i), d, []byte(value)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if l, err := s.List(); err != nil || len(l) != 8 {
		t.Errorf("%d secrets, %v", len(l), err)
	}
	if x, _ := s.load(); len(x.Leftover) != 0 {
		t.Errorf("leftovers: %v", x.Leftover)
	}
}
