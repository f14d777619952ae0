package bundle

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// I11: a trusted key signs the images that it is trusted for, and no others; the first ones of the table are the control.
func TestKeyNames(t *testing.T) {
	mine, key := pair(t, "mine")
	for _, c := range []struct {
		names Names
		image string
		good  bool
	}{
		{Names{"default"}, "default", true},
		{Names{"other", "default"}, "default", true},
		{Names{"def*"}, "default", true},
		{Names{"default*"}, "default", true},
		{Names{"*"}, "default", true},
		{nil, "default", false},
		{Names{"defaul"}, "default", false},
		{Names{"default"}, "default-2", false},
		{Names{"team-*"}, "default", false},
		{Names{"team-*"}, "team", false},
		{Names{"*fault"}, "default", false}, // not a pattern that check takes
	} {
		key.For = c.names
		s := said(7)
		s.Name = c.image
		_, err := Verify([]Signed{sign(t, mine, s)}, []Key{key}, someDigest, now)
		if c.good != (err == nil) || !c.good && (!errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "may not sign image "+c.image)) {
			t.Errorf("a key for %s and image %s: %v", c.names, c.image, err)
		}
	}
	// The cure says what it was trusted for, too, and can be typed.
	key.For, key.Path = Names{"team-*"}, "/home/me/my keys/mine.pem"
	_, err := Verify([]Signed{sign(t, mine, said(7))}, []Key{key}, someDigest, now)
	if err == nil || !strings.Contains(err.Error(), "carrel image trust '/home/me/my keys/mine.pem' --for 'team-*,default'") {
		t.Errorf("the cure: %v", err)
	}
	// Another trusted key's signature beside it counts.
	theirs, their := pair(t, "their")
	if p, err := Verify([]Signed{sign(t, mine, said(7)), sign(t, theirs, said(7))}, []Key{key, their}, someDigest, now); err != nil || p.Key.Name != "their" {
		t.Errorf("beside one that may not: %+v, %v", p, err)
	}
}

// Of several good signatures one counts that has not expired, and of these the one of the latest version, in whatever order they lie.
func TestVerifyPrefers(t *testing.T) {
	mine, key := pair(t, "mine")
	until := func(version uint64, end time.Time) Signed {
		s := said(version)
		s.Expires = end
		return sign(t, mine, s)
	}
	expired, later, good, latest := until(9, now.Add(-time.Second)), until(10, now), until(5, now.Add(time.Second)), until(6, time.Time{})
	for name, c := range map[string]struct {
		signed []Signed
		want   uint64
	}{
		"an expired one first":   {[]Signed{expired, good}, 5},
		"an expired one last":    {[]Signed{good, expired}, 5},
		"two that are good":      {[]Signed{good, latest, expired}, 6},
		"the other way":          {[]Signed{latest, good}, 6},
		"all have expired":       {[]Signed{expired, later}, 10},
		"one, and it is expired": {[]Signed{expired}, 9},
	} {
		p, err := Verify(c.signed, []Key{key}, someDigest, now)
		if err != nil || p.Version != c.want {
			t.Errorf("%s: %+v, %v", name, p, err)
			continue
		}
		if again, err := Verify([]Signed{p.Signed}, []Key{key}, someDigest, now); err != nil || again.Statement != p.Statement {
			t.Errorf("%s: the signature that is kept says %+v, %v", name, again, err)
		}
	}
}

// What a key may sign lies in its file, is written by Trust alone, and a file without it is no leave.
func TestKeyFileNames(t *testing.T) {
	dir, files := t.TempDir(), t.TempDir()
	_, public, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	from := filepath.Join(files, "k.pub")
	if err := os.WriteFile(from, append([]byte(namesLine+" *\n"), public...), 0o600); err != nil { // what somebody sent says so itself
		t.Fatal(err)
	}
	loaded := func() Key {
		t.Helper()
		keys, err := LoadKeys(dir)
		if err != nil || len(keys) != 1 {
			t.Fatalf("%v, %v", keys, err)
		}
		return keys[0]
	}
	for _, names := range []Names{{"default"}, {"team-*", "default"}} {
		if _, err := Trust(dir, from, "", names); err != nil {
			t.Fatal(err)
		}
		if k := loaded(); k.For.String() != names.String() || k.For.Has("stranger") || !k.For.Has("default") {
			t.Errorf("%s came back as %s", names, k.For)
		}
	}
	if out, err := exec.Command("openssl", "pkey", "-pubin", "-in", loaded().Path, "-noout").CombinedOutput(); err != nil {
		t.Errorf("openssl (scripts/setup installs it) does not read a trusted key's file: %v: %s", err, out)
	}
	for _, bad := range []Names{nil, {""}, {"De"}, {"a/b"}, {"a*b"}, {"**"}, {"-x"}, {"a b"}, {strings.Repeat("a", 32)}, make(Names, maxNames+1)} {
		if _, err := Trust(dir, from, "", bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if k := loaded(); !k.For.Has("team-x") {
		t.Errorf("what was refused has changed it to %s", k.For)
	}
	path := loaded().Path
	if err := os.WriteFile(path, public, 0o600); err != nil {
		t.Fatal(err)
	}
	if k := loaded(); len(k.For) != 0 || k.For.Has("default") {
		t.Errorf("a file that does not say: %s", k.For)
	}
	if err := os.WriteFile(path, append([]byte(namesLine+" ../x\n"), public...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeys(dir); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file that says nonsense: %v", err)
	}
}
