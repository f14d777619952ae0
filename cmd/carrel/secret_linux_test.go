package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
)

// TestSecretPrompt types a value on a terminal: it is not shown.
func TestSecretPrompt(t *testing.T) {
	person, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer person.Close()
	defer tty.Close()
	a := &app{in: tty, err: tty}
	type answer struct {
		value []byte
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		v, err := a.readSecret(t.Context(), "demo")
		done <- answer{v, err}
	}()
	seen := until(t, person, "not shown): ")
	if _, err := person.WriteString("hunter2hunter2\r"); err != nil {
		t.Fatal(err)
	}
	got := <-done
	seen += until(t, person, "\n")
	if got.err != nil || string(got.value) != "hunter2hunter2" || strings.Contains(seen, "hunter") {
		t.Errorf("%q, %v; on the terminal: %q", got.value, got.err, seen)
	}

	// A signal ends the prompt, and the terminal shows again what is typed.
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("interrupted")
	go func() {
		_, err := a.readSecret(ctx, "demo")
		done <- answer{nil, err}
	}()
	until(t, person, "not shown): ")
	cancel(why)
	if got := <-done; !errors.Is(got.err, why) {
		t.Errorf("%v", got.err)
	}
	until(t, person, "\n")
	person.WriteString("visible\r")
	until(t, person, "visible")
}

// until reads what a terminal shows up to a text.
func until(t *testing.T, f *os.File, text string) string {
	t.Helper()
	f.SetReadDeadline(time.Now().Add(5 * time.Minute))
	var seen []byte
	for b := make([]byte, 1); !bytes.Contains(seen, []byte(text)); seen = append(seen, b[0]) {
		if _, err := f.Read(b); err != nil {
			t.Fatalf("%q did not appear after %q: %v", text, seen, err)
		}
	}
	return string(seen)
}

func TestSecretFromStdin(t *testing.T) {
	for in, want := range map[string]string{"token-1\n": "token-1", "token-1\r\n": "token-1", "token-1": "token-1", "two\nlines\n": "two\nlines", "": "", "\n": ""} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.WriteString(in)
		w.Close()
		got, err := (&app{in: r}).readSecret(t.Context(), "demo")
		if string(got) != want || (err != nil) != (want == "") || err != nil && exitStatus(err) != exitUsage {
			t.Errorf("%q: %q, %v", in, got, err)
		}
		r.Close()
	}
}

func TestSecretDefinition(t *testing.T) {
	if d, err := new(secretFlags).definition(); d != nil || err != nil {
		t.Errorf("no flags: %v, %v", d, err)
	}
	if _, err := (&secretFlags{bearer: true, header: "x"}).definition(); exitStatus(err) != exitUsage {
		t.Errorf("two kinds: %v", err)
	}
	if _, err := (&secretFlags{ports: []uint{70000}}).definition(); exitStatus(err) != exitUsage {
		t.Errorf("a port: %v", err)
	}
	d, err := (&secretFlags{hosts: []string{"h"}, basic: "u", ports: []uint{8443}}).definition()
	if err != nil || d.Kind != api.SecretKind_SECRET_KIND_BASIC || d.User != "u" || d.Ports[0] != 8443 {
		t.Errorf("%v, %v", d, err)
	}
}

func TestSecretTable(t *testing.T) {
	var b strings.Builder
	at := timestamppb.New(time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC))
	err := secretTable(&b, []*api.Secret{
		{Name: "ci", Store: "file", Updated: at, Definition: &api.SecretDefinition{Hosts: []string{"ci.example.org"}, Kind: api.SecretKind_SECRET_KIND_HEADER, Header: "x-ci", Env: "CI_TOKEN"}},
		{Name: "gh", Store: "keychain\x1b[31m", Updated: at, Definition: &api.SecretDefinition{Preset: "github", Hosts: []string{"github.com"}, Kind: api.SecretKind_SECRET_KIND_BASIC, User: "x-access-token", Repositories: []string{"o/r"}}},
	})
	want := `NAME  FOR         HOSTS           SENT AS               VARIABLE  STORE               SET
ci    -           ci.example.org  x-ci                  CI_TOKEN  file                2026-01-02
gh    github o/r  github.com      basic x-access-token  -         keychain\x1b[31m  2026-01-02
`
	got := b.String()
	if err != nil || strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestAuditLine(t *testing.T) {
	for in, want := range map[string]string{
		`{"seq":3,"time":"2026-01-02T03:04:05Z","kind":"egress","prev":"x","data":{"host":"a\u001b[31m\u202e"}}`: `{"host":"a\u001b[31m\u202e"}`,
		"no JSON \x1b[31m": `no JSON \x1b[31m`,
	} {
		got := auditLine([]byte(in))
		if !strings.HasSuffix(got, want) || strings.ContainsFunc(got, dangerous) {
			t.Errorf("%q: %q", in, got)
		}
	}
}
