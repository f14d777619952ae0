package stage

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func example() *Spec {
	return &Spec{
		User: true, UID: 1000, GID: 1001, Groups: []uint32{1, 2}, Dir: "/d", DirOptional: true,
		Argv: []string{"a", "", "c\n"}, Env: []string{"A=1"}, Rlimits: []Rlimit{{7, 1, 1<<64 - 1}},
		NoNewPrivs: true, Seccomp: FilterUser, Parent: 12,
	}
}

func TestSpec(t *testing.T) {
	want := example()
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v, want %+v", got, err, want)
	}
	for n := range b {
		if _, err := Decode(b[:n]); err == nil {
			t.Fatalf("the first %d bytes of %d are a description", n, len(b))
		}
	}
	for name, change := range map[string]func(*Spec){
		"NUL in argv": func(s *Spec) { s.Argv[0] = "a\x00b" },
		"NUL in env":  func(s *Spec) { s.Env[0] = "A=\x00" },
		"NUL in dir":  func(s *Spec) { s.Dir = "\x00" },
		"too long":    func(s *Spec) { s.Argv[0] = strings.Repeat("x", MaxSpec) },
	} {
		s := example()
		change(s)
		if _, err := s.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := example().Encode()
	f.Add(b)
	f.Add([]byte("0\x000\x000\x00999999999\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err != nil {
			return
		}
		again, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if s2, err := Decode(again); err != nil || !reflect.DeepEqual(s, s2) {
			t.Fatalf("%q becomes %q", b, bytes.TrimSpace(again))
		}
	})
}
